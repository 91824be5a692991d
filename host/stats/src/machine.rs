//! The port `Stats` on this machine.
//!
//! Owns what is read when, off the executor and in bounded time, and the rates between readings.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use longshore_core::node::CgroupDriver;
use longshore_core::ports::stats::{FileSystem, NodeUsage, PodQuery, PodUsage, Stats, Usage};

use crate::cgroups::Cgroups;
use crate::guard::Guard;
use crate::node;
use crate::rates::Rates;

/// Reads of cgroups and `/proc` at a time.
const AT_ONCE: usize = 4;
/// Where cgroups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Where the kernel's `proc` is.
const PROC: &str = "/proc";
/// Name of the machine's own reading among the rates.
const ROOT: &str = "/";

/// What to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatsOptions {
    /// The root folder: its file system is `nodefs`.
    pub root_dir: PathBuf,
    /// Docker's root folder: its file system is `imagefs`. Where it is not known, or cannot be seen from here, `nodefs`
    /// stands for it.
    pub images_dir: Option<PathBuf>,
    /// As `docker info` says it.
    pub driver: CgroupDriver,
    /// Whether Docker uses the unified hierarchy (`CgroupVersion: 2` in `docker info`).
    pub v2: bool,
}

/// Reads what this machine, its pods and their containers use.
#[derive(Debug)]
pub struct MachineStats {
    options: StatsOptions,
    kernel: Guard,
    node_fs: Guard,
    image_fs: Guard,
    rates: Mutex<Rates>,
}

impl MachineStats {
    /// Reads nothing yet.
    pub fn new(options: StatsOptions) -> MachineStats {
        let folder = |folder: &PathBuf| format!("file system of {}", folder.display());
        MachineStats {
            kernel: Guard::new("cgroups and proc".to_owned(), AT_ONCE),
            node_fs: Guard::new(folder(&options.root_dir), 1),
            image_fs: Guard::new(options.images_dir.as_ref().map(folder).unwrap_or_default(), 1),
            rates: Mutex::new(Rates::default()),
            options,
        }
    }

    async fn kernel<T: Send + 'static>(&self, read: impl FnOnce(&Cgroups, &Path) -> T + Send + 'static) -> Option<T> {
        let (driver, v2) = (self.options.driver, self.options.v2);
        // Where controllers are is looked up each time: hierarchies may be mounted after us, and it costs little.
        let read = move || read(&Cgroups::find(Path::new(CGROUPS), driver, v2), Path::new(PROC));
        self.kernel.read(read).await
    }

    fn rate(&self, cgroup: &str, usage: &mut Usage) {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        usage.cpu_rate = usage.cpu_nanoseconds.and_then(|used| rates.note(cgroup, Instant::now(), used));
    }

    async fn node_fs(&self) -> Option<FileSystem> {
        let folder = self.options.root_dir.clone();
        self.node_fs.read(move || node::file_system(&folder).ok()).await.flatten()
    }

    /// `None`: nobody said where, or it cannot be seen; `Some(None)`: it does not answer.
    async fn image_fs(&self) -> Option<Option<FileSystem>> {
        let folder = self.options.images_dir.clone()?;
        match self.image_fs.read(move || node::file_system(&folder).ok()).await {
            Some(found) => found.map(Some),
            None => Some(None),
        }
    }
}

#[async_trait]
impl Stats for MachineStats {
    async fn node(&self) -> NodeUsage {
        let kernel = self.kernel(|cgroups, proc| (node::node(cgroups, proc), cgroups.pods()));
        let (kernel, node_fs, image_fs) = tokio::join!(kernel, self.node_fs(), self.image_fs());
        let (mut node, pods) = kernel.unwrap_or_default();
        self.rate(ROOT, &mut node.usage);
        self.rate(pods, &mut node.pods);
        node.image_fs = image_fs.unwrap_or(node_fs);
        node.node_fs = node_fs;
        node
    }

    async fn pod(&self, query: &PodQuery) -> PodUsage {
        let query = query.clone();
        let read = self.kernel(move |cgroups, proc| {
            let containers = query.containers.iter().map(|(name, id)| {
                let path = cgroups.container(&query.cgroup, id);
                let usage = path.as_deref().map(|path| cgroups.usage(path, true));
                (name.clone(), path, usage.unwrap_or_default())
            });
            let containers: Vec<(String, Option<String>, Usage)> = containers.collect();
            let own = cgroups.exists(&query.cgroup).then(|| cgroups.usage(&query.cgroup, true));
            let process = query.sandbox_process;
            let interfaces = process.map(|process| node::interfaces_of(proc, process)).unwrap_or_default();
            (query.cgroup, own, containers, interfaces)
        });
        let Some((path, own, containers, interfaces)) = read.await else { return PodUsage::default() };
        let rated = containers.into_iter().map(|(name, path, mut usage)| {
            if let Some(path) = path {
                self.rate(&path, &mut usage);
            }
            (name, usage)
        });
        let containers: Vec<(String, Usage)> = rated.collect();
        let usage = match own {
            Some(mut usage) => {
                self.rate(&path, &mut usage);
                usage
            }
            None => sum(&containers),
        };
        PodUsage { usage, containers, interfaces }
    }
}

/// A pod without a cgroup of its own uses what its containers do.
fn sum(containers: &[(String, Usage)]) -> Usage {
    let add = |field: fn(&Usage) -> Option<u64>| {
        containers.iter().filter_map(|(_, usage)| field(usage)).reduce(u64::saturating_add)
    };
    let faults = add(|usage| usage.page_faults.map(|faults| faults.0));
    let major = add(|usage| usage.page_faults.map(|faults| faults.1));
    Usage {
        at: containers.iter().filter_map(|(_, usage)| usage.at).max(),
        cpu_nanoseconds: add(|usage| usage.cpu_nanoseconds),
        cpu_rate: add(|usage| usage.cpu_rate),
        memory_usage: add(|usage| usage.memory_usage),
        memory_working_set: add(|usage| usage.memory_working_set),
        memory_rss: add(|usage| usage.memory_rss),
        memory_limit: None,
        page_faults: faults.zip(major),
        swap: add(|usage| usage.swap),
        swap_limit: None,
        processes: add(|usage| usage.processes),
        threads: add(|usage| usage.threads),
    }
}
