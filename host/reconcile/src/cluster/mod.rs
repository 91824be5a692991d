//! The node in its cluster: it is registered, its Lease renewed, its pods' status and events carried to the API server,
//! static pods mirrored there.
//!
//! Everything here reads what was published and talks to the API server; nothing here acts on a pod of this machine.
//! Without an API server these loops wait, and the pods go on.

mod events;
mod lease;
mod mirrors;
mod node;
mod status;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use longshore_core::cluster::node::NodeDescription;
use longshore_core::ports::cluster::{ApiError, ApiPods, ClusterApi, OwnNode};
use longshore_core::ports::runtime::ContainerRuntime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::events::EventRing;
use crate::health::Health;
use crate::views::Views;

/// What the loops are made from.
#[derive(Clone)]
pub struct Cluster {
    /// The API server.
    pub api: Arc<dyn ClusterApi>,
    /// Our Node as the API server has it.
    pub own_node: Arc<dyn OwnNode>,
    /// This node's pods as the API server has them.
    pub pods: Arc<dyn ApiPods>,
    /// The container runtime, for the list of images.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// What the pods' workers published.
    pub views: Arc<Views>,
    /// What happened.
    pub events: Arc<EventRing>,
    /// Whether pods can be run.
    pub health: Arc<Health>,
    /// What the node says of itself.
    pub description: NodeDescription,
    /// Its addresses as they are now, the primary one first.
    pub addresses: watch::Receiver<Vec<IpAddr>>,
    /// How often, and whether at all.
    pub options: ClusterOptions,
}

/// How the node keeps in touch.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Whether a Node that does not exist is created (`--register-node`).
    pub register: bool,
    /// How often the status is computed (`nodeStatusUpdateFrequency`).
    pub update: Duration,
    /// How often it is posted when nothing changed (`nodeStatusReportFrequency`).
    pub report: Duration,
    /// How long the Lease is good (`nodeLeaseDurationSeconds`); it is renewed four times as often.
    pub lease: Duration,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        ClusterOptions {
            register: true,
            update: Duration::from_secs(10),
            report: Duration::from_secs(300),
            lease: Duration::from_secs(40),
        }
    }
}

/// Runs the loops until `stop`.
pub async fn run(cluster: Cluster, stop: CancellationToken) {
    // The Node's UID, once it is registered: its Lease and its mirror pods belong to it.
    let (uid, registered) = watch::channel(None);
    // The API server's version as it was last told: another one may know more of a pod's status.
    let (version, server) = watch::channel(None);
    // Cancel safe: each loop begins again from what the API server has.
    tokio::select! {
        () = stop.cancelled() => {}
        () = node::follow(&cluster) => {}
        () = node::run(&cluster, uid, version) => {}
        () = lease::run(&cluster, registered.clone()) => {}
        () = status::run(&cluster, server) => {}
        () = mirrors::run(&cluster, registered) => {}
        () = events::run(&cluster) => {}
    }
}

/// The longest wait that the API server may ask for.
const LONGEST: Duration = Duration::from_secs(60);

/// Waits between tries of something that failed: doubling, bounded, longer when the API server says so.
#[derive(Debug)]
struct Patience {
    wait: Duration,
    most: Duration,
}

impl Patience {
    fn new(most: Duration) -> Self {
        Patience { wait: Duration::from_millis(200), most }
    }

    fn after(&mut self, error: &ApiError) -> Duration {
        let wait = self.wait;
        self.wait = (self.wait * 2).min(self.most);
        match error {
            ApiError::Busy { after } => wait.max(*after).min(LONGEST),
            _ => wait,
        }
    }

    fn reset(&mut self) {
        self.wait = Duration::from_millis(200);
    }
}

/// Logs a failure once, and that it is over.
#[derive(Debug, Default)]
struct Said(String);

impl Said {
    fn failed(&mut self, what: &str, error: &ApiError) {
        let text = error.to_string();
        if self.0 != text {
            tracing::warn!("{what}: {text}; trying again");
            self.0 = text;
        }
    }

    fn worked(&mut self, what: &str) {
        if !std::mem::take(&mut self.0).is_empty() {
            tracing::info!("{what}: works again");
        }
    }
}

/// An object's resource version: comparable numbers (KEP-5504); one that is none is old.
fn version(metadata: &ObjectMeta) -> u64 {
    metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}
