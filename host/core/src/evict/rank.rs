//! Whom to evict first: those that use more than they asked for, then those of low priority, then the largest.
//!
//! Two pods that are alike in all of this are told apart by who they are, so that the order is always the same.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::{Resource, Signal};
use crate::pod::{Pod, PodId};
use crate::ports::files::DiskUsage;
use crate::{priority, resources};

/// What a container uses. What is not known is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUse {
    /// Working set in bytes.
    pub memory: Option<u64>,
    /// Its writable layer.
    pub rootfs: Option<DiskUsage>,
    /// Its log, older files of it included.
    pub logs: Option<DiskUsage>,
}

/// What a pod uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodUse {
    /// Working set in bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u64>,
    /// Its containers, by name.
    pub containers: BTreeMap<String, ContainerUse>,
    /// Its volumes on the node's disk, by name.
    pub volumes: BTreeMap<String, DiskUsage>,
    /// Files of its own that its containers write in.
    pub files: DiskUsage,
    /// Whether its files could not all be counted: it takes more on the disk than this says.
    pub partial: bool,
}

/// A pod that may be evicted.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// What it uses; `None` when that could not be said.
    pub usage: Option<PodUse>,
}

/// Sorts pods: the first is evicted first. `dedicated` is whether images and writable layers have a file system of their
/// own.
pub fn rank(candidates: &mut [Candidate<'_>], signal: Signal, dedicated: bool) {
    candidates.sort_by_cached_key(|candidate| key(candidate, signal, dedicated));
}

type Key = (i32, bool, bool, i32, bool, Reverse<i128>, PodId);

fn key(candidate: &Candidate<'_>, signal: Signal, dedicated: bool) -> Key {
    let Candidate { pod, usage } = candidate;
    let of_disk = matches!(signal.resource(), Resource::EphemeralStorage | Resource::Inodes);
    let of_files = of_disk && (!dedicated || !signal.is_of_images());
    let known = usage.is_some();
    // Nobody escapes by files that take too long to count: it exceeds what it asked for, and is the largest of its priority.
    let counted = usage.as_ref().is_none_or(|usage| !(of_files && usage.partial));
    let empty = PodUse::default();
    let usage = usage.as_ref().unwrap_or(&empty);
    let (used, asked) = match signal.resource() {
        Resource::Memory => (usage.memory.unwrap_or(0), request(pod, "memory")),
        // Nobody asks for process IDs: priority alone goes before numbers (`rankPIDPressure`).
        Resource::Pids => {
            let used = Reverse(i128::from(usage.processes.unwrap_or(0)));
            return (priority::of(pod), known, false, 0, true, used, pod.id.clone());
        }
        Resource::EphemeralStorage => {
            (disk(usage, signal, dedicated).bytes, request(pod, resources::EPHEMERAL_STORAGE))
        }
        Resource::Inodes => (disk(usage, signal, dedicated).inodes, 0),
    };
    let above = i128::from(used) - i128::from(asked);
    (0, known, above <= 0 && counted, priority::of(pod), counted, Reverse(above), pod.id.clone())
}

/// What a pod requests of something. Overhead alone is no request (`GetResourceRequestQuantity`).
fn request(pod: &Pod, name: &str) -> i64 {
    let whole = resources::pod_request(pod.spec(), name);
    let overhead = resources::amount(pod.spec().overhead.as_ref(), name).unwrap_or(0);
    if whole == overhead { 0 } else { whole }
}

/// What counts of a pod's disk usage: where images have a disk of their own, logs and volumes on the one and writable
/// layers on the other; else all of it.
fn disk(usage: &PodUse, signal: Signal, dedicated: bool) -> DiskUsage {
    let (layers, rest) = (!dedicated || signal.is_of_images(), !dedicated || !signal.is_of_images());
    let of_containers = usage.containers.values().flat_map(|container| {
        [container.rootfs.filter(|_| layers), container.logs.filter(|_| rest)].into_iter().flatten()
    });
    let volumes = usage.volumes.values().copied().filter(|_| rest);
    let files = rest.then_some(usage.files);
    of_containers.chain(volumes).chain(files).fold(DiskUsage::default(), DiskUsage::plus)
}
