//! What the agent knows of its node: gathered once, when the container runtime first answers.
//!
//! Reads the machine; decides only whether the agent may run here at all (swap, cgroup v1).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Once;

use anyhow::{Context, bail};
use longshore_core::dns;
use longshore_core::evict::Signal;
use longshore_core::huge_pages;
use longshore_core::node::{CgroupDriver, NodeFacts, Surroundings};
use longshore_core::ports::runtime::RuntimeInfo;
use longshore_core::resources::{self, QUOTA_PERIOD};

use crate::config::{Config, Findings, Problem};
use crate::{network, pod_network};

/// The resolver configuration of a node, where nothing else is said.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved keeps the servers behind its stub: the stub's address means nothing inside a pod.
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// What pods will miss on this machine, for its events: reasons and messages.
pub(crate) fn shortcomings(config: &Config, facts: &NodeFacts, info: &RuntimeInfo) -> Vec<(&'static str, String)> {
    let relabelling = info.selinux.then(|| {
        let (found, advice) = unlabelled(&config.root_dir);
        format!("{found}; {advice}")
    });
    let names = config.resolv_conf.as_deref().unwrap_or(Path::new(RESOLV_CONF));
    let told = [
        ("OOMScoreAdjLimited", resources::limited_oom_scores(facts)),
        ("VolumesNotRelabelled", relabelling),
        ("CheckLimitsForResolvConf", dns::exceeds_limits(facts, &names.to_string_lossy())),
    ];
    told.into_iter().filter_map(|(reason, message)| Some((reason, message?))).collect()
}

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
/// true refuses, since most machines with Docker have one or the other. And a network that is there and not used.
pub(crate) fn check_node(config: &Config) -> Findings {
    let swap = std::fs::read_to_string("/proc/swaps").unwrap_or_default().lines().count() > 1;
    let mut findings = judge(config, swap, is_cgroup_v2());
    findings.warnings.extend(pod_network::overlooked(config));
    findings
}

fn judge(config: &Config, swap: bool, cgroup_v2: bool) -> Findings {
    let mut findings = Findings::default();
    match (swap, config.fail_swap_on) {
        (true, Some(true)) => {
            findings.problem("fail-swap-on", "is true, and swap is on: turn swap off, or set it to false");
        }
        (true, None) => {
            // Without a limit, cgroup v1 has nothing that keeps a pod from it; the kubelet leaves it so, too.
            let who = if cgroup_v2 { "pods get none of it" } else { "pods without a limit of memory may use it" };
            findings.warnings.push(format!("swap is on; {who} (set fail-swap-on to false to silence this)"));
        }
        _ => {}
    }
    match (cgroup_v2, config.fail_cgroup_v1) {
        (false, Some(true)) => {
            let message = "is true, and this machine uses cgroup v1: boot it with cgroup v2, or set it to false";
            findings.problem("fail-cgroupv1", message);
        }
        (false, None) => {
            let message = "this machine uses cgroup v1, which Kubernetes no longer maintains (set fail-cgroupv1 to \
                           false to silence this)";
            findings.warnings.push(message.to_owned());
        }
        _ => {}
    }
    if !cgroup_v2 && config.single_process_oom_kill == Some(false) {
        let message = "is false, and cgroup v1 cannot end a container as a whole: leave it out, or set it to true";
        findings.problem("singleProcessOOMKill", message);
    }
    findings
}

fn is_cgroup_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// All facts of the node, for the agent that begins on it: the address that it tells a cluster is one to keep.
pub(crate) fn gather_at_start(config: &Config, info: &RuntimeInfo, root_id: &str) -> anyhow::Result<NodeFacts> {
    if config.joining.in_cluster() {
        network::wait_for_name(&node_name(config)?, &config.node_ips);
    }
    gather(config, info, root_id)
}

