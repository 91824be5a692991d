//! What is different about pods on a node of a cluster: whose objects they see, whose labels bind them, whose word is
//! taken for what was lost.

use std::sync::Arc;

use futures::FutureExt;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longshore_core::pod::{Pod, Source};
use longshore_core::ports::objects::BoundClaim;
use longshore_core::volume::VolumeKind;
use longshore_reconcile::node::ApiPorts;
use longshore_tests::objects::FakeObjects;
use longshore_tests::pod;
use serde_json::json;

use crate::bed::Bed;

/// A cluster that answers so.
pub(crate) fn api(objects: Arc<FakeObjects>, status: Option<v1::PodStatus>, node: Option<v1::Node>) -> ApiPorts {
    ApiPorts {
        objects,
        status: Arc::new(move |_| status.clone()),
        node: Arc::new(move || {
            let node = node.clone();
            async move { node }.boxed()
        }),
    }
}

fn of_api(name: &str, spec: &str) -> Pod {
    Pod { source: Source::Api, ..pod(name, spec) }
}

fn node(labels: serde_json::Value) -> v1::Node {
    serde_json::from_value(json!({"metadata": {"name": "node", "labels": labels}})).unwrap()
}

#[tokio::test]
async fn a_static_pod_may_not_use_the_api_servers_objects_nor_the_other_way_round() {
    let of_the_api = Arc::new(FakeObjects::default());
    of_the_api.put("shared");
    let bed = Bed::in_cluster(api(of_the_api.clone(), None, None));
    let spec = |name: &str| {
        format!(
            "{{containers: [{{name: app, image: app, envFrom: [{{configMapRef: {{name: {name}}}}}], \
             volumeMounts: [{{name: v, mountPath: /v}}]}}], \
             volumes: [{{name: v, configMap: {{name: none, optional: true}}}}]}}"
        )
    };
    bed.objects.put("here");
    bed.source.set(vec![
        pod("fixed", &spec("shared")),
        pod("good", &spec("here")),
        of_api("a", &spec("shared")),
        of_api("b", &spec("here")),
    ]);
    bed.until("each has its own", |bed| bed.is_ready("a") && bed.is_ready("good")).await;
    bed.until("refused", |bed| bed.has_event("fixed", "FailedValidation")).await;
    let problems = bed.views.problems();
    assert!(problems[0].message.contains("may not reference configmaps") && problems.len() == 1, "{problems:?}");
    bed.until("waits", |bed| bed.waiting_reason("b", "app") == "CreateContainerConfigError").await;
    assert!(bed.runtime.things().iter().all(|thing| thing.pod().uid != "fixed"), "nothing of it was made");
    // The folder gets what was missing.
    bed.objects.put("shared");
    bed.until("it runs now", |bed| bed.is_ready("fixed") && bed.views.problems().is_empty()).await;
    // One that runs goes on without the object, also under another agent.
    let bed = bed.restart().await;
    bed.source.set(vec![pod("fixed", &spec("shared"))]);
    bed.until("taken on", |bed| bed.is_ready("fixed")).await;
    assert!(!bed.has_event("fixed", "FailedValidation"));
}

/// A claim bound to a local volume, that is being deleted or not.
fn claim(deleted: bool) -> BoundClaim {
    let mut claim = v1::PersistentVolumeClaim::default();
    claim.metadata.deletion_timestamp = deleted.then_some(Time(jiff::Timestamp::UNIX_EPOCH));
    let volume = serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": {"local": {"path": "/disk"}}}));
    BoundClaim { claim, volume: Some(volume.unwrap()) }
}

fn with_claim(name: &str) -> Pod {
    let mounts = "[{name: v, mountPath: /v}]";
    let volumes = "volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]";
    of_api(name, &format!("{{containers: [{{name: app, image: app, volumeMounts: {mounts}}}], {volumes}}}"))
}

