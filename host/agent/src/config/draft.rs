//! What one place (the flags, a file) says about the configuration, with all that is wrong about it.
//!
//! Reads no files and no environment. What is unset here is decided in [`super::Config`].

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use longshore_core::credentials::access;

use super::eviction::EvictionLayer;
use super::flags::DaemonFlags;
use super::joining::JoiningLayer;
use super::layer::Table;
use super::manifest_url::ManifestUrlLayer;
use super::network::NetworkLayer;
use super::resources::ResourceLayer;
use super::server::ServerLayer;
use super::values::{
    addresses, boolean, domain, endpoint, file_check_frequency, list, log_format, max_parallel_pulls, max_pods,
    node_ips, node_name, pull_burst, pull_qps, reserved_list, sysctl, verbosity, whole,
};
use super::{LogFormat, duration, gates, values};

/// Something wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Where: a flag, or a file with line and field.
    pub(crate) place: String,
    /// What is wrong and what was expected.
    pub(crate) message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl std::error::Error for Problem {}

/// All that was found while the configuration was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// What keeps the agent from starting.
    pub(crate) problems: Vec<Problem>,
    /// What it starts with all the same.
    pub(crate) warnings: Vec<String>,
}

impl Findings {
    /// Notes a problem.
    pub(crate) fn problem(&mut self, place: &str, message: impl Into<String>) {
        self.problems.push(Problem { place: place.to_owned(), message: message.into() });
    }

    /// The value, or `None` and a problem.
    pub(crate) fn note<T>(&mut self, place: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.problem(place, message)).ok()
    }
}

/// What one place says; `None` for what it says nothing about.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Draft {
    pub(crate) manifests: Option<PathBuf>,
    pub(crate) register_node: Option<bool>,
    pub(crate) docker_endpoint: Option<String>,
    pub(crate) pod_infra_image: Option<String>,
    pub(crate) node_name: Option<String>,
    pub(crate) max_pods: Option<u32>,
    pub(crate) cluster_dns: Option<Vec<IpAddr>>,
    pub(crate) cluster_domain: Option<String>,
    pub(crate) resolv_conf: Option<PathBuf>,
    pub(crate) node_ips: Option<Vec<IpAddr>>,
    pub(crate) seccomp_default: Option<bool>,
    pub(crate) allowed_unsafe_sysctls: Option<Vec<String>>,
    pub(crate) max_parallel_pulls: Option<usize>,
    pub(crate) serialize_pulls: Option<bool>,
    pub(crate) pull_qps: Option<f64>,
    pub(crate) pull_burst: Option<u32>,
    pub(crate) verification: Option<access::Policy>,
    pub(crate) verification_allowlist: Option<Vec<String>>,
    pub(crate) file_check_frequency: Option<Duration>,
    pub(crate) max_restart_delay: Option<Duration>,
    pub(crate) fail_swap_on: Option<bool>,
    pub(crate) fail_cgroup_v1: Option<bool>,
    pub(crate) single_process_oom_kill: Option<bool>,
    pub(crate) system_reserved: Option<Table<&'static str, i64>>,
    pub(crate) kube_reserved: Option<Table<&'static str, i64>>,
    pub(crate) pod_logs_dir: Option<PathBuf>,
    pub(crate) container_logs_dir: Option<PathBuf>,
    pub(crate) verbosity: Option<u8>,
    pub(crate) log_format: Option<LogFormat>,
    pub(crate) feature_gates: Option<Table<String, bool>>,
    pub(crate) joining: JoiningLayer,
    pub(crate) server: ServerLayer,
    pub(crate) manifest_url: ManifestUrlLayer,
    pub(crate) network: NetworkLayer,
    pub(crate) resources: ResourceLayer,
    pub(crate) eviction: EvictionLayer,
}

