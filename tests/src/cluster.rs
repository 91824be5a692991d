//! An API server in memory, as the node's own loops use it: it keeps what it is given, and what it was asked. Its patches are
//! merge patches, but that conditions are merged by type; it checks nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1;
use longshore_core::pod::PodId;
use longshore_core::ports::cluster::{ApiError, ApiPods, ClusterApi, OwnNode};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

#[derive(Debug, Default)]
struct World {
    node: Option<v1::Node>,
    lease: Option<Lease>,
    pods: BTreeMap<String, Arc<v1::Pod>>,
    events: Vec<v1::Event>,
    /// Counts that events were patched to, by name.
    counts: Vec<(String, i64)>,
    /// Patches of the Node's status.
    posts: Vec<Value>,
    versions: u64,
    /// How many creates of events go through without anybody hearing of it.
    unheard: usize,
    tries: Vec<String>,
    /// How often a pod's status was patched.
    reports: usize,
}

/// The API server.
#[derive(Debug)]
pub struct FakeCluster {
    world: Mutex<World>,
    /// Its version.
    pub version: Mutex<(u32, u32)>,
    /// Whether it does not tell its version.
    pub hides_version: AtomicBool,
    /// The field of a pod's status that it does not know, and leaves out.
    pub unknown: Mutex<Option<&'static str>>,
    changed: watch::Sender<u64>,
    node: watch::Sender<Option<Arc<v1::Node>>>,
    /// Whether it answers nobody who creates an event.
    blocked: watch::Sender<bool>,
}

impl Default for FakeCluster {
    fn default() -> Self {
        FakeCluster {
            world: Mutex::default(),
            version: Mutex::new((1, 36)),
            hides_version: AtomicBool::new(false),
            unknown: Mutex::default(),
            changed: watch::Sender::new(0),
            node: watch::Sender::new(None),
            blocked: watch::Sender::new(false),
        }
    }
}

impl FakeCluster {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether creates of events are left without an answer, from now on.
    pub fn block_events(&self, blocked: bool) {
        self.blocked.send_replace(blocked);
    }

    /// So many creates of events go through, and the answers are lost.
    pub fn lose_answers(&self, count: usize) {
        self.world().unheard = count;
    }

    /// The events that were created, of a reason.
    pub fn events(&self, reason: &str) -> Vec<v1::Event> {
        self.world().events.iter().filter(|event| event.reason.as_deref() == Some(reason)).cloned().collect()
    }

    /// The names of the events that it was asked to create, in order, taken or not.
    pub fn tries(&self) -> Vec<String> {
        self.world().tries.clone()
    }

    /// Counts that events were patched to, with their names.
    pub fn counts(&self) -> Vec<(String, i64)> {
        self.world().counts.clone()
    }

    /// How often the Node's status was posted.
    pub fn posts(&self) -> usize {
        self.world().posts.len()
    }

    /// How often a pod's status was patched.
    pub fn reports(&self) -> usize {
        self.world().reports
    }

    /// The Node as it is.
    pub fn the_node(&self) -> Option<v1::Node> {
        self.world().node.clone()
    }

    /// Puts a Node there, as somebody else's.
    pub fn put_node(&self, node: v1::Node) {
        self.keep_node(node);
    }

    fn keep_node(&self, mut node: v1::Node) -> v1::Node {
        let mut world = self.world();
        world.versions += 1;
        node.metadata.resource_version = Some(world.versions.to_string());
        if node.metadata.uid.is_none() {
            node.metadata.uid = Some(format!("node-{}", world.versions));
        }
        world.node = Some(node.clone());
        drop(world);
        self.node.send_replace(Some(Arc::new(node.clone())));
        node
    }

    fn patched_node(&self, patch: &Value) -> Result<v1::Node, ApiError> {
        let node = self.the_node().ok_or_else(|| ApiError::NotFound { what: "Node".to_owned() })?;
        let mut value = json!(node);
        merge(&mut value, patch);
        Ok(self.keep_node(serde_json::from_value(value).expect("a Node")))
    }
}

/// Merges a patch; in lists of conditions by their type.
fn merge(value: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *value = patch.clone();
        return;
    };
    if !value.is_object() {
        *value = json!({});
    }
    for (key, change) in fields {
        match change {
            Value::Null => drop(value.as_object_mut().map(|object| object.remove(key))),
            Value::Array(items) if key == "conditions" => {
                let known = value[key].as_array().cloned().unwrap_or_default();
                let others = known.into_iter().filter(|old| items.iter().all(|new| new["type"] != old["type"]));
                value[key] = others.chain(items.iter().cloned()).collect();
            }
            Value::Array(items) => {
                value[key] = items.iter().filter(|item| item.get("$patch").is_none()).cloned().collect();
            }
            change => merge(&mut value[key], change),
        }
    }
}

