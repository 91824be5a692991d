//! Pods' cgroups on the hierarchies of cgroup v1, one folder in each.

use std::path::{Path, PathBuf};

use longshore_core::cgroup::PodCgroup;
use longshore_core::ports::files::FilesError;

use super::{CgroupError, PERIOD, class_shares, make, mounted, node_shares, set};

/// Controllers in whose hierarchies pods get a cgroup; `name=systemd` too, for runc makes containers there.
const CONTROLLERS: [&str; 10] =
    ["cpu", "memory", "pids", "cpuacct", "cpuset", "blkio", "devices", "freezer", "hugetlb", "name=systemd"];

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

/// All hierarchies that pods belong to. `cpu,cpuacct` is one when mounted together.
pub(super) fn hierarchies() -> Result<Vec<Hierarchy>, FilesError> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for mount in mounted("cgroup")? {
        let controllers: Vec<String> =
            mount.options.split(',').filter(|option| CONTROLLERS.contains(option)).map(str::to_owned).collect();
        // A hierarchy that is mounted twice is one all the same.
        if !controllers.is_empty() && !found.iter().any(|known| known.controllers == controllers) {
            found.push(Hierarchy { root: mount.point, controllers });
        }
    }
    Ok(found)
}

pub(super) fn prepare(hierarchies: &[Hierarchy], cgroup: &PodCgroup) -> Result<(), CgroupError> {
    if hierarchies.is_empty() {
        return Err(CgroupError::NotAllowed("no hierarchy of cgroup v1 is mounted".to_owned()));
    }
    for hierarchy in hierarchies {
        let mut folder = hierarchy.root.clone();
        for name in cgroup.names() {
            let parent = folder.clone();
            folder.push(name);
            make(&folder)?;
            if hierarchy.has("cpuset") {
                inherit(&parent, &folder)?;
            }
        }
        if hierarchy.has("cpu") {
            set(&folder.join("cpu.shares"), &cgroup.cpu_shares.max(2).to_string())?;
            set(&folder.join("cpu.cfs_period_us"), &PERIOD.to_string())?;
            set(&folder.join("cpu.cfs_quota_us"), &cgroup.cpu_quota.unwrap_or(-1).to_string())?;
            set(&hierarchy.root.join("kubepods/cpu.shares"), &node_shares().to_string())?;
            let class = folder.parent().unwrap_or(&hierarchy.root);
            if let Some(shares) = class_shares(class, cgroup.qos, false) {
                set(&class.join("cpu.shares"), &shares.to_string())?;
            }
        }
        if hierarchy.has("memory") {
            set_memory(&folder.join("memory.limit_in_bytes"), cgroup.memory)?;
        }
        if hierarchy.has("pids") {
            let limit = cgroup.pids.map_or_else(|| "max".to_owned(), |pids| pids.to_string());
            set(&folder.join("pids.max"), &limit)?;
        }
    }
    Ok(())
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

/// -1 reads back as a huge number, so it is written only where there is a limit.
fn set_memory(file: &Path, limit: Option<i64>) -> Result<(), CgroupError> {
    let found = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u64>().ok());
    match limit {
        Some(limit) => set(file, &limit.to_string()),
        None if found.is_some_and(|found| found < i64::MAX as u64 / 2) => set(file, "-1"),
        None => Ok(()),
    }
}
