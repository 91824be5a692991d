//! Cgroups: where their controllers are mounted, and what a cgroup uses.
//!
//! Owns the files' names and places under v1, v2 and the hybrid layout, and where a container's cgroup lies below its
//! pod's. Reads block. As cAdvisor's `container/libcontainer/handler.go` and `opencontainers/cgroups`.

use std::fs::File;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;
use longshore_core::node::CgroupDriver;
use longshore_core::ports::stats::Usage;

use crate::parse;

/// A file of the kernel's is never longer than this, but for lists of processes, whose rest is not counted.
const LONGEST: u64 = 1 << 20;
/// Cgroups below one whose processes are counted.
const BELOW: usize = 512;

/// A controller's hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    V1(PathBuf),
    V2(PathBuf),
}

impl Place {
    fn root(&self) -> &Path {
        match self {
            Place::V1(root) | Place::V2(root) => root,
        }
    }
}

/// Where each controller is found.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    driver: CgroupDriver,
    cpu: Place,
    memory: Place,
    pids: Place,
}

impl Cgroups {
    /// `root` is where the hierarchies are mounted: `/sys/fs/cgroup`. Blocks.
    pub(crate) fn find(root: &Path, driver: CgroupDriver, v2: bool) -> Cgroups {
        let place = |names: &[&str], controller: &str| {
            if v2 {
                return Place::V2(root.to_owned());
            }
            let found = names.iter().map(|name| root.join(name)).find(|folder| folder.is_dir());
            // Beside v1 a controller may have been given to v2.
            let unified = root.join("unified");
            let given = text(&unified.join("cgroup.controllers"));
            let given = given.is_some_and(|list| list.split_whitespace().any(|one| one == controller));
            match found {
                None if given => Place::V2(unified),
                found => Place::V1(found.unwrap_or_else(|| root.join(names[0]))),
            }
        };
        Cgroups {
            driver,
            cpu: place(&["cpuacct", "cpu,cpuacct", "cpuacct,cpu"], "cpu"),
            memory: place(&["memory"], "memory"),
            pids: place(&["pids"], "pids"),
        }
    }

    /// The cgroup of all pods.
    pub(crate) fn pods(&self) -> &'static str {
        match self.driver {
            CgroupDriver::Cgroupfs => "/kubepods",
            CgroupDriver::Systemd => "/kubepods.slice",
        }
    }

    /// The cgroup of a container in its pod's; or, where pods have none of their own, where Docker puts it by itself.
    pub(crate) fn container(&self, pod: &str, id: &str) -> Option<String> {
        let scope = format!("docker-{id}.scope");
        let (own, default) = match self.driver {
            CgroupDriver::Cgroupfs => ([id, &scope], format!("/docker/{id}")),
            CgroupDriver::Systemd => ([scope.as_str(), id], format!("/system.slice/{scope}")),
        };
        let below = own.map(|name| format!("{}/{name}", pod.trim_end_matches('/')));
        below.into_iter().chain([default]).find(|path| self.exists(path))
    }

    /// Whether there is such a cgroup, other than the root.
    pub(crate) fn exists(&self, path: &str) -> bool {
        let there = |place: &Place| below(place.root(), path).is_some_and(|folder| folder.is_dir());
        !path.trim_matches('/').is_empty() && [&self.cpu, &self.memory, &self.pids].into_iter().any(there)
    }

    /// What a cgroup uses; processes are counted, in it and those below it, when `count` says so. The root of v2 keeps
    /// neither memory's use nor a number of tasks.
    pub(crate) fn usage(&self, path: &str, count: bool) -> Usage {
        let mut usage = Usage { at: Some(Timestamp::now()), ..Usage::default() };
        if let Some(folder) = below(self.cpu.root(), path) {
            usage.cpu_nanoseconds = match self.cpu {
                Place::V1(_) => value(&folder.join("cpuacct.usage"), parse::number),
                Place::V2(_) => text(&folder.join("cpu.stat"))
                    .and_then(|text| parse::keyed(&text, ["usage_usec"])[0])
                    .map(|microseconds| microseconds.saturating_mul(1000)),
            };
        }
        if let Some(folder) = below(self.memory.root(), path) {
            let v2 = matches!(self.memory, Place::V2(_));
            memory(&mut usage, &folder, v2);
            if folder != self.memory.root() && usage.memory_usage.is_some() {
                // A kernel that accounts no swap has neither file: none is used and none allowed, as cAdvisor has it.
                usage.swap = usage.swap.or(Some(0));
                let limit = if v2 { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
                usage.swap_limit = text(&folder.join(limit)).map_or(Some(0), |text| parse::limit(&text));
            }
        }
        if let Some(folder) = below(self.pids.root(), path) {
            usage.threads = value(&folder.join("pids.current"), parse::number);
            if count && folder.is_dir() {
                usage.processes = Some(processes(folder));
            }
        }
        usage
    }
}

