//! The API server, as the node's own loops use it: its Node and Lease, the status of its pods, mirror pods, events.
//!
//! Reading pods is a source's work ([`super::sources`]), reading what pods use is [`super::objects`]'s.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1;

use crate::pod::PodId;

/// Why the API server did not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// It cannot be reached, or did not answer in time.
    #[error("the API server cannot be reached: {message}")]
    Unreachable {
        /// Where it was sought and what went wrong.
        message: String,
    },
    /// The object does not exist.
    #[error("{what} does not exist")]
    NotFound {
        /// Kind, namespace and name.
        what: String,
    },
    /// The object exists already (create), or has changed meanwhile or has another UID (update, delete).
    #[error("{message}")]
    Conflict {
        /// What the API server said.
        message: String,
        /// Whether it was a create of something that exists.
        exists: bool,
    },
    /// The API server asks for patience (429, or 503 with Retry-After).
    #[error("the API server is busy; it asks to wait {after:?}")]
    Busy {
        /// How long to wait.
        after: Duration,
    },
    /// Not allowed: who we are does not suffice (401 and 403).
    #[error("not allowed: {message}")]
    Forbidden {
        /// What the API server said.
        message: String,
    },
    /// It refused the object or failed (other 4xx and 5xx).
    #[error("the API server answered {code}: {message}")]
    Refused {
        /// The HTTP status.
        code: u16,
        /// What it said.
        message: String,
    },
}

impl ApiError {
    /// Whether the same request may work later without anybody changing it.
    pub fn is_passing(&self) -> bool {
        match self {
            ApiError::Unreachable { .. } | ApiError::Busy { .. } => true,
            ApiError::Refused { code, .. } => *code >= 500,
            _ => false,
        }
    }
}

/// The API server's side of this node. One request per call, with a time limit of its own and no retries.
#[async_trait]
pub trait ClusterApi: Send + Sync {
    /// The server's version: major and minor. Asked anew after a reconnect, and now and then, for upgrades.
    async fn server_version(&self) -> Result<(u32, u32), ApiError>;

    /// Our Node; `None` when there is none.
    async fn node(&self) -> Result<Option<v1::Node>, ApiError>;

    /// Creates our Node.
    async fn create_node(&self, node: &v1::Node) -> Result<v1::Node, ApiError>;

    /// A strategic merge patch of our Node's metadata and spec.
    async fn patch_node(&self, patch: &serde_json::Value) -> Result<v1::Node, ApiError>;

    /// A strategic merge patch of our Node's status.
    async fn patch_node_status(&self, patch: &serde_json::Value) -> Result<v1::Node, ApiError>;

    /// Our Lease in `kube-node-lease`; `None` when there is none.
    async fn lease(&self) -> Result<Option<Lease>, ApiError>;

    /// Creates or, where it carries a resource version, replaces our Lease.
    async fn put_lease(&self, lease: &Lease) -> Result<Lease, ApiError>;

    /// A pod as the API server has it now; `None` when there is none of that name.
    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<v1::Pod>, ApiError>;

    /// Creates a (mirror) pod.
    async fn create_pod(&self, pod: &v1::Pod) -> Result<v1::Pod, ApiError>;

    /// A strategic merge patch of a pod's status; it must hold `metadata.uid`, so that another pod of the same name is
    /// not hit.
    async fn patch_pod_status(&self, pod: &PodId, patch: &serde_json::Value) -> Result<v1::Pod, ApiError>;

    /// Deletes a pod with the UID as a precondition; `grace_seconds` 0 removes the object. A pod that is gone is fine.
    async fn delete_pod(&self, pod: &PodId, grace_seconds: i64) -> Result<(), ApiError>;

    /// Creates an Event.
    async fn create_event(&self, event: &v1::Event) -> Result<v1::Event, ApiError>;

    /// Patches an Event (count, last timestamp, message), by namespace and name.
    async fn patch_event(&self, namespace: &str, name: &str, patch: &serde_json::Value) -> Result<v1::Event, ApiError>;
}

/// Our Node as the API server has it, followed: labels, taints and address ranges are others' to write as well.
pub trait OwnNode: Send + Sync {
    /// The Node whenever it came or changed, `None` when there is none (any more); the first item once that was read.
    /// Of several changes the last one. Never ends.
    fn changes(&self) -> BoxStream<'static, Option<Arc<v1::Node>>>;
}

/// The pods of this node as the API server last told them: what the loops that write status, make mirrors and delete
/// pods compare with, so that they need no GETs.
///
/// Objects come from one list and watch with the pod source of [`crate::pod::Source::Api`]; they are whole (status and
/// resource version included) but for `managedFields`. Everything here answers at once from memory.
pub trait ApiPods: Send + Sync {
    /// The pod of that UID, mirror pods included; `None` when the API server does not have it (any more), or before the
    /// first list.
    fn pod(&self, uid: &str) -> Option<Arc<v1::Pod>>;

    /// All mirror pods of this node (annotation `kubernetes.io/config.mirror`), in the order of namespace and name.
    fn mirrors(&self) -> Vec<Arc<v1::Pod>>;

    /// Yields after any of these pods came, changed or went; bursts yield once. Never ends.
    fn changes(&self) -> BoxStream<'static, ()>;

    /// Whether a complete list has been read since the start. Before it absence means nothing.
    fn synced(&self) -> bool;
}
