//! What pods have on the node's disk: folders, volumes, records, log links, cgroups.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use crate::cgroup::{PodCgroup, PodsLimits};
use crate::pod::PodId;
use crate::ports::runtime::ImageFiles;
use crate::record::StoredPod;
use crate::volume::{FsGroup, VolumeSpec};

/// Why something on the disk could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    /// A volume cannot be set up; the event is `FailedMount`.
    #[error("volume {volume:?}: {message}")]
    Volume {
        /// Name of the volume in the pod's spec.
        volume: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// A file or folder cannot be read or written.
    #[error("{path}: {message}", path = .path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What went wrong.
        message: String,
    },
    /// This node does not let it be done, today or later; the text says what and why.
    #[error("{0}")]
    NotAllowed(String),
}

/// What a pod needs on the disk before its sandbox starts.
#[derive(Clone, Debug, PartialEq)]
pub struct PodFilesSpec {
    /// The pod.
    pub pod: PodId,
    /// Its volumes.
    pub volumes: Vec<VolumeSpec>,
    /// Names of all volumes that it may have, those of images and those that cannot be had now included: what it has of
    /// others is taken away. `None` while something may use them.
    pub only: Option<BTreeSet<String>>,
    /// Group that volumes are handed to.
    pub fs_group: Option<FsGroup>,
    /// Content of its /etc/resolv.conf.
    pub resolv_conf: String,
    /// Whether its resolv.conf is made anew, for a new sandbox; else one that is there stays as it is.
    pub new_resolv_conf: bool,
}

/// Where things of a pod are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFiles {
    /// Folder or file of each volume, by name.
    pub volumes: BTreeMap<String, PathBuf>,
    /// Its resolv.conf.
    pub resolv_conf: PathBuf,
    /// Its hosts file (see [`FileStore::write_hosts`]).
    pub hosts: PathBuf,
    /// Folder of its containers' termination messages, which is there with the first.
    pub messages: PathBuf,
}

/// A part of a volume that is mounted in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubPath {
    /// Name of the volume.
    pub volume: String,
    /// Where the volume is.
    pub root: PathBuf,
    /// `subPath`, expanded; relative, without `..`.
    pub path: String,
    /// Container that mounts it.
    pub container: String,
    /// Index of the mount in the container's `volumeMounts`.
    pub index: usize,
}

/// What something takes on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes.
    pub bytes: u64,
    /// Inodes: files and folders, itself included.
    pub inodes: u64,
}

impl DiskUsage {
    /// Both together.
    #[must_use]
    pub fn plus(self, more: DiskUsage) -> DiskUsage {
        DiskUsage { bytes: self.bytes.saturating_add(more.bytes), inodes: self.inodes.saturating_add(more.inodes) }
    }
}

/// What something takes on a disk, as far as that was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// What was counted.
    pub usage: DiskUsage,
    /// Whether that is all; else it takes that at least.
    pub whole: bool,
}

impl Measured {
    /// Both together.
    #[must_use]
    pub fn plus(self, more: Measured) -> Measured {
        Measured { usage: self.usage.plus(more.usage), whole: self.whole && more.whole }
    }
}

/// What is stored of pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// Those that could be read.
    pub pods: Vec<StoredPod>,
    /// What is wrong with records that are damaged; they are left where they are.
    pub damaged: Vec<FilesError>,
    /// Why the disk does not give others, which may be good.
    pub unread: Vec<FilesError>,
}

/// What pods have on the node's disk. Every method may be called again and finishes what was half done.
#[async_trait]
pub trait FileStore: Send + Sync {
    /// Makes a pod's folder, sets up its volumes and brings payloads up to date.
    async fn prepare(&self, spec: &PodFilesSpec) -> Result<PodFiles, FilesError>;

    /// Writes the pod's hosts file, when its content differs.
    async fn write_hosts(&self, pod: &PodId, content: &str) -> Result<(), FilesError>;

