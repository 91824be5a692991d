//! How the node belongs to a cluster: where the API server is, who the node is there, and how often it speaks.
//!
//! Only what is written; reading kubeconfigs and asking for certificates is others' work.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use k8s_openapi::api::core::v1::Taint;
use longshore_core::document::Node;
use serde::Serialize;

use super::draft::{Findings, FlagNotes};
use super::layer::layer;
use super::reader::Reader;
use super::{duration, identity, values};

/// Flags of a node in a cluster.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct JoiningFlags {
    /// Kubeconfig of the API server; without this, --bootstrap-kubeconfig and --api-servers the node runs alone
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Addresses of API servers, separated by commas; the first that answers is used, in place of the kubeconfig's
    #[arg(long, value_name = "URLS")]
    pub(crate) api_servers: Vec<String>,
    /// Kubeconfig to get the first client certificate with, when --kubeconfig does not exist yet
    #[arg(long, value_name = "FILE")]
    pub(crate) bootstrap_kubeconfig: Option<PathBuf>,
    /// Folder of certificates that the API server signed [default: pki in the root folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) cert_dir: Option<PathBuf>,
    /// Ask for a new client certificate before the old one expires [default: true with --bootstrap-kubeconfig]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) rotate_certificates: Option<String>,
    /// Have the API server sign the certificate of the node's own server
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) rotate_server_certificates: Option<String>,
    /// Taints of the node when it is first registered: key=value:effect, separated by commas
    #[arg(long, value_name = "TAINTS")]
    pub(crate) register_with_taints: Vec<String>,
    /// Labels of the node: key=value, separated by commas
    #[arg(long, value_name = "LABELS")]
    pub(crate) node_labels: Vec<String>,
    /// What a cloud calls this machine
    #[arg(long, value_name = "ID")]
    pub(crate) provider_id: Option<String>,
    /// "external" when a cloud controller manager completes the node, else empty
    #[arg(long, value_name = "NAME")]
    pub(crate) cloud_provider: Option<String>,
    /// How often the node's status is looked at [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) node_status_update_frequency: Option<String>,
    /// How many images the node's status lists; -1 for all [default: 50]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) node_status_max_images: Option<String>,
    /// The version that the node reports as its kubelet's, in place of one that fits the API server
    #[arg(long, value_name = "VERSION")]
    pub(crate) kubelet_version: Option<String>,
    /// Requests to the API server a second [default: 50]
    #[arg(long, value_name = "N")]
    pub(crate) kube_api_qps: Option<String>,
    /// Requests to the API server in a burst [default: 100]
    #[arg(long, value_name = "N")]
    pub(crate) kube_api_burst: Option<String>,
    /// Events a second; 0 for 5 [default: 50]
    #[arg(long, value_name = "N")]
    pub(crate) event_qps: Option<String>,
    /// Events in a burst [default: 100]
    #[arg(long, value_name = "N")]
    pub(crate) event_burst: Option<String>,
    /// Key that seals Secrets and tokens kept on disk for when the API server is unreachable: 32 bytes, raw, hexadecimal or base64
    #[arg(long, value_name = "FILE")]
    pub(crate) state_key_file: Option<PathBuf>,
    /// Configuration of exec credential providers: a file, or a folder of such files
    #[arg(long, value_name = "PATH")]
    pub(crate) image_credential_provider_config: Option<PathBuf>,
    /// Folder of the exec credential providers
    #[arg(long, value_name = "DIR")]
    pub(crate) image_credential_provider_bin_dir: Option<PathBuf>,
}

layer! {
    /// What one place says of belonging to a cluster.
    JoiningLayer {
        kubeconfig: PathBuf,
        api_servers: Vec<String>,
        bootstrap_kubeconfig: PathBuf,
        cert_dir: PathBuf,
        rotate_certificates: bool,
        rotate_server_certificates: bool,
        taints: Vec<Taint>,
        provider_id: String,
        external_cloud: bool,
        status_update_frequency: Duration,
        status_report_frequency: Duration,
        lease_seconds: u32,
        status_max_images: i64,
        kubelet_version: String,
        api_qps: u32,
        api_burst: u32,
        event_qps: u32,
        event_burst: u32,
        state_key_file: PathBuf,
        credential_provider_config: PathBuf,
        credential_provider_bin_dir: PathBuf,
    }
    tables {
        labels: String => String,
    }
}

