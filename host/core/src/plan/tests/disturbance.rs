//! What plans make of what happens to a pod from outside: failing probes, changed definitions, prunes, dying sandboxes,
//! clocks. Case by case as `computePodActions` and `computeInitContainerActions` have it, and by properties.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::model::{Fault, Model, Upset, any_upset, any_world, ended, web};
use super::{any_fault, converge, settled};
use crate::backoff::Backoff;
use crate::cgroup::Qos;
use crate::observed::Container;
use crate::plan::*;
use crate::pod::{Deletion, Source};
use crate::testing::pod_from;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn converges_after_anything_that_happens(
        world in any_world(),
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        stop_exit in prop_oneof![Just(0), Just(137)],
        upsets in prop::collection::vec((0usize..4, any_upset()), 0..8),
        faults in prop::collection::vec(any_fault(), 0..20),
    ) {
        let mut model = Model::new(web(policy), world);
        model.stop_exit = stop_exit;
        let mut faults = faults.into_iter();
        let mut restarts = std::collections::BTreeMap::new();
        for (rounds, upset) in upsets {
            for _ in 0..rounds {
                model.round(|| faults.next().unwrap_or(Fault::None));
            }
            model.upset(upset);
            for (name, known) in &model.record.containers {
                let before = restarts.insert(name.clone(), known.restarts);
                prop_assert!(before <= Some(known.restarts), "restart counts never fall");
            }
        }
        converge(&mut model, faults.collect());
        prop_assert!(model.plan().is_empty(), "{:?}", model.plan());
        if model.record.terminal.is_some() {
            prop_assert!(!model.world.is_running());
            return Ok(());
        }
        let up = model.world.sandbox().unwrap().clone();
        prop_assert_eq!(up.state, SandboxState::Running);
        for name in ["side", "a", "b"] {
            let runs = model.world.container(name).filter(|seen| seen.is_running());
            if let Some(seen) = runs {
                prop_assert_eq!((&seen.hash, &seen.sandbox_id), (&model.pod.hashes[name], &up.id));
            } else {
                let code = model.record.containers[name].exit.as_ref().map(|exit| exit.code);
                prop_assert!(name != "side" && policy != "Always" && (policy == "Never" || code == Some(0)), "{}", name);
            }
        }
    }

    #[test]
    fn a_pod_can_be_deleted_at_any_moment(
        world in any_world(),
        rounds in 0usize..8,
        upset in any_upset(),
        faults in prop::collection::vec(any_fault(), 0..20),
    ) {
        let mut model = Model::new(web("Always"), world);
        for _ in 0..rounds {
            model.round(|| Fault::None);
        }
        model.pod.deletion = Some(Deletion { requested_at: model.now, grace_seconds: 30 });
        model.upset(upset);
        converge(&mut model, faults);
        prop_assert!(model.released, "{:#?}", model.log);
    }
}

const TWO: &str = "{restartPolicy: POLICY, containers: [{name: a, image: i}, {name: b, image: i}]}";
const INIT: &str =
    "{containers: [{name: a, image: i}], initContainers: [{name: one, image: i}, {name: two, image: i}]}";
const SIDE: &str =
    "{containers: [{name: a, image: i}], initContainers: [{name: side, image: i, restartPolicy: Always}]}";

fn two(policy: &str) -> Model {
    settled(&TWO.replace("POLICY", policy))
}

fn run(model: &mut Model) {
    while model.round(|| Fault::None) {}
}

fn count(model: &Model, line: &str) -> usize {
    model.log.iter().filter(|done| done.starts_with(line)).count()
}

#[test]
fn what_a_probe_ends_runs_again_also_when_it_ends_well() {
    let mut model = two("OnFailure");
    model.stop_exit = 0;
    model.upset(Upset::Unhealthy(1));
    let plan = model.plan();
    assert!(plan.actions().next().unwrap().why.ends_with("failed liveness probe, will be restarted"));
    run(&mut model);
    assert!(model.world.container("a").unwrap().is_running());
    assert_eq!(model.record.containers["a"].restarts, 1);
    assert!(!model.record.containers["a"].restarting);
}

