//! Pods' slices under systemd.
//!
//! systemd owns its cgroups, so it is asked: `systemctl set-property --runtime` keeps the limits as a drop-in under
//! `/run` (a slice needs no unit file) and applies them at once where the slice runs; `systemctl start` makes the
//! cgroup, so that the limits hold before Docker puts the first container in. Two short processes a pod, each with a time
//! limit; a hand-written D-Bus client would save some milliseconds and be much more to trust.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use longshore_core::cgroup::{PodCgroup, PodsLimits};
use longshore_core::ports::files::FilesError;
use longshore_core::resources::QUOTA_PERIOD;

use super::{BEST_EFFORT, BEST_EFFORT_SHARES, CLASSES, CgroupError, PODS, class_shares, weight};

/// How long systemd may take for one request.
const LIMIT: Duration = Duration::from_secs(15);
/// Where `set-property --runtime` keeps drop-ins, in the systemd versions in use.
const DROP_INS: &str = "/run/systemd/system.control";

/// `folder` is where the CPU controller will keep the pod's slice.
pub(super) fn prepare(folder: &Path, cgroup: &PodCgroup, all: &PodsLimits, v2: bool) -> Result<(), CgroupError> {
    let slice = cgroup.systemd_slice();
    set_property(&slice, properties(cgroup, v2))?;
    systemctl(&["start".to_owned(), slice])?;
    // Those above, where they differ: seldom for `kubepods`, and for a class when a pod with a request comes.
    let Some(class) = folder.parent() else { return Ok(()) };
    set_shares(class, class_shares(class, cgroup.qos, v2), v2)?;
    let node = class.ancestors().find(|above| above.ends_with("kubepods.slice"));
    node.map_or(Ok(()), |node| set_shares(node, Some(all.cpu_shares), v2))
}

/// `folder` is where the CPU controller keeps the slice of all pods.
pub(super) fn limit_pods(folder: &Path, limits: &PodsLimits, v2: bool) -> Result<(), CgroupError> {
    if !limits.are_enforced() && !folder.exists() {
        return Ok(());
    }
    let slice = format!("{PODS}.slice");
    let memory = if v2 { "MemoryMax" } else { "MemoryLimit" };
    let properties = vec![
        share(limits.cpu_shares, v2),
        format!("{memory}={}", or_infinity(limits.memory)),
        format!("TasksMax={}", or_infinity(limits.pids)),
    ];
    set_property(&slice, properties)?;
    if !limits.are_enforced() {
        return Ok(());
    }
    let class = |name: &str| format!("{PODS}-{name}.slice");
    let mut start = vec!["start".to_owned(), slice];
    start.extend(CLASSES.map(class));
    systemctl(&start)?;
    set_shares(&folder.join(class(BEST_EFFORT)), Some(BEST_EFFORT_SHARES), v2)
}

fn or_infinity(limit: Option<i64>) -> String {
    limit.map_or_else(|| "infinity".to_owned(), |limit| limit.to_string())
}

fn set_shares(folder: &Path, shares: Option<i64>, v2: bool) -> Result<(), CgroupError> {
    let (Some(shares), Some(slice)) = (shares, folder.file_name()) else { return Ok(()) };
    let (file, wanted) = if v2 { ("cpu.weight", weight(shares)) } else { ("cpu.shares", shares) };
    if std::fs::read_to_string(folder.join(file)).is_ok_and(|found| found.trim() == wanted.to_string()) {
        return Ok(());
    }
    set_property(&slice.to_string_lossy(), vec![share(shares, v2)])
}

fn set_property(slice: &str, properties: Vec<String>) -> Result<(), CgroupError> {
    let mut arguments = vec!["set-property".to_owned(), "--runtime".to_owned(), slice.to_owned()];
    arguments.extend(properties);
    systemctl(&arguments)
}

fn share(shares: i64, v2: bool) -> String {
    if v2 { format!("CPUWeight={}", weight(shares)) } else { format!("CPUShares={}", shares.clamp(2, 262_144)) }
}

/// Limits in systemd's words (systemd.resource-control(5)).
pub(super) fn properties(cgroup: &PodCgroup, v2: bool) -> Vec<String> {
    let memory = if v2 { "MemoryMax" } else { "MemoryLimit" };
    // Whole per cent, rounded up: older versions take no fractions, and containers have their own exact quotas.
    let percent =
        |quota: i64| quota.max(1).saturating_mul(100).saturating_add(cgroup.cpu_period - 1) / cgroup.cpu_period;
    let quota = cgroup.cpu_quota.map_or_else(String::new, |quota| format!("{}%", percent(quota)));
    let mut properties = vec![
        share(cgroup.cpu_shares, v2),
        format!("CPUQuota={quota}"),
        format!("{memory}={}", or_infinity(cgroup.memory)),
        format!("TasksMax={}", or_infinity(cgroup.pids)),
    ];
    if v2 {
        properties.push("MemorySwapMax=0".to_owned());
    }
    // Older versions than 242 do not know it.
    if cgroup.cpu_quota.is_some() && cgroup.cpu_period != QUOTA_PERIOD {
        properties.push(format!("CPUQuotaPeriodSec={}us", cgroup.cpu_period));
    }
    properties
}

pub(super) fn remove(cgroup: &PodCgroup, folders: &[PathBuf]) -> Result<(), CgroupError> {
    let slice = cgroup.systemd_slice();
    // Stopping a slice kills what is in it. Nothing may be.
    for folder in folders {
        if let Some(busy) = occupied(folder) {
            let message = format!("{} still has processes: the slice is stopped when they have ended", busy.display());
            return Err(CgroupError::Failed(FilesError::Io { path: folder.clone(), message }));
        }
    }
    if folders.iter().any(|folder| folder.exists()) {
        systemctl(&["stop".to_owned(), slice.clone()])?;
    }
    match std::fs::remove_dir_all(Path::new(DROP_INS).join(format!("{slice}.d"))) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(slice, %error, "cannot remove the limits of a slice that is gone");
        }
        _ => {}
    }
    Ok(())
}

/// A cgroup at or below this one in which processes are.
fn occupied(folder: &Path) -> Option<PathBuf> {
    if std::fs::read_to_string(folder.join("cgroup.procs")).is_ok_and(|text| !text.trim().is_empty()) {
        return Some(folder.to_owned());
    }
    let entries = std::fs::read_dir(folder).ok()?;
    let below = entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    below.map(|entry| entry.path()).find_map(|path| occupied(&path))
}

fn systemctl(arguments: &[String]) -> Result<(), CgroupError> {
    let program = Path::new("systemctl");
    let mut child = Command::new(program)
        .args(["--no-ask-password", "--no-pager", "--quiet"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => CgroupError::NotAllowed("there is no systemctl on this node".to_owned()),
            _ => CgroupError::io(program, error),
        })?;
    let started = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(_)) => break,
            Ok(None) if started.elapsed() < LIMIT => std::thread::sleep(Duration::from_millis(2)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(arguments, &format!("did not answer within {} s", LIMIT.as_secs())));
            }
            Err(error) => return Err(CgroupError::io(program, error)),
        }
    }
    let mut text = String::new();
    if let Some(stderr) = child.stderr.take() {
        use std::io::Read;
        let _ = stderr.take(4096).read_to_string(&mut text);
    }
    Err(failed(arguments, text.trim()))
}

fn failed(arguments: &[String], reason: &str) -> CgroupError {
    let message = format!("systemctl {} failed: {reason}", arguments.join(" "));
    CgroupError::Failed(FilesError::Io { path: PathBuf::from("systemd"), message })
}
