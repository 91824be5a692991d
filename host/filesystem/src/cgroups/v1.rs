//! Pods' cgroups on the hierarchies of cgroup v1, one folder in each.

use std::path::{Path, PathBuf};

use longshore_core::cgroup::{PodCgroup, PodsLimits};

use super::{
    BEST_EFFORT, BEST_EFFORT_SHARES, CLASSES, CgroupError, PODS, class_shares, make, or_max, set, set_huge_pages,
};
use crate::mounts::Mount;

/// Controllers in whose hierarchies pods get a cgroup; `name=systemd` too, for runc makes containers there.
const CONTROLLERS: [&str; 10] =
    ["cpu", "memory", "pids", "cpuacct", "cpuset", "blkio", "devices", "freezer", "hugetlb", "name=systemd"];

/// The least unit of memory that a limit counts in, in bytes.
const PAGE: u64 = 4096;

/// A mounted hierarchy.
#[derive(Clone, Debug)]
pub(super) struct Hierarchy {
    pub(super) root: PathBuf,
    pub(super) controllers: Vec<String>,
}

impl Hierarchy {
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|found| found == controller)
    }
}

/// All hierarchies that pods belong to, of what is mounted. `cpu,cpuacct` is one when mounted together.
pub(super) fn hierarchies(mounts: &[Mount]) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for mount in mounts.iter().filter(|mount| mount.kind == "cgroup") {
        let controllers: Vec<String> =
            mount.options.split(',').filter(|option| CONTROLLERS.contains(option)).map(str::to_owned).collect();
        // A hierarchy that is mounted twice is one all the same.
        if !controllers.is_empty() && !found.iter().any(|known| known.controllers == controllers) {
            found.push(Hierarchy { root: mount.point.clone(), controllers });
        }
    }
    found
}

fn some(hierarchies: &[Hierarchy]) -> Result<(), CgroupError> {
    match hierarchies.is_empty() {
        true => Err(CgroupError::NotAllowed("no hierarchy of cgroup v1 is mounted".to_owned())),
        false => Ok(()),
    }
}

/// The pod's cgroup. The limits of all pods are kept up, in case somebody else changed them; that they cannot be now (more is
/// in use) is no fault of the pod's.
pub(super) fn prepare(hierarchies: &[Hierarchy], cgroup: &PodCgroup, all: &PodsLimits) -> Result<(), CgroupError> {
    some(hierarchies)?;
    for hierarchy in hierarchies {
        let folder = cgroup.names().iter().fold(hierarchy.root.clone(), |folder, name| folder.join(name));
        // Most calls find it there; in a cpuset it may still be empty.
        if hierarchy.has("cpuset") || !folder.is_dir() {
            let mut made = hierarchy.root.clone();
            for name in cgroup.names() {
                let parent = made.clone();
                made.push(name);
                make(&made)?;
                if hierarchy.has("cpuset") {
                    inherit(&parent, &made)?;
                }
            }
        }
        if hierarchy.has("cpu") {
            set(&folder.join("cpu.shares"), &cgroup.cpu_shares.max(2).to_string())?;
            set_quota(&folder, cgroup.cpu_quota, cgroup.cpu_period)?;
            set(&hierarchy.root.join(PODS).join("cpu.shares"), &all.cpu_shares.to_string())?;
            let class = folder.parent().unwrap_or(&hierarchy.root);
            if let Some(shares) = class_shares(class, cgroup.qos, false) {
                set(&class.join("cpu.shares"), &shares.to_string())?;
            }
        }
        if hierarchy.has("memory") {
            set_memory(&folder.join("memory.limit_in_bytes"), cgroup.memory)?;
        }
        if hierarchy.has("pids") {
            set(&folder.join("pids.max"), &or_max(cgroup.pids))?;
        }
        if hierarchy.has("hugetlb") {
            set_huge_pages(&folder, &cgroup.huge_pages, false)?;
        }
        if all.are_enforced()
            && let Err(error) = limit_all(hierarchy, all)
        {
            tracing::debug!(?error, "the limits of all pods cannot be set now");
        }
    }
    Ok(())
}

pub(super) fn limit_pods(hierarchies: &[Hierarchy], limits: &PodsLimits) -> Result<(), CgroupError> {
    some(hierarchies)?;
    for hierarchy in hierarchies {
        let folder = hierarchy.root.join(PODS);
        if limits.are_enforced() {
            make(&folder)?;
            if hierarchy.has("cpuset") {
                inherit(&hierarchy.root, &folder)?;
            }
        }
        if hierarchy.has("cpu") {
            set(&folder.join("cpu.shares"), &limits.cpu_shares.to_string())?;
        }
        limit_all(hierarchy, limits)?;
        if limits.are_enforced() {
            for class in CLASSES.map(|class| folder.join(class)) {
                make(&class)?;
                if hierarchy.has("cpuset") {
                    inherit(&folder, &class)?;
                }
            }
            set(&folder.join(BEST_EFFORT).join("cpu.shares"), &BEST_EFFORT_SHARES.to_string())?;
        }
    }
    Ok(())
}

fn limit_all(hierarchy: &Hierarchy, limits: &PodsLimits) -> Result<(), CgroupError> {
    let folder = hierarchy.root.join(PODS);
    if hierarchy.has("memory") {
        set_memory(&folder.join("memory.limit_in_bytes"), limits.memory)?;
    }
    match hierarchy.has("pids") {
        true => set(&folder.join("pids.max"), &or_max(limits.pids)),
        false => Ok(()),
    }
}

/// A new cpuset is empty and takes no process before it has CPUs and memory nodes.
fn inherit(parent: &Path, folder: &Path) -> Result<(), CgroupError> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let own = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        if own.trim().is_empty() {
            let file = parent.join(name);
            let theirs = std::fs::read_to_string(&file).map_err(|error| CgroupError::io(&file, error))?;
            set(&folder.join(name), theirs.trim())?;
        }
    }
    Ok(())
}

/// A cgroup that has a quota keeps its period, and gets the quota for that one: the kernel refuses a pod's cgroup that
/// for a moment, or by what was rounded, has less than a container in it.
fn set_quota(folder: &Path, quota: Option<i64>, period: i64) -> Result<(), CgroupError> {
    let [quota_file, period_file] = ["cpu.cfs_quota_us", "cpu.cfs_period_us"].map(|name| folder.join(name));
    let Some(quota) = quota else { return set(&quota_file, "-1") };
    let read = |file: &Path| std::fs::read_to_string(file).ok()?.trim().parse::<i64>().ok().filter(|found| *found > 0);
    let former = read(&quota_file).and_then(|_| read(&period_file)).filter(|former| *former != period);
    let quota = match former {
        Some(former) => (quota.saturating_add(1).saturating_mul(former) / period.max(1)).saturating_add(1),
        None => {
            set(&period_file, &period.to_string())?;
            quota
        }
    };
    set(&quota_file, &quota.to_string())
}

/// -1 reads back as a huge number, so it is written only where there is a limit.
fn set_memory(file: &Path, limit: Option<i64>) -> Result<(), CgroupError> {
    let found = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u64>().ok());
    match limit {
        // The kernel keeps whole pages.
        Some(limit) if found.is_some_and(|found| found / PAGE == limit.unsigned_abs() / PAGE) => Ok(()),
        Some(limit) => set(file, &limit.to_string()),
        None if found.is_some_and(|found| found < i64::MAX as u64 / 2) => set(file, "-1"),
        None => Ok(()),
    }
}
