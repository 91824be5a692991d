//! What the agent knows of its node: gathered once, when the container runtime first answers.
//!
//! Reads the machine; decides only whether the agent may run here at all (swap, cgroup v1).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, bail};
use longshore_core::evict::Signal;
use longshore_core::node::{CgroupDriver, NodeFacts};
use longshore_core::ports::runtime::RuntimeInfo;

use crate::config::{Config, Findings};
use crate::network;

/// The resolver configuration of a node, where nothing else is said.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved keeps the servers behind its stub: the stub's address means nothing inside a pod.
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// Name of the node: `--hostname-override`, else the host name in lower case.
pub(crate) fn node_name(config: &Config) -> anyhow::Result<String> {
    let own = || rustix::system::uname().nodename().to_string_lossy().trim().to_lowercase();
    let name = config.node_name.clone().unwrap_or_else(own);
    if name.is_empty() {
        bail!("this machine has no host name; give the node one with --hostname-override");
    }
    Ok(name)
}

/// What `failSwapOn` and `failCgroupV1` are about. The kubelet refuses both unless told otherwise; here only an explicit
/// true refuses, since most machines with Docker have one or the other.
pub(crate) fn check_node(config: &Config) -> Findings {
    let swap = std::fs::read_to_string("/proc/swaps").unwrap_or_default().lines().count() > 1;
    judge(config, swap, is_cgroup_v2())
}

fn judge(config: &Config, swap: bool, cgroup_v2: bool) -> Findings {
    let mut findings = Findings::default();
    match (swap, config.fail_swap_on) {
        (true, Some(true)) => {
            findings.problem("fail-swap-on", "is true, and swap is on: turn swap off, or set it to false");
        }
        (true, None) => {
            findings
                .warnings
                .push("swap is on; pods get none of it (set fail-swap-on to say what you want)".to_owned());
        }
        _ => {}
    }
    match (cgroup_v2, config.fail_cgroup_v1) {
        (false, Some(true)) => {
            let message = "is true, and this machine uses cgroup v1: boot it with cgroup v2, or set it to false";
            findings.problem("fail-cgroupv1", message);
        }
        (false, None) => {
            let message = "this machine uses cgroup v1, which Kubernetes no longer maintains (set fail-cgroupv1 to say \
                           what you want)";
            findings.warnings.push(message.to_owned());
        }
        _ => {}
    }
    findings
}

fn is_cgroup_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// All facts of the node.
pub(crate) fn gather(config: &Config, info: &RuntimeInfo, root_id: &str) -> anyhow::Result<NodeFacts> {
    let name = node_name(config)?;
    let ips: Vec<IpAddr> = match config.node_ips.is_empty() {
        true => network::addresses(),
        false => config.node_ips.clone(),
    };
    let memory = memory_capacity().unwrap_or(info.memory);
    let disk = disk_capacity(&config.root_dir)?;
    let cpus = i64::from(info.cpus.max(1)).saturating_mul(1000);
    // In a cluster the scheduler is told of what remains above the hard eviction thresholds, as the kubelet has it.
    let kept = |signal, capacity| match config.joining.in_cluster() {
        true => config.eviction.hard_reserve(signal, capacity),
        false => 0,
    };
    let memory_reserve = config.reserved.memory.saturating_add(kept(Signal::MemoryAvailable, memory));
    let disk_reserve = config.reserved.ephemeral_storage.saturating_add(kept(Signal::NodeFsAvailable, disk));
    let pods_may_use = |capacity: i64, reserved: i64, what: &str| {
        if reserved >= capacity {
            bail!("the reserved {what} ({reserved}) leaves nothing of the machine's ({capacity}) to pods");
        }
        Ok(capacity - reserved)
    };
    let labels = [
        ("kubernetes.io/hostname", name.clone()),
        ("kubernetes.io/os", "linux".to_owned()),
        ("kubernetes.io/arch", architecture().to_owned()),
        ("beta.kubernetes.io/os", "linux".to_owned()),
        ("beta.kubernetes.io/arch", architecture().to_owned()),
    ];
    let mut labels: BTreeMap<String, String> = labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    labels.extend(config.joining.labels.clone());
    Ok(NodeFacts {
        root_id: root_id.to_owned(),
        ips,
        allocatable_milli_cpu: pods_may_use(cpus, config.reserved.milli_cpu, "CPU (in m)")?,
        allocatable_memory: pods_may_use(memory, memory_reserve, "memory (in bytes)")?,
        allocatable_ephemeral_storage: pods_may_use(disk, disk_reserve, "disk (in bytes)")?,
        memory_capacity: memory,
        max_pods: max_pods(config, info.cpus),
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        resolv_conf: resolv_conf(config)?,
        hosts_file: std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
        labels,
        cgroup_driver: info.cgroup_driver,
        cgroup_v2: info.cgroup_v2,
        min_oom_score_adj: info.min_oom_score_adj,
        apparmor: info.apparmor,
        runtimes: info.runtimes.clone(),
        seccomp_root: config.root_dir.join("seccomp").display().to_string(),
        allowed_unsafe_sysctls: config.allowed_unsafe_sysctls.clone(),
        seccomp_default: config.seccomp_default,
        name,
    })
}

