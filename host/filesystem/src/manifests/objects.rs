//! ConfigMaps and Secrets of the manifest folder.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use k8s_openapi::api::core::v1;
use longshore_core::ports::objects::{ObjectError, ObjectStore};

/// Namespace and name.
pub(super) type Key = (String, String);

/// The ConfigMaps and Secrets that lay in a folder when it was read. As a store it never changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FolderObjects {
    pub(super) config_maps: BTreeMap<Key, Arc<v1::ConfigMap>>,
    pub(super) secrets: BTreeMap<Key, Arc<v1::Secret>>,
}

impl FolderObjects {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.config_maps.len() + self.secrets.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[async_trait]
impl ObjectStore for FolderObjects {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<v1::ConfigMap>>, ObjectError> {
        Ok(self.config_maps.get(&(namespace.to_owned(), name.to_owned())).cloned())
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<v1::Secret>>, ObjectError> {
        Ok(self.secrets.get(&(namespace.to_owned(), name.to_owned())).cloned())
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        futures::stream::pending().boxed()
    }
}
