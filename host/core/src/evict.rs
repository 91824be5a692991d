//! When the node runs short of something, and which pod ends for it.
//!
//! As `pkg/kubelet/eviction/{helpers,eviction_manager}.go`. What is left of memory, disk and process IDs is held against
//! thresholds ([`Watch`]); what is starved ranks the pods ([`rank`]); one pod ends at a time, and is told why ([`message`]).
//! Nothing here measures, ends or counts time.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::ports::stats::{FileSystem, NodeUsage};
use crate::quantity;

mod local;
mod message;
mod rank;
mod watch;

pub use local::{Watched, exceeded, watched};
pub use message::message;
pub use rank::{Candidate, ContainerUse, PodUse, rank};
pub use watch::{Found, Starved, Watch};

/// `status.reason` of a pod that was evicted, and the reason of its event.
pub const REASON: &str = "Evicted";
/// Seconds that a pod gets at a hard threshold (`immediateEvictionGracePeriodSeconds`).
pub const IMMEDIATE_GRACE: i64 = 1;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// Memory that the node has left: capacity less working set.
    MemoryAvailable,
    /// The same of the cgroup that all pods are in.
    AllocatableMemoryAvailable,
    /// Bytes left on the file system of the root folder.
    NodeFsAvailable,
    /// Inodes left there.
    NodeFsInodesFree,
    /// Bytes left on the file system of Docker's images.
    ImageFsAvailable,
    /// Inodes left there.
    ImageFsInodesFree,
    /// Bytes left on the file system of Docker's writable layers, which is that of its images.
    ContainerFsAvailable,
    /// Inodes left there.
    ContainerFsInodesFree,
    /// Process IDs left.
    PidAvailable,
}

/// What a signal is about: the word in messages, and what pods are ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Memory.
    Memory,
    /// Bytes on a disk.
    EphemeralStorage,
    /// Inodes.
    Inodes,
    /// Process IDs.
    Pids,
}

impl Resource {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::EphemeralStorage => "ephemeral-storage",
            Resource::Inodes => "inodes",
            Resource::Pids => "pids",
        }
    }
}

impl Signal {
    /// All, in the order of their names.
    pub const ALL: [Signal; 9] = [
        Signal::AllocatableMemoryAvailable,
        Signal::ContainerFsAvailable,
        Signal::ContainerFsInodesFree,
        Signal::ImageFsAvailable,
        Signal::ImageFsInodesFree,
        Signal::MemoryAvailable,
        Signal::NodeFsAvailable,
        Signal::NodeFsInodesFree,
        Signal::PidAvailable,
    ];

    /// Its name in configurations and messages.
    pub fn name(self) -> &'static str {
        match self {
            Signal::MemoryAvailable => "memory.available",
            Signal::AllocatableMemoryAvailable => "allocatableMemory.available",
            Signal::NodeFsAvailable => "nodefs.available",
            Signal::NodeFsInodesFree => "nodefs.inodesFree",
            Signal::ImageFsAvailable => "imagefs.available",
            Signal::ImageFsInodesFree => "imagefs.inodesFree",
            Signal::ContainerFsAvailable => "containerfs.available",
            Signal::ContainerFsInodesFree => "containerfs.inodesFree",
            Signal::PidAvailable => "pid.available",
        }
    }

    /// What it is about.
    pub fn resource(self) -> Resource {
        match self {
            Signal::MemoryAvailable | Signal::AllocatableMemoryAvailable => Resource::Memory,
            Signal::NodeFsAvailable | Signal::ImageFsAvailable | Signal::ContainerFsAvailable => {
                Resource::EphemeralStorage
            }
            Signal::NodeFsInodesFree | Signal::ImageFsInodesFree | Signal::ContainerFsInodesFree => Resource::Inodes,
            Signal::PidAvailable => Resource::Pids,
        }
    }

    /// Whether it is about the file system of images and writable layers.
    pub fn is_of_images(self) -> bool {
        matches!(
            self,
            Signal::ImageFsAvailable
                | Signal::ImageFsInodesFree
                | Signal::ContainerFsAvailable
                | Signal::ContainerFsInodesFree
        )
    }
}

/// How much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// Bytes, inodes or process IDs; with binary units where it is shown.
    Absolute(i64),
    /// The same with decimal units.
    Decimal(i64),
    /// Per cent of the capacity.
    Percent(f64),
}

