//! Mirror pods: every pod of another source has its image in the API server, and no image is left of one that is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::cluster::mirror;
use longshore_core::event::EventType;
use longshore_core::pod::{Pod, PodId};
use longshore_core::ports::cluster::ApiError;
use longshore_core::ports::events::EventSink;
use tokio::sync::watch;

use super::{Cluster, Said};
use crate::views::StaticPod;

/// How often all are compared, whatever was heard, and how soon after a failure.
const RESYNC: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(5);

/// Keeps the mirrors for ever.
pub(super) async fn run(cluster: &Cluster, mut registered: watch::Receiver<Option<String>>) {
    let mut wanted = cluster.views.static_pods();
    let mut heard = cluster.pods.changes();
    let mut keeper = Keeper { cluster, said: Said::default(), told: BTreeSet::new() };
    if registered.wait_for(Option::is_some).await.is_err() {
        return std::future::pending().await;
    }
    loop {
        let (uid, pods) = (registered.borrow().clone(), wanted.borrow_and_update().clone());
        let wait = match (uid, pods) {
            (Some(uid), Some(pods)) if cluster.pods.synced() => keeper.turn(&uid, &pods).await,
            _ => RESYNC,
        };
        // Cancel safe: all of these keep what they did not yield.
        tokio::select! {
            Ok(()) = wanted.changed() => {}
            Some(()) = heard.next() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

struct Keeper<'a> {
    cluster: &'a Cluster,
    said: Said,
    /// Pods of which was said that they have no mirror.
    told: BTreeSet<String>,
}

impl Keeper<'_> {
    async fn turn(&mut self, node_uid: &str, pods: &[StaticPod]) -> Duration {
        let mut found: BTreeMap<(String, String), std::sync::Arc<v1::Pod>> = BTreeMap::new();
        for mirror in self.cluster.pods.mirrors() {
            let metadata = &mirror.metadata;
            let name = (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default());
            found.insert(name, mirror);
        }
        let mut wait = RESYNC;
        self.told.retain(|uid| pods.iter().any(|known| known.pod.id.uid == *uid));
        for StaticPod { pod, seen, ending } in pods {
            if *ending {
                // Its mirror goes when nothing is left of it.
                found.remove(&(pod.id.namespace.clone(), pod.id.name.clone()));
                continue;
            }
            if let Some(why) = mirror::why_not(pod) {
                // One that is refused for what it refers to has an event of its own.
                let begun = self.has_begun(pod);
                if begun && self.told.insert(pod.id.uid.clone()) {
                    self.cluster.events.record_node(EventType::Normal, "NoMirrorPod", &why);
                } else if !begun {
                    wait = wait.min(RETRY);
                }
                continue;
            }
            let there = found.remove(&(pod.id.namespace.clone(), pod.id.name.clone()));
            if there.as_ref().is_some_and(|there| mirror::fits(there, pod)) {
                continue;
            }
            let result = self.replace(there.as_deref(), pod, *seen, node_uid).await;
            wait = wait.min(self.judge("a static pod cannot be mirrored", result));
        }
        for mirror in found.values() {
            let result = self.remove(mirror).await;
            wait = wait.min(self.judge("a mirror pod cannot be removed", result));
        }
        wait
    }

    /// Whether the pod has ever had a sandbox.
    fn has_begun(&self, pod: &Pod) -> bool {
        let view = self.cluster.views.pod(&pod.id.uid);
        let status = view.as_ref().and_then(|view| view.object.status.as_ref());
        let is_up =
            |condition: &v1::PodCondition| condition.type_ == "PodReadyToStartContainers" && condition.status == "True";
        status.is_some_and(|status| {
            status.phase.as_deref() != Some("Pending") || status.conditions.iter().flatten().any(is_up)
        })
    }

    fn judge(&mut self, what: &str, result: Result<(), ApiError>) -> Duration {
        match result {
            Ok(()) => RESYNC,
            // It was there already, or went meanwhile: the watch tells.
            Err(ApiError::Conflict { .. } | ApiError::NotFound { .. }) => Duration::from_secs(1),
            Err(error) => {
                self.said.failed(what, &error);
                RETRY
            }
        }
    }

    async fn replace(
        &self,
        there: Option<&v1::Pod>,
        pod: &Pod,
        seen: Timestamp,
        node_uid: &str,
    ) -> Result<(), ApiError> {
        if let Some(there) = there {
            self.remove(there).await?;
        }
        let mirror = mirror::of(pod, seen, &self.cluster.description.name, node_uid);
        self.cluster.api.create_pod(&mirror).await?;
        tracing::info!(pod = %pod.id, "mirrored the static pod in the API server");
        Ok(())
    }

    async fn remove(&self, mirror: &v1::Pod) -> Result<(), ApiError> {
        let metadata = &mirror.metadata;
        let (Some(namespace), Some(name), Some(uid)) = (&metadata.namespace, &metadata.name, &metadata.uid) else {
            return Ok(());
        };
        let pod = PodId { namespace: namespace.clone(), name: name.clone(), uid: uid.clone() };
        self.cluster.api.delete_pod(&pod, 0).await
    }
}
