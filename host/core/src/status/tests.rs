//! The kubelet's rules of a status, case by case, and what holds of every status.
#![allow(clippy::unwrap_used)]

mod addresses;
mod containers;
mod eviction;

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::observed::{Container, ContainerState, Exit, SandboxState};
use crate::plan::tests::model::{any_world, web};
use crate::plan::{self, Situation};
use crate::pod::{Deletion, Source};
use crate::record::ContainerRecord;
use crate::testing::{at, container, exit, node, pod_from, running, sandbox};

/// A pod and what is known of it.
struct Case {
    pod: Pod,
    observed: ObservedPod,
    record: PodRecord,
    busy: Busy,
    node: NodeFacts,
    now: Timestamp,
}

fn case(spec: &str) -> Case {
    let observed = ObservedPod { sandboxes: vec![sandbox(0, SandboxState::Running)], ..ObservedPod::default() };
    let record = PodRecord { start_time: Some(at(5)), ..PodRecord::default() };
    Case { pod: pod_from(spec), observed, record, busy: Busy::default(), node: node(), now: at(1000) }
}

impl Case {
    fn with(mut self, name: &str, attempt: u32, state: ContainerState) -> Self {
        let made = container(self.pod.container(name).unwrap(), attempt, state);
        self.observed.containers.push(made);
        self.look();
        self
    }

    /// Remembers, with what has no probes started and ready at once.
    fn look(&mut self) {
        self.observed.sort();
        remember(&mut self.record, &self.pod, &self.observed, &BTreeMap::new(), self.now);
        for known in self.record.containers.values_mut() {
            let seen = self.observed.containers.iter().find(|seen| Some(&seen.id) == known.id.as_ref());
            (known.started, known.ready) = seen.map_or((false, false), |seen| (seen.is_running(), seen.is_running()));
        }
    }

    fn gone(mut self, name: &str) -> Self {
        self.observed.containers.retain(|seen| seen.name != name);
        self.look();
        self
    }

    fn known(&mut self, name: &str) -> &mut ContainerRecord {
        self.record.containers.get_mut(name).unwrap()
    }

    fn plan(&self) -> Plan {
        plan::plan(&Situation {
            pod: &self.pod,
            observed: &self.observed,
            record: &self.record,
            unhealthy: &BTreeMap::new(),
            busy: &self.busy,
            blocked: None,
            crash_loop: crate::backoff::Policy::CRASH_LOOP,
            node: &self.node,
            cgroup: None,
            now: self.now,
        })
    }

    fn ask<T>(&self, ask: impl Fn(&StatusInput<'_>) -> T) -> T {
        let plan = self.plan();
        ask(&StatusInput {
            pod: &self.pod,
            observed: &self.observed,
            record: &self.record,
            plan: &plan,
            busy: &self.busy,
            node: &self.node,
            now: self.now,
        })
    }

    /// The status, the pod's end concluded as the worker does.
    fn status(&mut self) -> v1::PodStatus {
        self.record.terminal = self.ask(terminal);
        let status = self.ask(compute);
        remember_conditions(&mut self.record.conditions, &status);
        status
    }

    fn phase(mut self) -> String {
        self.status().phase.unwrap()
    }
}

fn ended(code: i32) -> ContainerState {
    ContainerState::Exited(exit(code, 50, 60))
}

fn of<'a>(status: &'a v1::PodStatus, name: &str) -> &'a v1::ContainerStatus {
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    all.into_iter().find(|status| status.name == name).unwrap()
}

/// A container's state in short: `running`, `waiting <reason>`, `ended <code> <reason>`; `-` for none.
fn short(state: Option<&v1::ContainerState>) -> String {
    let Some(state) = state else { return "-".to_owned() };
    match (&state.running, &state.waiting, &state.terminated) {
        (Some(_), None, None) => "running".to_owned(),
        (None, Some(waiting), None) => format!("waiting {}", waiting.reason.as_deref().unwrap_or_default()),
        (None, None, Some(ended)) => format!("ended {} {}", ended.exit_code, ended.reason.as_deref().unwrap()),
        _ => panic!("exactly one of three: {state:?}"),
    }
}

fn states(status: &v1::PodStatus, name: &str) -> (String, String) {
    let status = of(status, name);
    (short(status.state.as_ref()), short(status.last_state.as_ref()))
}

