//! What readers of the agent's state get to see of a pod: the local socket, status writers, pages.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde::{Deserialize, Serialize};

use crate::plan::Busy;
use crate::pod::{PodId, Source};
use crate::probe::Sample;

/// A pod as its worker last published it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodView {
    /// Who it is.
    pub id: PodId,
    /// Where it came from.
    pub source: Source,
    /// The object with its current status; `deletionTimestamp` set while it ends.
    pub object: v1::Pod,
    /// ID of its sandbox in the runtime, if that was seen to run.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// Its way from admission to readiness, for `longshore why`.
    pub steps: Vec<Step>,
    /// Its probes.
    pub probes: Vec<ProbeView>,
    /// What only its worker knows of what is next for it, for `longshore plan`.
    #[serde(default)]
    pub standing: Standing,
}

impl PodView {
    /// Whether all but its standing is the same.
    pub fn shows_the_same_as(&self, other: &PodView) -> bool {
        self.id == other.id
            && self.source == other.source
            && self.object == other.object
            && self.sandbox == other.sandbox
            && self.steps == other.steps
            && self.probes == other.probes
    }
}

/// What a plan for a pod is made from, and neither the sources nor its record nor the runtime tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Standing {
    /// Why no container of it may be started, if so.
    pub blocked: Option<String>,
    /// What is going on in the background.
    pub busy: Busy,
}

/// One step on a pod's way to readiness.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What it is, e.g. `admitted`, `volumes`, `sandbox`, `init container setup`, `sidecar x`, `container web`, `ready`,
    /// `ended`, `ending`, `resize`.
    pub name: String,
    /// How far it is.
    pub state: StepState,
    /// Since when it is so, where known.
    pub since: Option<Timestamp>,
    /// What it waits for or what it found, for people; empty when there is nothing to say.
    pub detail: String,
    /// The probe of its container that it waits for: `startup` or `readiness`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<String>,
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
    /// Ended badly; nothing comes after it.
    Failed,
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
    /// How all its checks ended.
    #[serde(default)]
    pub tally: ProbeTally,
}

/// How the checks of a probe ended, in whichever container of the name, since this agent began to look after the pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProbeTally {
    /// Successes and warnings.
    pub successful: u64,
    /// Failures.
    pub failed: u64,
    /// Of those that did not fail, how many took no longer than each of [`ProbeTally::BOUNDS`].
    pub within: [u64; 11],
    /// Seconds that these took, all together.
    pub seconds: f64,
}

impl ProbeTally {
    /// Bounds of durations in seconds: Prometheus' own, which the kubelet uses.
    pub const BOUNDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

    /// Counts a check. As `doProbe` of pkg/kubelet/prober/worker.go, which counts no duration of a failure, and not at all
    /// what found nothing out.
    pub fn add(&mut self, sample: Sample, took: Duration) {
        match sample {
            Sample::Success => self.successful += 1,
            Sample::Failure => {
                self.failed += 1;
                return;
            }
        }
        let seconds = took.as_secs_f64();
        self.seconds += seconds;
        for (bound, count) in Self::BOUNDS.into_iter().zip(&mut self.within) {
            *count += u64::from(seconds <= bound);
        }
    }
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
    /// What else it said, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attrs: BTreeMap<String, String>,
}