/// All facts of the node.
fn gather(config: &Config, info: &RuntimeInfo, root_id: &str) -> anyhow::Result<NodeFacts> {
    let name = node_name(config)?;
    let mut around = surroundings(config, &name);
    if around.ips.is_empty() {
        tracing::warn!("this machine has no address but loopback; give one with --node-ip if pods should see another");
        around.ips.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let memory = memory_capacity().unwrap_or(info.memory);
    let disk = disk_capacity(&config.root_dir)?;
    let cpus = i64::from(info.cpus.max(1)).saturating_mul(1000);
    // In a cluster the scheduler is told of what remains above the hard eviction thresholds, as the kubelet has it.
    let kept = |signal, capacity| match config.joining.in_cluster() {
        true => config.eviction.hard_reserve(signal, capacity),
        false => 0,
    };
    let huge_pages = kept_huge_pages(Path::new("/sys/kernel/mm/hugepages"));
    // What is kept as huge pages is nothing else's any more.
    let memory_configured = config.reserved.memory.saturating_add(kept(Signal::MemoryAvailable, memory));
    let memory_reserve = huge_pages.values().copied().fold(memory_configured, i64::saturating_add);
    let disk_reserve = config.reserved.ephemeral_storage.saturating_add(kept(Signal::NodeFsAvailable, disk));
    let pods_may_use = |capacity: i64, configured: i64, reserved: i64, what: &str| {
        if reserved < capacity {
            return Ok(capacity - reserved);
        }
        let message = format!("the reserved {what} ({reserved}) leaves nothing of the machine's ({capacity}) to pods");
        if configured < capacity {
            bail!(message);
        }
        // No other start finds more.
        Err(Problem { place: "systemReserved, kubeReserved, evictionHard".to_owned(), message }.into())
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
        ips: around.ips,
        allocatable_milli_cpu: pods_may_use(cpus, config.reserved.milli_cpu, config.reserved.milli_cpu, "CPU (in m)")?,
        allocatable_memory: pods_may_use(memory, memory_configured, memory_reserve, "memory (in bytes)")?,
        allocatable_ephemeral_storage: match config.resources.local_storage {
            // Another disk may be mounted there yet.
            true => Some(pods_may_use(disk, 0, disk_reserve, "disk (in bytes)")?),
            false => None,
        },
        memory_capacity: memory,
        huge_pages,
        max_pods: max_pods(config, info.cpus),
        pod_pids_limit: config.resources.pod_pids_limit,
        cpu_quota_period: config.resources.cpu_cfs_quota.then(|| quota_period(config)),
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        // One that somebody named must be there at the start.
        resolv_conf: resolv_conf(config)?,
        hosts_file: around.hosts_file.unwrap_or_default(),
        labels,
        cgroup_driver: info.cgroup_driver,
        cgroup_v2: info.cgroup_v2,
        single_process_oom_kill: !info.cgroup_v2 || config.single_process_oom_kill == Some(true),
        min_oom_score_adj: info.min_oom_score_adj,
        apparmor: info.apparmor,
        runtimes: info.runtimes.clone(),
        recursive_read_only: info.recursive_read_only,
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

/// The period of CPU quotas in µs.
fn quota_period(config: &Config) -> i64 {
    i64::try_from(config.resources.cpu_cfs_quota_period.as_micros()).unwrap_or(QUOTA_PERIOD)
}

/// Bytes of huge pages that the kernel keeps, by the names of their resources: every size that it knows.
fn kept_huge_pages(folder: &Path) -> BTreeMap<&'static str, i64> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let name = entry.file_name();
        let kib: u64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let size = huge_pages::of_bytes(kib.checked_mul(1024)?)?;
        let count = std::fs::read_to_string(entry.path().join("nr_hugepages")).ok();
        let count: i64 = count.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Some((size.resource, count.saturating_mul(i64::try_from(size.bytes).unwrap_or(i64::MAX))))
    });
    sizes.collect()
}