fn condition<'a>(status: &'a v1::PodStatus, name: &str) -> &'a v1::PodCondition {
    status.conditions.iter().flatten().find(|condition| condition.type_ == name).unwrap()
}

/// A condition in short: status, reason and message.
fn told(status: &v1::PodStatus, name: &str) -> String {
    let condition = condition(status, name);
    let part = |text: &Option<String>| text.as_ref().map(|text| format!(" {text}")).unwrap_or_default();
    format!("{}{}{}", condition.status, part(&condition.reason), part(&condition.message))
}

const ONE: &str = "{restartPolicy: POLICY, containers: [{name: a, image: i}]}";
const INIT: &str =
    "{restartPolicy: POLICY, containers: [{name: a, image: i}], initContainers: [{name: init, image: i}]}";
const SIDE: &str =
    "{containers: [{name: a, image: i}], initContainers: [{name: side, image: i, restartPolicy: Always}]}";

fn one(policy: &str) -> Case {
    case(&ONE.replace("POLICY", policy))
}

fn init(policy: &str) -> Case {
    case(&INIT.replace("POLICY", policy))
}

#[test]
fn phases_of_a_pod_with_one_container() {
    assert_eq!(one("Always").phase(), "Pending");
    assert_eq!(one("Always").with("a", 0, ContainerState::Created).phase(), "Pending");
    assert_eq!(one("Always").with("a", 0, running(50)).phase(), "Running");
    for (policy, code, phase) in [
        ("Always", 0, "Running"),
        ("Always", 1, "Running"),
        ("OnFailure", 0, "Succeeded"),
        ("OnFailure", 1, "Running"),
        ("Never", 0, "Succeeded"),
        ("Never", 1, "Failed"),
    ] {
        assert_eq!(one(policy).with("a", 0, ended(code)).phase(), phase, "{policy} {code}");
    }
}

#[test]
fn phases_while_it_initializes() {
    assert_eq!(init("Always").with("init", 0, running(50)).phase(), "Pending");
    assert_eq!(init("Always").with("init", 0, ended(1)).phase(), "Pending");
    assert_eq!(init("Never").with("init", 0, ended(1)).phase(), "Failed");
    assert_eq!(init("Always").with("init", 0, ended(0)).phase(), "Pending");
    assert_eq!(init("Always").with("init", 0, ended(0)).with("a", 0, running(70)).phase(), "Running");
}

#[test]
fn phases_with_a_sidecar() {
    let mut starting = case(SIDE).with("side", 0, running(50));
    starting.known("side").started = false;
    assert_eq!(starting.phase(), "Pending");
    let up = || case(SIDE).with("side", 0, running(50)).with("a", 0, running(60));
    assert_eq!(up().phase(), "Running");
    // Restarting it does not take the pod back to Pending.
    let mut restarting = up().gone("side").with("side", 1, running(90));
    restarting.known("side").started = false;
    assert_eq!(restarting.phase(), "Running");
    // Its exit code does not matter for the pod's end, which waits for it.
    let mut pod =
        case(&SIDE.replacen('{', "{restartPolicy: Never, ", 1)).with("side", 0, running(50)).with("a", 0, ended(0));
    assert_eq!(pod.status().phase.as_deref(), Some("Running"));
    pod.observed.containers.iter_mut().find(|seen| seen.name == "side").unwrap().state = ended(137);
    pod.look();
    assert_eq!(pod.phase(), "Succeeded");
}

#[test]
fn a_failed_init_container_fails_the_pod_once_nothing_runs() {
    let spec = "{restartPolicy: Never, containers: [{name: a, image: i}], initContainers: \
         [{name: side, image: i, restartPolicy: Always}, {name: init, image: i}]}";
    let mut pod = case(spec).with("side", 0, running(50)).with("init", 0, ended(1));
    assert_eq!(pod.status().phase.as_deref(), Some("Pending"));
    pod.observed.containers.iter_mut().find(|seen| seen.name == "side").unwrap().state = ended(137);
    pod.look();
    let status = pod.status();
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(states(&status, "a").0, "waiting PodInitializing", "it was never to run");
    assert_eq!(
        told(&status, "Initialized"),
        "False ContainersNotInitialized containers with incomplete status: [side init]"
    );
    assert_eq!(told(&status, "Ready"), "False PodFailed");
}

