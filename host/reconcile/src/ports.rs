//! What the loops are made from: their ports, and how they are set up.
//!
//! Declarations only; the loops themselves are [`crate::node`]'s and its neighbours'.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1;
use longshore_core::backoff::Policy;
use longshore_core::cgroup::PodsLimits;
use longshore_core::credentials::access::{OwnedCredentials, Verification};
use longshore_core::node::Surroundings;
use longshore_core::pod::PodId;
use longshore_core::ports::files::FileStore;
use longshore_core::ports::network::{BridgeNetworks, NetworkPlugins};
use longshore_core::ports::objects::ObjectStore;
use longshore_core::ports::probes::ProbePlugins;
use longshore_core::ports::pulls::PullRecords;
use longshore_core::ports::runtime::ContainerRuntime;
use longshore_core::ports::sources::PodSource;
use longshore_core::ports::stats::Stats;

use crate::events::EventRing;
use crate::health::Health;
use crate::network::NetworkOptions;
use crate::views::Views;
use crate::{collection, eviction, shutdown};

/// An image that is to be pulled for a pod.
#[derive(Clone, Debug)]
pub struct ImagePull {
    /// The image, as the pod names it.
    pub image: String,
    /// The pod.
    pub pod: PodId,
    /// `spec.serviceAccountName`, empty where the pod names none.
    pub service_account: String,
}

/// Looks up the node's own credentials for an image: its configuration's first, then its providers'.
pub type NodeCredentials = Arc<dyn Fn(ImagePull) -> BoxFuture<'static, Vec<OwnedCredentials>> + Send + Sync>;

/// Asks the API server for our Node as it is there now; `None` when it cannot tell, or has none.
pub type AskForNode = Arc<dyn Fn() -> BoxFuture<'static, Option<v1::Node>> + Send + Sync>;

/// The status that the API server last told of a pod, by UID.
pub type StatusOf = Arc<dyn Fn(&str) -> Option<v1::PodStatus> + Send + Sync>;

/// Looks at what of the node changes while the agent runs.
pub type Look = Arc<dyn Fn() -> BoxFuture<'static, Surroundings> + Send + Sync>;

/// What pods' workers ask of the API server.
#[derive(Clone)]
pub struct ApiPorts {
    /// What its pods refer to, and Services for all pods.
    pub objects: Arc<dyn ObjectStore>,
    /// What it knows of its pods.
    pub status: StatusOf,
    /// The Node, for admission.
    pub node: AskForNode,
}

/// What the loops need of the world.
#[derive(Clone)]
pub struct Ports {
    /// The container runtime.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// What pods have on the disk.
    pub files: Arc<dyn FileStore>,
    /// How images came.
    pub pulls: Arc<dyn PullRecords>,
    /// ConfigMaps and Secrets of pods that are not the API server's.
    pub objects: Arc<dyn ObjectStore>,
    /// The API server; `None` on a node that runs alone.
    pub api: Option<ApiPorts>,
    /// The node's addresses and names.
    pub look: Look,
    /// What the node and its pods use.
    pub stats: Arc<dyn Stats>,
    /// Probe plugins.
    pub probes: Arc<dyn ProbePlugins>,
    /// The node's own credentials for an image, tried after the pod's.
    pub credentials: NodeCredentials,
    /// Pod sources.
    pub sources: Vec<Arc<dyn PodSource>>,
    /// Where events go.
    pub events: Arc<EventRing>,
    /// Where pods' states go.
    pub views: Arc<Views>,
    /// Where it goes whether pods can be run.
    pub health: Arc<Health>,
    /// The runtime's own networks.
    pub bridges: Arc<dyn BridgeNetworks>,
    /// CNI plugins.
    pub plugins: Arc<dyn NetworkPlugins>,
    /// What has all pods end.
    pub shutdown: Arc<shutdown::Control>,
}

/// How the loops are set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Pulls at a time; 1 pulls one after the other.
    pub max_parallel_pulls: usize,
    /// Pulls a second over time; 0 for no limit.
    pub pull_qps: f64,
    /// Pulls at once before `pull_qps` applies.
    pub pull_burst: u32,
    /// Which images that are there a pod must have credentials for; `None` for none, and how they came is not recorded.
    pub verification: Option<Verification>,
    /// Delays of restarts after crashes.
    pub crash_loop: Policy,
    /// Execs (probes) that are started at a time: the machine's cores.
    pub max_execs: usize,
    /// When pods are evicted.
    pub eviction: eviction::Options,
    /// When images are removed.
    pub images: collection::Options,
    /// How pods end when the machine goes down.
    pub shutdown: shutdown::Options,
    /// How often everything is looked at again, events aside.
    pub resync: Duration,
    /// How often tokens and certificates in volumes are looked after, besides whenever their store says so, and volumes that
    /// could not be brought up to date.
    pub remount: Duration,
    /// How the pods' network is set up.
    pub network: NetworkOptions,
    /// What all pods may have together; `None` to leave that as it is.
    pub pods_limits: Option<PodsLimits>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_parallel_pulls: 1,
            pull_qps: 5.0,
            pull_burst: 10,
            verification: Some(Verification::default()),
            crash_loop: Policy::CRASH_LOOP,
            max_execs: std::thread::available_parallelism().map_or(2, usize::from),
            eviction: eviction::Options::default(),
            images: collection::Options::default(),
            shutdown: shutdown::Options::default(),
            resync: Duration::from_secs(60),
            // The kubelet: 60 to 90.
            remount: Duration::from_secs(75),
            network: NetworkOptions::default(),
            pods_limits: None,
        }
    }
}
