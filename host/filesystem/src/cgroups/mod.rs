//! Cgroups of pods: made before the sandbox, with their limits, and removed after it.
//!
//! Owns the choice of hierarchy and driver. The numbers come with a [`PodCgroup`]; the runtime puts the containers in.
//! As `pkg/kubelet/cm/{cgroup_manager_linux,qos_container_manager_linux}.go`.
//!
//! With the cgroupfs driver the folders are made here. With the systemd driver Docker makes a slice by naming it as
//! a container's parent; its limits are systemd's to keep (what is written past it is lost at the next reload), so they are
//! set through `systemctl`: see [`systemd`].

mod systemd;
mod v1;
mod v2;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use longshore_core::cgroup::{PodCgroup, PodsLimits, Qos};
use longshore_core::node::CgroupDriver;
use longshore_core::ports::files::FilesError;
use longshore_core::resources::milli_cpu_to_shares;

use crate::layout::{part, refuse};
use crate::mounts;

/// Name of the cgroup of all pods.
const PODS: &str = "kubepods";

/// The classes with a cgroup of their own in it. Where all pods together have limits, they are there before the first pod of
/// theirs is (`qosContainerManagerImpl`): whoever watches a node looks for them. Where nothing is limited they come with it,
/// unlike the kubelet's: who asked for nothing is not to be told that it failed.
const CLASSES: [&str; 2] = ["burstable", BEST_EFFORT];
const BEST_EFFORT: &str = "besteffort";
/// Shares of all BestEffort pods together.
const BEST_EFFORT_SHARES: i64 = 2;

/// How old what is known of the mounts of cgroups may be.
const MOUNTED_AGE: Duration = Duration::from_secs(10);

/// How cgroups are kept on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupOptions {
    /// As `docker info` says it.
    pub driver: CgroupDriver,
    /// Whether the runtime uses the unified hierarchy (`CgroupVersion: 2` in `docker info`).
    pub v2: bool,
    /// Where the hierarchies are mounted: `/sys/fs/cgroup`.
    pub root: PathBuf,
    /// Whether pods get cgroups of their own at all (`--cgroups-per-qos`).
    pub enabled: bool,
}

impl CgroupOptions {
    /// Options for that driver and version at `/sys/fs/cgroup`.
    pub fn new(driver: CgroupDriver, v2: bool) -> CgroupOptions {
        CgroupOptions { driver, v2, root: PathBuf::from("/sys/fs/cgroup"), enabled: true }
    }

    /// Options for that driver, with the version that is mounted at `/sys/fs/cgroup`.
    pub fn detect(driver: CgroupDriver) -> CgroupOptions {
        let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        CgroupOptions::new(driver, v2)
    }
}

/// What went wrong with a cgroup.
#[derive(Debug)]
enum CgroupError {
    /// This process may not write cgroups, or there are none: a fact about the node, not a fault.
    NotAllowed(String),
    /// Anything else.
    Failed(FilesError),
}

impl CgroupError {
    fn io(path: &Path, error: std::io::Error) -> CgroupError {
        use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, Unsupported};
        let message = format!("{}: {error}", path.display());
        match error.kind() {
            PermissionDenied | ReadOnlyFilesystem | Unsupported => CgroupError::NotAllowed(message),
            _ => CgroupError::Failed(FilesError::Io { path: path.to_owned(), message: error.to_string() }),
        }
    }
}

/// The cgroups of this node's pods.
#[derive(Debug)]
pub(crate) struct Cgroups {
    options: CgroupOptions,
    warned: AtomicBool,
    /// Those of all pods together, once they are known.
    limits: Mutex<Option<PodsLimits>>,
    mounted: Mutex<Option<(Instant, Arc<Mounted>)>>,
}

/// What of cgroups is mounted.
#[derive(Debug)]
struct Mounted {
    hierarchies: Vec<v1::Hierarchy>,
    /// Of v2.
    unified: Vec<PathBuf>,
}

impl Cgroups {
    pub(crate) fn new(options: CgroupOptions) -> Cgroups {
        Cgroups { options, warned: AtomicBool::new(false), limits: Mutex::default(), mounted: Mutex::default() }
    }

