//! The agent goes and comes back; the pods do not notice.

use std::time::Duration;

use longshore_core::ports::probes::ProbeOutcome;
use longshore_tests::pod;

use crate::bed::Bed;

const PROBED: &str =
    "{containers: [{name: app, image: app, readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}}]}";

#[tokio::test]
async fn a_restart_restarts_nothing_and_readiness_does_not_flap() {
    let bed = Bed::new();
    let pods: Vec<_> = (0..10).map(|n| pod(&format!("p{n}"), PROBED)).collect();
    bed.source.set(pods.clone());
    bed.until_ready(&pods).await;
    let before = bed.runtime.things();
    let time_of = |bed: &Bed, step: &str| {
        let view = bed.views.pod("p0").unwrap();
        view.steps.iter().find(|known| known.name == step).unwrap().since
    };
    assert!(time_of(&bed, "volumes").unwrap() < time_of(&bed, "sandbox").unwrap(), "each has a time of its own");
    let bed = bed.restart().await;
    // Adopted from what is stored, before the source has said a word.
    bed.until("all are shown", |bed| bed.views.pods().len() == 10).await;
    assert_eq!(time_of(&bed, "sandbox"), None, "it is not known since when it is there");
    assert!(bed.views.pods().iter().all(|view| bed.is_ready(&view.id.uid)), "ready from the first moment on");
    bed.source.set(pods.clone());
    bed.until("probes run again", |bed| bed.probes.calls() > 20).await;
    assert!(pods.iter().all(|pod| bed.is_ready(&pod.id.uid)));
    assert_eq!(bed.runtime.things(), before);
}

/// A container whose inspect hangs or errs is its own pod's affair.
#[tokio::test]
async fn a_container_that_cannot_be_looked_at_holds_up_its_pod_alone() {
    let bed = Bed::new();
    let pods = ["sick", "well"].map(|name| pod(name, "{containers: [{name: app, image: app}]}"));
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    let sick = bed.runtime.container("sick", "app").unwrap().id;
    bed.runtime.is_sick(&sick, true);
    let bed = bed.restart().await;
    bed.source.set(pods.to_vec());
    bed.until("the other is taken on", |bed| bed.is_ready("well")).await;
    bed.runtime.end(&bed.runtime.container("well", "app").unwrap().id, 1);
    bed.until("and restarted", |bed| bed.restarts("well", "app") == 1).await;
    assert_eq!(bed.runtime.things().iter().filter(|thing| thing.pod().uid == "sick").count(), 2, "nothing is made");
    bed.runtime.is_sick(&sick, false);
    bed.until("it is taken on", |bed| bed.is_ready("sick")).await;
    assert_eq!(bed.restarts("sick", "app"), 0);
}

/// The kubelet forgets at its end that it rejected a static pod.
#[tokio::test]
async fn a_rejected_pod_is_asked_about_again_after_a_restart() {
    let pods = || {
        ["a", "b"].map(|name| {
            pod(name, "{containers: [{name: app, image: app, ports: [{containerPort: 80, hostPort: 80}]}]}")
        })
    };
    let rejected =
        |bed: &Bed, name: &str| bed.status(name).is_some_and(|status| status.reason.as_deref() == Some("NodePorts"));
    let bed = Bed::new();
    bed.source.set(vec![pods()[0].clone()]);
    bed.until("the first runs", |bed| bed.is_ready("a")).await;
    bed.source.set(pods().to_vec());
    bed.until("the second is rejected", |bed| rejected(bed, "b")).await;
    assert!(bed.status("b").unwrap().message.unwrap().ends_with("pod default/a has TCP port 80"));
    let bed = bed.restart().await;
    bed.source.set(pods().to_vec());
    bed.until("again, for the same reason", |bed| bed.is_ready("a") && rejected(bed, "b")).await;
    bed.source.set(vec![pods()[1].clone()]);
    bed.until("what was in its way is gone", |bed| bed.runtime.things().is_empty()).await;
    assert!(rejected(&bed, "b"));
    let bed = bed.restart().await;
    bed.source.set(vec![pods()[1].clone()]);
    bed.until("it runs", |bed| bed.is_ready("b")).await;
}

