//! ConfigMaps and Secrets, each followed on its own while a pod holds it or somebody has just asked.
//!
//! As `pkg/kubelet/util/manager/watch_based_manager.go`: a list and watch of one name, so that the node authorizer
//! allows it. One that is immutable is not followed after it was read. What was read last is served while the API
//! server is away, and what an archive has when nothing was read.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use longshore_core::ports::archive::ArchiveKey;
use longshore_core::ports::cluster::ApiError;
use longshore_core::ports::objects::ObjectError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::kept::{Kept, key};
use crate::reflector::{Change, Followed, Follower, follow};
use crate::requests::{Requests, encoded};

/// How long a first read may take.
const FIRST_READ: Duration = Duration::from_secs(10);
/// First delay after a failure: a pod's objects are often not allowed yet in the moment in which it is bound.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Refusals in a row before they are the answer: after about two seconds.
const REFUSALS: u32 = 5;
/// How long an object that no pod holds is followed after somebody asked.
pub(super) const IDLE: Duration = Duration::from_secs(60);

/// A kind that is followed one by one.
pub(super) trait Single:
    DeserializeOwned + Serialize + Metadata<Ty = ObjectMeta> + Send + Sync + 'static
{
    /// `configmaps`.
    const PLURAL: &'static str;
    /// Whether it holds secrets.
    const SECRET: bool;

    /// Whether it will never change.
    fn immutable(&self) -> bool;
}

/// All objects of a kind that pods use.
pub(super) struct Singles<T> {
    requests: Requests,
    kept: Kept,
    changed: watch::Sender<u64>,
    entries: Mutex<BTreeMap<Name, Entry<T>>>,
}

/// Namespace and name.
type Name = (String, String);

struct Entry<T> {
    seen: watch::Sender<Seen<T>>,
    task: JoinHandle<()>,
    holders: BTreeSet<String>,
    used: Instant,
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is known of an object.
enum Seen<T> {
    Unknown { error: Option<ApiError>, times: u32 },
    Known(Option<Arc<T>>),
}

impl<T: Single> Singles<T> {
    pub(super) fn new(requests: Requests, kept: Kept, changed: watch::Sender<u64>) -> Self {
        Self { requests, kept, changed, entries: Mutex::default() }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Name, Entry<T>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, (namespace, name): &Name) -> Entry<T> {
        let seen = watch::Sender::new(Seen::Unknown { error: None, times: 0 });
        let key = key::object(T::KIND, namespace, name);
        let follower = One { seen: seen.clone(), changed: self.changed.clone(), kept: self.kept.clone(), key };
        let followed = Followed {
            path: format!("/api/v1/namespaces/{}/{}", encoded(namespace), T::PLURAL),
            fields: format!("metadata.name={name}"),
            watch_list: false,
            first_delay: FIRST_DELAY,
        };
        let task = tokio::spawn(follow(self.requests.clone(), followed, follower));
        Entry { seen, task, holders: BTreeSet::new(), used: Instant::now() }
    }

    /// Has the pod of that UID hold these objects of its namespace and no others.
    pub(super) fn hold(&self, namespace: &str, uid: &str, names: &BTreeSet<String>) {
        let mut entries = self.entries();
        for name in names {
            let key = (namespace.to_owned(), name.clone());
            let entry = entries.entry(key).or_insert_with_key(|key| self.begin(key));
            entry.holders.insert(uid.to_owned());
        }
        for ((other, name), entry) in entries.iter_mut() {
            if !(other == namespace && names.contains(name)) && entry.holders.remove(uid) {
                entry.used = Instant::now();
            }
        }
    }

    /// Whether a pod holds any of a namespace.
    pub(super) fn are_held_in(&self, namespace: &str) -> bool {
        self.entries().iter().any(|((of, _), entry)| of == namespace && !entry.holders.is_empty())
    }

    /// Ends what no pod holds and nobody has asked for lately; the archive need not keep it either.
    pub(super) fn sweep(&self, now: Instant) {
        self.entries().retain(|(namespace, name), entry| {
            let needed = !entry.holders.is_empty() || now.saturating_duration_since(entry.used) < IDLE;
            if !needed {
                self.kept.remove(&key::object(T::KIND, namespace, name));
            }
            needed
        });
    }

    /// The object as the API server has it, `None` when it has none of that name.
    pub(super) async fn read(&self, namespace: &str, name: &str) -> Result<Option<Arc<T>>, ObjectError> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut seen = {
            let mut entries = self.entries();
            let entry = entries.entry(key).or_insert_with_key(|key| self.begin(key));
            entry.used = Instant::now();
            entry.seen.subscribe()
        };
        let has_archive = self.kept.exists();
        let decided = |seen: &Seen<T>| match seen {
            Seen::Known(_) => true,
            Seen::Unknown { error: Some(error), times } => {
                if error.is_passing() {
                    has_archive
                } else {
                    *times >= REFUSALS
                }
            }
            Seen::Unknown { error: None, .. } => false,
        };
        // A wait that fails or ends is told by what is there then.
        drop(timeout(FIRST_READ, seen.wait_for(decided)).await);
        let error = match &*seen.borrow() {
            Seen::Known(object) => return Ok(object.clone()),
            Seen::Unknown { error, .. } => error.clone(),
        };
        let passing = error.as_ref().is_none_or(ApiError::is_passing);
        if passing && let Some(kept) = self.kept.get(&key::object(T::KIND, namespace, name)).await {
            return Ok(Some(Arc::new(kept)));
        }
        let mut message = match error {
            Some(error) => error.to_string(),
            None => format!("failed to sync {} cache: timed out waiting for the API server", T::KIND.to_lowercase()),
        };
        if passing && T::SECRET {
            message.push_str(self.kept.advice());
        }
        Err(ObjectError { kind: T::KIND, namespace: namespace.to_owned(), name: name.to_owned(), message })
    }
}

/// Tells of one object.
struct One<T> {
    seen: watch::Sender<Seen<T>>,
    changed: watch::Sender<u64>,
    kept: Kept,
    key: ArchiveKey,
}

impl<T: Single> Follower<T> for One<T> {
    fn change(&mut self, change: Change<T>) -> ControlFlow<()> {
        let object = match change {
            Change::Reset(items) => items.into_iter().next(),
            Change::Put(object) => Some(object),
            Change::Gone(_) => None,
        };
        match &object {
            Some(object) => self.kept.put(&self.key, object, T::SECRET),
            None => self.kept.remove(&self.key),
        }
        let version = |object: &T| object.metadata().resource_version.clone();
        let done = object.as_ref().is_some_and(T::immutable);
        let told = self.seen.send_if_modified(|seen| {
            let same = match (&*seen, &object) {
                (Seen::Known(None), None) => true,
                (Seen::Known(Some(old)), Some(new)) => version(old) == version(new),
                _ => false,
            };
            if !same {
                *seen = Seen::Known(object.map(Arc::new));
            }
            !same
        });
        if told {
            self.changed.send_modify(|count| *count += 1);
        }
        if done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn failed(&mut self, error: &ApiError, times: u32) {
        let ArchiveKey { kind, namespace, name } = &self.key;
        tracing::debug!(kind, namespace, name, %error, times, "an object cannot be read from the API server");
        self.seen.send_if_modified(|seen| {
            let unknown = matches!(seen, Seen::Unknown { .. });
            if unknown {
                *seen = Seen::Unknown { error: Some(error.clone()), times };
            }
            unknown
        });
    }
}
