//! Pods that no source has spoken of (yet): rebuilt from their record, or from what runs of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::observed::ObservedPod;
use longshore_core::pod::{ContainerKind, Deletion, Pod, PodId, Source};
use longshore_core::ports::files::FileStore;
use longshore_core::ports::sources::SourceProblem;
use longshore_core::record::StoredPod;
use tokio::time::Instant;

use crate::views::Views;

/// How long single records are waited for that the disk does not give.
const PATIENCE: Duration = Duration::from_secs(60);

/// All stored pods, asked for until the disk gives them: without its record a pod would begin anew, and work that had finished
/// would be done again. One record alone that it never gives holds up the others for a minute, and no longer.
pub async fn stored(files: &dyn FileStore, views: &Views) -> Vec<StoredPod> {
    let mut wait = Duration::from_millis(200);
    let mut said = String::new();
    let begun = Instant::now();
    loop {
        let error = match files.load_all().await {
            Ok(found) if found.unread.is_empty() || begun.elapsed() >= PATIENCE => {
                views.set_problems("records", Vec::new());
                for error in found.damaged.iter().chain(&found.unread) {
                    tracing::error!("a stored pod cannot be read: {error}");
                }
                return found.pods;
            }
            Ok(found) => found.unread.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            Err(error) => error.to_string(),
        };
        let message = format!("the pods' records cannot be read: {error}; nothing is started or stopped meanwhile");
        if message != said {
            tracing::error!("{message}; trying again");
            let problem = SourceProblem { place: "records".to_owned(), message: message.clone(), warning: false };
            views.set_problems("records", vec![problem]);
            said = message;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(5));
    }
}

/// The pod of a record. `None` when the record names none.
pub fn from_stored(stored: &StoredPod) -> Option<Pod> {
    let metadata = &stored.object.metadata;
    Some(Pod {
        id: PodId { namespace: metadata.namespace.clone()?, name: metadata.name.clone()?, uid: metadata.uid.clone()? },
        source: stored.source.clone(),
        object: Arc::new(stored.object.clone()),
        hashes: stored.hashes.clone(),
        sandbox_hash: stored.sandbox_hash.clone(),
        deletion: stored.record.deletion,
        ephemeral: longshore_core::pod::ephemeral(&stored.object),
    })
}

/// A pod to be ended, with just what its containers' labels tell. `None` when there is nothing of it.
pub fn from_observed(observed: &ObservedPod, now: Timestamp) -> Option<Pod> {
    let id = match (observed.sandboxes.first(), observed.containers.first()) {
        (Some(sandbox), _) => sandbox.pod.clone(),
        (None, Some(container)) => container.pod.clone(),
        (None, None) => return None,
    };
    let grace = observed.containers.iter().filter_map(|seen| seen.grace_seconds).max().unwrap_or(30);
    let mut spec = v1::PodSpec { termination_grace_period_seconds: Some(grace), ..Default::default() };
    let mut hashes = BTreeMap::new();
    for seen in &observed.containers {
        if hashes.insert(seen.name.clone(), seen.hash.clone()).is_some() {
            continue;
        }
        let mut container =
            v1::Container { name: seen.name.clone(), image: Some(seen.image.clone()), ..Default::default() };
        match seen.kind {
            ContainerKind::App => spec.containers.push(container),
            ContainerKind::Ephemeral => {}
            ContainerKind::Sidecar | ContainerKind::Init => {
                if seen.kind == ContainerKind::Sidecar {
                    container.restart_policy = Some("Always".to_owned());
                }
                spec.init_containers.get_or_insert_default().push(container);
            }
        }
    }
    let mut object = v1::Pod { spec: Some(spec), ..Default::default() };
    object.metadata.name = Some(id.name.clone());
    object.metadata.namespace = Some(id.namespace.clone());
    object.metadata.uid = Some(id.uid.clone());
    Some(Pod {
        id,
        source: Source::File,
        object: Arc::new(object),
        hashes,
        sandbox_hash: observed.sandbox().map(|sandbox| sandbox.hash.clone()).unwrap_or_default(),
        deletion: Some(Deletion { requested_at: now, grace_seconds: grace }),
        ephemeral: Vec::new(),
    })
}
