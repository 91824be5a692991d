//! The Node: created or mended at the start, its status computed again and again and posted when it changed here, or
//! when somebody else changed what we had posted; registered again when it is deleted.

use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::cluster::node::{NodeDescription, adopt, initial, mend};
use longshore_core::cluster::node_status::{
    NodeImage, NodeStatusInput, compute, condition, differs, event_of, overwritten, patch, ready_differs,
};
use longshore_core::event::EventType;
use longshore_core::ports::cluster::ApiError;
use longshore_core::ports::events::EventSink;
use longshore_core::ports::runtime::RuntimeError;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{Cluster, Patience, Said, version};
use crate::views::NodeWord;

/// How old the API server's version may be that our own follows.
const VERSION_AGE: Duration = Duration::from_secs(600);
/// How long a node that starts may take to read its sources before its status says that it is not ready.
const SETTLE: Duration = Duration::from_secs(10);
/// How long a turn waits for the list of images. A later answer is for a later turn.
const IMAGES: Duration = Duration::from_secs(2);
/// Turns that others' changes cause are this far apart at least.
const CALM: Duration = Duration::from_secs(1);

/// Publishes the Node as the API server has it, for ever: the one writer of [`crate::views::Views::set_node`].
pub(super) async fn follow(cluster: &Cluster) {
    let mut changes = cluster.own_node.changes();
    let mut unschedulable = false;
    while let Some(node) = changes.next().await {
        if let Some(node) = &node {
            let now = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
            if std::mem::replace(&mut unschedulable, now) != now {
                let reason = if now { "NodeNotSchedulable" } else { "NodeSchedulable" };
                let message = format!("Node {} status is now: {reason}", cluster.description.name);
                cluster.events.record_node(EventType::Normal, reason, &message);
            }
        }
        cluster.views.set_node(node);
    }
    std::future::pending().await
}

/// Keeps the Node true for ever. Its UID is told once it is registered, the API server's version when it is another one.
pub(super) async fn run(
    cluster: &Cluster,
    registered: watch::Sender<Option<String>>,
    server: watch::Sender<Option<(u32, u32)>>,
) {
    let mut keeper = Keeper {
        cluster,
        registered,
        server,
        node: None,
        posted: None,
        told: None,
        images: Vec::new(),
        asked: None,
        since: Instant::now(),
    };
    let mut patience = Patience::new(Duration::from_secs(7));
    let mut said = Said::default();
    let mut health = cluster.health.subscribe();
    let mut word = cluster.views.node_word();
    let mut addresses = cluster.addresses.clone();
    let mut runtime = cluster.views.runtime();
    cluster.events.record_node(EventType::Normal, "Starting", "Starting kubelet.");
    loop {
        let began = Instant::now();
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
        let until = tokio::time::Instant::now() + wait;
        loop {
            // Cancel safe: changes that are not seen here are seen at the next turn.
            tokio::select! {
                () = tokio::time::sleep_until(until) => break,
                Ok(()) = health.changed() => break,
                Ok(()) = addresses.changed() => break,
                Ok(()) = runtime.changed() => break,
                Ok(()) = word.changed() => {
                    let now = word.borrow_and_update().clone();
                    if keeper.heard(&now) {
                        tokio::time::sleep(CALM.saturating_sub(began.elapsed())).await;
                        break;
                    }
                }
            }
        }
    }
}

struct Keeper<'a> {
    cluster: &'a Cluster,
    registered: watch::Sender<Option<String>>,
    /// The Node as the API server last answered or told; `None` before it is registered.
    node: Option<v1::Node>,
    posted: Option<Posted>,
    /// The API server's version as it was last told.
    server: watch::Sender<Option<(u32, u32)>>,
    /// When that was; `None` when it is to be asked again.
    told: Option<Instant>,
    /// The images that the runtime had when it last told.
    images: Vec<NodeImage>,
    /// The question for them, while there is no answer.
    asked: Option<AbortOnDropHandle<Result<Vec<NodeImage>, RuntimeError>>>,
    /// When the Node was found or made.
    since: Instant,
}

/// A status that was posted.
struct Posted {
    status: v1::NodeStatus,
    /// What the API server made of it.
    answer: v1::NodeStatus,
    at: Instant,
}

