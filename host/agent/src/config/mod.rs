//! The agent's configuration: one strict struct, from flags and a KubeletConfiguration file, all problems at once.
//!
//! [`Config::build`] is pure; [`load`] is the only part that looks at the disk, and nothing here opens a socket or
//! reads the environment.

mod draft;
mod duration;
mod flags;
mod known;
mod kubelet;
#[cfg(test)]
mod tests;
mod tree;
mod values;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use draft::{Findings, Problem};
pub(crate) use duration::parse as parse_duration;
pub(crate) use flags::{DEFAULT_ROOT, DaemonFlags};
pub(crate) use known::take_unsupported_flags;

use draft::Draft;

/// Where manifests are, unless told otherwise.
pub(crate) const DEFAULT_MANIFESTS: &str = "/etc/kubernetes/manifests";
/// Where Docker listens, unless told otherwise.
pub(crate) const DEFAULT_DOCKER: &str = "unix:///var/run/docker.sock";

/// How the agent is to run; complete.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    /// The manifest folder.
    pub(crate) manifests: PathBuf,
    /// The folder that all state lies in.
    pub(crate) root_dir: PathBuf,
    /// Where Docker listens, as a URL.
    pub(crate) docker_endpoint: String,
    /// Image of the pause containers; `None` for the one in the binary.
    pub(crate) pod_infra_image: Option<String>,
    /// Name of the node; `None` for the host name.
    pub(crate) node_name: Option<String>,
    /// How many pods may run.
    pub(crate) max_pods: u32,
    /// Addresses for `dnsPolicy: ClusterFirst`.
    pub(crate) cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster, empty for none.
    pub(crate) cluster_domain: String,
    /// The node's resolver configuration; an empty path for none; `None` to find it.
    pub(crate) resolv_conf: Option<PathBuf>,
    /// Addresses of the node; empty to find them.
    pub(crate) node_ips: Vec<IpAddr>,
    /// Whether unset seccomp profiles mean `RuntimeDefault`.
    pub(crate) seccomp_default: bool,
    /// Sysctls that are allowed beyond the safe ones.
    pub(crate) allowed_unsafe_sysctls: Vec<String>,
    /// How many images may be pulled at once.
    pub(crate) max_parallel_pulls: usize,
    /// Image pulls a second; 0 for no limit.
    pub(crate) pull_qps: f64,
    /// Image pulls in a burst.
    pub(crate) pull_burst: u32,
    /// How often the manifest folder is read again.
    pub(crate) file_check_frequency: Duration,
    /// The longest delay before a crashed container is started again.
    pub(crate) max_restart_delay: Duration,
    /// Refuse to start while swap is on; `None` warns.
    pub(crate) fail_swap_on: Option<bool>,
    /// Refuse to start on cgroup v1; `None` warns.
    pub(crate) fail_cgroup_v1: Option<bool>,
    /// Kept back from pods, `systemReserved` and `kubeReserved` together.
    pub(crate) reserved: Reserved,
    /// Folder of the pods' logs.
    pub(crate) pod_logs_dir: PathBuf,
    /// Folder of links to the containers' logs.
    pub(crate) container_logs_dir: PathBuf,
    /// How much is logged, 0 to 10.
    pub(crate) verbosity: u8,
    /// Format of the log.
    pub(crate) log_format: LogFormat,
}

/// Resources that pods do not get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reserved {
    /// CPU in thousandths of a core.
    pub(crate) milli_cpu: i64,
    /// Memory in bytes.
    pub(crate) memory: i64,
    /// Disk in bytes.
    pub(crate) ephemeral_storage: i64,
}

/// Format of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// One readable line per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

/// What `--config` names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ConfigPath {
    /// The flag is not given.
    #[default]
    None,
    /// A manifest folder.
    Folder(PathBuf),
    /// A file, with its text.
    File(PathBuf, String),
    /// Something that cannot be read; with why.
    Unreadable(PathBuf, String),
}

/// What is not in the flags, and read by the caller.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// `--root-dir`, which all commands share.
    pub(crate) root_dir: Option<PathBuf>,
    /// `$DOCKER_HOST`.
    pub(crate) docker_host: Option<String>,
    /// Warnings from before the flags were read.
    pub(crate) warnings: Vec<String>,
}

/// Reads what `--config` names, and builds the configuration. Fails with all problems.
pub(crate) fn load(flags: &DaemonFlags, around: Surroundings) -> Result<(Config, Vec<String>), Vec<Problem>> {
    let path = flags.config.as_deref().map_or(ConfigPath::None, look_at);
    let (mut config, mut findings) = Config::build(flags, path, &around);
    if !findings.problems.is_empty() {
        return Err(findings.problems);
    }
    config.make_absolute();
    let mut warnings = around.warnings;
    warnings.append(&mut findings.warnings);
    Ok((config, warnings))
}

/// Checks one KubeletConfiguration file, for `longshore config check`.
pub(crate) fn check_file(path: &Path) -> Findings {
    let mut findings = Findings::default();
    match look_at(path) {
        ConfigPath::File(_, text) => {
            let draft = kubelet::read(&path.display().to_string(), &text, &mut findings);
            Config::from_draft(draft, PathBuf::from(DEFAULT_ROOT), None, &mut findings);
        }
        ConfigPath::Unreadable(_, message) => findings.problem(&path.display().to_string(), message),
        ConfigPath::Folder(_) | ConfigPath::None => {
            findings.problem(&path.display().to_string(), "is a folder; expected a KubeletConfiguration file");
        }
    }
    findings
}

/// The kind that a file says it is, where it can be read and says one.
pub(crate) fn kind_of_file(path: &Path) -> Option<String> {
    match look_at(path) {
        ConfigPath::File(_, text) => kubelet::kind_of(&text),
        _ => None,
    }
}

