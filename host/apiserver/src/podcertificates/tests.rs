//! Certificates at a scripted API server; a real one and a signer are in the end-to-end tests.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1;
use longshore_core::ports::objects::{CertificateQuery, CertificateWord, ObjectStore};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::request::Issued;
use super::{State, due};
use crate::fake::Fake;
use crate::kept::KeptCertificate;
use crate::objects::tests::Archive;
use crate::{ApiObjects, ArchivedObjects, pem};

const LIMIT: Duration = Duration::from_secs(20);
const PAST: &str = "2020-01-01T00:00:00Z";
const FAR: &str = "2999-01-01T00:00:00Z";

fn pod() -> v1::Pod {
    let object = json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"nodeName": "node", "serviceAccountName": "sa", "containers": [
            {"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}], "volumes": [
            {"name": "v", "projected": {"sources": [{"podCertificate": {"signerName": "a.b/c", "keyType": "ED25519"}}]}}]},
    });
    serde_json::from_value(object).unwrap()
}

fn query() -> CertificateQuery {
    let source = json!({"signerName": "a.b/c", "keyType": "ED25519", "credentialBundlePath": "b"});
    CertificateQuery { volume: "v".to_owned(), index: 0, source: serde_json::from_value(source).unwrap() }
}

fn chain(text: &str) -> String {
    pem::encode("CERTIFICATE", text.as_bytes())
}

