//! In-place resize: what is given, deferred, refused and actuated, and that it outlives the agent.

use k8s_openapi::api::core::v1;
use longshore_core::pod::Pod;
use longshore_tests::pod;

use crate::bed::Bed;

fn sized(name: &str, cpu: &str, memory: &str, policy: &str) -> Pod {
    pod(
        name,
        &format!(
            "{{containers: [{{name: app, image: app, resizePolicy: [{{resourceName: memory, restartPolicy: {policy}}}], \
             resources: {{requests: {{cpu: {cpu}, memory: {memory}}}, limits: {{cpu: '8', memory: {memory}}}}}}}]}}"
        ),
    )
}

fn plain(name: &str, cpu: &str) -> Pod {
    sized(name, cpu, "64Mi", "NotRequired")
}

impl Bed {
    fn resize_condition(&self, uid: &str, name: &str) -> Option<v1::PodCondition> {
        let conditions = self.status(uid)?.conditions?;
        conditions.into_iter().find(|condition| condition.type_ == name)
    }

    fn is_pending(&self, uid: &str, reason: &str) -> bool {
        self.resize_condition(uid, "PodResizePending").is_some_and(|it| it.reason.as_deref() == Some(reason))
    }

    fn app(&self, uid: &str) -> (String, i64, i64) {
        let seen = self.runtime.container(uid, "app").expect("it is there");
        let has = seen.resources.expect("it was made with some");
        (seen.id, has.cpu_shares, has.memory)
    }

    fn allocated_cpu(&self, uid: &str) -> Option<String> {
        let statuses = self.status(uid)?.container_statuses?;
        Some(statuses[0].allocated_resources.as_ref()?.get("cpu")?.0.clone())
    }

    /// The pod has that much CPU, and nothing of a resize is left to do.
    async fn until_resized(&self, uid: &str, cpu: &str) {
        self.until("it is resized", |bed| {
            let settled = ["PodResizePending", "PodResizeInProgress"]
                .iter()
                .all(|name| bed.resize_condition(uid, name).is_none());
            settled && bed.allocated_cpu(uid).as_deref() == Some(cpu)
        })
        .await;
    }
}

#[tokio::test]
async fn a_container_is_resized_as_it_runs() {
    let bed = Bed::new();
    bed.source.set(vec![plain("a", "500m")]);
    bed.until_ready(&[plain("a", "500m")]).await;
    let (id, shares, _) = bed.app("a");
    assert_eq!(shares, 512);
    bed.source.set(vec![sized("a", "1", "128Mi", "NotRequired")]);
    bed.until_resized("a", "1").await;
    assert_eq!(bed.app("a"), (id, 1024, 128 << 20));
    assert_eq!(bed.restarts("a", "app"), 0);
    for event in ["ResizeStarted", "ResizeCompleted"] {
        assert!(bed.has_event("a", event), "{event}");
    }
    let status = bed.status("a").unwrap().container_statuses.unwrap();
    let shown = status[0].resources.clone().unwrap().requests.unwrap();
    assert_eq!((shown["cpu"].0.as_str(), shown["memory"].0.as_str()), ("1", "128Mi"));
}

#[tokio::test]
async fn its_policy_restarts_it() {
    let bed = Bed::new();
    let pods = [sized("a", "500m", "64Mi", "RestartContainer"), plain("b", "500m")];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    let (first, other) = (bed.app("a"), bed.app("b"));
    bed.source.set(vec![sized("a", "500m", "128Mi", "RestartContainer"), plain("b", "500m")]);
    bed.until("it runs anew", |bed| bed.restarts("a", "app") == 1 && bed.is_ready("a")).await;
    bed.until_resized("a", "500m").await;
    let now = bed.app("a");
    assert!(now.0 != first.0 && now.2 == 128 << 20);
    assert_eq!(bed.app("b"), other);
}

#[tokio::test]
async fn a_deferred_one_is_given_when_another_pod_ends() {
    let bed = Bed::new();
    let pods = [plain("a", "1"), plain("b", "2500m")];
    bed.source.set(pods.to_vec());
    bed.until_ready(&pods).await;
    let before = bed.app("a");
    let wanted = plain("a", "2");
    bed.source.set(vec![wanted.clone(), plain("b", "2500m")]);
    bed.until("it is deferred", |bed| bed.is_pending("a", "Deferred")).await;
    let pending = bed.resize_condition("a", "PodResizePending").unwrap();
    let message = "Node didn't have enough resource: cpu, requested: 2000, used: 2500, capacity: 4000";
    assert_eq!(pending.message.as_deref(), Some(message));
    let told = bed.events.events(Some("a")).into_iter().find(|event| event.reason == "ResizeDeferred").unwrap();
    assert!(told.message.starts_with("Pod resize OutOfcpu: {"), "{}", told.message);
    assert_eq!((bed.app("a"), bed.allocated_cpu("a").as_deref()), (before.clone(), Some("1")));
    // Neither its own restart nor the agent's gives it what there is no room for.
    let bed = bed.restart().await;
    bed.source.set(vec![wanted.clone(), plain("b", "2500m")]);
    bed.until("it is still deferred", |bed| bed.is_pending("a", "Deferred") && bed.is_ready("a")).await;
    assert_eq!((bed.app("a"), bed.restarts("a", "app")), (before.clone(), 0));
    bed.source.set(vec![wanted]);
    bed.until_resized("a", "2").await;
    assert_eq!(bed.app("a"), (before.0, 2048, before.2));
}

