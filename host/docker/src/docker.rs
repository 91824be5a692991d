//! The adapter itself: its options, what its parts share, and the port's methods, each of which hands over to the
//! file that owns it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use longshore_core::cluster::node_status::NodeImage;
use longshore_core::container::{ContainerConfig, Resources, SandboxConfig, SandboxNetwork};
use longshore_core::observed::Observation;
use longshore_core::ports::exec::{ContainerExec, ExecError, ExecOutput, ExecRequest};
use longshore_core::ports::runtime::{
    ContainerRuntime, ForeignContainer, Image, ImageFiles, LogChunk, LogOptions, PullError, PullProgress,
    RegistryCredentials, RuntimeError, RuntimeEvent, RuntimeInfo, StoredImage,
};
use tokio::sync::{Mutex, Semaphore};

use crate::connection::Connection;
use crate::known::Known;
use crate::packet_filter::Behind;

/// How the adapter is set up.
#[derive(Clone, Debug)]
pub struct DockerOptions {
    /// Image of the pause process, pulled when it is absent; `None` for the one in the binary, which is loaded.
    pub pause_image: Option<String>,
    /// How many creates, starts and removals are under way at a time; more make Docker slower.
    pub in_flight: usize,
    /// How many commands of probes run in containers at a time at most, those that hang among them.
    pub execs: usize,
    /// How long the daemon may take beyond a command's time for all else that it is asked of it.
    pub cleanup: Duration,
    /// A pull is given up when nothing moved for so long (the kubelet's `--image-pull-progress-deadline`).
    pub pull_stall: Duration,
    /// A file that outlives the agent, in a folder that exists: it keeps what was found out about the daemon
    /// since the machine booted (see `info.rs`). `None` finds out anew in every process.
    pub cache: Option<PathBuf>,
    /// A folder whose `config.json` may have credentials of `pause_image`, before `$DOCKER_CONFIG` or `~/.docker`.
    pub config_dir: Option<PathBuf>,
    /// Bounds of containers' logs.
    pub logs: LogBounds,
}

/// Bounds of a container's log, where Docker's log driver is one that rotates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogBounds {
    /// Bytes of a file before the next is begun (`containerLogMaxSize`).
    pub max_size: u64,
    /// Files that are kept (`containerLogMaxFiles`).
    pub max_files: u32,
}