fn look_at(path: &Path) -> ConfigPath {
    let owned = path.to_owned();
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => ConfigPath::Folder(owned),
        Ok(_) => match std::fs::read_to_string(path) {
            Ok(text) => ConfigPath::File(owned, text),
            Err(error) => ConfigPath::Unreadable(owned, error.to_string()),
        },
        // A folder may come later (a disk that is not mounted yet); a file with such a name would not.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.extension().is_none() => {
            ConfigPath::Folder(owned)
        }
        Err(error) => ConfigPath::Unreadable(owned, error.to_string()),
    }
}

impl Config {
    /// Docker mounts absolute paths only, and a derived UID covers its file's path: neither may depend on the folder that
    /// the agent was started in.
    fn make_absolute(&mut self) {
        let paths = [&mut self.manifests, &mut self.root_dir, &mut self.pod_logs_dir, &mut self.container_logs_dir];
        for path in paths {
            if let Ok(absolute) = std::path::absolute(&*path) {
                *path = absolute;
            }
        }
    }

    /// The configuration, and what was found on the way; it is of use only when there are no problems.
    pub(crate) fn build(flags: &DaemonFlags, path: ConfigPath, around: &Surroundings) -> (Config, Findings) {
        let mut findings = Findings::default();
        let mut draft = Draft::from_flags(flags, &mut findings);
        match path {
            ConfigPath::None => {}
            ConfigPath::Folder(folder) => match &draft.manifests {
                Some(other) if *other != folder => {
                    let message = format!("--pod-manifest-path names another manifest folder: {}", other.display());
                    findings.problem("--config", message);
                }
                _ => draft.manifests = Some(folder),
            },
            ConfigPath::File(file, text) => {
                let name = file.display().to_string();
                match kubelet::kind_of(&text) {
                    Some(kind) if matches!(kind.as_str(), "Pod" | "PodList" | "List") => {
                        let message = format!("{name} is a {kind} manifest; name the folder that it lies in");
                        findings.problem("--config", message);
                    }
                    _ => draft = draft.or(kubelet::read(&name, &text, &mut findings)),
                }
            }
            ConfigPath::Unreadable(path, message) => {
                findings.problem("--config", format!("{}: {message}", path.display()));
            }
        }
        let root = around.root_dir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_ROOT));
        let config = Config::from_draft(draft, root, around.docker_host.clone(), &mut findings);
        (config, findings)
    }

    fn from_draft(draft: Draft, root_dir: PathBuf, docker_host: Option<String>, findings: &mut Findings) -> Config {
        if draft.register_node == Some(true) {
            findings.problem(
                "register-node",
                "true needs an API server, which this version does not speak to; leave it out or set it to false",
            );
        }
        // As SetDefaults_KubeletConfiguration, but that pulls are parallel where nothing is said: a registry that
        // hangs must not hold up every pod.
        let max_parallel_pulls = match (draft.serialize_pulls, draft.max_parallel_pulls) {
            (Some(true), Some(n)) if n > 1 => {
                findings.problem("max-parallel-image-pulls", format!("{n} contradicts serialize-image-pulls"));
                1
            }
            (Some(true), _) => 1,
            (_, Some(n)) => n,
            (_, None) => 4,
        };
        let docker_endpoint = draft.docker_endpoint.or_else(|| {
            let host = docker_host.filter(|host| !host.is_empty())?;
            findings.note("$DOCKER_HOST", values::endpoint(&host))
        });
        let reserved = [draft.system_reserved, draft.kube_reserved].into_iter().flatten();
        let reserved = reserved.fold(Reserved::default(), |sum, part| Reserved {
            milli_cpu: sum.milli_cpu.saturating_add(part.milli_cpu),
            memory: sum.memory.saturating_add(part.memory),
            ephemeral_storage: sum.ephemeral_storage.saturating_add(part.ephemeral_storage),
        });
        Config {
            manifests: draft.manifests.unwrap_or_else(|| PathBuf::from(DEFAULT_MANIFESTS)),
            root_dir,
            docker_endpoint: docker_endpoint.unwrap_or_else(|| DEFAULT_DOCKER.to_owned()),
            pod_infra_image: draft.pod_infra_image,
            node_name: draft.node_name,
            max_pods: draft.max_pods.unwrap_or(110),
            cluster_dns: draft.cluster_dns.unwrap_or_default(),
            cluster_domain: draft.cluster_domain.unwrap_or_default(),
            resolv_conf: draft.resolv_conf,
            node_ips: draft.node_ips.unwrap_or_default(),
            seccomp_default: draft.seccomp_default.unwrap_or(false),
            allowed_unsafe_sysctls: draft.allowed_unsafe_sysctls.unwrap_or_default(),
            max_parallel_pulls,
            pull_qps: draft.pull_qps.unwrap_or(5.0),
            pull_burst: draft.pull_burst.unwrap_or(10),
            file_check_frequency: draft.file_check_frequency.unwrap_or(Duration::from_secs(20)),
            max_restart_delay: draft.max_restart_delay.unwrap_or(Duration::from_secs(300)),
            fail_swap_on: draft.fail_swap_on,
            fail_cgroup_v1: draft.fail_cgroup_v1,
            reserved,
            pod_logs_dir: draft.pod_logs_dir.unwrap_or_else(|| PathBuf::from("/var/log/pods")),
            container_logs_dir: draft.container_logs_dir.unwrap_or_else(|| PathBuf::from("/var/log/containers")),
            verbosity: draft.verbosity.unwrap_or(2),
            log_format: draft.log_format.unwrap_or_default(),
        }
    }
}
