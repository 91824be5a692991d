//! What one place (the flags, a file) says about the configuration, and how what it says is checked.
//!
//! Reads no files and no environment. What is unset here is decided in [`super::Config`].

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use longshore_core::quantity;

use super::flags::DaemonFlags;
use super::{LogFormat, Reserved, duration};

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
    pub(crate) file_check_frequency: Option<Duration>,
    pub(crate) max_restart_delay: Option<Duration>,
    pub(crate) fail_swap_on: Option<bool>,
    pub(crate) fail_cgroup_v1: Option<bool>,
    pub(crate) system_reserved: Option<Reserved>,
    pub(crate) kube_reserved: Option<Reserved>,
    pub(crate) pod_logs_dir: Option<PathBuf>,
    pub(crate) container_logs_dir: Option<PathBuf>,
    pub(crate) verbosity: Option<u8>,
    pub(crate) log_format: Option<LogFormat>,
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
            cluster_dns: note.read("--cluster-dns", &flags.cluster_dns, addresses),
            cluster_domain: note.read("--cluster-domain", &flags.cluster_domain, domain),
            resolv_conf: flags.resolv_conf.clone(),
            node_ips: note.read("--node-ip", &flags.node_ip, addresses),
            seccomp_default: note.read("--seccomp-default", &flags.seccomp_default, boolean),
            allowed_unsafe_sysctls: note.read("--allowed-unsafe-sysctls", &flags.allowed_unsafe_sysctls, |text| {
                list(text).map(sysctl).collect()
            }),
            max_parallel_pulls: note.read("--max-parallel-image-pulls", &flags.max_parallel_image_pulls, |text| {
                max_parallel_pulls(whole(text)?)
            }),
            serialize_pulls: note.read("--serialize-image-pulls", &flags.serialize_image_pulls, boolean),
            pull_qps: note.read("--registry-qps", &flags.registry_qps, |text| pull_qps(whole(text)?)),
            pull_burst: note.read("--registry-burst", &flags.registry_burst, |text| pull_burst(whole(text)?)),
            file_check_frequency: note.read("--file-check-frequency", &flags.file_check_frequency, |text| {
                file_check_frequency(duration::parse(text)?)
            }),
            max_restart_delay: None,
            fail_swap_on: note.read("--fail-swap-on", &flags.fail_swap_on, boolean),
            fail_cgroup_v1: note.read("--fail-cgroupv1", &flags.fail_cgroupv1, boolean),
            system_reserved: note.read("--system-reserved", &flags.system_reserved, reserved_list),
            kube_reserved: note.read("--kube-reserved", &flags.kube_reserved, reserved_list),
            pod_logs_dir: flags.pod_logs_dir.clone(),
            container_logs_dir: flags.container_logs_dir.clone(),
            verbosity: note.read("-v", &flags.v, |text| verbosity(whole(text)?)),
            log_format: note.read("--logging-format", &flags.logging_format, log_format),
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
            file_check_frequency: self.file_check_frequency.or(other.file_check_frequency),
            max_restart_delay: self.max_restart_delay.or(other.max_restart_delay),
            fail_swap_on: self.fail_swap_on.or(other.fail_swap_on),
            fail_cgroup_v1: self.fail_cgroup_v1.or(other.fail_cgroup_v1),
            system_reserved: self.system_reserved.or(other.system_reserved),
            kube_reserved: self.kube_reserved.or(other.kube_reserved),
            pod_logs_dir: self.pod_logs_dir.or(other.pod_logs_dir),
            container_logs_dir: self.container_logs_dir.or(other.container_logs_dir),
            verbosity: self.verbosity.or(other.verbosity),
            log_format: self.log_format.or(other.log_format),
        }
    }
}

struct FlagNotes<'a>(&'a mut Findings);

impl FlagNotes<'_> {
    fn read<T>(
        &mut self,
        flag: &str,
        value: &Option<String>,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.0.note(flag, read(value.as_deref()?))
    }
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn within(value: i64, range: RangeInclusive<i64>) -> Result<i64, String> {
    match range.contains(&value) {
        true => Ok(value),
        false => Err(format!("expected a number from {} to {}, got {value}", range.start(), range.end())),
    }
}

fn whole(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| format!("expected a whole number, got {text:?}"))
}

fn boolean(text: &str) -> Result<bool, String> {
    // As Go's strconv.ParseBool.
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("expected true or false, got {text:?}")),
    }
}

