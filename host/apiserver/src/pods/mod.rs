//! The pods of this node at the API server: a source of pods to run, and what the API server last told of each.
//!
//! One list and watch with `spec.nodeName=<node>` (the node authorizer asks for it), in a task that ends when the last
//! handle goes. Mirror pods are kept apart: they are images of pods that other sources want. Must not write anything.

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use k8s_openapi::api::core::v1;
use longshore_core::manifest;
use longshore_core::pod::{Pod, Source};
use longshore_core::ports::cluster::{ApiError, ApiPods};
use longshore_core::ports::sources::{PodSource, SourceProblem, SourceSnapshot};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::reflector::{Change, Followed, Follower, follow};
use crate::requests::{Requests, Way};

/// Annotation on the image of a pod that another source wants.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// First delay after a failure (client-go's reflector).
const FIRST_DELAY: Duration = Duration::from_millis(800);
/// Failures in a row before the source says that it has a problem: a watch that breaks and is back is none.
const PATIENCE: u32 = 2;

/// The pods that are bound to this node.
pub struct NodePods {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    state: Mutex<State>,
    /// Counts changes of the objects.
    changed: watch::Sender<u64>,
    /// Counts changes of what should run, or of the problem.
    wanted: watch::Sender<u64>,
    error: watch::Sender<Option<String>>,
}

#[derive(Default)]
struct State {
    pods: BTreeMap<String, Entry>,
    synced: bool,
    problem: Option<String>,
}

struct Entry {
    object: Arc<v1::Pod>,
    /// `None` for a mirror pod.
    pod: Option<Pod>,
}

impl NodePods {
    /// Begins to follow the pods of the node of that name; to be called within a tokio runtime.
    pub fn start(way: impl Into<Way>, node: &str) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            wanted: watch::Sender::new(0),
            error: watch::Sender::new(None),
        });
        let followed = Followed {
            path: "/api/v1/pods".to_owned(),
            fields: format!("spec.nodeName={node}"),
            watch_list: true,
            first_delay: FIRST_DELAY,
        };
        let work = follow(Requests::new(way), followed, Arc::clone(&shared));
        Self { shared, task: tokio::spawn(work) }
    }

    /// What is wrong with list or watch just now, if anything; also before the first list succeeded, when the source
    /// yields nothing.
    pub fn error(&self) -> watch::Receiver<Option<String>> {
        self.shared.error.subscribe()
    }
}

impl Drop for NodePods {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn snapshot(&self) -> Option<SourceSnapshot> {
        let state = self.state();
        let problem = |message: &String| SourceProblem {
            place: "source api".to_owned(),
            message: format!("{message}; the pods are those that were known before"),
            warning: true,
        };
        state.synced.then(|| SourceSnapshot {
            pods: state.pods.values().filter_map(|entry| entry.pod.clone()).collect(),
            problems: state.problem.iter().map(problem).collect(),
        })
    }

    fn told(&self, objects: bool, wanted: bool) {
        if wanted {
            self.wanted.send_modify(|count| *count += 1);
        }
        if objects {
            self.changed.send_modify(|count| *count += 1);
        }
    }
}

/// What is kept of a pod; `None` for one without name or UID, which no API server sends.
fn entry(mut object: v1::Pod) -> Option<(String, Entry)> {
    object.metadata.managed_fields = None;
    let uid = object.metadata.uid.clone().filter(|uid| !uid.is_empty())?;
    let mirror = object.metadata.annotations.as_ref().is_some_and(|known| known.contains_key(MIRROR));
    let pod = if mirror { None } else { Some(manifest::from_api(&object)?) };
    Some((uid, Entry { object: Arc::new(object), pod }))
}

impl Follower<v1::Pod> for Arc<Shared> {
    fn change(&mut self, change: Change<v1::Pod>) -> ControlFlow<()> {
        let mut state = self.state();
        let wanted = match change {
            Change::Reset(pods) => {
                let pods: BTreeMap<String, Entry> = pods.into_iter().filter_map(entry).collect();
                let same = state.synced
                    && pods.len() == state.pods.len()
                    && pods.iter().all(|(uid, entry)| state.pods.get(uid).is_some_and(|old| old.pod == entry.pod));
                state.pods = pods;
                state.synced = true;
                !same
            }
            Change::Put(object) => match entry(object) {
                Some((uid, entry)) => {
                    let (namespace, name) = (&entry.object.metadata.namespace, &entry.object.metadata.name);
                    // Another pod of that name cannot be there any more, though its end was missed.
                    let before = state.pods.len();
                    state.pods.retain(|other, known| {
                        *other == uid
                            || known.object.metadata.name != *name
                            || known.object.metadata.namespace != *namespace
                    });
                    let replaced = state.pods.len() != before;
                    let wanted = entry.pod.clone();
                    let old = state.pods.insert(uid, entry).and_then(|old| old.pod);
                    replaced || old != wanted
                }
                None => false,
            },
            Change::Gone(object) => {
                let uid = object.metadata.uid.unwrap_or_default();
                state.pods.remove(&uid).is_some_and(|entry| entry.pod.is_some())
            }
        };
        drop(state);
        self.told(true, wanted);
        ControlFlow::Continue(())
    }

    fn failed(&mut self, error: &ApiError, times: u32) {
        let message = error.to_string();
        if times == PATIENCE {
            tracing::warn!(%error, "the pods of this node cannot be read from the API server");
        } else {
            tracing::debug!(%error, times, "the pods of this node cannot be read from the API server");
        }
        self.error.send_if_modified(|known| {
            let other = known.as_ref() != Some(&message);
            *known = Some(message.clone());
            other
        });
        if times >= PATIENCE {
            let mut state = self.state();
            let other = state.problem.as_ref() != Some(&message);
            state.problem = Some(message);
            let told = other && state.synced;
            drop(state);
            self.told(false, told);
        }
    }

    fn recovered(&mut self) {
        self.error.send_replace(None);
        let had = self.state().problem.take().is_some();
        if had {
            tracing::info!("the pods of this node are read from the API server again");
        }
        self.told(false, had);
    }
}

impl PodSource for NodePods {
    fn source(&self) -> Source {
        Source::Api
    }

    fn snapshots(&self) -> BoxStream<'static, SourceSnapshot> {
        let mut wanted = self.shared.wanted.subscribe();
        wanted.mark_changed();
        let shared = Arc::clone(&self.shared);
        stream::unfold((wanted, shared), |(mut wanted, shared)| async move {
            loop {
                // Never fails: the sender is in `shared`.
                wanted.changed().await.ok()?;
                if let Some(snapshot) = shared.snapshot() {
                    return Some((snapshot, (wanted, shared)));
                }
            }
        })
        .boxed()
    }
}

impl ApiPods for NodePods {
    fn pod(&self, uid: &str) -> Option<Arc<v1::Pod>> {
        self.shared.state().pods.get(uid).map(|entry| Arc::clone(&entry.object))
    }

    fn mirrors(&self) -> Vec<Arc<v1::Pod>> {
        let state = self.shared.state();
        let mut mirrors: Vec<Arc<v1::Pod>> =
            state.pods.values().filter(|entry| entry.pod.is_none()).map(|entry| Arc::clone(&entry.object)).collect();
        drop(state);
        mirrors
            .sort_by(|a, b| (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name)));
        mirrors
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        let changed = self.shared.changed.subscribe();
        stream::unfold((changed, Arc::clone(&self.shared)), |(mut changed, shared)| async move {
            changed.changed().await.ok()?;
            Some(((), (changed, shared)))
        })
        .boxed()
    }

    fn synced(&self) -> bool {
        self.shared.state().synced
    }
}