#[test]
fn whether_what_a_probe_ends_runs_again_is_not_said_by_rules_of_other_exits() {
    let rules =
        "restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [137]}}]";
    let spec = format!("{{containers: [{{name: a, image: i, {rules}}}, {{name: b, image: i}}]}}");
    for (stop_exit, again) in [(143, false), (137, true)] {
        let mut model = settled(&spec);
        model.stop_exit = stop_exit;
        model.upset(Upset::Unhealthy(1));
        assert!(model.plan().actions().next().unwrap().why.ends_with("failed liveness probe"));
        run(&mut model);
        assert_eq!(model.world.container("a").unwrap().is_running(), again, "{stop_exit}");
    }
}

#[test]
fn a_probes_own_grace_period_takes_the_place_of_the_pods() {
    for (own, wanted) in [(Some(3), 3), (Some(60), 60), (None, 30)] {
        let mut model = two("Always");
        model.upset(Upset::Unhealthy(1));
        model.unhealthy.values_mut().for_each(|unhealthy| unhealthy.grace_seconds = own);
        let plan = model.plan();
        let mut graces = plan.actions().filter_map(|planned| match &planned.action {
            Action::StopContainer { container, grace_seconds, .. } => Some((container.clone(), *grace_seconds)),
            _ => None,
        });
        assert_eq!((graces.next(), graces.next()), (Some(("a".to_owned(), wanted)), None));
    }
}

/// A day when the hash rules are others, as the upgraded agent finds its containers ([`crate::labels::parse`]).
#[test]
fn what_other_hash_rules_made_goes_on_and_follows_changes_from_its_next_start() {
    let mut model = two("Always");
    for seen in &mut model.world.containers {
        seen.hash.clear();
    }
    model.world.sandboxes[0].hash.clear();
    model.look();
    assert!(model.plan().is_empty(), "{:?}", model.plan());
    model.upset(Upset::Changed(1));
    assert!(model.plan().is_empty(), "{:?}", model.plan());
    model.upset(Upset::Ends(1, 1));
    run(&mut model);
    let a = model.world.container("a").unwrap();
    assert!(a.is_running() && a.hash == model.pod.hashes["a"]);
    assert_eq!((count(&model, "start container a"), count(&model, "start container b")), (2, 1));
}

#[test]
fn what_a_probe_ends_in_a_pod_that_never_restarts_stays_ended() {
    let mut model = two("Never");
    model.upset(Upset::Unhealthy(1));
    assert!(model.plan().actions().next().unwrap().why.ends_with("failed liveness probe"));
    run(&mut model);
    assert!(!model.world.container("a").unwrap().is_running());
    assert!(model.world.container("b").unwrap().is_running() && model.record.terminal.is_none());
}

#[test]
fn a_changed_container_starts_again_whatever_the_policy() {
    for (policy, code) in [("Never", 137), ("Never", 0), ("OnFailure", 0), ("Always", 0)] {
        let mut model = two(policy);
        model.stop_exit = code;
        model.upset(Upset::Changed(1));
        run(&mut model);
        let a = model.world.container("a").unwrap();
        assert!(a.is_running() && a.hash == model.pod.hashes["a"], "{policy} {code}");
        assert_eq!(count(&model, "start container b"), 1);
    }
}

#[test]
fn a_changed_pod_begins_again_whatever_the_policy() {
    let mut model = two("Never");
    model.pod.sandbox_hash = "sandbox-hash-2".to_owned();
    let plan = model.plan();
    assert_eq!(plan.restarting.len(), 2);
    crate::status::remember_restarts(&mut model.record, &plan);
    for seen in &mut model.world.containers {
        seen.state = ContainerState::Exited(ended(0, model.now));
    }
    model.world.sandboxes[0].state = SandboxState::Exited;
    model.look();
    let plan = model.plan();
    assert!(plan.actions().any(|planned| matches!(planned.action, Action::CreateSandbox { attempt: 1 })));
}