/// How the node belongs to a cluster.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Joining {
    /// Kubeconfig of the API server. May not exist yet when there is one to bootstrap with.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// URLs of API servers, with scheme, without a slash at the end; in place of the kubeconfig's where there are any.
    pub(crate) api_servers: Vec<String>,
    /// Kubeconfig to get the first client certificate with.
    pub(crate) bootstrap_kubeconfig: Option<PathBuf>,
    /// Folder of certificates that the API server signed.
    pub(crate) cert_dir: PathBuf,
    /// Whether the client certificate is renewed before it ends.
    pub(crate) rotate_certificates: bool,
    /// Whether the server's certificate comes from the API server (`serverTLSBootstrap`).
    pub(crate) server_tls_bootstrap: bool,
    /// Whether a missing Node is created. Always false alone.
    pub(crate) register_node: bool,
    /// Taints of a Node that is created.
    pub(crate) taints: Vec<Taint>,
    /// Labels of the Node.
    pub(crate) labels: BTreeMap<String, String>,
    /// `spec.providerID`.
    pub(crate) provider_id: Option<String>,
    /// Whether a cloud controller manager completes the Node (`--cloud-provider=external`).
    pub(crate) external_cloud: bool,
    /// How often the status is computed.
    pub(crate) status_update_frequency: Duration,
    /// How often a status that did not change is posted.
    pub(crate) status_report_frequency: Duration,
    /// Life of the Lease, in seconds; it is renewed at a quarter of it.
    pub(crate) lease_seconds: u32,
    /// How many images the status lists; `None` for all.
    pub(crate) status_max_images: Option<usize>,
    /// The version to report; `None` for one that fits the API server.
    pub(crate) kubelet_version: Option<String>,
    /// Requests a second.
    pub(crate) api_qps: u32,
    /// Requests in a burst.
    pub(crate) api_burst: u32,
    /// Events a second.
    pub(crate) event_qps: u32,
    /// Events in a burst.
    pub(crate) event_burst: u32,
    /// Key file of the state archive; `None` to look for systemd's credential.
    pub(crate) state_key_file: Option<PathBuf>,
    /// CredentialProviderConfig file or folder; set only together with the folder of the providers.
    pub(crate) credential_provider_config: Option<PathBuf>,
    /// Folder of the exec credential providers.
    pub(crate) credential_provider_bin_dir: Option<PathBuf>,
}

impl Joining {
    /// Whether there is an API server; without one the node runs alone.
    pub(crate) fn in_cluster(&self) -> bool {
        self.kubeconfig.is_some() || self.bootstrap_kubeconfig.is_some() || !self.api_servers.is_empty()
    }
}

impl JoiningLayer {
    pub(super) fn from_flags(flags: &JoiningFlags, note: &mut FlagNotes<'_>) -> JoiningLayer {
        let count = |text: &str| values::count(values::whole(text)?);
        JoiningLayer {
            kubeconfig: given(&flags.kubeconfig),
            api_servers: note.all("--api-servers", &flags.api_servers, identity::api_servers),
            bootstrap_kubeconfig: given(&flags.bootstrap_kubeconfig),
            cert_dir: given(&flags.cert_dir),
            rotate_certificates: note.read("--rotate-certificates", &flags.rotate_certificates, values::boolean),
            rotate_server_certificates: note.read(
                "--rotate-server-certificates",
                &flags.rotate_server_certificates,
                values::boolean,
            ),
            taints: note.all("--register-with-taints", &flags.register_with_taints, identity::taints),
            labels: note.all("--node-labels", &flags.node_labels, identity::labels),
            provider_id: flags.provider_id.clone(),
            external_cloud: note.read("--cloud-provider", &flags.cloud_provider, identity::external_cloud),
            status_update_frequency: note.read(
                "--node-status-update-frequency",
                &flags.node_status_update_frequency,
                |text| duration::parse(text).and_then(values::positive),
            ),
            status_report_frequency: None,
            lease_seconds: None,
            status_max_images: note.read("--node-status-max-images", &flags.node_status_max_images, |text| {
                max_images(values::whole(text)?)
            }),
            kubelet_version: note.read("--kubelet-version", &flags.kubelet_version, identity::kubelet_version),
            api_qps: note.read("--kube-api-qps", &flags.kube_api_qps, count),
            api_burst: note.read("--kube-api-burst", &flags.kube_api_burst, count),
            event_qps: note.read("--event-qps", &flags.event_qps, count),
            event_burst: note.read("--event-burst", &flags.event_burst, count),
            state_key_file: given(&flags.state_key_file),
            credential_provider_config: given(&flags.image_credential_provider_config),
            credential_provider_bin_dir: given(&flags.image_credential_provider_bin_dir),
        }
    }

