//! What each container of a pod needs next: nothing, a start, a stop, or patience.

use jiff::Timestamp;

use super::{Plan, Situation, keeps_pod_going, planned};
use crate::action::{Action, Planned, Track};
use crate::backoff::Policy;
use crate::observed::{Container, ContainerState, Exit};
use crate::pod::{ContainerKind, ContainerOf};
use crate::restart;

/// What the containers need.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// To be stopped.
    pub(super) stops: Vec<Planned>,
    /// To be started, in this order.
    pub(super) starts: Vec<Start>,
    /// Nothing runs that counts, and nothing will.
    pub(super) finished: bool,
    /// The init containers are done.
    pub(super) initialized: bool,
}

/// A container to be started.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) container: String,
    attempt: u32,
    /// It was made already and only needs the start.
    made: bool,
    why: String,
}

impl Start {
    /// The actions that come before the start.
    pub(super) fn creation(&self) -> Track {
        if self.made {
            return Track::new();
        }
        let container = self.container.clone();
        vec![
            planned(Action::EnsureImage { container: container.clone() }, self.why.clone()),
            planned(Action::CreateContainer { container, attempt: self.attempt }, self.why.clone()),
        ]
    }

    /// The start itself.
    pub(super) fn start(&self) -> Planned {
        planned(Action::StartContainer { container: self.container.clone() }, self.why.clone())
    }

    /// All of it.
    pub(super) fn track(&self) -> Track {
        let mut track = self.creation();
        track.push(self.start());
        track
    }
}

