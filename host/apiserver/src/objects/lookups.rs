//! Services and trust bundles, followed as whole lists once somebody asks; claims and runtime classes, one GET each. What
//! was found last serves while the API server is away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::Metadata;
use k8s_openapi::api::core::v1;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use longshore_core::ports::archive::ArchiveKey;
use longshore_core::ports::cluster::ApiError;
use longshore_core::ports::objects::{BoundClaim, ObjectError, TrustBundleQuery};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, OnceCell, watch};
use tokio::time::Instant;

use super::whole::{Listed, Whole};
use crate::kept::{Kept, key};
use crate::pem;
use crate::refusal::unless_repeated;
use crate::requests::{Requests, encoded};

/// How long a runtime class is believed.
const CLASS_AGE: Duration = Duration::from_secs(30);
/// Runtime classes that are remembered.
const MAX_CLASSES: usize = 256;

/// See the file's head.
pub(super) struct Lookups {
    requests: Requests,
    kept: Kept,
    changed: watch::Sender<u64>,
    services: OnceCell<Whole<v1::Service>>,
    bundles: Mutex<Option<Arc<Whole<Bundle>>>>,
    classes: Mutex<BTreeMap<String, (Instant, Option<String>)>>,
}

fn failure(kind: &'static str, namespace: &str, name: &str, message: impl ToString) -> ObjectError {
    ObjectError { kind, namespace: namespace.to_owned(), name: name.to_owned(), message: message.to_string() }
}

/// Why there is no answer of the API server's.
struct Unanswered {
    /// Whether it may have one later.
    passing: bool,
    told: ObjectError,
}

impl Unanswered {
    fn new(kind: &'static str, namespace: &str, name: &str, error: &ApiError) -> Unanswered {
        Unanswered { passing: error.is_passing(), told: failure(kind, namespace, name, error) }
    }
}

impl Lookups {
    pub(super) fn new(requests: Requests, kept: Kept, changed: watch::Sender<u64>) -> Self {
        Self {
            requests,
            kept,
            changed,
            services: OnceCell::new(),
            bundles: Mutex::default(),
            classes: Mutex::default(),
        }
    }

    /// As [`longshore_core::ports::objects::ObjectStore::services`]. Changes of services wake nobody: variables are
    /// those of a container's start.
    pub(super) async fn services(&self, namespace: &str) -> Option<Vec<Arc<v1::Service>>> {
        let start = || async {
            let path = "/api/v1/services".to_owned();
            Whole::start(self.requests.clone(), path, String::new(), watch::Sender::new(0))
        };
        let whole = self.services.get_or_init(start).await;
        let key = key::services(namespace);
        if whole.is_out_of_reach().await
            && let Some(kept) = self.kept.get(&key).await
        {
            return Some(kept);
        }
        let found = whole
            .look(|listed| {
                let own = listed.iter().filter(|((of, _), _)| of == namespace).map(|(_, service)| Arc::clone(service));
                let mut services: Vec<Arc<v1::Service>> = own.collect();
                if namespace != "default" {
                    services.extend(listed.get(&("default".to_owned(), "kubernetes".to_owned())).cloned());
                }
                services
            })
            .await;
        if let Some(services) = &found {
            let bare: Vec<v1::Service> = services.iter().map(|service| bare(service)).collect();
            self.kept.put(&key, &bare, false);
        }
        found
    }

