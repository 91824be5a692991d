//! Networks of the daemon: what there is, and those that we make for pods. It must not decide which are needed, and
//! removes none that does not carry our root's label.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use async_trait::async_trait;
use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use longshore_core::cidr::Cidr;
use longshore_core::container::SandboxNetwork;
use longshore_core::labels;
use longshore_core::network::kernel::device_of;
use longshore_core::network::rules::PacketFilter;
use longshore_core::network::{BridgeNetwork, OwnNetwork};
use longshore_core::ports::network::BridgeNetworks;
use longshore_core::ports::runtime::RuntimeError;

use crate::connection::{CALL, encode};
use crate::docker::Docker;
use crate::fault::Fault;
use crate::packet_filter::hairpin;
use crate::{packet_filter, wire};

/// What Docker calls the bridge that containers are on when nothing is said.
const IS_DEFAULT: &str = "com.docker.network.bridge.default_bridge";
/// What the bridge is called, where it is not named after the network's ID.
const DEVICE: &str = "com.docker.network.bridge.name";
const MTU: &str = "com.docker.network.driver.mtu";
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const BETWEEN_CONTAINERS: &str = "com.docker.network.bridge.enable_icc";
/// From Docker 28 on: without it, what comes from other machines to a pod's own address is dropped.
const GATEWAY_MODES: [&str; 2] =
    ["com.docker.network.bridge.gateway_mode_ipv4", "com.docker.network.bridge.gateway_mode_ipv6"];
/// The first API that knows the mode above, and networks without IPv4: Docker 28's.
const API_28: (usize, usize) = (1, 48);

#[async_trait]
impl BridgeNetworks for Docker {
    async fn networks(&self) -> Result<Vec<BridgeNetwork>, RuntimeError> {
        let listed: Vec<wire::NetworkSummary> =
            self.connection().ask(CALL, "/networks").await.map_err(|fault| fault.during("list networks"))?;
        Ok(listed.into_iter().filter_map(|summary| network(summary, self.root_id())).collect())
    }

    async fn create_network(&self, network: &OwnNetwork, masquerade: bool) -> Result<(), RuntimeError> {
        const OPERATION: &str = "create network";
        let session = self.connection().session().await.map_err(|fault| fault.during(OPERATION))?;
        let ipv4 = network.subnets.iter().any(Cidr::is_ipv4);
        if !ipv4 && session.api < API_28 {
            let message = format!(
                "Docker {} makes no networks of IPv6 alone: upgrade it to Docker 28, or give the node a network of IPv4, too",
                session.daemon
            );
            return Err(RuntimeError::Failed { operation: OPERATION, message });
        }
        // Old daemons make two networks of one name, or say of an own one that its addresses are taken.
        if self.networks().await?.iter().any(|known| known.ours && known.name == network.name) {
            return Ok(());
        }
        let body = body(network, masquerade, session.api, self.root_id());
        let made = self
            .connection()
            .call(CALL, |docker| {
                let body = body.clone();
                async move { docker.create_network(body).await }
            })
            .await;
        match made {
            Ok(_) => Ok(()),
            Err(Fault::Answer { status: 409, message }) if message.contains("already exists") => Ok(()),
            Err(fault) => Err(fault.during(OPERATION)),
        }
    }

    async fn mtu(&self, address: IpAddr) -> Option<u32> {
        if !self.connection().is_local() {
            return None;
        }
        let table = |name: &str| std::fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
        let (route, if_inet6) = (table("route"), table("if_inet6"));
        let device = device_of(address, &route, &if_inet6)?;
        std::fs::read_to_string(format!("{}/{device}/mtu", hairpin::DEVICES)).ok()?.trim().parse().ok()
    }

    async fn remove_network(&self, id: &str) -> Result<(), RuntimeError> {
        const OPERATION: &str = "remove network";
        let path = format!("/networks/{}", encode(id));
        let found: wire::NetworkSummary = match self.connection().ask(CALL, &path).await {
            Ok(found) => found,
            Err(fault) if fault.is_absent() => return Ok(()),
            Err(fault) => return Err(fault.during(OPERATION)),
        };
        if !network(found, self.root_id()).is_some_and(|network| network.ours) {
            return Err(RuntimeError::NotFound { what: format!("network {id} of this agent") });
        }
        match self.connection().call(CALL, |docker| async move { docker.remove_network(id).await }).await {
            Ok(()) => Ok(()),
            Err(fault) if fault.is_absent() => Ok(()),
            Err(fault) => Err(fault.during(OPERATION)),
        }
    }

