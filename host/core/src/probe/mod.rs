//! Probes: what a pod asks for, when a check is due, and what a row of results means.
//!
//! As `pkg/kubelet/prober/{worker,prober_manager}.go`. The checks themselves are made by plugins.

mod spec;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;

use crate::observed::{ContainerState, ObservedPod};
use crate::plan::Busy;
use crate::pod::{ContainerKind, Pod};
use crate::record::PodRecord;

pub use spec::{ANNOTATION_PREFIX, ProbeSpecError, specs};

/// What a probe decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// Whether the container is restarted.
    Liveness,
    /// Whether the container gets traffic.
    Readiness,
    /// Whether the container has started, so that the other two begin.
    Startup,
}

impl ProbeKind {
    /// `liveness`, `readiness` or `startup`.
    pub fn as_str(self) -> &'static str {
        match self {
            ProbeKind::Liveness => "liveness",
            ProbeKind::Readiness => "readiness",
            ProbeKind::Startup => "startup",
        }
    }

    /// The word that begins an event: `Liveness`, `Readiness` or `Startup`.
    pub fn title(self) -> &'static str {
        match self {
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
            ProbeKind::Startup => "Startup",
        }
    }
}

/// A probe that a pod asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSpec {
    /// Name of the container.
    pub container: String,
    /// What it decides.
    pub kind: ProbeKind,
    /// Name of the plugin that makes the checks.
    pub plugin: String,
    /// The plugin's configuration, as JSON.
    pub config: String,
    /// Time after the container's start before the first check.
    pub initial_delay: Duration,
    /// Time between two checks.
    pub period: Duration,
    /// Time that a check may take.
    pub timeout: Duration,
    /// Successes in a row that count.
    pub success_threshold: u32,
    /// Failures in a row that count.
    pub failure_threshold: u32,
    /// Grace period in seconds when this probe ends the container, in place of the pod's.
    pub grace_seconds: Option<i64>,
}

/// What one check found, when it found anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// The container is healthy.
    Success,
    /// It is not.
    Failure,
}

/// A row of equal results of one probe of one container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeState {
    last: Option<Sample>,
    in_a_row: u32,
    decided: Option<Sample>,
    on_hold: bool,
}

impl ProbeState {
    /// The state of a probe whose container is known to be ready or started already: adopted after a restart.
    pub fn decided(sample: Sample) -> Self {
        ProbeState { decided: Some(sample), ..Self::default() }
    }

    /// Equal results in a row.
    pub fn in_a_row(&self) -> u32 {
        self.in_a_row
    }

    /// No checks are made until the container is another one: its end or its start is decided.
    pub fn on_hold(&self) -> bool {
        self.on_hold
    }
}

/// Takes in a result. `Some` when it changes what the probe says: exactly at the threshold, never below it.
pub fn step(spec: &ProbeSpec, state: &mut ProbeState, sample: Sample) -> Option<Sample> {
    if state.on_hold {
        return None;
    }
    if state.last == Some(sample) {
        state.in_a_row = state.in_a_row.saturating_add(1);
    } else {
        state.last = Some(sample);
        state.in_a_row = 1;
    }
    let threshold = match sample {
        Sample::Success => spec.success_threshold,
        Sample::Failure => spec.failure_threshold,
    };
    if state.in_a_row < threshold {
        return None;
    }
    let changed = state.decided != Some(sample);
    state.decided = Some(sample);
    let fatal = sample == Sample::Failure && spec.kind == ProbeKind::Liveness;
    if fatal || spec.kind == ProbeKind::Startup {
        state.on_hold = true;
        state.in_a_row = 0;
    }
    changed.then_some(sample)
}

/// A probe that is to be checked now, and of what.
#[derive(Clone, Debug, PartialEq)]
pub struct ActiveProbe {
    /// The probe.
    pub spec: ProbeSpec,
    /// ID of the running container.
    pub container_id: String,
    /// When the container was started.
    pub started_at: Timestamp,
    /// What is known of it already, after a restart of the agent: whether it was ready.
    pub decided: Option<Sample>,
    /// The container's ports by name.
    pub ports: Vec<(String, u16)>,
}

/// Which probes are checked now. Startup probes until they are decided, the others from then on; in a pod that
/// ends only readiness. Containers that are being stopped are not probed for liveness or startup, and those whose postStart hook
/// runs not at all: the kubelet's workers know of them after it (`pkg/kubelet/prober/worker.go`).
pub fn active(
    pod: &Pod,
    specs: &[ProbeSpec],
    observed: &ObservedPod,
    record: &PodRecord,
    busy: &Busy,
) -> Vec<ActiveProbe> {
    let ending = pod.deletion.is_some() || record.terminal.is_some();
    let mut active = Vec::new();
    for spec in specs {
        let Some(container) = pod.container(&spec.container) else { continue };
        if container.kind == ContainerKind::Init {
            continue;
        }
        let Some(seen) = observed.container(&spec.container) else { continue };
        let ContainerState::Running { started_at, .. } = seen.state else { continue };
        let known =
            record.containers.get(&spec.container).filter(|known| known.id.as_deref() == Some(seen.id.as_str()));
        let started = known.is_some_and(|known| known.started);
        let due = match spec.kind {
            ProbeKind::Startup => !started,
            ProbeKind::Liveness | ProbeKind::Readiness => started,
        };
        if busy.post_start.contains(&seen.id) {
            continue;
        }
        let leaving = ending || busy.stopping.contains_key(&seen.id);
        if !due || (leaving && spec.kind != ProbeKind::Readiness) {
            continue;
        }
        let ports = container.spec.ports.iter().flatten();
        let ports = ports.filter_map(|port| Some((port.name.clone()?, u16::try_from(port.container_port).ok()?)));
        active.push(ActiveProbe {
            spec: spec.clone(),
            container_id: seen.id.clone(),
            started_at,
            decided: match spec.kind {
                ProbeKind::Readiness if known.is_some_and(|known| known.ready) => Some(Sample::Success),
                _ => None,
            },
            ports: ports.collect(),
        });
    }
    active
}

/// What a container begins with: a probe that it does not have is passed.
pub fn initial(specs: &[ProbeSpec], container: &str) -> (bool, bool) {
    let has = |kind| specs.iter().any(|spec| spec.container == container && spec.kind == kind);
    (!has(ProbeKind::Startup), !has(ProbeKind::Readiness))
}
