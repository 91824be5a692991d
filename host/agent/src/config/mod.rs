//! The agent's configuration: one strict struct, from flags and a KubeletConfiguration file, all problems at once.
//!
//! [`Config::build`] is pure; [`load`](load()) is the only part that looks at the disk, and nothing here opens a socket or
//! reads the environment.

mod draft;
mod dropins;
mod eviction;
mod flags;
mod gates;
mod identity;
mod joining;
mod known;
mod kubelet;
mod layer;
mod load;
mod manifest_url;
mod network;
mod providers;
mod publish;
mod reader;
mod resources;
mod server;
#[cfg(test)]
mod tests;
mod tls;
mod tree;
mod values;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use longshore_core::evict;

pub(crate) use draft::{Findings, Problem};
pub(crate) use flags::{DEFAULT_ROOT, DaemonFlags};
pub(crate) use joining::Joining;
pub(crate) use known::take_unsupported_flags;
#[cfg(test)]
pub(crate) use load::ConfigPath;
pub(crate) use load::{Surroundings, check_drop_ins, check_file, is_configuration, is_drop_in_folder, load};
pub(crate) use longshore_core::duration::parse as parse_duration;
pub(crate) use manifest_url::ManifestUrl;
pub(crate) use network::{Network, NetworkFlags, NetworkPlugin};
pub(crate) use resources::Resources;
pub(crate) use server::{Authorization, Server};

use draft::Draft;
use layer::Table;
use longshore_core::credentials::access::{Policy, Verification};
use longshore_core::credentials::providers::Provider;
use longshore_core::duration;

/// Where manifests are, unless told otherwise.
pub(crate) const DEFAULT_MANIFESTS: &str = "/etc/kubernetes/manifests";
/// Where Docker listens, unless told otherwise.
pub(crate) const DEFAULT_DOCKER: &str = "unix:///var/run/docker.sock";

/// How the agent is to run; complete.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    /// The manifest folder.
    pub(crate) manifests: PathBuf,
    /// Whether it was not named: then there need be none.
    pub(crate) manifests_optional: bool,
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
    /// Which images that are there a pod must have credentials for; `None` where the feature gate turns that off.
    pub(crate) verification: Option<Verification>,
    /// How often the manifest folder is read again.
    pub(crate) file_check_frequency: Duration,
    /// The longest delay before a crashed container is started again.
    pub(crate) max_restart_delay: Duration,
    /// Refuse to start while swap is on; `None` warns.
    pub(crate) fail_swap_on: Option<bool>,
    /// Refuse to start on cgroup v1; `None` warns.
    pub(crate) fail_cgroup_v1: Option<bool>,
    /// Whether the kernel may kill single processes of a container; `None` is false where there is cgroup v2.
    pub(crate) single_process_oom_kill: Option<bool>,
    /// Kept back from pods, `systemReserved` and `kubeReserved` together.
    pub(crate) reserved: Reserved,
    /// `systemReserved`.
    pub(crate) system_reserved: Reserved,
    /// `kubeReserved`.
    pub(crate) kube_reserved: Reserved,
    /// Folder of the pods' logs.
    pub(crate) pod_logs_dir: PathBuf,
    /// Folder of links to the containers' logs.
    pub(crate) container_logs_dir: PathBuf,
    /// How much is logged, 0 to 10.
    pub(crate) verbosity: u8,
    /// Format of the log.
    pub(crate) log_format: LogFormat,
    /// How the node belongs to a cluster.
    pub(crate) joining: Joining,
    /// The node's servers.
    pub(crate) server: Server,
    /// The manifest URL.
    pub(crate) manifest_url: ManifestUrl,
    /// The pods' network.
    pub(crate) network: Network,
    /// Limits of pods, images and logs, and what happens when the machine goes down.
    pub(crate) resources: Resources,
    /// When pods are evicted.
    pub(crate) eviction: evict::Policy,
    /// Exec credential providers; none without [`Joining::credential_provider_bin_dir`].
    pub(crate) credential_providers: Vec<Provider>,
    /// Feature gates as written; what they change is said elsewhere.
    pub(crate) feature_gates: BTreeMap<String, bool>,
    /// The flags that were given, for `/flagz`.
    pub(crate) given_flags: BTreeMap<String, String>,
}

