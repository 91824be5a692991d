//! The node runs short, and one pod after the other ends for it, the right one first; before that what nobody needs goes.

use std::time::Duration;

use k8s_openapi::api::core::v1;
use longshore_core::cluster::node_status::Pressure;
use longshore_core::evict::{Amount, Policy, Signal, Threshold};
use longshore_core::pod::{Pod, Source};
use longshore_reconcile::eviction;
use longshore_tests::pod;
use longshore_tests::runtime::FakeRuntime;

use crate::bed::Bed;

/// Everything of which less than 100 is left is short.
fn options() -> eviction::Options {
    let signals = [
        Signal::MemoryAvailable,
        Signal::NodeFsAvailable,
        Signal::NodeFsInodesFree,
        Signal::ImageFsAvailable,
        Signal::ImageFsInodesFree,
        Signal::PidAvailable,
    ];
    let threshold =
        |signal| Threshold { signal, amount: Amount::Absolute(100), grace_period: None, minimum_reclaim: None };
    let policy = Policy {
        thresholds: signals.map(threshold).to_vec(),
        transition_period: Duration::from_millis(300),
        max_pod_grace_seconds: 0,
    };
    eviction::Options { policy, pods_memory: None, period: Duration::from_millis(20) }
}

fn bed() -> Bed {
    Bed::with(|options_of_all| {
        options_of_all.eviction = options();
        options_of_all.images.enabled = true;
        options_of_all.images.policy.minimum_age = Duration::ZERO;
    })
}

/// A pod of the API server that asks for so much memory; 0 for nothing.
fn asking(name: &str, memory: u64) -> Pod {
    let spec = match memory {
        0 => "{containers: [{name: app, image: app, volumeMounts: [{name: v, mountPath: /v}]}], volumes: [{name: v, emptyDir: {}}]}".to_owned(),
        some => format!("{{containers: [{{name: app, image: app, resources: {{requests: {{memory: '{some}'}}}}}}]}}"),
    };
    Pod { source: Source::Api, ..pod(name, &spec) }
}

fn runs(runtime: &FakeRuntime, uid: &str) -> bool {
    runtime.container(uid, "app").is_some_and(|seen| seen.is_running())
}

fn condition(status: &v1::PodStatus, kind: &str) -> Option<String> {
    let found = status.conditions.iter().flatten().find(|condition| condition.type_ == kind)?;
    found.reason.clone()
}

fn has_node_event(bed: &Bed, reason: &str, message: &str) -> bool {
    bed.events
        .events(None)
        .iter()
        .any(|event| event.pod.is_none() && event.reason == reason && event.message == message)
}

#[tokio::test]
async fn the_pod_that_takes_more_than_it_asked_for_ends_and_the_others_go_on() {
    let bed = bed();
    let pods = [asking("greedy", 50), asking("modest", 50), asking("other", 50)];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    for (name, memory) in [("greedy", 200), ("modest", 50), ("other", 40)] {
        bed.stats.pod_uses(name, memory, 1);
    }
    // What it used is free again once it is gone.
    let runtime = bed.runtime.clone();
    bed.stats.machine(move |node| node.memory_available = Some(if runs(&runtime, "greedy") { 99 } else { 250 }));
    bed.until("failed", |bed| bed.phase("greedy") == "Failed").await;
    let status = bed.status("greedy").unwrap();
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    assert_eq!(
        status.message.as_deref(),
        Some(
            "The node was low on resource: memory. Threshold quantity: 100, available: 99. Container app was using 200, \
             request is 50, has larger consumption of memory. "
        )
    );
    assert_eq!(condition(&status, "DisruptionTarget").as_deref(), Some("TerminationByKubelet"));
    bed.until("nothing of it is kept", |bed| {
        bed.files.was_released("greedy") && bed.runtime.container("greedy", "app").is_none()
    })
    .await;
    let shown = bed.status("greedy").unwrap().container_statuses.unwrap();
    assert!(!shown[0].image_id.is_empty() && shown[0].state.as_ref().unwrap().terminated.is_some());
    assert!(has_node_event(&bed, "EvictionThresholdMet", "Attempting to reclaim memory"));
    bed.until("the pressure is over", |bed| bed.health.pressure() == Pressure::default()).await;
    assert!(bed.is_ready("modest") && bed.is_ready("other"));

    // It stays what it is, also over a restart.
    let bed = bed.restart().await;
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods[1..]).await;
    assert_eq!(bed.phase("greedy"), "Failed");
    assert!(bed.runtime.container("greedy", "app").is_none());
}

