//! The container runtime: making, watching and ending sandboxes and containers, and fetching images.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;

use super::exec::ContainerExec;
use crate::cluster::node_status::NodeImage;
use crate::container::{ContainerConfig, Resources, SandboxConfig};
use crate::node::CgroupDriver;
use crate::observed::Observation;
use crate::pod::PodId;

/// Why the runtime did not do something. All of these are worth another try, after a while.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// It cannot be reached: not there, stopped, or no permission for its socket.
    #[error("the container runtime at {endpoint} cannot be reached: {message}")]
    Unreachable {
        /// Where it should be.
        endpoint: String,
        /// What went wrong and what to do.
        message: String,
    },
    /// It took longer than it may.
    #[error("the container runtime did not answer to {operation} within {seconds} s")]
    Timeout {
        /// What was asked for.
        operation: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
    /// What was named does not exist (any more).
    #[error("{what} does not exist")]
    NotFound {
        /// What was named.
        what: String,
    },
    /// It refused or failed.
    #[error("{operation}: {message}")]
    Failed {
        /// What was asked for.
        operation: &'static str,
        /// What it said.
        message: String,
    },
}

/// Why an image could not be pulled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    /// A gateway says that the registry behind it does not answer: status reason `RegistryUnavailable`.
    #[error("RegistryUnavailable: {message}")]
    RegistryUnavailable {
        /// What was said.
        message: String,
    },
    /// No such image, no access to it, or a failure on the way: status reason `ErrImagePull`.
    #[error("{message}")]
    Failed {
        /// What was said.
        message: String,
    },
    /// The runtime itself failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// What the runtime is and can do.
#[derive(Clone, Debug, PartialEq)]
pub struct RuntimeInfo {
    /// Version of the daemon, e.g. `20.10.24`.
    pub version: String,
    /// Version of its API in use, e.g. `1.41`.
    pub api_version: String,
    /// How it manages cgroups.
    pub cgroup_driver: CgroupDriver,
    /// Whether it runs on the unified hierarchy.
    pub cgroup_v2: bool,
    /// Whether it can confine with AppArmor.
    pub apparmor: bool,
    /// Whether it confines with SELinux.
    pub selinux: bool,
    /// Names of its runtimes.
    pub runtimes: Vec<String>,
    /// Whether it can make a bind read-only with all that is mounted below.
    pub recursive_read_only: bool,
    /// The lowest `oom_score_adj` that it can set, found out by probing once.
    pub min_oom_score_adj: i32,
    /// Cores of the machine.
    pub cpus: u32,
    /// Memory of the machine in bytes.
    pub memory: i64,
    /// The daemon's own folder, for the size of its file system only: nothing in it is read.
    pub data_root: Option<PathBuf>,
}

/// An image that is present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its ID: `sha256:…`.
    pub id: String,
    /// `repo@sha256:…` of the registries that it came from.
    pub repo_digests: Vec<String>,
    /// The user that its processes run as, empty for root.
    pub user: String,
    /// Bytes on disk.
    pub size: u64,
}

/// An image that is present, as collection sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// Its ID: `sha256:…`.
    pub id: String,
    /// Its names: `repo:tag` and `repo@digest`; none for one that lost them.
    pub names: Vec<String>,
    /// Bytes on disk, those that it shares with other images included.
    pub size: u64,
    /// Whether a container of it exists, dead or alive and whosever.
    pub in_use: bool,
    /// Whether it is never to be removed: sandboxes are made of it.
    pub pinned: bool,
}

/// All files of an image, without what says how to run it.
pub struct ImageFiles {
    /// A tar archive of them, in pieces. It ends with an error when it breaks off, or when nothing comes for long.
    pub archive: BoxStream<'static, Result<Bytes, RuntimeError>>,
    /// Paths of empty files, empty folders and links in it that the runtime puts into every container, children before
    /// their parents.
    pub added: &'static [&'static str],
}

/// How far a pull is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// Bytes fetched.
    pub current: u64,
    /// Bytes to fetch, as far as known.
    pub total: u64,
}

/// Credentials for a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum RegistryCredentials {
    /// User name and password.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// A token that was got from an identity provider.
    IdentityToken(String),
}

impl std::fmt::Debug for RegistryCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegistryCredentials(…)")
    }
}

/// Something that happened in the runtime to a thing of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A sandbox or container of that pod was started, ended, or went away: look again.
    Changed {
        /// The pod that it belongs to.
        pod: PodId,
        /// Its ID.
        id: String,
        /// What happened to it, so that one who knows already need not look.
        change: RuntimeChange,
    },
    /// Events may have been lost (the stream broke and is up again): look at everything.
    Resync,
}

/// What happened to a sandbox or container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuntimeChange {
    /// It was started.
    Started,
    /// It ended.
    Died,
    /// It was removed.
    Removed,
    /// Something else: paused, renamed, updated, out of memory.
    Other,
}

