//! Stand-ins for what comes with the connection to the API server: the loops hold them from the start, and each waits, or
//! says that the API server has not been reached yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1;
use longshore_apiserver::{ApiObjects, ArchivedObjects, NodePods, NodeReviews};
use longshore_core::pod::{Pod, PodId, Source};
use longshore_core::ports::archive::ObjectArchive;
use longshore_core::ports::cluster::ApiError;
use longshore_core::ports::objects::{
    BoundClaim, CertificateQuery, CertificateWord, ObjectError, ObjectStore, Token, TokenQuery, TrustBundleQuery,
};
use longshore_core::ports::reviews::{NodeAccess, Reviews, User};
use longshore_core::ports::sources::{PodSource, SourceSnapshot};
use longshore_core::volume::ObjectKind;
use longshore_reconcile::views::NodeWord;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// Something of the connection, once there is one.
pub(crate) type Late<T> = watch::Receiver<Option<Arc<T>>>;

/// Waits for what comes with the connection. An agent that ends before it comes never gets it.
async fn arrived<T>(mut late: Late<T>) -> Arc<T> {
    match late.wait_for(Option::is_some).await.map(|found| found.clone()) {
        Ok(Some(found)) => found,
        _ => std::future::pending().await,
    }
}

/// The API server as a source of pods.
pub(crate) struct LateSource {
    pub(crate) pods: Late<NodePods>,
    pub(crate) node: watch::Receiver<NodeWord>,
}

impl PodSource for LateSource {
    fn source(&self) -> Source {
        Source::Api
    }

    fn snapshots(&self) -> BoxStream<'static, SourceSnapshot> {
        let (pods, mut node) = (self.pods.clone(), self.node.clone());
        let known = async move {
            // As the kubelet's: no pod is admitted before the Node's labels and taints are known.
            drop(node.wait_for(|word| word.told).await);
            arrived(pods).await
        };
        futures::stream::once(known).flat_map(|pods| pods.snapshots()).boxed()
    }
}

/// What pods of the API server refer to; before there is a connection, what the archive has of it.
pub(crate) struct LateObjects {
    api: watch::Sender<Option<Arc<ApiObjects>>>,
    archived: Arc<ArchivedObjects>,
    /// What is to be followed, for when it can be.
    held: Mutex<BTreeMap<PodId, BTreeSet<(ObjectKind, String)>>>,
}

impl LateObjects {
    pub(crate) fn new(archive: Option<Arc<dyn ObjectArchive>>) -> Self {
        let archived = Arc::new(ArchivedObjects::new(archive));
        LateObjects { api: watch::Sender::new(None), archived, held: Mutex::default() }
    }

    /// The connection is there.
    pub(crate) fn arrive(&self, api: Arc<ApiObjects>) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for (pod, objects) in held.iter() {
            api.hold(pod, objects);
        }
        self.api.send_replace(Some(api));
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        match &*self.api.borrow() {
            Some(api) => api.clone(),
            None => self.archived.clone(),
        }
    }
}

#[async_trait]
impl ObjectStore for LateObjects {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<v1::ConfigMap>>, ObjectError> {
        self.store().config_map(namespace, name).await
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<v1::Secret>>, ObjectError> {
        self.store().secret(namespace, name).await
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        let api = futures::stream::once(arrived(self.api.subscribe()));
        // What was asked for before the connection came is asked for again.
        api.flat_map(|api| futures::stream::once(async {}).chain(api.changes())).boxed()
    }

    fn hold(&self, pod: &PodId, objects: &BTreeSet<(ObjectKind, String)>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if objects.is_empty() {
            held.remove(pod);
        } else {
            held.insert(pod.clone(), objects.clone());
        }
        self.store().hold(pod, objects);
    }

    fn forget(&self, pod: &Pod) {
        self.store().forget(pod);
    }

    async fn services(&self, namespace: &str) -> Option<Vec<Arc<v1::Service>>> {
        self.store().services(namespace).await
    }

    async fn token(&self, pod: &PodId, query: &TokenQuery) -> Result<Token, ObjectError> {
        self.store().token(pod, query).await
    }

    async fn service_account(&self, namespace: &str, name: &str) -> Result<Option<v1::ServiceAccount>, ObjectError> {
        self.store().service_account(namespace, name).await
    }

    async fn trust_bundles(&self, query: &TrustBundleQuery) -> Result<Option<String>, ObjectError> {
        self.store().trust_bundles(query).await
    }

    async fn certificate(&self, pod: &v1::Pod, query: &CertificateQuery) -> CertificateWord {
        self.store().certificate(pod, query).await
    }

    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<BoundClaim>, ObjectError> {
        self.store().claim(namespace, name).await
    }

    async fn runtime_handler(&self, class: &str) -> Result<Option<String>, ObjectError> {
        self.store().runtime_handler(class).await
    }
}

/// Who callers of the node's server are and what they may do. The server has threads of its own, and the client of the
/// API server shares its connections among all who ask: opened by the server's threads, they would make the loops wait
/// for strangers. So questions are asked by the loops' threads; their number and time is bounded by who asks.
pub(crate) struct LateReviews {
    pub(crate) api: Late<NodeReviews>,
    pub(crate) loops: Handle,
}

impl LateReviews {
    async fn ask<T, F>(&self, question: impl FnOnce(Arc<NodeReviews>) -> F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ApiError>> + Send + 'static,
    {
        let api = self.api.borrow().clone();
        let unreachable = |message: String| ApiError::Unreachable { message };
        let api = api.ok_or_else(|| unreachable("the API server has not been reached yet".to_owned()))?;
        // Cancel safe: a question that nobody waits for any more is dropped there.
        let asked = AbortOnDropHandle::new(self.loops.spawn(question(api)));
        asked.await.unwrap_or_else(|error| Err(unreachable(error.to_string())))
    }
}

#[async_trait]
impl Reviews for LateReviews {
    async fn authenticate(&self, token: &str) -> Result<Option<User>, ApiError> {
        let token = token.to_owned();
        self.ask(|api| async move { api.authenticate(&token).await }).await
    }

    async fn authorize(&self, user: &User, access: &NodeAccess) -> Result<Result<(), String>, ApiError> {
        let (user, access) = (user.clone(), access.clone());
        self.ask(|api| async move { api.authorize(&user, &access).await }).await
    }
}
