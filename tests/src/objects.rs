//! ConfigMaps in memory, that come when the test says so. No Secrets, and nothing that an API server issues.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1;
use longshore_core::ports::objects::{ObjectError, ObjectStore};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

/// The store, empty at first.
#[derive(Debug)]
pub struct FakeObjects {
    config_maps: Mutex<BTreeMap<String, Arc<v1::ConfigMap>>>,
    changed: watch::Sender<u64>,
}

impl Default for FakeObjects {
    fn default() -> Self {
        FakeObjects { config_maps: Mutex::default(), changed: watch::channel(0).0 }
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
}

#[async_trait]
impl ObjectStore for FakeObjects {
    async fn config_map(&self, _: &str, name: &str) -> Result<Option<Arc<v1::ConfigMap>>, ObjectError> {
        Ok(self.config_maps.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned())
    }

    async fn secret(&self, _: &str, _: &str) -> Result<Option<Arc<v1::Secret>>, ObjectError> {
        Ok(None)
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        WatchStream::from_changes(self.changed.subscribe()).map(|_| ()).boxed()
    }
}
