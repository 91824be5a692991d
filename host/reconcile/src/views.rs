//! The published state of all pods: one writer per pod, many readers.
//!
//! Workers put views in; the local socket (and later the API server's status writer and the pages) read them.
//! Nothing here decides or waits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::pod::{Pod, Source};
use longshore_core::ports::runtime::RuntimeInfo;
use longshore_core::ports::sources::SourceProblem;
use longshore_core::view::{PodView, ProbeView};
use longshore_core::why;
use tokio::sync::watch;

/// A pod of another source than the API server.
#[derive(Clone, Debug, PartialEq)]
pub struct StaticPod {
    /// The pod.
    pub pod: Pod,
    /// When it was first seen here.
    pub seen: Timestamp,
    /// Whether it is on its way out.
    pub ending: bool,
}

/// What the API server last said of our Node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeWord {
    /// Whether it was asked at all since the start.
    pub told: bool,
    /// The Node, with the labels, taints and `podCIDRs` that others wrote; `None` when there is none.
    pub node: Option<Arc<v1::Node>>,
}

/// The published state of the node's pods.
#[derive(Debug)]
pub struct Views {
    pods: Mutex<BTreeMap<String, Arc<PodView>>>,
    probes: Mutex<BTreeMap<String, Vec<ProbeView>>>,
    problems: Mutex<BTreeMap<String, Vec<SourceProblem>>>,
    /// Pods of the API server of which nothing is left here, until the API server knows.
    ended: Mutex<BTreeMap<String, Arc<PodView>>>,
    statics: watch::Sender<Option<Vec<StaticPod>>>,
    node: watch::Sender<NodeWord>,
    runtime: watch::Sender<Option<RuntimeInfo>>,
    version: watch::Sender<u64>,
    /// Up to which version the API server was told; all where nobody tells it.
    reported: watch::Sender<u64>,
}

impl Default for Views {
    fn default() -> Self {
        Views {
            pods: Mutex::default(),
            probes: Mutex::default(),
            problems: Mutex::default(),
            ended: Mutex::default(),
            statics: watch::channel(None).0,
            node: watch::channel(NodeWord::default()).0,
            runtime: watch::channel(None).0,
            version: watch::channel(0).0,
            reported: watch::channel(u64::MAX).0,
        }
    }
}

impl Views {
    /// The Node as the API server last told it; `None` on a node that runs alone, and while there is none.
    pub fn node(&self) -> Option<Arc<v1::Node>> {
        self.node.borrow().node.clone()
    }

    /// What the API server says of our Node, and every change of that.
    pub fn node_word(&self) -> watch::Receiver<NodeWord> {
        self.node.subscribe()
    }

    /// Publishes the Node as the API server has it now; `None` when it has none.
    pub fn set_node(&self, node: Option<Arc<v1::Node>>) {
        self.node.send_replace(NodeWord { told: true, node });
    }

    /// What the runtime is, as it said when it was last found; `None` as long as it is the one of the agent's start.
    pub fn runtime(&self) -> watch::Receiver<Option<RuntimeInfo>> {
        self.runtime.subscribe()
    }

    /// Publishes what the runtime is now.
    pub fn set_runtime(&self, info: RuntimeInfo) {
        self.runtime.send_if_modified(|known| {
            let is_news = known.as_ref() != Some(&info);
            *known = Some(info);
            is_news
        });
    }

    /// All pods, ordered by namespace and name.
    pub fn pods(&self) -> Vec<Arc<PodView>> {
        self.published().into_iter().map(|pod| self.with_probes(pod)).collect()
    }

    /// The same as they were last published, without what probes have found: one that did not change is the same `Arc`.
    pub(crate) fn published(&self) -> Vec<Arc<PodView>> {
        let mut pods: Vec<_> = lock(&self.pods).values().cloned().collect();
        pods.sort_by(|a, b| a.id.cmp(&b.id));
        pods
    }

    /// The pod of that UID.
    pub fn pod(&self, uid: &str) -> Option<Arc<PodView>> {
        let pod = lock(&self.pods).get(uid).cloned();
        pod.map(|pod| self.with_probes(pod))
    }

