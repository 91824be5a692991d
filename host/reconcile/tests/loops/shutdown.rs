//! The machine goes down, or is drained: pods end by priority, none begins, and what is static comes back.

use std::time::Duration;

use longshore_core::pod::{Pod, Source};
use longshore_core::ports::files::FileStore;
use longshore_core::shutdown::Step;
use longshore_reconcile::health::Shutdown;
use longshore_reconcile::node::Options;
use longshore_reconcile::shutdown::{self, Busy, Outcome, Told};
use longshore_tests::pod;
use tokio::sync::broadcast::Receiver;

use crate::bed::Bed;

const CRITICAL: i32 = 2_000_000_000;

/// Twenty seconds for the usual ones, ten from 100 on, five for the critical ones.
fn steps(seconds: [i64; 3]) -> impl FnOnce(&mut Options) {
    move |options| {
        let priorities = [0, 100, CRITICAL];
        let steps = priorities.into_iter().zip(seconds);
        options.shutdown = shutdown::Options {
            steps: steps.map(|(priority, seconds)| Step { priority, seconds: Some(seconds) }).collect(),
            retry: (Duration::from_millis(5), Duration::from_millis(20)),
        };
    }
}

fn of(name: &str, priority: i32, grace: i64) -> Pod {
    let spec = format!(
        "{{priority: {priority}, terminationGracePeriodSeconds: {grace}, containers: [{{name: app, image: app}}]}}"
    );
    pod(name, &spec)
}

fn of_api(pod: Pod) -> Pod {
    Pod { source: Source::Api, ..pod }
}

fn three() -> [Pod; 3] {
    [of("critical", CRITICAL, 30), of("usual", 0, 7), of_api(of("better", 500, 30))]
}

async fn told(told: &mut Receiver<Told>) -> Told {
    tokio::time::timeout(Duration::from_secs(20), told.recv()).await.unwrap().unwrap()
}

/// The last word of a drain.
async fn done(lines: &mut Receiver<Told>) -> Outcome {
    loop {
        if let Told::Done(outcome) = told(lines).await {
            return outcome;
        }
    }
}

fn node_events(bed: &Bed) -> Vec<String> {
    let events = bed.events.events(None).into_iter();
    events.filter(|event| event.pod.is_none() && event.reason == "Shutdown").map(|event| event.message).collect()
}

#[tokio::test]
async fn pods_end_by_priority_within_their_times_and_then_the_machine_is_let_go() {
    let bed = Bed::with(steps([20, 10, 5]));
    let pods = three();
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    bed.until("it waits for us", |bed| bed.machine.held() == 1).await;
    assert_eq!(*bed.machine.asked.lock().unwrap(), Some(Duration::from_secs(35)));
    assert_eq!(bed.health.shutdown(), Shutdown::StaysUp);

    // Nothing that was told to end is over before its stop succeeds: the machine waits, and the next group with it.
    bed.runtime.fail("stop", usize::MAX);
    bed.machine.turn(true);
    bed.until("the first is told", |bed| bed.runtime.calls("stop") > 0).await;
    assert_eq!(bed.machine.held(), 1);
    assert!(bed.health.problems().contains(&"node is shutting down".to_owned()));
    assert_eq!(node_events(&bed), ["Shutdown manager detected shutdown event"]);
    assert!(!bed.shutdown.is_drained(), "nobody can call that off here");
    let late = of_api(of("late", 0, 1));
    bed.source.set(pods.iter().cloned().chain([late]).collect());
    bed.until("refused", |bed| bed.phase("late") == "Failed").await;
    let status = bed.status("late").unwrap();
    assert_eq!(status.reason.as_deref(), Some("NodeShutdown"));
    assert_eq!(status.message.as_deref(), Some("Pod was rejected: Pod was rejected as the node is shutting down."));
    assert!(bed.is_ready("critical") && bed.phase("better") == "Running");
    bed.runtime.fail("stop", 0);

    bed.until("let go", |bed| bed.machine.held() == 0).await;
    let stops: Vec<(String, u64)> = bed.runtime.stops();
    let names: Vec<&str> = stops.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["usual", "better", "critical"]);
    // No more than each has; the first one's time went on while its stops failed.
    for ((name, grace), (least, most)) in stops.iter().zip([(1, 7), (7, 10), (3, 5)]) {
        assert!((least..=most).contains(grace), "{name} has {grace} s");
    }
    for pod in &pods {
        let status = bed.status(&pod.id.uid).unwrap();
        assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("Terminated")));
        let message = "Pod was terminated in response to imminent node shutdown.";
        assert_eq!(status.message.as_deref(), Some(message));
        let target = status.conditions.iter().flatten().find(|it| it.type_ == "DisruptionTarget").unwrap();
        assert_eq!((target.status.as_str(), target.reason.as_deref()), ("True", Some("TerminationByKubelet")));
        assert!(bed.runtime.container(&pod.id.uid, "app").is_some(), "its log is kept");
    }
}