/// What is wrong where the runtime confines with SELinux, and what to do: nothing of ours labels volumes as it wants them.
pub(crate) fn unlabelled(root: &Path) -> (&'static str, String) {
    let advice = format!(
        "set \"selinux-enabled\" to false in /etc/docker/daemon.json, or: chcon -Rt container_file_t {}",
        root.join("pods").display()
    );
    (
        "Docker confines containers with SELinux, and volumes are not relabelled: containers may be refused theirs",
        advice,
    )
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
        selinux: false,
        runtimes: vec!["runc".to_owned()],
        recursive_read_only: true,
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

/// How many tasks the machine can have (`pkg/kubelet/stats/pidlimit/pidlimit_linux.go`).
pub(crate) fn most_pids() -> Option<i64> {
    let read = |file: &&str| std::fs::read_to_string(file).ok()?.trim().parse().ok();
    ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"].iter().filter_map(read).min()
}

/// Size in bytes of the file system that the folder lies on.
pub(crate) fn disk_capacity(folder: &Path) -> anyhow::Result<i64> {
    let stat = rustix::fs::statvfs(folder).with_context(|| format!("the size of {}'s disk", folder.display()))?;
    Ok(i64::try_from(stat.f_blocks.saturating_mul(stat.f_frsize)).unwrap_or(i64::MAX))
}

/// What of the node changes while the agent runs. Asks nobody but the kernel and the resolver. Blocks.
pub(crate) fn surroundings(config: &Config, name: &str) -> Surroundings {
    Surroundings {
        ips: network::addresses(name, &config.node_ips),
        resolv_conf: resolv_conf(config).unwrap_or_default(),
        hosts_file: std::fs::read_to_string("/etc/hosts").ok(),
    }
}

/// The node's resolver configuration, as text; `None` where nobody named one and there is none yet.
fn resolv_conf(config: &Config) -> anyhow::Result<Option<String>> {
    match &config.resolv_conf {
        Some(path) if path.as_os_str().is_empty() => Ok(Some(String::new())),
        Some(path) => std::fs::read_to_string(path).map(Some).with_context(|| {
            let by_flag = config.given_flags.contains_key("resolv-conf");
            let place = if by_flag { "--resolv-conf" } else { "resolvConf of the configuration file" };
            format!("{place}: {} cannot be read", path.display())
        }),
        None => Ok(own_resolv_conf(Path::new(RESOLV_CONF), Path::new(RESOLVED_CONF))),
    }
}

fn own_resolv_conf(own: &Path, behind: &Path) -> Option<String> {
    static SAID: Once = Once::new();
    // A blank one is filled when the network comes up.
    let own = std::fs::read_to_string(own).ok().filter(|text| !text.trim().is_empty())?;
    if is_stub(&own)
        && let Ok(real) = std::fs::read_to_string(behind)
    {
        SAID.call_once(|| {
            tracing::info!("{RESOLV_CONF} names a local stub; pods get the servers of {RESOLVED_CONF}");
        });
        return Some(real);
    }
    Some(own)
}

/// Whether every server is systemd-resolved's stub.
fn is_stub(resolv_conf: &str) -> bool {
    let servers = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let mut servers = servers.map(str::trim).peekable();
    servers.peek().is_some() && servers.all(|server| matches!(server, "127.0.0.53" | "127.0.0.54"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
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
        assert!(judge(&config(None), true, false).warnings[0].contains("without a limit"));
        assert!(judge(&config(None), true, true).warnings[0].contains("get none"));
        assert_eq!(judge(&config(Some(false)), true, false), Findings::default());
        let single = |value| Config { single_process_oom_kill: Some(value), ..config(Some(false)) };
        assert_eq!(judge(&single(false), false, false).problems.len(), 1);
        assert_eq!(judge(&single(true), false, false), Findings::default());
        assert_eq!(judge(&single(false), false, true), Findings::default());
    }

    #[test]
    fn what_the_machine_can_never_give_is_a_mistake_of_the_configuration() {
        let config = || Config::build(&Default::default(), Default::default(), &Default::default()).0;
        let mut greedy = config();
        greedy.reserved.milli_cpu = i64::MAX;
        let error = estimate(&greedy, "node".to_owned()).unwrap_err();
        assert!(error.is::<Problem>(), "{error:#}");
        // A file may come yet.
        let mut nameless = Config { resolv_conf: Some("/nowhere/resolv.conf".into()), ..config() };
        let said = |config: &Config| {
            let error = estimate(config, "node".to_owned()).unwrap_err();
            assert!(!error.is::<Problem>());
            format!("{error:#}")
        };
        let of_file = said(&nameless);
        assert!(of_file.starts_with("resolvConf of the configuration file: /nowhere/resolv.conf"), "{of_file}");
        nameless.given_flags = [("resolv-conf".to_owned(), "x".to_owned())].into();
        assert!(said(&nameless).starts_with("--resolv-conf: /nowhere"));
    }

    #[test]
    fn huge_pages_have_kubernetes_names() {
        let folder = tempfile::tempdir().unwrap();
        for (name, count) in
            [("hugepages-2048kB", "3\n"), ("hugepages-1048576kB", "0\n"), ("hugepages-3kB", "1\n"), ("x", "")]
        {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("nr_hugepages"), count).unwrap();
        }
        assert_eq!(kept_huge_pages(folder.path()), [("hugepages-1Gi", 0), ("hugepages-2Mi", 6 << 20)].into());
        assert!(kept_huge_pages(&folder.path().join("absent")).is_empty());
    }

    #[test]
    fn stubs() {
        assert!(is_stub("nameserver 127.0.0.53\noptions edns0\n"));
        assert!(!is_stub("nameserver 127.0.0.53\nnameserver 1.1.1.1\n"));
        assert!(!is_stub("# nothing\n"));
    }

    #[test]
    fn names_that_are_not_there_yet_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let (own, behind) = (folder.path().join("resolv.conf"), folder.path().join("resolved.conf"));
        let now = || own_resolv_conf(&own, &behind);
        assert_eq!(now(), None);
        std::fs::write(&own, "\n").unwrap();
        assert_eq!(now(), None);
        std::fs::write(&own, "nameserver 127.0.0.53\n").unwrap();
        assert_eq!(now().as_deref(), Some("nameserver 127.0.0.53\n"));
        std::fs::write(&behind, "nameserver 10.0.0.1\n").unwrap();
        assert_eq!(now().as_deref(), Some("nameserver 10.0.0.1\n"));
        std::fs::write(&own, "nameserver 10.0.0.2\n").unwrap();
        assert_eq!(now().as_deref(), Some("nameserver 10.0.0.2\n"));
    }

    #[test]
    fn memory() {
        assert_eq!(mem_total("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16_777_216));
        assert_eq!(mem_total("MemTotal: lots\n"), None);
    }
}
