//! Objects at a scripted API server.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use longshore_core::pod::PodId;
use longshore_core::ports::archive::{ArchiveKey, ObjectArchive};
use longshore_core::ports::objects::{ObjectStore, TokenQuery, TrustBundleQuery};
use longshore_core::volume::ObjectKind;
use tokio::time::{Instant, timeout};

use super::ApiObjects;
use super::single::IDLE;
use crate::ArchivedObjects;
use crate::fake::Fake;
use crate::pem;

const LIMIT: Duration = Duration::from_secs(20);

fn map(version: u32, value: &str, more: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"c","namespace":"n","resourceVersion":"{version}"}},"data":{{"k":"{value}"}}{more}}}"#
    )
}

fn list(items: &str) -> String {
    format!(r#"{{"metadata":{{"resourceVersion":"5"}},"items":[{items}]}}"#)
}

fn event(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn pod() -> PodId {
    PodId { namespace: "n".into(), name: "p".into(), uid: "u".into() }
}

/// Keeps the last thing put.
#[derive(Default)]
pub(crate) struct Archive(Mutex<Vec<(ArchiveKey, Vec<u8>)>>);

#[async_trait]
impl ObjectArchive for Archive {
    fn put(&self, key: &ArchiveKey, bytes: Vec<u8>, _secret: bool) {
        self.0.lock().unwrap().push((key.clone(), bytes));
    }

    fn remove(&self, key: &ArchiveKey) {
        self.0.lock().unwrap().retain(|(other, _)| other != key);
    }

    async fn get(&self, key: &ArchiveKey) -> Option<Vec<u8>> {
        let kept = self.0.lock().unwrap();
        kept.iter().rev().find(|(other, _)| other == key).map(|(_, bytes)| bytes.clone())
    }

    fn keeps_secrets(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn an_object_is_followed_from_its_absence_on() {
    let fake = Fake::start().await;
    let store = ApiObjects::start(fake.client.clone(), None);
    fake.whole("limit=500", 403, "{}");
    fake.whole("limit=500", 200, &list(""));
    let events = fake.open("watch=true", 200);
    store.hold(&pod(), &BTreeSet::from([(ObjectKind::ConfigMap, "c".to_owned())]));
    assert!(store.config_map("n", "c").await.unwrap().is_none());
    let mut changes = store.changes();
    events.unbounded_send(event("ADDED", &map(6, "1", ""))).unwrap();
    timeout(LIMIT, changes.next()).await.unwrap();
    assert_eq!(store.config_map("n", "c").await.unwrap().unwrap().data.as_ref().unwrap()["k"], "1");
    events.unbounded_send(event("MODIFIED", &map(7, "2", ""))).unwrap();
    timeout(LIMIT, changes.next()).await.unwrap();
    assert_eq!(store.config_map("n", "c").await.unwrap().unwrap().data.as_ref().unwrap()["k"], "2");
    let asked = fake.asked("configmaps", 3).await;
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked.iter().all(|one| one.contains("fieldSelector=metadata.name%3Dc")), "{asked:?}");
    // Nobody holds it: some time later the watch ends, and with it the connection's stream.
    let sweep = |after: Duration| store.inner.config_maps.sweep(Instant::now() + after);
    sweep(2 * IDLE);
    store.hold(&pod(), &BTreeSet::new());
    sweep(IDLE / 2);
    events.unbounded_send(event("MODIFIED", &map(8, "3", ""))).unwrap();
    timeout(LIMIT, changes.next()).await.unwrap();
    sweep(2 * IDLE);
    let closed = async {
        while !events.is_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, closed).await.unwrap();
}

#[tokio::test]
async fn what_is_immutable_is_read_once() {
    let fake = Fake::start().await;
    let store = ApiObjects::start(fake.client.clone(), None);
    fake.whole("limit=500", 200, &list(&map(5, "1", r#","immutable":true"#)));
    assert!(store.config_map("n", "c").await.unwrap().is_some());
    assert!(store.config_map("n", "c").await.unwrap().is_some());
    assert_eq!(fake.asked("configmaps", 1).await.len(), 1);
}

#[tokio::test]
async fn a_refusal_is_told_and_an_archive_serves_while_the_server_is_away() {
    let fake = Fake::start().await;
    for _ in 0..5 {
        fake.whole("secrets", 403, r#"{"message":"no relationship found"}"#);
    }
    let store = ApiObjects::start(fake.client.clone(), None);
    let error = store.secret("n", "s").await.unwrap_err();
    assert!(error.to_string().contains("no relationship found"), "{error}");

    let archive = Arc::new(Archive::default());
    let key = ArchiveKey { kind: "ConfigMap", namespace: "n".into(), name: "c".into() };
    archive.put(&key, map(1, "kept", "").into_bytes(), false);
    let store = ApiObjects::start(fake.client.clone(), Some(archive));
    assert_eq!(store.config_map("n", "c").await.unwrap().unwrap().data.as_ref().unwrap()["k"], "kept");
}

#[tokio::test]
async fn a_token_is_asked_for_once_while_fresh_and_served_while_the_server_is_away() {
    let fake = Fake::start().await;
    let store = ApiObjects::start(fake.client.clone(), None);
    let answer = |token: &str, expires: &str| {
        format!(r#"{{"spec":{{"audiences":[]}},"status":{{"token":"{token}","expirationTimestamp":"{expires}"}}}}"#)
    };
    let query = |audience: &str| TokenQuery {
        service_account: "default".into(),
        audience: audience.into(),
        expiration_seconds: 3600,
        kept: true,
    };
    fake.whole("POST", 201, &answer("t1", "2999-01-01T00:00:00Z"));
    for _ in 0..2 {
        assert_eq!(store.token(&pod(), &query("")).await.unwrap().token, "t1");
    }
    assert_eq!(fake.asked("serviceaccounts/default/token", 1).await.len(), 1);
    // One that is expired already: asked for again each time, served when that fails.
    fake.whole("POST", 201, &answer("old", "2001-01-01T00:00:00Z"));
    assert_eq!(store.token(&pod(), &query("a")).await.unwrap().token, "old");
    assert_eq!(store.token(&pod(), &query("a")).await.unwrap().token, "old");
    fake.whole("POST", 403, "{}");
    assert!(store.token(&pod(), &query("a")).await.is_err());
}

#[tokio::test]
async fn a_first_token_may_be_refused_for_a_moment() {
    let fake = Fake::start().await;
    let store = ApiObjects::start(fake.client.clone(), None);
    let query =
        TokenQuery { service_account: "default".into(), audience: String::new(), expiration_seconds: 3600, kept: true };
    let unknown = r#"{"message":"no relationship found between node \"n\" and this object"}"#;
    fake.whole("POST", 403, unknown);
    fake.whole("POST", 404, r#"{"message":"pods \"p\" not found"}"#);
    fake.whole(
        "POST",
        201,
        r#"{"spec":{"audiences":[]},"status":{"token":"t","expirationTimestamp":"2999-01-01T00:00:00Z"}}"#,
    );
    assert_eq!(store.token(&pod(), &query).await.unwrap().token, "t");
    // What stays refused is told, and so is anything else at once.
    let other = TokenQuery { audience: "other".into(), ..query };
    for _ in 0..5 {
        fake.whole("POST", 403, unknown);
    }
    let error = store.token(&pod(), &other).await.unwrap_err();
    assert!(error.message.contains("no relationship found"), "{error}");
    fake.whole("POST", 422, r#"{"message":"may not specify a duration less than 10 minutes"}"#);
    assert!(store.token(&pod(), &other).await.unwrap_err().message.contains("10 minutes"));
    assert_eq!(fake.asked("POST", 9).await.len(), 9);
}

#[tokio::test]
async fn services_are_the_namespaces_own_and_kubernetes() {
    let fake = Fake::start().await;
    let store = ApiObjects::start(fake.client.clone(), None);
    let service =
        |namespace: &str, name: &str| format!(r#"{{"metadata":{{"name":"{name}","namespace":"{namespace}"}}}}"#);
    let all = [("default", "kubernetes"), ("default", "x"), ("n", "db"), ("n", "kubernetes")];
    let all = all.map(|(namespace, name)| service(namespace, name)).join(",");
    fake.whole("limit=500", 200, &list(&all));
    let _open = fake.open("watch=true", 200);
    for (namespace, told) in [
        ("n", ["n/db", "n/kubernetes", "default/kubernetes"].as_slice()),
        ("default", ["default/kubernetes", "default/x"].as_slice()),
    ] {
        let services = store.services(namespace).await.unwrap();
        let names = services.iter().map(|service| {
            let metadata = &service.metadata;
            format!("{}/{}", metadata.namespace.as_deref().unwrap(), metadata.name.as_deref().unwrap())
        });
        assert_eq!(names.collect::<Vec<_>>(), told);
    }
}

#[tokio::test]
async fn what_was_had_once_serves_without_the_api_server() {
    let fake = Fake::start().await;
    let archive = Arc::new(Archive::default());
    let store = ApiObjects::start(fake.client.clone(), Some(archive.clone()));
    let query =
        TokenQuery { service_account: "default".into(), audience: String::new(), expiration_seconds: 600, kept: true };
    let service = r#"{"metadata":{"name":"db","namespace":"n"},"spec":{"clusterIP":"10.0.0.9","ports":[{"port":1}]}}"#;
    fake.whole("POST", 201, r#"{"spec":{},"status":{"token":"t","expirationTimestamp":"2001-01-01T00:00:00Z"}}"#);
    fake.whole("configmaps", 200, &list(&map(5, "1", "")));
    let _maps = fake.open("configmaps?watch", 200);
    fake.whole("services?limit", 200, &list(service));
    let _services = fake.open("services?watch", 200);
    fake.whole("runtimeclasses/r", 200, r#"{"metadata":{"name":"r"},"handler":"runc"}"#);
    let claim = r#"{"metadata":{"name":"c"},"spec":{"volumeName":"v"},"status":{"phase":"Bound"}}"#;
    fake.whole("persistentvolumeclaims/c", 200, claim);
    fake.whole("persistentvolumes/v", 200, r#"{"metadata":{"name":"v"}}"#);
    let all = async |store: &dyn ObjectStore| {
        let map = store.config_map("n", "c").await.unwrap().unwrap();
        assert_eq!(map.data.as_ref().unwrap()["k"], "1");
        assert_eq!(store.token(&pod(), &query).await.unwrap().token, "t");
        let services = store.services("n").await.unwrap();
        let spec = services.iter().map(|one| one.spec.clone().unwrap().cluster_ip.unwrap()).collect::<Vec<_>>();
        assert_eq!(spec, ["10.0.0.9"]);
        assert_eq!(store.runtime_handler("r").await.unwrap().as_deref(), Some("runc"));
        let claim = store.claim("n", "c").await.unwrap().unwrap();
        assert_eq!(claim.volume.unwrap().metadata.name.as_deref(), Some("v"));
    };
    all(&store).await;
    // What the node asked for itself is not kept, whatever else the two have in common.
    let own = TokenQuery { kept: false, ..query.clone() };
    fake.whole("POST", 201, r#"{"spec":{},"status":{"token":"own","expirationTimestamp":"2001-01-01T00:00:00Z"}}"#);
    assert_eq!(store.token(&pod(), &own).await.unwrap().token, "own");
    let tokens = archive.0.lock().unwrap().iter().filter(|(key, _)| key.kind == "Token").count();
    assert_eq!(tokens, 1);
    assert!(ArchivedObjects::new(Some(archive.clone())).token(&pod(), &own).await.is_err());
    // Another agent, at a server that fails; and one that has no connection at all.
    all(&ApiObjects::start(fake.client.clone(), Some(archive.clone()))).await;
    let archived = ArchivedObjects::new(Some(archive.clone()));
    all(&archived).await;
    let missing = store.secret("n", "s").await.unwrap_err().to_string();
    assert!(missing.contains("--state-key-file"), "{missing}");
    assert!(archived.secret("n", "s").await.unwrap_err().to_string().contains("--state-key-file"));
    // What was the pod's alone goes with it.
    let object = serde_json::json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"containers": [{"name": "a", "volumeMounts": [
            {"name": "c", "mountPath": "/c"}, {"name": "t", "mountPath": "/t"}]}], "volumes": [
            {"name": "c", "persistentVolumeClaim": {"claimName": "c"}},
            {"name": "t", "projected": {"sources": [
                {"serviceAccountToken": {"path": "t", "expirationSeconds": 600}}]}},
        ]},
    });
    store.forget(&longshore_core::manifest::from_api(&serde_json::from_value(object).unwrap()).unwrap());
    let mut kinds: Vec<&str> = archive.0.lock().unwrap().iter().map(|(key, _)| key.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, ["ConfigMap", "RuntimeClass"]);
    assert!(archived.token(&pod(), &query).await.is_err());
}

#[tokio::test]
async fn trust_bundles_are_found_again_in_the_version_that_an_upgraded_server_has() {
    let fake = Fake::start().await;
    let store = ApiObjects::start(fake.client.clone(), None);
    let known = r#"{"resources":[{"name":"clustertrustbundles"}]}"#;
    let text = |word: &str| pem::encode("CERTIFICATE", word.as_bytes());
    let bundle = |word: &str| {
        let spec = serde_json::json!({"trustBundle": text(word)});
        list(&format!(r#"{{"metadata":{{"name":"b","resourceVersion":"5"}},"spec":{spec}}}"#))
    };
    let query = TrustBundleQuery::Name("b".to_owned());
    fake.whole("v1alpha1/clustertrustbundles?limit", 200, &bundle("old"));
    let watch = fake.open("v1alpha1/clustertrustbundles?watch", 200);
    fake.whole("io/v1alpha1", 200, known);
    fake.whole("io/v1beta1", 404, "{}");
    fake.whole("io/v1", 404, "{}");
    assert_eq!(store.trust_bundles(&query).await.unwrap(), Some(text("old")));

    for _ in 0..10 {
        fake.whole("v1alpha1/clustertrustbundles", 404, "{}");
    }
    fake.whole("v1beta1/clustertrustbundles?limit", 200, &bundle("new"));
    let _watch = fake.open("v1beta1/clustertrustbundles?watch", 200);
    fake.whole("io/v1beta1", 200, known);
    fake.whole("io/v1", 404, "{}");
    let mut changes = store.changes();
    drop(watch);
    let found = async {
        while store.trust_bundles(&query).await.unwrap() != Some(text("new")) {
            changes.next().await.unwrap();
        }
    };
    timeout(LIMIT, found).await.unwrap();
}
