//! Pods' cgroups on the unified hierarchy of cgroup v2.

use std::path::{Path, PathBuf};

use longshore_core::cgroup::{PodCgroup, PodsLimits};

use super::{
    BEST_EFFORT, BEST_EFFORT_SHARES, CLASSES, CgroupError, PODS, class_shares, make, or_max, set, set_huge_pages,
    weight,
};

/// The unit in bytes that the kernel keeps limits of memory in.
const PAGE: i64 = 4096;

/// Controllers that pods' cgroups get, where the kernel and the cgroups above have them.
const CONTROLLERS: [&str; 6] = ["cpu", "memory", "pids", "cpuset", "io", "hugetlb"];

fn is_v2(root: &Path) -> Result<(), CgroupError> {
    match root.join("cgroup.controllers").exists() {
        true => Ok(()),
        false => Err(CgroupError::NotAllowed(format!("{} is not a cgroup v2 hierarchy", root.display()))),
    }
}

/// The pod's cgroup. The limits of all pods are kept up, in case somebody else changed them.
pub(super) fn prepare(root: &Path, cgroup: &PodCgroup, all: &PodsLimits) -> Result<(), CgroupError> {
    is_v2(root)?;
    let mut folder: PathBuf = root.to_owned();
    for name in cgroup.names() {
        // Top down: a cgroup can hand on only what it was given.
        enable(&folder)?;
        folder.push(name);
        make(&folder)?;
    }
    set(&folder.join("cpu.weight"), &weight(cgroup.cpu_shares).to_string())?;
    set(&folder.join("cpu.max"), &format!("{} {}", or_max(cgroup.cpu_quota), cgroup.cpu_period))?;
    set(&folder.join("memory.max"), &or_max(cgroup.memory))?;
    // As the kubelet's NoSwap: also for those whose containers have no limit, which Docker leaves all of it.
    set(&folder.join("memory.swap.max"), "0")?;
    set(&folder.join("pids.max"), &or_max(cgroup.pids))?;
    set_huge_pages(&folder, &cgroup.huge_pages, true)?;
    match all.are_enforced() {
        true => limit_all(root, all)?,
        false => set(&root.join(PODS).join("cpu.weight"), &weight(all.cpu_shares).to_string())?,
    }
    let class = folder.parent().unwrap_or(root);
    match class_shares(class, cgroup.qos, true) {
        Some(shares) => set(&class.join("cpu.weight"), &weight(shares).to_string()),
        None => Ok(()),
    }
}

pub(super) fn limit_pods(root: &Path, limits: &PodsLimits) -> Result<(), CgroupError> {
    is_v2(root)?;
    if !limits.are_enforced() {
        return limit_all(root, limits);
    }
    let folder = root.join(PODS);
    enable(root)?;
    make(&folder)?;
    limit_all(root, limits)?;
    enable(&folder)?;
    CLASSES.iter().try_for_each(|class| make(&folder.join(class)))?;
    set(&folder.join(BEST_EFFORT).join("cpu.weight"), &weight(BEST_EFFORT_SHARES).to_string())
}

fn limit_all(root: &Path, limits: &PodsLimits) -> Result<(), CgroupError> {
    let folder = root.join(PODS);
    set(&folder.join("cpu.weight"), &weight(limits.cpu_shares).to_string())?;
    let page = |limit: i64| limit - limit.rem_euclid(PAGE);
    set(&folder.join("memory.max"), &or_max(limits.memory.map(page)))?;
    set(&folder.join("pids.max"), &or_max(limits.pids))
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
