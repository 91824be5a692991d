//! What the kernel counts: the machine's CPU, a process's CPU and memory. Must not interpret it.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

/// Linux's `USER_HZ`: `/proc` counts in hundredths of a second on every architecture that we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time that the whole machine has spent on something, seconds.
///
/// # Errors
/// When `/proc/stat` cannot be read.
pub(super) fn busy() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let fields: Vec<f64> =
        stat.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|it| it.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let spent: f64 = fields.iter().take(8).enumerate().filter(|(at, _)| *at != 3 && *at != 4).map(|(_, it)| it).sum();
    Ok(spent / TICKS_PER_SECOND)
}

/// CPU time that process `pid` has spent, its ended children not included, seconds.
///
/// # Errors
/// When the process is gone.
pub(super) fn process_cpu(pid: i32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    let rest = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    let fields: Vec<&str> = rest.split(' ').collect();
    // Fields 14 and 15 of proc(5): utime and stime; `rest` begins with field 3.
    let ticks = |at: usize| fields.get(at - 3).and_then(|it| it.parse::<f64>().ok()).unwrap_or(0.0);
    Ok((ticks(14) + ticks(15)) / TICKS_PER_SECOND)
}

/// Resident memory of process `pid`, MiB.
///
/// # Errors
/// When the process is gone.
pub(super) fn resident(pid: i32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().nth(1).and_then(|it| it.parse().ok()).context("VmRSS")?;
    Ok(kib / 1024.0)
}

/// How many cores are busy with others' work, measured over a second while we do nothing.
///
/// # Errors
/// When `/proc/stat` cannot be read.
pub(super) fn noise() -> Result<f64> {
    let before = busy()?;
    std::thread::sleep(Duration::from_secs(1));
    Ok(busy()? - before)
}

/// The processor's name and the kernel, for the JSON.
pub(super) fn describe() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!("{cores} × {}, Linux {}", model.trim_start_matches([' ', '\t', ':']), kernel.trim())
}
