//! `status.conditions`, with the kubelet's reasons and messages.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::StatusInput;
use crate::pod::ContainerKind;
use crate::preempt;
use crate::record::{ConditionRecord, RESTARTING_ALL};
use crate::restart;

/// One condition before its transition time is known.
struct Condition {
    name: &'static str,
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

fn condition(name: &'static str, status: bool) -> Condition {
    Condition { name, status, reason: None, message: None }
}

/// All conditions of ours, and those of others that the object carries.
pub(super) fn conditions(
    input: &StatusInput<'_>,
    phase: &str,
    inits: &[v1::ContainerStatus],
    apps: &[v1::ContainerStatus],
) -> Vec<v1::PodCondition> {
    let pod = input.pod;
    let containers_ready = containers_ready(input, phase, inits, apps);
    let foreign = foreign(input);
    let ready = ready(input, &containers_ready, &foreign);
    let ours = [
        ready_to_start_containers(input),
        initialized(input, phase, inits, apps),
        ready,
        containers_ready,
        condition("PodScheduled", true),
    ];
    let restarting = restarting_all(input, phase);
    let disruption = disruption(input, phase);
    let foreign = foreign.into_iter().filter(|other| disruption.is_none() || other.type_ != DISRUPTION);
    let foreign: Vec<v1::PodCondition> = foreign.collect();
    let own = ours.into_iter().chain(restarting).chain(disruption).map(|ours| {
        let status = if ours.status { "True" } else { "False" };
        let known = input.record.conditions.get(ours.name).filter(|known| known.status == status);
        v1::PodCondition {
            type_: ours.name.to_owned(),
            status: status.to_owned(),
            reason: ours.reason.map(str::to_owned),
            message: ours.message,
            last_transition_time: Some(Time(known.map_or(input.now, |known| known.since))),
            observed_generation: pod.object.metadata.generation,
            ..Default::default()
        }
    });
    let ended = matches!(phase, "Succeeded" | "Failed");
    let resize = if ended { Vec::new() } else { super::resources::conditions(input) };
    own.chain(resize).chain(foreign).collect()
}

/// As `GeneratePodReadyToStartContainersCondition` of the kubelet 1.37; older ones give no reason.
fn ready_to_start_containers(input: &StatusInput<'_>) -> Condition {
    let name = "PodReadyToStartContainers";
    let missing = match input.observed.sandbox() {
        None => "no pod sandbox exists",
        Some(sandbox) if !sandbox.is_running() => "pod sandbox is not ready",
        Some(sandbox) if !input.pod.host_network() && sandbox.ips.is_empty() => "pod sandbox has no IP address",
        Some(_) => return condition(name, true),
    };
    Condition { reason: Some("PodSandboxNotReady"), message: Some(missing.to_owned()), ..condition(name, false) }
}

/// Remembers when each condition took its value, so that the next status keeps the time.
pub fn remember_conditions(records: &mut BTreeMap<String, ConditionRecord>, status: &v1::PodStatus) {
    for condition in status.conditions.iter().flatten() {
        let Some(since) = condition.last_transition_time.as_ref() else { continue };
        let record = ConditionRecord { status: condition.status.clone(), since: since.0 };
        records.insert(condition.type_.clone(), record);
    }
}

/// Of a pod that is ended before its time, by whomever.
pub(crate) const DISRUPTION: &str = "DisruptionTarget";

/// The conditions that are the node's alone to write.
pub(crate) const OURS: [&str; 8] = [
    RESTARTING_ALL,
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "PodResizePending",
    "PodResizeInProgress",
];

/// Conditions that others put on the object: readiness gates, `DisruptionTarget`.
fn foreign(input: &StatusInput<'_>) -> Vec<v1::PodCondition> {
    let conditions = input.pod.object.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|condition| !OURS.contains(&condition.type_.as_str())).cloned().collect()
}

/// Says of a pod that the node itself ended that it was not the pod's fault, for controllers that count failures
/// (`TerminationByKubelet` in pkg/kubelet/eviction and pkg/kubelet/preemption); told with its end, once nothing runs any more
/// (`mergePodStatus`).
fn disruption(input: &StatusInput<'_>, phase: &str) -> Option<Condition> {
    let terminal = input.record.terminal.as_ref().filter(|_| matches!(phase, "Succeeded" | "Failed"))?;
    let by_reason = || matches!(terminal.reason.as_deref(), Some("Evicted" | "Preempting" | "Terminated"));
    let by_the_node = input.record.evicted.map_or_else(by_reason, |evicted| evicted.disruption);
    let preempted = terminal.reason.as_deref() == Some(preempt::REASON);
    let message = if preempted { Some(preempt::DISRUPTION.to_owned()) } else { terminal.message.clone() };
    by_the_node.then(|| Condition { reason: Some("TerminationByKubelet"), message, ..condition(DISRUPTION, true) })
}

