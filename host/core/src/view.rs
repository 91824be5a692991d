//! What readers of the agent's state get to see of a pod: the local socket, status writers, pages.

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde::{Deserialize, Serialize};

use crate::pod::{PodId, Source};

/// A pod as its worker last published it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodView {
    /// Who it is.
    pub id: PodId,
    /// Where it came from.
    pub source: Source,
    /// The object with its current status; `deletionTimestamp` set while it ends.
    pub object: v1::Pod,
    /// Its way from admission to readiness, for `longshore why`.
    pub steps: Vec<Step>,
    /// Its probes.
    pub probes: Vec<ProbeView>,
}

/// One step on a pod's way to readiness.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What it is, e.g. `admitted`, `volumes`, `sandbox`, `image of web`, `init container setup`, `web ready`.
    pub name: String,
    /// How far it is.
    pub state: StepState,
    /// Since when it is so, where known.
    pub since: Option<Timestamp>,
    /// What it waits for or what it found, for people; empty when there is nothing to say.
    pub detail: String,
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepState {
    /// Behind it.
    Done,
    /// Being done right now.
    Running,
    /// Stuck: waits for something that its detail names (a back-off, a probe, a missing object).
    Waiting,
    /// Comes after what is being done or waited for.
    Ahead,
}

/// A probe and what it last said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeView {
    /// Name of the container.
    pub container: String,
    /// `liveness`, `readiness` or `startup`.
    pub kind: String,
    /// Name of the plugin.
    pub plugin: String,
    /// Its configuration, as JSON.
    pub config: String,
    /// Time between two checks, in ms.
    pub period_ms: u64,
    /// Time that a check may take, in ms.
    pub timeout_ms: u64,
    /// Failures in a row that count.
    pub failure_threshold: u32,
    /// Successes in a row that count.
    pub success_threshold: u32,
    /// The last check that ended.
    pub last: Option<ProbeCheckView>,
    /// Equal results in a row, the last one included.
    pub in_a_row: u32,
}

/// One check of a probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeCheckView {
    /// When it ended.
    pub at: Timestamp,
    /// How long it took, in ms.
    pub took_ms: f64,
    /// `success`, `warning`, `failure`, `error` or `fault`.
    pub outcome: String,
    /// What the plugin said.
    pub message: String,
}
