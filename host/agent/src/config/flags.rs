//! The daemon's flags, by the kubelet's names. Values are kept as text and checked together with the file's, so
//! that all problems are reported at once.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::eviction::EvictionFlags;
use super::joining::JoiningFlags;
use super::manifest_url::ManifestUrlFlags;
use super::network::NetworkFlags;
use super::resources::ResourceFlags;
use super::server::ServerFlags;

/// The folder that all state lies in, unless told otherwise.
pub(crate) const DEFAULT_ROOT: &str = "/var/lib/longshore";

/// Flags of `longshore run`. `None` where a flag is not given.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct DaemonFlags {
    /// Folder of manifests, or a KubeletConfiguration (kubelet.config.k8s.io/v1beta1) file
    #[arg(long, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    /// Folder of *.conf files, each a KubeletConfiguration, that are laid over the --config file in the order of their names
    #[arg(long, value_name = "DIR")]
    pub(crate) config_dir: Option<PathBuf>,
    /// Folder of manifests [default: /etc/kubernetes/manifests]
    #[arg(long, value_name = "DIR")]
    pub(crate) pod_manifest_path: Option<PathBuf>,
    /// Register the node with the API server [default: true in a cluster]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) register_node: Option<String>,
    /// Where Docker listens [default: $DOCKER_HOST, else unix:///var/run/docker.sock]
    #[arg(long, value_name = "URL")]
    pub(crate) docker_endpoint: Option<String>,
    /// Image of the pods' pause containers, in place of the one in this binary
    #[arg(long, value_name = "IMAGE")]
    pub(crate) pod_infra_container_image: Option<String>,
    /// Name of the node, in place of the host name
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname_override: Option<String>,
    /// How many pods may run [default: 110]
    #[arg(long, value_name = "N")]
    pub(crate) max_pods: Option<String>,
    /// Addresses of the cluster's DNS servers, separated by commas
    #[arg(long, value_name = "IPS")]
    pub(crate) cluster_dns: Vec<String>,
    /// Domain of the cluster
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) cluster_domain: Option<String>,
    /// Resolver configuration that pods' DNS comes from [default: /etc/resolv.conf]; empty for none
    #[arg(long, value_name = "FILE")]
    pub(crate) resolv_conf: Option<PathBuf>,
    /// Addresses of the node, separated by commas [default: those of the default route]
    #[arg(long, value_name = "IPS")]
    pub(crate) node_ip: Option<String>,
    /// Use the runtime's default seccomp profile for containers that have none
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) seccomp_default: Option<String>,
    /// Sysctls, or patterns ending in *, that pods may set beyond the safe ones, separated by commas
    #[arg(long, value_name = "SYSCTLS")]
    pub(crate) allowed_unsafe_sysctls: Vec<String>,
    /// How many images may be pulled at once [default: 4]
    #[arg(long, value_name = "N")]
    pub(crate) max_parallel_image_pulls: Option<String>,
    /// Pull one image after the other
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) serialize_image_pulls: Option<String>,
    /// Image pulls a second; 0 for no limit [default: 5]
    #[arg(long, value_name = "N")]
    pub(crate) registry_qps: Option<String>,
    /// Image pulls in a burst [default: 10]
    #[arg(long, value_name = "N")]
    pub(crate) registry_burst: Option<String>,
    /// How often the manifest folder is re-read, besides inotify [default: 20s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) file_check_frequency: Option<String>,
    /// Refuse to start while swap is on
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) fail_swap_on: Option<String>,
    /// Refuse to start on cgroup v1
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) fail_cgroupv1: Option<String>,
    /// Kept for the system, not for pods: cpu=500m,memory=1Gi,ephemeral-storage=1Gi
    #[arg(long, value_name = "RESOURCES")]
    pub(crate) system_reserved: Vec<String>,
    /// Kept for node agents, not for pods: cpu=500m,memory=1Gi,ephemeral-storage=1Gi
    #[arg(long, value_name = "RESOURCES")]
    pub(crate) kube_reserved: Vec<String>,
    /// Folder of the pods' logs [default: /var/log/pods]
    #[arg(long, value_name = "DIR")]
    pub(crate) pod_logs_dir: Option<PathBuf>,
    /// Folder of links to the containers' logs [default: /var/log/containers]
    #[arg(long, value_name = "DIR")]
    pub(crate) container_logs_dir: Option<PathBuf>,
    /// How much is logged, 0 to 10 [default: 2]
    #[arg(short = 'v', long = "v", value_name = "LEVEL")]
    pub(crate) v: Option<String>,
    /// Format of the log: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) logging_format: Option<String>,
    /// Feature gates: NAME=BOOL, separated by commas; but for KubeletEnsureSecretPulledImages=false they change nothing
    #[arg(long, value_name = "GATES")]
    pub(crate) feature_gates: Vec<String>,
    /// A node in a cluster.
    #[command(flatten, next_help_heading = "Options of a node in a cluster")]
    #[serde(flatten)]
    pub(crate) joining: JoiningFlags,
    /// The node's servers.
    #[command(flatten, next_help_heading = "Options of the node's servers")]
    #[serde(flatten)]
    pub(crate) server: ServerFlags,
    /// The manifest URL.
    #[command(flatten, next_help_heading = "Options of the manifest URL")]
    #[serde(flatten)]
    pub(crate) manifest_url: ManifestUrlFlags,
    /// The pods' network.
    #[command(flatten, next_help_heading = "Options of the pods' network")]
    #[serde(flatten)]
    pub(crate) network: NetworkFlags,
    /// Limits.
    #[command(flatten, next_help_heading = "Options of limits and of images")]
    #[serde(flatten)]
    pub(crate) resources: ResourceFlags,
    /// Eviction.
    #[command(flatten, next_help_heading = "Options of eviction")]
    #[serde(flatten)]
    pub(crate) eviction: EvictionFlags,
}

impl DaemonFlags {
    /// The flags that were given, by name, for those who ask the node for its flags.
    pub(crate) fn given(&self) -> BTreeMap<String, String> {
        let Ok(serde_json::Value::Object(all)) = serde_json::to_value(self) else { return BTreeMap::new() };
        all.into_iter()
            .filter_map(|(name, value)| {
                let text = match value {
                    serde_json::Value::String(text) => text,
                    serde_json::Value::Array(items) if !items.is_empty() => {
                        items.iter().filter_map(|item| item.as_str()).collect::<Vec<_>>().join(",")
                    }
                    _ => return None,
                };
                Some((name.replace('_', "-"), text))
            })
            .collect()
    }
}
