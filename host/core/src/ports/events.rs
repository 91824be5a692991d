//! Where events go.

use crate::event::EventType;
use crate::pod::PodId;

/// Takes events. Must not block; what is too much is counted and dropped.
pub trait EventSink: Send + Sync {
    /// Something happened to a pod, or to one of its containers.
    fn record(&self, pod: &PodId, container: Option<&str>, kind: EventType, reason: &str, message: &str);

    /// Something happened to the node.
    fn record_node(&self, kind: EventType, reason: &str, message: &str);
}
