//! Events: what happened to a pod, in the kubelet's words (`pkg/kubelet/events/event.go`).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::pod::PodId;

/// Whether an event is news or trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventType {
    /// Something went as it should.
    Normal,
    /// Something did not.
    Warning,
}

/// Something that happened to a pod or to the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The pod that it happened to; `None` for the node.
    pub pod: Option<PodId>,
    /// The container that it happened to.
    pub container: Option<String>,
    /// News or trouble.
    pub kind: EventType,
    /// One of the kubelet's reasons: `Pulling`, `Started`, `BackOff`, `Unhealthy`, `FailedMount` …
    pub reason: String,
    /// For people.
    pub message: String,
    /// When it last happened.
    pub at: Timestamp,
    /// When it first happened.
    pub first_at: Timestamp,
    /// How often, equal ones counted together.
    pub count: u32,
    /// What programs read of it, by the kubelet's names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}
