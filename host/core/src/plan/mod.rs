//! What to do next for one pod: `plan(situation) -> Plan`.
//!
//! Owns every decision about a pod's sandbox and containers; it does nothing itself, reads no clock and keeps
//! no state. After what it plans has been applied, planning again gives nothing.
//!
//! As `computePodActions` of `pkg/kubelet/kuberuntime/kuberuntime_manager.go`, without its side effects.

mod containers;
mod ending;
mod resize;
pub(crate) mod restart_all;
mod standing;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::containers::without_cause;
pub(crate) use self::ending::left_of;
use crate::action::{Action, Planned, Stage};
use crate::backoff::{self, Policy};
use crate::cgroup::PodCgroup;
use crate::node::NodeFacts;
use crate::observed::{ContainerState, ObservedPod, Sandbox, SandboxState};
use crate::pod::{ContainerKind, Pod};
use crate::probe::ProbeKind;
use crate::record::PodRecord;

/// All that a plan is made from.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// The pod as it should be.
    pub pod: &'a Pod,
    /// What there is of it.
    pub observed: &'a ObservedPod,
    /// What is remembered of it.
    pub record: &'a PodRecord,
    /// Containers to be stopped because a probe or their postStart hook failed, by ID.
    pub unhealthy: &'a BTreeMap<String, Unhealthy>,
    /// What is going on in the background.
    pub busy: &'a Busy,
    /// Why no container may be started, if so.
    pub blocked: Option<&'a str>,
    /// Delays of restarts after crashes.
    pub crash_loop: Policy,
    /// The node.
    pub node: &'a NodeFacts,
    /// The pod's cgroup as it was last set; `None` when this agent did not set it yet.
    pub cgroup: Option<&'a PodCgroup>,
    /// The time.
    pub now: Timestamp,
}

/// Why a container that runs must be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// That probe of it failed.
    Probe(ProbeKind),
    /// Its postStart hook failed.
    PostStart,
}

/// A container that must be stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unhealthy {
    /// Why.
    pub cause: Cause,
    /// Grace period of the probe in seconds, in place of the pod's.
    pub grace_seconds: Option<i64>,
}

/// Work that goes on in the background for a pod; memory only, what a crash loses is planned again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Busy {
    /// Containers being stopped, by ID, with the time when they are killed.
    pub stopping: BTreeMap<String, Timestamp>,
    /// Containers whose postStart hook runs, or failed, by ID, until they have ended.
    pub post_start: BTreeSet<String>,
    /// Containers for which an image is being fetched, by name, and the image: their own, or a volume's.
    pub pulling: BTreeMap<String, String>,
}

/// What to do, and what is waited for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What to do, stage after stage.
    pub stages: Vec<Stage>,
    /// Why a container does not run, by its name; `""` for the pod.
    pub waits: BTreeMap<String, Wait>,
    /// Whether all containers ended and none will run again.
    pub finished: bool,
    /// Containers that are stopped only to be started again, by name.
    pub restarting: BTreeSet<String>,
    /// Whether nothing is left to do of a resize: what runs is as it was given.
    pub resized: bool,
    /// When to plan again at the latest.
    pub wake: Option<Timestamp>,
}

/// Why a container waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The reason shown in its status: `CrashLoopBackOff`, `ImagePullBackOff`, `PodInitializing` …
    pub reason: String,
    /// For people.
    pub message: String,
    /// Until when, where that is known.
    pub until: Option<Timestamp>,
}

impl Plan {
    /// Every action, in order.
    pub fn actions(&self) -> impl Iterator<Item = &Planned> {
        self.stages.iter().flatten().flatten()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.stages.iter().flatten().all(Vec::is_empty)
    }

    fn stage(&mut self, tracks: Stage) {
        let tracks: Stage = tracks.into_iter().filter(|track| !track.is_empty()).collect();
        if !tracks.is_empty() {
            self.stages.push(tracks);
        }
    }

