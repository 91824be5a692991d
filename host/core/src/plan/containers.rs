//! What each container of a pod needs next: nothing, a start, a stop, or patience.

use jiff::Timestamp;

use super::standing::{Ended, Standing, begun_in, standing};
use super::{Cause, Plan, Situation, keeps_pod_going, planned, resize};
use crate::action::{Action, Planned, Track};
use crate::backoff::{Backoff, Policy};
use crate::observed::{Container, ContainerState, Exit};
use crate::pod::{ContainerKind, ContainerOf};
use crate::resize::Gap;
use crate::{restart, volume};

/// Why something that was made is not used.
const MADE_FOR_OTHER: &str = "it was made for another sandbox or configuration";
/// Exit code of a container that was killed: 128 + SIGKILL.
const KILLED: i32 = 137;

/// What the containers need.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// To be stopped.
    pub(super) stops: Vec<Planned>,
    /// To be started, in this order.
    pub(super) starts: Vec<Start>,
    /// To be resized as they run.
    pub(super) updates: Vec<Gap>,
    /// Nothing runs that counts, and nothing will.
    pub(super) finished: bool,
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

/// What all containers need. `sandbox` is the ID of the sandbox that they belong in, if there is a usable one.
pub(super) fn next(situation: &Situation<'_>, sandbox: Option<&str>, plan: &mut Plan) -> Needs {
    let mut needs = Needs::default();
    let pod = situation.pod;
    // Speaks of one sandbox: a new one begins with the init containers.
    let initialized = situation.record.app_begun(pod, situation.observed, sandbox);

    stop_surplus(situation, &mut needs, plan);
    if !apps_go_on(situation, sandbox) || (sandbox.is_none() && gives_up(situation)) {
        needs.finished = true;
        return needs;
    }

    if sandbox.is_some_and(|id| runs(situation, id)) {
        for container in pod.ephemeral_containers() {
            ephemeral(situation, container, &mut needs, plan);
        }
    }
    let inits: Vec<ContainerOf<'_>> = pod.containers().filter(|of| of.kind != ContainerKind::App).collect();
    // Each is begun after those before it, whose containers may have been removed since.
    let front = inits.iter().rposition(|of| begun_in(situation, sandbox, &of.spec.name)).unwrap_or(0);
    for (index, container) in inits.into_iter().enumerate() {
        let passed = initialized || index < front;
        match init(situation, sandbox, container, passed, &mut needs, plan) {
            Progress::Holds if !initialized && (index >= front || container.kind == ContainerKind::Init) => {
                hold_apps(situation, sandbox, &mut needs, plan);
                return needs;
            }
            Progress::Passed | Progress::Holds => {}
            Progress::Failed => {
                needs.finished = true;
                return needs;
            }
        }
    }
    let mut held = false;
    for container in pod.containers().filter(|container| container.kind == ContainerKind::App) {
        app(situation, sandbox, container, &mut held, &mut needs, plan);
    }
    needs
}

fn runs(situation: &Situation<'_>, sandbox: &str) -> bool {
    situation.observed.sandboxes.iter().any(|seen| seen.is_running() && seen.id == sandbox)
}

/// An ephemeral container is started once, whatever the init containers do, and never again, also not in another sandbox.
fn ephemeral(situation: &Situation<'_>, container: ContainerOf<'_>, needs: &mut Needs, plan: &mut Plan) {
    let name = container.spec.name.as_str();
    match situation.record.newest(situation.observed, name).map(|seen| (seen, &seen.state)) {
        Some((seen, ContainerState::Created)) => {
            start(situation, container, seen.attempt, true, "it was made and not started", needs, plan);
        }
        Some(_) => {}
        None if situation.record.containers.get(name).is_some_and(|known| known.id.is_some()) => {}
        None => start(situation, container, 0, false, "it was added to the pod", needs, plan),
    }
}

/// App containers wait for the init containers; what has no place any more is stopped meanwhile.
fn hold_apps(situation: &Situation<'_>, sandbox: Option<&str>, needs: &mut Needs, plan: &mut Plan) {
    for container in situation.pod.containers().filter(|container| container.kind == ContainerKind::App) {
        plan.wait(&container.spec.name, "PodInitializing", String::new(), None);
        if let Standing::Stale(seen) = standing(situation, sandbox, container) {
            stop_or_remove_stale(situation, seen, needs, plan);
        }
    }
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
            Standing::Ended(ended) => ended.again,
            Standing::New | Standing::Made(_) | Standing::Running(_) | Standing::Stale(_) | Standing::Anew(_) => true,
        }
    })
}

