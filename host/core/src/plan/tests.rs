//! Properties of plans on the model of a runtime, and the cases that users meet.

#![allow(clippy::unwrap_used)]

mod disturbance;
pub(crate) mod model;
mod resizing;

use proptest::prelude::*;

use self::model::{Fault, Model, Upset, any_world, ended, web};
use super::*;
use crate::observed::ContainerState;
use crate::pod::Deletion;
use crate::record::{Evicted, Terminal};
use crate::testing::pod_from;

pub(crate) fn any_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![4 => Just(Fault::None), 1 => Just(Fault::Error), 1 => Just(Fault::Crash), 1 => Just(Fault::LostEvent)]
}

/// Rounds with faults, then without, until nothing is left to do.
pub(crate) fn converge(model: &mut Model, faults: Vec<Fault>) {
    let mut faults = faults.into_iter();
    for _ in 0..20 {
        model.round(|| faults.next().unwrap_or(Fault::None));
    }
    model.look();
    for _ in 0..60 {
        if !model.round(|| Fault::None) {
            return;
        }
        if model.released {
            return;
        }
    }
    panic!("no end to it: {:#?}\n{:#?}", model.log, model.world);
}

/// Upsets, each after that many rounds with faults; then [`converge`].
pub(crate) fn disturb(model: &mut Model, upsets: impl IntoIterator<Item = (usize, Upset)>, faults: Vec<Fault>) {
    let mut faults = faults.into_iter();
    for (rounds, upset) in upsets {
        for _ in 0..rounds {
            model.round(|| faults.next().unwrap_or(Fault::None));
        }
        model.upset(upset);
    }
    converge(model, faults.collect());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn converges_from_anywhere_through_any_fault(
        world in any_world(),
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        faults in prop::collection::vec(any_fault(), 0..40),
    ) {
        let mut model = Model::new(web(policy), world);
        converge(&mut model, faults);
        prop_assert!(model.plan().is_empty(), "planning again gives nothing: {:?}", model.plan());
        if model.record.terminal.is_some() {
            prop_assert!(!model.world.is_running(), "an ended pod runs nothing");
        } else {
            let up = model.world.sandbox().unwrap();
            prop_assert!(up.is_up());
            prop_assert_eq!(&up.hash, &model.pod.sandbox_hash);
            for name in ["side", "a", "b"] {
                let seen = model.world.container(name).unwrap();
                let done = seen.exit().is_some_and(|exit| policy != "Always" && exit.code == 0 || policy == "Never");
                prop_assert!(done || seen.is_running(), "{} neither runs nor is done", name);
                if seen.is_running() {
                    prop_assert_eq!(&seen.sandbox_id, &up.id);
                    prop_assert_eq!(&seen.hash, &model.pod.hashes[name]);
                }
            }
            for name in ["setup", "side", "a", "b"] {
                prop_assert!(model.world.containers_named(name).count() <= 2, "the dead are collected");
            }
        }
        let restarts = model.record.containers.values().map(|known| known.restarts).max().unwrap_or(0);
        prop_assert!(restarts < 40);
    }

    #[test]
    fn a_deleted_pod_leaves_nothing(world in any_world(), faults in prop::collection::vec(any_fault(), 0..40), grace in 0i64..60) {
        let mut model = Model::new(web("Always"), world);
        model.pod.deletion = Some(Deletion { requested_at: model.now, grace_seconds: grace });
        converge(&mut model, faults);
        prop_assert!(model.released, "{:#?}", model.log);
    }

    #[test]
    fn an_evicted_pod_runs_nothing_again_and_leaves_its_record_alone(
        world in any_world(),
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        rounds in 0usize..8,
        faults in prop::collection::vec(any_fault(), 0..40),
    ) {
        let mut model = Model::new(web(policy), world);
        for _ in 0..rounds {
            model.round(|| Fault::None);
        }
        evict(&mut model, 1);
        model.log.clear();
        converge(&mut model, faults);
        prop_assert!(model.plan().is_empty(), "{:?}", model.plan());
        prop_assert!(model.world.containers.is_empty() && model.world.sandboxes.is_empty());
        prop_assert!(model.record.released && !model.released);
        prop_assert!(!model.log.iter().any(|line| line.starts_with("start") || line.starts_with("create")));
    }

    #[test]
    fn a_failing_init_container_ends_a_pod_that_never_restarts(faults in prop::collection::vec(any_fault(), 0..20)) {
        let mut model = Model::new(web("Never"), ObservedPod::default());
        model.init_exit = 1;
        converge(&mut model, faults);
        prop_assert_eq!(model.record.terminal.as_ref().map(|terminal| terminal.phase.as_str()), Some("Failed"));
        prop_assert!(model.world.container("a").is_none());
    }
}

