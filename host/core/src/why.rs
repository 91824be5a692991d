//! A pod's way from admission to readiness, for `longshore why`: which step it is in, and what that waits for.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1;

use crate::observed::{ContainerState, Exit, ObservedPod, Sandbox};
use crate::plan::Plan;
use crate::pod::{ContainerKind, ContainerOf, Pod};
use crate::ports::runtime::PullProgress;
use crate::record::PodRecord;
use crate::view::{ProbeView, Step, StepState};

/// All that the way is told from.
#[derive(Clone, Debug)]
pub struct Journey<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// What there is of it.
    pub observed: &'a ObservedPod,
    /// What is remembered of it.
    pub record: &'a PodRecord,
    /// What is to be done next, and what is waited for.
    pub plan: &'a Plan,
    /// Its status.
    pub status: &'a v1::PodStatus,
    /// Pulls that go on, by container: the image, and the time that it has taken.
    pub pulls: &'a BTreeMap<String, (String, PullProgress, Duration)>,
    /// Whether its volumes are set up.
    pub prepared: bool,
    /// Why nothing of it may be started, if so.
    pub blocked: Option<&'a str>,
}

/// The steps, in order. At most one chain of them is not `Done` or `Ahead`.
pub fn journey(input: &Journey<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(terminal) = &input.record.terminal {
        let reason = terminal.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        let message = terminal.message.as_deref().unwrap_or("all containers have ended and none runs again");
        let mut detail = format!("{}{reason}: {message}", terminal.phase);
        let failed = terminal.phase == "Failed";
        // One that others ended says why itself.
        if failed && terminal.reason.is_none() {
            detail.push_str(&failures(input));
        }
        let state = if failed { StepState::Failed } else { StepState::Done };
        steps.push(Step { since: input.record.ended_at, ..step("ended", state, detail) });
        return steps;
    }
    if let Some(deletion) = input.pod.deletion {
        let running = input.observed.containers.iter().filter(|seen| seen.is_running()).map(|seen| seen.name.as_str());
        let running: Vec<&str> = running.collect();
        let detail = if running.is_empty() {
            "removing what is left of it".to_owned()
        } else {
            format!("waits for {} to stop; grace period {} s", running.join(", "), deletion.grace_seconds)
        };
        steps.push(step("ending", StepState::Waiting, detail));
        return steps;
    }
    let admitted = if input.blocked.is_some() { StepState::Waiting } else { StepState::Done };
    steps.push(step("admitted", admitted, input.blocked.unwrap_or_default().to_owned()));
    let held = input.plan.waits.get("").filter(|_| input.blocked.is_none());
    let next = if input.blocked.is_some() { StepState::Ahead } else { waiting_or_running(held.is_some()) };
    let sandbox_up = input.observed.sandbox().is_some_and(Sandbox::is_up);
    let volumes = if input.prepared || sandbox_up { StepState::Done } else { next };
    let detail = held.map(|held| with_until(&held.message, held.until)).unwrap_or_default();
    let volumes_detail = if volumes == StepState::Done { String::new() } else { detail.clone() };
    steps.push(step("volumes", volumes, volumes_detail));
    let sandbox = match (sandbox_up, volumes) {
        (true, _) => StepState::Done,
        (false, StepState::Done) => next,
        (false, _) => StepState::Ahead,
    };
    let sandbox_detail = match (sandbox, input.status.pod_ip.as_deref()) {
        (StepState::Done, Some(ip)) => format!("address {ip}"),
        (StepState::Waiting | StepState::Running, _) => detail,
        _ => String::new(),
    };
    steps.push(step("sandbox", sandbox, sandbox_detail));
    for container in input.pod.containers() {
        steps.push(of_container(input, container, sandbox_up));
    }
    let ready = input.status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    let is_ready = ready.is_some_and(|condition| condition.status == "True");
    let detail = ready.and_then(|condition| condition.message.clone()).filter(|_| !is_ready).unwrap_or_default();
    steps.push(step("ready", if is_ready { StepState::Done } else { StepState::Ahead }, detail));
    steps.extend(resizes(input));
    steps
}

/// What is wanted of a pod's size and is not granted, or not done.
fn resizes(input: &Journey<'_>) -> impl Iterator<Item = Step> {
    let resize = &input.record.resize;
    let pending = resize.pending.as_ref().map(|pending| {
        let until = if pending.reason == "Deferred" { "there is room" } else { "something else is asked for" };
        let detail = format!("{}: {}; what runs stays as it is until {until}", pending.reason, pending.message);
        Step { since: Some(pending.since), ..step("resize", StepState::Waiting, detail) }
    });
    let progress = resize.progress.as_ref().map(|progress| {
        let (state, detail) = match &progress.error {
            Some(error) => (StepState::Waiting, format!("failed, and is tried again: {error}")),
            None => (StepState::Running, "granted; what runs is being changed".to_owned()),
        };
        Step { since: Some(progress.since), ..step("resize under way", state, detail) }
    });
    pending.into_iter().chain(progress)
}

