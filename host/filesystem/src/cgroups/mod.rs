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

use longshore_core::cgroup::{PodCgroup, Qos};
use longshore_core::node::CgroupDriver;
use longshore_core::ports::files::FilesError;

use crate::layout::{part, refuse};
use crate::mounts;

/// Period of CFS quotas in µs (`QuotaPeriod` in `pkg/kubelet/cm/helpers_linux.go`).
const PERIOD: i64 = 100_000;

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
}

impl Cgroups {
    pub(crate) fn new(options: CgroupOptions) -> Cgroups {
        Cgroups { options, warned: AtomicBool::new(false) }
    }

    /// Makes a pod's cgroup and those above it, and sets its limits. Blocks.
    pub(crate) fn prepare(&self, cgroup: &PodCgroup) -> Result<(), FilesError> {
        part(&self.options.root, "pod UID", &cgroup.uid)?;
        if !self.options.enabled {
            return Ok(());
        }
        let made = match (self.options.driver, self.options.v2) {
            (CgroupDriver::Systemd, v2) => systemd::prepare(&self.cpu_folder(cgroup)?, cgroup, v2),
            (CgroupDriver::Cgroupfs, true) => v2::prepare(&self.options.root, cgroup),
            (CgroupDriver::Cgroupfs, false) => v1::prepare(&v1::hierarchies()?, cgroup),
        };
        self.forgive(made)
    }

    /// Where the CPU controller keeps a slice of systemd's.
    fn cpu_folder(&self, cgroup: &PodCgroup) -> Result<PathBuf, FilesError> {
        let path = cgroup.systemd_path();
        let path = path.trim_start_matches('/');
        if self.options.v2 {
            return Ok(self.options.root.join(path));
        }
        let hierarchies = v1::hierarchies()?;
        let cpu = hierarchies.iter().find(|hierarchy| hierarchy.has("cpu"));
        Ok(cpu.map_or_else(|| self.options.root.clone(), |cpu| cpu.root.clone()).join(path))
    }

    /// Removes a pod's cgroup. Blocks. One in which something still runs is an error, to be tried again.
    pub(crate) fn remove(&self, cgroup: &PodCgroup) -> Result<(), FilesError> {
        part(&self.options.root, "pod UID", &cgroup.uid)?;
        if !self.options.enabled {
            return Ok(());
        }
        let path = match self.options.driver {
            CgroupDriver::Cgroupfs => cgroup.cgroupfs_path(),
            CgroupDriver::Systemd => cgroup.systemd_path(),
        };
        let path = path.trim_start_matches('/');
        let folders: Vec<PathBuf> = if self.options.v2 {
            vec![self.options.root.join(path)]
        } else {
            // Beside v1 (`unified`) runc makes the same folder in a mounted v2, too, and leaves it.
            let beside = mounted("cgroup2")?.into_iter().map(|mount| mount.point);
            let hierarchies = v1::hierarchies()?.into_iter().map(|hierarchy| hierarchy.root);
            hierarchies.chain(beside).map(|root| root.join(path)).collect()
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

/// Shares of `kubepods`: the node's CPUs, so that pods as a whole weigh more than one service of the system.
fn node_shares() -> i64 {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    i64::try_from(cpus).unwrap_or(1).saturating_mul(1024).clamp(2, 262_144)
}

/// Shares of a class of pods, `None` where pods lie in `kubepods` itself: the least for BestEffort; for Burstable what
/// its pods have together (`qos_container_manager_linux.go`), read from the cgroups in the class' folder.
fn class_shares(class: &Path, qos: Qos, v2: bool) -> Option<i64> {
    match qos {
        Qos::Guaranteed => return None,
        Qos::BestEffort => return Some(2),
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

/// Cgroup file systems that are mounted, as mountinfo has them.
fn mounted(kind: &str) -> Result<Vec<mounts::Mount>, FilesError> {
    Ok(mounts::all()?.into_iter().filter(|mount| mount.kind == kind).collect())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