fn serves(fake: &Fake) {
    fake.whole("certificates.k8s.io/v1", 404, "{}");
    fake.whole("certificates.k8s.io/v1beta1", 200, r#"{"resources":[{"name":"podcertificaterequests"}]}"#);
    fake.whole("/version", 200, r#"{"major":"1","minor":"36","gitVersion":"v1.36.3"}"#);
}

/// What is looked up for a request.
fn knows(fake: &Fake) {
    fake.whole("serviceaccounts/sa", 200, r#"{"metadata":{"name":"sa","uid":"su"}}"#);
    fake.whole("nodes/node", 200, r#"{"metadata":{"name":"node","uid":"nu"}}"#);
}

fn request(name: &str, status: Value) -> String {
    json!({"metadata": {"name": name, "namespace": "n", "resourceVersion": "5"}, "status": status}).to_string()
}

fn decided(condition: &str, more: Value) -> Value {
    let mut status = more;
    status["conditions"] = json!([{"type": condition, "status": "True", "reason": "Why", "message": "so",
        "lastTransitionTime": PAST}]);
    status
}

fn issued(text: &str, refresh: &str, expires: &str) -> Value {
    decided("Issued", json!({"certificateChain": chain(text), "beginRefreshAt": refresh, "notAfter": expires}))
}

fn list_of(items: &[String]) -> String {
    format!(r#"{{"metadata":{{"resourceVersion":"5"}},"items":[{}]}}"#, items.join(","))
}

fn lists(fake: &Fake, items: &[String]) {
    fake.whole("podcertificaterequests?limit", 200, &list_of(items));
}

#[tokio::test]
async fn a_certificate_is_issued_replaced_in_time_and_kept() {
    let fake = Fake::start().await;
    let archive = Arc::new(Archive::default());
    let store = ApiObjects::start(fake.client.clone(), Some(archive.clone()));
    serves(&fake);
    knows(&fake);
    fake.whole("POST", 201, &request("req-1", json!({})));
    // It comes while it is waited for, and its refresh is due at once.
    lists(&fake, &[request("req-1", json!({}))]);
    let watch = fake.open("podcertificaterequests?watch", 200);
    let event = format!(r#"{{"type":"MODIFIED","object":{}}}"#, request("req-1", issued("one", PAST, PAST)));
    watch.unbounded_send(format!("{event}\n")).unwrap();
    knows(&fake);
    let second = fake.open("POST", 201);
    let mut changes = store.changes();
    let first = store.certificate(&pod(), &query()).await.certificate.unwrap();
    assert_eq!(first.chain, chain("one"));
    assert!(first.key.starts_with("-----BEGIN PRIVATE KEY-----\n"));
    let asked = fake.asked("podcertificaterequests?", 2).await;
    assert!(asked.iter().all(|one| one.contains("fieldSelector=spec.nodeName%3Dnode")), "{asked:?}");
    fake.asked("POST", 2).await;

    lists(&fake, &[request("req-1", issued("one", PAST, PAST)), request("req-2", issued("two", FAR, FAR))]);
    let _watch = fake.open("podcertificaterequests?watch", 200);
    second.unbounded_send(request("req-2", json!({}))).unwrap();
    drop(second);
    let next = async {
        loop {
            changes.next().await.unwrap();
            let now = store.certificate(&pod(), &query()).await.certificate.unwrap();
            if now.chain == chain("two") {
                return now;
            }
        }
    };
    let next = timeout(LIMIT, next).await.unwrap();
    assert_ne!(next.key, first.key);

    // Another agent needs no API server for it, nor does it ask for another one.
    let again = ApiObjects::start(fake.client.clone(), Some(archive.clone()));
    assert_eq!(again.certificate(&pod(), &query()).await.certificate.unwrap(), next);
    let archived = ArchivedObjects::new(Some(archive));
    assert_eq!(archived.certificate(&pod(), &query()).await.certificate.unwrap(), next);
    assert_eq!(fake.asked("POST", 2).await.len(), 2);
    store.forget(&longshore_core::manifest::from_api(&pod()).unwrap());
    let gone = archived.certificate(&pod(), &query()).await.certificate.unwrap_err();
    assert!(gone.message.contains("--state-key-file"), "{gone}");
}

#[tokio::test]
async fn a_refusal_is_final_and_told_once() {
    let fake = Fake::start().await;
    let store = ApiObjects::start(fake.client.clone(), None);
    serves(&fake);
    knows(&fake);
    fake.whole("POST", 201, &request("req-1", json!({})));
    lists(&fake, &[request("req-1", decided("Denied", json!({})))]);
    let _watch = fake.open("podcertificaterequests?watch", 200);
    let CertificateWord { certificate, warnings } = store.certificate(&pod(), &query()).await;
    assert_eq!(
        certificate.unwrap_err().message,
        r#"PodCertificateRequest was permanently denied: reason="Why" message="so""#
    );
    assert_eq!(warnings[0].reason, "Denied");
    assert_eq!(warnings[0].message, r#"PodCertificateRequest n/req-1 was denied, reason="Why", message="so""#);
    let again = store.certificate(&pod(), &query()).await;
    assert!(again.certificate.is_err() && again.warnings.is_empty());
    assert_eq!(fake.asked("POST", 1).await.len(), 1);
}

#[tokio::test]
async fn who_is_waited_for_is_told() {
    let fake = Fake::start().await;
    let store = ApiObjects::start(fake.client.clone(), None);
    serves(&fake);
    knows(&fake);
    fake.whole("POST", 201, &request("req-1", json!({})));
    lists(&fake, &[request("req-1", json!({}))]);
    let _watch = fake.open("podcertificaterequests?watch", 200);
    let error = store.certificate(&pod(), &query()).await.certificate.unwrap_err();
    let wanted = "credential bundle is not issued yet: PodCertificateRequest n/req-1 waits for its signer, a.b/c";
    assert_eq!(error.message, wanted);
}

#[tokio::test]
async fn a_server_without_them_is_told_of_with_the_gate() {
    let fake = Fake::start().await;
    let store = ApiObjects::start(fake.client.clone(), None);
    for _ in 0..60 {
        fake.whole("certificates.k8s.io", 404, "{}");
    }
    let error = store.certificate(&pod(), &query()).await.certificate.unwrap_err();
    let wanted = "credential bundle is not issued yet: the API server does not serve PodCertificateRequests: it needs \
                  --feature-gates=PodCertificateRequest=true";
    assert!(error.message.starts_with(wanted), "{error}");
}

#[test]
fn refreshes_are_spread_but_never_to_the_end() {
    let issued = |refresh: i64, expires: i64| Issued {
        chain: String::new(),
        refresh: Timestamp::constant(refresh, 0),
        expires: Timestamp::constant(expires, 0),
    };
    let after = |issued: &Issued, random| due(issued, random).duration_since(issued.refresh).as_secs();
    assert_eq!(after(&issued(0, 100_000), 0.0), 0);
    assert_eq!(after(&issued(0, 100_000), 1.0), 300);
    assert_eq!(after(&issued(0, 600), 1.0), 60);
    assert_eq!(after(&issued(600, 0), 1.0), 0);
}

#[test]
fn what_is_late_is_told_once() {
    let time = |seconds| Timestamp::constant(seconds, 0);
    let kept = KeptCertificate {
        key: String::new(),
        chain: String::new(),
        refresh: time(0),
        due: time(0),
        expires: time(3600),
    };
    let mut state = State { at_hand: Some(kept), trouble: Some("why".to_owned()), ..State::default() };
    assert!(!state.look_at_the_clock(time(600)));
    assert!(state.look_at_the_clock(time(601)));
    assert!(!state.look_at_the_clock(time(3600)));
    assert!(state.look_at_the_clock(time(3600).checked_add(SignedDuration::from_secs(1)).unwrap()));
    assert!(!state.look_at_the_clock(time(9999)));
    let told: Vec<_> = state.warnings.iter().map(|warning| format!("{} {}", warning.reason, warning.message)).collect();
    assert_eq!(
        told,
        [
            "CertificateOverdueForRefresh PodCertificate refresh overdue: why",
            "CertificateExpired PodCertificate expired: why"
        ]
    );
}

#[tokio::test]
async fn a_server_that_is_upgraded_meanwhile_is_asked_again_in_its_new_version() {
    let fake = Fake::start().await;
    let store = ApiObjects::start(fake.client.clone(), None);
    let known = r#"{"resources":[{"name":"podcertificaterequests"}]}"#;
    fake.whole("v1alpha1/podcertificaterequests?limit", 200, &list_of(&[request("req-1", json!({}))]));
    let watch = fake.open("v1alpha1/podcertificaterequests?watch", 200);
    fake.whole("POST", 201, &request("req-1", json!({})));
    fake.whole("io/v1alpha1", 200, known);
    fake.whole("io/v1beta1", 404, "{}");
    fake.whole("io/v1", 404, "{}");
    knows(&fake);
    let mut changes = store.changes();
    let waits = store.certificate(&pod(), &query()).await.certificate.unwrap_err();
    let message = "credential bundle is not issued yet: PodCertificateRequest n/req-1 waits for its signer, a.b/c";
    assert_eq!(waits.message, message);
    fake.asked("v1alpha1/podcertificaterequests?watch", 1).await;

    for _ in 0..10 {
        fake.whole("v1alpha1/podcertificaterequests", 404, "{}");
    }
    let issued = request("req-2", issued("one", FAR, FAR));
    fake.whole("v1beta1/podcertificaterequests?limit", 200, &list_of(&[issued]));
    let _watch = fake.open("v1beta1/podcertificaterequests?watch", 200);
    fake.whole("POST", 201, &request("req-2", json!({})));
    fake.whole("io/v1beta1", 200, known);
    fake.whole("io/v1", 404, "{}");
    fake.whole("/version", 200, r#"{"major":"1","minor":"36","gitVersion":"v1.36.3"}"#);
    knows(&fake);
    drop(watch);
    let found = async {
        loop {
            if let Ok(found) = store.certificate(&pod(), &query()).await.certificate {
                return found;
            }
            changes.next().await.unwrap();
        }
    };
    assert_eq!(timeout(LIMIT, found).await.unwrap().chain, chain("one"));
    let posts = fake.asked("POST", 2).await;
    assert!(posts[0].contains("/v1alpha1/") && posts[1].contains("/v1beta1/"), "{posts:?}");
}
