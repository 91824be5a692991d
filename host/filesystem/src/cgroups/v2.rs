//! Pods' cgroups on the unified hierarchy of cgroup v2.

use std::path::{Path, PathBuf};

use longshore_core::cgroup::{PodCgroup, Qos};

use super::{CgroupError, PERIOD, class_shares, make, set, weight};

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
    set_class(&folder, cgroup.qos)
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
            set(&control, &format!("+{controller}"))?;
        }
    }
    Ok(())
}

fn set_class(pod: &Path, qos: Qos) -> Result<(), CgroupError> {
    let Some(class) = pod.parent() else { return Ok(()) };
    let weight = match qos {
        Qos::Guaranteed => return Ok(()),
        Qos::BestEffort => 1,
        Qos::Burstable => {
            let pods = std::fs::read_dir(class).map_err(|error| CgroupError::io(class, error))?;
            let files = pods.filter_map(Result::ok).map(|entry| entry.path().join("cpu.weight"));
            let weights = files.filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse::<i64>().ok());
            weight(class_shares(weights.map(|weight| 2 + (weight.clamp(1, 10_000) - 1) * 262_142 / 9999)))
        }
    };
    set(&class.join("cpu.weight"), &weight.to_string())
}
