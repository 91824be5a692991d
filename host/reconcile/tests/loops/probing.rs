//! Probes: what they decide reaches the pod.

use longshore_core::ports::probes::ProbeOutcome;
use longshore_tests::pod;

use crate::bed::Bed;

fn failure() -> ProbeOutcome {
    ProbeOutcome::Failure { message: "no".to_owned() }
}

/// A pod with a probe of that kind by annotation, every 20 ms.
fn probed(kind: &str) -> longshore_core::pod::Pod {
    let mut probed = pod("p", "{containers: [{name: app, image: app}]}");
    let mut object = (*probed.object).clone();
    let probe = "{plugin: tcp, config: {port: 80}, period: 20ms, failureThreshold: 3}".to_owned();
    object.metadata.annotations = Some([(format!("probe.longshore.dev/app.{kind}"), probe)].into());
    probed.object = std::sync::Arc::new(object);
    probed
}

#[tokio::test]
async fn readiness_follows_the_probe_both_ways() {
    let bed = Bed::new();
    bed.source.set(vec![probed("readiness")]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    bed.probes.answer("p", "app", failure());
    bed.until("not ready", |bed| !bed.is_ready("p")).await;
    assert_eq!(bed.restarts("p", "app"), 0);
    bed.probes.answer("p", "app", ProbeOutcome::Success { message: String::new() });
    bed.until("ready again", |bed| bed.is_ready("p")).await;
}

#[tokio::test]
async fn a_dead_container_is_restarted() {
    let bed = Bed::new();
    bed.source.set(vec![probed("liveness")]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    bed.probes.answer("p", "app", failure());
    bed.until("restarted", |bed| bed.restarts("p", "app") >= 1).await;
    assert!(bed.has_event("p", "Unhealthy") && bed.has_event("p", "Killing"));
    bed.probes.answer("p", "app", ProbeOutcome::Success { message: String::new() });
    bed.until("ready again", |bed| bed.is_ready("p")).await;
}

#[tokio::test]
async fn a_container_is_started_when_its_startup_probe_says_so() {
    let bed = Bed::new();
    bed.probes.answer("p", "app", failure());
    let mut pod = probed("startup");
    let mut object = (*pod.object).clone();
    let probe = "{plugin: tcp, config: {port: 80}, period: 20ms, failureThreshold: 1000000}".to_owned();
    object.metadata.annotations = Some([("probe.longshore.dev/app.startup".to_owned(), probe)].into());
    pod.object = std::sync::Arc::new(object);
    bed.source.set(vec![pod]);
    bed.until("probed", |bed| bed.probes.calls() > 3).await;
    assert!(!bed.is_ready("p"));
    bed.probes.answer("p", "app", ProbeOutcome::Success { message: String::new() });
    bed.until("ready", |bed| bed.is_ready("p")).await;
    let calls = bed.probes.calls();
    bed.runtime.end(&bed.runtime.container("p", "app").unwrap().id, 1);
    bed.until("probed anew", |bed| bed.restarts("p", "app") == 1 && bed.probes.calls() > calls && bed.is_ready("p"))
        .await;
}

#[tokio::test]
async fn faults_and_errors_never_count() {
    let bed = Bed::new();
    bed.source.set(vec![probed("liveness")]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    for outcome in
        [ProbeOutcome::Fault { message: "trap".to_owned() }, ProbeOutcome::Error { message: "docker".to_owned() }]
    {
        bed.probes.answer("p", "app", outcome);
        let calls = bed.probes.calls();
        bed.until("probed often", |bed| bed.probes.calls() > calls + 5).await;
        assert!(bed.is_ready("p") && bed.restarts("p", "app") == 0);
    }
}