    /// A refusal is the answer only when it is repeated.
    pub(super) async fn service_account(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<v1::ServiceAccount>, ObjectError> {
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{}", encoded(namespace), encoded(name));
        let refused = |error: &ApiError| matches!(error, ApiError::Forbidden { .. });
        let answer = unless_repeated(refused, || self.requests.find(&path)).await;
        answer.map_err(|error| failure("ServiceAccount", namespace, name, error))
    }

    pub(super) async fn claim(&self, namespace: &str, name: &str) -> Result<Option<BoundClaim>, ObjectError> {
        let answer = self.ask_for_claim(namespace, name).await;
        self.or_kept(&key::claim(namespace, name), answer).await
    }

    /// An answer of the API server's, which is kept; or what was kept of an earlier one, while there is none.
    async fn or_kept<T: Serialize + DeserializeOwned>(
        &self,
        key: &ArchiveKey,
        answer: Result<Option<T>, Unanswered>,
    ) -> Result<Option<T>, ObjectError> {
        match answer {
            Ok(Some(found)) => {
                self.kept.put(key, &found, false);
                Ok(Some(found))
            }
            Ok(None) => {
                self.kept.remove(key);
                Ok(None)
            }
            Err(Unanswered { passing, told }) => match self.kept.get(key).await {
                Some(kept) if passing => Ok(Some(kept)),
                _ => Err(told),
            },
        }
    }

    async fn ask_for_claim(&self, namespace: &str, name: &str) -> Result<Option<BoundClaim>, Unanswered> {
        let failed = |error: ApiError| Unanswered::new("PersistentVolumeClaim", namespace, name, &error);
        let path = format!("/api/v1/namespaces/{}/persistentvolumeclaims/{}", encoded(namespace), encoded(name));
        let Some(claim) = self.requests.find::<v1::PersistentVolumeClaim>(&path).await.map_err(failed)? else {
            return Ok(None);
        };
        let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
        let volume = match volume.filter(|_| bound) {
            Some(volume) => {
                let path = format!("/api/v1/persistentvolumes/{}", encoded(&volume));
                let failed = |error: ApiError| Unanswered::new("PersistentVolume", "", &volume, &error);
                self.requests.find::<v1::PersistentVolume>(&path).await.map_err(failed)?
            }
            None => None,
        };
        Ok(Some(BoundClaim { claim, volume }))
    }

    /// One that is known is served while the API server is away.
    pub(super) async fn runtime_handler(&self, class: &str) -> Result<Option<String>, ObjectError> {
        let known = self.classes.lock().await.get(class).cloned();
        if let Some((at, handler)) = &known
            && handler.is_some()
            && at.elapsed() < CLASS_AGE
        {
            return Ok(handler.clone());
        }
        let path = format!("/apis/node.k8s.io/v1/runtimeclasses/{}", encoded(class));
        let answer = match self.requests.find::<RuntimeClass>(&path).await {
            Ok(found) => {
                let handler = found.map(|found| found.handler);
                let mut classes = self.classes.lock().await;
                if classes.len() >= MAX_CLASSES {
                    classes.clear();
                }
                classes.insert(class.to_owned(), (Instant::now(), handler.clone()));
                Ok(handler)
            }
            Err(error) => match known {
                Some((_, handler @ Some(_))) if error.is_passing() => return Ok(handler),
                _ => Err(Unanswered::new("RuntimeClass", "", class, &error)),
            },
        };
        self.or_kept(&key::class(class), answer).await
    }

    pub(super) async fn trust_bundles(&self, query: &TrustBundleQuery) -> Result<Option<String>, ObjectError> {
        let name = match query {
            TrustBundleQuery::Name(name) => name,
            TrustBundleQuery::Signer { signer, .. } => signer,
        };
        let key = key::bundles(query);
        let message = match self.bundles().await {
            Err(error) if !error.is_passing() => return Err(failure("ClusterTrustBundle", "", name, error)),
            Err(error) => error.to_string(),
            Ok(whole) => {
                let picks = |listed: &Listed<Bundle>| -> Vec<Arc<Bundle>> {
                    listed.values().filter(|bundle| picks(query, bundle)).cloned().collect()
                };
                if let Some(picked) = whole.look(picks).await {
                    if picked.is_empty() {
                        self.kept.remove(&key);
                        return Ok(None);
                    }
                    let text = joined(picked.iter().map(|bundle| bundle.spec.trust_bundle.as_str()));
                    self.kept.put(&key, &text, false);
                    return Ok(Some(text));
                }
                "the API server has not listed any yet".to_owned()
            }
        };
        match self.kept.get(&key).await {
            Some(text) => Ok(Some(text)),
            None => Err(failure("ClusterTrustBundle", "", name, message)),
        }
    }

    /// The list of bundles, of the newest version that the server has: after an upgrade it may be another one.
    async fn bundles(&self) -> Result<Arc<Whole<Bundle>>, ApiError> {
        let mut bundles = self.bundles.lock().await;
        if let Some(known) = bundles.as_ref().filter(|known| !known.is_absent()) {
            return Ok(Arc::clone(known));
        }
        if let Some(version) = self.requests.certificates_version("clustertrustbundles").await? {
            let path = format!("/apis/certificates.k8s.io/{version}/clustertrustbundles");
            let whole = Arc::new(Whole::start(self.requests.clone(), path, String::new(), self.changed.clone()));
            *bundles = Some(Arc::clone(&whole));
            return Ok(whole);
        }
        let message = "the API server does not serve ClusterTrustBundles".to_owned();
        Err(ApiError::Refused { code: 404, message })
    }
}

/// What of a Service becomes variables.
fn bare(service: &v1::Service) -> v1::Service {
    let metadata = ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        ..ObjectMeta::default()
    };
    let spec = service.spec.as_ref().map(|spec| v1::ServiceSpec {
        cluster_ip: spec.cluster_ip.clone(),
        ports: spec.ports.clone(),
        ..v1::ServiceSpec::default()
    });
    v1::Service { metadata, spec, status: None }
}

