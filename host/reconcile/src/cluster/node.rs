//! The Node: created or mended at the start, its status computed again and again and posted when it changed.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::cluster::node::{initial, mend};
use longshore_core::cluster::node_status::{NodeStatusInput, compute, condition, differs, event_of, patch};
use longshore_core::event::EventType;
use longshore_core::ports::cluster::ApiError;
use longshore_core::ports::events::EventSink;
use tokio::sync::watch;

use super::{Cluster, Patience, Said};

/// How old the API server's version may be that our own follows.
const VERSION_AGE: Duration = Duration::from_secs(600);

/// Keeps the Node true for ever. Its UID is told once it is registered.
pub(super) async fn run(cluster: &Cluster, registered: watch::Sender<Option<String>>) {
    let mut keeper = Keeper { cluster, registered, node: None, posted: None, version: None };
    let mut patience = Patience::new(Duration::from_secs(7));
    let mut said = Said::default();
    let mut health = cluster.health.subscribe();
    cluster.events.record_node(EventType::Normal, "Starting", "Starting kubelet.");
    loop {
        let wait = match keeper.turn().await {
            Ok(()) => {
                said.worked("the node's status");
                patience.reset();
                cluster.options.update
            }
            Err(error) => {
                said.failed("the node cannot be registered or its status posted", &error);
                patience.after(&error).min(cluster.options.update)
            }
        };
        // Cancel safe: a change of health that is not seen here is seen at the next turn.
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            Ok(()) = health.changed() => {}
        }
    }
}

struct Keeper<'a> {
    cluster: &'a Cluster,
    registered: watch::Sender<Option<String>>,
    /// The Node as the API server last answered; `None` before it is registered.
    node: Option<v1::Node>,
    /// What was last posted, and when.
    posted: Option<(v1::NodeStatus, Instant)>,
    /// The API server's version, and when it was asked.
    version: Option<((u32, u32), Instant)>,
}

impl Keeper<'_> {
    async fn turn(&mut self) -> Result<(), ApiError> {
        let server = self.server_version().await?;
        if self.node.is_none() {
            self.register().await?;
        }
        let images = self.cluster.runtime.images().await.unwrap_or_default();
        let problems = self.cluster.health.problems();
        let status = compute(&NodeStatusInput {
            description: &self.cluster.description,
            server,
            images: &images,
            pressure: self.cluster.health.pressure(),
            problems: &problems,
            existing: self.node.as_ref(),
            now: Timestamp::now(),
        });
        let due = self
            .posted
            .as_ref()
            .is_none_or(|(posted, at)| at.elapsed() >= self.cluster.options.report || differs(posted, &status));
        if !due {
            return Ok(());
        }
        let before = self.node.as_ref().and_then(|node| node.status.as_ref());
        match self.cluster.api.patch_node_status(&patch(before, &status)).await {
            Ok(node) => {
                self.tell(&status);
                self.posted = Some((status, Instant::now()));
                self.node = Some(node);
                self.mend().await
            }
            Err(ApiError::NotFound { .. }) => {
                tracing::warn!("the Node was deleted; registering it again");
                self.node = None;
                self.posted = None;
                self.register().await
            }
            Err(error) => {
                // Whoever restarted or upgraded the API server: its version is asked again.
                self.version = None;
                Err(error)
            }
        }
    }

    async fn server_version(&mut self) -> Result<(u32, u32), ApiError> {
        if let Some((version, _)) = self.version.filter(|(_, at)| at.elapsed() < VERSION_AGE) {
            return Ok(version);
        }
        let version = self.cluster.api.server_version().await?;
        self.version = Some((version, Instant::now()));
        Ok(version)
    }

    async fn register(&mut self) -> Result<(), ApiError> {
        let Cluster { api, description, options, .. } = self.cluster;
        let node = match api.node().await? {
            Some(node) => node,
            None if !options.register => {
                return Err(ApiError::NotFound {
                    what: format!(
                        "Node {} (it is not created, since --register-node=false: create it, and it is taken on)",
                        description.name
                    ),
                });
            }
            None => match api.create_node(&initial(description)).await {
                Ok(node) => {
                    tracing::info!(node = description.name, "registered the node");
                    node
                }
                Err(ApiError::Conflict { exists: true, .. }) => match api.node().await? {
                    Some(node) => node,
                    None => return Err(ApiError::NotFound { what: format!("Node {}", description.name) }),
                },
                Err(error) => return Err(error),
            },
        };
        if self.rebooted(&node) {
            let message = format!("Node {} has been rebooted, boot id: {}", description.name, description.boot_id);
            self.cluster.events.record_node(EventType::Warning, "Rebooted", &message);
        }
        self.registered.send_replace(node.metadata.uid.clone());
        self.node = Some(node);
        self.mend().await
    }

    async fn mend(&mut self) -> Result<(), ApiError> {
        let Some(node) = &self.node else { return Ok(()) };
        let Some(patch) = mend(node, &self.cluster.description) else { return Ok(()) };
        self.node = Some(self.cluster.api.patch_node(&patch).await?);
        Ok(())
    }

    fn rebooted(&self, node: &v1::Node) -> bool {
        let known = node.status.as_ref().and_then(|status| status.node_info.as_ref()).map(|info| info.boot_id.as_str());
        known.is_some_and(|known| !known.is_empty() && known != self.cluster.description.boot_id)
    }

    /// Events for conditions that changed.
    fn tell(&self, status: &v1::NodeStatus) {
        for current in status.conditions.iter().flatten() {
            let before = condition(self.node.as_ref(), &current.type_);
            if before.is_some_and(|before| before.status == current.status) {
                continue;
            }
            let Some(reason) = event_of(current) else { continue };
            let message = format!("Node {} status is now: {reason}", self.cluster.description.name);
            self.cluster.events.record_node(EventType::Normal, reason, &message);
        }
    }
}