/// Where a container stands.
enum Standing<'a> {
    /// Never made in this pod.
    New,
    /// Made for this sandbox, not started.
    Made(&'a Container),
    /// Runs in this sandbox.
    Running(&'a Container),
    /// Runs, or was made, for another sandbox or with another hash.
    Stale(&'a Container),
    /// Ended.
    Ended { exit: Exit, in_this_sandbox: bool },
}

fn standing<'a>(situation: &Situation<'a>, sandbox: Option<&str>, container: ContainerOf<'_>) -> Standing<'a> {
    let Situation { pod, observed, record, now, .. } = *situation;
    let name = container.spec.name.as_str();
    let fits = |seen: &Container| {
        Some(seen.sandbox_id.as_str()) == sandbox && pod.hashes.get(name).is_none_or(|hash| *hash == seen.hash)
    };
    match observed.container(name) {
        Some(seen) => match &seen.state {
            ContainerState::Exited(exit) => {
                Standing::Ended { exit: exit.clone(), in_this_sandbox: Some(seen.sandbox_id.as_str()) == sandbox }
            }
            ContainerState::Running { .. } if fits(seen) => Standing::Running(seen),
            ContainerState::Created if fits(seen) => Standing::Made(seen),
            _ => Standing::Stale(seen),
        },
        None => match record.containers.get(name).and_then(|known| known.exit_or_unknown(now)) {
            Some(exit) => Standing::Ended { exit, in_this_sandbox: sandbox.is_some() },
            None => Standing::New,
        },
    }
}

/// What all containers need. `sandbox` is the ID of the sandbox that they belong in, if there is a usable one.
pub(super) fn next(situation: &Situation<'_>, sandbox: Option<&str>, plan: &mut Plan) -> Needs {
    let mut needs = Needs::default();
    let pod = situation.pod;
    // "Initialized" speaks of one sandbox: a new one begins with the init containers.
    let app_made = pod
        .containers()
        .filter(|container| container.kind == ContainerKind::App)
        .filter_map(|container| situation.observed.container(&container.spec.name))
        .any(|seen| Some(seen.sandbox_id.as_str()) == sandbox);
    needs.initialized = sandbox.is_some() && (app_made || situation.record.initialized);

    stop_surplus(situation, &mut needs, plan);
    if !apps_go_on(situation, sandbox) {
        needs.finished = true;
        return needs;
    }
    // A new sandbox is made only for a pod that may run again, or that never ran.
    if sandbox.is_none() && pod.restart_policy() == "Never" && has_run(situation) {
        needs.finished = true;
        return needs;
    }

    let mut ready_for_apps = true;
    for container in pod.containers().filter(|container| container.kind != ContainerKind::App) {
        match init(situation, sandbox, container, needs.initialized, &mut needs, plan) {
            Progress::Passed => {}
            Progress::Holds => {
                ready_for_apps = needs.initialized;
                if !needs.initialized {
                    break;
                }
            }
            Progress::Failed => {
                needs.finished = true;
                return needs;
            }
        }
    }
    if !ready_for_apps {
        for container in pod.containers().filter(|container| container.kind == ContainerKind::App) {
            plan.wait(&container.spec.name, "PodInitializing", String::new(), None);
            stop_what_is_stale(situation, sandbox, container, &mut needs, plan);
        }
        return needs;
    }
    needs.initialized =
        needs.initialized || sandbox.is_some() || pod.spec().init_containers.iter().flatten().next().is_none();

    let mut held = false;
    for container in pod.containers().filter(|container| container.kind == ContainerKind::App) {
        app(situation, sandbox, container, &mut held, &mut needs, plan);
    }
    needs
}

/// Stops what runs and has no place: older ones of a name, and containers that the spec does not name any more.
fn stop_surplus(situation: &Situation<'_>, needs: &mut Needs, plan: &mut Plan) {
    let Situation { pod, observed, .. } = *situation;
    for seen in observed.containers.iter().filter(|seen| seen.is_running()) {
        let newest = observed.container(&seen.name).is_some_and(|newest| newest.id == seen.id);
        let why = match pod.container(&seen.name) {
            None => format!("Container {} is no longer in the pod", seen.name),
            Some(_) if !newest => format!("Container {} has a newer one beside it", seen.name),
            Some(_) => continue,
        };
        stop(situation, seen, pod.grace_seconds(), why, needs, plan);
    }
}

/// Whether any app container runs, or will run.
fn apps_go_on(situation: &Situation<'_>, sandbox: Option<&str>) -> bool {
    let pod = situation.pod;
    pod.containers().filter(|container| keeps_pod_going(container.kind)).any(|container| {
        match standing(situation, sandbox, container) {
            Standing::Ended { exit, .. } => restart::should_restart(pod, container, exit.code),
            Standing::New | Standing::Made(_) | Standing::Running(_) | Standing::Stale(_) => true,
        }
    })
}

/// Whether an app container was ever started: then a pod that never restarts is not begun anew.
fn has_run(situation: &Situation<'_>) -> bool {
    situation.pod.containers().filter(|container| keeps_pod_going(container.kind)).any(|container| {
        let name = container.spec.name.as_str();
        let seen = situation.observed.containers_named(name).any(|seen| seen.state != ContainerState::Created);
        seen || situation.record.containers.get(name).is_some_and(|known| known.id.is_some())
    })
}

enum Progress {
    /// The next one may go on.
    Passed,
    /// The next one must wait for this one.
    Holds,
    /// It failed, and with it the pod.
    Failed,
}

fn init(
    situation: &Situation<'_>,
    sandbox: Option<&str>,
    container: ContainerOf<'_>,
    initialized: bool,
    needs: &mut Needs,
    plan: &mut Plan,
) -> Progress {
    let name = container.spec.name.as_str();
    let sidecar = container.kind == ContainerKind::Sidecar;
    if initialized && !sidecar {
        return Progress::Passed;
    }
    match standing(situation, sandbox, container) {
        Standing::Running(seen) if sidecar => {
            if stop_if_unhealthy(situation, seen, needs, plan) {
                return Progress::Holds;
            }
            let started = situation
                .record
                .containers
                .get(name)
                .is_some_and(|known| known.id.as_deref() == Some(seen.id.as_str()) && known.started);
            let hooked = situation.busy.post_start.contains(&seen.id);
            if started && !hooked { Progress::Passed } else { Progress::Holds }
        }
        Standing::Running(_) => Progress::Holds,
        Standing::Stale(seen) => {
            stop_or_remove_stale(situation, seen, needs, plan);
            if seen.is_running() {
                return Progress::Holds;
            }
            start(
                situation,
                container,
                seen.attempt,
                false,
                "it was made for another sandbox or configuration",
                needs,
                plan,
            );
            Progress::Holds
        }
        Standing::Made(seen) => {
            start(situation, container, seen.attempt, true, "it was made and not started", needs, plan);
            Progress::Holds
        }
        Standing::New => {
            start(situation, container, 0, false, "it has not run yet", needs, plan);
            Progress::Holds
        }
        Standing::Ended { exit, .. }
            if exit.code != 0 && !restart::should_restart(situation.pod, container, exit.code) =>
        {
            Progress::Failed
        }
        Standing::Ended { exit, in_this_sandbox } => {
            if !in_this_sandbox {
                start(
                    situation,
                    container,
                    next_attempt(situation, name),
                    false,
                    "it has not run in this sandbox",
                    needs,
                    plan,
                );
                return Progress::Holds;
            }
            if !sidecar && exit.code == 0 {
                return Progress::Passed;
            }
            restart_after(situation, container, &exit, needs, plan);
            Progress::Holds
        }
    }
}

fn app(
    situation: &Situation<'_>,
    sandbox: Option<&str>,
    container: ContainerOf<'_>,
    held: &mut bool,
    needs: &mut Needs,
    plan: &mut Plan,
) {
    let name = container.spec.name.as_str();
    match standing(situation, sandbox, container) {
        Standing::Running(seen) => {
            // The next one is started after the hook of this one (`startContainer` waits for it).
            *held |= situation.busy.post_start.contains(&seen.id);
            stop_if_unhealthy(situation, seen, needs, plan);
        }
        Standing::Stale(seen) => {
            stop_or_remove_stale(situation, seen, needs, plan);
            if !seen.is_running() && !*held {
                start(
                    situation,
                    container,
                    seen.attempt,
                    false,
                    "it was made for another sandbox or configuration",
                    needs,
                    plan,
                );
            }
        }
        Standing::Ended { exit, .. } if restart::should_restart(situation.pod, container, exit.code) => {
            if !*held {
                restart_after(situation, container, &exit, needs, plan);
            }
        }
        Standing::Ended { .. } => {}
        Standing::Made(_) | Standing::New if *held => {
            plan.wait(name, "ContainerCreating", "waits for the postStart hook of the one before".to_owned(), None);
        }
        Standing::Made(seen) => {
            start(situation, container, seen.attempt, true, "it was made and not started", needs, plan)
        }
        Standing::New => start(situation, container, 0, false, "it has not run yet", needs, plan),
    }
}

fn next_attempt(situation: &Situation<'_>, name: &str) -> u32 {
    let seen = situation.observed.container(name).map(|seen| seen.attempt);
    let known = situation.record.containers.get(name).filter(|known| known.id.is_some()).map(|known| known.restarts);
    seen.max(known).map_or(0, |attempt| attempt.saturating_add(1))
}

fn restart_after(
    situation: &Situation<'_>,
    container: ContainerOf<'_>,
    exit: &Exit,
    needs: &mut Needs,
    plan: &mut Plan,
) {
    let Situation { pod, record, now, crash_loop, .. } = *situation;
    let name = container.spec.name.as_str();
    let known = record.containers.get(name).cloned().unwrap_or_default();
    let at = restart::restart_at(&known, exit, crash_loop, now);
    if at > now {
        let delay = crash_loop.delay(restart::counted_restarts(&known, exit));
        let message = format!(
            "back-off {} restarting failed container={name} pod={}_{}({})",
            short_duration(delay.as_secs()),
            pod.id.name,
            pod.id.namespace,
            pod.id.uid
        );
        plan.wait(name, "CrashLoopBackOff", message, Some(at));
        return;
    }
    let why = format!("it ended with exit code {} and its restart policy says to run it again", exit.code);
    start(situation, container, next_attempt(situation, name), false, &why, needs, plan);
}

/// Go's notation of a duration in seconds: `10s`, `1m20s`, `5m0s`.
pub(super) fn short_duration(seconds: i64) -> String {
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

fn start(
    situation: &Situation<'_>,
    container: ContainerOf<'_>,
    attempt: u32,
    made: bool,
    why: &str,
    needs: &mut Needs,
    plan: &mut Plan,
) {
    let name = container.spec.name.as_str();
    let now = situation.now;
    let image = container.spec.image.as_deref().unwrap_or_default();
    let waiting = |key: String, policy: Policy| -> Option<(String, String, Timestamp)> {
        let backoff = situation.record.backoffs.get(&key)?;
        let until = backoff.until(policy, now);
        (until > now).then(|| (backoff.reason.clone(), backoff.message.clone(), until))
    };
    if !made && situation.busy.pulling.contains(name) {
        plan.wait(name, waiting_reason(situation), format!("pulling image {image:?}"), None);
        return;
    }
    let held = (!made).then(|| waiting(format!("image/{image}"), Policy::IMAGE_PULL)).flatten();
    let held = held.or_else(|| waiting(format!("create/{name}"), Policy::SYNC));
    if let Some((reason, message, until)) = held {
        plan.wait(name, &reason, message, Some(until));
        return;
    }
    plan.wait(name, waiting_reason(situation), String::new(), None);
    needs.starts.push(Start { container: name.to_owned(), attempt, made, why: why.to_owned() });
}

/// `ContainerCreating`, or `PodInitializing` in a pod with init containers.
fn waiting_reason(situation: &Situation<'_>) -> &'static str {
    let has_init = situation.pod.spec().init_containers.as_ref().is_some_and(|init| !init.is_empty());
    if has_init { "PodInitializing" } else { "ContainerCreating" }
}

fn stop_if_unhealthy(situation: &Situation<'_>, seen: &Container, needs: &mut Needs, plan: &mut Plan) -> bool {
    let Some(unhealthy) = situation.unhealthy.get(&seen.id) else { return false };
    let grace = unhealthy.grace_seconds.unwrap_or_else(|| situation.pod.grace_seconds());
    let why = format!("Container {} failed {} probe, will be restarted", seen.name, unhealthy.probe.to_lowercase());
    stop(situation, seen, grace, why, needs, plan);
    true
}

fn stop_or_remove_stale(situation: &Situation<'_>, seen: &Container, needs: &mut Needs, plan: &mut Plan) {
    if seen.is_running() {
        let why = format!("Container {} definition changed, will be restarted", seen.name);
        stop(situation, seen, situation.pod.grace_seconds(), why, needs, plan);
    } else {
        let action = Action::RemoveContainer { id: seen.id.clone(), container: seen.name.clone() };
        needs.stops.push(planned(action, "it was made for another sandbox or configuration"));
    }
}

fn stop_what_is_stale(
    situation: &Situation<'_>,
    sandbox: Option<&str>,
    container: ContainerOf<'_>,
    needs: &mut Needs,
    plan: &mut Plan,
) {
    if let Standing::Stale(seen) = standing(situation, sandbox, container) {
        stop_or_remove_stale(situation, seen, needs, plan);
    }
}

fn stop(situation: &Situation<'_>, seen: &Container, grace: i64, why: String, needs: &mut Needs, plan: &mut Plan) {
    if let Some(action) = super::ending::stop_action(situation, seen, grace, plan) {
        needs.stops.push(planned(action, why));
    }
}