impl Keeper<'_> {
    async fn turn(&mut self) -> Result<(), ApiError> {
        let server = self.server_version().await?;
        if self.node.is_none() {
            self.register().await?;
        }
        self.post(server).await?;
        self.mend().await
    }

    /// Posts the status where it is due.
    async fn post(&mut self, server: (u32, u32)) -> Result<(), ApiError> {
        // That the sources are still being read is no news at a start, and to say so would drop the node's endpoints.
        let begins = self.posted.is_none() && self.since.elapsed() < SETTLE;
        if begins && !self.cluster.health.is_synced() {
            return Ok(());
        }
        self.look_at_images().await;
        let problems = self.cluster.health.problems();
        let ips = self.cluster.addresses.borrow().clone();
        let mut description = NodeDescription { ips, ..self.cluster.description.clone() };
        if let Some(runtime) = &*self.cluster.views.runtime().borrow() {
            description = description.on(runtime);
        }
        let status = compute(&NodeStatusInput {
            description: &description,
            server,
            images: &self.images,
            pressure: self.cluster.health.pressure(),
            problems: &problems,
            existing: self.node.as_ref(),
            now: Timestamp::now(),
        });
        let found = self.node.as_ref().and_then(|node| node.status.as_ref());
        let due = self.posted.as_ref().is_none_or(|posted| {
            posted.at.elapsed() >= self.cluster.options.report
                || differs(&posted.status, &status)
                || found.is_none_or(|found| overwritten(&posted.answer, found))
        });
        if !due {
            return Ok(());
        }
        match self.cluster.api.patch_node_status(&patch(found, &status)).await {
            Ok(node) => {
                self.tell(&status);
                let answer = node.status.clone().unwrap_or_default();
                self.posted = Some(Posted { status, answer, at: Instant::now() });
                self.node = Some(node);
                Ok(())
            }
            Err(ApiError::NotFound { .. }) => {
                self.node = None;
                self.register().await
            }
            Err(error) => {
                // Whoever restarted or upgraded the API server: its version is asked again.
                self.told = None;
                Err(error)
            }
        }
    }

    /// Has the list of images renewed in a short time or left as it is: the status must not wait for a runtime that hangs.
    async fn look_at_images(&mut self) {
        let runtime = &self.cluster.runtime;
        // A task of its own, as what waits here must not keep others from the runtime between two turns.
        let asked = self.asked.get_or_insert_with(|| {
            let runtime = runtime.clone();
            AbortOnDropHandle::new(tokio::spawn(async move { runtime.images().await }))
        });
        let Ok(answer) = timeout(IMAGES, asked).await else { return };
        self.asked = None;
        if let Ok(Ok(images)) = answer {
            self.images = images;
        }
    }

    async fn server_version(&mut self) -> Result<(u32, u32), ApiError> {
        let fresh = self.told.is_some_and(|at| at.elapsed() < VERSION_AGE);
        let known = *self.server.borrow();
        if let Some(version) = known.filter(|_| fresh) {
            return Ok(version);
        }
        match self.cluster.api.server_version().await {
            Ok(version) => {
                self.told = Some(Instant::now());
                self.server.send_if_modified(|known| known.replace(version) != Some(version));
                Ok(version)
            }
            // A status by an old version is better than none.
            Err(error) => known.ok_or(error),
        }
    }

    /// Takes in what the watch told. Whether there is something to do before the next turn's time.
    fn heard(&mut self, word: &NodeWord) -> bool {
        match (&word.node, &self.node) {
            // Deleted; or a word from before we created it, and then it is found again.
            (None, Some(_)) => {
                self.node = None;
                true
            }
            (None, None) => false,
            // Somebody made it, or made it anew.
            (Some(_), None) => true,
            (Some(now), Some(known)) if now.metadata.uid != known.metadata.uid => {
                self.node = None;
                true
            }
            (Some(now), Some(known)) => {
                if version(&now.metadata) > version(&known.metadata) {
                    self.node = Some((**now).clone());
                }
                // All else that others change waits for its time, so that two who disagree do so calmly.
                let found = now.status.as_ref();
                self.posted.as_ref().zip(found).is_some_and(|(posted, found)| ready_differs(&posted.answer, found))
            }
        }
    }

    async fn register(&mut self) -> Result<(), ApiError> {
        let Cluster { api, description, options, .. } = self.cluster;
        let node = match api.node().await? {
            Some(node) => node,
            None if !options.register => {
                return Err(ApiError::NotFound {
                    what: format!(
                        "Node {} (it is not created, since --register-node=false: create it and this node adopts it)",
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
        let before = self.registered.borrow().clone();
        if before != node.metadata.uid {
            if before.is_some() {
                tracing::warn!("the Node was deleted; it is registered again");
            }
            self.posted = None;
            self.since = Instant::now();
            if self.rebooted(&node) {
                let message = format!("Node {} has been rebooted, boot id: {}", description.name, description.boot_id);
                self.cluster.events.record_node(EventType::Warning, "Rebooted", &message);
            }
        }
        self.registered.send_replace(node.metadata.uid.clone());
        self.node = Some(match adopt(&node, description) {
            Some(patch) => api.patch_node(&patch).await?,
            None => node,
        });
        Ok(())
    }

    /// Mends labels and annotations that must be as they are here, whoever changed them.
    async fn mend(&mut self) -> Result<(), ApiError> {
        let Some(patch) = self.node.as_ref().and_then(|node| mend(node, &self.cluster.description)) else {
            return Ok(());
        };
        match self.cluster.api.patch_node(&patch).await {
            Ok(node) => {
                self.node = Some(node);
                Ok(())
            }
            // Its status cannot be posted either, and that registers it again.
            Err(ApiError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
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
