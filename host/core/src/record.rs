//! What neither the runtime's labels nor the sources can hold about a pod, kept in the pod's folder.
//!
//! Labels are fixed when a container is made, and containers can be pruned; this small record survives both,
//! and the agent's end. It is replaced as a whole, atomically. A missing record is an empty one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;
use crate::observed::{Container, Exit, ObservedPod, User};
use crate::plan::left_of;
use crate::pod::{Deletion, Pod, Source};
use crate::resize::{Allocation, Amounts, ResizeRecord};
use crate::status::of_containers;

/// The condition of a pod whose containers are all removed to begin anew.
pub const RESTARTING_ALL: &str = "AllContainersRestarting";

/// The record of one pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodRecord {
    /// When this agent first took the pod on: `status.startTime`.
    pub start_time: Option<Timestamp>,
    /// Set when the pod has ended; cleared only by [`PodRecord::begin_anew`].
    pub terminal: Option<Terminal>,
    /// The end that the pod was asked for, so that a restart of the agent continues it.
    pub deletion: Option<Deletion>,
    /// When the pod ended, or was told to without being deleted: its grace period runs from then on, also under another
    /// agent. `None` in records of before that was kept, and where the record was lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// When the pod was first seen on this node: its annotation `kubernetes.io/config.seen`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen: Option<Timestamp>,
    /// Set when the node itself ended the pod: eviction, preemption or shutdown.
    pub evicted: Option<Evicted>,
    /// Whether the dead containers of an ended pod go as well: it was evicted, or the disk is needed.
    pub emptied: bool,
    /// Whether what an ended pod had on the disk, its record and its logs aside, is gone.
    pub released: bool,
    /// What is remembered of each container, by name.
    pub containers: BTreeMap<String, ContainerRecord>,
    /// What failed lately and must wait, by what it is (the keys of [`crate::backoff`]).
    pub backoffs: BTreeMap<String, Backoff>,
    /// When each condition of the status last changed, with its value then.
    pub conditions: BTreeMap<String, ConditionRecord>,
    /// What it was given of the resources that its spec names; `None` before it was admitted.
    pub allocated: Option<Allocation>,
    /// Its resize, when there is one.
    pub resize: ResizeRecord,
    /// All containers are being removed, to begin anew in the same sandbox: condition `AllContainersRestarting`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub restarting_all: bool,
    /// [`crate::hash::names`] when its resolv.conf was written; `None` where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub names: Option<String>,
    /// [`crate::hash::text`] of its hosts file when that was written last; `None` where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts: Option<String>,
    /// The addresses that its last sandbox had: the status of a pod that has ended still tells them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
}

impl PodRecord {
    /// The pod is to end within that many seconds from now on, by the node's own doing: no more than were left of what it
    /// was given before.
    pub fn ends_within(&mut self, grace_seconds: i64, now: Timestamp) {
        if let Some(evicted) = &mut self.evicted {
            let left = left_of(evicted.grace_seconds, self.ended_at, now);
            evicted.grace_seconds = left.min(grace_seconds);
            self.ended_at = Some(now);
        }
    }

    /// Makes it that of a pod that ended, or was not let in, and is admitted anew. What is known of its containers stays:
    /// their restart policies count, and restart counts do not fall.
    pub fn begin_anew(&mut self) {
        self.terminal = None;
        self.start_time = None;
        (self.evicted, self.ended_at) = (None, None);
        (self.emptied, self.released) = (false, false);
    }

    /// Whether it is yet to be asked if the pod may run here: it is new, and nobody has asked it to end.
    pub fn awaits_admission(&self, pod: &Pod) -> bool {
        self.start_time.is_none() && self.terminal.is_none() && pod.deletion.is_none()
    }

    /// The newest container of a name in the runtime; `None` when there is none, and when a newer one is remembered
    /// that is gone (removed, pruned): then what is left of older ones says nothing.
    pub fn newest<'a>(&self, observed: &'a ObservedPod, name: &str) -> Option<&'a Container> {
        let seen = observed.container(name)?;
        let outlived = self.containers.get(name).is_some_and(|known| known.outlives(seen));
        (!outlived).then_some(seen)
    }

    /// Whether an app container was ever made in that sandbox. Then the init containers are done there, and do not
    /// run again, also when they or all app containers were removed since (`hasAnyRegularContainerCreated`).
    pub fn app_begun(&self, pod: &Pod, observed: &ObservedPod, sandbox: Option<&str>) -> bool {
        let Some(sandbox) = sandbox else { return false };
        pod.spec().containers.iter().any(|container| {
            observed.containers_named(&container.name).any(|seen| seen.sandbox_id == sandbox)
                || self.containers.get(&container.name).is_some_and(|known| known.sandbox.as_deref() == Some(sandbox))
        })
    }

    /// Moves what lies in the future to `now`: after the clock stepped back no wait lasts longer than its delay.
    pub fn forget_the_future(&mut self, now: Timestamp) {
        for at in [&mut self.start_time, &mut self.ended_at, &mut self.seen] {
            *at = at.map(|at| at.min(now));
        }
        for backoff in self.backoffs.values_mut() {
            backoff.last = backoff.last.min(now);
        }
        for known in self.containers.values_mut() {
            // Of one that begins anew with all others, the last exit is what it waits for.
            let last = known.last_exit.as_mut().filter(|_| known.id.is_none()).map(|last| &mut last.exit);
            for exit in known.exit.as_mut().into_iter().chain(last) {
                exit.finished_at = exit.finished_at.min(now);
            }
        }
    }
}

