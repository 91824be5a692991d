//! What the node tells its API server of itself: its status in time, its version, and events.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use longshore_core::cluster::node::NodeDescription;
use longshore_core::event::EventType;
use longshore_core::pod::{PodId, Source};
use longshore_core::ports::cluster::ClusterApi;
use longshore_core::ports::events::EventSink;
use longshore_core::view::{PodView, Standing};
use longshore_reconcile::cluster::{self, Cluster, ClusterOptions};
use longshore_reconcile::events::EventRing;
use longshore_reconcile::views::Views;
use longshore_tests::cluster::FakeCluster;
use longshore_tests::runtime::{FakeRuntime, info};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The node's loops before an API server in memory.
struct Joined {
    api: Arc<FakeCluster>,
    runtime: Arc<FakeRuntime>,
    events: Arc<EventRing>,
    views: Arc<Views>,
    addresses: watch::Sender<Vec<std::net::IpAddr>>,
    _stop: DropGuard,
}

fn join(api: FakeCluster) -> Joined {
    let (api, events, stop) = (Arc::new(api), EventRing::new(), CancellationToken::new());
    let views: Arc<Views> = Arc::default();
    let runtime: Arc<FakeRuntime> = Arc::default();
    let addresses = watch::Sender::new(vec![[10, 0, 0, 1].into()]);
    let description = NodeDescription {
        name: "n1".to_owned(),
        boot_id: "second".to_owned(),
        version: "0.1.0".to_owned(),
        ..Default::default()
    };
    let loops = Cluster {
        api: api.clone(),
        own_node: api.clone(),
        pods: api.clone(),
        runtime: runtime.clone(),
        views: views.clone(),
        events: events.clone(),
        health: Arc::default(),
        description,
        addresses: addresses.subscribe(),
        options: ClusterOptions::default(),
    };
    tokio::spawn(cluster::run(loops, stop.clone()));
    Joined { api, runtime, events, views, addresses, _stop: stop.drop_guard() }
}