#[async_trait]
impl ClusterApi for FakeCluster {
    async fn server_version(&self) -> Result<(u32, u32), ApiError> {
        if self.hides_version.load(Ordering::Relaxed) {
            return Err(ApiError::Unreachable { message: "no answer".to_owned() });
        }
        Ok(*self.version.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn node(&self) -> Result<Option<v1::Node>, ApiError> {
        Ok(self.the_node())
    }

    async fn create_node(&self, node: &v1::Node) -> Result<v1::Node, ApiError> {
        Ok(self.keep_node(node.clone()))
    }

    async fn patch_node(&self, patch: &Value) -> Result<v1::Node, ApiError> {
        self.patched_node(patch)
    }

    async fn patch_node_status(&self, patch: &Value) -> Result<v1::Node, ApiError> {
        self.world().posts.push(patch.clone());
        self.patched_node(patch)
    }

    async fn lease(&self) -> Result<Option<Lease>, ApiError> {
        Ok(self.world().lease.clone())
    }

    async fn put_lease(&self, lease: &Lease) -> Result<Lease, ApiError> {
        self.world().lease = Some(lease.clone());
        Ok(lease.clone())
    }

    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<v1::Pod>, ApiError> {
        let named = |pod: &&Arc<v1::Pod>| {
            pod.metadata.namespace.as_deref() == Some(namespace) && pod.metadata.name.as_deref() == Some(name)
        };
        Ok(self.world().pods.values().find(named).map(|pod| (**pod).clone()))
    }

    async fn create_pod(&self, pod: &v1::Pod) -> Result<v1::Pod, ApiError> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.world().pods.insert(uid, Arc::new(pod.clone()));
        self.changed.send_modify(|version| *version += 1);
        Ok(pod.clone())
    }

    async fn patch_pod_status(&self, pod: &PodId, patch: &Value) -> Result<v1::Pod, ApiError> {
        let known = {
            let mut world = self.world();
            world.reports += 1;
            world.pods.get(&pod.uid).cloned()
        };
        let mut value = json!(known.ok_or_else(|| ApiError::NotFound { what: pod.to_string() })?);
        merge(&mut value, patch);
        let unknown = *self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(field), Some(status)) = (unknown, value["status"].as_object_mut()) {
            status.remove(field);
        }
        self.create_pod(&serde_json::from_value(value).expect("a Pod")).await
    }

    async fn delete_pod(&self, pod: &PodId, _: i64) -> Result<(), ApiError> {
        self.world().pods.remove(&pod.uid);
        self.changed.send_modify(|version| *version += 1);
        Ok(())
    }

    async fn create_event(&self, event: &v1::Event) -> Result<v1::Event, ApiError> {
        let name = event.metadata.name.clone().unwrap_or_default();
        self.world().tries.push(name.clone());
        // The sender is ours: it does not go.
        let _ = self.blocked.subscribe().wait_for(|blocked| !blocked).await;
        let mut world = self.world();
        if world.events.iter().any(|known| known.metadata.name.as_deref() == Some(&name)) {
            return Err(ApiError::Conflict { message: format!("events {name:?} already exists"), exists: true });
        }
        world.events.push(event.clone());
        if world.unheard > 0 {
            world.unheard -= 1;
            return Err(ApiError::Unreachable { message: "the connection was reset".to_owned() });
        }
        Ok(event.clone())
    }

    async fn patch_event(&self, _: &str, name: &str, patch: &Value) -> Result<v1::Event, ApiError> {
        let mut world = self.world();
        let known = world.events.iter().find(|known| known.metadata.name.as_deref() == Some(name)).cloned();
        let known = known.ok_or_else(|| ApiError::NotFound { what: format!("Event {name}") })?;
        world.counts.push((name.to_owned(), patch["count"].as_i64().unwrap_or_default()));
        Ok(known)
    }
}

impl OwnNode for FakeCluster {
    fn changes(&self) -> BoxStream<'static, Option<Arc<v1::Node>>> {
        WatchStream::new(self.node.subscribe()).boxed()
    }
}

impl ApiPods for FakeCluster {
    fn pod(&self, uid: &str) -> Option<Arc<v1::Pod>> {
        self.world().pods.get(uid).cloned()
    }

    fn mirrors(&self) -> Vec<Arc<v1::Pod>> {
        Vec::new()
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        WatchStream::new(self.changed.subscribe()).map(|_| ()).boxed()
    }

    fn synced(&self) -> bool {
        true
    }
}