/// The end of a pod that the API server has it at already: it came from somebody who knew more, such as this node
/// before its disk was lost. Such a pod is never run again.
pub fn ended_in(status: Option<&v1::PodStatus>) -> Option<Terminal> {
    let status = status?;
    let phase = status.phase.clone().filter(|phase| phase == "Succeeded" || phase == "Failed")?;
    Some(Terminal { phase, reason: status.reason.clone(), message: status.message.clone() })
}

/// The record of a pod whose own was lost, from the status that the API server has: counts of restarts never fall, a
/// pod that was admitted stays so, and what has ended is not begun again.
pub fn seeded(status: Option<&v1::PodStatus>) -> PodRecord {
    let mut record = PodRecord { terminal: ended_in(status), ..PodRecord::default() };
    let Some(status) = status else { return record };
    record.start_time = status.start_time.as_ref().map(|time| time.0);
    record.allocated = Allocation::told(status);
    record.ips = status.pod_ips.iter().flatten().filter_map(|known| known.ip.parse().ok()).collect();
    for condition in status.conditions.iter().flatten() {
        let Some(since) = condition.last_transition_time.as_ref() else { continue };
        let known = ConditionRecord { status: condition.status.clone(), since: since.0 };
        record.conditions.insert(condition.type_.clone(), known);
        record.restarting_all |= condition.type_ == RESTARTING_ALL && condition.status == "True";
    }
    for seen in of_containers(status) {
        let id = seen.container_id.as_deref().and_then(|id| id.split_once("://")).map(|(_, id)| id.to_owned());
        let last = seen.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let ended = seen.state.as_ref().and_then(|state| state.terminated.as_ref());
        let running = seen.state.as_ref().and_then(|state| state.running.as_ref());
        let known = ContainerRecord {
            restarts: u32::try_from(seen.restart_count).unwrap_or(0),
            id: id.filter(|id| !id.is_empty()),
            image: seen.image.clone(),
            image_id: seen.image_id.clone(),
            started_at: running.and_then(|running| running.started_at.as_ref()).map(|time| time.0),
            started: seen.started.unwrap_or(false),
            ready: seen.ready,
            exit: ended.map(exit_of),
            last_exit: last.map(|last| EndedContainer {
                id: last
                    .container_id
                    .as_deref()
                    .and_then(|id| id.split_once("://"))
                    .map_or_else(String::new, |(_, id)| id.to_owned()),
                exit: exit_of(last),
            }),
            ..ContainerRecord::default()
        };
        record.containers.insert(seen.name.clone(), known);
    }
    record
}

/// How a container ended, as its status has it.
pub(crate) fn exit_of(ended: &v1::ContainerStateTerminated) -> Exit {
    Exit {
        code: ended.exit_code,
        reason: ended.reason.clone().unwrap_or_default(),
        message: ended.message.clone().unwrap_or_default(),
        started_at: ended.started_at.as_ref().map(|time| time.0),
        finished_at: ended.finished_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
    }
}

/// How a pod ended for good.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Terminal {
    /// `Succeeded` or `Failed`.
    pub phase: String,
    /// `status.reason`, e.g. `Evicted`, `DeadlineExceeded` or an admission reason.
    pub reason: Option<String>,
    /// `status.message`.
    pub message: Option<String>,
}

/// How a pod was evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evicted {
    /// Seconds that its containers get to end, in place of the pod's own if those are more.
    pub grace_seconds: i64,
    /// Whether it was the node's need and not the pod's doing, which `DisruptionTarget` says.
    pub disruption: bool,
}