impl Joined {
    async fn until(&self, what: &str, is: impl Fn(&FakeCluster) -> bool) {
        let looked = async {
            while !is(&self.api) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let limit = Duration::from_secs(3600);
        assert!(tokio::time::timeout(limit, looked).await.is_ok(), "not within {limit:?}: {what}");
    }

    /// Something happens to so many pods, while the loops get their turns as well.
    async fn happen(&self, reason: &str, pods: usize) {
        for number in 0..pods {
            let name = format!("p{number}");
            let pod = PodId { namespace: "default".to_owned(), name: name.clone(), uid: name };
            self.events.record(&pod, None, EventType::Normal, reason, "it was seen");
            tokio::task::yield_now().await;
        }
    }

    fn kubelet_version(&self) -> String {
        let node = self.api.the_node().and_then(|node| node.status?.node_info);
        node.map(|info| info.kubelet_version).unwrap_or_default()
    }
}

#[tokio::test(start_paused = true)]
async fn events_wait_for_an_api_server_that_is_slow() {
    let joined = join(FakeCluster::default());
    joined.api.block_events(true);
    joined.until("it is asked", |api| !api.tries().is_empty()).await;
    joined.happen("Seen", 600).await;
    joined.api.block_events(false);
    joined.until("all arrive", |api| api.events("Seen").len() == 600).await;
}

#[tokio::test(start_paused = true)]
async fn events_that_wait_are_no_more_than_fit() {
    let joined = join(FakeCluster::default());
    joined.api.block_events(true);
    joined.until("it is asked", |api| !api.tries().is_empty()).await;
    joined.happen("Seen", 1500).await;
    joined.api.block_events(false);
    joined.until("those arrive that fit", |api| api.events("Seen").len() >= 1000 - 10).await;
    joined.happen("Last", 1).await;
    joined.until("what comes later does too", |api| api.events("Last").len() == 1).await;
    let seen = joined.api.events("Seen").len();
    assert!(seen <= 1000, "{seen}");
}

#[tokio::test(start_paused = true)]
async fn an_event_whose_answer_was_lost_is_there_once() {
    let joined = join(FakeCluster::default());
    joined.until("it is registered", |api| api.posts() > 0).await;
    joined.api.lose_answers(1);
    joined.happen("Seen", 1).await;
    joined.until("created", |api| !api.events("Seen").is_empty()).await;
    joined.happen("Seen", 1).await;
    joined.until("counted", |api| !api.counts().is_empty()).await;
    let name = joined.api.events("Seen").remove(0).metadata.name.unwrap();
    assert_eq!(joined.api.counts(), [(name.clone(), 2)]);
    assert_eq!(joined.api.tries().iter().filter(|tried| **tried == name).count(), 2);
    assert_eq!(joined.api.events("Seen").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_status_that_stays_as_it_is_is_posted_each_report_frequency() {
    let joined = join(FakeCluster::default());
    joined.until("it is posted", |api| api.posts() == 1).await;
    let began = tokio::time::Instant::now();
    joined.until("it is posted again", |api| api.posts() == 2).await;
    let report = ClusterOptions::default().report;
    let within = report..report + ClusterOptions::default().update + Duration::from_secs(1);
    assert!(within.contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_hangs_keeps_nothing_from_being_told_and_has_the_images_that_it_had() {
    let joined = join(FakeCluster::default());
    joined.runtime.has_image("busybox:1");
    joined.until("it is posted", |api| api.posts() > 0).await;
    joined.runtime.hides_images.store(true, Ordering::Relaxed);
    let began = tokio::time::Instant::now();
    joined.addresses.send_replace(vec![[10, 0, 0, 2].into()]);
    joined.until("posted again", |api| api.posts() > 1).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let images = joined.api.the_node().unwrap().status.unwrap().images.unwrap();
    assert_eq!(images[0].names.as_deref(), Some(["busybox:1".to_owned()].as_slice()));
}

#[tokio::test(start_paused = true)]
async fn the_version_follows_the_api_servers_and_is_never_newer() {
    let api = FakeCluster::default();
    *api.version.lock().unwrap() = (1, 35);
    let joined = join(api);
    joined.until("it is posted", |api| api.posts() > 0).await;
    assert_eq!(joined.kubelet_version(), "v1.35.0+longshore.0.1.0");
    *joined.api.version.lock().unwrap() = (1, 36);
    let posts = joined.api.posts();
    let began = tokio::time::Instant::now();
    joined.until("upgraded", |_| joined.kubelet_version() == "v1.36.0+longshore.0.1.0").await;
    assert!(began.elapsed() < Duration::from_secs(700), "{:?}", began.elapsed());
    assert!(joined.api.posts() > posts);
    // And back, as a cluster whose upgrade failed: the node must not be newer for long.
    *joined.api.version.lock().unwrap() = (1, 35);
    joined.until("downgraded", |_| joined.kubelet_version() == "v1.35.0+longshore.0.1.0").await;
}

#[tokio::test(start_paused = true)]
async fn the_last_version_does_while_none_is_told() {
    let joined = join(FakeCluster::default());
    joined.until("it is posted", |api| api.posts() > 0).await;
    joined.api.hides_version.store(true, Ordering::Relaxed);
    // For longer than a version holds.
    joined.until("it is posted on and on", |api| api.posts() > 5).await;
    joined.api.hides_version.store(false, Ordering::Relaxed);
    *joined.api.version.lock().unwrap() = (1, 37);
    joined.until("the new one is told", |_| joined.kubelet_version() == "v1.37.0+longshore.0.1.0").await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_booted_again_says_so_once() {
    let node = |boot_id: &str| {
        let mut node = v1::Node::default();
        node.metadata.name = Some("n1".to_owned());
        let info = v1::NodeSystemInfo { boot_id: boot_id.to_owned(), ..Default::default() };
        node.status = Some(v1::NodeStatus { node_info: Some(info), ..Default::default() });
        node
    };
    for (known, times) in [("first", 1), ("second", 0)] {
        let api = FakeCluster::default();
        api.put_node(node(known));
        let joined = join(api);
        joined.until("it is posted again", |api| api.posts() > 1).await;
        assert_eq!(joined.api.events("Rebooted").len(), times, "{known}");
    }
}

#[tokio::test(start_paused = true)]
async fn another_runtime_is_told_when_it_is_found() {
    let joined = join(FakeCluster::default());
    joined.until("it is posted", |api| api.posts() > 0).await;
    let began = tokio::time::Instant::now();
    joined.views.set_runtime(info("29.1.0", &["gvisor", "runc"]));
    joined.until("posted again", |api| api.posts() > 1).await;
    assert!(began.elapsed() < ClusterOptions::default().update, "{:?}", began.elapsed());
    let status = joined.api.the_node().unwrap().status.unwrap();
    assert_eq!(status.node_info.unwrap().container_runtime_version, "docker://29.1.0");
    let handlers: Vec<_> = status.runtime_handlers.unwrap().into_iter().filter_map(|handler| handler.name).collect();
    assert!(handlers.contains(&"gvisor".to_owned()), "{handlers:?}");
}

#[tokio::test(start_paused = true)]
async fn what_an_api_server_left_out_of_a_pods_status_is_told_to_a_newer_one() {
    let pod = longshore_tests::pod("a", "{containers: [{name: app, image: app}]}");
    let api = FakeCluster::default();
    *api.unknown.lock().unwrap() = Some("observedGeneration");
    api.create_pod(&pod.object).await.unwrap();
    let joined = join(api);
    let status = serde_json::from_value(json!({"phase": "Running", "observedGeneration": 3})).unwrap();
    joined.views.publish(PodView {
        id: pod.id.clone(),
        source: Source::Api,
        object: v1::Pod { status: Some(status), ..(*pod.object).clone() },
        sandbox: None,
        steps: Vec::new(),
        probes: Vec::new(),
        standing: Standing::default(),
    });
    joined.until("it is told", |api| api.reports() > 0).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(joined.api.reports(), 1, "what is left out is not sent again and again");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(joined.api.reports(), 2, "but now and then: another one may answer");
    *joined.api.unknown.lock().unwrap() = None;
    *joined.api.version.lock().unwrap() = (1, 37);
    joined.until("all is told", |api| api.reports() > 2).await;
    let now = joined.api.pod("default", "a").await.unwrap().unwrap();
    assert_eq!(json!(now.status)["observedGeneration"], 3);
}
