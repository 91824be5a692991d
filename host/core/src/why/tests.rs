//! What `longshore why` says in the states that people meet.
#![allow(clippy::unwrap_used)]

use jiff::Timestamp;

use super::*;
use crate::backoff::{Backoff, Policy};
use crate::observed::Container;
use crate::observed::SandboxState;
use crate::plan::{self, Busy, Situation};
use crate::pod::Deletion;
use crate::record::Terminal;
use crate::resize::{Pending, Progress};
use crate::status::{self, StatusInput};
use crate::testing::{at, container, exit, node, pod_from, running, sandbox};
use crate::view::ProbeCheckView;

/// A pod, what is known of it, and what else its way is told from.
struct Way {
    pod: Pod,
    observed: ObservedPod,
    record: PodRecord,
    blocked: Option<&'static str>,
    probes: Vec<ProbeView>,
    pulls: BTreeMap<String, (String, PullProgress, Duration)>,
    prepared: bool,
}

const NOW: i64 = 1000;

fn way(spec: &str) -> Way {
    Way {
        pod: pod_from(spec),
        observed: ObservedPod { sandboxes: vec![sandbox(0, SandboxState::Running)], ..ObservedPod::default() },
        record: PodRecord::default(),
        blocked: None,
        probes: Vec::new(),
        pulls: BTreeMap::new(),
        prepared: true,
    }
}

impl Way {
    fn with(mut self, name: &str, state: ContainerState) -> Self {
        let made: Container = container(self.pod.container(name).unwrap(), 0, state);
        self.observed.containers.push(made);
        status::remember(&mut self.record, &self.pod, &self.observed, &BTreeMap::new(), at(NOW));
        for known in self.record.containers.values_mut() {
            (known.started, known.ready) = (known.exit.is_none(), known.exit.is_none());
        }
        self
    }

    fn backoff(mut self, key: &str, failures: u32, reason: &str, message: &str) -> Self {
        let (reason, message) = (reason.to_owned(), message.to_owned());
        self.record.backoffs.insert(key.to_owned(), Backoff { failures, last: at(NOW), reason, message });
        self
    }

    /// The steps, a line each: name, state, detail.
    fn told(&self) -> Vec<String> {
        let (busy, now, node): (Busy, Timestamp, _) = (Busy::default(), at(NOW), node());
        let plan = plan::plan(&Situation {
            pod: &self.pod,
            observed: &self.observed,
            record: &self.record,
            unhealthy: &BTreeMap::new(),
            busy: &busy,
            blocked: self.blocked,
            crash_loop: Policy::CRASH_LOOP,
            node: &node,
            cgroup: None,
            now,
        });
        let (pod, observed, record) = (&self.pod, &self.observed, &self.record);
        let status =
            status::compute(&StatusInput { pod, observed, record, plan: &plan, busy: &busy, node: &node, now });
        let (pulls, prepared, blocked) = (&self.pulls, self.prepared, self.blocked);
        let input = Journey { pod, observed, record, plan: &plan, status: &status, pulls, prepared, blocked };
        let mut steps = journey(&input);
        add_probes(&mut steps, &self.probes);
        steps
            .iter()
            .map(|step| format!("{}: {:?} {}", step.name, step.state, step.detail).trim_end().to_owned())
            .collect()
    }

    fn line(&self, name: &str) -> String {
        let told = self.told();
        told.iter().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{told:?}")).clone()
    }
}

const ONE: &str = "{containers: [{name: web, image: nginx}]}";
const INIT: &str = "{containers: [{name: web, image: nginx}], initContainers: \
     [{name: setup, image: i}, {name: side, image: i, restartPolicy: Always}]}";

#[test]
fn a_pod_that_is_ready() {
    assert_eq!(
        way(ONE).with("web", running(50)).told(),
        ["admitted: Done", "volumes: Done", "sandbox: Done address 172.17.0.2", "container web: Done", "ready: Done"]
    );
}

#[test]
fn a_pod_that_cannot_be_carried_out_here() {
    let mut way = way(ONE);
    way.observed = ObservedPod::default();
    (way.prepared, way.blocked) = (false, Some("volume data: PersistentVolumeClaims are not supported"));
    let told = way.told();
    assert_eq!(told[0], "admitted: Waiting volume data: PersistentVolumeClaims are not supported");
    assert_eq!(told[1..4], ["volumes: Ahead", "sandbox: Ahead", "container web: Ahead"]);
    way.prepared = true;
    assert_eq!(way.told()[1..3], ["volumes: Done", "sandbox: Ahead"]);
}

#[test]
fn what_the_pod_as_a_whole_waits_for() {
    let mut volumes = way(ONE).backoff("pod", 3, "ContainerCreating", "MountVolume.SetUp failed for volume \"c\" : no");
    volumes.observed = ObservedPod::default();
    volumes.prepared = false;
    let line = volumes.line("volumes");
    assert!(
        line.starts_with("volumes: Waiting MountVolume.SetUp failed for volume \"c\" : no; next try at "),
        "{line}"
    );
    volumes.prepared = true;
    assert!(volumes.line("sandbox").starts_with("sandbox: Waiting MountVolume"), "{:?}", volumes.told());
}

#[test]
fn a_pull_with_what_came_so_far() {
    let mut way = way(ONE);
    let took = Duration::from_secs(7);
    way.pulls.insert("web".to_owned(), ("nginx".to_owned(), PullProgress { current: 3 << 20, total: 12 << 20 }, took));
    assert_eq!(way.line("container web"), "container web: Waiting pulling image nginx: 3.0 MiB of 12.0 MiB, for 7 s");
    way.pulls.insert("web".to_owned(), ("nginx".to_owned(), PullProgress { current: 1 << 19, total: 0 }, took));
    assert_eq!(way.line("container web"), "container web: Waiting pulling image nginx: 0.5 MiB so far, for 7 s");
}