#[tokio::test]
async fn a_volume_for_one_pod_is_not_given_to_a_second() {
    let objects = Arc::new(FakeObjects::default());
    let mut claim = claim(false);
    let spec = claim.volume.as_mut().and_then(|volume| volume.spec.as_mut()).unwrap();
    spec.access_modes = Some(vec!["ReadWriteOncePod".to_owned()]);
    objects.set_claim("data", Some(claim));
    let bed = Bed::in_cluster(api(objects, None, None));
    bed.source.set(vec![with_claim("first")]);
    bed.until("it runs", |bed| bed.is_ready("first")).await;
    bed.source.set(vec![with_claim("first"), with_claim("second")]);
    let told = "MountVolume.SetUp failed for volume \"pv\" : volume uses the ReadWriteOncePod access mode and is already in use by another pod";
    bed.until("the second waits", |bed| bed.has_message("second", told)).await;
    assert!(bed.is_ready("first") && bed.runtime.container("second", "app").is_none());
}

#[tokio::test]
async fn a_pod_whose_disk_hangs_holds_up_no_other_one_that_wants_its_volume() {
    let objects = Arc::new(FakeObjects::default());
    let mut claim = claim(false);
    let spec = claim.volume.as_mut().and_then(|volume| volume.spec.as_mut()).unwrap();
    spec.access_modes = Some(vec!["ReadWriteOncePod".to_owned()]);
    objects.set_claim("data", Some(claim));
    let bed = Bed::in_cluster(api(objects, None, None));
    *bed.files.hanging.lock().unwrap() = Some("first".to_owned());
    bed.source.set(vec![with_claim("first")]);
    bed.until("it hangs", |bed| bed.files.hanging.lock().unwrap().is_none()).await;
    bed.source.set(vec![with_claim("first"), with_claim("second")]);
    let told = "MountVolume.SetUp failed for volume \"pv\" : volume uses the ReadWriteOncePod access mode and is already in use by another pod";
    bed.until("the second is told", |bed| bed.has_message("second", told)).await;
}

#[tokio::test]
async fn a_volume_for_one_pod_is_not_given_to_a_second_by_an_agent_that_cannot_prepare_the_first() {
    let objects = Arc::new(FakeObjects::default());
    let mut claim = claim(false);
    let spec = claim.volume.as_mut().and_then(|volume| volume.spec.as_mut()).unwrap();
    spec.access_modes = Some(vec!["ReadWriteOncePod".to_owned()]);
    objects.set_claim("data", Some(claim));
    objects.put("settings");
    let mounts = "[{name: v, mountPath: /v}, {name: c, mountPath: /c}]";
    let volumes = "[{name: v, persistentVolumeClaim: {claimName: data}}, {name: c, configMap: {name: settings}}]";
    let app = format!("{{name: app, image: app, volumeMounts: {mounts}}}");
    let first = of_api("first", &format!("{{containers: [{app}], volumes: {volumes}}}"));
    let bed = Bed::in_cluster(api(objects.clone(), None, None));
    bed.source.set(vec![first.clone()]);
    bed.until("it runs", |bed| bed.is_ready("first")).await;
    let bed = bed.restart_with(async || objects.remove("settings")).await;
    bed.source.set(vec![first, with_claim("second")]);
    let told = "MountVolume.SetUp failed for volume \"pv\" : volume uses the ReadWriteOncePod access mode and is already in use by another pod";
    bed.until("the second waits", |bed| bed.has_message("second", told)).await;
    assert!(bed.is_ready("first") && bed.runtime.container("second", "app").is_none());
}

#[tokio::test]
async fn a_pod_that_is_up_keeps_the_claim_that_it_began_with() {
    let objects = Arc::new(FakeObjects::default());
    objects.set_claim("data", Some(claim(false)));
    let bed = Bed::in_cluster(api(objects.clone(), None, None));
    bed.source.set(vec![with_claim("old")]);
    bed.until("it runs", |bed| bed.is_ready("old")).await;
    // Deleted, and gone: as nobody would have it who is not forced to.
    for (restarts, now) in [(1, Some(claim(true))), (2, None)] {
        objects.set_claim("data", now);
        bed.runtime.end(&bed.runtime.container("old", "app").unwrap().id, 1);
        let again = |bed: &Bed| bed.restarts("old", "app") == restarts && bed.is_ready("old");
        bed.until("it runs again", again).await;
    }
    assert!(!bed.has_event("old", "FailedMount"));
    objects.set_claim("data", Some(claim(true)));
    bed.source.set(vec![with_claim("old"), with_claim("new")]);
    bed.until("a new one waits", |bed| bed.has_event("new", "FailedMount")).await;
    assert!(bed.is_ready("old") && bed.runtime.container("new", "app").is_none());
}

