//! The pods' network: which one they are on, what they wait for, and what is taken back.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use longshore_core::container::SandboxNetwork;
use longshore_core::network::BridgeNetwork;
use longshore_core::observed::{Observation, Sandbox};
use longshore_core::ports::network::BridgeNetworks;
use longshore_reconcile::network::NetworkOptions;
use longshore_tests::network::FakeNetwork;
use longshore_tests::pod;

use crate::bed::Bed;

const APP: &str = "{containers: [{name: app, image: app}]}";

fn in_cluster() -> NetworkOptions {
    NetworkOptions { in_cluster: true, wait: Duration::from_millis(300), ..Default::default() }
}

fn with_plugins() -> NetworkOptions {
    NetworkOptions { plugins: true, ..Default::default() }
}

fn node(pod_cidrs: &[&str]) -> v1::Node {
    let pod_cidrs = pod_cidrs.iter().map(|&cidr| cidr.to_owned()).collect();
    v1::Node { spec: Some(v1::NodeSpec { pod_cidrs: Some(pod_cidrs), ..Default::default() }), ..Default::default() }
}

fn docker0() -> BridgeNetwork {
    let subnets = vec!["172.17.0.0/16".parse().unwrap()];
    BridgeNetwork { id: "0".to_owned(), name: "bridge".to_owned(), subnets, is_default: true, ..Default::default() }
}

fn network() -> Arc<FakeNetwork> {
    let network = Arc::new(FakeNetwork::default());
    network.add(docker0());
    network
}

#[tokio::test]
async fn what_only_plugins_are_told_may_be_wrong_where_there_are_none() {
    let bed = Bed::new();
    let mut wrong = pod("a", APP);
    let metadata = &mut Arc::make_mut(&mut wrong.object).metadata;
    metadata.annotations.get_or_insert_default().insert("kubernetes.io/ingress-bandwidth".into(), "much".into());
    bed.source.set(vec![wrong.clone()]);
    bed.until_ready(&[wrong.clone()]).await;
    assert!(bed.has_event("a", "BandwidthIgnored"));

    let bed = Bed::with_network(network(), with_plugins());
    bed.source.set(vec![wrong]);
    bed.until("it is told", |bed| bed.has_event("a", "FailedCreatePodSandBox")).await;
}

impl Bed {
    fn sandbox(&self, uid: &str) -> Option<Sandbox> {
        let mut of_pod = self.runtime.things().into_iter().filter_map(|thing| match thing {
            Observation::Sandbox(sandbox) if sandbox.pod.uid == uid => Some(sandbox),
            _ => None,
        });
        of_pod.next()
    }

    fn network_of(&self, uid: &str) -> Option<SandboxNetwork> {
        self.sandbox(uid).map(|sandbox| sandbox.network)
    }

    fn node_events(&self, reason: &str) -> usize {
        let all = self.events.events(None);
        all.iter().filter(|event| event.pod.is_none() && event.reason == reason).map(|event| event.count as usize).sum()
    }
}

#[tokio::test]
async fn alone_pods_are_on_the_default_network() {
    let bed = Bed::new();
    bed.source.set(vec![pod("a", APP)]);
    bed.until("it runs", |bed| bed.is_ready("a")).await;
    assert_eq!(bed.network_of("a"), Some(SandboxNetwork::Default));
}

#[tokio::test]
async fn pods_wait_for_the_nodes_network_and_are_on_it() {
    let bed = Bed::with_network(network(), NetworkOptions { wait: Duration::from_secs(60), ..in_cluster() });
    bed.source.set(vec![pod("a", APP), pod("host", "{hostNetwork: true, containers: [{name: app, image: app}]}")]);
    bed.until("a pod of the node's network need not wait", |bed| bed.is_ready("host")).await;
    bed.views.set_node(Some(Arc::new(node(&[]))));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bed.network_of("a"), None, "it waits");
    bed.views.set_node(Some(Arc::new(node(&["10.244.3.0/24"]))));
    bed.until("it runs", |bed| bed.is_ready("a")).await;
    let name = "longshore-root-10.244.3.0_24";
    assert_eq!(bed.network_of("a"), Some(SandboxNetwork::Named(name.to_owned())));
    let filtered: Vec<String> = bed.network.filtered().subnets.iter().map(ToString::to_string).collect();
    assert_eq!((filtered, bed.node_events("PodCIDRMissing")), (vec!["10.244.3.0/24".to_owned()], 0));
    // Pruned under us, with nothing running on it but what does not run any more: made again.
    bed.network.remove(name);
    bed.runtime.fail("start", 1);
    bed.source.set(vec![pod("a", APP), pod("b", APP)]);
    bed.until("the network is there again", |bed| bed.network.names().contains(&name.to_owned())).await;
    bed.until("it runs", |bed| bed.is_ready("b")).await;
}