#[test]
fn what_waits_says_why() {
    assert_eq!(states(&one("Always").status(), "a"), ("waiting ContainerCreating".to_owned(), "-".to_owned()));
    assert_eq!(states(&init("Always").status(), "init").0, "waiting PodInitializing");
    assert_eq!(states(&init("Always").with("init", 0, running(50)).status(), "a").0, "waiting PodInitializing");
    let mut crashing = one("Always").with("a", 0, ended(1));
    crashing.now = at(61);
    crashing.known("a").delayed_restarts = 1;
    let status = crashing.status();
    assert_eq!(states(&status, "a"), ("waiting CrashLoopBackOff".to_owned(), "ended 1 Error".to_owned()));
    assert_eq!(of(&status, "a").container_id.as_deref(), Some("docker://a-0"));
    // About to be started again at once: still shown as it ended.
    assert_eq!(states(&one("Always").with("a", 0, ended(1)).status(), "a").0, "ended 1 Error");
}

#[test]
fn a_pull_that_fails_is_shown_with_the_life_before() {
    let mut pod = one("Always").with("a", 0, ended(1));
    pod.record
        .backoffs
        .insert(crate::backoff::image("i"), crate::backoff::Backoff::after(None, pod.now, "ErrImagePull", "no"));
    assert_eq!(states(&pod.status(), "a"), ("waiting ErrImagePull".to_owned(), "ended 1 Error".to_owned()));
    pod.now = at(1006);
    assert_eq!(states(&pod.status(), "a"), ("waiting ImagePullBackOff".to_owned(), "ended 1 Error".to_owned()));
}

#[test]
fn two_lives_at_most_and_the_count_of_all() {
    let mut pod = one("Always");
    for attempt in 0..3 {
        pod = pod.with("a", attempt, ended(attempt as i32 + 1));
    }
    pod = pod.with("a", 3, running(90));
    let status = pod.status();
    assert_eq!(states(&status, "a"), ("running".to_owned(), "ended 3 Error".to_owned()));
    assert_eq!(of(&status, "a").restart_count, 3);
    // The count and the life before outlast their containers.
    let mut pod = pod.gone("a");
    pod.record.terminal = None;
    let status = pod.with("a", 4, running(95)).status();
    assert_eq!(
        (of(&status, "a").restart_count, states(&status, "a").1.as_str()),
        (4, "ended 137 ContainerStatusUnknown")
    );
}

#[test]
fn a_vanished_container_was_lost_and_is_counted_once() {
    let mut pod = one("Always").with("a", 0, running(50)).gone("a");
    let status = pod.status();
    assert_eq!(
        states(&status, "a"),
        ("waiting ContainerCreating".to_owned(), "ended 137 ContainerStatusUnknown".to_owned())
    );
    assert_eq!((status.phase.as_deref(), of(&status, "a").restart_count), (Some("Running"), 1));
    let message = of(&status, "a").last_state.clone().unwrap().terminated.unwrap().message.unwrap();
    assert!(message.ends_with("located when the pod was deleted.  The container used to be Running"), "{message}");
    pod.look();
    assert_eq!(of(&pod.status(), "a").restart_count, 1);
    assert_eq!(of(&pod.with("a", 1, running(99)).status(), "a").restart_count, 1);
}

#[test]
fn a_vanished_container_of_a_pod_that_never_restarts_failed() {
    let mut pod = one("Never").with("a", 0, running(50)).gone("a");
    let status = pod.status();
    assert_eq!(states(&status, "a").0, "ended 137 ContainerStatusUnknown");
    assert_eq!((status.phase.as_deref(), of(&status, "a").restart_count), (Some("Failed"), 0));
}

#[test]
fn pruned_init_containers_were_done() {
    let up = || init("Always").with("init", 0, ended(0)).with("a", 0, running(70));
    let status = up().gone("init").status();
    assert_eq!((states(&status, "init").0.as_str(), of(&status, "init").ready), ("ended 0 Completed", true));
    let mut lost = up().gone("init");
    lost.record = PodRecord::default();
    lost.look();
    let status = lost.status();
    assert_eq!((states(&status, "init").0.as_str(), status.phase.as_deref()), ("ended 0 Completed", Some("Running")));
}

