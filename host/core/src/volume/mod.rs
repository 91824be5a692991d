//! Volumes: from a pod's spec and its objects to what must be on the node's disk.
//!
//! [`VolumeSpec`] says what a volume holds, completely; making it so is the filesystem's work.

mod image;
mod nested;
mod payload;
mod references;
mod resolve;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1;

use crate::pod::Pod;
use crate::ports::objects::{BoundClaim, PodCertificate, Token};

pub use self::image::{ImageVolume, mounted_images};
pub(crate) use self::payload::secret_data;
pub use self::references::{
    IssuedKind, IssuedReference, ObjectKind, ObjectReference, User, claim_of, issued_references, named, pull_secrets,
    references, service_account, used,
};
pub use self::resolve::{
    VolumeProblem, for_one_pod, groups, is_read_only, is_untyped_host_path, not_set_up, on_disk, resolve, resolve_each,
    size_limits, spec_name,
};

/// A volume that a pod needs on the node.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeSpec {
    /// Its name in the pod's spec.
    pub name: String,
    /// What it holds.
    pub kind: VolumeKind,
    /// Folders in it that containers mount something else on and cannot make themselves, relative.
    pub mount_points: Vec<String>,
}

/// What a volume holds.
#[derive(Clone, Debug, PartialEq)]
pub enum VolumeKind {
    /// `emptyDir`.
    EmptyDir {
        /// On tmpfs (`medium: Memory`).
        memory: bool,
        /// `sizeLimit` in bytes: the tmpfs's size; on disk it is watched, not enforced.
        size_limit: Option<u64>,
    },
    /// `emptyDir` of huge pages (`medium: HugePages[-<size>]`).
    HugePages {
        /// Size of its pages in bytes.
        page: u64,
    },
    /// `hostPath`.
    HostPath {
        /// Path on the node.
        path: PathBuf,
        /// What must be, or is made, there.
        kind: HostPathKind,
    },
    /// A `local` PersistentVolume: a folder of the node that is the pod's while it has the claim.
    Local {
        /// Path on the node.
        path: PathBuf,
        /// Whether its claim is only read: its owner stays then.
        read_only: bool,
        /// Options of its mount; without any it is used where it is.
        options: Vec<String>,
    },
    /// `nfs`.
    Nfs {
        /// Name or address of the server.
        server: String,
        /// The folder on it, absolute.
        path: String,
        /// Options of the mount, `ro` among them.
        options: Vec<String>,
    },
    /// `configMap`, `secret`, `downwardAPI`, `projected`: files, replaced together when they change.
    Payload {
        /// Content by relative path (`a/b`, never absolute, never with `..`).
        files: BTreeMap<String, PayloadFile>,
        /// Kept on tmpfs: what holds secrets never touches a disk.
        memory: bool,
        /// kubelet's folder name for the plugin: `kubernetes.io~configmap`, `~secret`, `~downward-api`, `~projected`.
        plugin: &'static str,
    },
}

/// A file of a payload volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadFile {
    /// Content.
    pub data: Vec<u8>,
    /// Mode bits.
    pub mode: u32,
    /// Who owns it, where that is not root.
    pub user: Option<u32>,
}

/// `hostPath.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPathKind {
    /// No check.
    Unset,
    /// A folder, made with 0755 when absent.
    DirectoryOrCreate,
    /// A folder that exists.
    Directory,
    /// A file, made with 0644 when absent.
    FileOrCreate,
    /// A file that exists.
    File,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// `securityContext.fsGroup` and its change policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsGroup {
    /// Group ID that volumes belong to.
    pub gid: u32,
    /// `OnRootMismatch`: nothing is done when the volume's root already fits.
    pub on_root_mismatch: bool,
}

impl FsGroup {
    /// What a pod says of it.
    pub fn of(pod: &Pod) -> Option<FsGroup> {
        let security = pod.spec().security_context.as_ref()?;
        let gid = u32::try_from(security.fs_group?).ok()?;
        let on_root_mismatch = security.fs_group_change_policy.as_deref() == Some("OnRootMismatch");
        Some(FsGroup { gid, on_root_mismatch })
    }
}

/// What a pod refers to, as far as it exists.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// ConfigMaps of the pod's namespace by name.
    pub config_maps: BTreeMap<String, Arc<v1::ConfigMap>>,
    /// Secrets of the pod's namespace by name.
    pub secrets: BTreeMap<String, Arc<v1::Secret>>,
    /// What its projected volumes get from the API server, by volume and index of the source; or why it cannot be had.
    pub issued: BTreeMap<(String, usize), Result<Issued, String>>,
    /// Claims of the pod's namespace by name, or why they cannot be looked up.
    pub claims: BTreeMap<String, Result<BoundClaim, String>>,
}

impl Objects {
    /// Whether there is a ConfigMap or Secret among them that is not among `others`, or has other data there.
    pub fn hold_more_than(&self, others: &Objects) -> bool {
        let config_maps = self.config_maps.iter().any(|(name, one)| {
            let other = others.config_maps.get(name);
            other.is_none_or(|other| (&one.data, &one.binary_data) != (&other.data, &other.binary_data))
        });
        config_maps
            || self
                .secrets
                .iter()
                .any(|(name, one)| others.secrets.get(name).is_none_or(|other| one.data != other.data))
    }
}

/// What the API server issues for one source of a projected volume.
#[derive(Clone, Debug, PartialEq)]
pub enum Issued {
    /// A token of the pod's ServiceAccount.
    Token(Token),
    /// Certificates of ClusterTrustBundles, PEM; `None` when there are none.
    TrustBundles(Option<String>),
    /// The pod's certificate.
    Certificate(PodCertificate),
}
