//! What containers are told: variables from files of volumes, which they wait for, and annotations that the node adds.

use std::time::Duration;

use longshore_core::volume::VolumeKind;
use longshore_tests::pod;

use crate::bed::{Bed, backed_off};

#[tokio::test]
async fn a_container_waits_for_the_file_that_its_variables_come_from() {
    let bed = Bed::new();
    let spec = "{containers: [{name: app, image: app, env: [{name: A, valueFrom: {fileKeyRef: {volumeName: v, path: env, key: \
                A}}}], volumeMounts: [{name: v, mountPath: /v}]}], volumes: [{name: v, emptyDir: {}}]}";
    let pods = [pod("p", spec)];
    bed.source.set(pods.to_vec());
    bed.until("refused", |bed| bed.waiting_reason("p", "app") == "CreateContainerConfigError").await;
    let told = bed.events.events(Some("p"));
    assert!(told.iter().any(|event| event.message.starts_with("Error: couldn't parse env file: ")), "{told:?}");
    assert!(bed.runtime.container("p", "app").is_none());
    bed.files.in_volumes.lock().unwrap().insert("env".to_owned(), b"A='1'\n".to_vec());
    bed.until_ready(&pods).await;
}

#[tokio::test]
async fn a_pod_is_told_when_it_was_first_seen_and_that_stays_so() {
    let bed = Bed::new();
    let spec = "{containers: [{name: app, image: app, volumeMounts: [{name: v, mountPath: /v}]}], volumes: [{name: v, downwardAPI: {items: [{path: all, fieldRef: \
                {fieldPath: metadata.annotations}}]}}]}";
    let pods = [pod("p", spec)];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    let told = |bed: &Bed| {
        let (volumes, _) = bed.files.prepared("p");
        let VolumeKind::Payload { files, .. } = &volumes[0].kind else { panic!("{volumes:?}") };
        String::from_utf8(files["all"].data.clone()).unwrap()
    };
    let shown = |bed: &Bed| {
        let annotations = bed.views.pod("p").unwrap().object.metadata.annotations.clone().unwrap();
        format!("kubernetes.io/config.seen={:?}", annotations["kubernetes.io/config.seen"])
    };
    let before = told(&bed);
    assert_eq!(before, shown(&bed));
    let bed = bed.restart().await;
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    bed.until("prepared anew", |bed| bed.files.prepared("p").1 > 1).await;
    assert_eq!((told(&bed), shown(&bed)), (before.clone(), before));
}

#[tokio::test]
async fn what_waits_for_an_object_is_tried_again_as_soon_as_that_is_there() {
    let bed = Bed::new();
    let pods = [
        pod("env", "{containers: [{name: app, image: app, envFrom: [{configMapRef: {name: late}}]}]}"),
        pod(
            "mount",
            "{containers: [{name: app, image: app, volumeMounts: [{name: v, mountPath: /v}]}], volumes: [{name: v, configMap: {name: late}}]}",
        ),
    ];
    bed.source.set(pods.to_vec());
    bed.until("refused", |bed| bed.waiting_reason("env", "app") == "CreateContainerConfigError").await;
    bed.until("not mounted", |bed| bed.has_event("mount", "FailedMount")).await;
    let files = bed.files.clone();
    let bed = bed
        .restart_with(async || {
            backed_off(&files, "env", "create/app").await;
            backed_off(&files, "mount", "pod").await;
        })
        .await;
    bed.source.set(pods.to_vec());
    bed.until("both are looked after again", |bed| bed.views.pods().len() == 2).await;
    bed.objects.put("other");
    bed.objects.put("late");
    let soon = tokio::time::timeout(Duration::from_secs(40), bed.until_ready(&pods)).await;
    assert!(soon.is_ok(), "their back-off was waited for");
}
