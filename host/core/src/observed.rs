//! What the container runtime says about our pods.
//!
//! Plain values that an adapter fills in from labels and inspects. Decisions read them; nothing here decides.

use std::collections::HashMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cgroup::{self, Qos};
use crate::container::{Resources, SandboxNetwork};
use crate::hash;
use crate::pod::{ContainerKind, Pod, PodId, Source};

/// All that exists of one pod, dead things included.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObservedPod {
    /// Sandboxes, newest first (by attempt, then by creation).
    pub sandboxes: Vec<Sandbox>,
    /// Containers, newest first (by attempt, then by creation).
    pub containers: Vec<Container>,
    /// Whether there is more, which the runtime could not be made to show: nothing may be concluded from what is missing.
    pub unseen: bool,
}

/// A pause container.
#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    /// ID in the runtime.
    pub id: String,
    /// The pod that it belongs to.
    pub pod: PodId,
    /// How many sandboxes the pod had before this one.
    pub attempt: u32,
    /// [`crate::pod::Pod::sandbox_hash`] when it was made; empty where it was made by other rules.
    pub hash: String,
    /// The pod's quality of service when it was made, and so where its cgroup is; `None` where that is not known.
    pub qos: Option<Qos>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Whether it runs; a sandbox that was made and not started does not.
    pub state: SandboxState,
    /// The network that it was made for.
    pub network: SandboxNetwork,
    /// Addresses of the pod, the primary one first; empty on the node's network, before the start, and before it was
    /// attached to the pods' network.
    pub ips: Vec<IpAddr>,
    /// Process ID on the node while it runs.
    pub pid: Option<u32>,
}

impl Sandbox {
    /// Whether it is as the pod wants it by now. Containers that come and go may change the class of a pod; what the API
    /// server has cannot.
    pub fn fits(&self, pod: &Pod) -> bool {
        let moves = pod.source != Source::Api && self.qos.is_some_and(|qos| qos != cgroup::qos(pod.spec()));
        hash::fits(&self.hash, &pod.sandbox_hash) && !moves
    }

    /// Whether it runs and is on its network, so that containers can be started in it.
    pub fn is_up(&self) -> bool {
        self.is_running() && (self.network != SandboxNetwork::Detached || !self.ips.is_empty())
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.state == SandboxState::Running
    }
}

/// Whether a sandbox runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxState {
    /// Made, never started.
    Created,
    /// Runs.
    Running,
    /// Ended, by itself or by us.
    Exited,
}

/// A container that is not a pause container.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// ID in the runtime.
    pub id: String,
    /// The pod that it belongs to.
    pub pod: PodId,
    /// Its name in the pod's spec.
    pub name: String,
    /// The part that it plays.
    pub kind: ContainerKind,
    /// How many containers of this name the pod had before this one.
    pub attempt: u32,
    /// [`crate::pod::Pod::hashes`] when it was made; empty where it was made by other rules.
    pub hash: String,
    /// ID of the sandbox that it was made in.
    pub sandbox_id: String,
    /// The image's name as the pod gave it.
    pub image: String,
    /// The image as kubelet reports it: `docker-pullable://repo@sha256:…` or `docker://sha256:…`.
    pub image_id: String,
    /// IDs of the images that it mounts as volumes, in the order of the volumes' names.
    pub volume_images: Vec<String>,
    /// Indices of its `volumeMounts` that were made read-only with all that is mounted below.
    pub recursive_read_only: Option<Vec<usize>>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Where in its life it is.
    pub state: ContainerState,
    /// The runtime's own log file of it, when it has one.
    pub runtime_log: Option<String>,
    /// File on the node that the container writes its termination message to, when it was given one.
    pub termination_message_file: Option<String>,
    /// Grace period in seconds of the pod when the container was made; used when the pod's spec is lost.
    pub grace_seconds: Option<i64>,
    /// CPU and memory as the runtime has them now; `None` where it does not say.
    pub resources: Option<Resources>,
    /// Who its first process runs as; `None` where that cannot be told, and of one that does not run.
    pub user: Option<User>,
}

/// Who a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User ID.
    pub uid: i64,
    /// Group ID.
    pub gid: i64,
    /// Supplemental groups.
    pub groups: Vec<i64>,
}

/// Where in its life a container is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, never started.
    Created,
    /// Runs.
    Running {
        /// When it was started.
        started_at: Timestamp,
        /// Process ID on the node.
        pid: u32,
    },
    /// Ended.
    Exited(Exit),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + signal for a signal.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `ContainerCannotRun`, `StartError` or `ContainerStatusUnknown`.
    pub reason: String,
    /// What the runtime said, empty most of the time; the termination message is read apart.
    pub message: String,
    /// When it was started, if it ever was.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