#[test]
fn started_and_ready() {
    let flags = |pod: &mut Case, name: &str| {
        let status = pod.status();
        (of(&status, name).started, of(&status, name).ready)
    };
    let mut pod = one("Always").with("a", 0, running(50));
    assert_eq!(flags(&mut pod, "a"), (Some(true), true));
    pod.known("a").ready = false;
    assert_eq!(flags(&mut pod, "a"), (Some(true), false));
    (pod.known("a").started, pod.known("a").ready) = (false, true);
    assert_eq!(flags(&mut pod, "a"), (Some(false), false), "ready needs started");
    assert_eq!(flags(&mut one("Always").with("a", 0, ended(1)), "a"), (Some(false), false));
    assert_eq!(flags(&mut init("Always").with("init", 0, ended(0)), "init"), (Some(false), true));
    assert_eq!(flags(&mut init("Always").with("init", 0, ended(1)), "init"), (Some(false), false));
    assert_eq!(flags(&mut case(SIDE).with("side", 0, running(50)), "side"), (Some(true), true));
    // What is remembered of another container says nothing of this one.
    let mut pod = one("Always").with("a", 0, running(50));
    pod.known("a").id = Some("another".to_owned());
    assert_eq!(pod.ask(compute).container_statuses.unwrap()[0].started, Some(false));
}

#[test]
fn a_container_is_not_running_before_its_post_start_hook_ended() {
    let mut pod = one("Always").with("a", 0, running(50));
    pod.busy.post_start.insert("a-0".to_owned());
    let status = pod.status();
    assert_eq!(
        (states(&status, "a").0.as_str(), status.phase.as_deref()),
        ("waiting ContainerCreating", Some("Pending"))
    );
    assert!(!of(&status, "a").ready);
}

#[test]
fn conditions_on_the_way_to_ready() {
    let mut pod = init("Always");
    pod.observed.sandboxes.clear();
    let status = pod.status();
    assert_eq!(told(&status, "PodReadyToStartContainers"), "False PodSandboxNotReady no pod sandbox exists");
    assert_eq!(told(&status, "PodScheduled"), "True");
    assert_eq!(
        told(&status, "Initialized"),
        "False ContainersNotInitialized containers with incomplete status: [init]"
    );
    assert_eq!(told(&status, "Ready"), "False ContainersNotReady containers with unready status: [a]");
    let status = init("Always").with("init", 0, ended(0)).with("a", 0, running(70)).status();
    for name in ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"] {
        assert_eq!(told(&status, name), "True");
    }
    let status = one("Never").with("a", 0, ended(0)).status();
    for name in ["Initialized", "ContainersReady", "Ready"] {
        assert!(told(&status, name).ends_with(" PodCompleted"), "{name}");
    }
}

#[test]
fn a_transition_time_is_that_of_the_last_change() {
    let mut pod = one("Always").with("a", 0, running(50));
    assert_eq!(condition(&pod.status(), "Ready").last_transition_time, Some(Time(at(1000))));
    pod.now = at(1100);
    assert_eq!(condition(&pod.status(), "Ready").last_transition_time, Some(Time(at(1000))));
    pod.known("a").ready = false;
    let status = pod.status();
    assert_eq!(condition(&status, "Ready").last_transition_time, Some(Time(at(1100))));
    assert_eq!(condition(&status, "Initialized").last_transition_time, Some(Time(at(1000))));
}

#[test]
fn readiness_gates_hold_up_ready_alone() {
    let mut pod =
        case("{readinessGates: [{conditionType: x/y}], containers: [{name: a, image: i}]}").with("a", 0, running(50));
    let status = pod.status();
    assert_eq!(told(&status, "ContainersReady"), "True");
    assert_eq!(
        told(&status, "Ready"),
        "False ReadinessGatesNotReady corresponding condition of pod readiness gate \"x/y\" does not exist."
    );
    for (value, told_now) in [
        ("False", "False ReadinessGatesNotReady the status of pod readiness gate \"x/y\" is not \"True\", but False"),
        ("True", "True"),
    ] {
        let mut object = (*pod.pod.object).clone();
        let gate = v1::PodCondition { type_: "x/y".to_owned(), status: value.to_owned(), ..Default::default() };
        object.status = Some(v1::PodStatus { conditions: Some(vec![gate.clone()]), ..Default::default() });
        pod.pod.object = Arc::new(object);
        let status = pod.status();
        assert_eq!(told(&status, "Ready"), told_now);
        assert_eq!(condition(&status, "x/y"), &gate, "what others wrote is kept");
    }
}