#[tokio::test]
async fn what_can_never_be_given_or_is_taken_back() {
    let bed = Bed::new();
    bed.source.set(vec![plain("a", "1")]);
    bed.until_ready(&[plain("a", "1")]).await;
    let before = bed.app("a");
    bed.source.set(vec![plain("a", "5")]);
    bed.until("it is infeasible", |bed| bed.is_pending("a", "Infeasible")).await;
    let pending = bed.resize_condition("a", "PodResizePending").unwrap();
    assert_eq!(
        pending.message.as_deref(),
        Some("Node didn't have enough capacity: cpu, requested: 5000, capacity: 4000")
    );
    assert!(bed.has_event("a", "ResizeInfeasible"));
    bed.source.set(vec![plain("a", "1")]);
    bed.until("it is not wanted any more", |bed| !bed.is_pending("a", "Infeasible")).await;
    assert_eq!((bed.app("a"), bed.runtime.calls("update")), (before, 0));
}

#[tokio::test]
async fn memory_that_is_in_use_is_not_taken() {
    let bed = Bed::new();
    bed.source.set(vec![sized("a", "1", "128Mi", "NotRequired")]);
    bed.until_ready(&[plain("a", "1")]).await;
    let before = bed.app("a");
    bed.stats.pod_is_charged("a", 100 << 20);
    bed.source.set(vec![sized("a", "1", "64Mi", "NotRequired")]);
    let failed = |bed: &Bed| {
        bed.resize_condition("a", "PodResizeInProgress").is_some_and(|it| it.reason.as_deref() == Some("Error"))
    };
    bed.until("it fails", failed).await;
    let message = bed.resize_condition("a", "PodResizeInProgress").unwrap().message.unwrap();
    assert_eq!(
        message,
        "cannot decrease memory limits: [attempting to set pod memory limit (67108864) below current usage (104857600), \
         attempting to set container \"app\" memory limit (67108864) below current usage (104857600)]"
    );
    assert!(bed.has_event("a", "ResizeError"));
    assert_eq!(bed.app("a"), before);
    bed.stats.pod_is_charged("a", 10 << 20);
    bed.until_resized("a", "1").await;
    assert_eq!(bed.app("a"), (before.0, before.1, 64 << 20));
}

#[tokio::test]
async fn a_runtime_that_fails_is_asked_again_also_by_the_next_agent() {
    let bed = Bed::new();
    bed.source.set(vec![plain("a", "1")]);
    bed.until_ready(&[plain("a", "1")]).await;
    let before = bed.app("a");
    bed.runtime.fail("update", 1);
    bed.source.set(vec![plain("a", "2")]);
    bed.until("it fails", |bed| bed.has_event("a", "ResizeError")).await;
    let bed = bed.kill().await;
    bed.source.set(vec![plain("a", "2")]);
    bed.until_resized("a", "2").await;
    assert_eq!(bed.app("a"), (before.0, 2048, before.2));
    assert_eq!(bed.restarts("a", "app"), 0);
}

#[tokio::test]
async fn a_pod_is_resized_as_a_whole() {
    let whole = |cpu: &str, memory: &str| {
        let list = format!("{{cpu: {cpu}, memory: {memory}}}");
        let spec =
            format!("{{resources: {{requests: {list}, limits: {list}}}, containers: [{{name: app, image: app}}]}}");
        pod("a", &spec)
    };
    let bed = Bed::new();
    bed.source.set(vec![whole("500m", "64Mi")]);
    bed.until_ready(&[whole("500m", "64Mi")]).await;
    let (id, _, memory) = bed.app("a");
    assert_eq!(memory, 64 << 20);
    bed.source.set(vec![whole("1", "128Mi")]);
    let has = |bed: &Bed, cpu: &str| {
        let status = bed.status("a")?;
        let limits = status.resources?.limits?;
        (status.allocated_resources?["cpu"].0 == cpu && limits["cpu"].0 == cpu).then_some(())
    };
    bed.until("it has what it was given", |bed| {
        has(bed, "1").is_some() && bed.resize_condition("a", "PodResizeInProgress").is_none()
    })
    .await;
    let (now, _, memory) = bed.app("a");
    assert_eq!((now, memory, bed.restarts("a", "app")), (id, 128 << 20, 0));
    // The node has 4 cores: it keeps what it has.
    bed.source.set(vec![whole("5", "128Mi")]);
    bed.until("it is infeasible", |bed| bed.is_pending("a", "Infeasible")).await;
    assert!(has(&bed, "1").is_some());
    // And gives up what it is told to.
    bed.stats.pod_is_charged("a", 10 << 20);
    bed.source.set(vec![whole("250m", "32Mi")]);
    bed.until("it has less", |bed| {
        has(bed, "250m").is_some() && bed.resize_condition("a", "PodResizeInProgress").is_none()
    })
    .await;
    assert_eq!(bed.app("a").2, 32 << 20);
}
