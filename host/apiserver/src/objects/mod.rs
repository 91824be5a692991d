//! [`ObjectStore`] of a cluster: what pods refer to, read from the API server, and followed where it may change.

mod lookups;
mod single;
mod whole;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::pod::{Pod, PodId};
use longshore_core::ports::archive::ObjectArchive;
use longshore_core::ports::objects::{
    BoundClaim, CertificateQuery, CertificateWord, ObjectError, ObjectStore, Token, TokenQuery, TrustBundleQuery,
};
use longshore_core::volume::ObjectKind;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use self::lookups::Lookups;
use self::single::{Single, Singles};
pub(crate) use self::whole::Whole;
use crate::kept::{Kept, key};
use crate::podcertificates::PodCertificates;
use crate::requests::{Requests, Way};
use crate::tokens::{SWEEP, Tokens};

impl Single for v1::ConfigMap {
    const PLURAL: &'static str = "configmaps";
    const SECRET: bool = false;

    fn immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

impl Single for v1::Secret {
    const PLURAL: &'static str = "secrets";
    const SECRET: bool = true;

    fn immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

/// What pods of this node refer to.
pub struct ApiObjects {
    inner: Arc<Inner>,
    sweeper: JoinHandle<()>,
}

struct Inner {
    config_maps: Singles<v1::ConfigMap>,
    secrets: Singles<v1::Secret>,
    tokens: Tokens,
    certificates: PodCertificates,
    lookups: Lookups,
    kept: Kept,
    changed: watch::Sender<u64>,
}

impl ApiObjects {
    /// Begins with nothing; to be called within a tokio runtime. The archive serves when the API server cannot be
    /// reached and nothing was read yet.
    pub fn start(way: impl Into<Way>, archive: Option<Arc<dyn ObjectArchive>>) -> Self {
        let requests = Requests::new(way);
        let changed = watch::Sender::new(0);
        let kept = Kept(archive);
        let inner = Arc::new(Inner {
            config_maps: Singles::new(requests.clone(), kept.clone(), changed.clone()),
            secrets: Singles::new(requests.clone(), kept.clone(), changed.clone()),
            tokens: Tokens::new(requests.clone(), kept.clone()),
            certificates: PodCertificates::new(requests.clone(), kept.clone(), changed.clone()),
            lookups: Lookups::new(requests, kept.clone(), changed.clone()),
            kept,
            changed,
        });
        let swept = Arc::clone(&inner);
        let sweeper = tokio::spawn(async move {
            loop {
                sleep(SWEEP).await;
                swept.config_maps.sweep(Instant::now());
                swept.secrets.sweep(Instant::now());
                let now = Timestamp::now();
                // Both are looked at.
                if swept.tokens.sweep(now) | swept.certificates.sweep(now) {
                    swept.changed.send_modify(|count| *count += 1);
                }
            }
        });
        Self { inner, sweeper }
    }
}

impl Drop for ApiObjects {
    fn drop(&mut self) {
        self.sweeper.abort();
    }
}

#[async_trait]
impl ObjectStore for ApiObjects {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<v1::ConfigMap>>, ObjectError> {
        self.inner.config_maps.read(namespace, name).await
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<v1::Secret>>, ObjectError> {
        self.inner.secrets.read(namespace, name).await
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        let changed = self.inner.changed.subscribe();
        stream::unfold(changed, |mut changed| async move {
            changed.changed().await.ok()?;
            Some(((), changed))
        })
        .boxed()
    }

    fn hold(&self, pod: &PodId, objects: &BTreeSet<(ObjectKind, String)>) {
        let of = |wanted: ObjectKind| -> BTreeSet<String> {
            objects.iter().filter(|(kind, _)| *kind == wanted).map(|(_, name)| name.clone()).collect()
        };
        self.inner.config_maps.hold(&pod.namespace, &pod.uid, &of(ObjectKind::ConfigMap));
        self.inner.secrets.hold(&pod.namespace, &pod.uid, &of(ObjectKind::Secret));
    }

    fn forget(&self, pod: &Pod) {
        self.inner.tokens.forget(&pod.id.uid);
        self.inner.certificates.forget(&pod.id.uid);
        self.inner.kept.forget(pod);
        let namespace = &pod.id.namespace;
        if !self.inner.config_maps.are_held_in(namespace) && !self.inner.secrets.are_held_in(namespace) {
            self.inner.kept.remove(&key::services(namespace));
        }
    }

    async fn services(&self, namespace: &str) -> Option<Vec<Arc<v1::Service>>> {
        self.inner.lookups.services(namespace).await
    }

    async fn token(&self, pod: &PodId, query: &TokenQuery) -> Result<Token, ObjectError> {
        self.inner.tokens.get(pod, query).await
    }

    async fn service_account(&self, namespace: &str, name: &str) -> Result<Option<v1::ServiceAccount>, ObjectError> {
        self.inner.lookups.service_account(namespace, name).await
    }

    async fn trust_bundles(&self, query: &TrustBundleQuery) -> Result<Option<String>, ObjectError> {
        self.inner.lookups.trust_bundles(query).await
    }

    async fn certificate(&self, pod: &v1::Pod, query: &CertificateQuery) -> CertificateWord {
        self.inner.certificates.get(pod, query).await
    }

    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<BoundClaim>, ObjectError> {
        self.inner.lookups.claim(namespace, name).await
    }

    async fn runtime_handler(&self, class: &str) -> Result<Option<String>, ObjectError> {
        self.inner.lookups.runtime_handler(class).await
    }
}
