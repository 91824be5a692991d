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
    BoundClaim, ObjectError, ObjectStore, Token, TokenQuery, TrustBundleQuery, absent,
};
use longshore_core::volume::{self, IssuedKind};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The archive, where there is one.
#[derive(Clone, Default)]
pub(crate) struct Kept(pub(crate) Option<Arc<dyn ObjectArchive>>);

/// A kind of things that are kept, and under which names.
pub(crate) mod key {
    use super::{ArchiveKey, PodId, TokenQuery, TrustBundleQuery};

    pub(crate) fn object(kind: &'static str, namespace: &str, name: &str) -> ArchiveKey {
        ArchiveKey { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub(crate) fn token(pod: &PodId, query: &TokenQuery) -> ArchiveKey {
        let TokenQuery { service_account, audience, expiration_seconds } = query;
        object("Token", &pod.namespace, &format!("{}/{service_account}/{expiration_seconds}/{audience}", pod.uid))
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
            if let IssuedKind::Token(query) = issued.kind {
                self.remove(&key::token(&pod.id, &query));
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
        self.kept.get(key).await.ok_or_else(|| ObjectError {
            message: format!("the API server has not been reached yet{advice}"),
            ..absent(key.kind, &key.namespace, &key.name)
        })
    }
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
        let of =
            |error: ObjectError| ObjectError { kind: "ServiceAccount", name: query.service_account.clone(), ..error };
        let kept: KeptToken = self.look(&key::token(pod, query), self.kept.advice()).await.map_err(of)?;
        Ok(kept.into_token(pod, query))
    }

    async fn trust_bundles(&self, query: &TrustBundleQuery) -> Result<Option<String>, ObjectError> {
        self.look(&key::bundles(query), "").await.map(Some)
    }

    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<BoundClaim>, ObjectError> {
        self.look(&key::claim(namespace, name), "").await.map(Some)
    }

    async fn runtime_handler(&self, class: &str) -> Result<Option<String>, ObjectError> {
        self.look(&key::class(class), "").await.map(Some)
    }
}