/// Where a draft comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whole {
    /// The flags and all files: what the agent starts with.
    Everything,
    /// A file that is checked by itself.
    FileAlone,
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
    /// Process IDs.
    pub(crate) pids: i64,
}

impl Reserved {
    fn from_table(table: Option<Table<&'static str, i64>>) -> Reserved {
        let entries = table.map(|table| table.entries).unwrap_or_default();
        let of = |name: &str| entries.get(name).copied().unwrap_or(0);
        let (milli_cpu, memory) = (of("cpu"), of("memory"));
        Reserved { milli_cpu, memory, ephemeral_storage: of("ephemeral-storage"), pids: of("pid") }
    }

    fn plus(self, other: Reserved) -> Reserved {
        Reserved {
            milli_cpu: self.milli_cpu.saturating_add(other.milli_cpu),
            memory: self.memory.saturating_add(other.memory),
            ephemeral_storage: self.ephemeral_storage.saturating_add(other.ephemeral_storage),
            pids: self.pids.saturating_add(other.pids),
        }
    }
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

impl Config {
    /// Docker mounts absolute paths only, and a derived UID covers its file's path: neither may depend on the folder that
    /// the agent was started in, nor what others read of its flags on the folder that they are in.
    fn make_absolute(&mut self) {
        let paths = [
            &mut self.manifests,
            &mut self.root_dir,
            &mut self.pod_logs_dir,
            &mut self.container_logs_dir,
            &mut self.joining.cert_dir,
            &mut self.network.cni_conf_dir,
            &mut self.network.cni_cache_dir,
        ];
        let optional = [
            &mut self.resolv_conf,
            &mut self.joining.kubeconfig,
            &mut self.joining.bootstrap_kubeconfig,
            &mut self.joining.state_key_file,
            &mut self.joining.credential_provider_bin_dir,
            &mut self.server.client_ca_file,
        ];
        let optional = optional.into_iter().flatten().chain(&mut self.network.cni_bin_dirs);
        for path in paths.into_iter().chain(optional) {
            // An empty one says that there is none.
            if let Ok(absolute) = std::path::absolute(&*path) {
                *path = absolute;
            }
        }
    }