/// `maxPods`, and with `podsPerCore` no more than so many a core.
fn max_pods(config: &Config, cpus: u32) -> u32 {
    match config.resources.pods_per_core {
        0 => config.max_pods,
        each => config.max_pods.min(each.saturating_mul(cpus.max(1))),
    }
}

/// Facts without asking the container runtime, whose answer may cost it a container: good enough for `longshore plan`,
/// which makes nothing.
pub(crate) fn estimate(config: &Config, name: String) -> anyhow::Result<NodeFacts> {
    let info = RuntimeInfo {
        version: String::new(),
        api_version: String::new(),
        cgroup_driver: CgroupDriver::Cgroupfs,
        cgroup_v2: is_cgroup_v2(),
        apparmor: std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|text| text.starts_with('Y')),
        runtimes: vec!["runc".to_owned()],
        min_oom_score_adj: -1000,
        cpus: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32),
        memory: 0,
        data_root: None,
    };
    // The agent's folder may not exist yet; its parent's disk is the one that it would lie on.
    let existing = config.root_dir.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let config = Config { root_dir: existing.to_owned(), node_name: Some(name), ..config.clone() };
    gather(&config, &info, "")
}

/// The architecture as Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Memory of the machine in bytes.
fn memory_capacity() -> Option<i64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    mem_total(&text)
}

fn mem_total(meminfo: &str) -> Option<i64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Size in bytes of the file system that the folder lies on.
pub(crate) fn disk_capacity(folder: &Path) -> anyhow::Result<i64> {
    let stat = rustix::fs::statvfs(folder).with_context(|| format!("the size of {}'s disk", folder.display()))?;
    Ok(i64::try_from(stat.f_blocks.saturating_mul(stat.f_frsize)).unwrap_or(i64::MAX))
}

/// The node's resolver configuration, as text.
fn resolv_conf(config: &Config) -> anyhow::Result<String> {
    match &config.resolv_conf {
        Some(path) if path.as_os_str().is_empty() => Ok(String::new()),
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("--resolv-conf {} cannot be read", path.display()))
        }
        None => {
            let own = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
            if is_stub(&own)
                && let Ok(real) = std::fs::read_to_string(RESOLVED_CONF)
            {
                tracing::info!("{RESOLV_CONF} names a local stub; pods get the servers of {RESOLVED_CONF}");
                return Ok(real);
            }
            Ok(own)
        }
    }
}

/// Whether every server is systemd-resolved's stub.
fn is_stub(resolv_conf: &str) -> bool {
    let servers = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let mut servers = servers.map(str::trim).peekable();
    servers.peek().is_some() && servers.all(|server| matches!(server, "127.0.0.53" | "127.0.0.54"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_explicit_true_refuses() {
        let config = |value| {
            let (config, _) = Config::build(&Default::default(), Default::default(), &Default::default());
            Config { fail_swap_on: value, fail_cgroup_v1: value, ..config }
        };
        assert_eq!(judge(&config(Some(true)), true, false).problems.len(), 2);
        assert_eq!(judge(&config(Some(true)), false, true), Findings::default());
        assert_eq!(judge(&config(None), true, false).warnings.len(), 2);
        assert_eq!(judge(&config(Some(false)), true, false), Findings::default());
    }

    #[test]
    fn stubs() {
        assert!(is_stub("nameserver 127.0.0.53\noptions edns0\n"));
        assert!(!is_stub("nameserver 127.0.0.53\nnameserver 1.1.1.1\n"));
        assert!(!is_stub("# nothing\n"));
    }

    #[test]
    fn memory() {
        assert_eq!(mem_total("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16_777_216));
        assert_eq!(mem_total("MemTotal: lots\n"), None);
    }
}
