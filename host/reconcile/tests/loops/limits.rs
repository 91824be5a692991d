//! What a pod may not exceed.

use k8s_openapi::api::core::v1;
use longshore_core::pod::{Pod, Source};
use longshore_tests::pod;

use crate::bed::Bed;

#[tokio::test]
async fn a_volume_that_outgrows_its_limit_evicts_the_pod() {
    let bed = Bed::new();
    bed.files.holds(2 << 20);
    let volume = |limit: &str| {
        format!(
            "{{containers: [{{name: app, image: app, volumeMounts: [{{name: v, mountPath: /v}}]}}], volumes: [{{name: v, emptyDir: {{sizeLimit: {limit}}}}}]}}"
        )
    };
    bed.source.set(vec![pod("small", &volume("1Mi")), pod("large", &volume("1Gi"))]);
    bed.until("evicted", |bed| bed.phase("small") == "Failed").await;
    let status = bed.status("small").unwrap();
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    assert!(status.message.unwrap().contains("exceeds the limit \"1Mi\""));
    // Its own doing.
    assert!(!status.conditions.unwrap().iter().any(|condition| condition.type_ == "DisruptionTarget"));
    bed.until("nothing of it is kept", |bed| {
        bed.files.was_released("small") && bed.runtime.container("small", "app").is_none()
    })
    .await;
    bed.until("the other one runs", |bed| bed.is_ready("large")).await;
}

#[tokio::test]
async fn in_a_cluster_a_pod_that_nobody_would_make_anew_is_spared() {
    let bed = Bed::of_two(crate::cluster::api(std::sync::Arc::default(), None, None));
    bed.files.holds(2 << 20);
    let spec = "{containers: [{name: app, image: app, volumeMounts: [{name: v, mountPath: /v}]}], volumes: [{name: v, emptyDir: {sizeLimit: 1Mi}}]}";
    let fixed = [pod("fixed", spec)];
    bed.source.set(fixed.to_vec());
    bed.until_ready(&fixed).await;
    bed.of_api.set(vec![Pod { source: Source::Api, ..pod("usual", spec) }]);
    bed.until("another one is evicted", |bed| bed.phase("usual") == "Failed").await;
    assert!(bed.is_ready("fixed") && !bed.has_event("fixed", "Evicted"));
}

#[tokio::test]
async fn a_deadline_ends_the_pod() {
    let bed = Bed::new();
    bed.source.set(vec![pod("p", "{activeDeadlineSeconds: 3, containers: [{name: app, image: app}]}")]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    bed.until("failed", |bed| bed.phase("p") == "Failed").await;
    assert_eq!(bed.status("p").unwrap().reason.as_deref(), Some("DeadlineExceeded"));
    assert!(!bed.runtime.container("p", "app").unwrap().is_running());
}

/// A pod of the API server whose two containers may take so much each, and a volume without a limit.
fn storing(name: &str, limit: &str) -> Pod {
    let of = |container: &str| {
        format!(
            "{{name: {container}, image: app, resources: {{limits: {{ephemeral-storage: {limit}}}}}, \
             volumeMounts: [{{name: v, mountPath: /v}}]}}"
        )
    };
    let spec = format!("{{containers: [{}, {}], volumes: [{{name: v, emptyDir: {{}}}}]}}", of("app"), of("side"));
    Pod { source: Source::Api, ..pod(name, &spec) }
}

/// Lets a container of a pod have written so much before its pod is first measured.
async fn evicted(take: impl Fn(&Bed)) -> v1::PodStatus {
    let bed = Bed::with(|_| {});
    bed.source.set(vec![storing("p", "2Mi"), storing("q", "1Gi")]);
    bed.until("both run", |bed| ["app", "side"].iter().all(|name| bed.runtime.container("p", name).is_some())).await;
    take(&bed);
    bed.until("evicted", |bed| bed.phase("p") == "Failed").await;
    bed.until("the other one runs", |bed| bed.is_ready("q")).await;
    assert!(bed.has_event("p", "Evicted"));
    bed.status("p").unwrap()
}

#[tokio::test]
async fn a_container_that_writes_more_than_it_may_ends_its_pod() {
    let status = evicted(|bed| {
        let id = bed.runtime.container("p", "side").unwrap().id;
        bed.runtime.layer_takes(&id, 3 << 20);
    })
    .await;
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    assert_eq!(status.message.as_deref(), Some("Container side exceeded its local ephemeral storage limit \"2Mi\". "));
    // Its own doing.
    assert!(!status.conditions.unwrap().iter().any(|condition| condition.type_ == "DisruptionTarget"));
}

#[tokio::test]
async fn a_pod_that_takes_more_than_its_containers_may_together_ends() {
    let status = evicted(|bed| {
        bed.files.pod_holds("p", 4 << 20);
        let id = bed.runtime.container("p", "app").unwrap().id;
        bed.runtime.layer_takes(&id, 1 << 20);
    })
    .await;
    let message = "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. ";
    assert_eq!(status.message.as_deref(), Some(message));
}

#[tokio::test]
async fn what_its_containers_write_to_the_pods_own_files_counts() {
    let status = evicted(|bed| {
        for name in ["p", "q"] {
            bed.files.pod_holds(name, 0);
        }
        // Its hosts, its resolv.conf and its termination messages.
        bed.files.holds(2 << 20);
    })
    .await;
    let message = "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. ";
    assert_eq!(status.message.as_deref(), Some(message));
}

#[tokio::test]
async fn a_pod_without_limits_is_never_measured() {
    let bed = Bed::new();
    let pods = [pod(
        "p",
        "{containers: [{name: app, image: app, volumeMounts: [{name: v, mountPath: /v}]}], volumes: [{name: v, emptyDir: {}}]}",
    )];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    assert_eq!(bed.runtime.calls("writable_layers"), 0);
}