    /// Reads a field of this group; false when it is of another.
    pub(super) fn field(&mut self, reader: &mut Reader<'_>, key: &str, node: &Node) -> bool {
        match key {
            "eventBurst" => self.event_burst = reader.whole(key, node, values::count),
            "eventRecordQPS" => self.event_qps = reader.whole(key, node, values::count),
            "kubeAPIBurst" => self.api_burst = reader.whole(key, node, values::count),
            "kubeAPIQPS" => self.api_qps = reader.whole(key, node, values::count),
            "nodeLeaseDurationSeconds" => self.lease_seconds = reader.whole(key, node, values::count),
            "nodeStatusMaxImages" => self.status_max_images = reader.whole(key, node, max_images),
            "nodeStatusReportFrequency" => self.status_report_frequency = reader.duration(key, node, values::positive),
            "nodeStatusUpdateFrequency" => self.status_update_frequency = reader.duration(key, node, values::positive),
            "providerID" => self.provider_id = reader.text(key, node, Ok),
            "registerWithTaints" => self.taints = identity::read_taints(reader, key, node),
            "rotateCertificates" => self.rotate_certificates = reader.boolean(key, node),
            "serverTLSBootstrap" => self.rotate_server_certificates = reader.boolean(key, node),
            _ => return false,
        }
        true
    }

    /// Completes what all files together say. As the kubelet: a file that says how often the status is looked at, and nothing
    /// else, means how often it is posted, too (`pkg/kubelet/apis/config/v1beta1/defaults.go`). A flag does not.
    pub(super) fn complete_files(&mut self) {
        self.status_report_frequency = self.status_report_frequency.or(self.status_update_frequency);
    }

    /// The group, complete, with the kubelet's defaults (`pkg/kubelet/apis/config/v1beta1/defaults.go`).
    pub(super) fn finish(self, root: &Path, register_node: Option<bool>, findings: &mut Findings) -> Joining {
        let provider = match (self.credential_provider_config, self.credential_provider_bin_dir) {
            (Some(config), Some(folder)) => (Some(config), Some(folder)),
            (None, None) => (None, None),
            _ => {
                let message = "works only together with --image-credential-provider-bin-dir: give both or neither";
                findings.problem("--image-credential-provider-config", message);
                (None, None)
            }
        };
        let rotate_certificates = self.rotate_certificates.unwrap_or(self.bootstrap_kubeconfig.is_some());
        let non_zero = |value: Option<u32>, default| value.filter(|value| *value > 0).unwrap_or(default);
        let mut joining = Joining {
            kubeconfig: self.kubeconfig,
            api_servers: self.api_servers.unwrap_or_default(),
            bootstrap_kubeconfig: self.bootstrap_kubeconfig,
            cert_dir: self.cert_dir.unwrap_or_else(|| root.join("pki")),
            rotate_certificates,
            server_tls_bootstrap: self.rotate_server_certificates.unwrap_or(false),
            register_node: register_node.unwrap_or(true),
            taints: self.taints.unwrap_or_default(),
            labels: self.labels.map(|table| table.entries).unwrap_or_default(),
            provider_id: self.provider_id.filter(|id| !id.is_empty()),
            external_cloud: self.external_cloud.unwrap_or(false),
            status_update_frequency: self.status_update_frequency.unwrap_or(Duration::from_secs(10)),
            status_report_frequency: self.status_report_frequency.unwrap_or(Duration::from_secs(300)),
            lease_seconds: non_zero(self.lease_seconds, 40),
            status_max_images: usize::try_from(self.status_max_images.unwrap_or(50)).ok(),
            kubelet_version: self.kubelet_version,
            api_qps: non_zero(self.api_qps, 50),
            api_burst: non_zero(self.api_burst, 100),
            event_qps: self.event_qps.unwrap_or(50),
            event_burst: non_zero(self.event_burst, 100),
            state_key_file: self.state_key_file,
            credential_provider_config: provider.0,
            credential_provider_bin_dir: provider.1,
        };
        joining.register_node &= joining.in_cluster();
        if joining.state_key_file.is_some() && !joining.in_cluster() {
            let message =
                "--state-key-file has no effect on a node that runs alone: it seals what is kept of an API server";
            findings.warnings.push(message.to_owned());
        }
        joining
    }
}

/// A path that was given and is not empty: `--kubeconfig=` means none, as for the kubelet.
pub(super) fn given(path: &Option<PathBuf>) -> Option<PathBuf> {
    path.clone().filter(|path| !path.as_os_str().is_empty())
}

fn max_images(value: i64) -> Result<i64, String> {
    values::number(-1..=i64::from(i32::MAX))(value)
}
