//! What a pod may not exceed.

use longshore_tests::pod;

use crate::bed::Bed;

#[tokio::test]
async fn a_volume_that_outgrows_its_limit_evicts_the_pod() {
    let bed = Bed::new();
    bed.files.holds(2 << 20);
    let volume = |limit: &str| {
        format!("{{containers: [{{name: app, image: app}}], volumes: [{{name: v, emptyDir: {{sizeLimit: {limit}}}}}]}}")
    };
    bed.source.set(vec![pod("small", &volume("1Mi")), pod("large", &volume("1Gi"))]);
    bed.until("evicted", |bed| bed.phase("small") == "Failed").await;
    let status = bed.status("small").unwrap();
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    assert!(status.message.unwrap().contains("exceeds the limit \"1Mi\""));
    // Its own doing.
    assert!(!status.conditions.unwrap().iter().any(|condition| condition.type_ == "DisruptionTarget"));
    bed.until("nothing of it is kept", |bed| {
        bed.files.was_released("small") && bed.runtime.container("small", "app").is_none()
    })
    .await;
    bed.until("the other one runs", |bed| bed.is_ready("large")).await;
}

#[tokio::test]
async fn a_deadline_ends_the_pod() {
    let bed = Bed::new();
    bed.source.set(vec![pod("p", "{activeDeadlineSeconds: 1, containers: [{name: app, image: app}]}")]);
    bed.until("ready", |bed| bed.is_ready("p")).await;
    bed.until("failed", |bed| bed.phase("p") == "Failed").await;
    assert_eq!(bed.status("p").unwrap().reason.as_deref(), Some("DeadlineExceeded"));
    assert!(!bed.runtime.container("p", "app").unwrap().is_running());
}
