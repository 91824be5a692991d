//! The pods of this node as they were last published, for those who only read.

use std::sync::Arc;

use crate::view::PodView;

/// The published state of the node's pods.
pub trait PodViews: Send + Sync {
    /// All pods, ordered by namespace and name.
    fn pods(&self) -> Vec<Arc<PodView>>;

    /// The pod of that UID.
    fn pod(&self, uid: &str) -> Option<Arc<PodView>>;

    /// Whether every loop that must turn has turned lately; `Err` names the one that hangs and for how long (`/healthz`).
    fn healthy(&self) -> Result<(), String>;
}