impl Exit {
    /// The reason of a container in which the kernel killed for want of memory.
    pub const OUT_OF_MEMORY: &str = "OOMKilled";

    /// How a container ended that ran and cannot be found any more (`convertToAPIContainerStatuses`, whose words these are,
    /// whether the pod was deleted or not).
    pub fn unknown(now: Timestamp) -> Exit {
        Exit {
            code: 137,
            reason: "ContainerStatusUnknown".to_owned(),
            message: "The container could not be located when the pod was deleted.  The container used to be Running"
                .to_owned(),
            started_at: None,
            finished_at: now,
        }
    }

    /// Whether it is not known how it ended.
    pub fn is_unknown(&self) -> bool {
        self.reason == "ContainerStatusUnknown"
    }

    /// Whether an init container that ended like this did not do its work (`isInitContainerFailed`).
    pub fn is_failure(&self) -> bool {
        self.code != 0 || self.is_out_of_memory()
    }

    /// Whether the kernel killed in it for want of memory.
    pub fn is_out_of_memory(&self) -> bool {
        self.reason == Exit::OUT_OF_MEMORY
    }
}

impl ObservedPod {
    /// The newest sandbox.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first()
    }

    /// The newest container of that name.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// All containers of that name, newest first.
    pub fn containers_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers.iter().filter(move |container| container.name == name)
    }

    /// Whether anything of the pod runs, its sandbox included.
    pub fn is_running(&self) -> bool {
        self.sandboxes.iter().any(Sandbox::is_running) || self.containers.iter().any(Container::is_running)
    }

    /// Puts things in the order that the other methods rely on.
    pub fn sort(&mut self) {
        self.sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.attempt, sandbox.created_at)));
        self.containers.sort_by_key(|container| std::cmp::Reverse((container.attempt, container.created_at)));
    }

    /// Takes in a fresh look at one sandbox or container, in place of what was known of it.
    pub fn update(&mut self, seen: Observation) {
        match seen {
            Observation::Sandbox(sandbox) => {
                self.sandboxes.retain(|known| known.id != sandbox.id);
                self.sandboxes.push(sandbox);
            }
            Observation::Container(container) => {
                self.containers.retain(|known| known.id != container.id);
                self.containers.push(container);
            }
            Observation::Unseen { .. } => self.unseen = true,
        }
        self.sort();
    }

    /// Forgets what has that ID.
    pub fn forget(&mut self, id: &str) {
        self.sandboxes.retain(|sandbox| sandbox.id != id);
        self.containers.retain(|container| container.id != id);
    }
}

impl Container {
    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. })
    }

    /// How it ended, if it did.
    pub fn exit(&self) -> Option<&Exit> {
        match &self.state {
            ContainerState::Exited(exit) => Some(exit),
            _ => None,
        }
    }
}

/// A fresh look at one thing in the runtime.
#[allow(clippy::large_enum_variant, reason = "lists of these are short, and most are containers")]
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    /// It is a pod's sandbox.
    Sandbox(Sandbox),
    /// It is a container.
    Container(Container),
    /// It is there, and the runtime cannot say more of it now.
    Unseen {
        /// ID in the runtime.
        id: String,
        /// The pod that it belongs to.
        pod: PodId,
    },
}

impl Observation {
    /// ID in the runtime.
    pub fn id(&self) -> &str {
        match self {
            Observation::Sandbox(sandbox) => &sandbox.id,
            Observation::Container(container) => &container.id,
            Observation::Unseen { id, .. } => id,
        }
    }

    /// Whether the runtime cannot say what it is.
    pub fn is_unseen(&self) -> bool {
        matches!(self, Observation::Unseen { .. })
    }

    /// The pod that it belongs to.
    pub fn pod(&self) -> &PodId {
        match self {
            Observation::Sandbox(sandbox) => &sandbox.pod,
            Observation::Container(container) => &container.pod,
            Observation::Unseen { pod, .. } => pod,
        }
    }
}

/// Sorts what was found by the pod's UID.
pub fn by_pod(list: Vec<Observation>) -> HashMap<String, ObservedPod> {
    let mut pods: HashMap<String, ObservedPod> = HashMap::new();
    for seen in list {
        let pod = pods.entry(seen.pod().uid.clone()).or_default();
        match seen {
            Observation::Sandbox(sandbox) => pod.sandboxes.push(sandbox),
            Observation::Container(container) => pod.containers.push(container),
            Observation::Unseen { .. } => pod.unseen = true,
        }
    }
    for pod in pods.values_mut() {
        pod.sort();
    }
    pods
}
