//! Numbers of a machine that is what a test says.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use longshore_core::ports::stats::{FileSystem, NodeUsage, PodQuery, PodUsage, Stats, Usage};

/// What the machine is like at a reading.
type Machine = Box<dyn Fn(&mut NodeUsage) + Send>;

/// The machine, and its pods by UID. A pod that is not spoken of uses nothing that is known.
#[derive(Default)]
pub struct FakeStats {
    node: Mutex<NodeUsage>,
    machine: Mutex<Option<Machine>>,
    pods: Mutex<BTreeMap<String, PodUsage>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeStats {
    /// A machine with so much of everything left, of a thousand.
    pub fn all_left(&self, left: u64) {
        let fs = FileSystem { capacity: 1000, available: left, used: 1000 - left, inodes: 1000, inodes_free: left };
        *lock(&self.node) = NodeUsage {
            memory_available: Some(left),
            memory_capacity: Some(1000),
            node_fs: Some(fs),
            image_fs: Some(fs),
            processes: Some((1000, 1000 - left)),
            ..NodeUsage::default()
        };
    }

    /// Changes the machine.
    pub fn change(&self, change: impl FnOnce(&mut NodeUsage)) {
        change(&mut lock(&self.node));
    }

    /// A pod has so much memory charged, and so has its container `app`.
    pub fn pod_is_charged(&self, uid: &str, memory: u64) {
        let usage = Usage { memory_usage: Some(memory), ..Usage::default() };
        let containers = vec![("app".to_owned(), usage.clone())];
        lock(&self.pods).insert(uid.to_owned(), PodUsage { usage, containers, ..PodUsage::default() });
    }

    /// From now on the machine is what this makes of it at each reading.
    pub fn machine(&self, machine: impl Fn(&mut NodeUsage) + Send + 'static) {
        *lock(&self.machine) = Some(Box::new(machine));
    }

    /// A pod with one container `app` uses so much memory and so many processes.
    pub fn pod_uses(&self, uid: &str, memory: u64, processes: u64) {
        let usage = Usage { memory_working_set: Some(memory), processes: Some(processes), ..Usage::default() };
        let containers = vec![("app".to_owned(), usage.clone())];
        lock(&self.pods).insert(uid.to_owned(), PodUsage { usage, containers, ..PodUsage::default() });
    }
}

#[async_trait]
impl Stats for FakeStats {
    async fn node(&self) -> NodeUsage {
        let mut node = lock(&self.node).clone();
        if let Some(machine) = lock(&self.machine).as_ref() {
            machine(&mut node);
        }
        node
    }

    async fn pod(&self, query: &PodQuery) -> PodUsage {
        lock(&self.pods).get(&query.pod.uid).cloned().unwrap_or_default()
    }
}