/// A container of another agent, found by dockershim's labels without ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignContainer {
    /// ID in the runtime.
    pub id: String,
    /// Name in the runtime.
    pub name: String,
    /// The pod that its labels name.
    pub pod: PodId,
    /// Whether it is a sandbox.
    pub is_sandbox: bool,
    /// Whether it runs.
    pub running: bool,
    /// Root ID of the longshore agent that made it; `None` for dockershim's and cri-dockerd's.
    pub longshore_root: Option<String>,
}

/// Which part of a container's log is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on with what comes.
    pub follow: bool,
    /// Only the last lines.
    pub tail: Option<u64>,
    /// Only what came at or after this time.
    pub since: Option<Timestamp>,
    /// Each line begins with its time (RFC 3339).
    pub timestamps: bool,
}

/// One piece of a container's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogChunk {
    /// Whether it was written to stderr.
    pub stderr: bool,
    /// The bytes.
    pub data: Bytes,
}

/// The container runtime. Every call ends within a time limit of its own; pulls end when nothing has moved for a
/// minute. Everything is confined to what carries our root's label, but for images, which are the whole
/// machine's, and for `foreign` and what it is used for.
#[async_trait]
pub trait ContainerRuntime: ContainerExec {
    /// Asks what it is and can do.
    async fn info(&self) -> Result<RuntimeInfo, RuntimeError>;

    /// All sandboxes and containers of ours, dead ones included. One that cannot be looked at is [`Observation::Unseen`]: it must
    /// not keep the others from being seen.
    async fn list(&self) -> Result<Vec<Observation>, RuntimeError>;

    /// All of one pod's; an error where one of them cannot be looked at.
    async fn list_pod(&self, uid: &str) -> Result<Vec<Observation>, RuntimeError>;

    /// A fresh look at one thing of ours; `None` when it is gone.
    async fn inspect(&self, id: &str) -> Result<Option<Observation>, RuntimeError>;

    /// Makes a sandbox without starting it; the pause image is brought in when it is absent. A name that is taken
    /// by something that is not ours gets dockershim's suffix; a dead one of ours by that name is removed first.
    async fn create_sandbox(&self, config: &SandboxConfig) -> Result<String, RuntimeError>;

    /// Makes a container without starting it; names as for sandboxes.
    async fn create_container(&self, config: &ContainerConfig) -> Result<String, RuntimeError>;

    /// Starts what was made; what runs already stays as it is.
    async fn start(&self, id: &str) -> Result<(), RuntimeError>;

    /// Asks the processes to end, and kills them after `grace`; waits for the end. What is dead or gone is fine.
    async fn stop(&self, id: &str, grace: Duration) -> Result<(), RuntimeError>;

    /// Changes CPU and memory of a container that runs, without a restart; what is zero stays as it is. Memory in use above
    /// a new limit may end its processes, or be refused.
    async fn update(&self, id: &str, resources: &Resources) -> Result<(), RuntimeError>;

    /// Removes what is dead, with its anonymous volumes. What is gone is fine.
    async fn remove(&self, id: &str) -> Result<(), RuntimeError>;

    /// The image of that name or ID; `None` when it is absent.
    async fn image(&self, reference: &str) -> Result<Option<Image>, RuntimeError>;

    /// All images that are present.
    async fn images(&self) -> Result<Vec<NodeImage>, RuntimeError>;

    /// All images that are present, with whether they are used.
    async fn stored_images(&self) -> Result<Vec<StoredImage>, RuntimeError>;

    /// Removes an image, all its names included. One that a container uses stays, and this fails; what is gone is fine.
    async fn remove_image(&self, image: &StoredImage) -> Result<(), RuntimeError>;

    /// Bytes that the writable layers of our containers take, or of one pod's by its UID, by container ID. The runtime may
    /// have to look through all of them: not to be asked often.
    async fn writable_layers(&self, uid: Option<&str>) -> Result<BTreeMap<String, u64>, RuntimeError>;

    /// Fetches an image. Without credentials the daemon's anonymous access is used.
    async fn pull(
        &self,
        reference: &str,
        credentials: Option<&RegistryCredentials>,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<Image, PullError>;

    /// Whether it mounts images into containers itself ([`crate::container::MountSource::Image`]).
    async fn mounts_images(&self) -> Result<bool, RuntimeError>;

    /// The files of an image by its ID, for a runtime that cannot mount it. One at a time is asked for.
    async fn image_files(&self, id: &str) -> Result<ImageFiles, RuntimeError>;

    /// What happens to things of ours, from now on. Never ends; reconnects by itself and says [`RuntimeEvent::Resync`].
    fn events(&self) -> BoxStream<'static, RuntimeEvent>;

    /// A container's log. Once it is open there is an empty piece, before anything was written; with `follow` it ends when
    /// the container does.
    fn logs(&self, id: &str, options: LogOptions) -> BoxStream<'static, Result<LogChunk, RuntimeError>>;

    /// Containers of other agents.
    async fn foreign(&self) -> Result<Vec<ForeignContainer>, RuntimeError>;
}
