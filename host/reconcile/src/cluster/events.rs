//! Events on their way to the API server. Bounded: what does not fit is dropped, and no status waits for it.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use longshore_core::cluster::correlate::{Correlator, Sending};
use longshore_core::cluster::event_name::event_name;
use longshore_core::event::{Event, EventType};
use longshore_core::ports::cluster::ApiError;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use super::{Cluster, Patience};

/// Events that wait at most.
const QUEUE: usize = 1000;
/// Tries of one event, as client-go's.
const TRIES: u32 = 12;
/// The component that events come from: clients and tests select by the kubelet's name.
const COMPONENT: &str = "kubelet";

/// Carries events to the API server as long as there may be any.
pub(super) async fn run(cluster: &Cluster) {
    let mut news = cluster.events.subscribe();
    let mut correlator = Correlator::default();
    // What was said of the node before there was a connection. Of pods, their status tells.
    let before = cluster.events.events(None).into_iter().filter(|event| event.pod.is_none());
    let mut queue = Queue { waiting: before.collect(), dropped: 0 };
    loop {
        let Some(event) = queue.next() else {
            if !queue.take(news.recv().await) {
                return;
            }
            continue;
        };
        // Nothing is sent while there is no API server: what comes meanwhile waits.
        let mut sent = pin!(send(cluster, &mut correlator, event));
        loop {
            // Cancel safe: news that was not received stays in the channel.
            tokio::select! {
                () = &mut sent => break,
                heard = news.recv() => {
                    if !queue.take(heard) {
                        return;
                    }
                }
            }
        }
    }
}

/// Events that wait; what comes while it is full is dropped, as by client-go.
struct Queue {
    waiting: VecDeque<Event>,
    /// How many were since it was last empty.
    dropped: u64,
}

impl Queue {
    fn next(&mut self) -> Option<Event> {
        let next = self.waiting.pop_front();
        if next.is_none() && self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped);
            tracing::info!(dropped, "events are sent again; some were not");
        }
        next
    }

    /// Whether there may be more to come.
    fn take(&mut self, heard: Result<Event, RecvError>) -> bool {
        let missed = match heard {
            Ok(event) if self.waiting.len() < QUEUE => {
                self.waiting.push_back(event);
                return true;
            }
            Ok(_) => 1,
            Err(RecvError::Lagged(missed)) => missed,
            Err(RecvError::Closed) => return false,
        };
        if self.dropped == 0 {
            tracing::warn!("events come faster than the API server takes them: those that do not fit are not sent");
        }
        self.dropped += missed;
        true
    }
}

async fn send(cluster: &Cluster, correlator: &mut Correlator, event: Event) {
    let Some(sending) = correlator.take(&event, Timestamp::now()) else { return };
    let mut patience = Patience::new(Duration::from_secs(10));
    let mut sending = sending;
    // Made once: each try is of the same Event.
    let mut made = None;
    for _ in 0..TRIES {
        let result = match &sending {
            Sending::Create { key, message, count, first_at } => {
                let object = made.get_or_insert_with(|| object(cluster, &event, message, (*count, *first_at)));
                match cluster.api.create_event(object).await {
                    // It is there: the answer to an earlier try was lost.
                    Ok(_) | Err(ApiError::Conflict { exists: true, .. }) => {
                        let ObjectMeta { namespace, name, .. } = &object.metadata;
                        let text = |text: &Option<String>| text.clone().unwrap_or_default();
                        correlator.created(key, &text(namespace), &text(name));
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            }
            Sending::Patch { name, count, message, .. } => {
                let patch = json!({"count": count, "message": message, "lastTimestamp": Time(event.at)});
                cluster.api.patch_event(&name.0, &name.1, &patch).await.map(|_| ())
            }
        };
        match result {
            Ok(()) => return,
            Err(ApiError::NotFound { .. }) if matches!(sending, Sending::Patch { .. }) => {
                let Sending::Patch { key, message, .. } = sending else { return };
                let Some(again) = correlator.gone(&key, message) else { return };
                sending = again;
            }
            Err(error) if error.is_passing() => tokio::time::sleep(patience.after(&error)).await,
            Err(error) => {
                // A namespace that ends takes no new events, for one.
                tracing::debug!(reason = event.reason, "an event was not taken: {error}");
                return;
            }
        }
    }
    tracing::debug!(reason = event.reason, "an event was dropped: the API server did not take it in time");
}

fn object(cluster: &Cluster, event: &Event, message: &str, (count, first_at): (i32, Timestamp)) -> v1::Event {
    let node = &cluster.description.name;
    let involved = match &event.pod {
        Some(pod) => v1::ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.clone()),
            resource_version: version_of(cluster, &pod.uid),
            field_path: event.container.as_deref().map(|name| field_path(cluster, &pod.uid, name)),
        },
        None => v1::ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.clone()),
            // The kubelet puts the name here, and `kubectl describe node` selects by it.
            uid: Some(node.clone()),
            ..Default::default()
        },
    };
    let namespace = event.pod.as_ref().map_or("default", |pod| pod.namespace.as_str());
    let of = involved.name.clone().unwrap_or_default();
    v1::Event {
        metadata: ObjectMeta {
            name: Some(event_name(&of, Timestamp::now().as_nanosecond())),
            namespace: Some(namespace.to_owned()),
            annotations: (!event.annotations.is_empty()).then(|| event.annotations.clone()),
            ..Default::default()
        },
        involved_object: involved,
        reason: Some(event.reason.clone()),
        message: Some(message.to_owned()),
        type_: Some(if event.kind == EventType::Normal { "Normal" } else { "Warning" }.to_owned()),
        count: Some(count),
        first_timestamp: Some(Time(first_at)),
        last_timestamp: Some(Time(event.at)),
        source: Some(v1::EventSource { component: Some(COMPONENT.to_owned()), host: Some(node.clone()) }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(node.clone()),
        ..Default::default()
    }
}

/// The version of the pod that the event is about, where it has one.
fn version_of(cluster: &Cluster, uid: &str) -> Option<String> {
    cluster.views.pod(uid)?.object.metadata.resource_version.clone()
}

/// `spec.containers{x}`, or the list that the container is in.
fn field_path(cluster: &Cluster, uid: &str, container: &str) -> String {
    let view = cluster.views.pod(uid);
    let spec = view.as_ref().and_then(|view| view.object.spec.as_ref());
    let is_init = spec.is_some_and(|spec| spec.init_containers.iter().flatten().any(|init| init.name == container));
    let is_ephemeral =
        spec.is_some_and(|spec| spec.ephemeral_containers.iter().flatten().any(|one| one.name == container));
    let list = match (is_init, is_ephemeral) {
        (true, _) => "initContainers",
        (_, true) => "ephemeralContainers",
        _ => "containers",
    };
    format!("spec.{list}{{{container}}}")
}
