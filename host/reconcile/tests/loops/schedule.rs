//! The probe scheduler's promises: how many checks at a time, when the first one is due, and how often one is repeated.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use longshore_core::observed::ContainerState;
use longshore_core::pod::Pod;
use longshore_core::ports::probes::ProbeOutcome;
use longshore_tests::pod;

use crate::bed::Bed;

/// A pod whose readiness is asked in that way (YAML).
fn asked(name: &str, probe: &str) -> Pod {
    let mut pod = pod(name, "{containers: [{name: app, image: app}]}");
    let mut object = (*pod.object).clone();
    object.metadata.annotations = Some([("probe.longshore.dev/app.readiness".to_owned(), probe.to_owned())].into());
    pod.object = Arc::new(object);
    pod
}

fn all(count: usize, probe: &str) -> Vec<Pod> {
    (0..count).map(|number| asked(&format!("p{number}"), probe)).collect()
}

fn since(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// From the start of a pod's container to its first check.
fn first_after(bed: &Bed, name: &str) -> Duration {
    let seen = bed.runtime.container(name, "app").unwrap();
    let ContainerState::Running { started_at, .. } = seen.state else { panic!("{name} does not run") };
    since(started_at, bed.probes.checks_of(name)[0].begun)
}

#[tokio::test]
async fn execs_take_turns_and_the_wait_is_not_charged() {
    let bed = Bed::with(|options| options.max_execs = 3);
    bed.probes.takes(Duration::from_millis(40));
    let pods = all(40, "{plugin: exec, config: {command: [x]}, period: 60s, timeout: 100ms}");
    bed.source.set(pods.clone());
    // The last ones wait for half a second, five times as long as they may take.
    bed.until_ready(&pods).await;
    assert_eq!((bed.probes.peak(), bed.probes.calls()), (3, 40));
    let checks = bed.probes.checks();
    assert!(checks.iter().all(|check| check.call.budget == Duration::from_millis(100)));
    assert!(since(checks[0].begun, checks[39].begun) > Duration::from_millis(400));
}

#[tokio::test]
async fn other_checks_do_not_wait_for_execs_and_are_bounded_too() {
    let bed = Bed::with(|options| options.max_execs = 1);
    bed.probes.takes(Duration::from_millis(500));
    let probe = "{plugin: tcp, config: {port: 80}, period: 60s}";
    let mut pods = all(100, probe);
    for pod in &mut pods {
        // Two of each: a node has no room for so many pods.
        let annotations = Arc::make_mut(&mut pod.object).metadata.annotations.get_or_insert_default();
        annotations.insert("probe.longshore.dev/app.liveness".to_owned(), probe.to_owned());
    }
    bed.source.set(pods.clone());
    bed.until_ready(&pods).await;
    assert!((2..=128).contains(&bed.probes.peak()), "{}", bed.probes.peak());
}

#[tokio::test]
async fn the_first_check_is_due_at_once_or_after_its_delay() {
    let bed = Bed::new();
    let at_once = all(10, "{plugin: tcp, config: {port: 80}, period: 60s}");
    let late = asked("late", "{plugin: tcp, config: {port: 80}, period: 60s, initialDelay: 700ms}");
    bed.source.set(at_once.iter().cloned().chain([late.clone()]).collect());
    bed.until_ready(&at_once).await;
    bed.until_ready(&[late]).await;
    for pod in &at_once {
        // Jitter over a period would show, be the machine ever so slow.
        assert!(first_after(&bed, &pod.id.uid) < Duration::from_secs(5), "{}", pod.id);
    }
    assert!(first_after(&bed, "late") >= Duration::from_millis(690), "{:?}", first_after(&bed, "late"));
}

#[tokio::test]
async fn only_adopted_containers_are_spread_and_only_within_a_period_of_the_start() {
    const PROBE: &str = "{plugin: tcp, config: {port: 80}, period: 2s}";
    let bed = Bed::new();
    let pods = all(12, PROBE);
    bed.source.set(pods.clone());
    bed.until_ready(&pods).await;
    let before = bed.probes.calls();
    let bed = bed.restart().await;
    let begun = Timestamp::now();
    let new = asked("new", "{plugin: tcp, config: {port: 80}, period: 60s}");
    bed.source.set(pods.iter().cloned().chain([new.clone()]).collect());
    bed.until_ready(&[new]).await;
    assert!(first_after(&bed, "new") < Duration::from_secs(5), "{:?}", first_after(&bed, "new"));

    let after = |bed: &Bed, from: usize| -> Vec<_> { bed.probes.checks().split_off(from) };
    let asked_anew = |bed: &Bed, from: usize| {
        let checks = after(bed, from).into_iter().filter(|check| check.call.target.pod != "new");
        checks.map(|check| check.call.target.pod).collect::<BTreeSet<_>>().len()
    };
    bed.until("all were asked again", |bed| asked_anew(bed, before) == 12).await;
    let mut first: Vec<Duration> = Vec::new();
    for pod in &pods {
        let checks = after(&bed, before);
        let check = checks.iter().find(|check| check.call.target.pod == pod.id.uid).unwrap();
        first.push(since(begun, check.begun));
    }
    first.sort();
    assert!(first[11] - first[0] > Duration::from_millis(500), "{first:?}");

    // A period after the start those that were adopted are like all others.
    bed.until("a period has passed", |_| since(begun, Timestamp::now()) > Duration::from_millis(2100)).await;
    let at = Timestamp::now();
    bed.source.set(all(12, "{plugin: tcp, config: {port: 81}, period: 2s}"));
    let on_new_port = |bed: &Bed| {
        let checks = bed.probes.checks().into_iter().filter(|check| check.call.config.contains("81"));
        checks.map(|check| since(at, check.begun)).collect::<Vec<_>>()
    };
    bed.until("all were asked on the new port", |bed| on_new_port(bed).len() >= 12).await;
    let times = on_new_port(&bed);
    assert!(times[11] - times[0] < Duration::from_secs(1), "{times:?}");
}

#[tokio::test]
async fn a_check_that_could_not_be_made_is_made_thrice_and_then_waits_for_its_period() {
    let bed = Bed::new();
    bed.probes.answer("p", "app", ProbeOutcome::Error { message: "docker".to_owned() });
    bed.source.set(vec![asked("p", "{plugin: tcp, config: {port: 80}, period: 1s}")]);
    bed.until("asked nine times", |bed| bed.probes.calls() >= 9).await;
    let checks = bed.probes.checks();
    let between = |from: usize, to: usize| since(checks[from].begun, checks[to].begun);
    for row in [0, 3, 6] {
        // Less than a period for three of them, be the machine ever so slow.
        assert!(between(row, row + 2) < Duration::from_millis(1500), "{row}: {:?}", between(row, row + 2));
    }
    for row in [0, 3] {
        // A row that begins late is nearer to the next one.
        assert!(between(row, row + 3) > Duration::from_millis(500), "{row}: {:?}", between(row, row + 3));
    }
}