#[tokio::test]
async fn the_nodes_network_has_packets_that_the_machines_own_carries() {
    let bed = Bed::with_network(network(), in_cluster());
    bed.surroundings.lock().unwrap().ips = vec!["192.0.2.1".parse().unwrap()];
    bed.views.set_node(Some(Arc::new(node(&["10.244.3.0/24"]))));
    bed.until("it is made", |bed| bed.node_events("PodNetworkCreated") == 1).await;
    let made = bed.network.networks().await.unwrap().into_iter().find(|network| network.ours).unwrap();
    assert_eq!(made.mtu.as_deref(), Some("1400"));
}

#[tokio::test]
async fn without_one_they_are_on_the_default_network_until_it_comes() {
    let bed = Bed::with_network(network(), in_cluster());
    bed.views.set_node(Some(Arc::new(node(&[]))));
    bed.source.set(vec![pod("a", APP)]);
    bed.until("it runs", |bed| bed.is_ready("a")).await;
    assert_eq!((bed.network_of("a"), bed.node_events("PodCIDRMissing")), (Some(SandboxNetwork::Default), 1));
    bed.views.set_node(Some(Arc::new(node(&["10.244.3.0/24"]))));
    bed.until("it is made", |bed| bed.node_events("PodNetworkCreated") == 1).await;
    let bed = bed.restart().await;
    bed.views.set_node(Some(Arc::new(node(&["10.244.3.0/24"]))));
    bed.source.set(vec![pod("a", APP), pod("b", APP)]);
    bed.until("the new one runs", |bed| bed.is_ready("b")).await;
    assert!(matches!(bed.network_of("b"), Some(SandboxNetwork::Named(_))));
    assert_eq!(bed.network_of("a"), Some(SandboxNetwork::Default), "what runs is left alone");
    assert_eq!((bed.restarts("a", "app"), bed.node_events("PodCIDRMissing")), (0, 0));
}

#[tokio::test]
async fn what_is_in_the_way_is_told_and_waited_for() {
    let network = network();
    let subnets = vec!["10.244.0.0/16".parse().unwrap()];
    network.add(BridgeNetwork { id: "1".to_owned(), name: "other".to_owned(), subnets, ..Default::default() });
    let bed = Bed::with_network(network, in_cluster());
    bed.views.set_node(Some(Arc::new(node(&["10.244.3.0/24"]))));
    bed.source.set(vec![pod("a", APP)]);
    bed.until("it is told", |bed| bed.has_event("a", "NetworkNotReady")).await;
    let told =
        bed.events.events(None).into_iter().find(|event| event.pod.is_none() && event.reason == "NetworkNotReady");
    assert!(told.unwrap().message.contains("docker network rm other"));
    bed.network.remove("other");
    bed.until("it runs", |bed| bed.is_ready("a")).await;
}

#[tokio::test]
async fn a_packet_filter_that_fails_is_told_and_tried_again() {
    let network = network();
    network.set_unfiltered(Some("no rules today"));
    let bed = Bed::with_network(network, in_cluster());
    bed.views.set_node(Some(Arc::new(node(&["10.244.3.0/24"]))));
    bed.source.set(vec![pod("a", APP)]);
    bed.until("it runs all the same", |bed| bed.is_ready("a")).await;
    let told = bed.events.events(None).into_iter().find(|event| event.reason == "PacketFilterFailed").unwrap();
    assert!(told.pod.is_none() && told.message.contains("no rules today"), "{}", told.message);
    bed.network.set_unfiltered(None);
    bed.until("it is tried again", |bed| bed.node_events("PacketFilterReady") == 1).await;
    assert!(bed.network.filtered().runtime_masquerades, "the network was made with the runtime's masquerading");
    assert_eq!(bed.node_events("PacketFilterFailed"), 1, "once, whatever the number of tries");
}

#[tokio::test]
async fn an_operators_rule_that_counts_before_ours_is_told() {
    let network = network();
    network.set_behind("iptables-nft -A DOCKER-USER -i eth0 -j DROP");
    let bed = Bed::with_network(network, in_cluster());
    bed.views.set_node(Some(Arc::new(node(&["10.244.3.0/24"]))));
    bed.until("it is told", |bed| bed.node_events("PacketFilterOrder") == 1).await;
    let told = bed.events.events(None).into_iter().find(|event| event.reason == "PacketFilterOrder").unwrap();
    for part in ["-i eth0 -j DROP", "iptables-nft -I DOCKER-USER -s 10.244.0.0/16 -d 10.244.3.0/24 -j ACCEPT"] {
        assert!(told.message.contains(part), "{}", told.message);
    }
}