#[test]
fn a_pod_that_is_of_another_class_begins_again_in_its_place_unless_its_sandbox_does_not_say() {
    for (made_for, renewed) in [(None, false), (Some(Qos::BestEffort), false), (Some(Qos::Burstable), true)] {
        let mut model = two("Always");
        model.world.sandboxes[0].qos = made_for;
        model.look();
        assert_eq!(model.plan().restarting.len() == 2, renewed, "{made_for:?}");
        model.pod.source = Source::Api;
        assert!(model.plan().is_empty(), "{made_for:?}");
    }
}

#[test]
fn a_mended_definition_does_not_wait_for_the_crashes_of_the_old_one() {
    let mut model = two("Always");
    model.record.containers.get_mut("a").unwrap().delayed_restarts = 5;
    model.upset(Upset::Ends(1, 1));
    assert!(model.plan().is_empty() && model.plan().waits["a"].reason == "CrashLoopBackOff");
    model.upset(Upset::Changed(1));
    assert!(!model.plan().is_empty());
}

#[test]
fn init_containers_run_once_in_a_sandbox_and_again_in_the_next() {
    let mut model = settled(INIT);
    assert_eq!((count(&model, "start container one"), count(&model, "start container two")), (1, 1));
    // Pruned, with and without the app's containers.
    model.upset(Upset::Pruned);
    assert!(model.plan().is_empty());
    model.upset(Upset::Removed(1));
    run(&mut model);
    assert_eq!((count(&model, "start container one"), count(&model, "start container a")), (1, 2));
    model.upset(Upset::SandboxDies);
    model.upset(Upset::Pruned);
    run(&mut model);
    assert_eq!((count(&model, "start container one"), count(&model, "start container two")), (2, 2));
    assert!(model.world.container("a").unwrap().is_running());
}

#[test]
fn with_the_record_lost_what_there_is_tells_how_far_it_came() {
    let mut model = settled(INIT);
    model.world.containers.retain(|seen| seen.name == "two");
    model.record = PodRecord::default();
    model.look();
    run(&mut model);
    assert_eq!((count(&model, "start container one"), count(&model, "start container a")), (1, 2));
}

#[test]
fn a_failing_init_container_is_tried_again_unless_never() {
    for (policy, ends) in [("Always", false), ("OnFailure", false), ("Never", true)] {
        let spec = format!("{{restartPolicy: {policy}, {}", &INIT[1..]);
        let mut model = Model::new(pod_from(&spec), ObservedPod::default());
        model.init_exit = 1;
        for _ in 0..12 {
            model.round(|| Fault::None);
        }
        assert_eq!(model.record.terminal.is_some(), ends, "{policy}");
        assert!(ends || model.record.containers["one"].restarts > 0);
        assert_eq!(count(&model, "start container two"), 0);
    }
}

#[test]
fn a_sidecar_restarts_alone_while_apps_run() {
    let mut model = settled(SIDE);
    for upset in [Upset::Ends(0, 0), Upset::Unhealthy(0), Upset::Changed(0), Upset::Removed(0)] {
        model.upset(upset);
        run(&mut model);
        let side = model.world.container("side").unwrap();
        assert!(side.is_running() && side.hash == model.pod.hashes["side"], "{upset:?}");
        assert_eq!(count(&model, "start container a"), 1);
    }
}

#[test]
fn apps_wait_for_a_sidecar_to_be_started() {
    let mut model = settled(SIDE);
    model.world.containers.retain(|seen| seen.name == "side");
    model.look();
    model.record.containers.remove("a");
    model.record.containers.get_mut("side").unwrap().started = false;
    let plan = model.plan();
    assert!(plan.is_empty() && plan.waits["a"].reason == "PodInitializing");
    model.record.containers.get_mut("side").unwrap().started = true;
    assert!(!model.plan().is_empty());
    let id = model.known.container("side").unwrap().id.clone();
    model.busy.post_start.insert(id);
    assert!(model.plan().is_empty(), "its postStart hook runs");
}

