//! What the runtime is asked to make: a sandbox or a container, complete and resolved.
//!
//! Built by pure functions from a pod, its node and its objects ([`crate::sandbox_config`],
//! [`crate::container_config`]); an adapter only translates it. Nothing in here is looked up later.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::pod::{ContainerKind, PodId};

/// A sandbox to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct SandboxConfig {
    /// The pod that it is for.
    pub pod: PodId,
    /// How many sandboxes the pod had before.
    pub attempt: u32,
    /// [`crate::pod::Pod::sandbox_hash`].
    pub hash: String,
    /// Host name, at most 63 characters; unused on the node's network.
    pub hostname: String,
    /// All labels, see [`crate::labels`].
    pub labels: BTreeMap<String, String>,
    /// Parent cgroup: a path below the root for the cgroupfs driver, a slice's name for systemd.
    pub cgroup_parent: Option<String>,
    /// Namespaces shared with the node.
    pub host: HostNamespaces,
    /// The network that it is on.
    pub network: SandboxNetwork,
    /// Whether the containers share one PID namespace (the sandbox's).
    pub share_process_namespace: bool,
    /// Ports of the node that lead into the pod.
    pub ports: Vec<PortMapping>,
    /// Sysctls of the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Security options in the runtime's notation (`no-new-privileges`, `seccomp=…`, `label=…`, `apparmor=…`).
    pub security_options: Vec<String>,
    /// User (`uid` or `uid:gid`) of the pause process, where the pod's security context sets one.
    pub user: Option<String>,
    /// Supplemental groups.
    pub groups: Vec<i64>,
    /// `oom_score_adj` of the pause process.
    pub oom_score_adj: i32,
    /// Runtime of the daemon to use in place of its default one (RuntimeClass handler).
    pub runtime: Option<String>,
}

/// Which of the node's namespaces a pod shares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostNamespaces {
    /// `hostNetwork`.
    pub network: bool,
    /// `hostPID`.
    pub pid: bool,
    /// `hostIPC`.
    pub ipc: bool,
}

/// The network that a sandbox is on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SandboxNetwork {
    /// The node's.
    Host,
    /// The one that the runtime puts containers on when nothing is said.
    #[default]
    Default,
    /// A network of the runtime, by name.
    Named(String),
    /// None of the runtime's: CNI plugins attach it once it runs.
    Detached,
}

/// A port of the node that leads to a container's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// Port on the node.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Address on the node; all of them where absent.
    pub host_ip: Option<IpAddr>,
}

/// A container to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerConfig {
    /// The pod that it is for.
    pub pod: PodId,
    /// ID of the sandbox whose namespaces it joins.
    pub sandbox_id: String,
    /// Its name in the pod's spec.
    pub name: String,
    /// The part that it plays.
    pub kind: ContainerKind,
    /// How many containers of this name the pod had before.
    pub attempt: u32,
    /// The image's ID or name, present in the runtime.
    pub image: String,
    /// Replaces the image's ENTRYPOINT.
    pub command: Option<Vec<String>>,
    /// Replaces the image's CMD; with `command` and no `args` the image's CMD is dropped.
    pub args: Option<Vec<String>>,
    /// `NAME=value`, in order, later ones win.
    pub env: Vec<String>,
    /// Working directory, the image's where absent.
    pub working_dir: Option<String>,
    /// Mounts, in order of the spec, then ours (hosts, resolv.conf, termination message).
    pub mounts: Vec<Mount>,
    /// CPU and memory.
    pub resources: Resources,
    /// `oom_score_adj` of its processes.
    pub oom_score_adj: i32,
    /// Parent cgroup, as in [`SandboxConfig::cgroup_parent`].
    pub cgroup_parent: Option<String>,
    /// `uid` or `uid:gid`; the image's where absent.
    pub user: Option<String>,
    /// Supplemental groups.
    pub groups: Vec<i64>,
    /// Privileged mode.
    pub privileged: bool,
    /// Capabilities to add, without `CAP_`.
    pub cap_add: Vec<String>,
    /// Capabilities to drop, without `CAP_`.
    pub cap_drop: Vec<String>,
    /// Read-only root filesystem.
    pub read_only_rootfs: bool,
    /// Security options in the runtime's notation.
    pub security_options: Vec<String>,
    /// `procMount: Unmasked`: no paths are masked or made read-only.
    pub unmasked_proc: bool,
    /// Keep stdin open.
    pub stdin: bool,
    /// Close stdin after the first attach.
    pub stdin_once: bool,
    /// Allocate a terminal.
    pub tty: bool,
    /// Namespaces shared with the node.
    pub host: HostNamespaces,
    /// Whether it joins the sandbox's PID namespace.
    pub share_process_namespace: bool,
    /// ID of a container whose PID namespace it joins, where it joins no other.
    pub processes_of: Option<String>,
    /// All labels, see [`crate::labels`].
    pub labels: BTreeMap<String, String>,
    /// Signal that stops it in place of the image's, e.g. `SIGUSR1`.
    pub stop_signal: Option<String>,
    /// Runtime of the daemon to use in place of its default one.
    pub runtime: Option<String>,
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted.
    pub source: MountSource,
    /// Path in the container.
    pub target: String,
    /// Read-only.
    pub read_only: bool,
    /// If read-only, with all that is mounted below.
    pub recursive: bool,
    /// `private`, `rslave` or `rshared`.
    pub propagation: Propagation,
}

/// What a container mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// A path on the node, bound.
    Path(PathBuf),
    /// Likewise, and made by the runtime as a folder when it is absent: a hostPath of which nothing was said.
    HostPath(PathBuf),
    /// The content of an image that is present, which the runtime mounts itself.
    Image {
        /// The image's ID.
        id: String,
        /// The part of it; all of it where absent. Relative, without `..`.
        sub_path: Option<String>,
    },
}

impl From<PathBuf> for MountSource {
    fn from(path: PathBuf) -> Self {
        MountSource::Path(path)
    }
}

/// Which mounts cross a bind mount afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// None (`None` in the API).
    Private,
    /// From the node to the container (`HostToContainer`).
    HostToContainer,
    /// Both ways (`Bidirectional`).
    Bidirectional,
}

/// CPU and memory of a container; zero means unlimited or the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Relative weight (cgroup v1 `cpu.shares`), 2 … 262144.
    pub cpu_shares: i64,
    /// CFS quota in µs per period; 0 for none.
    pub cpu_quota: i64,
    /// CFS period in µs; 0 for the default.
    pub cpu_period: i64,
    /// Memory limit in bytes; 0 for none. Swap is held to the same value.
    pub memory: i64,
}