#[tokio::test]
async fn an_agent_that_is_restarted_amid_an_end_gives_no_time_anew() {
    let bed = Bed::with(steps([20, 10, 5]));
    let usual = of_api(of("usual", 0, 30));
    bed.source.set(vec![usual.clone()]);
    bed.until_ready(std::slice::from_ref(&usual)).await;
    bed.runtime.fail("stop", usize::MAX);
    bed.machine.turn(true);
    bed.until("told to end", |bed| bed.runtime.calls("stop") > 0).await;
    let mut stored = bed.files.stored("usual").unwrap();
    let began = stored.record.ended_at.unwrap();
    // As if the agent had been away for a while.
    stored.record.ended_at = Some(began - jiff::SignedDuration::from_secs(12));
    let files = bed.files.clone();
    let bed = bed.restart_with(async || files.save("usual", &stored).await.unwrap()).await;
    bed.runtime.fail("stop", 0);
    bed.source.set(vec![usual]);
    bed.until("stopped", |bed| !bed.runtime.stops().is_empty()).await;
    let (uid, grace) = bed.runtime.stops().remove(0);
    assert!(uid == "usual" && (1..=8).contains(&grace), "{uid} has {grace} s of 20, of which 12 have passed");
}

#[tokio::test]
async fn called_off_all_is_as_before_but_for_what_controllers_make_anew() {
    let bed = Bed::with(steps([20, 10, 5]));
    let pods = three();
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    bed.machine.turn(true);
    bed.until("let go", |bed| bed.machine.held() == 0).await;
    let late = of("late", 0, 1);
    let all: Vec<Pod> = pods.iter().cloned().chain([late]).collect();
    bed.source.set(all.clone());
    bed.until("refused", |bed| bed.phase("late") == "Failed").await;

    bed.machine.turn(false);
    bed.until("it waits again", |bed| bed.machine.held() == 1).await;
    let back: Vec<Pod> = all.into_iter().filter(|pod| pod.source != Source::Api).collect();
    assert_eq!(back.len(), 3);
    bed.until_ready(&back).await;
    assert_eq!(bed.phase("better"), "Failed");
    assert_eq!(bed.restarts("usual", "app"), 1);
    assert_eq!(node_events(&bed).last().unwrap(), "Shutdown manager detected shutdown cancellation");
    assert!(!bed.health.problems().contains(&"node is shutting down".to_owned()));

    bed.machine.turn(true);
    bed.until("let go again", |bed| bed.machine.held() == 0).await;
    assert_eq!(bed.phase("usual"), "Failed");
}

#[tokio::test]
async fn after_a_reboot_static_pods_run_again_and_others_do_not() {
    let bed = Bed::with(steps([20, 10, 5]));
    let pods = three();
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    bed.machine.turn(true);
    bed.until("let go", |bed| bed.machine.held() == 0).await;

    // The agent alone: the machine still goes down.
    let bed = bed.restart().await;
    bed.source.set(pods.to_vec());
    bed.until("known", |bed| bed.health.shutdown() == Shutdown::GoesDown && bed.views.pods().len() == 3).await;
    assert!(pods.iter().all(|pod| bed.phase(&pod.id.uid) == "Failed"));

    bed.machine.turn(false);
    let bed = bed.restart().await;
    bed.source.set(pods.to_vec());
    bed.until_ready(&[pods[0].clone(), pods[1].clone()]).await;
    assert_eq!(bed.phase("better"), "Failed");
    assert_eq!(bed.status("better").unwrap().reason.as_deref(), Some("Terminated"));
}

#[tokio::test]
async fn the_machine_is_followed_again_when_the_line_is_lost() {
    let bed = Bed::with(steps([20, 10, 5]));
    let pods = three();
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    bed.until("it waits for us", |bed| bed.machine.held() == 1).await;
    bed.machine.fail(true);
    bed.until("cut off", |bed| bed.machine.held() == 0).await;
    bed.machine.fail(false);
    bed.until("it waits again", |bed| bed.machine.held() == 1).await;
    assert!(pods.iter().all(|pod| bed.is_ready(&pod.id.uid)));
    bed.machine.fail(true);
    bed.machine.turn(true);
    bed.machine.fail(false);
    bed.until("ended", |bed| pods.iter().all(|pod| bed.phase(&pod.id.uid) == "Failed")).await;
}

