//! What is different about pods on a node of a cluster: whose objects they see, whose labels bind them, whose word is
//! taken for what was lost.

use std::sync::Arc;

use futures::FutureExt;
use k8s_openapi::api::core::v1;
use longshore_core::pod::{Pod, Source};
use longshore_reconcile::node::ApiPorts;
use longshore_tests::objects::FakeObjects;
use longshore_tests::pod;
use serde_json::json;

use crate::bed::Bed;

/// A cluster that answers so.
fn api(objects: Arc<FakeObjects>, status: Option<v1::PodStatus>, node: Option<v1::Node>) -> ApiPorts {
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
            "{{containers: [{{name: app, image: app, envFrom: [{{configMapRef: {{name: {name}}}}}]}}], \
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
