//! A whole list that is followed for as long as somebody holds it. Must not know what is in it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use longshore_core::ports::cluster::ApiError;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::reflector::{Change, Followed, Follower, follow};
use crate::requests::Requests;

/// How long a first list may take before "not known yet" is the answer.
const FIRST_LIST: Duration = Duration::from_secs(5);

/// Objects by namespace and name.
pub(crate) type Listed<T> = BTreeMap<(String, String), Arc<T>>;

/// What is known of a whole list.
pub(crate) struct Known<T> {
    /// `None` before the first one.
    pub(crate) listed: Option<Listed<T>>,
    /// Whether the API server could not be reached for the first one.
    fails: bool,
    /// Whether the API server has no such list (any more): another version of it serves the kind, or none does.
    pub(crate) absent: bool,
}

/// See the file's head.
pub(crate) struct Whole<T> {
    known: watch::Receiver<Known<T>>,
    task: JoinHandle<()>,
}

impl<T> Drop for Whole<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<T: DeserializeOwned + Metadata<Ty = ObjectMeta> + Send + Sync + 'static> Whole<T> {
    /// Follows the list at `path` as the field selector picks it (empty: all); `changed` is raised with each change.
    pub(crate) fn start(requests: Requests, path: String, fields: String, changed: watch::Sender<u64>) -> Self {
        let (known, receiver) = watch::channel(Known { listed: None, fails: false, absent: false });
        let followed = Followed { path, fields, watch_list: false, first_delay: Duration::from_millis(800) };
        let task = tokio::spawn(follow(requests, followed, Teller { known, changed }));
        Self { known: receiver, task }
    }

    /// What is known now, and whatever comes.
    pub(crate) fn known(&self) -> watch::Receiver<Known<T>> {
        self.known.clone()
    }

    /// Waits a while for the first list.
    pub(crate) async fn look<R>(&self, look: impl FnOnce(&Listed<T>) -> R) -> Option<R> {
        let mut known = self.known.clone();
        drop(timeout(FIRST_LIST, known.wait_for(|known| known.listed.is_some())).await);
        known.borrow().listed.as_ref().map(look)
    }

    /// Whether the API server has no such list any more, so that what is known of it grows old.
    pub(crate) fn is_absent(&self) -> bool {
        self.known.borrow().absent
    }

    /// Whether there is no list, and will be none soon.
    pub(crate) async fn is_out_of_reach(&self) -> bool {
        let mut known = self.known.clone();
        drop(timeout(FIRST_LIST, known.wait_for(|known| known.listed.is_some() || known.fails)).await);
        known.borrow().listed.is_none()
    }
}

struct Teller<T> {
    known: watch::Sender<Known<T>>,
    changed: watch::Sender<u64>,
}

impl<T: Metadata<Ty = ObjectMeta> + Send + Sync> Follower<T> for Teller<T> {
    fn change(&mut self, change: Change<T>) -> ControlFlow<()> {
        let key = |object: &T| {
            let metadata = object.metadata();
            (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
        };
        self.known.send_modify(|known| {
            known.absent = false;
            let listed = known.listed.get_or_insert_default();
            match change {
                Change::Reset(items) => {
                    *listed = items.into_iter().map(|object| (key(&object), Arc::new(object))).collect();
                }
                Change::Put(object) => drop(listed.insert(key(&object), Arc::new(object))),
                Change::Gone(object) => drop(listed.remove(&key(&object))),
            }
        });
        self.changed.send_modify(|count| *count += 1);
        ControlFlow::Continue(())
    }

    fn failed(&mut self, error: &ApiError, times: u32) {
        tracing::debug!(%error, times, "a list cannot be read from the API server");
        let (passing, absent) = (error.is_passing(), matches!(error, ApiError::NotFound { .. }));
        let gone = self.known.send_if_modified(|known| absent && !std::mem::replace(&mut known.absent, true));
        self.known.send_if_modified(|known| passing && !std::mem::replace(&mut known.fails, true));
        if gone {
            // Whoever reads it is to look where it went.
            self.changed.send_modify(|count| *count += 1);
        }
    }
}