    fn wait(&mut self, container: &str, reason: &str, message: String, until: Option<Timestamp>) {
        if let Some(until) = until {
            self.wake_at(until);
        }
        let wait = Wait { reason: reason.to_owned(), message, until };
        self.waits.insert(container.to_owned(), wait);
    }

    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

fn planned(action: Action, why: impl Into<String>) -> Planned {
    Planned { action, why: why.into() }
}

/// What to do next for a pod.
pub fn plan(situation: &Situation<'_>) -> Plan {
    let Situation { pod, observed, record, now, .. } = *situation;
    if pod.deletion.is_some() {
        return ending::delete(situation);
    }
    if record.terminal.is_some() {
        return ending::finish(situation, "the pod has ended");
    }
    if let Some(reason) = situation.blocked {
        let mut plan = Plan::default();
        plan.wait("", "ContainerCreating", reason.to_owned(), None);
        return plan;
    }

    if let Some(plan) = restart_all::clear(situation) {
        return plan;
    }

    let sandbox = observed.sandbox();
    let changed = sandbox.is_some_and(|sandbox| !sandbox.fits(pod));
    let usable = sandbox.filter(|sandbox| !changed && sandbox.state != SandboxState::Exited);
    let in_sandbox = usable.map(|sandbox| sandbox.id.as_str());
    let mut plan = Plan::default();

    // With no sandbox up, whatever still runs belongs to a broken pod: stop it all and begin again.
    let up = usable.is_some_and(Sandbox::is_running);
    if !up && observed.is_running() {
        let why = match sandbox {
            None => "the sandbox is gone",
            Some(_) if changed => "the pod's sandbox has changed",
            Some(_) => "the sandbox does not run",
        };
        return ending::stop_all(situation, why, changed);
    }

    let containers = containers::next(situation, in_sandbox, &mut plan);
    plan.finished = containers.finished;
    if containers.finished {
        return ending::finish(situation, "all containers have ended");
    }

    // Whatever must wait as a whole (volumes, sandbox) holds up starts, never stops.
    let stops: Stage = containers.stops.into_iter().map(|stop| vec![stop]).collect();
    plan.stage(stops);
    let held = record.backoffs.get(backoff::POD).filter(|backoff| backoff.is_waiting(Policy::SYNC, now));
    if let Some(backoff) = held {
        plan.wait("", &backoff.reason, backoff.message.clone(), Some(backoff.until(Policy::SYNC, now)));
    } else {
        starts(situation, containers.starts, &mut plan);
    }
    collect(situation, &mut plan);
    resize::stage(situation, containers.updates, &mut plan);
    plan
}

/// The stages that bring up a sandbox, if need be, and then one container after the other.
fn starts(situation: &Situation<'_>, starts: Vec<containers::Start>, plan: &mut Plan) {
    let Situation { pod, observed, .. } = *situation;
    let sandbox = observed.sandbox().filter(|sandbox| sandbox.fits(pod));
    let attempt = match sandbox {
        Some(sandbox) if sandbox.is_up() => None,
        // One that runs and was not attached to its network to the end is started again, too.
        Some(sandbox) if sandbox.state != SandboxState::Exited => Some(sandbox.attempt),
        _ => Some(observed.sandbox().map_or(0, |sandbox| sandbox.attempt + 1)),
    };
    if starts.is_empty() && attempt.is_none() {
        return;
    }
    plan.stage(vec![vec![planned(Action::Prepare, "containers are about to start")]]);
    let mut starts = starts.into_iter();
    if let Some(attempt) = attempt {
        let why = match sandbox.filter(|sandbox| sandbox.state != SandboxState::Exited) {
            Some(sandbox) if sandbox.is_running() => "the sandbox is not attached to the pods' network",
            Some(_) => "the sandbox was made and has not been started",
            None => {
                let why = if attempt == 0 { "the pod has no sandbox" } else { "the pod needs a new sandbox" };
                plan.stage(vec![vec![planned(Action::CreateSandbox { attempt }, why)]]);
                why
            }
        };
        let start_sandbox = vec![planned(Action::StartSandbox { attempt }, why)];
        // The runtime makes a container while its sandbox starts; one that must know the pod's address cannot be.
        match starts.next() {
            Some(first) if !needs_pod_ip(pod, &first.container) => {
                plan.stage(vec![start_sandbox, first.creation()]);
                plan.stage(vec![vec![first.start()]]);
            }
            Some(first) => {
                plan.stage(vec![start_sandbox]);
                plan.stage(vec![first.track()]);
            }
            None => plan.stage(vec![start_sandbox]),
        }
    }
    for start in starts {
        plan.stage(vec![start.track()]);
    }
}

/// Whether a container's environment or arguments name the pod's address.
fn needs_pod_ip(pod: &Pod, container: &str) -> bool {
    let Some(container) = pod.container(container) else { return false };
    let fields = container.spec.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref());
    fields
        .filter_map(|from| from.field_ref.as_ref())
        .any(|field| field.field_path == "status.podIP" || field.field_path == "status.podIPs")
}

/// Dead things that are no longer needed: one dead container per name and the newest sandbox are kept.
fn collect(situation: &Situation<'_>, plan: &mut Plan) {
    let observed = situation.observed;
    let newest_sandbox = observed.sandbox().map(|sandbox| sandbox.id.as_str());
    let mut tracks = Stage::new();
    let mut kept: BTreeSet<&str> = BTreeSet::new();
    for container in &observed.containers {
        let dead = match container.state {
            ContainerState::Running { .. } => false,
            ContainerState::Exited(_) => true,
            // What was made and is not wanted in this sandbox any more; what is wanted is started, not removed.
            ContainerState::Created => {
                let current = Some(container.sandbox_id.as_str()) == newest_sandbox
                    && observed.container(&container.name).is_some_and(|newest| newest.id == container.id);
                !current || plan.finished
            }
        };
        let needless = match container.state {
            ContainerState::Exited(_) => !kept.insert(&container.name),
            _ => dead,
        };
        if needless {
            let action = Action::RemoveContainer { id: container.id.clone(), container: container.name.clone() };
            tracks.push(vec![planned(action, "a newer one of the name is kept")]);
        }
    }
    for sandbox in observed.sandboxes.iter().skip(1).filter(|sandbox| !sandbox.is_running()) {
        let used =
            observed.containers.iter().any(|container| container.sandbox_id == sandbox.id && container.is_running());
        if !used {
            tracks.push(vec![planned(Action::RemoveSandbox { id: sandbox.id.clone() }, "a newer sandbox is there")]);
        }
    }
    for sandbox in observed.sandboxes.iter().skip(1).filter(|sandbox| sandbox.is_running()) {
        tracks.push(vec![planned(Action::StopSandbox { id: sandbox.id.clone() }, "a newer sandbox is there")]);
    }
    plan.stage(tracks);
}

/// Whether a container of the spec plays the part of one that keeps the pod going.
fn keeps_pod_going(kind: ContainerKind) -> bool {
    kind == ContainerKind::App
}