fn evict(model: &mut Model, grace_seconds: i64) {
    let reason = Some("Evicted".to_owned());
    model.record.terminal = Some(Terminal { phase: "Failed".to_owned(), reason, message: None });
    model.record.evicted = Some(Evicted { grace_seconds, disruption: true });
    model.record.emptied = true;
}

fn actions(plan: &Plan) -> Vec<String> {
    plan.actions().map(|planned| planned.action.to_string()).collect()
}

#[test]
fn a_new_pod_overlaps_the_sandboxs_start_with_the_first_container() {
    let model =
        Model::new(pod_from("{containers: [{name: a, image: i}, {name: b, image: i}]}"), ObservedPod::default());
    let plan = model.plan();
    assert_eq!(plan.stages[2].len(), 2, "{:?}", plan.stages);
    assert_eq!(actions(&plan).len(), 9);
}

#[test]
fn one_that_must_know_the_address_waits_for_it() {
    let spec =
        "{containers: [{name: a, image: i, env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]}]}";
    let plan = Model::new(pod_from(spec), ObservedPod::default()).plan();
    assert!(plan.stages.iter().all(|stage| stage.len() == 1));
}

pub(crate) fn settled(spec: &str) -> Model {
    let mut model = Model::new(pod_from(spec), ObservedPod::default());
    while model.round(|| Fault::None) {}
    model
}

#[test]
fn a_changed_hash_replaces_that_container_alone() {
    let mut model = settled("{containers: [{name: a, image: i}, {name: b, image: i}]}");
    model.pod.hashes.insert("a".to_owned(), "new".to_owned());
    let plan = model.plan();
    assert_eq!(plan.actions().count(), 1);
    assert!(plan.actions().next().unwrap().why.contains("definition changed"));
}

const SIDECARS: &str = "{terminationGracePeriodSeconds: 20, containers: [{name: a, image: i}], initContainers: \
     [{name: s1, image: i, restartPolicy: Always}, {name: s2, image: i, restartPolicy: Always}]}";

#[test]
fn all_are_told_at_once_and_sidecars_end_last_and_in_reverse() {
    let mut model = settled(SIDECARS);
    model.pod.deletion = Some(Deletion { requested_at: model.now, grace_seconds: 30 });
    assert_eq!(stops(&model), [("a", 30, vec![]), ("s1", 30, vec!["a", "s2"]), ("s2", 30, vec!["a"])]);
    model.log.clear();
    while !model.released {
        model.round(|| Fault::None);
    }
    let ended: Vec<&str> = model.log.iter().filter_map(|line| line.strip_prefix("ended ")).collect();
    assert_eq!(ended, ["a", "s2", "s1"]);
    assert_eq!(model.log.iter().filter(|line| line.starts_with("stop container")).count(), 3, "{:#?}", model.log);
}

#[test]
fn all_that_ends_has_one_grace_period() {
    let mut model = settled(SIDECARS);
    evict(&mut model, 7);
    assert_eq!(stops(&model), [("a", 7, vec![]), ("s1", 7, vec!["a", "s2"]), ("s2", 7, vec!["a"])]);
    for seen in model.known.containers.clone() {
        model.busy.stopping.insert(seen.id, model.now + jiff::SignedDuration::from_secs(7));
    }
    model.world.containers.iter_mut().find(|seen| seen.name == "a").unwrap().state =
        ContainerState::Exited(ended(0, model.now));
    model.now += jiff::SignedDuration::from_secs(6);
    model.look();
    assert!(stops(&model).is_empty(), "no new time for the sidecars");
    model.busy.stopping.clear();
    model.record.evicted = Some(Evicted { grace_seconds: 0, disruption: true });
    assert_eq!(stops(&model), [("s1", 1, vec!["s2"]), ("s2", 1, vec![])], "nobody is killed unasked");
}