#[tokio::test]
async fn a_drain_tells_what_it_does_and_can_be_taken_back() {
    // No times are configured: the machine is not followed, and each has its own.
    let bed = Bed::with(|_| {});
    let pods = three();
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    assert_eq!(bed.machine.held(), 0);
    let mut lines = bed.shutdown.drain(None).await.unwrap();
    let usual = vec!["default/better".to_owned(), "default/usual".to_owned()];
    assert_eq!(told(&mut lines).await, Told::Group { priority: 0, seconds: 40, pods: usual.clone() });
    let mut ended = Vec::new();
    for _ in 0..2 {
        let Told::Ended { pod, .. } = told(&mut lines).await else { panic!("one ends after the other") };
        ended.push(pod);
    }
    ended.sort();
    assert_eq!(ended, usual);
    let critical = vec!["default/critical".to_owned()];
    assert_eq!(told(&mut lines).await, Told::Group { priority: CRITICAL, seconds: 40, pods: critical });
    assert_eq!(done(&mut lines).await, Outcome { ended: 3, left: Vec::new() });
    assert!(bed.health.problems().contains(&"node is shutting down".to_owned()));

    let mut again = bed.shutdown.drain(None).await.unwrap();
    assert_eq!(done(&mut again).await, Outcome::default());
    assert!(bed.shutdown.is_drained());
    assert!(bed.shutdown.resume().await.unwrap());
    assert!(!bed.shutdown.is_drained());
    bed.until_ready(&[pods[0].clone(), pods[1].clone()]).await;
    assert!(!bed.health.problems().contains(&"node is shutting down".to_owned()));
    assert_eq!(bed.phase("better"), "Failed");
}

#[tokio::test]
async fn a_drain_keeps_to_its_time_and_says_who_is_left() {
    let bed = Bed::with(|_| {});
    let pods = three();
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    bed.runtime.fail("stop", usize::MAX);
    let begun = std::time::Instant::now();
    let mut lines = bed.shutdown.drain(Some(Duration::from_secs(2))).await.unwrap();
    let left = vec!["default/better".to_owned(), "default/usual".to_owned(), "default/critical".to_owned()];
    assert_eq!(done(&mut lines).await, Outcome { ended: 0, left });
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());

    bed.runtime.fail("stop", 0);
    let mut lines = bed.shutdown.drain(Some(Duration::from_secs(20))).await.unwrap();
    assert_eq!(done(&mut lines).await.left, Vec::<String>::new());
}

/// What a drain tells until it is done, each with the second at which it is told; and how it went.
async fn timed(mut lines: Receiver<Told>) -> (Vec<(u64, String)>, Outcome) {
    let begun = tokio::time::Instant::now();
    let mut seen = Vec::new();
    loop {
        let line = tokio::time::timeout(Duration::from_secs(120), lines.recv()).await.unwrap().unwrap();
        let what = match line {
            Told::Group { priority, seconds, .. } => format!("from {priority} within {seconds}"),
            Told::Ended { pod, .. } => format!("{pod} ended"),
            Told::Late { pods } => format!("{} late", pods.join(", ")),
            Told::CalledOff => "called off".to_owned(),
            Told::Done(outcome) => return (seen, outcome),
        };
        seen.push((begun.elapsed().as_secs(), what));
    }
}

fn at(seconds: u64, what: &str) -> (u64, String) {
    (seconds, what.to_owned())
}

#[tokio::test(start_paused = true)]
async fn pods_that_do_not_end_hold_up_the_next_group_for_their_time_to_the_second() {
    let bed = Bed::with(steps([20, 10, 5]));
    let pods = three();
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    bed.runtime.fail("stop", usize::MAX);
    let (seen, outcome) = timed(bed.shutdown.drain(None).await.unwrap()).await;
    let wanted = [
        at(0, "from 0 within 20"),
        at(20, "default/usual late"),
        at(20, "from 100 within 10"),
        at(30, "default/better late"),
        at(30, "from 2000000000 within 5"),
        at(35, "default/critical late"),
    ];
    assert_eq!(seen, wanted);
    assert_eq!((outcome.ended, outcome.left.len()), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn a_limit_is_shared_out_by_what_each_group_would_have() {
    let bed = Bed::with(steps([20, 10, 5]));
    let pods = three();
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    bed.runtime.fail("stop", usize::MAX);
    let (seen, outcome) = timed(bed.shutdown.drain(Some(Duration::from_secs(7))).await.unwrap()).await;
    let wanted = [
        at(0, "from 0 within 4"),
        at(4, "default/usual late"),
        at(4, "from 100 within 2"),
        at(6, "default/better late"),
        at(6, "from 2000000000 within 1"),
        at(7, "default/critical late"),
    ];
    assert_eq!(seen, wanted);
    assert_eq!(outcome.left.len(), 3);
}

#[tokio::test]
async fn one_that_is_called_off_half_way_leaves_the_others_alone() {
    let bed = Bed::with(|_| {});
    let pods = three();
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    bed.runtime.fail("stop", usize::MAX);
    let mut lines = bed.shutdown.drain(None).await.unwrap();
    bed.until("the first are told", |bed| bed.runtime.calls("stop") >= 2).await;
    assert!(bed.shutdown.resume().await.unwrap());
    bed.runtime.fail("stop", 0);
    while told(&mut lines).await != Told::CalledOff {}
    bed.until_ready(&[pods[0].clone(), pods[1].clone()]).await;
    assert_eq!(bed.restarts("critical", "app"), 0, "its turn had not come");
}

#[tokio::test]
async fn nobody_is_heard_before_there_are_loops() {
    let control = shutdown::Control::default();
    assert_eq!(control.drain(None).await.err(), Some(Busy::NotReady));
    assert_eq!(control.resume().await.err(), Some(Busy::NotReady));
}