/// A ClusterTrustBundle of any version: they differ in nothing that matters here.
#[derive(Deserialize)]
struct Bundle {
    metadata: ObjectMeta,
    spec: BundleSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BundleSpec {
    signer_name: Option<String>,
    trust_bundle: String,
}

impl k8s_openapi::Resource for Bundle {
    const API_VERSION: &'static str = "certificates.k8s.io/v1";
    const GROUP: &'static str = "certificates.k8s.io";
    const KIND: &'static str = "ClusterTrustBundle";
    const VERSION: &'static str = "v1";
    const URL_PATH_SEGMENT: &'static str = "clustertrustbundles";
    type Scope = k8s_openapi::ClusterResourceScope;
}

impl Metadata for Bundle {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

fn picks(query: &TrustBundleQuery, bundle: &Bundle) -> bool {
    match query {
        TrustBundleQuery::Name(name) => bundle.metadata.name.as_ref() == Some(name),
        TrustBundleQuery::Signer { signer, selector } => {
            bundle.spec.signer_name.as_ref() == Some(signer)
                && selector.as_ref().is_some_and(|selector| {
                    selects(selector, bundle.metadata.labels.as_ref().unwrap_or(&BTreeMap::new()))
                })
        }
    }
}

/// `metav1.LabelSelectorAsSelector`: an empty one picks everything; an unknown operator nothing.
fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let mut labelled = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    labelled.all(|(key, value)| labels.get(key) == Some(value))
        && expressions.all(|wanted| {
            let value = labels.get(&wanted.key);
            let listed = value.is_some_and(|value| wanted.values.iter().flatten().any(|one| one == value));
            match wanted.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// The certificates of all bundles, each once, without headers and words between; ordered by their digests, so that
/// nobody comes to rely on an order and no change of the volume comes from one.
fn joined<'a>(bundles: impl Iterator<Item = &'a str>) -> String {
    let ders = bundles.flat_map(|bundle| pem::decode(bundle, Some("CERTIFICATE")));
    let certificates: BTreeMap<[u8; 32], Vec<u8>> = ders.map(|der| (Sha256::digest(&der).into(), der)).collect();
    certificates.values().map(|der| pem::encode("CERTIFICATE", der)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_joined_once_each_and_without_their_order() {
        let a = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let b = "words\n-----BEGIN CERTIFICATE-----\nName: x\n\nBBBB\n-----END CERTIFICATE-----\nmore";
        let one = joined([a, b].into_iter());
        assert_eq!(one, joined([b, a, a].into_iter()));
        assert_eq!(one.matches("BEGIN CERTIFICATE").count(), 2);
        assert!(!one.contains("Name") && !one.contains("words"));
    }

    #[test]
    fn a_selector_picks_by_labels() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        let selector = |json: &str| serde_json::from_str::<LabelSelector>(json).expect("a selector");
        for picked in [
            "{}",
            r#"{"matchLabels":{"a":"1"}}"#,
            r#"{"matchExpressions":[{"key":"a","operator":"In","values":["1","2"]}]}"#,
            r#"{"matchExpressions":[{"key":"b","operator":"NotIn","values":["1"]}]}"#,
        ] {
            assert!(selects(&selector(picked), &labels), "{picked}");
        }
        for not in [r#"{"matchLabels":{"a":"2"}}"#, r#"{"matchExpressions":[{"key":"b","operator":"Exists"}]}"#] {
            assert!(!selects(&selector(not), &labels), "{not}");
        }
    }
}