/// As `setMemoryStats` of cAdvisor.
fn memory(usage: &mut Usage, folder: &Path, v2: bool) {
    let stat = text(&folder.join("memory.stat")).unwrap_or_default();
    let (inactive, file);
    if v2 {
        let [anon, cache, idle, faults, major] =
            parse::keyed(&stat, ["anon", "file", "inactive_file", "pgfault", "pgmajfault"]);
        (usage.memory_rss, file, inactive) = (anon, cache, idle);
        usage.page_faults = faults.zip(major);
        usage.memory_usage = value(&folder.join("memory.current"), parse::number);
        usage.memory_limit = value(&folder.join("memory.max"), parse::limit);
        usage.swap = value(&folder.join("memory.swap.current"), parse::number);
    } else {
        let keys =
            ["total_rss", "total_cache", "total_inactive_file", "total_pgfault", "total_pgmajfault", "total_swap"];
        let [rss, cache, idle, faults, major, swap] = parse::keyed(&stat, keys);
        (usage.memory_rss, file, inactive) = (rss, cache, idle);
        usage.page_faults = faults.zip(major);
        usage.memory_usage = value(&folder.join("memory.usage_in_bytes"), parse::number);
        usage.memory_limit = value(&folder.join("memory.limit_in_bytes"), parse::limit);
        usage.swap = swap;
    }
    // The root of v2 has no `memory.current`: what v1 counts there is anonymous and file pages (`rootStatsFromMeminfo`).
    let pages = usage.memory_rss.zip(file).map(|(anon, file)| anon.saturating_add(file));
    usage.memory_usage = usage.memory_usage.or(pages);
    usage.memory_working_set = usage.memory_usage.map(|used| used.saturating_sub(inactive.unwrap_or_default()));
}

/// Processes of a cgroup and those below it, as far as the bound goes.
fn processes(top: PathBuf) -> u64 {
    let (mut total, mut rest, mut seen) = (0_u64, vec![top], 0);
    while let Some(folder) = rest.pop() {
        total =
            total.saturating_add(value(&folder.join("cgroup.procs"), |text| Some(parse::processes(text))).unwrap_or(0));
        seen += 1;
        let entries = std::fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok);
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let room = BELOW.saturating_sub(seen + rest.len());
        rest.extend(folders.map(|entry| entry.path()).take(room));
    }
    total
}

/// A cgroup's folder; `None` for a path that would lead out of the hierarchy.
fn below(root: &Path, path: &str) -> Option<PathBuf> {
    let path = Path::new(path.trim_start_matches('/'));
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    inside.then(|| root.join(path))
}

fn value<T>(file: &Path, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
    text(file).and_then(|text| parse(&text))
}

/// The start of a file of the kernel's, as far as the bound goes.
pub(crate) fn text(file: &Path) -> Option<String> {
    let mut bytes = Vec::with_capacity(4096);
    File::open(file).ok()?.take(LONGEST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

#[cfg(test)]
#[path = "cgroups_tests.rs"]
mod tests;