#[tokio::test]
async fn in_a_cluster_what_goes_between_pods_of_a_node_is_filtered_and_a_failure_holds_up_none() {
    let network = network();
    network.set_unbridged(Some("no module today"));
    let bed = Bed::with_network(network, in_cluster());
    bed.views.set_node(Some(Arc::new(node(&["10.244.3.0/24"]))));
    bed.source.set(vec![pod("a", APP)]);
    bed.until("it runs all the same", |bed| bed.is_ready("a")).await;
    bed.until("it is told", |bed| bed.node_events("BridgeFilterFailed") == 1).await;
    let told = bed.events.events(None).into_iter().find(|event| event.reason == "BridgeFilterFailed").unwrap();
    assert!(told.pod.is_none() && told.message.contains("no module today"), "{}", told.message);
    let looks = bed.network.bridged();
    bed.views.set_node(Some(Arc::new(node(&["10.244.4.0/24"]))));
    bed.until("it is tried again", |bed| bed.network.bridged() > looks).await;
    bed.network.set_unbridged(None);
    bed.until("it works", |bed| bed.node_events("BridgeFilterReady") == 1).await;
    assert_eq!(bed.node_events("BridgeFilterFailed"), 1, "once, whatever the number of tries");

    let network = self::network();
    network.never_bridges();
    let bed = Bed::with_network(network, in_cluster());
    bed.views.set_node(Some(Arc::new(node(&["10.244.3.0/24"]))));
    bed.source.set(vec![pod("a", APP)]);
    bed.until("it runs all the same", |bed| bed.is_ready("a")).await;

    let bed = Bed::new();
    bed.source.set(vec![pod("a", APP)]);
    bed.until("it runs", |bed| bed.is_ready("a")).await;
    assert_eq!(bed.network.bridged(), 0, "a node alone has no Services");
}

#[tokio::test]
async fn in_a_cluster_others_find_the_kubelets_chains() {
    for plugins in [true, false] {
        let bed = Bed::with_network(network(), NetworkOptions { plugins, ..in_cluster() });
        bed.until("they are made", |bed| bed.network.has_chains()).await;
    }
    for options in [NetworkOptions { util_chains: false, ..in_cluster() }, NetworkOptions::default()] {
        let bed = Bed::with_network(network(), options);
        bed.source.set(vec![pod("a", APP)]);
        bed.until("it runs", |bed| bed.is_ready("a")).await;
        assert!(!bed.network.has_chains());
    }
}

#[tokio::test]
async fn in_a_cluster_pods_reach_themselves_from_their_start_on() {
    let bed = Bed::with_network(network(), in_cluster());
    bed.network.set_one_way("no file today");
    bed.views.set_node(Some(Arc::new(node(&["10.244.3.0/24"]))));
    bed.until("the network is there", |bed| bed.node_events("HairpinFailed") == 1).await;
    let looks = bed.network.hairpins().len();
    bed.source.set(vec![pod("a", APP)]);
    bed.until("it runs all the same", |bed| bed.is_ready("a")).await;
    let all = bed.network.hairpins();
    let own = SandboxNetwork::Named("longshore-root-10.244.3.0_24".to_owned());
    assert!(all.len() > looks && all.iter().all(|network| *network == own), "{all:?}");
    assert_eq!(bed.node_events("HairpinFailed"), 1, "once, whatever the number of tries");

    for options in [NetworkOptions { hairpin: false, ..in_cluster() }, NetworkOptions::default()] {
        let bed = Bed::with_network(network(), options);
        bed.source.set(vec![pod("a", APP)]);
        bed.until("it runs", |bed| bed.is_ready("a")).await;
        assert!(bed.network.hairpins().is_empty(), "it is not wanted, or there are no Services");
    }
}