    fn from_draft(
        draft: Draft,
        root_dir: PathBuf,
        docker_host: Option<String>,
        whole: Whole,
        findings: &mut Findings,
    ) -> Config {
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
        let system_reserved = Reserved::from_table(draft.system_reserved);
        let kube_reserved = Reserved::from_table(draft.kube_reserved);
        let feature_gates = draft.feature_gates.map(|table| table.entries).unwrap_or_default();
        gates::check(&feature_gates, findings);
        let verification =
            verification(draft.verification, draft.verification_allowlist, gates::verifies(&feature_gates), findings);
        let joining = draft.joining.finish(&root_dir, draft.register_node, findings);
        // A file alone does not tell whether its node is one of a cluster.
        let in_cluster = joining.in_cluster();
        let node_ips = draft.node_ips.unwrap_or_default();
        // As the kubelet (`validateNodeIP`), which starts and never tells an address.
        let unusable = node_ips.iter().find(|ip| !ip.is_unspecified() && !crate::network::usable(ip));
        if let Some(ip) = unusable.filter(|_| in_cluster) {
            findings
                .problem("--node-ip", format!("no other machine of the cluster can reach {ip}: name another address"));
        }
        let server = draft.server.finish(in_cluster || whole == Whole::FileAlone, findings);
        let mut resources = draft.resources.finish(findings);
        let grace = [resources.shutdown_grace_period, resources.shutdown_grace_period_critical];
        let by_period = grace.iter().any(|period| !period.is_zero());
        let by_priority = !by_period && !resources.shutdown.is_empty();
        let gated = [
            (
                "crashLoopBackOff.maxContainerRestartPeriod",
                "KubeletCrashLoopBackOffMax",
                draft.max_restart_delay.is_some(),
            ),
            ("shutdownGracePeriod", GRACEFUL_SHUTDOWN, by_period),
            ("shutdownGracePeriodByPodPriority", "GracefulNodeShutdownBasedOnPodPriority", by_priority),
            ("imageMaximumGCAge", "ImageMaximumGCAge", resources.image_maximum_age.is_some()),
            ("enableSystemLogQuery", "NodeLogQuery", server.system_log_query),
        ];
        gates::refuse(&feature_gates, &gated, findings);
        if gates::is_off(&feature_gates, GRACEFUL_SHUTDOWN) {
            resources.shutdown.clear();
        }
        Config {
            manifests_optional: draft.manifests.is_none(),
            manifests: draft.manifests.unwrap_or_else(|| PathBuf::from(DEFAULT_MANIFESTS)),
            root_dir,
            docker_endpoint: docker_endpoint.unwrap_or_else(|| DEFAULT_DOCKER.to_owned()),
            pod_infra_image: draft.pod_infra_image,
            node_name: draft.node_name,
            max_pods: draft.max_pods.unwrap_or(110),
            cluster_dns: draft.cluster_dns.unwrap_or_default(),
            cluster_domain: draft.cluster_domain.unwrap_or_default(),
            resolv_conf: draft.resolv_conf,
            node_ips,
            seccomp_default: draft.seccomp_default.unwrap_or(false),
            allowed_unsafe_sysctls: draft.allowed_unsafe_sysctls.unwrap_or_default(),
            max_parallel_pulls,
            pull_qps: draft.pull_qps.unwrap_or(5.0),
            pull_burst: draft.pull_burst.unwrap_or(10),
            verification,
            file_check_frequency: draft.file_check_frequency.unwrap_or(Duration::from_secs(20)),
            max_restart_delay: draft.max_restart_delay.unwrap_or(Duration::from_secs(300)),
            fail_swap_on: draft.fail_swap_on,
            fail_cgroup_v1: draft.fail_cgroup_v1,
            single_process_oom_kill: draft.single_process_oom_kill,
            reserved: system_reserved.plus(kube_reserved),
            system_reserved,
            kube_reserved,
            pod_logs_dir: draft.pod_logs_dir.unwrap_or_else(|| PathBuf::from("/var/log/pods")),
            container_logs_dir: draft.container_logs_dir.unwrap_or_else(|| PathBuf::from("/var/log/containers")),
            verbosity: draft.verbosity.unwrap_or(2),
            log_format: draft.log_format.unwrap_or_default(),
            joining,
            server,
            manifest_url: draft.manifest_url.finish(findings),
            network: draft.network.finish(in_cluster, findings),
            resources,
            eviction: draft.eviction.finish(findings),
            credential_providers: Vec::new(),
            feature_gates,
            given_flags: BTreeMap::new(),
        }
    }
}

/// The gate without which nothing is done when the machine goes down.
const GRACEFUL_SHUTDOWN: &str = "GracefulNodeShutdown";

/// When a pod must have credentials for an image that is there, as `ValidateKubeletConfiguration` takes it.
fn verification(
    policy: Option<Policy>,
    allowlist: Option<Vec<String>>,
    gate: bool,
    findings: &mut Findings,
) -> Option<Verification> {
    let (field, list) = ("imagePullCredentialsVerificationPolicy", "preloadedImagesVerificationAllowlist");
    let has_list = allowlist.as_ref().is_some_and(|list| !list.is_empty());
    if !gate {
        for (name, _) in [(field, policy.is_some()), (list, has_list)].into_iter().filter(|(_, is_set)| *is_set) {
            findings.problem(name, "needs the feature gate KubeletEnsureSecretPulledImages, which is off");
        }
        return None;
    }
    let policy = policy.unwrap_or_default();
    if has_list && policy != Policy::NeverVerifyAllowlistedImages {
        findings.problem(list, format!("needs {field}: {}", Policy::NeverVerifyAllowlistedImages.name()));
    }
    Some(Verification { policy, allowlist: allowlist.unwrap_or_default() })
}
