//! Everything that the agent can do to a machine on behalf of a pod.
//!
//! A plan is made of these; `longshore-reconcile`'s apply has one arm for each.

use std::fmt;

use crate::cgroup::PodCgroup;
use crate::container::Resources;
use crate::resize::Amounts;

/// One thing to do for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the pod's folder, cgroup and volumes, or bring them up to date.
    Prepare,
    /// Make a sandbox.
    CreateSandbox {
        /// How many the pod had before.
        attempt: u32,
    },
    /// Start the newest sandbox, attach it to the pods' network and learn its addresses.
    StartSandbox {
        /// How many the pod had before.
        attempt: u32,
    },
    /// See that a container's image is there, and those of the image volumes that it mounts, as their pull policies say. A
    /// pull goes on in the background.
    EnsureImage {
        /// Name of the container.
        container: String,
    },
    /// Make a container in the newest sandbox.
    CreateContainer {
        /// Name of the container.
        container: String,
        /// How many of the name the pod had before.
        attempt: u32,
    },
    /// Start the newest container of that name. Its postStart hook goes on in the background.
    StartContainer {
        /// Name of the container.
        container: String,
    },
    /// Run the preStop hook, wait for its turn, then stop a container. Goes on in the background.
    StopContainer {
        /// Its ID.
        id: String,
        /// Name of the container.
        container: String,
        /// Seconds for all of that together, before it is killed.
        grace_seconds: i64,
        /// IDs of the containers that end first; their time is the same, and when it is over nothing is waited for.
        after: Vec<String>,
        /// What its event says, where that is more than that it is stopped.
        told: Option<String>,
    },
    /// Take a sandbox off the pods' network and stop it.
    StopSandbox {
        /// Its ID.
        id: String,
    },
    /// Remove a container that does not run.
    RemoveContainer {
        /// Its ID.
        id: String,
        /// Name of the container.
        container: String,
    },
    /// Remove a sandbox that does not run.
    RemoveSandbox {
        /// Its ID.
        id: String,
    },
    /// See that the memory that is in use fits new, smaller limits, before anything is set.
    CheckMemory {
        /// The pod's limit in bytes, where it shrinks.
        pod: Option<i64>,
        /// Containers whose limit shrinks, by name, and it.
        containers: Vec<(String, i64)>,
    },
    /// Set the limits of the pod's cgroup.
    SetPodLimits {
        /// The cgroup with its limits.
        cgroup: PodCgroup,
    },
    /// Change CPU and memory of a container that runs.
    UpdateContainer {
        /// Its ID.
        id: String,
        /// Name of the container.
        container: String,
        /// What it is given.
        to: Amounts,
        /// The same in the runtime's terms.
        resources: Resources,
    },
    /// Take the volumes and the cgroup of a pod that ended away; its record and its logs stay.
    ReleaseFiles,
    /// Take the pod's volumes, cgroup, folder and record away: it is gone.
    Release,
}

impl Action {
    /// The container that it is about, if it is about one.
    pub fn container(&self) -> Option<&str> {
        match self {
            Action::EnsureImage { container }
            | Action::CreateContainer { container, .. }
            | Action::StartContainer { container }
            | Action::StopContainer { container, .. }
            | Action::UpdateContainer { container, .. }
            | Action::RemoveContainer { container, .. } => Some(container),
            Action::Prepare
            | Action::CreateSandbox { .. }
            | Action::StartSandbox { .. }
            | Action::StopSandbox { .. }
            | Action::RemoveSandbox { .. }
            | Action::CheckMemory { .. }
            | Action::SetPodLimits { .. }
            | Action::ReleaseFiles
            | Action::Release => None,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |id: &str| id.get(..12).unwrap_or(id).to_owned();
        match self {
            Action::Prepare => write!(f, "prepare folder, cgroup and volumes"),
            Action::CreateSandbox { attempt } => write!(f, "create sandbox {attempt}"),
            Action::StartSandbox { attempt } => write!(f, "start sandbox {attempt}"),
            Action::EnsureImage { container } => write!(f, "ensure the image of {container}"),
            Action::CreateContainer { container, attempt } => {
                write!(f, "create container {container}, attempt {attempt}")
            }
            Action::StartContainer { container } => write!(f, "start container {container}"),
            Action::StopContainer { id, container, grace_seconds, after, .. } => {
                let turn = if after.is_empty() { "" } else { ", in its turn" };
                write!(f, "stop container {container} {} within {grace_seconds} s{turn}", short(id))
            }
            Action::StopSandbox { id } => write!(f, "stop sandbox {}", short(id)),
            Action::RemoveContainer { id, container } => write!(f, "remove container {container} {}", short(id)),
            Action::RemoveSandbox { id } => write!(f, "remove sandbox {}", short(id)),
            Action::CheckMemory { .. } => write!(f, "see that memory in use fits the new limits"),
            Action::SetPodLimits { .. } => write!(f, "set the pod's limits"),
            Action::UpdateContainer { id, container, .. } => write!(f, "resize container {container} {}", short(id)),
            Action::ReleaseFiles => write!(f, "remove volumes and cgroup"),
            Action::Release => write!(f, "remove volumes, cgroup, folder and record"),
        }
    }
}

/// An action and why it is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What to do.
    pub action: Action,
    /// Why, for log, events and `longshore plan`.
    pub why: String,
}

/// Actions one after the other; when one fails or must wait, the rest of the track is left for the next plan.
pub type Track = Vec<Planned>;

/// Tracks side by side.
pub type Stage = Vec<Track>;
