//! Critical pods that find no room: others end for them, and no more than must.

use longshore_core::pod::Pod;
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