    /// Makes a pod's cgroup and those above it, and sets its limits. Blocks.
    pub(crate) fn prepare(&self, cgroup: &PodCgroup) -> Result<(), FilesError> {
        part(&self.options.root, "pod UID", &cgroup.uid)?;
        if !self.options.enabled {
            return Ok(());
        }
        let all = self.limits.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_else(unlimited);
        let made = match (self.options.driver, self.options.v2) {
            (CgroupDriver::Systemd, v2) => {
                let path = cgroup.path(self.options.driver);
                let folder = self.folder_of("cpu", &path)?;
                let made = systemd::prepare(&folder, cgroup, &all, v2);
                // Not systemd's to keep: it has no such property.
                let huge_pages = self.folder_of("hugetlb", &path)?;
                made.and_then(|()| set_huge_pages(&huge_pages, &cgroup.huge_pages, v2))
            }
            (CgroupDriver::Cgroupfs, true) => v2::prepare(&self.options.root, cgroup, &all),
            (CgroupDriver::Cgroupfs, false) => v1::prepare(&self.mounted()?.hierarchies, cgroup, &all),
        };
        self.forgive(made)
    }

    /// Has the kernel end a container of that pod as a whole. Blocks.
    pub(crate) fn kill_together(&self, cgroup: &PodCgroup, container: &str) -> Result<(), FilesError> {
        part(&self.options.root, "pod UID", &cgroup.uid)?;
        part(&self.options.root, "container ID", container)?;
        if !self.options.enabled || !self.options.v2 {
            return Ok(());
        }
        let folder = self.folder_of("memory", &cgroup.path_of_container(self.options.driver, container))?;
        self.forgive(set(&folder.join("memory.oom.group"), "1"))
    }

    /// Limits all pods together. Blocks.
    pub(crate) fn limit_pods(&self, limits: &PodsLimits) -> Result<(), FilesError> {
        if !self.options.enabled {
            return Ok(());
        }
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = Some(*limits);
        let set = match (self.options.driver, self.options.v2) {
            (CgroupDriver::Systemd, v2) => {
                systemd::limit_pods(&self.folder_of("cpu", &format!("{PODS}.slice"))?, limits, v2)
            }
            (CgroupDriver::Cgroupfs, true) => v2::limit_pods(&self.options.root, limits),
            (CgroupDriver::Cgroupfs, false) => v1::limit_pods(&self.mounted()?.hierarchies, limits),
        };
        set.map_err(|error| match error {
            CgroupError::NotAllowed(reason) => FilesError::NotAllowed(reason),
            CgroupError::Failed(error) => error,
        })
    }

    /// Where cgroups are mounted, as of a moment ago: mountinfo is long on a node with many pods, and whoever mounts waits for
    /// its readers.
    fn mounted(&self) -> Result<Arc<Mounted>, FilesError> {
        let mut known = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, mounted)) = known.as_ref().filter(|(at, _)| at.elapsed() < MOUNTED_AGE) {
            return Ok(mounted.clone());
        }
        let mounts = mounts::all()?;
        let unified = mounts.iter().filter(|mount| mount.kind == "cgroup2").map(|mount| mount.point.clone());
        let mounted = Arc::new(Mounted { hierarchies: v1::hierarchies(&mounts), unified: unified.collect() });
        *known = Some((Instant::now(), mounted.clone()));
        Ok(mounted)
    }

    /// Where a controller keeps a slice of systemd's.
    fn folder_of(&self, controller: &str, path: &str) -> Result<PathBuf, FilesError> {
        let path = path.trim_start_matches('/');
        if self.options.v2 {
            return Ok(self.options.root.join(path));
        }
        let mounted = self.mounted()?;
        let found = mounted.hierarchies.iter().find(|hierarchy| hierarchy.has(controller));
        Ok(found.map_or_else(|| self.options.root.clone(), |found| found.root.clone()).join(path))
    }

    /// Removes a pod's cgroup. Blocks. One in which something still runs is an error, to be tried again.
    pub(crate) fn remove(&self, cgroup: &PodCgroup) -> Result<(), FilesError> {
        part(&self.options.root, "pod UID", &cgroup.uid)?;
        if !self.options.enabled {
            return Ok(());
        }
        let path = cgroup.path(self.options.driver);
        let path = path.trim_start_matches('/');
        let folders: Vec<PathBuf> = if self.options.v2 {
            vec![self.options.root.join(path)]
        } else {
            // Beside v1 (`unified`) runc makes the same folder in a mounted v2, too, and leaves it.
            let mounted = self.mounted()?;
            let hierarchies = mounted.hierarchies.iter().map(|hierarchy| &hierarchy.root);
            hierarchies.chain(&mounted.unified).map(|root| root.join(path)).collect()
        };
        let removed = match self.options.driver {
            CgroupDriver::Cgroupfs => folders.iter().try_for_each(|folder| remove_folder(folder)),
            CgroupDriver::Systemd => systemd::remove(cgroup, &folders),
        };
        self.forgive(removed)
    }

    /// Where cgroups may not be written, that is said once and pods run without.
    fn forgive(&self, result: Result<(), CgroupError>) -> Result<(), FilesError> {
        match result {
            Ok(()) => Ok(()),
            Err(CgroupError::Failed(error)) => Err(error),
            Err(CgroupError::NotAllowed(message)) => {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        reason = message,
                        "cgroups of pods cannot be written here: pods run without limits of their own (containers keep theirs)"
                    );
                }
                Ok(())
            }
        }
    }
}

