//! `v1.PodStatus`, computed from spec, observation and record; never announced by code that acted.
//!
//! As `pkg/kubelet/kubelet_pods.go` (`generateAPIPodStatus`, `getPhase`, `convertToAPIContainerStatuses`) and
//! `pkg/kubelet/status/generate.go`.

mod conditions;
mod containers;
mod memory;
mod phase;
mod resources;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::cgroup;
use crate::network::by_family;
use crate::node::NodeFacts;
use crate::observed::ObservedPod;
use crate::plan::{Busy, Plan};
use crate::pod::Pod;
use crate::record::{PodRecord, Terminal};

pub use conditions::remember_conditions;
pub(crate) use conditions::{DISRUPTION, OURS};
pub use memory::{remember, remember_restarts};

/// All that a status is made from.
#[derive(Clone, Debug)]
pub struct StatusInput<'a> {
    /// The pod as it should be.
    pub pod: &'a Pod,
    /// What there is of it.
    pub observed: &'a ObservedPod,
    /// What is remembered of it.
    pub record: &'a PodRecord,
    /// What is to be done next for it, and what it waits for.
    pub plan: &'a Plan,
    /// What is going on in the background.
    pub busy: &'a Busy,
    /// The node that it runs on.
    pub node: &'a NodeFacts,
    /// The time.
    pub now: Timestamp,
}

/// The status of a pod.
///
/// A terminal phase comes from the record alone ([`terminal`]), and is shown once nothing runs any more
/// (`mergePodStatus` in pkg/kubelet/status/status_manager.go): until then the pod is what it was.
pub fn compute(input: &StatusInput<'_>) -> v1::PodStatus {
    let StatusInput { pod, observed, record, node, .. } = *input;
    if let Some(known) = known_end(input) {
        return known;
    }
    let mut status = v1::PodStatus {
        qos_class: Some(cgroup::qos(pod.spec()).as_str().to_owned()),
        start_time: record.start_time.map(Time),
        observed_generation: pod.object.metadata.generation,
        ..Default::default()
    };
    if let Some(ip) = node.ips.first() {
        status.host_ip = Some(ip.to_string());
        status.host_ips = Some(node.ips.iter().map(|ip| v1::HostIP { ip: ip.to_string() }).collect());
    }
    let ended = record.terminal.as_ref().filter(|_| !runs(observed));
    if let Some(terminal) = ended {
        status.phase = Some(terminal.phase.clone());
        status.reason = terminal.reason.clone();
        status.message = terminal.message.clone();
        if was_rejected(input, terminal) {
            return status;
        }
    }
    let (inits, mut apps) = containers::all(input);
    if ended.is_none() {
        let phase = match phase::phase(input, &inits, &apps) {
            "Succeeded" | "Failed" if apps.iter().any(containers::has_begun) => "Running",
            "Succeeded" | "Failed" => "Pending",
            phase => phase,
        };
        status.phase = Some(phase.to_owned());
    }
    resources::fill_pod(input, &mut status);
    let ips: Vec<String> = told_ips(input).iter().map(ToString::to_string).collect();
    status.pod_ip = ips.first().cloned();
    status.pod_ips = (!ips.is_empty()).then(|| ips.into_iter().map(|ip| v1::PodIP { ip }).collect());
    let shown = status.phase.clone().unwrap_or_default();
    status.conditions = Some(conditions::conditions(input, &shown, &inits, &apps));
    status.init_container_statuses = (!inits.is_empty()).then_some(inits);
    // By name, as the kubelet has them; the init containers are in their order.
    let mut ephemeral = containers::ephemeral(input);
    for list in [&mut apps, &mut ephemeral] {
        list.sort_by(|a, b| a.name.cmp(&b.name));
    }
    status.ephemeral_container_statuses = (!ephemeral.is_empty()).then_some(ephemeral);
    status.container_statuses = (!apps.is_empty()).then_some(apps);
    share_messages(pod, &mut status);
    status
}

/// Bytes of termination messages that all containers of a pod may leave together (`MaxPodTerminationMessageLogLength`).
const MESSAGES: usize = 12 << 10;