impl Draft {
    /// What the flags say. `--config` is looked at by the caller.
    pub(crate) fn from_flags(flags: &DaemonFlags, findings: &mut Findings) -> Draft {
        let mut note = FlagNotes(findings);
        Draft {
            manifests: flags.pod_manifest_path.clone(),
            register_node: note.read("--register-node", &flags.register_node, boolean),
            docker_endpoint: note.read("--docker-endpoint", &flags.docker_endpoint, endpoint),
            pod_infra_image: flags.pod_infra_container_image.clone().filter(|image| !image.is_empty()),
            node_name: note.read("--hostname-override", &flags.hostname_override, node_name),
            max_pods: note.read("--max-pods", &flags.max_pods, |text| max_pods(whole(text)?)),
            cluster_dns: note.all("--cluster-dns", &flags.cluster_dns, addresses),
            cluster_domain: note.read("--cluster-domain", &flags.cluster_domain, domain),
            resolv_conf: flags.resolv_conf.clone(),
            node_ips: note.read("--node-ip", &flags.node_ip, node_ips),
            seccomp_default: note.read("--seccomp-default", &flags.seccomp_default, boolean),
            allowed_unsafe_sysctls: note.all("--allowed-unsafe-sysctls", &flags.allowed_unsafe_sysctls, |text| {
                list(text).map(sysctl).collect()
            }),
            max_parallel_pulls: note.read("--max-parallel-image-pulls", &flags.max_parallel_image_pulls, |text| {
                max_parallel_pulls(whole(text)?)
            }),
            serialize_pulls: note.read("--serialize-image-pulls", &flags.serialize_image_pulls, boolean),
            pull_qps: note.read("--registry-qps", &flags.registry_qps, |text| pull_qps(whole(text)?)),
            pull_burst: note.read("--registry-burst", &flags.registry_burst, |text| pull_burst(whole(text)?)),
            verification: None,
            verification_allowlist: None,
            file_check_frequency: note.read("--file-check-frequency", &flags.file_check_frequency, |text| {
                file_check_frequency(duration::parse(text)?)
            }),
            max_restart_delay: None,
            fail_swap_on: note.read("--fail-swap-on", &flags.fail_swap_on, boolean),
            fail_cgroup_v1: note.read("--fail-cgroupv1", &flags.fail_cgroupv1, boolean),
            single_process_oom_kill: None,
            system_reserved: note.all("--system-reserved", &flags.system_reserved, reserved_list),
            kube_reserved: note.all("--kube-reserved", &flags.kube_reserved, reserved_list),
            pod_logs_dir: flags.pod_logs_dir.clone(),
            container_logs_dir: flags.container_logs_dir.clone(),
            verbosity: note.read("-v", &flags.v, |text| verbosity(whole(text)?)),
            log_format: note.read("--logging-format", &flags.logging_format, log_format),
            feature_gates: note.all("--feature-gates", &flags.feature_gates, |text| {
                let gates = values::pairs(text, '=', "gates like NodeSwap=true", gates::gate)?;
                // As with the kubelet, gates of the flag go over the file's one by one.
                Ok(Table { whole: false, ..gates })
            }),
            joining: JoiningLayer::from_flags(&flags.joining, &mut note),
            server: ServerLayer::from_flags(&flags.server, &mut note),
            manifest_url: ManifestUrlLayer::from_flags(&flags.manifest_url, &mut note),
            network: NetworkLayer::from_flags(&flags.network, &mut note),
            resources: ResourceLayer::from_flags(&flags.resources, &mut note),
            eviction: EvictionLayer::from_flags(&flags.eviction, &mut note),
        }
    }

    /// This, and where it says nothing, the other.
    pub(crate) fn or(self, other: Draft) -> Draft {
        Draft {
            manifests: self.manifests.or(other.manifests),
            register_node: self.register_node.or(other.register_node),
            docker_endpoint: self.docker_endpoint.or(other.docker_endpoint),
            pod_infra_image: self.pod_infra_image.or(other.pod_infra_image),
            node_name: self.node_name.or(other.node_name),
            max_pods: self.max_pods.or(other.max_pods),
            cluster_dns: self.cluster_dns.or(other.cluster_dns),
            cluster_domain: self.cluster_domain.or(other.cluster_domain),
            resolv_conf: self.resolv_conf.or(other.resolv_conf),
            node_ips: self.node_ips.or(other.node_ips),
            seccomp_default: self.seccomp_default.or(other.seccomp_default),
            allowed_unsafe_sysctls: self.allowed_unsafe_sysctls.or(other.allowed_unsafe_sysctls),
            max_parallel_pulls: self.max_parallel_pulls.or(other.max_parallel_pulls),
            serialize_pulls: self.serialize_pulls.or(other.serialize_pulls),
            pull_qps: self.pull_qps.or(other.pull_qps),
            pull_burst: self.pull_burst.or(other.pull_burst),
            verification: self.verification.or(other.verification),
            verification_allowlist: self.verification_allowlist.or(other.verification_allowlist),
            file_check_frequency: self.file_check_frequency.or(other.file_check_frequency),
            max_restart_delay: self.max_restart_delay.or(other.max_restart_delay),
            fail_swap_on: self.fail_swap_on.or(other.fail_swap_on),
            fail_cgroup_v1: self.fail_cgroup_v1.or(other.fail_cgroup_v1),
            single_process_oom_kill: self.single_process_oom_kill.or(other.single_process_oom_kill),
            system_reserved: Table::over(self.system_reserved, other.system_reserved),
            kube_reserved: Table::over(self.kube_reserved, other.kube_reserved),
            pod_logs_dir: self.pod_logs_dir.or(other.pod_logs_dir),
            container_logs_dir: self.container_logs_dir.or(other.container_logs_dir),
            verbosity: self.verbosity.or(other.verbosity),
            log_format: self.log_format.or(other.log_format),
            feature_gates: Table::over(self.feature_gates, other.feature_gates),
            joining: self.joining.or(other.joining),
            server: self.server.or(other.server),
            manifest_url: self.manifest_url.or(other.manifest_url),
            network: self.network.or(other.network),
            resources: self.resources.or(other.resources),
            eviction: self.eviction.or(other.eviction),
        }
    }
}

/// Reads what flags say, and notes what is wrong with it.
pub(super) struct FlagNotes<'a>(&'a mut Findings);

impl FlagNotes<'_> {
    /// The value of a flag; `None` when it is not given or wrong.
    pub(super) fn read<T>(
        &mut self,
        flag: &str,
        value: &Option<String>,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.0.note(flag, read(value.as_deref()?))
    }

    /// The value of a list or map that may be given several times, which adds to it.
    pub(super) fn all<T>(
        &mut self,
        flag: &str,
        values: &[String],
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        if values.is_empty() { None } else { self.0.note(flag, read(&values.join(","))) }
    }
}