impl Default for DockerOptions {
    /// Two heavy calls per core. As many commands as there are calls of plugins at a time: the queues that count are theirs
    /// and the probes' scheduler's, and a wait here would be charged to the call.
    fn default() -> DockerOptions {
        DockerOptions {
            pause_image: None,
            in_flight: 2 * cores(),
            execs: 128,
            cleanup: Duration::from_secs(10),
            pull_stall: Duration::from_secs(60),
            cache: None,
            config_dir: None,
            // The kubelet's defaults.
            logs: LogBounds { max_size: 10 << 20, max_files: 5 },
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// The container runtime on a Docker daemon, which may come, go and be upgraded meanwhile. Clones share everything.
#[derive(Clone)]
pub struct Docker {
    shared: Arc<Shared>,
}

struct Shared {
    connection: Connection,
    root_id: String,
    options: DockerOptions,
    known: Known,
    heavy: Semaphore,
    execs: Arc<Semaphore>,
    /// Held while the pause image is brought in.
    pause: Mutex<()>,
    /// Held while an image's files are read.
    reading: Arc<Mutex<()>>,
    /// See `info.rs`: of which daemon, and the value.
    oom_floor: Mutex<Option<(String, i32)>>,
    /// See `networks.rs`: of which network, and its device.
    bridge: Mutex<Option<(SandboxNetwork, String)>>,
    /// See `packet_filter.rs`: what was not told yet.
    behind: Mutex<Behind>,
}

impl Docker {
    /// Sets up the adapter for the daemon at `endpoint` (`unix:///path` or `tcp://host:port`) and the agent whose
    /// root folder has that ID. The daemon need not be there: it is sought at every call. An error means that the
    /// endpoint cannot be one.
    pub fn connect(endpoint: &str, root_id: String, options: DockerOptions) -> Result<Docker, RuntimeError> {
        let shared = Shared {
            connection: Connection::new(endpoint)?,
            root_id,
            known: Known::default(),
            heavy: Semaphore::new(options.in_flight.max(1)),
            execs: Arc::new(Semaphore::new(options.execs.max(1))),
            pause: Mutex::new(()),
            reading: Arc::default(),
            oom_floor: Mutex::new(None),
            bridge: Mutex::new(None),
            behind: Mutex::default(),
            options,
        };
        Ok(Docker { shared: Arc::new(shared) })
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.shared.connection
    }

    pub(crate) fn known(&self) -> &Known {
        &self.shared.known
    }

    pub(crate) fn root_id(&self) -> &str {
        &self.shared.root_id
    }

    pub(crate) fn options(&self) -> &DockerOptions {
        &self.shared.options
    }

    /// Slots for heavy calls.
    pub(crate) fn heavy(&self) -> &Semaphore {
        &self.shared.heavy
    }

    /// Slots for commands in containers.
    pub(crate) fn execs(&self) -> &Arc<Semaphore> {
        &self.shared.execs
    }

    pub(crate) fn pause(&self) -> &Mutex<()> {
        &self.shared.pause
    }

    pub(crate) fn reading(&self) -> &Arc<Mutex<()>> {
        &self.shared.reading
    }

    pub(crate) fn oom_floor(&self) -> &Mutex<Option<(String, i32)>> {
        &self.shared.oom_floor
    }

    pub(crate) fn bridge(&self) -> &Mutex<Option<(SandboxNetwork, String)>> {
        &self.shared.bridge
    }

    pub(crate) fn behind(&self) -> &Mutex<Behind> {
        &self.shared.behind
    }

    /// How many inspects of a list are under way at a time.
    pub(crate) fn inspects(&self) -> usize {
        (2 * cores()).max(4)
    }
}

#[async_trait]
impl ContainerRuntime for Docker {
    async fn info(&self) -> Result<RuntimeInfo, RuntimeError> {
        self.find_out().await
    }

    async fn list(&self) -> Result<Vec<Observation>, RuntimeError> {
        self.look_at_all(None).await
    }

    async fn list_pod(&self, uid: &str) -> Result<Vec<Observation>, RuntimeError> {
        self.look_at_all(Some(uid)).await
    }

    async fn inspect(&self, id: &str) -> Result<Option<Observation>, RuntimeError> {
        self.look(id).await
    }

    async fn create_sandbox(&self, config: &SandboxConfig) -> Result<String, RuntimeError> {
        self.make_sandbox(config).await
    }

    async fn create_container(&self, config: &ContainerConfig) -> Result<String, RuntimeError> {
        self.make_container(config).await
    }

    async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        self.start_ours(id).await
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        self.stop_ours(id, grace).await
    }

    async fn update(&self, id: &str, resources: &Resources) -> Result<(), RuntimeError> {
        self.update_ours(id, resources).await
    }

    async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        self.remove_ours(id).await
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>, RuntimeError> {
        self.find_image(reference).await
    }

    async fn images(&self) -> Result<Vec<NodeImage>, RuntimeError> {
        self.all_images().await
    }

    async fn stored_images(&self) -> Result<Vec<StoredImage>, RuntimeError> {
        self.list_stored_images().await
    }

    async fn remove_image(&self, image: &StoredImage) -> Result<(), RuntimeError> {
        self.remove_stored_image(image).await
    }

    async fn writable_layers(&self, uid: Option<&str>) -> Result<BTreeMap<String, u64>, RuntimeError> {
        self.measure_layers(uid).await
    }

    async fn pull(
        &self,
        reference: &str,
        credentials: Option<&RegistryCredentials>,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<Image, PullError> {
        self.fetch_image(reference, credentials, progress).await
    }

    async fn mounts_images(&self) -> Result<bool, RuntimeError> {
        self.can_mount_images().await
    }

    async fn image_files(&self, id: &str) -> Result<ImageFiles, RuntimeError> {
        self.read_image(id).await
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        self.clone().watch()
    }

    fn logs(&self, id: &str, options: LogOptions) -> BoxStream<'static, Result<LogChunk, RuntimeError>> {
        self.clone().read_log(id.to_owned(), options)
    }

    async fn foreign(&self) -> Result<Vec<ForeignContainer>, RuntimeError> {
        self.find_foreign().await
    }
}

#[async_trait]
impl ContainerExec for Docker {
    async fn exec(&self, request: ExecRequest) -> Result<ExecOutput, ExecError> {
        self.run_in_container(request).await
    }
}
