//! From a manifest to a running pod and back to nothing.

use longshore_tests::pod;

use crate::bed::Bed;

#[tokio::test]
async fn pods_come_up_and_go() {
    let bed = Bed::new();
    let pods: Vec<_> = (0..20).map(|n| pod(&format!("web-{n}"), "{containers: [{name: app, image: app}]}")).collect();
    bed.source.set(pods.clone());
    bed.until_ready(&pods).await;
    assert_eq!(bed.runtime.things().len(), 40, "a sandbox and a container each");
    // One look after each start, none more: events of one's own starts cost nothing.
    assert!(bed.runtime.calls("inspect") <= 3 * 20, "{} inspects", bed.runtime.calls("inspect"));
    bed.source.set(Vec::new());
    bed.until("everything is gone", |bed| bed.runtime.things().is_empty() && bed.views.pods().is_empty()).await;
    assert!(bed.files.stored("web-0").is_none());
}

#[tokio::test]
async fn init_containers_run_one_after_the_other_before_the_app() {
    let bed = Bed::new();
    let spec =
        "{initContainers: [{name: one, image: app}, {name: two, image: app}], containers: [{name: app, image: app}]}";
    bed.source.set(vec![pod("p", spec)]);
    bed.until("one runs", |bed| bed.runtime.container("p", "one").is_some_and(|seen| seen.is_running())).await;
    assert!(bed.runtime.container("p", "two").is_none());
    assert_eq!(bed.phase("p"), "Pending");
    bed.runtime.end(&bed.runtime.container("p", "one").unwrap().id, 0);
    bed.until("two runs", |bed| bed.runtime.container("p", "two").is_some_and(|seen| seen.is_running())).await;
    assert!(bed.runtime.container("p", "app").is_none());
    bed.runtime.end(&bed.runtime.container("p", "two").unwrap().id, 0);
    bed.until("the pod is ready", |bed| bed.is_ready("p")).await;
}

#[tokio::test]
async fn what_ends_is_restarted_as_its_policy_says() {
    let bed = Bed::new();
    bed.source.set(vec![
        pod("always", "{containers: [{name: app, image: app}]}"),
        pod("failure", "{restartPolicy: OnFailure, containers: [{name: app, image: app}]}"),
        pod("never", "{restartPolicy: Never, containers: [{name: app, image: app}]}"),
    ]);
    for uid in ["always", "failure", "never"] {
        bed.until("it runs", |bed| bed.is_ready(uid)).await;
        bed.runtime.end(&bed.runtime.container(uid, "app").unwrap().id, 1);
    }
    bed.until("never failed", |bed| bed.phase("never") == "Failed").await;
    for uid in ["always", "failure"] {
        bed.until("restarted once", |bed| bed.restarts(uid, "app") == 1 && bed.is_ready(uid)).await;
        bed.runtime.end(&bed.runtime.container(uid, "app").unwrap().id, 0);
    }
    bed.until("failure succeeded", |bed| bed.phase("failure") == "Succeeded").await;
    bed.until("always goes on", |bed| bed.restarts("always", "app") == 2 && bed.is_ready("always")).await;
    assert!(bed.has_event("always", "BackOff"));
    bed.runtime.prune();
    bed.until("always is unmoved", |bed| bed.is_ready("always")).await;
    assert_eq!((bed.phase("failure").as_str(), bed.phase("never").as_str()), ("Succeeded", "Failed"));
    assert!(bed.runtime.container("failure", "app").is_none(), "what is done does not run again");
}

#[tokio::test]
async fn a_dead_sandbox_begins_the_pod_again() {
    let bed = Bed::new();
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app}]}")]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    let first = bed.runtime.container("p", "app").unwrap();
    bed.runtime.end(&first.sandbox_id, 137);
    bed.until("ready in a new sandbox", |bed| {
        bed.is_ready("p") && bed.runtime.container("p", "app").is_some_and(|seen| seen.sandbox_id != first.sandbox_id)
    })
    .await;
    assert!(bed.has_event("p", "SandboxChanged"));
}