    async fn filter_packets(&self, filter: &PacketFilter) -> Result<Option<String>, String> {
        if !self.connection().is_local() {
            // There never were any.
            let is_nothing = filter.subnets.is_empty();
            return if is_nothing { Ok(None) } else { Err("Docker is on another machine".to_owned()) };
        }
        let mut behind = self.behind().lock().await;
        packet_filter::update(self.root_id(), filter, &mut behind).await
    }

    async fn filter_bridged(&self) -> Result<(), String> {
        // Another machine's kernel is not ours to set, and this one's has no part in it.
        if !self.connection().is_local() {
            return Ok(());
        }
        packet_filter::bridged::turn_on().await
    }

    async fn make_chains(&self) -> Result<(), String> {
        // They are about this machine, wherever Docker is.
        packet_filter::chains::make().await
    }

    async fn hairpin(&self, network: &SandboxNetwork) -> Result<(), String> {
        if matches!(network, SandboxNetwork::Host | SandboxNetwork::Detached) {
            return Ok(());
        }
        if !self.connection().is_local() {
            return Err("Docker is on another machine".to_owned());
        }
        let device = self.device(network).await?;
        let turned = tokio::task::spawn_blocking(move || hairpin::turn_on(Path::new(hairpin::DEVICES), &device)).await;
        turned.unwrap_or_else(|error| Err(error.to_string()))
    }
}

impl Docker {
    /// The bridge of a network. It is asked for once, as this is for every pod that starts; a network that was made anew has
    /// another one.
    async fn device(&self, network: &SandboxNetwork) -> Result<String, String> {
        let mut known = self.bridge().lock().await;
        if let Some((of, device)) = &*known
            && of == network
            && Path::new(hairpin::DEVICES).join(device).exists()
        {
            return Ok(device.clone());
        }
        let listed: Result<Vec<wire::NetworkSummary>, Fault> = self.connection().ask(CALL, "/networks").await;
        let listed = listed.map_err(|fault| fault.during("list networks").to_string())?;
        let device = listed.iter().find_map(|summary| bridge_of(summary, network, self.root_id()));
        let device = device.ok_or_else(|| format!("Docker has no bridge for its network {network:?}"))?;
        *known = Some((network.clone(), device.clone()));
        Ok(device)
    }
}

/// The bridge, if this is that network.
fn bridge_of(summary: &wire::NetworkSummary, network: &SandboxNetwork, root: &str) -> Option<String> {
    let option = |key: &str| summary.options.as_ref()?.get(key).cloned();
    let is_it = match network {
        SandboxNetwork::Named(name) => {
            let label = summary.labels.as_ref().and_then(|labels| labels.get(labels::ROOT));
            summary.name.as_ref() == Some(name) && label.is_some_and(|of| of == root)
        }
        _ => option(IS_DEFAULT).is_some_and(|value| value == "true"),
    };
    if !is_it {
        return None;
    }
    option(DEVICE).or_else(|| Some(format!("br-{}", summary.id.as_ref()?.get(..12)?)))
}

/// `None` for a network without addresses, such as `host` and `none`.
fn network(summary: wire::NetworkSummary, root: &str) -> Option<BridgeNetwork> {
    let options = summary.options.unwrap_or_default();
    let configs = summary.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
    let subnets: Vec<Cidr> = configs.into_iter().filter_map(|config| config.subnet?.parse().ok()).collect();
    Some(BridgeNetwork {
        id: summary.id.filter(|_| !subnets.is_empty())?,
        name: summary.name?,
        subnets,
        ours: summary.labels.unwrap_or_default().get(labels::ROOT).is_some_and(|of| of == root),
        is_default: options.get(IS_DEFAULT).is_some_and(|value| value == "true"),
        masquerades: options.get(MASQUERADE).is_none_or(|value| value == "true"),
        mtu: options.get(MTU).cloned(),
    })
}