#[tokio::test]
async fn a_node_without_the_clusters_dns_says_so() {
    let bed = Bed::in_cluster(api(Arc::default(), None, None));
    let servers = "dnsPolicy: None, dnsConfig: {nameservers: [1.1.1.1, 1.1.1.2, 1.1.1.3, 1.1.1.4]}";
    let app = "containers: [{name: app, image: app}]";
    bed.source.set(vec![of_api("a", &format!("{{{app}}}")), of_api("b", &format!("{{{app}, {servers}}}"))]);
    bed.until("both run", |bed| bed.is_ready("a") && bed.is_ready("b")).await;
    let told = |pod: &str| ["MissingClusterDNS", "DNSConfigForming"].map(|reason| bed.has_event(pod, reason));
    assert_eq!((told("a"), told("b")), ([true, false], [false, true]));
}

#[tokio::test]
async fn the_nodes_labels_bind_pods_as_the_api_server_has_them() {
    let fresh = node(json!({"disk": "new"}));
    let bed = Bed::in_cluster(api(Arc::default(), None, Some(fresh)));
    bed.views.set_node(Some(Arc::new(node(json!({"disk": "old"})))));
    let spec = |disk: &str| format!("{{containers: [{{name: app, image: app}}], nodeSelector: {{disk: {disk}}}}}");
    bed.source.set(vec![of_api("old", &spec("old")), of_api("new", &spec("new")), of_api("none", &spec("none"))]);
    bed.until("bound by labels that are known, or were only just set", |bed| {
        bed.is_ready("old") && bed.is_ready("new")
    })
    .await;
    bed.until("refused", |bed| bed.phase("none") == "Failed").await;
    assert_eq!(bed.status("none").unwrap().reason.as_deref(), Some("NodeAffinity"));
}

#[tokio::test]
async fn a_token_is_replaced_in_a_running_pod_and_one_that_expired_is_told_of_once() {
    let objects = Arc::new(FakeObjects::default());
    let bed = Bed::in_cluster(api(objects.clone(), None, None));
    let in_an_hour = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    objects.issue("first", in_an_hour);
    let spec = "{serviceAccountName: default, containers: [{name: app, image: app, volumeMounts: [{name: v, mountPath: /v}]}], \
                volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: token}}]}}]}";
    bed.source.set(vec![of_api("p", spec)]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    let holds = |bed: &Bed, token: &str| {
        bed.files.prepared("p").0.iter().any(|volume| match &volume.kind {
            VolumeKind::Payload { files, .. } => files.values().any(|file| file.data == token.as_bytes()),
            _ => false,
        })
    };
    assert!(holds(&bed, "first"));
    objects.issue("second", in_an_hour);
    bed.until("the next one is there", |bed| holds(bed, "second")).await;
    assert!(bed.is_ready("p") && bed.restarts("p", "app") == 0 && !bed.has_event("p", "ExpiredToken"));

    let over = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(1);
    for _ in 0..3 {
        let before = bed.files.prepared("p").1;
        objects.issue("old", over);
        bed.until("looked up again", |bed| bed.files.prepared("p").1 > before).await;
    }
    let told = |bed: &Bed| {
        let events = bed.events.events(Some("p"));
        events.iter().filter(|event| event.reason == "ExpiredToken").map(|event| event.count).sum::<u32>()
    };
    assert_eq!(told(&bed), 1);
    assert!(bed.is_ready("p") && holds(&bed, "old"));
}

#[tokio::test]
async fn a_lost_record_begins_with_what_the_api_server_knows() {
    let status = serde_json::from_value(json!({
        "phase": "Running", "startTime": "2026-01-01T00:00:00Z",
        "containerStatuses": [{"name": "app", "image": "app", "imageID": "", "ready": true, "restartCount": 4,
            "containerID": "docker://gone", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}],
    }))
    .unwrap();
    let bed = Bed::in_cluster(api(Arc::default(), Some(status), None));
    bed.source.set(vec![of_api("p", "{containers: [{name: app, image: app}]}")]);
    bed.until("it runs again", |bed| bed.is_ready("p")).await;
    assert_eq!(bed.restarts("p", "app"), 5);
    assert_eq!(bed.status("p").unwrap().start_time.unwrap().0.to_string(), "2026-01-01T00:00:00Z");
}