#[tokio::test]
async fn plugins_attach_and_take_back() {
    let network = network();
    network.attach_before("sandbox-of-a-former-life");
    let bed = Bed::with_network(network, with_plugins());
    bed.until("leftovers go", |bed| bed.network.calls() == ["detach sandbox-of-a-former-life"]).await;
    bed.network.fail(1);
    bed.source.set(vec![pod("a", APP)]);
    bed.until("it is told", |bed| bed.has_event("a", "FailedCreatePodSandBox")).await;
    bed.until("it runs", |bed| bed.is_ready("a")).await;
    let status = bed.status("a").unwrap();
    assert_eq!(status.pod_ip.as_deref(), Some("10.88.0.1"));
    let id = bed.sandbox("a").unwrap().id;
    let attach = format!("attach {id}");
    assert_eq!(bed.network.calls()[1..], [attach.clone(), attach], "the same sandbox was tried again");

    // Neither an end of the agent nor another way to make networks moves what runs.
    let bed = bed.restart().await;
    bed.source.set(vec![pod("a", APP)]);
    bed.until("it is known again", |bed| bed.status("a").is_some_and(|status| status.pod_ip.is_some())).await;
    assert_eq!((bed.status("a").unwrap().pod_ip, bed.restarts("a", "app")), (Some("10.88.0.1".to_owned()), 0));

    // A dead sandbox is taken back before the next one is attached.
    bed.runtime.end(&id, 137);
    bed.until("it runs in another sandbox", |bed| {
        bed.is_ready("a") && bed.status("a").unwrap().pod_ip.as_deref() == Some("10.88.0.2")
    })
    .await;
    let second = bed.network.calls().iter().rposition(|call| call.starts_with("attach")).unwrap();
    let first = bed.network.calls().iter().position(|call| *call == format!("detach {id}")).unwrap();
    assert!(first < second, "{:?}", bed.network.calls());
    let last = bed.network.calls()[second].replace("attach", "detach");
    bed.source.set(Vec::new());
    bed.until("everything is gone", |bed| bed.runtime.things().is_empty()).await;
    assert_eq!(bed.network.calls().last(), Some(&last));
}

#[tokio::test]
async fn plugins_do_not_wait_for_dockers_list_of_networks() {
    let network = network();
    network.never_lists();
    let bed = Bed::with_network(network, with_plugins());
    bed.source.set(vec![pod("a", APP)]);
    bed.until("it runs", |bed| bed.is_ready("a")).await;
}

#[tokio::test]
async fn a_network_of_ours_goes_when_plugins_take_its_place() {
    let bed = Bed::with_network(network(), in_cluster());
    let of_node = Arc::new(node(&["10.244.3.0/24"]));
    bed.views.set_node(Some(of_node.clone()));
    bed.source.set(vec![pod("a", APP)]);
    bed.until("it runs", |bed| bed.is_ready("a")).await;
    let bed = bed.restart_on(NetworkOptions { in_cluster: true, ..with_plugins() }).await;
    // Before the Node is known, nobody can say whether it is in the way.
    let host = pod("host", "{hostNetwork: true, containers: [{name: app, image: app}]}");
    bed.source.set(vec![pod("a", APP), pod("b", APP), host]);
    bed.until("a pod of the node's network need not wait", |bed| bed.is_ready("host")).await;
    bed.views.set_node(Some(of_node));
    bed.until("the other waits", |bed| bed.has_event("b", "NetworkNotReady")).await;
    assert!(bed.network.calls().is_empty(), "it never was on a network that overlaps");
    assert!(
        bed.health.problems().iter().any(|problem| problem.ends_with("delete these pods: default/a")),
        "{:?}",
        bed.health.problems()
    );
    assert_eq!((bed.network.names().len(), bed.network.filtered().subnets.len()), (2, 1), "what runs is left alone");
    bed.source.set(vec![pod("b", APP)]);
    bed.until("it runs", |bed| bed.is_ready("b")).await;
    assert_eq!(bed.network_of("b"), Some(SandboxNetwork::Detached));
    assert_eq!((bed.network.names(), bed.network.filtered().subnets.len()), (vec!["bridge".to_owned()], 0));

    // The same after its cluster.
    let bed = bed.restart_on(in_cluster()).await;
    bed.views.set_node(Some(Arc::new(node(&["10.244.3.0/24"]))));
    bed.until("there is one again", |bed| bed.network.names().len() == 2).await;
    let bed = bed.restart_on(NetworkOptions::default()).await;
    bed.until("it is gone", |bed| bed.network.names() == ["bridge"]).await;
}

#[tokio::test]
async fn pods_wait_for_plugins_but_those_of_the_nodes_network() {
    let network = network();
    network.set_not_ready(Some("cni config uninitialized"));
    let bed = Bed::with_network(network, with_plugins());
    bed.source.set(vec![pod("a", APP), pod("host", "{hostNetwork: true, containers: [{name: app, image: app}]}")]);
    bed.until("the other runs", |bed| bed.is_ready("host")).await;
    bed.until("it is told", |bed| bed.has_event("a", "NetworkNotReady")).await;
    assert_eq!(bed.network_of("a"), None);
    let problems = bed.health.problems();
    let expected = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:docker: \
                    network plugin is not ready: cni config uninitialized";
    assert_eq!(problems, ["container runtime is down: it has not answered yet", expected]);
    bed.network.set_not_ready(None);
    bed.until("it runs", |bed| bed.is_ready("a")).await;
    assert_eq!(bed.health.problems().len(), 1);
}