#[test]
fn failures_with_the_next_try() {
    let line = way(ONE).backoff("image/nginx", 1, "ErrImagePull", "not found").line("container web");
    assert_eq!(line, "container web: Waiting ErrImagePull: not found; next try at 1970-01-01T00:16:50Z");
    let message = "secret \"s\" not found";
    let line = way(ONE).backoff("create/web", 1, "CreateContainerConfigError", message).line("container web");
    assert!(line.contains("CreateContainerConfigError: secret \"s\" not found; next try at "), "{line}");
    let mut way = way(ONE).with("web", ContainerState::Exited(exit(1, 990, 1000)));
    way.record.containers.get_mut("web").unwrap().delayed_restarts = 2;
    let line = way.line("container web");
    assert!(line.starts_with("container web: Waiting CrashLoopBackOff: back-off 20s restarting failed"), "{line}");
    assert!(line.ends_with("; last end: exit code 1, Error"), "{line}");
    let ended = way.record.containers.get_mut("web").unwrap().exit.as_mut().unwrap();
    (ended.code, ended.reason, ended.message) = (137, "OOMKilled".to_owned(), "full\n".to_owned());
    assert!(way.line("container web").ends_with("; last end: exit code 137, OOMKilled: full"), "{:?}", way.told());
}

#[test]
fn init_containers_come_first() {
    let way = way(INIT).with("setup", running(50));
    assert_eq!(way.line("init container setup"), "init container setup: Running runs; the next one waits for its end");
    assert_eq!(way.line("sidecar side"), "sidecar side: Ahead");
    assert_eq!(way.line("container web"), "container web: Ahead");
    assert_eq!(way.line("ready"), "ready: Ahead containers with unready status: [side web]");
}

#[test]
fn a_probe_that_is_waited_for() {
    let mut way = way(ONE).with("web", running(50));
    way.record.containers.get_mut("web").unwrap().ready = false;
    assert_eq!(
        way.line("container web"),
        "container web: Waiting runs; waits for the first result of its readiness probe"
    );
    way.probes.push(ProbeView {
        container: "web".to_owned(),
        kind: "readiness".to_owned(),
        plugin: "http".to_owned(),
        config: String::new(),
        period_ms: 1000,
        timeout_ms: 1000,
        failure_threshold: 3,
        success_threshold: 1,
        last: Some(ProbeCheckView {
            at: at(NOW),
            took_ms: 1.0,
            outcome: "error".to_owned(),
            message: "no port is named \"htpp\"\n".to_owned(),
            attrs: BTreeMap::new(),
        }),
        in_a_row: 2,
        tally: Default::default(),
    });
    assert_eq!(
        way.line("container web"),
        "container web: Waiting runs; its readiness probe said error: no port is named \"htpp\""
    );
    way.record.containers.get_mut("web").unwrap().started = false;
    assert!(way.line("container web").contains("startup probe"));
}

#[test]
fn a_resize_that_is_pending_or_under_way() {
    let mut way = way(ONE).with("web", running(50));
    let pending = |reason: &str, message: &str| {
        Some(Pending { reason: reason.to_owned(), message: message.to_owned(), generation: 0, since: at(NOW) })
    };
    way.record.resize.pending = pending("Infeasible", "too large");
    let told = "resize: Waiting Infeasible: too large; what runs stays as it is until something else is asked for";
    assert_eq!(way.line("resize"), told);
    way.record.resize.pending = pending("Deferred", "no room");
    assert_eq!(way.line("resize"), "resize: Waiting Deferred: no room; what runs stays as it is until there is room");
    way.record.resize.pending = None;
    for (error, told) in
        [(None, "Running granted; what runs is being"), (Some("x"), "Waiting failed, and is tried again: x")]
    {
        way.record.resize.progress = Some(Progress { error: error.map(str::to_owned), generation: 0, since: at(NOW) });
        let line = way.line("resize");
        assert!(line.starts_with(&format!("resize under way: {told}")), "{line}");
    }
}

#[test]
fn a_pod_that_ends_and_one_that_ended() {
    let mut way = way(ONE).with("web", running(50));
    way.pod.deletion = Some(Deletion { requested_at: at(NOW), grace_seconds: 30 });
    assert_eq!(way.told(), ["ending: Waiting waits for web to stop; grace period 30 s"]);
    way.observed.containers.clear();
    assert_eq!(way.told(), ["ending: Waiting removing what is left of it"]);
    let terminal = |reason: Option<&str>, message: Option<&str>| Terminal {
        phase: "Failed".to_owned(),
        reason: reason.map(str::to_owned),
        message: message.map(str::to_owned),
    };
    way.record.terminal = Some(terminal(None, None));
    assert_eq!(way.told(), ["ended: Failed Failed: all containers have ended and none runs again"]);
    let mut way = way.with("web", ContainerState::Exited(exit(3, 990, 1000)));
    way.record.containers.get_mut("web").unwrap().exit.as_mut().unwrap().message = "why".to_owned();
    let told =
        "ended: Failed Failed: all containers have ended and none runs again; container web: exit code 3, Error: why";
    assert_eq!(way.told(), [told]);
    way.record.terminal = Some(terminal(Some("Evicted"), Some("too much on the disk")));
    assert_eq!(way.told(), ["ended: Failed Failed (Evicted): too much on the disk"]);
    way.record.terminal = Some(Terminal { phase: "Succeeded".to_owned(), ..terminal(None, None) });
    assert_eq!(way.told(), ["ended: Done Succeeded: all containers have ended and none runs again"]);
}