/// Removes a cgroup with those below it, bottom up.
fn remove_folder(folder: &Path) -> Result<(), CgroupError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(CgroupError::io(folder, error)),
    };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_folder(&entry.path())?;
        }
    }
    match std::fs::remove_dir(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
            let message = "processes still run in this cgroup: it is removed when they have ended";
            Err(CgroupError::Failed(refuse(folder, message)))
        }
        Err(error) => Err(CgroupError::io(folder, error)),
    }
}

/// Writes a value where it differs: a write that changes nothing can still fail or cost.
fn set(file: &Path, value: &str) -> Result<(), CgroupError> {
    if std::fs::read_to_string(file).is_ok_and(|found| found.trim() == value) {
        return Ok(());
    }
    // Never O_CREAT: a missing file is a controller that this kernel does not have.
    let written = std::fs::OpenOptions::new().write(true).open(file).and_then(|mut file| {
        use std::io::Write;
        file.write_all(value.as_bytes())
    });
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|error| CgroupError::io(file, error)),
    }
}

fn make(folder: &Path) -> Result<(), CgroupError> {
    match std::fs::create_dir(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(CgroupError::io(folder, error)),
    }
}

/// Weight of cgroup v2 for shares of v1, by the kernel's formula of runc and the kubelet.
fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// What all pods have where nothing was said: the node's CPUs, so that they as a whole weigh more than one service of the system.
fn unlimited() -> PodsLimits {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    let milli = i64::try_from(cpus).unwrap_or(1).saturating_mul(1000);
    PodsLimits { cpu_shares: milli_cpu_to_shares(milli), memory: None, pids: None }
}

/// Shares of a class of pods, `None` where pods lie in `kubepods` itself: the least for BestEffort; for Burstable what
/// its pods have together (`qos_container_manager_linux.go`), read from the cgroups in the class' folder.
fn class_shares(class: &Path, qos: Qos, v2: bool) -> Option<i64> {
    match qos {
        Qos::Guaranteed => return None,
        Qos::BestEffort => return Some(BEST_EFFORT_SHARES),
        Qos::Burstable => {}
    }
    let file = if v2 { "cpu.weight" } else { "cpu.shares" };
    let pods = std::fs::read_dir(class).ok()?.filter_map(Result::ok).map(|entry| entry.path().join(file));
    let values = pods.filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse::<i64>().ok());
    // Up, for a weight stands for many shares, and `weight` of the result must be the weight.
    let shares = |weight: i64| 2 + ((weight.clamp(1, 10_000) - 1) * 262_142 + 9998) / 9999;
    let sum = values.fold(0_i64, |sum, value| sum.saturating_add(if v2 { shares(value) } else { value.max(2) }));
    Some(sum.clamp(2, 262_144))
}

/// Limits of huge pages, where the controller is there.
fn set_huge_pages(folder: &Path, limits: &[(&str, i64)], v2: bool) -> Result<(), CgroupError> {
    let file = if v2 { "max" } else { "limit_in_bytes" };
    limits.iter().try_for_each(|(size, limit)| set(&folder.join(format!("hugetlb.{size}.{file}")), &limit.to_string()))
}

/// A limit as the kernel takes it.
fn or_max(limit: Option<i64>) -> String {
    limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