/// A pod that never restarts is not begun anew once an app container was started, unless one of them runs again
/// all the same.
fn gives_up(situation: &Situation<'_>) -> bool {
    let pod = situation.pod;
    if pod.restart_policy() != "Never" {
        return false;
    }
    let apps = || pod.containers().filter(|container| keeps_pod_going(container.kind));
    let again = apps().any(|container| match standing(situation, None, container) {
        Standing::Ended(ended) => ended.again,
        _ => false,
    });
    !again
        && apps().any(|container| {
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

/// One init container or sidecar. `passed`: the pod went on past it in this sandbox already.
fn init(
    situation: &Situation<'_>,
    sandbox: Option<&str>,
    container: ContainerOf<'_>,
    passed: bool,
    needs: &mut Needs,
    plan: &mut Plan,
) -> Progress {
    let name = container.spec.name.as_str();
    let sidecar = container.kind == ContainerKind::Sidecar;
    let standing = standing(situation, sandbox, container);
    if passed && !sidecar {
        let runs = matches!(standing, Standing::Running(_));
        return if runs { Progress::Holds } else { Progress::Passed };
    }
    match standing {
        Standing::Running(seen) if sidecar => {
            if stop_if_unhealthy(situation, container, seen, needs, plan) {
                return Progress::Holds;
            }
            let known = situation.record.containers.get(name);
            let started = known.is_some_and(|known| known.id.as_deref() == Some(seen.id.as_str()) && known.started);
            let hooked = situation.busy.post_start.contains(&seen.id);
            if !started || hooked || stop_to_resize(situation, container, seen, needs, plan) {
                return Progress::Holds;
            }
            Progress::Passed
        }
        Standing::Running(_) => {
            resize::must_restart(situation, container, needs);
            Progress::Holds
        }
        Standing::Stale(seen) => {
            stop_or_remove_stale(situation, seen, needs, plan);
            if !seen.is_running() {
                start(situation, container, seen.attempt, false, MADE_FOR_OTHER, needs, plan);
            }
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
        Standing::Anew(exit) => {
            restart_after(situation, container, &Ended::anew(exit), needs, plan);
            Progress::Holds
        }
        Standing::Ended(ended) if ended.exit.code != 0 && !ended.again => Progress::Failed,
        // One that did its work does it again at once in another sandbox; what failed, or should not have ended, has its back-off.
        Standing::Ended(ended) if !ended.in_this_sandbox && !sidecar && ended.exit.code == 0 => {
            let attempt = next_attempt(situation, name);
            start(situation, container, attempt, false, "it has not run in this sandbox", needs, plan);
            Progress::Holds
        }
        Standing::Ended(ended) if !ended.again => Progress::Passed,
        Standing::Ended(ended) => {
            restart_after(situation, container, &ended, needs, plan);
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
            if !stop_if_unhealthy(situation, container, seen, needs, plan) {
                stop_to_resize(situation, container, seen, needs, plan);
            }
        }
        Standing::Stale(seen) => {
            stop_or_remove_stale(situation, seen, needs, plan);
            if !seen.is_running() && !*held {
                start(situation, container, seen.attempt, false, MADE_FOR_OTHER, needs, plan);
            }
        }
        Standing::Ended(ended) if ended.again => {
            if !*held {
                restart_after(situation, container, &ended, needs, plan);
            }
        }
        Standing::Ended(_) => {}
        Standing::Made(_) | Standing::New | Standing::Anew(_) if *held => {
            plan.wait(name, "ContainerCreating", "waits for the postStart hook of the one before".to_owned(), None);
        }
        Standing::Made(seen) => {
            start(situation, container, seen.attempt, true, "it was made and not started", needs, plan);
        }
        Standing::New => start(situation, container, 0, false, "it has not run yet", needs, plan),
        Standing::Anew(exit) => restart_after(situation, container, &Ended::anew(exit), needs, plan),
    }
}

/// One more than what the pod had of the name. One that vanished, or begins anew with all others, is counted already
/// ([`crate::status::remember`]).
fn next_attempt(situation: &Situation<'_>, name: &str) -> u32 {
    let seen = situation.observed.container(name).map(|seen| seen.attempt.saturating_add(1));
    let known = situation.record.containers.get(name).map(|known| {
        let counted = known.id.is_none() || known.exit.as_ref().is_some_and(Exit::is_unknown);
        if counted { known.restarts } else { known.restarts.saturating_add(1) }
    });
    seen.max(known).unwrap_or(0)
}

fn restart_after(
    situation: &Situation<'_>,
    container: ContainerOf<'_>,
    ended: &Ended,
    needs: &mut Needs,
    plan: &mut Plan,
) {
    let Situation { pod, record, now, crash_loop, .. } = *situation;
    let exit = &ended.exit;
    let name = container.spec.name.as_str();
    let known = record.containers.get(name).cloned().unwrap_or_default();
    let at = restart::restart_at(&known, exit, crash_loop, now);
    // The delay is one definition's ([`restart::is_another`]).
    if at > now && !ended.changed {
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
    let why = if known.restarting {
        "it was stopped to be started again".to_owned()
    } else {
        format!("it ended with exit code {} and its restart policy says to run it again", exit.code)
    };
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
    let waiting = |key: String, policy: Policy| -> Option<(&Backoff, Timestamp)> {
        let backoff = situation.record.backoffs.get(&key)?;
        let until = backoff.until(policy, now);
        (until > now).then_some((backoff, until))
    };
    if !made && let Some(image) = situation.busy.pulling.get(name) {
        plan.wait(name, waiting_reason(situation), format!("pulling image {image:?}"), None);
        return;
    }
    let mounted = volume::mounted_images(situation.pod, container.spec);
    for image in mounted.iter().map(|mounted| mounted.reference).chain([image]).filter(|_| !made) {
        if let Some((backoff, until)) = waiting(format!("image/{image}"), Policy::IMAGE_PULL) {
            wait_for_pull(name, image, backoff, until, now, plan);
            return;
        }
    }
    if let Some((backoff, until)) = waiting(format!("create/{name}"), Policy::SYNC) {
        plan.wait(name, &backoff.reason, backoff.message.clone(), Some(until));
        return;
    }
    plan.wait(name, waiting_reason(situation), String::new(), None);
    needs.starts.push(Start { container: name.to_owned(), attempt, made, why: why.to_owned() });
}

/// First what went wrong, then, for the rest of the delay, that it is waited (`pkg/kubelet/images/image_manager.go`):
/// readers see both.
fn wait_for_pull(name: &str, image: &str, backoff: &Backoff, until: Timestamp, now: Timestamp, plan: &mut Plan) {
    let shown = backoff.last.min(now).checked_add(Policy::IMAGE_PULL.initial / 2).unwrap_or(Timestamp::MAX);
    if now < shown {
        plan.wait(name, &backoff.reason, backoff.message.clone(), Some(until));
        plan.wake_at(shown);
        return;
    }
    let message = format!("Back-off pulling image {image:?}{CAUSE}{}: {}", backoff.reason, backoff.message);
    plan.wait(name, "ImagePullBackOff", message, Some(until));
}

/// What stands before the cause of a back-off. No image that was tried to be pulled has it in its name.
const CAUSE: &str = ": ";

/// What an event says of a back-off of pulls: its message without the cause, which had an event of its own.
pub fn without_cause(message: &str) -> &str {
    message.split_once(CAUSE).map_or(message, |(what, _)| what)
}

/// `ContainerCreating`, or `PodInitializing` in a pod with init containers.
fn waiting_reason(situation: &Situation<'_>) -> &'static str {
    let has_init = situation.pod.spec().init_containers.as_ref().is_some_and(|init| !init.is_empty());
    if has_init { "PodInitializing" } else { "ContainerCreating" }
}

fn stop_if_unhealthy(
    situation: &Situation<'_>,
    container: ContainerOf<'_>,
    seen: &Container,
    needs: &mut Needs,
    plan: &mut Plan,
) -> bool {
    let Some(unhealthy) = situation.unhealthy.get(&seen.id) else { return false };
    let grace = unhealthy.grace_seconds.unwrap_or_else(|| situation.pod.grace_seconds());
    let mut why = match unhealthy.cause {
        Cause::PostStart => format!("Container {} failed its postStart hook", seen.name),
        Cause::Probe(kind) => format!("Container {} failed {} probe", seen.name, kind.title().to_lowercase()),
    };
    // It failed, whatever its exit code will be.
    if restart::should_restart(situation.pod, container, KILLED) {
        why.push_str(", will be restarted");
        plan.restarting.insert(seen.name.clone());
    }
    stop(situation, seen, grace, why, needs, plan);
    true
}

/// Stops a container that takes its new size only by a restart. One that takes it as it runs is noted for that.
fn stop_to_resize(
    situation: &Situation<'_>,
    container: ContainerOf<'_>,
    seen: &Container,
    needs: &mut Needs,
    plan: &mut Plan,
) -> bool {
    let must = resize::must_restart(situation, container, needs);
    if must {
        plan.restarting.insert(seen.name.clone());
        let why = format!("Container {} resize requires restart", seen.name);
        stop(situation, seen, situation.pod.grace_seconds(), why, needs, plan);
    }
    must
}

fn stop_or_remove_stale(situation: &Situation<'_>, seen: &Container, needs: &mut Needs, plan: &mut Plan) {
    if seen.is_running() {
        let why = format!("Container {} definition changed, will be restarted", seen.name);
        plan.restarting.insert(seen.name.clone());
        stop(situation, seen, situation.pod.grace_seconds(), why, needs, plan);
    } else {
        let action = Action::RemoveContainer { id: seen.id.clone(), container: seen.name.clone() };
        needs.stops.push(planned(action, MADE_FOR_OTHER));
    }
}

fn stop(situation: &Situation<'_>, seen: &Container, grace: i64, why: String, needs: &mut Needs, plan: &mut Plan) {
    if let Some(action) = super::ending::stop_action(situation, seen, grace, Vec::new(), plan) {
        needs.stops.push(planned(action, why));
    }
}
