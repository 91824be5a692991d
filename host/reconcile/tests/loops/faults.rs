//! A runtime and a disk that fail, lose events or know a stranger: the loops get there all the same.

use longshore_core::pod::PodId;
use longshore_core::ports::runtime::ForeignContainer;
use longshore_tests::pod;
use longshore_tests::runtime::info;

use crate::bed::Bed;

#[tokio::test]
async fn every_call_may_fail_and_is_made_again() {
    for call in ["create_sandbox", "start", "create_container", "inspect", "image"] {
        let bed = Bed::new();
        bed.runtime.fail(call, 2);
        bed.source.set(vec![pod("p", "{containers: [{name: app, image: app}]}")]);
        bed.until(call, |bed| bed.is_ready("p")).await;
    }
}

#[tokio::test]
async fn a_volume_that_fails_is_told_and_tried_again() {
    let bed = Bed::new();
    *bed.files.failing.lock().unwrap() = 2;
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app, volumeMounts: [{name: v, mountPath: /v}]}], volumes: [{name: v, emptyDir: {}}]}")]);
    bed.until("told", |bed| bed.has_event("p", "FailedMount")).await;
    assert_eq!(bed.waiting_reason("p", "app"), "ContainerCreating");
    assert!(bed.has_message("p", "MountVolume.SetUp failed for volume \"v\" : it was told to fail"));
    bed.until("ready", |bed| bed.is_ready("p")).await;
}

#[tokio::test]
async fn a_folder_that_fails_is_no_volume() {
    let bed = Bed::new();
    *bed.files.folder_fails.lock().unwrap() = true;
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app}]}")]);
    bed.until("told", |bed| bed.has_message("p", "error making pod data directories: /pods: it was told to fail"))
        .await;
    assert!(!bed.has_event("p", "FailedMount"));
    bed.until("ready", |bed| bed.is_ready("p")).await;
}

/// As with the kubelet: what is mounted stays, and so do restarts.
#[tokio::test]
async fn a_pod_that_is_up_keeps_volumes_whose_objects_are_gone() {
    let bed = Bed::new();
    bed.objects.put("one");
    bed.objects.put("two");
    let volumes = "[{name: a, configMap: {name: one}}, {name: b, configMap: {name: two}}]";
    let mounts = "[{name: a, mountPath: /a}, {name: b, mountPath: /b}]";
    let spec = format!("{{containers: [{{name: app, image: app, volumeMounts: {mounts}}}], volumes: {volumes}}}");
    bed.source.set(vec![pod("p", &spec)]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    bed.objects.remove("one");
    bed.until("told", |bed| bed.has_event("p", "FailedMount")).await;
    bed.until("the other one goes on", |bed| {
        bed.files.prepared("p").0.iter().map(|volume| volume.name.as_str()).eq(["b"])
    })
    .await;
    let first = bed.runtime.container("p", "app").unwrap().id;
    bed.runtime.end(&first, 1);
    bed.until("restarted", |bed| bed.restarts("p", "app") == 1 && bed.is_ready("p")).await;
    let mounted = bed.runtime.mounts(&bed.runtime.container("p", "app").unwrap().id);
    assert!(["/a", "/b"].iter().all(|target| mounted.iter().any(|mount| mount.target == *target)), "{mounted:?}");
}

#[tokio::test]
async fn a_debug_container_whose_target_was_never_made_says_so() {
    let bed = Bed::new();
    let debug = "ephemeralContainers: [{name: debug, image: app, targetContainerName: app}]";
    bed.source.set(vec![pod("p", &format!("{{containers: [{{name: app, image: missing}}], {debug}}}"))]);
    bed.until("told", |bed| bed.has_message("p", "Error: unable to find target container app")).await;
    bed.until("waits", |bed| {
        let statuses = bed.status("p").and_then(|status| status.ephemeral_container_statuses).unwrap_or_default();
        let mut states = statuses.into_iter().filter_map(|status| status.state?.waiting?.reason);
        states.any(|reason| reason == "CreateContainerConfigError")
    })
    .await;
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_backs_off_and_others_go_on() {
    let bed = Bed::new();
    bed.source.set(vec![
        pod("bad", "{containers: [{name: app, image: missing}, {name: fine, image: app}]}"),
        pod("never", "{containers: [{name: app, image: missing, imagePullPolicy: Never}]}"),
        pod("good", "{containers: [{name: app, image: app}]}"),
    ]);
    bed.until("the others run", |bed| bed.is_ready("good")).await;
    bed.until("it says so", |bed| bed.waiting_reason("bad", "app") == "ErrImagePull").await;
    bed.until("its neighbour runs", |bed| bed.runtime.container("bad", "fine").is_some_and(|seen| seen.is_running()))
        .await;
    bed.until("never is told", |bed| bed.waiting_reason("never", "app") == "ErrImageNeverPull").await;
    assert!(bed.has_event("bad", "Pulling"));
}

#[tokio::test]
async fn lost_events_are_made_up_for() {
    let bed = Bed::new();
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app}]}")]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    bed.runtime.deaf.store(true, std::sync::atomic::Ordering::Relaxed);
    bed.runtime.end(&bed.runtime.container("p", "app").unwrap().id, 1);
    bed.until("restarted", |bed| bed.restarts("p", "app") == 1 && bed.is_ready("p")).await;
}

#[tokio::test]
async fn a_pod_waits_while_it_cannot_be_told_whether_another_agent_runs_it() {
    let bed = Bed::new();
    bed.runtime.fail("foreign", 1);
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app}]}")]);
    bed.until("told", |bed| bed.has_event("p", "FailedCreatePodSandBox")).await;
    assert!(bed.runtime.things().is_empty());
}

#[tokio::test]
async fn another_agents_pod_is_left_alone() {
    let bed = Bed::new();
    bed.runtime.add_foreign(ForeignContainer {
        id: "x".to_owned(),
        name: "k8s_POD_p".to_owned(),
        pod: PodId { namespace: "default".to_owned(), name: "p".to_owned(), uid: "p".to_owned() },
        is_sandbox: true,
        running: true,
        longshore_root: None,
    });
    bed.source.set(vec![pod("p", "{containers: [{name: app, image: app}]}")]);
    bed.until("told", |bed| bed.has_event("p", "FailedCreatePodSandBox")).await;
    assert!(bed.runtime.things().is_empty());
    bed.runtime.remove_foreign();
    bed.until("it starts once the other one is gone", |bed| bed.is_ready("p")).await;
}

#[tokio::test]
async fn a_runtime_that_comes_back_as_another_one_is_known_as_that() {
    let bed = Bed::new();
    let spec = "{runtimeClassName: gvisor, containers: [{name: app, image: app}]}";
    bed.source.set(vec![pod("p", spec)]);
    bed.until("it is held back", |bed| bed.has_event("p", "FailedCreatePodSandBox")).await;
    bed.runtime.fail("info", 1);
    bed.runtime.comes_back_as(info("29.1.0", &["gvisor", "runc"]));
    bed.until("it runs", |bed| bed.is_ready("p")).await;
    assert_eq!(bed.views.runtime().borrow().as_ref().map(|info| info.version.clone()), Some("29.1.0".to_owned()));
}
