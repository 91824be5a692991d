//! `?watch=1`: what changed since the last look, one JSON object a line.
//!
//! Works by comparing sets, so a slow reader costs no memory: it sees the newest state of each pod, not every one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use k8s_openapi::api::core::v1;
use longshore_core::view::PodView;
use longshore_reconcile::views::Views;

use super::api::WatchEvent;

struct Watch {
    views: Arc<Views>,
    version: tokio::sync::watch::Receiver<u64>,
    namespace: Option<String>,
    known: BTreeMap<String, Arc<PodView>>,
    lines: VecDeque<Bytes>,
}

/// Every pod as ADDED, a BOOKMARK, then what changes. Ends when nobody publishes any more.
pub(super) fn stream(views: Arc<Views>, namespace: Option<String>) -> impl Stream<Item = Bytes> + Send + 'static {
    let version = views.subscribe();
    let mut watch = Watch { views, version, namespace, known: BTreeMap::new(), lines: VecDeque::new() };
    watch.version.mark_unchanged();
    watch.look();
    watch.bookmark();
    futures::stream::unfold(watch, |mut watch| async move {
        loop {
            if let Some(line) = watch.lines.pop_front() {
                return Some((line, watch));
            }
            watch.version.changed().await.ok()?;
            watch.look();
        }
    })
}

impl Watch {
    fn look(&mut self) {
        let inside = |view: &Arc<PodView>| self.namespace.as_ref().is_none_or(|own| view.id.namespace == *own);
        let pods = self.views.pods().into_iter().filter(inside);
        let now: BTreeMap<String, Arc<PodView>> = pods.map(|view| (view.id.uid.clone(), view)).collect();
        // First, since a pod that was made anew may have the name of one that is gone.
        for (_, view) in self.known.iter().filter(|(uid, _)| !now.contains_key(*uid)) {
            self.lines.push_back(line("DELETED", view.object.clone()));
        }
        for (uid, view) in &now {
            match self.known.get(uid) {
                None => self.lines.push_back(line("ADDED", view.object.clone())),
                // Steps and probes may change without the object.
                Some(known) if known.object != view.object => {
                    self.lines.push_back(line("MODIFIED", view.object.clone()));
                }
                Some(_) => {}
            }
        }
        self.known = now;
    }

    fn bookmark(&mut self) {
        let mut object = v1::Pod::default();
        object.metadata.annotations = Some([("k8s.io/initial-events-end".to_owned(), "true".to_owned())].into());
        object.metadata.resource_version = Some(self.version.borrow().to_string());
        self.lines.push_back(line("BOOKMARK", object));
    }
}

fn line(kind: &str, object: v1::Pod) -> Bytes {
    let event = WatchEvent { kind: kind.to_owned(), object };
    let mut text = serde_json::to_vec(&event).expect("a pod is always JSON: its keys are text");
    text.push(b'\n');
    Bytes::from(text)
}