#[test]
fn an_end_that_began_under_another_agent_has_no_more_time_than_is_left() {
    let mut model = settled("{terminationGracePeriodSeconds: 20, containers: [{name: a, image: i}]}");
    let grace = |model: &Model| stops(model)[0].1;
    let began = |seconds: i64, model: &Model| Some(model.now - jiff::SignedDuration::from_secs(seconds));
    evict(&mut model, 30);
    // A record of before it was kept, and a clock that stepped back.
    for since in [None, began(-100, &model)] {
        model.record.ended_at = since;
        assert_eq!(grace(&model), 20);
    }
    for (grace_seconds, passed, left) in [(30, 5, 15), (10, 5, 5), (10, 500, 1), (0, 5, 1)] {
        evict(&mut model, grace_seconds);
        model.record.ended_at = began(passed, &model);
        assert_eq!(grace(&model), left, "{passed} s of {grace_seconds} have passed");
    }
    // Its time is over for another reason: it is over all the same when the pod is deleted as well.
    evict(&mut model, 10);
    model.record.ended_at = began(4, &model);
    model.pod.deletion = Some(Deletion { requested_at: model.now, grace_seconds: 20 });
    assert_eq!(grace(&model), 6);
    model.pod.deletion = None;
    // Asked again: with less time that counts from now on, with more nothing is won.
    for (asked, left) in [(3, 3), (20, 6)] {
        let mut record = model.record.clone();
        record.ends_within(asked, model.now);
        assert_eq!(record.evicted.map(|evicted| evicted.grace_seconds), Some(left));
        assert_eq!(record.ended_at, Some(model.now));
    }
}

#[test]
fn a_sidecar_that_is_restarted_for_itself_waits_for_nobody() {
    let mut model = settled(SIDECARS);
    let id = model.known.container("s1").unwrap().id.clone();
    model.unhealthy.insert(id, Unhealthy { cause: Cause::Probe(ProbeKind::Liveness), grace_seconds: None });
    assert_eq!(stops(&model), [("s1", 20, vec![])]);
}

#[test]
fn what_is_stopped_alone_is_told_in_the_kubelets_words() {
    let told = |name: &str, cause: Cause| {
        let mut model = settled(SIDECARS);
        let id = model.known.container(name).unwrap().id.clone();
        model.unhealthy.insert(id, Unhealthy { cause, grace_seconds: None });
        match &model.plan().actions().next().unwrap().action {
            Action::StopContainer { told, .. } => told.clone().unwrap(),
            other => panic!("{other}"),
        }
    };
    let (liveness, startup) = (Cause::Probe(ProbeKind::Liveness), Cause::Probe(ProbeKind::Startup));
    assert_eq!(told("s1", startup), "Init container s1 failed startup probe");
    assert_eq!(told("a", liveness), "Container a failed liveness probe, will be restarted");
    assert_eq!(told("a", Cause::PostStart), "FailedPostStartHook");
}

/// The stops of the plan by name: seconds, and the names of those that end before.
fn stops(model: &Model) -> Vec<(&str, i64, Vec<&str>)> {
    let name = |id: &String| model.known.containers.iter().find(|seen| seen.id == *id).unwrap().name.as_str();
    let mut stops: Vec<_> = model
        .plan()
        .actions()
        .filter_map(|planned| match &planned.action {
            Action::StopContainer { id, grace_seconds, after, .. } => {
                let mut after: Vec<&str> = after.iter().map(name).collect();
                after.sort_unstable();
                Some((name(id), *grace_seconds, after))
            }
            _ => None,
        })
        .collect();
    stops.sort_unstable();
    stops
}

#[test]
fn less_grace_stops_sooner_and_the_same_is_not_asked_twice() {
    let mut model = settled("{containers: [{name: a, image: i}]}");
    let id = model.known.container("a").unwrap().id.clone();
    model.pod.deletion = Some(Deletion { requested_at: model.now, grace_seconds: 30 });
    model.busy.stopping.insert(id, model.now + jiff::SignedDuration::from_secs(30));
    assert!(model.plan().is_empty());
    model.pod.deletion = Some(Deletion { requested_at: model.now, grace_seconds: 2 });
    assert_eq!(model.plan().actions().count(), 1);
}