    /// Probes are checked more often than a pod is published, so what they found is added when it is read.
    fn with_probes(&self, pod: Arc<PodView>) -> Arc<PodView> {
        match self.probes(&pod.id.uid) {
            probes if probes.is_empty() => pod,
            probes => {
                let mut view = (*pod).clone();
                why::add_probes(&mut view.steps, &probes);
                view.probes = probes;
                Arc::new(view)
            }
        }
    }

    /// What is wrong with the sources, by source.
    pub fn problems(&self) -> Vec<SourceProblem> {
        lock(&self.problems).values().flatten().cloned().collect()
    }

    /// A number that grows with every change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// The API server knows all that was published up to that version.
    pub(crate) fn set_reported(&self, version: u64) {
        self.reported.send_if_modified(|known| std::mem::replace(known, version) != version);
    }

    /// Waits until the API server knows what has been published so far, where there is one; no longer than `limit`.
    pub(crate) async fn until_reported(&self, limit: Duration) {
        let now = *self.version.borrow();
        let mut reported = self.reported.subscribe();
        // Cancel safe: it only looks.
        let _ = tokio::time::timeout(limit, reported.wait_for(|version| *version >= now)).await;
    }

    /// Publishes a pod's state.
    pub fn publish(&self, view: PodView) {
        let mut pods = lock(&self.pods);
        if let Some(known) = pods.get_mut(&view.id.uid).filter(|known| known.shows_the_same_as(&view)) {
            // Who plans asks for it; who follows pods has nothing to do with it.
            if known.standing != view.standing {
                *known = Arc::new(view);
            }
            return;
        }
        let uid = view.id.uid.clone();
        pods.insert(uid.clone(), Arc::new(view));
        drop(pods);
        lock(&self.ended).remove(&uid);
        self.version.send_modify(|version| *version += 1);
    }

    /// Takes a pod that is gone off the list.
    pub fn remove(&self, uid: &str) {
        let Some(view) = lock(&self.pods).remove(uid) else { return };
        if view.source == Source::Api {
            lock(&self.ended).insert(uid.to_owned(), view);
        }
        self.version.send_modify(|version| *version += 1);
    }

    /// Pods of the API server of which nothing is left here: their last state.
    pub fn ended(&self) -> Vec<Arc<PodView>> {
        lock(&self.ended).values().cloned().collect()
    }

    /// The API server knows that the pod ended.
    pub fn forget_ended(&self, uid: &str) {
        lock(&self.ended).remove(uid);
    }

    /// The pods of other sources than the API server; `None` until every source has spoken.
    pub fn static_pods(&self) -> watch::Receiver<Option<Vec<StaticPod>>> {
        self.statics.subscribe()
    }

    pub(crate) fn set_static_pods(&self, pods: Vec<StaticPod>) {
        self.statics.send_if_modified(|known| match known {
            Some(known) if *known == pods => false,
            _ => {
                *known = Some(pods);
                true
            }
        });
    }

    /// Publishes what a probe last found.
    pub(crate) fn set_probe(&self, uid: &str, probe: ProbeView) {
        let mut probes = lock(&self.probes);
        let of_pod = probes.entry(uid.to_owned()).or_default();
        of_pod.retain(|known| known.container != probe.container || known.kind != probe.kind);
        of_pod.push(probe);
    }

    /// What the probes of a pod last found.
    pub fn probes(&self, uid: &str) -> Vec<ProbeView> {
        lock(&self.probes).get(uid).cloned().unwrap_or_default()
    }

    /// Drops what was known of a pod's probes.
    pub(crate) fn forget_probes(&self, uid: &str) {
        lock(&self.probes).remove(uid);
    }

    /// Publishes what is wrong with a source, or with a pod of one.
    pub fn set_problems(&self, source: &str, problems: Vec<SourceProblem>) {
        let mut known = lock(&self.problems);
        let before = match problems.is_empty() {
            true => known.remove(source).unwrap_or_default(),
            false => known.insert(source.to_owned(), problems.clone()).unwrap_or_default(),
        };
        drop(known);
        if before != problems {
            self.version.send_modify(|version| *version += 1);
        }
    }
}

/// A poisoned lock still holds whole values here: every write is one insert or remove.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
