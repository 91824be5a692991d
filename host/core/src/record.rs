//! What neither the runtime's labels nor the sources can hold about a pod, kept in the pod's folder.
//!
//! Labels are fixed when a container is made, and containers can be pruned; this small record survives both,
//! and the agent's end. It is replaced as a whole, atomically. A missing record is an empty one.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;
use crate::observed::{Container, Exit, ObservedPod};
use crate::pod::{Deletion, Pod, Source};

/// The record of one pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodRecord {
    /// When this agent first took the pod on: `status.startTime`.
    pub start_time: Option<Timestamp>,
    /// Set once the pod ended for good; never changed afterwards.
    pub terminal: Option<Terminal>,
    /// The end that the pod was asked for, so that a restart of the agent continues it.
    pub deletion: Option<Deletion>,
    /// What is remembered of each container, by name.
    pub containers: BTreeMap<String, ContainerRecord>,
    /// What failed lately and must wait, by what it is (`pod`, `image/<image>`, `create/<container>`).
    pub backoffs: BTreeMap<String, Backoff>,
    /// When each condition of the status last changed, with its value then.
    pub conditions: BTreeMap<String, ConditionRecord>,
}

impl PodRecord {
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
        self.start_time = self.start_time.map(|at| at.min(now));
        for backoff in self.backoffs.values_mut() {
            backoff.last = backoff.last.min(now);
        }
        for exit in self.containers.values_mut().filter_map(|known| known.exit.as_mut()) {
            exit.finished_at = exit.finished_at.min(now);
        }
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
    /// It is stopped only to be started again (changed, unhealthy): its exit code does not matter.
    pub restarting: bool,
    /// Whether its startup probe (if any) has succeeded.
    pub started: bool,
    /// Whether its readiness probe (if any) says ready.
    pub ready: bool,
    /// How the newest container ended, if it did, termination message included.
    pub exit: Option<Exit>,
    /// How the one before ended: `lastState`.
    pub last_exit: Option<EndedContainer>,
}

impl ContainerRecord {
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