#[test]
fn an_eviction_shortens_the_grace_period_and_never_lengthens_it() {
    let mut model = settled("{terminationGracePeriodSeconds: 20, containers: [{name: a, image: i}]}");
    let grace = |model: &Model| match &model.plan().actions().next().unwrap().action {
        Action::StopContainer { grace_seconds, .. } => *grace_seconds,
        other => panic!("{other}"),
    };
    evict(&mut model, 1);
    assert_eq!(grace(&model), 1);
    evict(&mut model, 60);
    assert_eq!(grace(&model), 20);
    model.pod.deletion = Some(Deletion { requested_at: model.now, grace_seconds: 5 });
    assert_eq!(grace(&model), 5);
    evict(&mut model, 1);
    assert_eq!(grace(&model), 1);
}

#[test]
fn a_pod_that_ended_gives_its_files_back_and_keeps_its_logs() {
    let mut model = settled("{restartPolicy: Never, containers: [{name: a, image: i}]}");
    model.world.containers[0].state = ContainerState::Exited(ended(0, model.now));
    model.look();
    while model.round(|| Fault::None) {}
    assert!(model.record.released && !model.world.containers.is_empty() && !model.world.sandboxes.is_empty());
    // The disk is needed.
    model.record.emptied = true;
    while model.round(|| Fault::None) {}
    assert!(model.world.containers.is_empty() && model.world.sandboxes.is_empty() && !model.released);
}

#[test]
fn a_crash_loop_waits_and_says_so() {
    let mut model = settled("{containers: [{name: a, image: i}]}");
    for (restarts, delay) in [(0, "0s"), (1, "10s"), (2, "20s"), (5, "2m40s")] {
        model.record.containers.get_mut("a").unwrap().delayed_restarts = restarts;
        model.world.containers[0].state = ContainerState::Exited(ended(1, model.now));
        model.look();
        let plan = model.plan();
        if restarts == 0 {
            assert!(!plan.is_empty());
        } else {
            assert!(plan.is_empty());
            let wait = &plan.waits["a"];
            assert_eq!(wait.reason, "CrashLoopBackOff");
            assert!(wait.message.starts_with(&format!("back-off {delay} restarting")), "{}", wait.message);
        }
    }
}

#[test]
fn a_finished_pod_stays_finished_when_its_containers_are_pruned() {
    let mut model = settled("{restartPolicy: Never, containers: [{name: a, image: i}]}");
    model.world.containers[0].state = ContainerState::Exited(ended(0, model.now));
    model.look();
    while model.round(|| Fault::None) {}
    assert_eq!(model.record.terminal.as_ref().unwrap().phase, "Succeeded");
    model.world = ObservedPod::default();
    model.look();
    assert!(model.plan().is_empty());
    // Also when the end itself was not stored.
    model.record.terminal = None;
    let plan = model.plan();
    assert!(plan.is_empty() && plan.finished);
}

#[test]
fn no_new_sandbox_for_what_is_done() {
    let mut model = settled("{restartPolicy: OnFailure, containers: [{name: a, image: i}]}");
    model.world.containers[0].state = ContainerState::Exited(ended(0, model.now));
    model.world.sandboxes[0].state = SandboxState::Exited;
    model.look();
    assert!(model.plan().is_empty());
}

#[test]
fn an_ephemeral_container_is_started_once_and_counts_for_nothing() {
    let spec =
        "{containers: [{name: a, image: i}], ephemeralContainers: [{name: debug, image: i, targetContainerName: a}]}";
    let mut model = Model::new(pod_from(spec), ObservedPod::default());
    converge(&mut model, Vec::new());
    let seen = model.world.container("debug").cloned().unwrap();
    assert!(seen.is_running() && seen.kind == ContainerKind::Ephemeral);
    assert_eq!(model.pod.target_of("debug"), Some("a"));
    model.upset(Upset::Ends(3, 1));
    converge(&mut model, Vec::new());
    assert_eq!(model.world.containers.iter().filter(|seen| seen.name == "debug").count(), 1, "it does not run again");
    assert!(model.world.container("a").unwrap().is_running());
    model.upset(Upset::SandboxDies);
    converge(&mut model, Vec::new());
    assert!(model.world.container("a").unwrap().is_running());
    assert!(model.world.container("debug").is_none_or(|seen| !seen.is_running()));
}