impl Amount {
    /// The amount, of that capacity. A part is reckoned as the kubelet does, which has it in single precision.
    pub fn of(self, capacity: i64) -> i64 {
        match self {
            Amount::Absolute(amount) | Amount::Decimal(amount) => amount,
            Amount::Percent(percent) => (capacity as f64 * f64::from(percent as f32 / 100.0)) as i64,
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amount::Absolute(amount) => f.write_str(&quantity::binary_si(*amount)),
            Amount::Decimal(amount) => f.write_str(&quantity::decimal_si(*amount)),
            Amount::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// When pods are evicted for a signal: once less than `amount` is left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// What is watched.
    pub signal: Signal,
    /// Less than this is too little.
    pub amount: Amount,
    /// How long it must be met, for a soft threshold; `None` for a hard one.
    pub grace_period: Option<Duration>,
    /// How much more than `amount` has to be free before it counts as over.
    pub minimum_reclaim: Option<Amount>,
}

impl Threshold {
    /// Seconds that a pod gets that is evicted at this threshold, of its own `termination_grace`.
    pub fn pod_grace(&self, policy: &Policy, termination_grace: i64) -> i64 {
        let own = termination_grace.max(1);
        match self.grace_period {
            None => IMMEDIATE_GRACE,
            // No maximum is the pod's own (`calculateEffectiveGracePeriod`).
            Some(_) if policy.max_pod_grace_seconds == 0 => own,
            Some(_) => own.min(i64::from(policy.max_pod_grace_seconds)),
        }
    }
}

/// When pods are evicted, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Hard thresholds, then soft ones.
    pub thresholds: Vec<Threshold>,
    /// How long a pressure condition stays after the last time that its threshold was met.
    pub transition_period: Duration,
    /// The most seconds that a pod gets at a soft threshold; 0 for the pod's own.
    pub max_pod_grace_seconds: u32,
}

impl Policy {
    /// What of a capacity is kept for the hard threshold of that signal; the kubelet takes it from the allocatable.
    pub fn hard_reserve(&self, signal: Signal, capacity: i64) -> i64 {
        let hard = |threshold: &&Threshold| threshold.signal == signal && threshold.grace_period.is_none();
        self.thresholds.iter().find(hard).map_or(0, |threshold| threshold.amount.of(capacity))
    }

    /// As it is heeded: writable layers lie where the images do, so that thresholds of their own say nothing
    /// (`UpdateContainerFsThresholds`); the hard one of memory counts for all pods together, too, where
    /// `enforce_allocatable` (`addAllocatableThresholds`).
    pub fn effective(&self, enforce_allocatable: bool) -> Policy {
        let own = |threshold: &&Threshold| {
            !matches!(threshold.signal, Signal::ContainerFsAvailable | Signal::ContainerFsInodesFree)
        };
        let mut thresholds: Vec<Threshold> = self.thresholds.iter().filter(own).copied().collect();
        let hard = thresholds.iter().find(|it| it.signal == Signal::MemoryAvailable && it.grace_period.is_none());
        if let Some(memory) = hard.copied().filter(|_| enforce_allocatable) {
            thresholds.push(Threshold { signal: Signal::AllocatableMemoryAvailable, ..memory });
        }
        Policy { thresholds, ..self.clone() }
    }
}

/// How much of something there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What is left.
    pub available: i64,
    /// What there is in all.
    pub capacity: i64,
}

/// What the node was seen to have left, by signal.
pub type Observations = BTreeMap<Signal, Observation>;

/// What is left of everything. What could not be read is not in it. `pods_memory` is what all pods together may use; `None`
/// where that is not enforced.
pub fn observe(node: &NodeUsage, pods_memory: Option<i64>) -> Observations {
    let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let mut seen = Observations::new();
    if let Some((available, capacity)) = node.memory_available.zip(node.memory_capacity) {
        seen.insert(Signal::MemoryAvailable, Observation { available: whole(available), capacity: whole(capacity) });
    }
    if let (Some(limit), Some(used)) = (pods_memory, node.pods.memory_working_set) {
        let available = limit.saturating_sub(whole(used));
        seen.insert(Signal::AllocatableMemoryAvailable, Observation { available, capacity: limit });
    }
    let mut disk = |of: Option<FileSystem>, bytes: Signal, inodes: Signal| {
        let Some(of) = of else { return };
        if of.capacity > 0 {
            seen.insert(bytes, Observation { available: whole(of.available), capacity: whole(of.capacity) });
        }
        // Some file systems (btrfs) have no fixed number of them, and say 0.
        if of.inodes > 0 {
            seen.insert(inodes, Observation { available: whole(of.inodes_free), capacity: whole(of.inodes) });
        }
    };
    disk(node.node_fs, Signal::NodeFsAvailable, Signal::NodeFsInodesFree);
    disk(node.image_fs, Signal::ImageFsAvailable, Signal::ImageFsInodesFree);
    if let Some((most, used)) = node.processes {
        let available = whole(most).saturating_sub(whole(used));
        seen.insert(Signal::PidAvailable, Observation { available, capacity: whole(most) });
    }
    seen
}

/// Whether images and writable layers have a disk of their own.
pub fn has_own_image_disk(node: &NodeUsage) -> bool {
    let differ = |(a, b): (FileSystem, FileSystem)| (a.capacity, a.inodes) != (b.capacity, b.inodes);
    node.node_fs.zip(node.image_fs).is_some_and(differ)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
