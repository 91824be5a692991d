//! What decisions need to know of the node.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Facts about the node and how the agent is configured, gathered at start.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeFacts {
    /// Name of the node: `--hostname-override`, else the lower-case host name.
    pub name: String,
    /// ID of this agent's root folder, in the label [`crate::labels::ROOT`].
    pub root_id: String,
    /// Addresses of the node, the primary one first; they may change, see [`Surroundings`].
    pub ips: Vec<IpAddr>,
    /// CPU that pods may use, in thousandths of a core.
    pub allocatable_milli_cpu: i64,
    /// Memory that pods may use, in bytes.
    pub allocatable_memory: i64,
    /// Disk that pods may use, in bytes; `None` where that is not accounted (`localStorageCapacityIsolation: false`): pods that
    /// request any are refused, and limits of it are not enforced.
    pub allocatable_ephemeral_storage: Option<i64>,
    /// Memory of the machine, in bytes; what oom scores are reckoned from.
    pub memory_capacity: i64,
    /// Huge pages that the machine keeps, in bytes by the names of their resources; with 0 where the kernel knows the size.
    pub huge_pages: BTreeMap<&'static str, i64>,
    /// How many pods may run.
    pub max_pods: u32,
    /// How many processes a pod may have (`podPidsLimit`); `None` for no limit.
    pub pod_pids_limit: Option<i64>,
    /// Period of CPU quotas in µs (`cpuCFSQuotaPeriod`); `None` where CPU limits are not enforced (`cpuCFSQuota: false`).
    pub cpu_quota_period: Option<i64>,
    /// Addresses for `dnsPolicy: ClusterFirst` (`--cluster-dns`).
    pub cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster (`--cluster-domain`), empty for none.
    pub cluster_domain: String,
    /// The node's own resolver configuration (`--resolv-conf`), as text: blank where names are switched off, `None` while
    /// there is none. It may change, see [`Surroundings`].
    pub resolv_conf: Option<String>,
    /// The node's own hosts file, as text; what pods on the node's network see. It may change, see [`Surroundings`].
    pub hosts_file: String,
    /// Labels of the node.
    pub labels: BTreeMap<String, String>,
    /// How cgroups are named.
    pub cgroup_driver: CgroupDriver,
    /// Whether the unified hierarchy (v2) is in use.
    pub cgroup_v2: bool,
    /// Whether the kernel kills single processes of a container without memory, and not all that is in it
    /// (`singleProcessOOMKill`); it cannot do otherwise on cgroup v1.
    pub single_process_oom_kill: bool,
    /// The lowest `oom_score_adj` that may be set here; -1000 where all may.
    pub min_oom_score_adj: i32,
    /// Whether containers can be confined by AppArmor here.
    pub apparmor: bool,
    /// Names of the runtimes that the daemon knows.
    pub runtimes: Vec<String>,
    /// Whether a mount can be made read-only with all that is mounted below.
    pub recursive_read_only: bool,
    /// Folder with seccomp profiles for `Localhost` (`<root>/seccomp`).
    pub seccomp_root: String,
    /// Sysctls (or `prefix*`) that are allowed beyond the safe ones.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Whether unset seccomp profiles mean `RuntimeDefault`.
    pub seccomp_default: bool,
}

/// What of the node changes while the agent runs: networks come up late, and move.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Addresses, the primary one first; empty while it has none but loopback.
    pub ips: Vec<IpAddr>,
    /// [`NodeFacts::resolv_conf`]; `None` while it cannot be read.
    pub resolv_conf: Option<String>,
    /// [`NodeFacts::hosts_file`]; `None` while it cannot be read.
    pub hosts_file: Option<String>,
}

impl NodeFacts {
    /// The facts as they are now; `None` when they are the same. What cannot be told now stays as it was last.
    pub fn in_surroundings(&self, now: Surroundings) -> Option<NodeFacts> {
        let ips = if now.ips.is_empty() { &self.ips } else { &now.ips };
        let resolv_conf = now.resolv_conf.as_ref().or(self.resolv_conf.as_ref());
        let hosts_file = now.hosts_file.as_ref().unwrap_or(&self.hosts_file);
        if (ips, resolv_conf, hosts_file) == (&self.ips, self.resolv_conf.as_ref(), &self.hosts_file) {
            return None;
        }
        let (ips, resolv_conf, hosts_file) = (ips.clone(), resolv_conf.cloned(), hosts_file.clone());
        Some(NodeFacts { ips, resolv_conf, hosts_file, ..self.clone() })
    }
}

/// How the container runtime manages cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Paths below the hierarchy's root.
    Cgroupfs,
    /// systemd's slices and scopes.
    Systemd,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::node;

    #[test]
    fn what_cannot_be_told_now_stays_as_it_was() {
        let before = node();
        assert_eq!(before.in_surroundings(Surroundings::default()), None);
        let same = Surroundings { ips: before.ips.clone(), ..Surroundings::default() };
        assert_eq!(before.in_surroundings(same), None);
        let moved = Surroundings { ips: vec!["10.9.9.9".parse().unwrap()], ..Surroundings::default() };
        let after = before.in_surroundings(moved.clone()).unwrap();
        assert_eq!(after, NodeFacts { ips: moved.ips, ..before.clone() });
        let renamed = Surroundings { resolv_conf: Some("nameserver 10.9.9.1\n".to_owned()), ..Surroundings::default() };
        let after = before.in_surroundings(renamed.clone()).unwrap();
        assert_eq!(after, NodeFacts { resolv_conf: renamed.resolv_conf, ..before });
    }
}
