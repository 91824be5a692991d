//! Critical pods that find no room: others end for them, and no more than must.

use longshore_core::pod::{Pod, Source};
use longshore_tests::pod;

use crate::bed::Bed;

fn asking(name: &str, cpu: &str, priority: i32) -> Pod {
    pod(
        name,
        &format!(
            "{{priority: {priority}, containers: [{{name: app, image: app, resources: {{requests: {{cpu: {cpu}}}}}}}]}}"
        ),
    )
}

#[tokio::test]
async fn the_nearest_one_ends_and_the_critical_one_begins_when_it_has() {
    let bed = Bed::new();
    let pods = [asking("small", "500m", 1), asking("large", "2500m", 1), asking("equal", "900m", 5)];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    let critical = asking("critical", "2", 5);
    bed.source.set(pods.iter().cloned().chain([critical.clone()]).collect());
    bed.until_ready(&[critical]).await;
    bed.until("the large one has ended", |bed| bed.phase("large") == "Failed").await;
    let status = bed.status("large").unwrap();
    assert_eq!(status.reason.as_deref(), Some("Preempting"));
    assert_eq!(status.message.as_deref(), Some("Preempted in order to admit critical pod"));
    let conditions = status.conditions.unwrap();
    let found = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget").unwrap();
    assert_eq!(found.reason.as_deref(), Some("TerminationByKubelet"));
    assert_eq!(found.message.as_deref(), Some("Pod was preempted by Kubelet to accommodate a critical pod."));
    assert!(bed.has_event("large", "Preempting"));
    assert!(!bed.runtime.container("large", "app").is_some_and(|seen| seen.is_running()));
    assert!(bed.is_ready("small") && bed.is_ready("equal"), "nothing ends that need not");
}

#[tokio::test]
async fn what_ends_has_its_share_until_nothing_of_it_runs() {
    let bed = Bed::new();
    let old = asking("old", "3", 1);
    bed.source.set(vec![old.clone()]);
    bed.until_ready(&[old]).await;
    bed.runtime.fail("stop", usize::MAX);
    let (small, new) = (asking("small", "500m", 1), asking("new", "2", 1));
    bed.source.set(vec![small.clone()]);
    bed.until("what fits beside it waits for nobody", |bed| bed.is_ready("small")).await;
    // It needs what the old one still has: it waits, and holds its place against a third one.
    bed.source.set(vec![small.clone(), new.clone()]);
    bed.until("it waits", |bed| bed.waiting_reason("new", "app") == "ContainerCreating").await;
    bed.source.set(vec![small.clone(), new.clone(), asking("third", "3", 1)]);
    bed.until("the third finds no room", |bed| bed.phase("third") == "Failed").await;
    assert_eq!(bed.status("third").unwrap().reason.as_deref(), Some("OutOfcpu"));
    assert!(bed.runtime.container("old", "app").is_some_and(|seen| seen.is_running()));
    assert!(bed.runtime.things().iter().all(|thing| thing.pod().uid != "new"));
    // So it is under another agent, too.
    let bed = bed.restart().await;
    bed.source.set(vec![small, new.clone(), asking("fourth", "1500m", 1)]);
    bed.until("the fourth waits", |bed| bed.waiting_reason("fourth", "app") == "ContainerCreating").await;
    assert!(bed.runtime.container("fourth", "app").is_none());
    bed.runtime.fail("stop", 0);
    bed.until_ready(&[new, asking("fourth", "1500m", 1)]).await;
}

#[tokio::test]
async fn nobody_ends_before_the_api_server_was_heard_and_then_they_do() {
    let of_api = Pod { source: Source::Api, ..asking("usual", "3", 1) };
    let critical = asking("critical", "2", 2_000_000_000);
    let bed = Bed::of_two(crate::cluster::api(std::sync::Arc::default(), None, None));
    bed.source.set(Vec::new());
    bed.of_api.set(vec![of_api.clone()]);
    bed.until("ready", |bed| bed.is_ready("usual")).await;
    let bed = bed.restart().await;
    bed.source.set(vec![critical]);
    bed.until("it waits, and says for what", |bed| {
        let steps = bed.views.pod("critical").map(|view| view.steps.clone()).unwrap_or_default();
        steps.iter().any(|step| step.detail.contains("once the API server is reached"))
    })
    .await;
    assert!(bed.phase("critical") == "Pending" && bed.is_ready("usual"));
    bed.of_api.set(vec![of_api]);
    bed.until("it begins", |bed| bed.is_ready("critical")).await;
    assert_eq!(bed.status("usual").unwrap().reason.as_deref(), Some("Preempting"));
}

#[tokio::test]
async fn one_that_nobody_may_end_for_is_rejected() {
    let bed = Bed::new();
    let pods = [asking("first", "3", 5)];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    bed.source.set(vec![pods[0].clone(), asking("second", "2", 5)]);
    bed.until("it is rejected", |bed| bed.phase("second") == "Failed").await;
    assert_eq!(bed.status("second").unwrap().reason.as_deref(), Some("OutOfcpu"));
    assert!(bed.is_ready("first"));
}
