//! What pods refer to, wherever it is kept: ConfigMaps, Secrets, Services, tokens, certificates, claims.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde::{Deserialize, Serialize};

use crate::pod::{Pod, PodId};
use crate::volume::ObjectKind;

/// Why an object cannot be told to exist or not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {namespace}/{name}: {message}")]
pub struct ObjectError {
    /// `ConfigMap`, `Secret` and so on.
    pub kind: &'static str,
    /// Its namespace, empty for what has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What went wrong.
    pub message: String,
}

/// A token of a ServiceAccount to ask for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenQuery {
    /// The ServiceAccount, in the pod's namespace.
    pub service_account: String,
    /// Who is to accept it; empty for the API server itself.
    pub audience: String,
    /// How long it is to be good, in seconds.
    pub expiration_seconds: i64,
    /// Whether it may be kept on disk, sealed, for times without the API server: so for what pods' volumes hold, and
    /// never for what the node itself asks for and uses at once, which nothing would take from there again.
    pub kept: bool,
}

/// A token, until when it is good.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The token.
    pub token: String,
    /// Until when.
    pub expires: Timestamp,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token(… until {})", self.expires)
    }
}

/// ClusterTrustBundles to join, as `projected.sources[].clusterTrustBundle` names them.
#[derive(Clone, Debug, PartialEq)]
pub enum TrustBundleQuery {
    /// By name.
    Name(String),
    /// All of a signer that a selector picks; no selector picks none.
    Signer {
        /// `spec.signerName`.
        signer: String,
        /// Which of them.
        selector: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>,
    },
}

/// A pod's certificate to ask for, as `projected.sources[].podCertificate` describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct CertificateQuery {
    /// Name of the volume.
    pub volume: String,
    /// Index of the source in the volume.
    pub index: usize,
    /// The source.
    pub source: v1::PodCertificateProjection,
}

/// A certificate for a pod, with the key that was made for it here.
#[derive(Clone, PartialEq, Eq)]
pub struct PodCertificate {
    /// The private key, PEM.
    pub key: String,
    /// The chain, leaf first, PEM.
    pub chain: String,
}

impl std::fmt::Debug for PodCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PodCertificate(…)")
    }
}

/// What is known of a pod's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateWord {
    /// The certificate in use, or why there is none (yet), in the kubelet's words.
    pub certificate: Result<PodCertificate, ObjectError>,
    /// What the pod's owner is to be told of, each once.
    pub warnings: Vec<CertificateWarning>,
}

/// An event of a pod's certificate (`pkg/kubelet/podcertificate`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateWarning {
    /// `Denied`, `Failed`, `CertificateOverdueForRefresh` or `CertificateExpired`.
    pub reason: &'static str,
    /// The event's message.
    pub message: String,
}

/// A claim with the volume that it is bound to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BoundClaim {
    /// The claim.
    pub claim: v1::PersistentVolumeClaim,
    /// Its volume; `None` while it is not bound.
    pub volume: Option<v1::PersistentVolume>,
}

/// What pods refer to. Where there is no cluster only ConfigMaps and Secrets can exist; the rest answers as
/// [`absent`] does.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// The ConfigMap, `None` when there is none.
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<v1::ConfigMap>>, ObjectError>;

    /// The Secret, `None` when there is none.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<v1::Secret>>, ObjectError>;

    /// Whether there is a ConfigMap, or a Secret, of that name.
    async fn holds(&self, kind: ObjectKind, namespace: &str, name: &str) -> Result<bool, ObjectError> {
        Ok(match kind {
            ObjectKind::ConfigMap => self.config_map(namespace, name).await?.is_some(),
            ObjectKind::Secret => self.secret(namespace, name).await?.is_some(),
        })
    }

    /// Yields whenever any object may have changed, a token or certificate is due, and so on.
    fn changes(&self) -> BoxStream<'static, ()>;

    /// Says which objects a pod refers to, so that they are watched from now on; what no pod holds is dropped. An
    /// empty set lets go of all.
    fn hold(&self, _pod: &PodId, _objects: &BTreeSet<(ObjectKind, String)>) {}

    /// The pod is gone from this node: what was issued to it, or kept for it alone, is forgotten.
    fn forget(&self, _pod: &Pod) {}

    /// Services that a pod of the namespace may see in its environment: those of the namespace, and `kubernetes` of
    /// `default`. `None` while they are not known yet.
    async fn services(&self, _namespace: &str) -> Option<Vec<Arc<v1::Service>>> {
        Some(Vec::new())
    }

    /// A token of a ServiceAccount, bound to the pod: the one at hand while it is fresh (80 % of its life, 24 h at most),
    /// a new one after.
    async fn token(&self, pod: &PodId, query: &TokenQuery) -> Result<Token, ObjectError> {
        Err(absent("ServiceAccount", &pod.namespace, &query.service_account))
    }

    /// A ServiceAccount, asked for anew at each call; `None` when there is no such account.
    async fn service_account(&self, namespace: &str, name: &str) -> Result<Option<v1::ServiceAccount>, ObjectError> {
        Err(absent("ServiceAccount", namespace, name))
    }

    /// The bundles' certificates, PEM, in an order that does not tell theirs; `None` when there are none.
    async fn trust_bundles(&self, query: &TrustBundleQuery) -> Result<Option<String>, ObjectError> {
        let name = match query {
            TrustBundleQuery::Name(name) => name,
            TrustBundleQuery::Signer { signer, .. } => signer,
        };
        Err(absent("ClusterTrustBundle", "", name))
    }

    /// The pod's certificate: asked for from the first call on, and refreshed in time; [`ObjectStore::changes`] tells of
    /// a new one.
    async fn certificate(&self, pod: &v1::Pod, query: &CertificateQuery) -> CertificateWord {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let certificate = Err(absent("PodCertificateRequest", namespace, &query.volume));
        CertificateWord { certificate, warnings: Vec::new() }
    }

    /// A claim and its volume; `None` when there is no such claim.
    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<BoundClaim>, ObjectError> {
        Err(absent("PersistentVolumeClaim", namespace, name))
    }

    /// The runtime handler of a RuntimeClass; `None` when there is no such class.
    async fn runtime_handler(&self, class: &str) -> Result<Option<String>, ObjectError> {
        Err(absent("RuntimeClass", "", class))
    }
}

/// The answer where there is no API server to ask.
pub fn absent(kind: &'static str, namespace: &str, name: &str) -> ObjectError {
    ObjectError {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        message: "there is no API server to ask for it".to_owned(),
    }
}