pub(super) fn endpoint(text: &str) -> Result<String, String> {
    let socket = text.strip_prefix("unix://");
    let known = socket.is_some_and(|path| path.starts_with('/')) || text.starts_with("tcp://");
    match known || text.starts_with("http://") || text.starts_with("https://") {
        true => Ok(text.to_owned()),
        false => Err(format!("expected a URL like unix:///var/run/docker.sock, got {text:?}")),
    }
}

fn node_name(text: &str) -> Result<String, String> {
    let name = text.trim().to_lowercase();
    let label = |label: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        ends(label.chars().next())
            && ends(label.chars().last())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    match name.len() <= 253 && name.split('.').all(label) {
        true => Ok(name),
        false => Err(format!("expected a DNS name (letters, digits, '-' and '.'), got {text:?}")),
    }
}

pub(super) fn domain(text: &str) -> Result<String, String> {
    if text.is_empty() { Ok(String::new()) } else { node_name(text.trim_end_matches('.')) }
}

pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("expected an IP address, got {text:?}"))
}

fn addresses(text: &str) -> Result<Vec<IpAddr>, String> {
    list(text).map(address).collect()
}

/// As `pkg/kubelet/sysctl/allowlist.go`: a name, or a prefix that ends in `.*` or `*`.
pub(super) fn sysctl(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('*').unwrap_or(text);
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
    match !name.is_empty() && name.len() <= 253 && name.chars().all(valid) {
        true => Ok(text.replace('/', ".")),
        false => Err(format!("expected a sysctl like \"net.core.somaxconn\" or \"kernel.msg*\", got {text:?}")),
    }
}

pub(super) fn max_pods(value: i64) -> Result<u32, String> {
    within(value, 0..=100_000).map(|value| value as u32)
}

pub(super) fn max_parallel_pulls(value: i64) -> Result<usize, String> {
    within(value, 1..=1_000).map(|value| value as usize)
}

pub(super) fn pull_qps(value: i64) -> Result<f64, String> {
    within(value, 0..=i64::from(i32::MAX)).map(|value| value as f64)
}

pub(super) fn pull_burst(value: i64) -> Result<u32, String> {
    within(value, 0..=i64::from(i32::MAX)).map(|value| value as u32)
}

pub(super) fn verbosity(value: i64) -> Result<u8, String> {
    within(value, 0..=10).map(|value| value as u8)
}

pub(super) fn file_check_frequency(value: Duration) -> Result<Duration, String> {
    match value >= Duration::from_millis(100) {
        true => Ok(value),
        false => Err(format!("expected at least 100ms, got {value:?}")),
    }
}

/// As the kubelet's validation: 1 s to 300 s.
pub(super) fn max_restart_delay(value: Duration) -> Result<Duration, String> {
    match (Duration::from_secs(1)..=Duration::from_secs(300)).contains(&value) {
        true => Ok(value),
        false => Err(format!("expected a duration from 1s to 300s, got {value:?}")),
    }
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" | "" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("expected text or json, got {text:?}")),
    }
}

fn reserved_list(text: &str) -> Result<Reserved, String> {
    let pairs = list(text).map(|pair| {
        pair.split_once('=').ok_or_else(|| format!("expected resources like cpu=500m,memory=1Gi, got {pair:?}"))
    });
    let mut reserved = Reserved::default();
    for pair in pairs {
        let (name, value) = pair?;
        reserve(&mut reserved, name, value)?;
    }
    Ok(reserved)
}

/// Notes what is kept of one resource.
pub(super) fn reserve(reserved: &mut Reserved, name: &str, value: &str) -> Result<(), String> {
    let scale = if name == "cpu" { 3 } else { 0 };
    let amount = quantity::parse(value, scale).filter(|amount| *amount >= 0);
    let amount = amount.ok_or_else(|| format!("expected a quantity like 500m or 1Gi for {name}, got {value:?}"))?;
    match name {
        "cpu" => reserved.milli_cpu = amount,
        "memory" => reserved.memory = amount,
        "ephemeral-storage" => reserved.ephemeral_storage = amount,
        // Process IDs are not reserved here; the kubelet takes the name, so it is no mistake.
        "pid" => {}
        other => {
            let known = ["cpu", "memory", "ephemeral-storage", "pid"];
            return Err(format!("{other:?} cannot be reserved; there are: {}", known.join(", ")));
        }
    }
    Ok(())
}