#[tokio::test]
async fn another_image_restarts_that_container_alone() {
    let bed = Bed::new();
    bed.runtime.has_image("newer");
    bed.source.set(vec![pod("p", "{containers: [{name: a, image: app}, {name: b, image: app}]}")]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    let b = bed.runtime.container("p", "b").unwrap().id;
    bed.source.set(vec![pod("p", "{containers: [{name: a, image: newer}, {name: b, image: app}]}")]);
    bed.until("a is new", |bed| bed.is_ready("p") && bed.restarts("p", "a") == 1).await;
    assert_eq!(bed.runtime.container("p", "b").unwrap().id, b);
    assert_eq!(bed.restarts("p", "b"), 0);
}

#[tokio::test]
async fn too_many_pods_are_rejected_and_stay_so() {
    let bed = Bed::new();
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app, resources: {requests: {cpu: 100}}}]}")]);
    bed.until("rejected", |bed| bed.phase("p") == "Failed").await;
    assert_eq!(bed.status("p").unwrap().reason.as_deref(), Some("OutOfcpu"));
    assert!(bed.runtime.things().is_empty());
}

#[tokio::test]
async fn an_unknown_probe_plugin_keeps_the_pod_pending_and_says_so() {
    let bed = Bed::new();
    let mut strange = pod("p", "{containers: [{name: app, image: app}]}");
    let mut object = (*strange.object).clone();
    object.metadata.annotations =
        Some([("probe.longshore.dev/app.readiness".to_owned(), "{plugin: redis}".to_owned())].into());
    strange.object = std::sync::Arc::new(object);
    bed.source.set(vec![strange]);
    bed.until("the event is there", |bed| bed.has_event("p", "FailedCreatePodSandBox")).await;
    assert_eq!(bed.phase("p"), "Pending");
    assert!(bed.runtime.things().is_empty());
}

#[tokio::test]
async fn a_changed_manifest_is_a_new_pod_and_the_old_one_ends_first() {
    let bed = Bed::new();
    bed.source.set(vec![pod("old", "{containers: [{name: app, image: app}]}")]);
    bed.until("ready", |bed| bed.is_ready("old")).await;
    let mut new = pod("new", "{containers: [{name: app, image: app}]}");
    new.id.name = "old".to_owned();
    let mut object = (*new.object).clone();
    object.metadata.name = Some("old".to_owned());
    new.object = std::sync::Arc::new(object);
    bed.source.set(vec![new]);
    bed.until("the new one is ready", |bed| {
        let old = bed.runtime.things().iter().any(|thing| thing.pod().uid == "old");
        let new = bed.runtime.things().iter().any(|thing| thing.pod().uid == "new");
        assert!(!(old && new), "the two never live at once");
        bed.is_ready("new")
    })
    .await;
}

#[tokio::test]
async fn a_pod_given_back_while_it_ends_comes_back() {
    let bed = Bed::new();
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app}]}")]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    let first = bed.runtime.container("p", "app").unwrap().id;
    bed.source.set(Vec::new());
    bed.until("it ends", |bed| bed.views.pod("p").is_none_or(|view| view.object.metadata.deletion_timestamp.is_some()))
        .await;
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app}]}")]);
    bed.until("ready again", |bed| {
        bed.is_ready("p") && bed.runtime.container("p", "app").is_some_and(|seen| seen.id != first)
    })
    .await;
}

#[tokio::test]
async fn an_ephemeral_container_is_added_to_a_running_pod() {
    let bed = Bed::new();
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app}]}")]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    let app = bed.runtime.container("p", "app").unwrap().id;
    let debug = "ephemeralContainers: [{name: debug, image: app, targetContainerName: app}]";
    bed.source.set(vec![pod("p", &format!("{{containers: [{{name: app, image: app}}], {debug}}}"))]);
    let shown = |bed: &Bed| bed.status("p").and_then(|status| status.ephemeral_container_statuses).unwrap_or_default();
    bed.until("it is shown to run", |bed| {
        shown(bed).iter().any(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()))
    })
    .await;
    let debug = bed.runtime.container("p", "debug").unwrap().id;
    bed.runtime.end(&debug, 2);
    bed.until("it is shown to have ended", |bed| {
        shown(bed).iter().any(|status| status.state.as_ref().is_some_and(|state| state.terminated.is_some()))
    })
    .await;
    let bed = bed.restart().await;
    bed.until("it is adopted", |bed| !shown(bed).is_empty()).await;
    assert!(bed.is_ready("p"));
    assert_eq!(bed.runtime.container("p", "debug").unwrap().id, debug, "it does not run again");
    assert_eq!(bed.runtime.container("p", "app").unwrap().id, app);
}