fn step(name: &str, state: StepState, detail: String) -> Step {
    Step { name: name.to_owned(), state, since: None, detail, probe: None }
}

fn waiting_or_running(waiting: bool) -> StepState {
    if waiting { StepState::Waiting } else { StepState::Running }
}

fn with_until(message: &str, until: Option<jiff::Timestamp>) -> String {
    match until {
        Some(until) => format!("{message}; next try at {until:.0}"),
        None => message.to_owned(),
    }
}

fn of_container(input: &Journey<'_>, container: ContainerOf<'_>, sandbox_up: bool) -> Step {
    let name = container.spec.name.as_str();
    let title = match container.kind {
        ContainerKind::Init => format!("init container {name}"),
        ContainerKind::Sidecar => format!("sidecar {name}"),
        ContainerKind::App => format!("container {name}"),
        ContainerKind::Ephemeral => format!("ephemeral container {name}"),
    };
    if let Some((image, progress, took)) = input.pulls.get(name) {
        let bytes = match progress.total {
            0 => format!("{} so far", mebibytes(progress.current)),
            total => format!("{} of {}", mebibytes(progress.current), mebibytes(total)),
        };
        return step(&title, StepState::Waiting, format!("pulling image {image}: {bytes}, for {} s", took.as_secs()));
    }
    if let Some(wait) = input.plan.waits.get(name).filter(|wait| !wait.message.is_empty()) {
        let last = last_end(input, name).map(|exit| format!("; last end: {}", how(exit))).unwrap_or_default();
        let detail = format!("{}: {}{last}", wait.reason, with_until(&wait.message, wait.until));
        return step(&title, StepState::Waiting, detail);
    }
    match input.observed.container(name).map(|seen| &seen.state) {
        Some(ContainerState::Running { .. }) => running(input, container, &title),
        Some(ContainerState::Exited(exit)) if container.kind == ContainerKind::Init && exit.code == 0 => {
            step(&title, StepState::Done, String::new())
        }
        Some(ContainerState::Exited(exit)) => {
            // What is remembered has its termination message.
            let known = last_end(input, name).filter(|known| known.finished_at == exit.finished_at);
            step(&title, StepState::Waiting, format!("ended: {}", how(known.unwrap_or(exit))))
        }
        Some(ContainerState::Created) => step(&title, StepState::Running, "being started".to_owned()),
        None if sandbox_up && input.plan.waits.get(name).is_some_and(|wait| wait.reason != "PodInitializing") => {
            step(&title, StepState::Running, "being made".to_owned())
        }
        None => step(&title, StepState::Ahead, String::new()),
    }
}

fn running(input: &Journey<'_>, container: ContainerOf<'_>, title: &str) -> Step {
    let name = container.spec.name.as_str();
    if container.kind == ContainerKind::Init {
        return step(title, StepState::Running, "runs; the next one waits for its end".to_owned());
    }
    let known = input.record.containers.get(name);
    if known.is_some_and(|known| known.started && known.ready) {
        return step(title, StepState::Done, String::new());
    }
    let kind = if known.is_some_and(|known| known.started) { "readiness" } else { "startup" };
    let detail = format!("runs; waits for the first result of its {kind} probe");
    Step { probe: Some(kind.to_owned()), ..step(title, StepState::Waiting, detail) }
}

/// Has steps that wait for a probe say what it last found. Apart from the rest: probes are checked more often than the way
/// is told, and most checks change nothing of it.
pub fn add_probes(steps: &mut [Step], probes: &[ProbeView]) {
    for step in steps {
        let Some(kind) = step.probe.as_deref() else { continue };
        let container = step.name.rsplit(' ').next().unwrap_or_default();
        let probe = probes.iter().find(|probe| probe.container == container && probe.kind == kind);
        if let Some(last) = probe.and_then(|probe| probe.last.as_ref()) {
            step.detail = format!("runs; its {kind} probe said {}: {}", last.outcome, last.message.trim());
        }
    }
}

/// How a container last ended, its termination message included.
fn last_end<'a>(input: &Journey<'a>, name: &str) -> Option<&'a Exit> {
    let known = input.record.containers.get(name)?;
    known.exit.as_ref().or(known.last_exit.as_ref().map(|last| &last.exit))
}

fn how(exit: &Exit) -> String {
    let message = exit.message.trim();
    let message = if message.is_empty() { String::new() } else { format!(": {message}") };
    format!("exit code {}, {}{message}", exit.code, exit.reason)
}

/// The containers whose ends made the pod fail.
fn failures(input: &Journey<'_>) -> String {
    let names = input.pod.containers().map(|container| container.spec.name.as_str());
    let ends = names.filter_map(|name| Some((name, last_end(input, name)?)));
    let failed: Vec<String> = ends
        .filter(|(_, exit)| exit.code != 0)
        .map(|(name, exit)| format!("; container {name}: {}", how(exit)))
        .collect();
    failed.concat()
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}