    /// Mounts an image's files, read-only, as a volume of the pod; says where. `None` when they have not been unpacked. From
    /// now on until [`FileStore::release`] they are the pod's, too.
    async fn image_volume(&self, pod: &PodId, volume: &str, image: &str) -> Result<Option<PathBuf>, FilesError>;

    /// Unpacks an image's files, for all pods that mount it. They go when no pod has them any more. Takes as long as their
    /// size and the runtime make it, and stops before the disk is full. One at a time is asked for.
    async fn unpack_image(&self, image: &str, files: ImageFiles) -> Result<(), FilesError>;

    /// A path on the node that is the sub-path of a volume and cannot be led out of it by a link, now or later
    /// (as `pkg/volume/util/subpath`). A missing one is made as a folder.
    async fn sub_path(&self, pod: &PodId, sub_path: &SubPath) -> Result<PathBuf, FilesError>;

    /// What is in a file of a volume, at most `limit` bytes: more is an error. No link leads out of the volume.
    async fn read_volume(&self, pod: &PodId, root: &Path, path: &str, limit: usize) -> Result<Vec<u8>, FilesError>;

    /// An empty file for a container's termination message.
    async fn termination_file(&self, pod: &PodId, container: &str, attempt: u32) -> Result<PathBuf, FilesError>;

    /// What a container wrote there, at most `limit` bytes; empty when there is nothing or no file.
    async fn read_termination_message(&self, file: &Path, limit: usize) -> String;

    /// Links a container's log to `/var/log/pods/…` and `/var/log/containers/…`. `runtime_log` is
    /// the runtime's own file; the links' paths come from [`FileStore::log_path`].
    async fn link_log(
        &self,
        pod: &PodId,
        container: &str,
        attempt: u32,
        id: &str,
        runtime_log: &Path,
    ) -> Result<(), FilesError>;

    /// Takes a container's log links away.
    async fn unlink_log(&self, pod: &PodId, container: &str, attempt: u32, id: &str);

    /// Path of a container's log link below the pods' log folder.
    fn log_path(&self, pod: &PodId, container: &str, attempt: u32) -> PathBuf;

    /// Makes the pod's cgroup and those above it, with these limits; nothing where cgroups may not be written.
    async fn prepare_cgroup(&self, cgroup: &PodCgroup) -> Result<(), FilesError>;

    /// Has the kernel end a running container as a whole when its memory does not suffice (`memory.oom.group` of cgroup v2);
    /// nothing where that cannot be had, or when it has ended.
    async fn kill_together(&self, cgroup: &PodCgroup, container: &str) -> Result<(), FilesError>;

    /// Limits all pods together, from now on; where nothing is limited and no pod has run yet there is nothing to do.
    /// [`FilesError::NotAllowed`] where cgroups may not be written.
    async fn limit_pods(&self, limits: &PodsLimits) -> Result<(), FilesError>;

    /// Takes the pod's cgroup away, when nothing is in it.
    async fn remove_cgroup(&self, cgroup: &PodCgroup) -> Result<(), FilesError>;

    /// Unmounts and removes all that a pod has on the disk but its record and logs of containers that still exist.
    async fn release(&self, pod: &PodId) -> Result<(), FilesError>;

    /// Reads all stored pods. An error is not "none": the disk did not say what is stored, and is to be asked again.
    async fn load_all(&self) -> Result<Records, FilesError>;

    /// Stores a pod, in one atomic step.
    async fn save(&self, uid: &str, stored: &StoredPod) -> Result<(), FilesError>;

    /// Forgets a pod: its record and its folder.
    async fn forget(&self, uid: &str) -> Result<(), FilesError>;

    /// UIDs of all pods that have a folder.
    async fn pod_folders(&self) -> Vec<String>;

    /// A seccomp profile for `Localhost`: the text of `<root>/seccomp/<name>`, refused when it leads out of there.
    async fn seccomp_profile(&self, name: &str) -> Result<String, FilesError>;

    /// What a folder's files take, or one file, hard links counted once, as far as it can be said in time; `None` when it is
    /// not there.
    async fn usage(&self, path: &Path) -> Option<Measured>;
}
