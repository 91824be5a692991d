//! ConfigMaps, pull secrets, claims and one token in memory, that come when the test says so. Nothing else that an API server
//! issues.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1;
use longshore_core::pod::PodId;
use longshore_core::ports::objects::{BoundClaim, ObjectError, ObjectStore, Token, TokenQuery, absent};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

/// The store, empty at first.
#[derive(Debug)]
pub struct FakeObjects {
    config_maps: Mutex<BTreeMap<String, Arc<v1::ConfigMap>>>,
    secrets: Mutex<BTreeMap<String, Arc<v1::Secret>>>,
    claims: Mutex<BTreeMap<String, BoundClaim>>,
    token: Mutex<Option<Token>>,
    changed: watch::Sender<u64>,
}

impl Default for FakeObjects {
    fn default() -> Self {
        FakeObjects {
            config_maps: Mutex::default(),
            secrets: Mutex::default(),
            claims: Mutex::default(),
            token: Mutex::default(),
            changed: watch::channel(0).0,
        }
    }
}

impl FakeObjects {
    /// Puts an empty ConfigMap of that name, whatever its namespace.
    pub fn put(&self, name: &str) {
        let mut config_maps = self.config_maps.lock().unwrap_or_else(PoisonError::into_inner);
        config_maps.insert(name.to_owned(), Arc::default());
        drop(config_maps);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Puts a pull secret of that name, whatever its namespace, with that password for the registry `reg.io`.
    pub fn put_pull_secret(&self, name: &str, password: &str) {
        let auths = serde_json::json!({"reg.io": {"username": "u", "password": password}});
        let mut secret = v1::Secret { type_: Some("kubernetes.io/dockercfg".to_owned()), ..Default::default() };
        secret.data = Some(BTreeMap::from([(".dockercfg".to_owned(), ByteString(auths.to_string().into_bytes()))]));
        secret.metadata.name = Some(name.to_owned());
        let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        secrets.insert(name.to_owned(), Arc::new(secret));
        drop(secrets);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Takes away the ConfigMap of that name.
    pub fn remove(&self, name: &str) {
        self.config_maps.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Puts a claim of that name, whatever its namespace, or takes it away; as of the API server, nobody is told.
    pub fn set_claim(&self, name: &str, claim: Option<BoundClaim>) {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        match claim {
            Some(claim) => claims.insert(name.to_owned(), claim),
            None => claims.remove(name),
        };
    }

    /// The token that every ServiceAccount has from now on, good until then.
    pub fn issue(&self, token: &str, expires: Timestamp) {
        let token = Token { token: token.to_owned(), expires };
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
        self.changed.send_modify(|count| *count += 1);
    }
}

#[async_trait]
impl ObjectStore for FakeObjects {
    async fn config_map(&self, _: &str, name: &str) -> Result<Option<Arc<v1::ConfigMap>>, ObjectError> {
        Ok(self.config_maps.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned())
    }

    async fn secret(&self, _: &str, name: &str) -> Result<Option<Arc<v1::Secret>>, ObjectError> {
        Ok(self.secrets.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned())
    }

    async fn claim(&self, _: &str, name: &str) -> Result<Option<BoundClaim>, ObjectError> {
        Ok(self.claims.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned())
    }

    async fn token(&self, pod: &PodId, query: &TokenQuery) -> Result<Token, ObjectError> {
        let token = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        token.ok_or_else(|| absent("ServiceAccount", &pod.namespace, &query.service_account))
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        WatchStream::from_changes(self.changed.subscribe()).map(|_| ()).boxed()
    }
}