#[tokio::test]
async fn a_kill_at_any_moment_is_made_up_for() {
    let mut bed = Bed::new();
    let pods: Vec<_> =
        (0..5).map(|n| pod(&format!("p{n}"), "{containers: [{name: a, image: app}, {name: b, image: app}]}")).collect();
    for calls in 1..15 {
        bed.source.set(pods.clone());
        let made = bed.runtime.calls("create_container") + bed.runtime.calls("start");
        bed.until("it went on", |bed| {
            bed.runtime.calls("create_container") + bed.runtime.calls("start") >= made + calls % 3
                || pods.iter().all(|pod| bed.is_ready(&pod.id.uid))
        })
        .await;
        bed = bed.kill().await;
    }
    bed.source.set(pods.clone());
    bed.until_ready(&pods).await;
    assert_eq!(bed.runtime.things().len(), 15, "nothing is there twice");
    assert!(pods.iter().all(|pod| bed.restarts(&pod.id.uid, "a") == 0), "and nothing was restarted");
}

#[tokio::test]
async fn a_pod_whose_manifest_went_meanwhile_is_ended_once_the_source_spoke() {
    let bed = Bed::new();
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app}]}")]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    let bed = bed.restart().await;
    bed.until("adopted", |bed| bed.is_ready("p")).await;
    assert_eq!(bed.runtime.things().len(), 2, "kept, as the source has not spoken");
    bed.source.set(Vec::new());
    bed.until("gone", |bed| bed.runtime.things().is_empty()).await;
}

#[tokio::test]
async fn counts_and_ends_survive_a_restart_and_a_prune() {
    let bed = Bed::new();
    let pods = vec![
        pod("p", "{containers: [{name: app, image: app}]}"),
        pod("done", "{restartPolicy: Never, containers: [{name: app, image: app}]}"),
    ];
    bed.source.set(pods.clone());
    bed.until_ready(&pods).await;
    bed.runtime.end(&bed.runtime.container("p", "app").unwrap().id, 1);
    bed.runtime.end(&bed.runtime.container("done", "app").unwrap().id, 0);
    bed.until("counted", |bed| bed.restarts("p", "app") == 1 && bed.is_ready("p") && bed.phase("done") == "Succeeded")
        .await;
    let bed = bed.restart().await;
    bed.runtime.prune();
    bed.source.set(pods);
    bed.until("adopted", |bed| bed.is_ready("p") && bed.phase("done") == "Succeeded").await;
    assert_eq!(bed.restarts("p", "app"), 1);
    assert!(bed.runtime.container("done", "app").is_none());
}

#[tokio::test]
async fn records_are_waited_for_while_the_disk_does_not_give_them() {
    let bed = Bed::new();
    let pods = vec![pod("done", "{restartPolicy: Never, containers: [{name: app, image: app}]}")];
    bed.source.set(pods.clone());
    bed.until_ready(&pods).await;
    bed.runtime.end(&bed.runtime.container("done", "app").unwrap().id, 0);
    bed.until("finished", |bed| bed.phase("done") == "Succeeded").await;
    let files = bed.files.clone();
    let bed = bed.restart_with(async || *files.failing_to_load.lock().unwrap() = 2).await;
    bed.runtime.prune();
    bed.source.set(pods);
    bed.until("told", |bed| bed.views.problems().iter().any(|problem| problem.place == "records")).await;
    bed.until("adopted", |bed| bed.phase("done") == "Succeeded").await;
    assert!(bed.runtime.container("done", "app").is_none() && bed.views.problems().is_empty());
}

#[tokio::test]
async fn an_unready_container_is_not_taken_for_ready() {
    let bed = Bed::new();
    bed.probes.answer("p", "app", ProbeOutcome::Failure { message: "no".to_owned() });
    bed.source.set(vec![pod("p", PROBED)]);
    bed.until("told", |bed| bed.has_event("p", "Unhealthy")).await;
    let bed = bed.restart().await;
    bed.until("shown", |bed| bed.phase("p") == "Running").await;
    assert!(!bed.is_ready("p"));
}

#[tokio::test]
async fn volumes_that_could_not_be_brought_up_to_date_after_a_restart_are_tried_again() {
    let bed = Bed::with(|options| options.remount = Duration::from_secs(1));
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app}], volumes: [{name: v, emptyDir: {}}]}")]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    let files = bed.files.clone();
    let bed = bed.restart_with(async || *files.folder_fails.lock().unwrap() = true).await;
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app}], volumes: [{name: v, emptyDir: {}}]}")]);
    bed.until("told", |bed| bed.has_event("p", "Failed")).await;
    let before = files.prepared("p").1;
    bed.until("tried again", |_| files.prepared("p").1 > before).await;
}
