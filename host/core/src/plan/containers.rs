//! What each container of a pod needs next: nothing, a start, a stop, or patience.

use jiff::Timestamp;

use super::standing::{Ended, Standing, begun_in, standing};
use super::{Cause, Plan, Situation, keeps_pod_going, planned, resize};
use crate::action::{Action, Planned, Track};
use crate::backoff::{self, Backoff, Policy};
use crate::observed::{Container, ContainerState, Exit};
use crate::pod::{ContainerKind, ContainerOf};
use crate::record::FailedStart;
use crate::resize::Gap;
use crate::{restart, volume};

/// Why something that was made is not used.
const MADE_FOR_OTHER: &str = "it was made for another sandbox or configuration";

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
    let mut planner = Planner { situation, sandbox, plan, needs: Needs::default() };
    planner.all();
    planner.needs
}

/// Collects what the containers of one pod need, one after the other.
struct Planner<'a> {
    situation: &'a Situation<'a>,
    sandbox: Option<&'a str>,
    /// Notes of what is waited for, and of what is stopped to be started again.
    plan: &'a mut Plan,
    needs: Needs,
}

impl Planner<'_> {
    fn all(&mut self) {
        let Planner { situation, sandbox, .. } = *self;
        let pod = situation.pod;
        // Speaks of one sandbox: a new one begins with the init containers.
        let initialized = situation.record.app_begun(pod, situation.observed, sandbox);

        self.stop_surplus();
        if !apps_go_on(situation, sandbox) || (sandbox.is_none() && gives_up(situation)) {
            self.needs.finished = true;
            return;
        }

        if sandbox.is_some_and(|id| runs(situation, id)) {
            for container in pod.ephemeral_containers() {
                self.ephemeral(container);
            }
        }
        let inits: Vec<ContainerOf<'_>> = pod.containers().filter(|of| of.kind != ContainerKind::App).collect();
        // Each is begun after those before it, whose containers may have been removed since.
        let front = inits.iter().rposition(|of| begun_in(situation, sandbox, &of.spec.name)).unwrap_or(0);
        for (index, container) in inits.into_iter().enumerate() {
            let passed = initialized || index < front;
            match self.init(container, passed) {
                Progress::Holds if !initialized && (index >= front || container.kind == ContainerKind::Init) => {
                    self.hold_apps();
                    return;
                }
                Progress::Passed | Progress::Holds => {}
                Progress::Failed => {
                    self.needs.finished = true;
                    return;
                }
            }
        }
        let mut held = false;
        for container in pod.containers().filter(|container| container.kind == ContainerKind::App) {
            self.app(container, &mut held);
        }
    }

    /// An ephemeral container is started once, whatever the init containers do, and never again, also not in another sandbox.
    fn ephemeral(&mut self, container: ContainerOf<'_>) {
        let situation = self.situation;
        let name = container.spec.name.as_str();
        match situation.record.newest(situation.observed, name).map(|seen| (seen, &seen.state)) {
            Some((seen, ContainerState::Created)) => {
                self.start(container, seen.attempt, true, "it was made and not started");
            }
            Some(_) => {}
            None if situation.record.containers.get(name).is_some_and(|known| known.id.is_some()) => {}
            None => self.start(container, 0, false, "it was added to the pod"),
        }
    }

    /// App containers wait for the init containers; what has no place any more is stopped meanwhile.
    fn hold_apps(&mut self) {
        let Planner { situation, sandbox, .. } = *self;
        for container in situation.pod.containers().filter(|container| container.kind == ContainerKind::App) {
            self.plan.wait(&container.spec.name, "PodInitializing", String::new(), None);
            if let Standing::Stale(seen) = standing(situation, sandbox, container) {
                self.stop_or_remove_stale(seen);
            }
        }
    }

    /// Stops what runs and has no place: older ones of a name, and containers that the spec does not name any more.
    fn stop_surplus(&mut self) {
        let Situation { pod, observed, .. } = *self.situation;
        for seen in observed.containers.iter().filter(|seen| seen.is_running()) {
            let newest = observed.container(&seen.name).is_some_and(|newest| newest.id == seen.id);
            let why = match pod.container(&seen.name) {
                None => format!("Container {} is no longer in the pod", seen.name),
                Some(_) if !newest => format!("Container {} has a newer one beside it", seen.name),
                Some(_) => continue,
            };
            self.stop(seen, pod.grace_seconds(), why);
        }
    }

    /// One init container or sidecar. `passed`: the pod went on past it in this sandbox already.
    fn init(&mut self, container: ContainerOf<'_>, passed: bool) -> Progress {
        let Planner { situation, sandbox, .. } = *self;
        let name = container.spec.name.as_str();
        let sidecar = container.kind == ContainerKind::Sidecar;
        let standing = standing(situation, sandbox, container);
        if passed && !sidecar {
            let runs = matches!(standing, Standing::Running(_));
            return if runs { Progress::Holds } else { Progress::Passed };
        }
        match standing {
            Standing::Running(seen) if sidecar => {
                if self.stop_if_unhealthy(container, seen) {
                    return Progress::Holds;
                }
                let known = situation.record.containers.get(name);
                let started = known.is_some_and(|known| known.id.as_deref() == Some(seen.id.as_str()) && known.started);
                let hooked = situation.busy.post_start.contains(&seen.id);
                if !started || hooked || self.stop_to_resize(container, seen) {
                    return Progress::Holds;
                }
                Progress::Passed
            }
            Standing::Running(_) => {
                resize::must_restart(situation, container, &mut self.needs);
                Progress::Holds
            }
            Standing::Stale(seen) => {
                self.stop_or_remove_stale(seen);
                if !seen.is_running() {
                    self.start(container, seen.attempt, false, MADE_FOR_OTHER);
                }
                Progress::Holds
            }
            Standing::Made(seen) => {
                self.start(container, seen.attempt, true, "it was made and not started");
                Progress::Holds
            }
            Standing::New => {
                self.start(container, 0, false, "it has not run yet");
                Progress::Holds
            }
            Standing::Anew(exit) => {
                self.restart_after(container, &Ended::anew(exit));
                Progress::Holds
            }
            Standing::Ended(ended) if ended.exit.is_failure() && !ended.again => Progress::Failed,
            // One that did its work does it again at once in another sandbox; what failed, or should not have ended, has its back-off.
            Standing::Ended(ended) if !ended.in_this_sandbox && !sidecar && !ended.exit.is_failure() => {
                let attempt = next_attempt(situation, name);
                self.start(container, attempt, false, "it has not run in this sandbox");
                Progress::Holds
            }
            Standing::Ended(ended) if !ended.again => Progress::Passed,
            Standing::Ended(ended) => {
                self.restart_after(container, &ended);
                Progress::Holds
            }
        }
    }

    fn app(&mut self, container: ContainerOf<'_>, held: &mut bool) {
        let Planner { situation, sandbox, .. } = *self;
        let name = container.spec.name.as_str();
        match standing(situation, sandbox, container) {
            Standing::Running(seen) => {
                // The next one is started after the hook of this one (`startContainer` waits for it), however that ended.
                *held |= situation.busy.post_start.contains(&seen.id) && !situation.unhealthy.contains_key(&seen.id);
                if !self.stop_if_unhealthy(container, seen) {
                    self.stop_to_resize(container, seen);
                }
            }
            Standing::Stale(seen) => {
                self.stop_or_remove_stale(seen);
                if !seen.is_running() && !*held {
                    self.start(container, seen.attempt, false, MADE_FOR_OTHER);
                }
            }
            Standing::Ended(ended) if ended.again => {
                if !*held {
                    self.restart_after(container, &ended);
                }
            }
            Standing::Ended(_) => {}
            Standing::Made(_) | Standing::New | Standing::Anew(_) if *held => {
                let message = "waits for the postStart hook of the one before".to_owned();
                self.plan.wait(name, waiting_reason(situation), message, None);
            }
            Standing::Made(seen) => {
                self.start(container, seen.attempt, true, "it was made and not started");
            }
            Standing::New => self.start(container, 0, false, "it has not run yet"),
            Standing::Anew(exit) => self.restart_after(container, &Ended::anew(exit)),
        }
    }

    fn restart_after(&mut self, container: ContainerOf<'_>, ended: &Ended) {
        let situation = self.situation;
        let Situation { pod, record, now, crash_loop, .. } = *situation;
        let exit = &ended.exit;
        let name = container.spec.name.as_str();
        let known = record.containers.get(name).cloned().unwrap_or_default();
        let at = restart::restart_at(&known, exit, crash_loop, now);
        // The delay is one definition's ([`restart::is_another`]).
        if at > now && !ended.changed {
            if let Some((failed, shown)) = failed_start(situation, name) {
                self.plan.wait(name, &failed.reason, failed.message.clone(), Some(at));
                self.plan.wake_at(shown);
                return;
            }
            let delay = crash_loop.delay(restart::counted_restarts(&known, exit));
            let message = format!(
                "back-off {} restarting failed container={name} pod={}",
                short_duration(delay.as_secs()),
                pod.id.in_messages()
            );
            self.plan.wait(name, "CrashLoopBackOff", message, Some(at));
            return;
        }
        let why = if known.restarting {
            "it was stopped to be started again".to_owned()
        } else {
            format!("it ended with exit code {} and its restart policy says to run it again", exit.code)
        };
        self.start(container, next_attempt(situation, name), false, &why);
    }

    fn start(&mut self, container: ContainerOf<'_>, attempt: u32, made: bool, why: &str) {
        let situation = self.situation;
        let name = container.spec.name.as_str();
        let now = situation.now;
        let image = container.spec.image.as_deref().unwrap_or_default();
        let waiting = |key: String, policy: Policy| -> Option<(&Backoff, Timestamp)> {
            let backoff = situation.record.backoffs.get(&key)?;
            let until = backoff.until(policy, now);
            (until > now).then_some((backoff, until))
        };
        if !made && let Some(image) = situation.busy.pulling.get(name) {
            self.plan.wait(name, waiting_reason(situation), format!("pulling image {image:?}"), None);
            return;
        }
        let mounted = volume::mounted_images(situation.pod, container.spec);
        for image in mounted.iter().map(|mounted| mounted.reference).chain([image]).filter(|_| !made) {
            if let Some((backoff, until)) = waiting(backoff::image(image), Policy::IMAGE_PULL) {
                wait_for_pull(name, image, backoff, until, now, self.plan);
                return;
            }
        }
        if let Some((backoff, until)) = waiting(backoff::create(name), Policy::SYNC) {
            self.plan.wait(name, &backoff.reason, backoff.message.clone(), Some(until));
            return;
        }
        let failed = failed_start(situation, name);
        let (reason, message) = failed
            .map_or((waiting_reason(situation), ""), |(failed, _)| (failed.reason.as_str(), failed.message.as_str()));
        self.plan.wait(name, reason, message.to_owned(), None);
        self.needs.starts.push(Start { container: name.to_owned(), attempt, made, why: why.to_owned() });
    }

    fn stop_if_unhealthy(&mut self, container: ContainerOf<'_>, seen: &Container) -> bool {
        let situation = self.situation;
        let Some(unhealthy) = situation.unhealthy.get(&seen.id) else { return false };
        let grace = unhealthy.grace_seconds.unwrap_or_else(|| situation.pod.grace_seconds());
        let again = match unhealthy.cause {
            // It failed, whatever its exit code will be.
            Cause::PostStart => restart::should_restart(situation.pod, container, &Exit::unknown(situation.now)),
            Cause::Probe(_) => restart::restarts_by_probe(situation.pod, container),
        };
        if again {
            self.plan.restarting.insert(seen.name.clone());
        }
        let why = match unhealthy.cause {
            Cause::PostStart => "FailedPostStartHook".to_owned(),
            Cause::Probe(kind) => said(seen, &format!("failed {} probe", kind.title().to_lowercase()), again),
        };
        self.stop(seen, grace, why);
        true
    }

    /// Stops a container that takes its new size only by a restart. One that takes it as it runs is noted for that.
    fn stop_to_resize(&mut self, container: ContainerOf<'_>, seen: &Container) -> bool {
        let situation = self.situation;
        let must = resize::must_restart(situation, container, &mut self.needs);
        if must {
            self.plan.restarting.insert(seen.name.clone());
            let why = format!("Container {} resize requires restart", seen.name);
            self.stop(seen, situation.pod.grace_seconds(), why);
        }
        must
    }

    fn stop_or_remove_stale(&mut self, seen: &Container) {
        if seen.is_running() {
            let why = said(seen, "definition changed", true);
            self.plan.restarting.insert(seen.name.clone());
            self.stop(seen, self.situation.pod.grace_seconds(), why);
        } else {
            let action = Action::RemoveContainer { id: seen.id.clone(), container: seen.name.clone() };
            self.needs.stops.push(planned(action, MADE_FOR_OTHER));
        }
    }

    /// Stops one container alone, whose event says why.
    fn stop(&mut self, seen: &Container, grace: i64, why: String) {
        let told = Some(why.clone());
        if let Some(action) = super::ending::stop_action(self.situation, seen, grace, Vec::new(), told, self.plan) {
            self.needs.stops.push(planned(action, why));
        }
    }
}