/// Cuts each message to the container's share of what the pod may say (`normalizeStatus`).
fn share_messages(pod: &Pod, status: &mut v1::PodStatus) {
    let count = pod.containers().count() + pod.ephemeral_containers().count();
    let share = MESSAGES / count.max(1);
    let lists =
        [&mut status.container_statuses, &mut status.init_container_statuses, &mut status.ephemeral_container_statuses];
    for container in lists.into_iter().flatten().flatten() {
        for state in [&mut container.state, &mut container.last_state].into_iter().flatten() {
            if let Some(message) = state.terminated.as_mut().and_then(|terminated| terminated.message.as_mut()) {
                message.truncate(message.floor_char_boundary(share));
            }
        }
    }
}

/// The status that the API server has of a pod that ended before this agent knew it, as long as nothing of it is here to
/// tell more.
fn known_end(input: &StatusInput<'_>) -> Option<v1::PodStatus> {
    let known = crate::record::ended_in(input.pod.object.status.as_ref())?;
    let same = input.record.terminal.as_ref() == Some(&known) && input.pod.source == crate::pod::Source::Api;
    (same && input.observed.containers.is_empty()).then(|| input.pod.object.status.clone()).flatten()
}

/// Reason of a pod that was active for longer than its `activeDeadlineSeconds`.
const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";

/// Whether the pod was never admitted: it has no containers to show (`rejectPod` in pkg/kubelet/kubelet.go).
fn was_rejected(input: &StatusInput<'_>, terminal: &Terminal) -> bool {
    let nothing = input.record.containers.is_empty() && input.observed.containers.is_empty();
    nothing
        && input.record.evicted.is_none()
        && terminal.reason.as_deref().is_some_and(|reason| reason != DEADLINE_EXCEEDED)
}

fn runs(observed: &ObservedPod) -> bool {
    observed.containers.iter().any(crate::observed::Container::is_running)
}

/// Addresses that the pod can be reached at: its sandbox's, or the node's on the node's network.
/// None while that does not run. The primary one first, which is of the family of the node's first.
pub fn pod_ips(pod: &Pod, observed: &ObservedPod, node: &NodeFacts) -> Vec<IpAddr> {
    match observed.sandbox().filter(|sandbox| sandbox.is_running()) {
        Some(_) if pod.host_network() => node.ips.clone(),
        Some(sandbox) => by_family(&sandbox.ips, &node.ips),
        None => Vec::new(),
    }
}

/// The addresses that the status tells: also those that the pod had last, when it has no sandbox any more or the next one
/// has none yet (`getPodIPs` in pkg/kubelet/pleg/generic.go); on the node's network always the node's.
fn told_ips(input: &StatusInput<'_>) -> Vec<IpAddr> {
    let StatusInput { pod, observed, record, node, .. } = *input;
    if pod.host_network() {
        return node.ips.clone();
    }
    let now = pod_ips(pod, observed, node);
    if now.is_empty() { by_family(&record.ips, &node.ips) } else { now }
}

/// The statuses of all containers: app containers, then init and ephemeral ones.
pub fn of_containers(status: &v1::PodStatus) -> impl Iterator<Item = &v1::ContainerStatus> {
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten()
}

/// The end of the pod, once it has one: its deadline passed, an init container failed for good, or all
/// containers ended and none runs again. `None` as long as it goes on.
pub fn terminal(input: &StatusInput<'_>) -> Option<Terminal> {
    let StatusInput { pod, observed, record, plan, now, .. } = *input;
    if record.terminal.is_some() {
        return record.terminal.clone();
    }
    let deadline = deadline(pod, record);
    if deadline.is_some_and(|deadline| deadline <= now) && !plan.finished {
        return Some(Terminal {
            phase: "Failed".to_owned(),
            reason: Some(DEADLINE_EXCEEDED.to_owned()),
            message: Some("Pod was active on the node longer than the specified deadline".to_owned()),
        });
    }
    if !plan.finished || runs(observed) {
        return None;
    }
    let (inits, apps) = containers::all(input);
    // A container that never ran and never will counts as failed (`TerminatePod`).
    let phase = if phase::phase(input, &inits, &apps) == "Succeeded" { "Succeeded" } else { "Failed" };
    Some(Terminal { phase: phase.to_owned(), reason: None, message: None })
}

/// When the pod's deadline passes, if it has one.
pub fn deadline(pod: &Pod, record: &PodRecord) -> Option<Timestamp> {
    let seconds = pod.spec().active_deadline_seconds?;
    record.start_time?.checked_add(jiff::SignedDuration::from_secs(seconds)).ok()
}