#[tokio::test]
async fn a_soft_threshold_waits_its_time_and_leaves_no_more_than_it_may() {
    let soft = Duration::from_millis(400);
    let bed = Bed::with(|options_of_all| {
        let mut options = options();
        options.policy.thresholds.retain(|threshold| threshold.signal == Signal::MemoryAvailable);
        options.policy.thresholds[0].grace_period = Some(soft);
        options.policy.max_pod_grace_seconds = 3;
        options_of_all.eviction = options;
    });
    let pods = [asking("p", 0)];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    let short = std::time::Instant::now();
    bed.stats.change(|node| node.memory_available = Some(1));
    bed.until("failed", |bed| bed.phase("p") == "Failed").await;
    assert!(short.elapsed() >= soft, "{:?}", short.elapsed());
    assert_eq!(bed.runtime.stops(), [("p".to_owned(), 3)], "its own would be thirty");
}

#[tokio::test]
async fn processes_that_run_out_end_the_pod_that_has_most() {
    let bed = bed();
    let pods = [asking("many", 0), asking("few", 0)];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    for (name, processes) in [("many", 500), ("few", 5)] {
        bed.stats.pod_uses(name, 1, processes);
    }
    let runtime = bed.runtime.clone();
    bed.stats.machine(move |node| {
        node.processes = Some((1000, if runs(&runtime, "many") { 950 } else { 450 }));
    });
    bed.until("failed", |bed| bed.phase("many") == "Failed").await;
    let message = bed.status("many").unwrap().message.unwrap();
    assert_eq!(message, "The node was low on resource: pids. Threshold quantity: 100, available: 50. ");
    bed.until("over", |bed| bed.health.pressure() == Pressure::default()).await;
    assert!(bed.is_ready("few"));
}

#[tokio::test]
async fn the_condition_is_seen_at_once_and_stays_for_its_time() {
    // Long enough to be seen, however long ago the node was looked at last.
    let transition_period = Duration::from_secs(1);
    let bed = Bed::with(|options_of_all| {
        options_of_all.eviction = options();
        options_of_all.eviction.policy.transition_period = transition_period;
    });
    bed.source.set(vec![pod("static", "{containers: [{name: app, image: app}]}")]);
    bed.until("ready", |bed| bed.is_ready("static")).await;
    let mut heard = bed.health.subscribe();
    bed.stats.change(|node| node.processes = Some((1000, 901)));
    tokio::time::timeout(Duration::from_secs(30), heard.changed()).await.unwrap().unwrap();
    let short = Pressure { pid: true, ..Pressure::default() };
    assert_eq!(bed.health.pressure(), short);
    // Nobody else comes, but what is critical; and nobody critical goes.
    bed.source.set(vec![
        pod("static", "{containers: [{name: app, image: app}]}"),
        pod("second", "{containers: [{name: app, image: app}]}"),
        asking("late", 50),
    ]);
    bed.until("refused", |bed| bed.phase("late") == "Failed").await;
    let status = bed.status("late").unwrap();
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    assert_eq!(status.message.as_deref(), Some("Pod was rejected: The node had condition: [PIDPressure]. "));
    assert_eq!(condition(&status, "DisruptionTarget"), None);
    bed.until("the critical one runs", |bed| bed.is_ready("second")).await;
    bed.until("the node tries again and again", |bed| {
        let met = |event: &longshore_core::event::Event| event.reason == "EvictionThresholdMet" && event.count > 3;
        bed.events.events(None).iter().any(met)
    })
    .await;
    assert!(bed.is_ready("static"));

    bed.stats.change(|node| node.processes = Some((1000, 900)));
    let over = std::time::Instant::now();
    bed.until("over", |bed| bed.health.pressure() == Pressure::default()).await;
    assert!(over.elapsed() >= transition_period / 2, "it stays for its transition period: {:?}", over.elapsed());
    assert_eq!(bed.phase("late"), "Failed");
}

