//! What is kept of the API server for times without it: objects as JSON in an archive, under keys that are made here.
//!
//! [`ArchivedObjects`] serves from it alone, for as long as there is no connection at all.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::pod::{Pod, PodId};
use longshore_core::ports::archive::{ArchiveKey, ObjectArchive};
use longshore_core::ports::objects::{
    BoundClaim, CertificateQuery, CertificateWord, ObjectError, ObjectStore, PodCertificate, Token, TokenQuery,
    TrustBundleQuery, absent,
};
use longshore_core::volume::{self, IssuedKind};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The archive, where there is one.
#[derive(Clone, Default)]
pub(crate) struct Kept(pub(crate) Option<Arc<dyn ObjectArchive>>);

/// Whose object it is.
pub(crate) fn pod_id(pod: &v1::Pod) -> PodId {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let metadata = &pod.metadata;
    PodId { namespace: text(&metadata.namespace), name: text(&metadata.name), uid: text(&metadata.uid) }
}

/// A kind of things that are kept, and under which names.
pub(crate) mod key {
    use super::{ArchiveKey, PodId, TokenQuery, TrustBundleQuery};

    pub(crate) fn object(kind: &'static str, namespace: &str, name: &str) -> ArchiveKey {
        ArchiveKey { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// `None` for one that is not kept.
    pub(crate) fn token(pod: &PodId, query: &TokenQuery) -> Option<ArchiveKey> {
        let TokenQuery { service_account, audience, expiration_seconds, kept } = query;
        let name = || format!("{}/{service_account}/{expiration_seconds}/{audience}", pod.uid);
        kept.then(|| object("Token", &pod.namespace, &name()))
    }

    /// The certificate of a source of a pod's volume.
    pub(crate) fn certificate(pod: &PodId, volume: &str, index: usize) -> ArchiveKey {
        object("PodCertificate", &pod.namespace, &format!("{}/{volume}/{index}", pod.uid))
    }

    /// The Services that pods of a namespace see.
    pub(crate) fn services(namespace: &str) -> ArchiveKey {
        object("Services", namespace, "")
    }

    pub(crate) fn claim(namespace: &str, name: &str) -> ArchiveKey {
        object("PersistentVolumeClaim", namespace, name)
    }

    pub(crate) fn class(name: &str) -> ArchiveKey {
        object("RuntimeClass", "", name)
    }

    pub(crate) fn bundles(query: &TrustBundleQuery) -> ArchiveKey {
        // Fields of k8s-openapi's types are printed in the order in which they are declared.
        object("ClusterTrustBundles", "", &format!("{query:?}"))
    }
}

impl Kept {
    /// Whether there is an archive.
    pub(crate) fn exists(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn put<T: Serialize + ?Sized>(&self, key: &ArchiveKey, value: &T, secret: bool) {
        if let Some(archive) = &self.0
            && let Ok(bytes) = serde_json::to_vec(value)
        {
            archive.put(key, bytes, secret);
        }
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, key: &ArchiveKey) -> Option<T> {
        let bytes = self.0.as_ref()?.get(key).await?;
        serde_json::from_slice(&bytes).ok()
    }

    pub(crate) fn remove(&self, key: &ArchiveKey) {
        if let Some(archive) = &self.0 {
            archive.remove(key);
        }
    }

    /// Forgets what is kept for that pod alone.
    pub(crate) fn forget(&self, pod: &Pod) {
        for issued in volume::issued_references(pod) {
            match issued.kind {
                IssuedKind::Token(query) => {
                    if let Some(key) = key::token(&pod.id, &query) {
                        self.remove(&key);
                    }
                }
                IssuedKind::Certificate(_) => {
                    self.remove(&key::certificate(&pod.id, &issued.volume, issued.index));
                }
                IssuedKind::TrustBundles(_) => {}
            }
        }
        for claim in pod.spec().volumes.iter().flatten().filter_map(|of| volume::claim_of(pod, of)) {
            self.remove(&key::claim(&pod.id.namespace, &claim));
        }
    }

    /// What to say of a secret that is not here.
    pub(crate) fn advice(&self) -> &'static str {
        match &self.0 {
            Some(archive) if !archive.keeps_secrets() => {
                "; without a state key (--state-key-file) secrets are kept in memory only, and no copy of it is left"
            }
            _ => "",
        }
    }
}

/// A token as it is kept.
#[derive(Serialize, Deserialize)]
pub(crate) struct KeptToken {
    pub(crate) token: String,
    pub(crate) expires: Timestamp,
}

impl KeptToken {
    /// Warns of one that is good no longer: it is given all the same, so that the pod finds out by itself.
    pub(crate) fn into_token(self, pod: &PodId, query: &TokenQuery) -> Token {
        let Self { token, expires, .. } = self;
        if expires <= Timestamp::now() {
            tracing::warn!(%pod, account = query.service_account, expired = %expires, "an expired token is mounted");
        }
        Token { token, expires }
    }
}

/// A pod's certificate as it is kept.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct KeptCertificate {
    pub(crate) key: String,
    pub(crate) chain: String,
    /// When its signer wants it refreshed.
    pub(crate) refresh: Timestamp,
    /// When it is: the same, spread.
    pub(crate) due: Timestamp,
    pub(crate) expires: Timestamp,
}

impl KeptCertificate {
    pub(crate) fn certificate(&self) -> PodCertificate {
        PodCertificate { key: self.key.clone(), chain: self.chain.clone() }
    }
}

/// What pods refer to, from the archive alone.
pub struct ArchivedObjects {
    kept: Kept,
}

impl ArchivedObjects {
    /// Serves from that archive; without one it has nothing.
    pub fn new(archive: Option<Arc<dyn ObjectArchive>>) -> Self {
        Self { kept: Kept(archive) }
    }

