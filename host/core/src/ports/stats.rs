//! What the machine, its pods and their containers use, as it is read now: `/stats/summary`, eviction.

use async_trait::async_trait;
use jiff::Timestamp;

use crate::pod::PodId;

/// CPU and memory of a cgroup. Fields that the kernel does not tell are `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// When it was read.
    pub at: Option<Timestamp>,
    /// CPU time since the cgroup was made, in nanoseconds.
    pub cpu_nanoseconds: Option<u64>,
    /// CPU used lately, in nanoseconds a second; known from the second reading on.
    pub cpu_rate: Option<u64>,
    /// Memory charged, in bytes.
    pub memory_usage: Option<u64>,
    /// Memory that cannot be reclaimed easily: usage without inactive file pages.
    pub memory_working_set: Option<u64>,
    /// Anonymous memory.
    pub memory_rss: Option<u64>,
    /// Page faults, and those that went to a disk.
    pub page_faults: Option<(u64, u64)>,
    /// Memory that may be charged, in bytes; `None` for no limit.
    pub memory_limit: Option<u64>,
    /// Swap used, in bytes.
    pub swap: Option<u64>,
    /// Swap that may be used, in bytes; on cgroup v1 together with memory, as the kernel has it. `None` for no limit.
    pub swap_limit: Option<u64>,
    /// Processes, in the cgroup and those below it.
    pub processes: Option<u64>,
    /// Tasks: processes' threads, as the process limit counts them.
    pub threads: Option<u64>,
}

/// A file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// Bytes in all.
    pub capacity: u64,
    /// Bytes that may still be used by other than root.
    pub available: u64,
    /// Bytes in use.
    pub used: u64,
    /// Inodes in all; 0 where the file system has no fixed number of them.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}

/// Bytes through a network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Received: bytes and errors.
    pub received: (u64, u64),
    /// Sent: bytes and errors.
    pub sent: (u64, u64),
}

/// The machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeUsage {
    /// Its root cgroup.
    pub usage: Usage,
    /// Memory that the kernel manages, in bytes.
    pub memory_capacity: Option<u64>,
    /// Memory available, in bytes: capacity without the working set, as eviction reckons it.
    pub memory_available: Option<u64>,
    /// When the machine was booted.
    pub started: Option<Timestamp>,
    /// The file system of the root folder (`nodefs`).
    pub node_fs: Option<FileSystem>,
    /// The file system of Docker's images (`imagefs`).
    pub image_fs: Option<FileSystem>,
    /// Tasks (processes and threads): the most that may be, and those that are.
    pub processes: Option<(u64, u64)>,
    /// Its interfaces but loopback and the ends of pods', the one of the default route first.
    pub interfaces: Vec<Interface>,
    /// All pods together (the `kubepods` cgroup).
    pub pods: Usage,
}

/// A pod whose numbers are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodQuery {
    /// The pod.
    pub pod: PodId,
    /// Its cgroup, below the hierarchy's root: `/kubepods/burstable/pod…` or the slice's full path.
    pub cgroup: String,
    /// Process ID of its sandbox or of a container, whose network namespace is the pod's; `None` on the node's network.
    pub sandbox_process: Option<u32>,
    /// Its running containers: name and ID.
    pub containers: Vec<(String, String)>,
}

/// What a pod uses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodUsage {
    /// The pod as a whole, its sandbox with it; the sum of its containers where it has no cgroup of its own.
    pub usage: Usage,
    /// Its containers, by name.
    pub containers: Vec<(String, Usage)>,
    /// Its interfaces, `eth0` first.
    pub interfaces: Vec<Interface>,
}

/// Reads what is used. Calls are cheap and may be made every second; rates come from the calls before.
#[async_trait]
pub trait Stats: Send + Sync {
    /// The machine.
    async fn node(&self) -> NodeUsage;

    /// A pod; fields of what is gone are empty.
    async fn pod(&self, query: &PodQuery) -> PodUsage;
}