/// Why a container is stopped alone; of an app container also whether it starts again, as with the kubelet.
fn said(seen: &Container, what: &str, again: bool) -> String {
    let again = if again { ", will be restarted" } else { "" };
    match seen.kind {
        ContainerKind::Init | ContainerKind::Sidecar => format!("Init container {} {what}", seen.name),
        ContainerKind::App | ContainerKind::Ephemeral => format!("Container {} {what}{again}", seen.name),
    }
}

fn runs(situation: &Situation<'_>, sandbox: &str) -> bool {
    situation.observed.sandboxes.iter().any(|seen| seen.is_running() && seen.id == sandbox)
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

/// Go's notation of a duration in seconds: `10s`, `1m20s`, `5m0s`.
pub(super) fn short_duration(seconds: i64) -> String {
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

/// Why the newest container of a name could not be started, and how long that is shown: until it is started again or, where that
/// must wait, for a while, before its back-off is (the kubelet has the one until it tries the other).
fn failed_start<'a>(situation: &Situation<'a>, name: &str) -> Option<(&'a FailedStart, Timestamp)> {
    let Situation { record, now, crash_loop, .. } = *situation;
    let known = record.containers.get(name)?;
    let (failed, exit) = (known.failed_start()?, known.exit.as_ref()?);
    let until = exit.finished_at.min(now).checked_add(crash_loop.initial / 2).unwrap_or(Timestamp::MAX);
    (now < until).then_some((failed, until))
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
