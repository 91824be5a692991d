//! The cells of `get pods`, by kubectl's rules (`pkg/printers/internalversion/printers.go`, printPod).

use jiff::Timestamp;
use k8s_openapi::api::core::v1;

use super::age;

/// What a row of `get pods` says of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodRow {
    /// Name of the pod.
    pub(crate) name: String,
    /// Ready containers and all of them, sidecars included: `1/2`.
    pub(crate) ready: String,
    /// In one word where it is: `Running`, `Init:0/1`, `CrashLoopBackOff`, `Terminating` …
    pub(crate) status: String,
    /// Restarts, and how long ago the last one was: `2 (30s ago)`.
    pub(crate) restarts: String,
    /// Time since it was made.
    pub(crate) age: String,
}

struct Tally {
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Tally {
    fn new() -> Self {
        Tally { restarts: 0, last_restart: None }
    }

    fn add(&mut self, status: &v1::ContainerStatus) {
        self.restarts += i64::from(status.restart_count);
        let ended = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        self.last_restart = self.last_restart.max(ended.and_then(|ended| ended.finished_at.as_ref()).map(|t| t.0));
    }
}

/// The row of a pod.
pub(crate) fn pod_row(pod: &v1::Pod, now: Timestamp) -> PodRow {
    static NO_SPEC: std::sync::LazyLock<v1::PodSpec> = std::sync::LazyLock::new(v1::PodSpec::default);
    static NO_STATUS: std::sync::LazyLock<v1::PodStatus> = std::sync::LazyLock::new(v1::PodStatus::default);
    let spec = pod.spec.as_ref().unwrap_or(&NO_SPEC);
    let status = pod.status.as_ref().unwrap_or(&NO_STATUS);
    let init_specs = spec.init_containers.as_deref().unwrap_or_default();
    let is_sidecar = |name: &str| {
        init_specs.iter().any(|spec| spec.name == name && spec.restart_policy.as_deref() == Some("Always"))
    };
    let total = spec.containers.len() + init_specs.iter().filter(|spec| is_sidecar(&spec.name)).count();
    let phase = status.phase.clone().unwrap_or_default();
    let mut ready = 0;
    let mut reason = status.reason.clone().filter(|reason| !reason.is_empty()).unwrap_or_else(|| phase.clone());
    let mut tally = Tally::new();
    let mut sidecars = Tally::new();
    let mut initializing = false;
    for (index, container) in status.init_container_statuses.iter().flatten().enumerate() {
        tally.add(container);
        let sidecar = is_sidecar(&container.name);
        if sidecar {
            sidecars.add(container);
        }
        let state = container.state.clone().unwrap_or_default();
        match (state.terminated, state.waiting.and_then(|waiting| waiting.reason)) {
            (Some(ended), _) if ended.exit_code == 0 => continue,
            _ if sidecar && container.started == Some(true) => {
                ready += usize::from(container.ready);
                continue;
            }
            (Some(ended), _) => reason = format!("Init:{}", ended_reason(&ended)),
            (None, Some(waiting)) if !waiting.is_empty() && waiting != "PodInitializing" => {
                reason = format!("Init:{waiting}");
            }
            (None, _) => reason = format!("Init:{index}/{}", init_specs.len()),
        }
        initializing = true;
        break;
    }
    if !initializing || has_condition(status, "Initialized") {
        tally = sidecars;
        let mut running = false;
        for container in status.container_statuses.iter().flatten().rev() {
            tally.add(container);
            let state = container.state.clone().unwrap_or_default();
            match (state.waiting.and_then(|waiting| waiting.reason), state.terminated) {
                (Some(waiting), _) if !waiting.is_empty() => reason = waiting,
                (_, Some(ended)) => reason = ended_reason(&ended),
                _ if container.ready && state.running.is_some() => {
                    running = true;
                    ready += 1;
                }
                _ => {}
            }
        }
        if reason == "Completed" && running {
            reason = if has_condition(status, "Ready") { "Running" } else { "NotReady" }.to_owned();
        }
    }
    if pod.metadata.deletion_timestamp.is_some() && !matches!(phase.as_str(), "Succeeded" | "Failed") {
        reason = "Terminating".to_owned();
    }
    let restarts = match tally.last_restart {
        Some(last) if tally.restarts != 0 => {
            format!("{} ({} ago)", tally.restarts, age::human(now.duration_since(last)))
        }
        _ => tally.restarts.to_string(),
    };
    PodRow {
        name: pod.metadata.name.clone().unwrap_or_default(),
        ready: format!("{ready}/{total}"),
        status: reason,
        restarts,
        age: age::since(born(pod), now),
    }
}

/// When the pod came to be: a static pod's object has no time of its creation, then it is when it was taken on.
pub(crate) fn born(pod: &v1::Pod) -> Option<Timestamp> {
    let start = || pod.status.as_ref()?.start_time.as_ref();
    pod.metadata.creation_timestamp.as_ref().or_else(start).map(|time| time.0)
}

/// A resize of the pod that is not granted: `Deferred` or `Infeasible`, and what stands in its way.
pub(crate) fn pending_resize(pod: &v1::Pod) -> Option<(&str, &str)> {
    let mut conditions = pod.status.as_ref()?.conditions.iter().flatten();
    let pending = conditions.find(|condition| condition.type_ == "PodResizePending" && condition.status == "True")?;
    Some((pending.reason.as_deref().unwrap_or_default(), pending.message.as_deref().unwrap_or_default()))
}

fn ended_reason(ended: &v1::ContainerStateTerminated) -> String {
    match (ended.reason.as_deref().unwrap_or_default(), ended.signal.unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", ended.exit_code),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn has_condition(status: &v1::PodStatus, kind: &str) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == kind && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::super::samples::{now, pod};
    use super::*;

    fn cells(yaml: &str) -> (String, String, String) {
        let row = pod_row(&pod(yaml), now());
        (row.ready, row.status, row.restarts)
    }

    #[test]
    fn states_as_kubectl_names_them() {
        let two = "spec: {containers: [{name: a}, {name: b}]}";
        let init = "spec: {initContainers: [{name: i}, {name: s, restartPolicy: Always}], containers: [{name: a}]}";
        let cases = [
            // No statuses yet.
            (two, "{phase: Pending}", "0/2", "Pending", "0"),
            // A reason of the pod itself.
            (two, "{phase: Failed, reason: Evicted}", "0/2", "Evicted", "0"),
            (
                two,
                "{phase: Running, containerStatuses: [
                  {name: a, ready: true, restartCount: 0, state: {running: {}}},
                  {name: b, ready: false, restartCount: 3, state: {waiting: {reason: CrashLoopBackOff}},
                   lastState: {terminated: {exitCode: 1, finishedAt: '2026-01-01T11:59:30Z'}}}]}",
                "1/2",
                "CrashLoopBackOff",
                "3 (30s ago)",
            ),
            (
                two,
                "{phase: Running, conditions: [{type: Ready, status: 'False'}], containerStatuses: [
                  {name: a, ready: false, restartCount: 0, state: {terminated: {exitCode: 0, reason: Completed}}},
                  {name: b, ready: true, restartCount: 0, state: {running: {}}}]}",
                "1/2",
                "NotReady",
                "0",
            ),
            (
                two,
                "{phase: Failed, containerStatuses: [
                  {name: a, restartCount: 0, state: {terminated: {exitCode: 137, signal: 9}}},
                  {name: b, restartCount: 0, state: {terminated: {exitCode: 2}}}]}",
                "0/2",
                "Signal:9",
                "0",
            ),
            (
                init,
                "{phase: Pending, initContainerStatuses: [
                  {name: i, restartCount: 2, state: {running: {}}}, {name: s, state: {waiting: {reason: PodInitializing}}}],
                  containerStatuses: [{name: a, state: {waiting: {reason: PodInitializing}}}]}",
                "0/2",
                "Init:0/2",
                "2",
            ),
            (
                init,
                "{phase: Pending, initContainerStatuses: [
                  {name: i, restartCount: 1, state: {waiting: {reason: CrashLoopBackOff}}}]}",
                "0/2",
                "Init:CrashLoopBackOff",
                "1",
            ),
            (
                init,
                "{phase: Pending, initContainerStatuses: [{name: i, state: {terminated: {exitCode: 3}}}]}",
                "0/2",
                "Init:ExitCode:3",
                "0",
            ),
            // An init container that ended and a sidecar that runs: restarts of the init container do not count.
            (
                init,
                "{phase: Running, conditions: [{type: Initialized, status: 'True'}], initContainerStatuses: [
                  {name: i, restartCount: 5, state: {terminated: {exitCode: 0, reason: Completed}}},
                  {name: s, restartCount: 1, ready: true, started: true, state: {running: {}}}],
                  containerStatuses: [{name: a, restartCount: 1, ready: true, state: {running: {}}}]}",
                "2/2",
                "Running",
                "2",
            ),
            (
                two,
                "{phase: Pending, containerStatuses: [{name: a, state: {waiting: {reason: ContainerCreating}}},
                  {name: b, state: {waiting: {reason: ErrImagePull}}}]}",
                "0/2",
                "ContainerCreating",
                "0",
            ),
        ];
        for (spec, status, ready, state, restarts) in cases {
            let seen = cells(&format!("metadata: {{name: p}}\n{spec}\nstatus: {status}\n"));
            assert_eq!(seen, (ready.to_owned(), state.to_owned(), restarts.to_owned()), "{status}");
        }
    }

    #[test]
    fn a_pod_that_ends_is_terminating_until_its_phase_is_final() {
        let ending = |phase: &str| {
            let yaml = format!(
                "metadata: {{name: p, deletionTimestamp: '2026-01-01T12:00:00Z'}}\nspec: {{containers: [{{name: a}}]}}
status: {{phase: {phase}}}"
            );
            cells(&yaml).1
        };
        assert_eq!(ending("Running"), "Terminating");
        assert_eq!(ending("Succeeded"), "Succeeded");
    }

    #[test]
    fn age_falls_back_to_the_start() {
        let row = pod_row(&pod("metadata: {name: p}\nstatus: {startTime: '2026-01-01T11:00:00Z'}"), now());
        assert_eq!(row.age, "60m");
        assert_eq!(pod_row(&pod("metadata: {name: p}"), now()).age, "<unknown>");
    }
}
