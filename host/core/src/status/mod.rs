//! `v1.PodStatus`, computed from spec, observation and record; never announced by code that acted.
//!
//! As `pkg/kubelet/kubelet_pods.go` (`generateAPIPodStatus`, `getPhase`, `convertToAPIContainerStatuses`) and
//! `pkg/kubelet/status/generate.go`.

mod conditions;
mod containers;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::cgroup;
use crate::node::NodeFacts;
use crate::observed::{ObservedPod, SandboxState};
use crate::plan::{Busy, Plan};
use crate::pod::{ContainerKind, Pod};
use crate::record::{PodRecord, Terminal};
use crate::restart;

pub use conditions::remember_conditions;
pub use containers::remember;

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
pub fn compute(input: &StatusInput<'_>) -> v1::PodStatus {
    let StatusInput { pod, observed, record, node, .. } = *input;
    let rejected = record.terminal.as_ref().filter(|_| record.containers.is_empty() && observed.containers.is_empty());
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
    if let Some(terminal) = rejected {
        // A pod that was never admitted has no containers to show (`rejectPod` in pkg/kubelet/kubelet.go).
        status.phase = Some(terminal.phase.clone());
        status.reason = terminal.reason.clone();
        status.message = terminal.message.clone();
        return status;
    }
    let inits = containers::statuses(input, |kind| kind != ContainerKind::App);
    let apps = containers::statuses(input, |kind| kind == ContainerKind::App);
    let phase = phase(input, &inits, &apps);
    let nothing_runs = !observed.containers.iter().any(crate::observed::Container::is_running);
    match record.terminal.as_ref().filter(|_| nothing_runs) {
        Some(terminal) => {
            status.phase = Some(terminal.phase.clone());
            status.reason = terminal.reason.clone();
            status.message = terminal.message.clone();
        }
        None => status.phase = Some(phase.to_owned()),
    }
    let ips = pod_ips(input);
    status.pod_ip = ips.first().cloned();
    status.pod_ips = (!ips.is_empty()).then(|| ips.into_iter().map(|ip| v1::PodIP { ip }).collect());
    let shown = status.phase.clone().unwrap_or_default();
    status.conditions = Some(conditions::conditions(input, &shown, &inits, &apps));
    status.init_container_statuses = (!inits.is_empty()).then_some(inits);
    status.container_statuses = (!apps.is_empty()).then_some(apps);
    status
}

/// Addresses of the pod: its sandbox's, or the node's on the node's network.
fn pod_ips(input: &StatusInput<'_>) -> Vec<String> {
    let Some(sandbox) = input.observed.sandbox().filter(|sandbox| sandbox.state == SandboxState::Running) else {
        return Vec::new();
    };
    let ips = if input.pod.host_network() { &input.node.ips } else { &sandbox.ips };
    ips.iter().map(ToString::to_string).collect()
}

/// The end of the pod, once it has one: its deadline passed, an init container failed for good, or all
/// containers ended and none runs again. `None` as long as it goes on.
pub fn terminal(input: &StatusInput<'_>) -> Option<Terminal> {
    let StatusInput { pod, observed, record, plan, now, .. } = *input;
    if record.terminal.is_some() {
        return record.terminal.clone();
    }
    let deadline = pod.spec().active_deadline_seconds.and_then(|seconds| {
        let start = record.start_time?;
        start.checked_add(jiff::SignedDuration::from_secs(seconds)).ok()
    });
    if deadline.is_some_and(|deadline| deadline <= now) && !plan.finished {
        return Some(Terminal {
            phase: "Failed".to_owned(),
            reason: Some("DeadlineExceeded".to_owned()),
            message: Some("Pod was active on the node longer than the specified deadline".to_owned()),
        });
    }
    let runs = observed.containers.iter().any(crate::observed::Container::is_running);
    if !plan.finished || runs {
        return None;
    }
    let inits = containers::statuses(input, |kind| kind != ContainerKind::App);
    let apps = containers::statuses(input, |kind| kind == ContainerKind::App);
    // A container that never ran and never will counts as failed.
    let phase = if phase(input, &inits, &apps) == "Succeeded" { "Succeeded" } else { "Failed" };
    Some(Terminal { phase: phase.to_owned(), reason: None, message: None })
}

/// When the pod's deadline passes, if it has one.
pub fn deadline(pod: &Pod, record: &PodRecord) -> Option<Timestamp> {
    let seconds = pod.spec().active_deadline_seconds?;
    record.start_time?.checked_add(jiff::SignedDuration::from_secs(seconds)).ok()
}

/// `getPhase`.
fn phase(input: &StatusInput<'_>, inits: &[v1::ContainerStatus], apps: &[v1::ContainerStatus]) -> &'static str {
    let pod = input.pod;
    let exit_of =
        |state: Option<&v1::ContainerState>| state.and_then(|state| state.terminated.as_ref()).map(|t| t.exit_code);
    let mut pending_init = false;
    let mut sidecar_not_started = false;
    let mut running = 0;
    let mut unknown = 0;
    for status in inits {
        let Some(container) = pod.container(&status.name) else { continue };
        let current = exit_of(status.state.as_ref());
        if container.kind == ContainerKind::Sidecar {
            running += usize::from(status.state.as_ref().is_some_and(|state| state.running.is_some()));
            sidecar_not_started |= !status.started.unwrap_or(false);
            continue;
        }
        let ended = current.or_else(|| exit_of(status.last_state.as_ref()));
        match (current, ended) {
            (Some(0), _) => {}
            (_, Some(code)) if code != 0 && !restart::should_restart(pod, container, code) => return "Failed",
            _ => pending_init = true,
        }
    }
    let (mut waiting, mut stopped, mut succeeded, mut again) = (0, 0, 0, 0);
    for status in apps {
        let Some(container) = pod.container(&status.name) else { continue };
        let state = status.state.clone().unwrap_or_default();
        if state.running.is_some() {
            running += 1;
        } else if let Some(code) = exit_of(Some(&state)).or_else(|| exit_of(status.last_state.as_ref())) {
            stopped += 1;
            succeeded += usize::from(code == 0 && state.terminated.is_some());
            again += usize::from(state.waiting.is_some() || restart::should_restart(pod, container, code));
        } else if state.waiting.is_some() {
            waiting += 1;
        } else {
            unknown += 1;
        }
    }
    let initialized = input.plan.initialized || input.record.initialized;
    let ending = pod.deletion.is_some();
    if (pending_init || sidecar_not_started) && !initialized && !input.plan.finished {
        return "Pending";
    }
    if waiting > 0 && !(ending && running == 0) {
        return "Pending";
    }
    if running > 0 && unknown == 0 {
        return "Running";
    }
    if running == 0 && stopped > 0 && unknown == 0 {
        if again > 0 && !ending {
            return "Running";
        }
        return if stopped == succeeded { "Succeeded" } else { "Failed" };
    }
    "Pending"
}
