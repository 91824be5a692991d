//! Probes: what they decide reaches the pod.

use std::time::{Duration, Instant};

use longshore_core::pod::{Pod, Source};
use longshore_core::ports::probes::{ProbeAnswer, ProbeOutcome};
use longshore_tests::pod;

use crate::bed::Bed;

fn failure() -> ProbeOutcome {
    ProbeOutcome::Failure { message: "no".to_owned() }
}

/// A pod with a probe of that kind by annotation, every 20 ms.
fn probed(kind: &str) -> longshore_core::pod::Pod {
    probed_by("p", kind, "plugin: tcp, config: {port: 80}")
}

fn probed_by(name: &str, kind: &str, plugin: &str) -> longshore_core::pod::Pod {
    let mut probed = pod(name, "{containers: [{name: app, image: app}]}");
    let mut object = (*probed.object).clone();
    let probe = format!("{{{plugin}, period: 20ms, failureThreshold: 3}}");
    object.metadata.annotations = Some([(format!("probe.longshore.dev/app.{kind}"), probe)].into());
    probed.object = std::sync::Arc::new(object);
    probed
}

/// A pod of the API server that is ready as a command says.
fn exec(name: &str) -> Pod {
    Pod { source: Source::Api, ..probed_by(name, "readiness", "plugin: exec, config: {command: [x]}") }
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

/// With `metadata.uid` a changed annotation restarts nothing.
#[tokio::test]
async fn a_probe_that_is_taken_away_keeps_a_running_container_from_nothing() {
    for kind in ["readiness", "startup"] {
        let bed = Bed::new();
        bed.probes.answer("p", "app", failure());
        bed.source.set(vec![probed(kind)]);
        bed.until("probed", |bed| bed.probes.calls() > 1).await;
        assert!(!bed.is_ready("p"));
        let mut plain = probed(kind);
        std::sync::Arc::make_mut(&mut plain.object).metadata.annotations = None;
        bed.source.set(vec![plain]);
        bed.until(kind, |bed| bed.is_ready("p")).await;
        assert_eq!(bed.restarts("p", "app"), 0);
    }
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
async fn checks_are_counted_on_when_the_container_is_another() {
    let bed = Bed::new();
    bed.source.set(vec![probed("liveness")]);
    let tally =
        |bed: &Bed| bed.views.pod("p").and_then(|view| Some(view.probes.first()?.tally.clone())).unwrap_or_default();
    bed.until("some succeeded", |bed| tally(bed).successful > 2).await;
    let before = tally(&bed).successful;
    bed.probes.answer("p", "app", failure());
    bed.until("restarted", |bed| bed.restarts("p", "app") >= 1).await;
    bed.probes.answer("p", "app", ProbeOutcome::Success { message: String::new() });
    bed.until("it succeeds again", |bed| tally(bed).successful > before).await;
    let now = tally(&bed);
    assert!(now.failed >= 3, "{now:?}");
    assert!(now.seconds > 0.0 && now.within[10] == now.successful, "failures have no duration: {now:?}");
    // What found nothing out is not counted, as the kubelet has it. One check may have been under way.
    bed.probes.answer("p", "app", ProbeOutcome::Error { message: "no verdict".to_owned() });
    let calls = bed.probes.calls();
    bed.until("it errs", |bed| bed.probes.calls() > calls + 1).await;
    let before = tally(&bed);
    let calls = bed.probes.calls();
    bed.until("it errs on", |bed| bed.probes.calls() > calls + 3).await;
    assert_eq!(tally(&bed), before);
}

#[tokio::test]
async fn a_warning_is_told_and_counts_for_success() {
    let bed = Bed::new();
    let message = "Probe terminated redirects, Response body: gone".to_owned();
    bed.probes.answer("p", "app", ProbeOutcome::Warning { message });
    bed.source.set(vec![probed("readiness")]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    let message = "Readiness probe warning: Probe terminated redirects, Response body: gone";
    bed.until("told", |bed| bed.has_event("p", "ProbeWarning") && bed.has_message("p", message)).await;
}

#[tokio::test]
async fn what_a_plugin_says_beside_is_published() {
    let bed = Bed::new();
    let attrs = vec![("version".to_owned(), "7.2".to_owned())];
    let healthy = ProbeOutcome::Success { message: String::new() };
    bed.probes.answer("p", "app", ProbeAnswer { attrs, ..healthy.into() });
    bed.source.set(vec![probed("readiness")]);
    bed.until("published", |bed| {
        let last = bed.views.pod("p").and_then(|view| view.probes.first()?.last.clone());
        last.is_some_and(|last| last.attrs.get("version").is_some_and(|version| version == "7.2"))
    })
    .await;
}

#[tokio::test]
async fn a_plugin_that_asks_for_time_gets_it() {
    let bed = Bed::new();
    let busy = ProbeOutcome::Error { message: "busy".to_owned() };
    bed.probes.answer("p", "app", ProbeAnswer { again: Some(Duration::from_millis(400)), ..busy.into() });
    let begun = Instant::now();
    bed.source.set(vec![probed("readiness")]);
    bed.until("probed three times", |bed| bed.probes.calls() >= 3).await;
    // At once, thrice, and every 20 ms, if it had not asked.
    assert!(begun.elapsed() >= Duration::from_millis(800), "{:?}", begun.elapsed());
}

/// An error decides nothing, and is why the container is not ready all the same.
#[tokio::test]
async fn the_step_that_waits_for_a_probe_says_what_it_last_found() {
    let bed = Bed::new();
    bed.probes.answer("p", "app", ProbeOutcome::Error { message: "first".to_owned() });
    bed.source.set(vec![probed("readiness")]);
    for message in ["no such port", "still none"] {
        bed.probes.answer("p", "app", ProbeOutcome::Error { message: message.to_owned() });
        let detail = format!("runs; its readiness probe said error: {message}");
        bed.until("told", |bed| {
            bed.views.pod("p").is_some_and(|view| view.steps.iter().any(|step| step.detail == detail))
        })
        .await;
    }
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

#[tokio::test]
async fn commands_that_hang_keep_no_others_from_being_run() {
    let bed = Bed::with(|options| options.max_execs = 2);
    let hanging: Vec<Pod> = (0..5).map(|number| exec(&format!("hangs-{number}"))).collect();
    for pod in &hanging {
        bed.probes.hangs(&pod.id.name);
    }
    bed.source.set(hanging.clone());
    bed.until("all turns are taken", |bed| bed.probes.calls() >= 2).await;
    bed.source.set(hanging.into_iter().chain([exec("quick")]).collect());
    bed.until("it is ready", |bed| bed.is_ready("quick")).await;
    bed.until("it keeps its period", |bed| bed.probes.checks_of("quick").len() >= 10).await;
}

#[tokio::test]
async fn however_many_commands_hang_other_checks_are_made() {
    let bed = Bed::with(|options| options.max_execs = 20);
    let mut pods: Vec<Pod> = (0..100).map(|number| exec(&format!("hangs-{number}"))).collect();
    for pod in &mut pods {
        bed.probes.hangs(&pod.id.name);
        // Two of each: a node has no room for so many pods.
        let annotations = std::sync::Arc::make_mut(&mut pod.object).metadata.annotations.get_or_insert_default();
        let probe = annotations.get("probe.longshore.dev/app.readiness").unwrap().clone();
        annotations.insert("probe.longshore.dev/app.liveness".to_owned(), probe);
    }
    bed.source.set(pods.clone());
    bed.until("as many hang as may", |bed| bed.probes.calls() >= 96).await;
    pods.push(Pod { source: Source::Api, ..probed_by("tcp", "readiness", "plugin: tcp, config: {port: 80}") });
    bed.source.set(pods);
    bed.until("it is ready", |bed| bed.is_ready("tcp")).await;
}
