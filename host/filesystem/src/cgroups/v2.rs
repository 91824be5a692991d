//! Pods' cgroups on the unified hierarchy of cgroup v2.

use std::path::{Path, PathBuf};

use longshore_core::cgroup::PodCgroup;

use super::{CgroupError, PERIOD, class_shares, make, node_shares, set, weight};

/// Controllers that pods' cgroups get, where the kernel and the cgroups above have them.
const CONTROLLERS: [&str; 6] = ["cpu", "memory", "pids", "cpuset", "io", "hugetlb"];

pub(super) fn prepare(root: &Path, cgroup: &PodCgroup) -> Result<(), CgroupError> {
    if !root.join("cgroup.controllers").exists() {
        return Err(CgroupError::NotAllowed(format!("{} is no cgroup v2", root.display())));
    }
    let mut folder: PathBuf = root.to_owned();
    for name in cgroup.names() {
        // Top down: a cgroup can hand on only what it was given.
        enable(&folder)?;
        folder.push(name);
        make(&folder)?;
    }
    set(&folder.join("cpu.weight"), &weight(cgroup.cpu_shares).to_string())?;
    let quota = cgroup.cpu_quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
    set(&folder.join("cpu.max"), &format!("{quota} {PERIOD}"))?;
    let limit = |limit: Option<i64>| limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string());
    set(&folder.join("memory.max"), &limit(cgroup.memory))?;
    set(&folder.join("pids.max"), &limit(cgroup.pids))?;
    set(&root.join("kubepods/cpu.weight"), &weight(node_shares()).to_string())?;
    let class = folder.parent().unwrap_or(root);
    match class_shares(class, cgroup.qos, true) {
        Some(shares) => set(&class.join("cpu.weight"), &weight(shares).to_string()),
        None => Ok(()),
    }
}

/// Hands each controller on by itself: one that is refused must not take the others with it.
fn enable(folder: &Path) -> Result<(), CgroupError> {
    let file = folder.join("cgroup.controllers");
    let there = std::fs::read_to_string(&file).map_err(|error| CgroupError::io(&file, error))?;
    let control = folder.join("cgroup.subtree_control");
    let enabled = std::fs::read_to_string(&control).unwrap_or_default();
    for controller in CONTROLLERS {
        let has = |list: &str| list.split_whitespace().any(|found| found == controller);
        if has(&there) && !has(&enabled) {
            match set(&control, &format!("+{controller}")) {
                // A cgroup that holds processes, or real-time threads, hands nothing on. Limits are lost, pods are not.
                Err(CgroupError::Failed(error)) => {
                    tracing::debug!(%error, controller, "a cgroup controller is not to be had")
                }
                other => other?,
            }
        }
    }
    Ok(())
}