#[tokio::test]
async fn a_full_disk_costs_unused_images_first_and_then_the_pod_that_fills_it() {
    let bed = bed();
    for name in ["unused", "pause"] {
        bed.runtime.has_image(name);
    }
    let done =
        Pod { source: Source::Api, ..pod("done", "{restartPolicy: Never, containers: [{name: app, image: app}]}") };
    let pods = [asking("small", 0), asking("large", 0), done];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    bed.runtime.end(&bed.runtime.container("done", "app").unwrap().id, 0);
    bed.until("done", |bed| bed.phase("done") == "Succeeded").await;
    assert!(bed.runtime.container("done", "app").is_some(), "its log is kept");
    bed.files.pod_holds("small", 10);
    bed.files.pod_holds("large", 20);
    bed.runtime.layer_takes(&bed.runtime.container("small", "app").unwrap().id, 5);
    let files = bed.files.clone();
    bed.stats.machine(move |node| {
        node.node_fs.as_mut().unwrap().available = if files.was_released("large") { 500 } else { 0 };
    });
    bed.until("failed", |bed| bed.phase("large") == "Failed").await;
    assert_eq!(bed.runtime.images_there(), ["app", "pause"]);
    assert!(bed.runtime.container("done", "app").is_none(), "what is dead went");
    let message = bed.status("large").unwrap().message.unwrap();
    assert!(
        message.starts_with("The node was low on resource: ephemeral-storage. Threshold quantity: 100, available: 0. ")
    );
    bed.until("over", |bed| bed.health.pressure() == Pressure::default()).await;
    assert!(bed.is_ready("small"));
    assert_eq!(bed.phase("done"), "Succeeded");
}

#[tokio::test]
async fn a_full_disk_costs_the_pod_whose_files_cannot_be_counted_before_the_largest() {
    let bed = bed();
    let pods = [asking("large", 0), asking("deep", 0)];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    bed.files.pod_holds("large", 20);
    bed.files.pod_holds_at_least("deep", 10);
    let files = bed.files.clone();
    bed.stats.machine(move |node| {
        node.node_fs.as_mut().unwrap().available = if files.was_released("deep") { 500 } else { 0 };
    });
    bed.until("failed", |bed| bed.phase("deep") == "Failed").await;
    bed.until("over", |bed| bed.health.pressure() == Pressure::default()).await;
    assert!(bed.is_ready("large"));
}

#[tokio::test]
async fn one_pod_that_takes_long_to_measure_holds_up_no_other() {
    let bed = bed();
    let pods = [asking("small", 0), asking("large", 0)];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    bed.files.pod_holds("small", 10);
    bed.files.pod_holds("large", 20);
    // The one is not measured before the other.
    bed.files.measures_together(2);
    let files = bed.files.clone();
    bed.stats.machine(move |node| {
        node.node_fs.as_mut().unwrap().available = if files.was_released("large") { 500 } else { 0 };
    });
    bed.until("failed", |bed| bed.phase("large") == "Failed").await;
    bed.until("over", |bed| bed.health.pressure() == Pressure::default()).await;
    assert!(bed.is_ready("small"));
}

#[tokio::test]
async fn when_removing_images_is_enough_no_pod_ends() {
    let bed = bed();
    bed.runtime.has_image("unused");
    let pods = [asking("a", 0)];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    // The disk is as full as its images make it.
    let runtime = bed.runtime.clone();
    bed.stats.machine(move |node| {
        let left = if runtime.images_there().contains(&"unused".to_owned()) { 50 } else { 500 };
        node.image_fs.as_mut().unwrap().available = left;
    });
    bed.until("it went", |bed| !bed.runtime.images_there().contains(&"unused".to_owned())).await;
    bed.until("over", |bed| bed.health.pressure() == Pressure::default()).await;
    assert!(bed.is_ready("a") && !bed.has_event("a", "Evicted"));
}

#[tokio::test]
async fn a_pod_that_does_not_end_is_told_of() {
    let bed = bed();
    let pods = [asking("stuck", 0)];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    bed.runtime.fail("stop", usize::MAX);
    bed.stats.change(|node| node.memory_available = Some(1));
    bed.until("told", |bed| bed.has_event("stuck", "ExceededGracePeriod")).await;
    assert_eq!(bed.phase("stuck"), "Running");
    bed.runtime.fail("stop", 0);
    bed.until("failed", |bed| bed.phase("stuck") == "Failed").await;
}

#[tokio::test]
async fn nobody_is_evicted_before_the_api_server_was_heard() {
    let bed = bed();
    let pods = [asking("kept", 0)];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    let bed = bed.restart().await;
    bed.until_ready(&pods).await;
    bed.stats.change(|node| node.memory_available = Some(1));
    bed.until("the node tries again and again", |bed| {
        let met = |event: &longshore_core::event::Event| event.reason == "EvictionThresholdMet" && event.count > 3;
        bed.events.events(None).iter().any(met)
    })
    .await;
    assert!(bed.health.pressure().memory && bed.is_ready("kept") && !bed.has_event("kept", "Evicted"));
    bed.source.set(pods.to_vec());
    bed.until("evicted", |bed| bed.phase("kept") == "Failed").await;
}