#[test]
fn an_app_waits_for_the_hook_of_the_one_before_and_says_so_as_its_pod_does() {
    for (inits, reason) in [("", "ContainerCreating"), ("initContainers: [{name: one, image: i}], ", "PodInitializing")]
    {
        let mut model = settled(&format!("{{{inits}containers: [{{name: a, image: i}}, {{name: b, image: i}}]}}"));
        model.world.containers.retain(|seen| seen.name != "b");
        model.look();
        model.record.containers.remove("b");
        let id = model.known.container("a").unwrap().id.clone();
        model.busy.post_start.insert(id);
        let plan = model.plan();
        assert!(plan.is_empty() && plan.waits["b"].reason == reason, "{plan:?}");
    }
}

#[test]
fn what_the_spec_does_not_name_any_more_is_stopped() {
    let mut model = two("Always");
    model.pod = pod_from("{containers: [{name: a, image: i}]}");
    let plan = model.plan();
    assert_eq!(plan.actions().count(), 1);
    assert!(plan.actions().next().unwrap().why.contains("no longer in the pod"));
}

#[test]
fn restart_rules_bring_a_pod_back_that_never_restarts() {
    let spec = "{restartPolicy: Never, containers: [{name: a, image: i, restartPolicy: Never, \
         restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [1]}}]}, {name: b, image: i}]}";
    let mut model = settled(spec);
    model.upset(Upset::Ends(1, 1));
    model.upset(Upset::SandboxDies);
    run(&mut model);
    assert!(model.world.container("a").unwrap().is_running() && model.record.terminal.is_none());
    assert!(!model.world.container("b").unwrap().is_running(), "it was killed with its sandbox, for good");
}

#[test]
fn what_vanished_waits_its_delay_and_no_longer() {
    let mut model = two("Always");
    model.record.containers.get_mut("a").unwrap().delayed_restarts = 3;
    model.upset(Upset::Removed(1));
    let first = model.plan().waits["a"].until.unwrap();
    assert_eq!(first, model.now + jiff::SignedDuration::from_secs(40));
    model.now += jiff::SignedDuration::from_secs(30);
    model.look();
    assert_eq!(model.plan().waits["a"].until.unwrap(), first);
    model.now = first;
    run(&mut model);
    assert_eq!(model.world.container("a").unwrap().attempt, 1);
    assert_eq!(model.record.containers["a"].restarts, 1, "counted once");
}

#[test]
fn leftovers_of_what_is_done_and_was_removed_say_nothing() {
    let mut model = two("OnFailure");
    model.upset(Upset::Ends(1, 1));
    run(&mut model);
    model.upset(Upset::Ends(1, 0));
    model.world.containers.retain(|seen: &Container| seen.name != "a" || seen.attempt == 0);
    model.look();
    assert_eq!(model.known.container("a").unwrap().exit().unwrap().code, 1);
    assert!(model.plan().is_empty(), "{:?}", model.plan());
}

#[test]
fn a_clock_that_stepped_back_lengthens_no_wait() {
    let mut model = two("Always");
    model.record.containers.get_mut("a").unwrap().delayed_restarts = 9;
    model.upset(Upset::Ends(1, 1));
    let message = "no such image".to_owned();
    let failed = Backoff { failures: 9, last: model.now, reason: "CreateContainerError".to_owned(), message };
    model.record.backoffs.insert(crate::backoff::create("b"), failed);
    model.upset(Upset::ClockBack(1_000_000));
    let longest = model.now + jiff::SignedDuration::from_secs(300);
    assert_eq!(model.plan().waits["a"].until.unwrap(), longest);
    model.now = longest;
    model.look();
    assert!(!model.plan().is_empty());
}

#[test]
fn an_exit_in_the_future_is_taken_for_one_of_now() {
    let mut model = two("Always");
    model.now += jiff::SignedDuration::from_secs(500);
    model.upset(Upset::Ends(1, 1));
    model.record.containers.get_mut("a").unwrap().exit = None;
    model.upset(Upset::ClockBack(400));
    assert_eq!(model.record.containers["a"].exit.as_ref().unwrap().finished_at, model.now);
}

