//! Networks of our own, and sandboxes on them and on none.

use std::process::Command;

use longshore_core::container::{PortMapping, SandboxNetwork};
use longshore_core::network::OwnNetwork;
use longshore_core::network::rules::PacketFilter;
use longshore_core::ports::network::BridgeNetworks;
use longshore_core::ports::runtime::ContainerRuntime;

use crate::world::World;

/// A network of the world's root, that goes with it.
struct Own<'a> {
    world: &'a World,
    name: String,
}

impl<'a> Own<'a> {
    /// Addresses that no other test of this process takes.
    async fn new(world: &'a World, third: u8, masquerade: bool) -> Self {
        let name = format!("{}-{third}", world.root);
        let subnets = vec![format!("10.213.{third}.0/24").parse().unwrap()];
        let network = OwnNetwork { name: name.clone(), subnets, mtu: None };
        world.docker.create_network(&network, masquerade).await.unwrap();
        // As after an answer that was lost.
        world.docker.create_network(&network, masquerade).await.unwrap();
        Own { world, name }
    }

    async fn ids(&self) -> Vec<String> {
        let all = self.world.docker.networks().await.unwrap();
        all.into_iter().filter(|network| network.ours && network.name == self.name).map(|network| network.id).collect()
    }

    async fn remove(self) {
        for id in self.ids().await {
            self.world.docker.remove_network(&id).await.unwrap();
            self.world.docker.remove_network(&id).await.unwrap();
        }
        assert!(self.ids().await.is_empty());
    }
}

#[tokio::test]
async fn pods_of_our_own_network() {
    let Some(world) = World::new().await else { return };
    let own = Own::new(&world, 1, true).await;
    assert_eq!(own.ids().await.len(), 1);
    assert!(world.docker.networks().await.unwrap().iter().any(|network| network.is_default && !network.ours));
    let mut ids = Vec::new();
    for attempt in 0..2 {
        let mut config = world.sandbox(attempt);
        config.network = SandboxNetwork::Named(own.name.clone());
        config.ports = vec![PortMapping {
            host_port: 12_180 + attempt as u16,
            container_port: 80,
            protocol: "tcp".to_owned(),
            host_ip: None,
        }];
        let id = world.docker.create_sandbox(&config).await.unwrap();
        world.docker.start(&id).await.unwrap();
        let seen = world.see_sandbox(&id).await;
        assert_eq!(seen.network, config.network);
        assert!(seen.ips[0].to_string().starts_with("10.213.1."), "{:?}", seen.ips);
        ids.push((id, seen.ips[0]));
    }
    // In use: not to be removed.
    assert!(world.docker.remove_network(&own.ids().await[0]).await.is_err());
    let serve =
        world.run(&ids[0].0, "serve", &["sh", "-c", "echo here > /tmp/index.html; httpd -f -h /tmp -p 80"]).await;
    let ask = format!("for i in $(seq 100); do wget -q -O - http://{}/ && exit 0; sleep 0.2; done; exit 1", ids[0].1);
    let ask = world.run(&ids[1].0, "ask", &["sh", "-c", &ask]).await;
    assert_eq!(world.end(&ask).await.0, 0);
    for id in [&serve, &ask, &ids[0].0, &ids[1].0] {
        world.docker.stop(id, std::time::Duration::ZERO).await.unwrap();
        world.docker.remove(id).await.unwrap();
    }
    own.remove().await;
}

#[tokio::test]
async fn strangers_networks_are_not_removed() {
    let Some(world) = World::new().await else { return };
    let all = world.docker.networks().await.unwrap();
    let default = all.iter().find(|network| network.is_default).unwrap();
    assert!(world.docker.remove_network(&default.id).await.is_err());
    let Some(other) = World::new().await else { return };
    let own = Own::new(&other, 2, true).await;
    assert!(world.docker.remove_network(&own.ids().await[0]).await.is_err());
    own.remove().await;
}

#[tokio::test]
async fn a_sandbox_on_no_network() {
    let Some(world) = World::new().await else { return };
    let mut config = world.sandbox(0);
    config.network = SandboxNetwork::Detached;
    config.ports =
        vec![PortMapping { host_port: 12_190, container_port: 80, protocol: "tcp".to_owned(), host_ip: None }];
    let id = world.docker.create_sandbox(&config).await.unwrap();
    world.docker.start(&id).await.unwrap();
    let seen = world.see_sandbox(&id).await;
    assert_eq!((seen.network.clone(), seen.ips.len(), seen.is_up()), (SandboxNetwork::Detached, 0, false));
    let only_loopback = "ip -4 addr show lo | grep -q 127.0.0.1 && ip link show lo | grep -q UP";
    let look = world.run(&id, "look", &["sh", "-c", only_loopback]).await;
    assert_eq!(world.end(&look).await.0, 0, "loopback is up");
}

/// Lines of a chain with our root's mark.
fn lines(world: &World, table: &str, chain: &str) -> Vec<String> {
    let output = Command::new("iptables").args(["-w", "10", "-t", table, "-S", chain]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mark = longshore_core::network::rules::mark(&world.root);
    text.lines().filter(|line| line.contains(&mark)).map(str::to_owned).collect()
}

#[tokio::test]
async fn the_packet_filter_has_what_the_network_needs() {
    // Rules are machine-wide: only where the daemon is a test's own.
    if std::env::var_os("LONGSHORE_TEST_DOCKER_PID").is_none() {
        return;
    }
    let Some(world) = World::new().await else { return };
    let filter = PacketFilter { subnets: vec!["10.213.3.0/24".parse().unwrap()], ..Default::default() };
    for _ in 0..2 {
        world.docker.filter_packets(&filter).await.unwrap();
        let nat = lines(&world, "nat", "POSTROUTING");
        assert_eq!(nat.len(), 1, "{nat:?}");
        assert!(nat[0].contains("! -d 10.213.0.0/16") && nat[0].contains("MASQUERADE"), "{nat:?}");
        assert_eq!(lines(&world, "filter", "DOCKER-USER").len(), 1);
    }
    let masquerading = PacketFilter { runtime_masquerades: true, ..filter.clone() };
    world.docker.filter_packets(&masquerading).await.unwrap();
    let nat = lines(&world, "nat", "POSTROUTING");
    assert!(nat.len() == 2 && nat[0].contains("ACCEPT") && nat[1].contains("MASQUERADE"), "{nat:?}");
    let said = PacketFilter { unmasqueraded: vec!["10.0.0.0/8".parse().unwrap()], ..filter };
    world.docker.filter_packets(&said).await.unwrap();
    let nat = lines(&world, "nat", "POSTROUTING");
    assert!(nat.len() == 1 && nat[0].contains("! -d 10.0.0.0/8"), "{nat:?}");
    // A family that Docker itself keeps no rules of.
    let both = PacketFilter { subnets: vec!["fd00:213:3::/64".parse().unwrap()], ..Default::default() };
    world.docker.filter_packets(&both).await.unwrap();
    world.docker.filter_packets(&PacketFilter::default()).await.unwrap();
    assert!(lines(&world, "nat", "POSTROUTING").is_empty() && lines(&world, "filter", "DOCKER-USER").is_empty());
}
