//! Thresholds, and how probes are read from annotations.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::pod::Deletion;
use crate::record::{ContainerRecord, Terminal};
use crate::testing::{container, pod_from, running};

fn spec(kind: ProbeKind, success: u32, failure: u32) -> ProbeSpec {
    ProbeSpec {
        container: "c".to_owned(),
        kind,
        plugin: "tcp".to_owned(),
        config: String::new(),
        initial_delay: Duration::ZERO,
        period: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        success_threshold: success,
        failure_threshold: failure,
        grace_seconds: None,
    }
}

fn annotated(annotations: &[(&str, &str)]) -> Result<Vec<ProbeSpec>, ProbeSpecError> {
    let mut pod = pod_from(
        "{containers: [{name: web, image: i, readinessProbe: {tcpSocket: {port: 80}}}], initContainers: [{name: setup, image: i}]}",
    );
    let mut object = (*pod.object).clone();
    object.metadata.annotations = Some(annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
    pod.object = Arc::new(object);
    specs(&pod)
}

proptest! {
    /// A change is told exactly when the last `threshold` results are equal and differ from what was decided.
    #[test]
    fn thresholds_are_exact(success in 1u32..4, failure in 1u32..5, results in prop::collection::vec(any::<bool>(), 0..60)) {
        let spec = spec(ProbeKind::Readiness, success, failure);
        let mut state = ProbeState::default();
        let mut decided: Option<bool> = None;
        for (index, healthy) in results.iter().enumerate() {
            let sample = if *healthy { Sample::Success } else { Sample::Failure };
            let row = results[..=index].iter().rev().take_while(|other| *other == healthy).count() as u32;
            let threshold = if *healthy { success } else { failure };
            let expected = row >= threshold && decided != Some(*healthy);
            let told = step(&spec, &mut state, sample);
            prop_assert_eq!(told.is_some(), expected);
            if expected {
                decided = Some(*healthy);
            }
        }
    }
}

#[test]
fn liveness_failure_and_any_startup_result_hold() {
    let liveness = spec(ProbeKind::Liveness, 1, 2);
    let mut state = ProbeState::default();
    assert_eq!(step(&liveness, &mut state, Sample::Failure), None);
    assert_eq!(step(&liveness, &mut state, Sample::Failure), Some(Sample::Failure));
    assert!(state.on_hold());
    assert_eq!(step(&liveness, &mut state, Sample::Success), None);

    let startup = spec(ProbeKind::Startup, 1, 30);
    let mut state = ProbeState::default();
    assert_eq!(step(&startup, &mut state, Sample::Success), Some(Sample::Success));
    assert!(state.on_hold());
}

#[test]
fn an_adopted_ready_container_does_not_flap() {
    let readiness = spec(ProbeKind::Readiness, 1, 3);
    let mut state = ProbeState::decided(Sample::Success);
    assert_eq!(step(&readiness, &mut state, Sample::Success), None);
    assert_eq!(step(&readiness, &mut state, Sample::Failure), None);
    assert_eq!(step(&readiness, &mut state, Sample::Failure), None);
    assert_eq!(step(&readiness, &mut state, Sample::Failure), Some(Sample::Failure));
}

#[test]
fn annotations_take_the_place_of_v1() {
    let found = annotated(&[(
        "probe.longshore.dev/web.readiness",
        "{plugin: http, config: {port: 8080}, period: 200ms, timeoutSeconds: 2, container: web}",
    )])
    .unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].plugin.as_str(), found[0].period, found[0].timeout),
        ("http", Duration::from_millis(200), Duration::from_secs(2))
    );
    assert_eq!(found[0].config, r#"{"port":8080}"#);
}

#[test]
fn the_list_form_serves_long_names() {
    let found = annotated(&[(
        "probe.longshore.dev/probes",
        "- {container: web, kind: liveness, plugin: tcp, config: {port: 1}, period: 0.5}",
    )])
    .unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].period, Duration::from_millis(500));
}

#[test]
fn what_is_wrong_is_said() {
    let say = |key: &str, text: &str| annotated(&[(key, text)]).unwrap_err().to_string();
    assert!(say("probe.longshore.dev/web.readyness", "{plugin: tcp}").contains("readyness"));
    assert!(say("probe.longshore.dev/wob.readiness", "{plugin: tcp}").contains("it has setup, web"));
    assert!(say("probe.longshore.dev/web.readiness", "{plugin: tcp, periodd: 1s}").contains("periodd"));
    assert!(say("probe.longshore.dev/web.readiness", "{plugin: tcp, period: soon}").contains("soon"));
    assert!(say("probe.longshore.dev/web.readiness", "{plugin: tcp, period: 1ms}").contains("shortest"));
    assert!(say("probe.longshore.dev/web.liveness", "{plugin: tcp, successThreshold: 2}").contains("must be 1"));
    // What would be dropped in silence.
    assert!(say("probe.longshore.dev/web.liveness", "{plugin: tcp, container: wob}").contains("the key says \"web\""));
    assert!(
        say("probe.longshore.dev/web.liveness", "{plugin: tcp, kind: startup}").contains("the key says \"liveness\"")
    );
    assert!(say("probe.longshore.dev/setup.liveness", "{plugin: tcp}").contains("init container"));
    let grace = |seconds: i64| format!("{{plugin: tcp, terminationGracePeriodSeconds: {seconds}}}");
    assert!(say("probe.longshore.dev/web.liveness", &grace(0)).contains("at least 1, found 0"));
    assert!(say("probe.longshore.dev/web.readiness", &grace(5)).contains("ends no container"));
}

#[test]
fn nothing_is_probed_while_the_post_start_hook_runs() {
    let pod = pod_from("{containers: [{name: c, image: i}]}");
    let seen = container(pod.container("c").unwrap(), 0, running(0));
    let observed = ObservedPod { containers: vec![seen], ..ObservedPod::default() };
    let id = observed.containers[0].id.clone();
    let known = ContainerRecord { id: Some(id.clone()), started: true, ..Default::default() };
    let record = PodRecord { containers: [("c".to_owned(), known)].into(), ..PodRecord::default() };
    let specs = [spec(ProbeKind::Liveness, 1, 1), spec(ProbeKind::Readiness, 1, 1)];
    let mut busy = Busy::default();
    let kinds = |pod: &Pod, record: &PodRecord, busy: &Busy| {
        let active = active(pod, &specs, &observed, record, busy);
        active.into_iter().map(|active| active.spec.kind).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&pod, &record, &busy), [ProbeKind::Liveness, ProbeKind::Readiness]);
    // Whoever ends is to be restarted for nothing any more; who sends requests is still to know.
    let readiness = [ProbeKind::Readiness];
    let stopping = Busy { stopping: [(id.clone(), Timestamp::UNIX_EPOCH)].into(), ..Busy::default() };
    assert_eq!(kinds(&pod, &record, &stopping), readiness);
    let deletion = Some(Deletion { requested_at: Timestamp::UNIX_EPOCH, grace_seconds: 9 });
    assert_eq!(kinds(&Pod { deletion, ..pod.clone() }, &record, &busy), readiness);
    let terminal = Some(Terminal { phase: "Failed".to_owned(), reason: None, message: None });
    assert_eq!(kinds(&pod, &PodRecord { terminal, ..record.clone() }, &busy), readiness);
    busy.post_start.insert(id);
    assert_eq!(kinds(&pod, &record, &busy), []);
}
