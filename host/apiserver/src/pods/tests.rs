//! The pod source at a scripted API server.

use std::time::Duration;

use futures::StreamExt;
use longshore_core::ports::cluster::ApiPods;
use longshore_core::ports::sources::{PodSource, SourceSnapshot};
use tokio::time::timeout;

use super::NodePods;
use crate::fake::Fake;

const LIMIT: Duration = Duration::from_secs(20);

fn pod(name: &str, version: u32, more: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"n","uid":"uid-{name}","resourceVersion":"{version}"{more}}},"spec":{{"containers":[{{"name":"c","image":"i"}}]}}}}"#
    )
}

fn event(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn list(version: u32, next: &str, pods: &[String]) -> String {
    format!(r#"{{"metadata":{{"resourceVersion":"{version}","continue":"{next}"}},"items":[{}]}}"#, pods.join(","))
}

const END: &str = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"true"}}}}
"#;
const GONE: &str = r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","reason":"Expired","code":410}}
"#;

fn names(snapshot: &SourceSnapshot) -> Vec<&str> {
    snapshot.pods.iter().map(|pod| pod.id.name.as_str()).collect()
}

/// Snapshots until one has these pods and that many problems.
async fn until(
    snapshots: &mut futures::stream::BoxStream<'static, SourceSnapshot>,
    wanted: &[&str],
    problems: usize,
) -> SourceSnapshot {
    let work = async {
        loop {
            let snapshot = snapshots.next().await.unwrap();
            if names(&snapshot) == wanted && snapshot.problems.len() == problems {
                return snapshot;
            }
        }
    };
    timeout(LIMIT, work).await.unwrap()
}

#[tokio::test]
async fn a_watch_that_begins_with_a_list_and_mirrors_apart() {
    let fake = Fake::start().await;
    let events = fake.open("sendInitialEvents=true", 200);
    let pods = NodePods::start(fake.client.clone(), "me");
    let mut snapshots = pods.snapshots();
    let asked = fake.asked("sendInitialEvents", 1).await;
    assert!(asked[0].contains("fieldSelector=spec.nodeName%3Dme"), "{asked:?}");
    events.unbounded_send(event("ADDED", &pod("a", 1, ""))).unwrap();
    let mirror = r#","annotations":{"kubernetes.io/config.mirror":"x"},"managedFields":[{"manager":"m"}]"#;
    events.unbounded_send(event("ADDED", &pod("m", 2, mirror))).unwrap();
    assert!(!pods.synced());
    // Cut within an event.
    let (first, rest) = END.split_at(30);
    events.unbounded_send(first.to_owned()).unwrap();
    events.unbounded_send(rest.to_owned()).unwrap();
    until(&mut snapshots, &["a"], 0).await;
    assert!(pods.synced());
    assert_eq!(pods.mirrors()[0].metadata.name.as_deref(), Some("m"));
    assert!(pods.mirrors()[0].metadata.managed_fields.is_none());
    let mut changes = pods.changes();
    events.unbounded_send(event("MODIFIED", &pod("a", 10, ""))).unwrap();
    timeout(LIMIT, changes.next()).await.unwrap();
    assert_eq!(pods.pod("uid-a").unwrap().metadata.resource_version.as_deref(), Some("10"));
    // A status alone is no news of what should run; the next snapshot is that of the pod that comes.
    events.unbounded_send(event("ADDED", &pod("b", 11, ""))).unwrap();
    let snapshot = timeout(LIMIT, snapshots.next()).await.unwrap().unwrap();
    assert_eq!(names(&snapshot), ["a", "b"]);
    // The watch ends as it must now and then: it goes on from where it was.
    let more = fake.open("resourceVersion=11", 200);
    drop(events);
    more.unbounded_send(event("DELETED", &pod("a", 12, ""))).unwrap();
    until(&mut snapshots, &["b"], 0).await;
}

#[tokio::test]
async fn lists_in_pages_where_nothing_better_is_offered_and_anew_after_410() {
    let fake = Fake::start().await;
    // What a server over an old etcd says, after it has accepted the watch.
    fake.whole("sendInitialEvents", 200, &event("ERROR", r#"{"kind":"Status","reason":"InternalError","code":500}"#));
    fake.whole("limit=500", 200, &list(5, "more", &[pod("a", 1, "")]));
    fake.whole("continue=more", 200, &list(5, "", &[pod("b", 2, "")]));
    let events = fake.open("resourceVersion=5", 200);
    let pods = NodePods::start(fake.client.clone(), "me");
    let mut snapshots = pods.snapshots();
    until(&mut snapshots, &["a", "b"], 0).await;
    fake.whole("limit=500", 200, &list(20, "", &[pod("b", 2, ""), pod("c", 19, "")]));
    let later = fake.open("resourceVersion=20", 200);
    events.unbounded_send(GONE.to_owned()).unwrap();
    until(&mut snapshots, &["b", "c"], 0).await;
    // What cannot be read is no pod that went: a list finds out.
    fake.whole("limit=500", 200, &list(30, "", &[pod("c", 19, "")]));
    let _open = fake.open("resourceVersion=30", 200);
    later.unbounded_send("{\"type\":\"MODIFIED\",\"object\":{\"metadata\":7}}\n".to_owned()).unwrap();
    until(&mut snapshots, &["c"], 0).await;
}

#[tokio::test]
async fn a_server_that_is_away_leaves_the_pods_and_a_problem() {
    let fake = Fake::start().await;
    fake.busy("sendInitialEvents", "1");
    let events = fake.open("sendInitialEvents", 200);
    let pods = NodePods::start(fake.client.clone(), "me");
    let mut snapshots = pods.snapshots();
    let mut error = pods.error();
    timeout(LIMIT, error.wait_for(|error| error.as_ref().is_some_and(|text| text.contains("busy"))))
        .await
        .unwrap()
        .unwrap();
    events.unbounded_send(event("ADDED", &pod("a", 1, ""))).unwrap();
    events.unbounded_send(END.to_owned()).unwrap();
    until(&mut snapshots, &["a"], 0).await;
    assert!(error.borrow_and_update().is_none());
    // Every request fails from now on.
    drop(events);
    let snapshot = until(&mut snapshots, &["a"], 1).await;
    assert!(snapshot.problems[0].message.contains("500"), "{:?}", snapshot.problems);
    let _open = fake.open("resourceVersion=9", 200);
    until(&mut snapshots, &["a"], 0).await;
    assert_eq!(*error.borrow(), None);
}