    async fn look<T: DeserializeOwned>(&self, key: &ArchiveKey, advice: &str) -> Result<T, ObjectError> {
        self.kept.get(key).await.ok_or_else(|| not_reached(key.kind, &key.namespace, &key.name, advice))
    }
}

fn not_reached(kind: &'static str, namespace: &str, name: &str, advice: &str) -> ObjectError {
    let message = format!("the API server has not been reached yet{advice}");
    ObjectError { message, ..absent(kind, namespace, name) }
}

#[async_trait]
impl ObjectStore for ArchivedObjects {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<v1::ConfigMap>>, ObjectError> {
        self.look(&key::object("ConfigMap", namespace, name), "").await.map(Some)
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<v1::Secret>>, ObjectError> {
        self.look(&key::object("Secret", namespace, name), self.kept.advice()).await.map(Some)
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        stream::pending().boxed()
    }

    fn forget(&self, pod: &Pod) {
        self.kept.forget(pod);
    }

    async fn services(&self, namespace: &str) -> Option<Vec<Arc<v1::Service>>> {
        self.kept.get(&key::services(namespace)).await
    }

    async fn token(&self, pod: &PodId, query: &TokenQuery) -> Result<Token, ObjectError> {
        let missing = |advice| not_reached("ServiceAccount", &pod.namespace, &query.service_account, advice);
        let Some(key) = key::token(pod, query) else { return Err(missing("")) };
        let kept: Option<KeptToken> = self.kept.get(&key).await;
        kept.map(|kept| kept.into_token(pod, query)).ok_or_else(|| missing(self.kept.advice()))
    }

    async fn trust_bundles(&self, query: &TrustBundleQuery) -> Result<Option<String>, ObjectError> {
        self.look(&key::bundles(query), "").await.map(Some)
    }

    async fn certificate(&self, pod: &v1::Pod, query: &CertificateQuery) -> CertificateWord {
        let key = key::certificate(&pod_id(pod), &query.volume, query.index);
        let kept: Result<KeptCertificate, ObjectError> = self.look(&key, self.kept.advice()).await;
        CertificateWord { certificate: kept.map(|kept| kept.certificate()), warnings: Vec::new() }
    }

    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<BoundClaim>, ObjectError> {
        self.look(&key::claim(namespace, name), "").await.map(Some)
    }

    async fn runtime_handler(&self, class: &str) -> Result<Option<String>, ObjectError> {
        self.look(&key::class(class), "").await.map(Some)
    }
}