#[test]
fn a_failed_pull_is_shown_first_and_then_that_it_is_waited() {
    let mut model = Model::new(pod_from("{containers: [{name: a, image: x}]}"), ObservedPod::default());
    let failed = Backoff::after(None, model.now, "ErrImagePull", "not found");
    model.record.backoffs.insert(crate::backoff::image("x"), failed);
    let begun = model.now;
    let wait = |model: &Model| model.plan().waits["a"].clone();
    assert_eq!((wait(&model).reason.as_str(), wait(&model).message.as_str()), ("ErrImagePull", "not found"));
    assert_eq!(model.plan().wake, Some(begun + jiff::SignedDuration::from_secs(5)));
    model.now = begun + jiff::SignedDuration::from_secs(5);
    assert_eq!(wait(&model).reason, "ImagePullBackOff");
    assert_eq!(wait(&model).message, "Back-off pulling image \"x\": ErrImagePull: not found");
    assert_eq!(without_cause(&wait(&model).message), "Back-off pulling image \"x\"");
    assert_eq!(model.plan().wake, Some(begun + jiff::SignedDuration::from_secs(10)));
    model.now = begun + jiff::SignedDuration::from_secs(10);
    assert!(model.plan().actions().any(|planned| matches!(planned.action, Action::EnsureImage { .. })));
}

#[test]
fn a_pod_deleted_while_it_initializes_goes() {
    let mut model = Model::new(pod_from(INIT), ObservedPod::default());
    model.round(|| Fault::None);
    model.pod.deletion = Some(Deletion { requested_at: model.now, grace_seconds: 30 });
    for _ in 0..10 {
        model.round(|| Fault::None);
    }
    assert!(model.released && count(&model, "start container a") == 0);
}

#[test]
fn a_deadline_that_passes_during_a_pull_ends_the_pod() {
    let mut model =
        Model::new(pod_from("{activeDeadlineSeconds: 5, containers: [{name: a, image: x}]}"), ObservedPod::default());
    model.record.start_time = Some(model.now);
    model.busy.pulling.insert("a".to_owned(), "x".to_owned());
    run(&mut model);
    assert!(model.record.terminal.is_none());
    model.now += jiff::SignedDuration::from_secs(6);
    model.round(|| Fault::None);
    run(&mut model);
    assert_eq!(model.record.terminal.as_ref().unwrap().reason.as_deref(), Some("DeadlineExceeded"));
    assert!(!model.world.is_running());
}

#[test]
fn an_overdue_stop_is_looked_at_again_later_and_not_at_once() {
    let mut model = two("Always");
    model.upset(Upset::Unhealthy(1));
    let id = model.known.container("a").unwrap().id.clone();
    model.busy.stopping.insert(id, model.now - jiff::SignedDuration::from_secs(100));
    let plan = model.plan();
    assert!(plan.is_empty() && plan.wake.unwrap() > model.now);
}

#[test]
fn a_stop_under_way_is_told_anew_once_when_the_clock_stepped_back() {
    let mut model = two("Always");
    let grace = jiff::SignedDuration::from_secs(30);
    model.upset(Upset::Unhealthy(1));
    let id = model.known.container("a").unwrap().id.clone();
    model.busy.stopping.insert(id.clone(), model.now + grace);
    assert!(model.plan().is_empty());
    model.upset(Upset::ClockBack(3600));
    let plan = model.plan();
    let told: Vec<&Action> = plan.actions().map(|planned| &planned.action).collect();
    assert!(matches!(told[..], [Action::StopContainer { grace_seconds: 30, .. }]), "{told:?}");
    model.busy.stopping.insert(id, model.now + grace);
    let plan = model.plan();
    assert!(plan.is_empty() && plan.wake.unwrap() <= model.now + grace + grace);
}

#[test]
fn a_deadline_is_no_further_away_when_the_clock_stepped_back() {
    let spec = "{activeDeadlineSeconds: 5, containers: [{name: a, image: x}]}";
    let mut model = Model::new(pod_from(spec), ObservedPod::default());
    model.record.start_time = Some(model.now);
    model.upset(Upset::ClockBack(100_000));
    assert_eq!(
        crate::status::deadline(&model.pod, &model.record),
        Some(model.now + jiff::SignedDuration::from_secs(5))
    );
}
