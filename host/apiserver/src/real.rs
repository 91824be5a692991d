//! The same against a real API server, when `LONGSHORE_TEST_API` (URL) and `LONGSHORE_TEST_TOKEN` name one that allows
//! everything; else these tests say that they were left out.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1;
use longshore_core::pod::PodId;
use longshore_core::ports::cluster::{ApiError, ApiPods, ClusterApi};
use longshore_core::ports::objects::{ObjectStore, TokenQuery, TrustBundleQuery};
use longshore_core::ports::reviews::{NodeAccess, Reviews, User};
use longshore_core::ports::sources::PodSource;
use longshore_core::volume::ObjectKind;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::requests::{JSON, Requests};
use crate::{ApiObjects, NodeApi, NodePods, NodeReviews};

const LIMIT: Duration = Duration::from_secs(20);
const NODE: &str = "longshore-real";

fn client() -> Option<kube::Client> {
    let server = std::env::var("LONGSHORE_TEST_API").ok()?;
    let mut config = kube::Config::new(server.parse().unwrap());
    config.default_retry = false;
    config.accept_invalid_certs = true;
    config.auth_info.token = std::env::var("LONGSHORE_TEST_TOKEN").ok().map(Into::into);
    drop(rustls::crypto::ring::default_provider().install_default());
    Some(kube::Client::try_from(config).unwrap())
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

async fn make(requests: &Requests, path: &str, object: Value) -> Value {
    let made = requests.send::<Value, _>(http::Method::POST, path, JSON, &object).await;
    match made {
        Err(ApiError::Conflict { exists: true, .. }) => Value::Null,
        other => other.unwrap(),
    }
}

#[tokio::test]
async fn a_nodes_life_at_a_real_api_server() {
    let Some(client) = client() else { return };
    let api = NodeApi::new(client.clone(), NODE);
    let requests = Requests::new(client.clone());
    assert!(api.server_version().await.unwrap().1 >= 33);
    if api.node().await.unwrap().is_none() {
        api.create_node(&from(json!({"metadata": {"name": NODE}}))).await.unwrap();
    }
    let again = api.create_node(&from(json!({"metadata": {"name": NODE}}))).await;
    assert!(matches!(again, Err(ApiError::Conflict { exists: true, .. })), "{again:?}");
    let node = api.patch_node(&json!({"metadata": {"labels": {"a": "b"}}})).await.unwrap();
    assert_eq!(node.metadata.labels.unwrap()["a"], "b");
    let condition = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    api.patch_node_status(&condition).await.unwrap();
    let lease = match api.lease().await.unwrap() {
        Some(lease) => lease,
        None => {
            from(json!({"metadata": {"name": NODE, "namespace": "kube-node-lease"}, "spec": {"holderIdentity": NODE}}))
        }
    };
    make(&requests, "/api/v1/namespaces", json!({"metadata": {"name": "kube-node-lease"}})).await;
    let lease = api.put_lease(&lease).await.unwrap();
    let lease = api.put_lease(&lease).await.unwrap();
    assert!(lease.metadata.resource_version.is_some());

    let pods = NodePods::start(client.clone(), NODE);
    let mut snapshots = pods.snapshots();
    timeout(LIMIT, snapshots.next()).await.unwrap().unwrap();
    assert!(pods.synced());
    let spec = json!({"nodeName": NODE, "serviceAccountName": "tester", "containers": [{"name": "c", "image": "i"}]});
    let made = api
        .create_pod(&from(json!({"metadata": {"generateName": "p-", "namespace": "default"}, "spec": spec})))
        .await
        .unwrap();
    let id = PodId {
        namespace: "default".to_owned(),
        name: made.metadata.name.clone().unwrap(),
        uid: made.metadata.uid.clone().unwrap(),
    };
    let wait = async {
        while !snapshots.next().await.unwrap().pods.iter().any(|pod| pod.id == id && pod.deletion.is_none()) {}
    };
    timeout(LIMIT, wait).await.unwrap();
    let patch = json!({"metadata": {"uid": id.uid}, "status": {"phase": "Running"}});
    let mut changes = pods.changes();
    api.patch_pod_status(&id, &patch).await.unwrap();
    let wait = async {
        let phase = |pod: &v1::Pod| pod.status.as_ref().and_then(|status| status.phase.clone());
        while pods.pod(&id.uid).and_then(|pod| phase(&pod)).as_deref() != Some("Running") {
            changes.next().await.unwrap();
        }
    };
    timeout(LIMIT, wait).await.unwrap();
    let wrong = json!({"metadata": {"uid": "other"}, "status": {"phase": "Failed"}});
    let refused = api.patch_pod_status(&id, &wrong).await;
    assert!(matches!(refused, Err(ApiError::Conflict { exists: false, .. })), "{refused:?}");

    let store = ApiObjects::start(client.clone(), None);
    let token_query =
        TokenQuery { service_account: "tester".into(), audience: String::new(), expiration_seconds: 3600, kept: true };
    make(&requests, "/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "tester"}})).await;
    let token = store.token(&id, &token_query).await.unwrap();
    let reviews = NodeReviews::new(client.clone(), NODE);
    let user = reviews.authenticate(&token.token).await.unwrap().unwrap();
    assert_eq!(user.name, "system:serviceaccount:default:tester");
    assert_eq!(reviews.authenticate("nobody").await.unwrap(), None::<User>);
    let access = NodeAccess { verb: "get", subresource: "metrics" };
    assert_eq!(reviews.authorize(&user, &access).await.unwrap(), Ok(()));

    let name = format!("c-{}", id.uid);
    store.hold(&id, &BTreeSet::from([(ObjectKind::ConfigMap, name.clone())]));
    assert!(store.config_map("default", &name).await.unwrap().is_none());
    let mut changed = store.changes();
    let path = "/api/v1/namespaces/default/configmaps";
    make(&requests, path, json!({"metadata": {"name": name}, "data": {"k": "1"}})).await;
    timeout(LIMIT, changed.next()).await.unwrap();
    assert!(store.config_map("default", &name).await.unwrap().is_some());
    let services = store.services("default").await.unwrap();
    assert!(services.iter().any(|service| service.metadata.name.as_deref() == Some("kubernetes")));
    assert_eq!(store.runtime_handler("none").await.unwrap(), None);
    assert_eq!(store.claim("default", "none").await.unwrap(), None);
    let bundles = store.trust_bundles(&TrustBundleQuery::Name("none".into())).await;
    assert!(matches!(&bundles, Ok(None)), "{bundles:?}");

    let event = api
        .create_event(&from(json!({
            "metadata": {"generateName": "e-", "namespace": "default"},
            "involvedObject": {"kind": "Pod", "namespace": "default", "name": id.name}, "reason": "X", "count": 1,
        })))
        .await
        .unwrap();
    let event =
        api.patch_event("default", event.metadata.name.as_deref().unwrap(), &json!({"count": 2})).await.unwrap();
    assert_eq!(event.count, Some(2));

    api.delete_pod(&id, 30).await.unwrap();
    let wait = async { while !snapshots.next().await.unwrap().pods.iter().any(|pod| pod.deletion.is_some()) {} };
    timeout(LIMIT, wait).await.unwrap();
    api.delete_pod(&PodId { uid: "other".into(), ..id.clone() }, 0).await.unwrap();
    assert!(api.pod("default", &id.name).await.unwrap().is_some());
    api.delete_pod(&id, 0).await.unwrap();
    let wait = async { while snapshots.next().await.unwrap().pods.iter().any(|pod| pod.id == id) {} };
    timeout(LIMIT, wait).await.unwrap();
    api.delete_pod(&id, 0).await.unwrap();
}
