//! What decisions need to know of the node.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Facts about the node and how the agent is configured, gathered once at start.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeFacts {
    /// Name of the node: `--hostname-override`, else the lower-case host name.
    pub name: String,
    /// ID of this agent's root folder, in the label [`crate::labels::ROOT`].
    pub root_id: String,
    /// Addresses of the node, the primary one first.
    pub ips: Vec<IpAddr>,
    /// CPU that pods may use, in thousandths of a core.
    pub allocatable_milli_cpu: i64,
    /// Memory that pods may use, in bytes.
    pub allocatable_memory: i64,
    /// Disk that pods may use, in bytes.
    pub allocatable_ephemeral_storage: i64,
    /// Memory of the machine, in bytes; what oom scores are reckoned from.
    pub memory_capacity: i64,
    /// How many pods may run.
    pub max_pods: u32,
    /// Addresses for `dnsPolicy: ClusterFirst` (`--cluster-dns`).
    pub cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster (`--cluster-domain`), empty for none.
    pub cluster_domain: String,
    /// The node's own resolver configuration (`--resolv-conf`), as text.
    pub resolv_conf: String,
    /// The node's own hosts file, as text; what pods on the node's network see.
    pub hosts_file: String,
    /// Labels of the node.
    pub labels: BTreeMap<String, String>,
    /// How cgroups are named.
    pub cgroup_driver: CgroupDriver,
    /// Whether the unified hierarchy (v2) is in use.
    pub cgroup_v2: bool,
    /// The lowest `oom_score_adj` that may be set here (design §6); -1000 where all may.
    pub min_oom_score_adj: i32,
    /// Whether containers can be confined by AppArmor here.
    pub apparmor: bool,
    /// Names of the runtimes that the daemon knows.
    pub runtimes: Vec<String>,
    /// Folder with seccomp profiles for `Localhost` (`<root>/seccomp`).
    pub seccomp_root: String,
    /// Sysctls (or `prefix*`) that are allowed beyond the safe ones.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Whether unset seccomp profiles mean `RuntimeDefault`.
    pub seccomp_default: bool,
}

/// How the container runtime manages cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Paths below the hierarchy's root.
    Cgroupfs,
    /// systemd's slices and scopes.
    Systemd,
}