fn body(network: &OwnNetwork, masquerade: bool, api: (usize, usize), root: &str) -> NetworkCreateRequest {
    let mut options = HashMap::from([
        (MASQUERADE.to_owned(), masquerade.to_string()),
        (BETWEEN_CONTAINERS.to_owned(), "true".to_owned()),
    ]);
    options.extend(network.mtu.clone().map(|mtu| (MTU.to_owned(), mtu)));
    if api >= API_28 {
        options.extend(GATEWAY_MODES.map(|key| (key.to_owned(), "nat-unprotected".to_owned())));
    }
    let config = |subnet: &Cidr| IpamConfig { subnet: Some(subnet.to_string()), ..Default::default() };
    let ipv4 = network.subnets.iter().any(Cidr::is_ipv4);
    NetworkCreateRequest {
        name: network.name.clone(),
        driver: Some("bridge".to_owned()),
        ipam: Some(Ipam { config: Some(network.subnets.iter().map(config).collect()), ..Default::default() }),
        enable_ipv4: (api >= API_28).then_some(ipv4),
        enable_ipv6: Some(network.subnets.iter().any(|subnet| !subnet.is_ipv4())),
        options: Some(options),
        labels: Some(HashMap::from([(labels::ROOT.to_owned(), root.to_owned())])),
        ..Default::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::DockerOptions;

    #[tokio::test]
    async fn another_machines_kernel_is_left_alone() {
        let docker = Docker::connect("tcp://192.0.2.1:2375", "r".to_owned(), DockerOptions::default()).unwrap();
        assert_eq!(docker.filter_bridged().await, Ok(()));
    }

    #[test]
    fn networks_as_daemons_list_them() {
        let list: Vec<wire::NetworkSummary> = serde_json::from_value(json!([
            {"Name": "none", "Id": "1", "IPAM": {"Driver": "default", "Options": null, "Config": null}, "Options": null},
            {"Name": "bridge", "Id": "2", "IPAM": {"Config": [{"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"}]},
             "Options": {"com.docker.network.bridge.default_bridge": "true", "com.docker.network.driver.mtu": "1400"},
             "Labels": null},
            {"Name": "longshore-x", "Id": "3", "IPAM": {"Config": [{"Subnet": "10.1.0.0/24"}, {"Subnet": "fd00::/64"}]},
             "Options": {"com.docker.network.bridge.enable_ip_masquerade": "false"}, "Labels": {"dev.longshore.root": "r"}},
        ]))
        .unwrap();
        let seen: Vec<BridgeNetwork> = list.into_iter().filter_map(|one| network(one, "r")).collect();
        assert_eq!(seen.len(), 2);
        assert!(seen[0].is_default && !seen[0].ours && seen[0].mtu.as_deref() == Some("1400"));
        assert!(seen[1].ours && !seen[1].is_default && seen[1].subnets.len() == 2);
        assert_eq!((seen[0].masquerades, seen[1].masquerades), (true, false));
    }

    #[test]
    fn bridges() {
        let list: Vec<wire::NetworkSummary> = serde_json::from_value(json!([
            {"Name": "bridge", "Id": "0123456789abcdef", "Options": {
                "com.docker.network.bridge.default_bridge": "true", "com.docker.network.bridge.name": "docker0"}},
            {"Name": "n", "Id": "0123456789abcdef", "Labels": {"dev.longshore.root": "another"}},
            {"Name": "n", "Id": "fedcba9876543210", "Labels": {"dev.longshore.root": "r"}, "Options": {}},
        ]))
        .unwrap();
        let device = |network| list.iter().find_map(|summary| bridge_of(summary, &network, "r"));
        assert_eq!(device(SandboxNetwork::Default).as_deref(), Some("docker0"));
        assert_eq!(device(SandboxNetwork::Named("n".to_owned())).as_deref(), Some("br-fedcba987654"));
        assert_eq!(device(SandboxNetwork::Named("bridge".to_owned())), None);
    }

    #[test]
    fn bodies() {
        let subnets = vec!["10.1.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()];
        let own = OwnNetwork { name: "n".to_owned(), subnets, mtu: Some("1400".to_owned()) };
        let old = serde_json::to_value(body(&own, true, (1, 41), "r")).unwrap();
        assert_eq!(old["IPAM"]["Config"], json!([{"Subnet": "10.1.0.0/24"}, {"Subnet": "fd00::/64"}]));
        assert_eq!(old["EnableIPv6"], true);
        assert_eq!(old["Options"][MASQUERADE], "true");
        assert_eq!(old["Labels"], json!({"dev.longshore.root": "r"}));
        assert!(old.get("EnableIPv4").is_none() && old["Options"].get(GATEWAY_MODES[0]).is_none());
        let new = serde_json::to_value(body(&own, false, (1, 52), "r")).unwrap();
        assert_eq!(new["Options"][GATEWAY_MODES[0]], "nat-unprotected");
        assert_eq!((&new["EnableIPv4"], &new["Options"][MASQUERADE]), (&json!(true), &json!("false")));
    }
}
