//! The machine as a whole: its root cgroup, `/proc`, boot time, interfaces.
//!
//! Reads block. Where a root cgroup keeps no numbers (v2, or a kernel without the memory controller) `/proc` has them.

use std::path::Path;

use jiff::Timestamp;
use longshore_core::ports::stats::{FileSystem, Interface, NodeUsage, Usage};

use crate::cgroups::{Cgroups, text};
use crate::parse;

/// Ticks of `/proc/stat` a second: USER_HZ, which is 100 on every architecture that Docker runs on.
const TICKS: u64 = 100;

/// The machine, file systems and rates aside.
pub(crate) fn node(cgroups: &Cgroups, proc: &Path) -> NodeUsage {
    let stat = text(&proc.join("stat")).unwrap_or_default();
    let info = text(&proc.join("meminfo")).unwrap_or_default();
    let mut usage = cgroups.usage("/", false);
    usage.cpu_nanoseconds = usage
        .cpu_nanoseconds
        .or_else(|| parse::busy_ticks(&stat).map(|ticks| ticks.saturating_mul(1_000_000_000 / TICKS)));
    let capacity = memory(&mut usage, &info);
    // As `adjustForHugePages` of the kubelet 1.37: what is kept as huge pages can be nothing else.
    let [huge_pages] = parse::meminfo(&info, ["Hugetlb"]);
    let [booted] = parse::keyed(&stat, ["btime"]);
    NodeUsage {
        memory_available: capacity
            .zip(usage.memory_working_set)
            .map(|(capacity, used)| capacity.saturating_sub(used).saturating_sub(huge_pages.unwrap_or_default())),
        memory_capacity: capacity,
        started: booted.and_then(|seconds| Timestamp::from_second(i64::try_from(seconds).ok()?).ok()),
        processes: processes(proc),
        interfaces: interfaces(proc),
        pods: cgroups.usage(cgroups.pods(), false),
        usage,
        ..NodeUsage::default()
    }
}

/// Fills in what the root cgroup does not say, by the same formula (anonymous and file pages); the machine's memory.
fn memory(usage: &mut Usage, info: &str) -> Option<u64> {
    let names = ["AnonPages", "Cached", "Buffers", "SwapCached", "Inactive(file)"];
    let [anon, cached, buffers, swap_cached, inactive] = parse::meminfo(info, names);
    if usage.memory_usage.is_none() {
        let file = cached.map(|cached| [buffers, swap_cached].into_iter().flatten().fold(cached, u64::saturating_add));
        usage.memory_usage = anon.zip(file).map(|(anon, file)| anon.saturating_add(file));
        usage.memory_working_set = usage.memory_usage.map(|used| used.saturating_sub(inactive.unwrap_or_default()));
        usage.memory_rss = anon;
    }
    let [capacity, swap, swap_free] = parse::meminfo(info, ["MemTotal", "SwapTotal", "SwapFree"]);
    usage.swap = usage.swap.or_else(|| swap.zip(swap_free).map(|(all, free)| all.saturating_sub(free)));
    // The machine's limit is its memory.
    usage.memory_limit = None;
    capacity
}

/// As `pkg/kubelet/stats/pidlimit/pidlimit_linux.go`: tasks that may be, and those that are.
fn processes(proc: &Path) -> Option<(u64, u64)> {
    let limits = ["sys/kernel/pid_max", "sys/kernel/threads-max"];
    let most = limits.iter().filter_map(|file| parse::number(&text(&proc.join(file))?)).min()?;
    Some((most, parse::tasks(&text(&proc.join("loadavg"))?)?))
}

fn interfaces(proc: &Path) -> Vec<Interface> {
    let read = |file: &str| text(&proc.join("net").join(file)).unwrap_or_default();
    let (v4, v6) = (read("route"), read("ipv6_route"));
    let first = parse::default_route(&v4).or_else(|| parse::default_route_v6(&v6));
    parse::interfaces(&read("dev"), first.unwrap_or_default())
}

/// The interfaces of a process' network namespace, `eth0` first.
pub(crate) fn interfaces_of(proc: &Path, process: u32) -> Vec<Interface> {
    let dev = text(&proc.join(process.to_string()).join("net/dev"));
    dev.map(|dev| parse::interfaces(&dev, "eth0")).unwrap_or_default()
}

/// The file system that a folder is on (`statfs(2)`, as cAdvisor's `getVfsStats`).
pub(crate) fn file_system(folder: &Path) -> rustix::io::Result<FileSystem> {
    let found = rustix::fs::statvfs(folder)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(FileSystem {
        capacity: bytes(found.f_blocks),
        available: bytes(found.f_bavail),
        used: bytes(found.f_blocks.saturating_sub(found.f_bfree)),
        inodes: found.f_files,
        inodes_free: found.f_ffree,
    })
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
