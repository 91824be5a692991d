//! [`OwnNode`]: our Node, followed by a list and watch of its name alone, which is what the node authorizer allows.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use k8s_openapi::api::core::v1;
use longshore_core::ports::cluster::{ApiError, OwnNode};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::reflector::{Change, Followed, Follower, follow};
use crate::requests::{Requests, Way};

/// First delay after a failure (client-go's reflector).
const FIRST_DELAY: Duration = Duration::from_millis(800);

/// What was told: nothing yet, that there is no Node, or the Node.
type Word = Option<Option<Arc<v1::Node>>>;

/// Our Node. It is followed until this is dropped.
pub struct WatchedNode {
    word: watch::Receiver<Word>,
    task: JoinHandle<()>,
}

impl WatchedNode {
    /// Begins to follow the Node of that name; to be called within a tokio runtime.
    pub fn start(way: impl Into<Way>, node: &str) -> Self {
        let (sender, word) = watch::channel(None);
        let followed = Followed {
            path: "/api/v1/nodes".to_owned(),
            fields: format!("metadata.name={node}"),
            watch_list: true,
            first_delay: FIRST_DELAY,
        };
        let task = tokio::spawn(follow(Requests::new(way), followed, Teller { word: sender }));
        Self { word, task }
    }
}

impl Drop for WatchedNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl OwnNode for WatchedNode {
    fn changes(&self) -> BoxStream<'static, Option<Arc<v1::Node>>> {
        let mut word = self.word.clone();
        word.mark_changed();
        stream::unfold(word, |mut word| async move {
            loop {
                // Fails only when the following was ended.
                word.changed().await.ok()?;
                let known = word.borrow_and_update().clone();
                if let Some(node) = known {
                    return Some((node, word));
                }
            }
        })
        .chain(stream::pending())
        .boxed()
    }
}

struct Teller {
    word: watch::Sender<Word>,
}

impl Follower<v1::Node> for Teller {
    fn change(&mut self, change: Change<v1::Node>) -> ControlFlow<()> {
        let node = match change {
            Change::Reset(nodes) => nodes.into_iter().next(),
            Change::Put(node) => Some(node),
            Change::Gone(_) => None,
        };
        let node = node.map(|mut node| {
            node.metadata.managed_fields = None;
            Arc::new(node)
        });
        self.word.send_replace(Some(node));
        ControlFlow::Continue(())
    }

    fn failed(&mut self, error: &ApiError, times: u32) {
        tracing::debug!(%error, times, "our Node cannot be read from the API server");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::fake::Fake;

    #[tokio::test]
    async fn the_node_is_told_from_its_absence_on() {
        let fake = Fake::start().await;
        let node = |version: u32, label: &str| {
            format!(r#"{{"metadata":{{"name":"n","resourceVersion":"{version}","labels":{{"a":"{label}"}}}}}}"#)
        };
        // One that offers no watch with a list.
        fake.whole("sendInitialEvents", 400, "{}");
        fake.whole("limit=500", 200, r#"{"metadata":{"resourceVersion":"5"},"items":[]}"#);
        let events = fake.open("watch=true", 200);
        let watched = WatchedNode::start(fake.client.clone(), "n");
        let mut changes = watched.changes();
        let mut next = async || timeout(Duration::from_secs(20), changes.next()).await.unwrap().unwrap();
        assert_eq!(next().await, None);
        events.unbounded_send(format!("{{\"type\":\"ADDED\",\"object\":{}}}\n", node(6, "b"))).unwrap();
        assert_eq!(next().await.unwrap().metadata.labels.as_ref().unwrap()["a"], "b");
        events.unbounded_send(format!("{{\"type\":\"DELETED\",\"object\":{}}}\n", node(7, "b"))).unwrap();
        assert_eq!(next().await, None);
        // Who asks later is told what is known.
        assert_eq!(watched.changes().next().await, Some(None));
        let asked = fake.asked("/api/v1/nodes?", 3).await;
        assert!(asked.iter().all(|one| one.contains("fieldSelector=metadata.name%3Dn")), "{asked:?}");
    }
}