/// What is remembered of one container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerRecord {
    /// `restartCount`: never falls, whatever becomes of the containers.
    pub restarts: u32,
    /// Restarts that count for the crash-loop delay: forgotten after a long run.
    pub delayed_restarts: u32,
    /// When the newest container was started.
    pub started_at: Option<Timestamp>,
    /// The newest container's ID, once it was started.
    pub id: Option<String>,
    /// ID of the sandbox that it was made in.
    pub sandbox: Option<String>,
    /// Its image as its spec named it, for when it is gone; empty where that is not known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// The same as the kubelet reports it.
    pub image_id: String,
    /// IDs of the images that it mounts as volumes, in the order of the volumes' names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volume_images: Vec<String>,
    /// It is stopped only to be started again (changed, unhealthy, with all others): its exit code does not matter.
    pub restarting: bool,
    /// Whether its startup probe (if any) has succeeded.
    pub started: bool,
    /// Whether its readiness probe (if any) says ready.
    pub ready: bool,
    /// How the newest container ended, if it did, termination message included.
    pub exit: Option<Exit>,
    /// How the one before ended: `lastState`.
    pub last_exit: Option<EndedContainer>,
    /// CPU and memory that the newest container was last made or changed to have; `None` where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actuated: Option<Amounts>,
    /// Who the newest container's first process ran as when it was first seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// Why a container of the name could not be started; see [`ContainerRecord::failed_start`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_start: Option<FailedStart>,
}

impl ContainerRecord {
    /// Why the newest container counts as one that could not be started, if it does.
    pub fn failed_start(&self) -> Option<&FailedStart> {
        self.failed_start.as_ref().filter(|failed| self.id.as_deref() == Some(failed.id.as_str()))
    }

    /// The ID of the newest container where it counts as not started since its postStart hook failed.
    pub fn failed_hook(&self) -> Option<&str> {
        self.failed_start().filter(|failed| failed.reason == POST_START_ERROR).map(|failed| failed.id.as_str())
    }

    /// Whether `seen` is a leftover from before the container that is remembered, which itself is gone.
    pub fn outlives(&self, seen: &Container) -> bool {
        let other = self.id.as_deref().is_some_and(|id| id != seen.id);
        other && seen.exit().is_some() && seen.attempt < self.restarts
    }

    /// How the newest container ended. One that was started, is gone and left no exit behind ended unknown;
    /// `None` when none was ever started.
    pub fn exit_or_unknown(&self, now: Timestamp) -> Option<Exit> {
        self.id.as_ref()?;
        Some(self.exit.clone().unwrap_or_else(|| Exit::unknown(now)))
    }

    /// How the one ended that the next one will follow: the newest, or, when all containers begin anew, the last one.
    pub fn followed(&self, now: Timestamp) -> Option<Exit> {
        let anew = || self.last_exit.as_ref().filter(|_| self.restarting).map(|ended| ended.exit.clone());
        self.exit_or_unknown(now).or_else(anew)
    }
}

/// What a container is shown with whose postStart hook failed (`ErrPostStartHook`).
pub const POST_START_ERROR: &str = "PostStartHookError";

/// A container that was not started to the end: the runtime refused, or its postStart hook failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedStart {
    /// Its ID in the runtime.
    pub id: String,
    /// The reason that it is shown with: `RunContainerError` or [`POST_START_ERROR`].
    pub reason: String,
    /// What went wrong.
    pub message: String,
}

/// A container that ended, as `lastState` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndedContainer {
    /// Its ID in the runtime.
    pub id: String,
    /// How it ended.
    pub exit: Exit,
}

/// A condition's value and when it took it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionRecord {
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// When it last changed.
    pub since: Timestamp,
}

/// All that is stored of a pod: enough to end it gracefully when its manifest is gone, and to go on after a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredPod {
    /// Where the pod came from.
    pub source: Source,
    /// The object that was run last, defaults applied.
    pub object: v1::Pod,
    /// The hashes of its containers, by name.
    pub hashes: BTreeMap<String, String>,
    /// Hash of all that needs a new sandbox.
    pub sandbox_hash: String,
    /// What is remembered of it.
    pub record: PodRecord,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_record_begins_with_what_the_api_server_knows() {
        let object: v1::Pod = serde_json::from_value(serde_json::json!({"status": {
            "phase": "Failed", "reason": "Evicted", "startTime": "2026-01-01T00:00:00Z",
            "podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}],
            "containerStatuses": [{"name": "a", "image": "i",
                "imageID": "docker://sha256:1", "ready": false, "restartCount": 4,
                "containerID": "docker://x", "state": {"terminated": {"exitCode": 3, "reason": "Error",
                "finishedAt": "2026-01-01T00:01:00Z"}}}]}}))
        .expect("a pod");
        let record = seeded(object.status.as_ref());
        assert_eq!(record.terminal.as_ref().and_then(|end| end.reason.as_deref()), Some("Evicted"));
        assert_eq!(record.ips, ["10.0.0.2".parse::<IpAddr>().expect("an address")]);
        let known = &record.containers["a"];
        assert_eq!((known.restarts, known.id.as_deref(), known.image_id.as_str()), (4, Some("x"), "docker://sha256:1"));
        assert_eq!(known.exit.as_ref().map(|exit| exit.code), Some(3));
        assert_eq!(seeded(None), PodRecord::default());
    }
}