/// Whether all containers are removed to begin anew, of a pod in which that can happen
/// (`GenerateAllContainersRestartingCondition`).
fn restarting_all(input: &StatusInput<'_>, phase: &str) -> Option<Condition> {
    if !restart::could_restart_all(input.pod.spec()) {
        return None;
    }
    let reason = match phase {
        "Succeeded" => Some("PodCompleted"),
        "Failed" => Some("PodFailed"),
        _ if input.record.restarting_all => {
            return Some(Condition {
                reason: Some("RestartAllContainersStarted"),
                message: Some("container exited with restart policy rule".to_owned()),
                ..condition(RESTARTING_ALL, true)
            });
        }
        _ => None,
    };
    Some(Condition { reason, ..condition(RESTARTING_ALL, false) })
}

fn initialized(
    input: &StatusInput<'_>,
    phase: &str,
    inits: &[v1::ContainerStatus],
    apps: &[v1::ContainerStatus],
) -> Condition {
    if phase == "Succeeded" {
        return Condition { reason: Some("PodCompleted"), ..condition("Initialized", true) };
    }
    // A pod that was initialized stays so, also in another sandbox, or when all containers begin anew.
    let stays = input.record.conditions.get("Initialized").is_some_and(|known| known.status == "True");
    if stays || apps.iter().any(super::containers::has_begun) {
        return condition("Initialized", true);
    }
    let waiting: Vec<&str> = inits
        .iter()
        .filter(|status| match input.pod.container(&status.name).map(|container| container.kind) {
            Some(ContainerKind::Sidecar) => !status.started.unwrap_or(false),
            _ => !status.ready || super::containers::was_out_of_memory(status),
        })
        .map(|status| status.name.as_str())
        .collect();
    if waiting.is_empty() {
        return condition("Initialized", true);
    }
    Condition {
        reason: Some("ContainersNotInitialized"),
        message: Some(format!("containers with incomplete status: [{}]", waiting.join(" "))),
        ..condition("Initialized", false)
    }
}

fn containers_ready(
    input: &StatusInput<'_>,
    phase: &str,
    inits: &[v1::ContainerStatus],
    apps: &[v1::ContainerStatus],
) -> Condition {
    let name = "ContainersReady";
    match phase {
        "Succeeded" => return Condition { reason: Some("PodCompleted"), ..condition(name, false) },
        "Failed" => return Condition { reason: Some("PodFailed"), ..condition(name, false) },
        _ => {}
    }
    let sidecars = inits.iter().filter(|status| {
        input.pod.container(&status.name).is_some_and(|container| container.kind == ContainerKind::Sidecar)
    });
    let unready: Vec<&str> =
        sidecars.chain(apps).filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
    if unready.is_empty() {
        return condition(name, true);
    }
    Condition {
        reason: Some("ContainersNotReady"),
        message: Some(format!("containers with unready status: [{}]", unready.join(" "))),
        ..condition(name, false)
    }
}

fn ready(input: &StatusInput<'_>, containers_ready: &Condition, foreign: &[v1::PodCondition]) -> Condition {
    if !containers_ready.status {
        return Condition {
            reason: containers_ready.reason,
            message: containers_ready.message.clone(),
            ..condition("Ready", false)
        };
    }
    let gates = input.pod.spec().readiness_gates.iter().flatten();
    let open: Vec<String> = gates
        .filter_map(|gate| {
            let found = foreign.iter().find(|condition| condition.type_ == gate.condition_type);
            match found {
                None => Some(format!(
                    "corresponding condition of pod readiness gate \"{}\" does not exist.",
                    gate.condition_type
                )),
                Some(condition) if condition.status != "True" => Some(format!(
                    "the status of pod readiness gate \"{}\" is not \"True\", but {}",
                    gate.condition_type, condition.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    if open.is_empty() {
        return condition("Ready", true);
    }
    Condition { reason: Some("ReadinessGatesNotReady"), message: Some(open.join(", ")), ..condition("Ready", false) }
}
