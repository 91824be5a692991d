//! ConfigMaps and Secrets, wherever they are kept.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1;

/// Why an object cannot be told to exist or not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {namespace}/{name}: {message}")]
pub struct ObjectError {
    /// `ConfigMap` or `Secret`.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What went wrong.
    pub message: String,
}

/// ConfigMaps and Secrets.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// The ConfigMap, `None` when there is none.
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<v1::ConfigMap>>, ObjectError>;

    /// The Secret, `None` when there is none.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<v1::Secret>>, ObjectError>;

    /// Yields whenever any object may have changed.
    fn changes(&self) -> BoxStream<'static, ()>;
}