#[test]
fn a_deadline_is_told_once_nothing_runs() {
    let spec = "{activeDeadlineSeconds: 100, containers: [{name: a, image: i}, {name: b, image: i}]}";
    let mut pod = case(spec).with("a", 0, running(50));
    assert_eq!(deadline(&pod.pod, &pod.record), Some(at(105)));
    let status = pod.status();
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Pending"), None));
    assert!(pod.record.terminal.is_some());
    pod.observed.containers[0].state = ended(137);
    pod.look();
    let status = pod.status();
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("DeadlineExceeded")));
    assert_eq!(states(&status, "a").0, "ended 137 Error");
    assert_eq!(states(&status, "b").0, "ended 137 ContainerStatusUnknown", "it was to run and did not");
    let lost = of(&status, "b").state.clone().unwrap().terminated.unwrap();
    assert_eq!(lost.message.as_deref(), Some("The container could not be located when the pod was terminated"));
    assert_eq!(lost.container_id, None);
}

#[test]
fn a_rejected_pod_has_no_containers_to_show() {
    let mut pod = one("Always");
    let (reason, message) = (Some("OutOfcpu".to_owned()), Some("Pod was rejected: no".to_owned()));
    pod.record.terminal = Some(Terminal { phase: "Failed".to_owned(), reason, message });
    let status = pod.status();
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("OutOfcpu")));
    assert!(status.container_statuses.is_none() && status.conditions.is_none());
}

#[test]
fn a_deleted_pod_ends_as_its_containers_did() {
    for (source, code, phase) in
        [(Source::Api, 0, "Succeeded"), (Source::Api, 143, "Failed"), (Source::File, 0, "Succeeded")]
    {
        let mut pod = one("Always").with("a", 0, running(50));
        pod.pod.source = source;
        pod.pod.deletion = Some(Deletion { requested_at: at(999), grace_seconds: 30 });
        assert_eq!(pod.status().phase.as_deref(), Some("Running"));
        pod.observed.containers[0].state = ended(code);
        pod.look();
        assert_eq!(pod.phase(), phase);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is seen, one world after the other: no panic, terminal phases stay, counts do not fall, and what is
    /// ready runs.
    #[test]
    fn statuses_of_any_worlds(
        worlds in prop::collection::vec(any_world(), 1..5),
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        deleted in any::<bool>(),
        deadline in prop::option::of(1i64..3000),
    ) {
        let mut pod = Case { pod: web(policy), ..one(policy) };
        let mut object = (*pod.pod.object).clone();
        object.spec.as_mut().unwrap().active_deadline_seconds = deadline;
        pod.pod.object = Arc::new(object);
        let mut counts = BTreeMap::new();
        let mut end: Option<String> = None;
        let last = worlds.len() - 1;
        for (index, world) in worlds.into_iter().enumerate() {
            pod.observed = world;
            pod.now = at(1000 + 500 * index as i64);
            if deleted && index == last {
                pod.pod.deletion = Some(Deletion { requested_at: pod.now, grace_seconds: 30 });
            }
            pod.look();
            let status = pod.status();
            let phase = status.phase.clone().unwrap();
            let runs = pod.observed.containers.iter().any(Container::is_running);
            if phase == "Succeeded" || phase == "Failed" {
                prop_assert!(!runs, "nothing runs in a pod that ended");
                prop_assert!(end.is_none() || end.as_deref() == Some(&phase));
                end = Some(phase);
            } else {
                prop_assert!(end.is_none() || runs, "a terminal phase stays");
            }
            for of in status.init_container_statuses.iter().chain(&status.container_statuses).flatten() {
                let state = short(of.state.as_ref());
                prop_assert!(!of.ready || state == "running" || (of.name == "setup" && state.starts_with("ended 0")));
                prop_assert!(of.started != Some(true) || state == "running");
                let before = counts.insert(of.name.clone(), of.restart_count);
                prop_assert!(before <= Some(of.restart_count), "counts do not fall");
            }
        }
    }
}
