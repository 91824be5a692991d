//! The pods' network: which one a new sandbox is on, and what it is told of the pod.
//!
//! Alone, and in a cluster that gives its nodes no networks for pods, that is Docker's default bridge; where the node
//! has a network for its pods, one of our own in Docker, with that network's addresses; with CNI the plugins'. Pods that
//! run stay where they are, whatever is decided later.

pub mod attachment;
pub mod kernel;
pub mod nft;
mod own;
pub mod rules;

pub use own::{BridgeNetwork, Choice, Decision, Leftovers, OwnNetwork, Situation, Used, decide, leave};

use std::net::IpAddr;

use k8s_openapi::api::core::v1;

use crate::cidr::Cidr;

/// Why networks that were named for pods cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrsError {
    /// One of them is no network.
    #[error(transparent)]
    NotACidr(#[from] crate::cidr::NotACidr),
    /// There are several of a family.
    #[error("expected one network, or one of IPv4 and one of IPv6, got {list}")]
    SameFamily {
        /// The list.
        list: String,
    },
}

/// The networks of texts: none, one, or one of each family.
pub fn cidrs(texts: &[String]) -> Result<Vec<Cidr>, CidrsError> {
    let cidrs = texts.iter().map(|text| text.parse()).collect::<Result<Vec<Cidr>, _>>()?;
    let same_family = cidrs.len() > 2 || cidrs.windows(2).any(|pair| pair[0].is_ipv4() == pair[1].is_ipv4());
    if same_family { Err(CidrsError::SameFamily { list: texts.join(",") }) } else { Ok(cidrs) }
}

/// The networks that a Node has for its pods, as written in it; empty for none.
pub fn pod_cidrs(node: &v1::Node) -> Vec<String> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let list = spec.pod_cidrs.clone().filter(|list| !list.is_empty());
    list.unwrap_or_else(|| spec.pod_cidr.iter().filter(|cidr| !cidr.is_empty()).cloned().collect())
}

/// A pod's addresses with those of the node's primary family first (`sortPodIPs` in `pkg/kubelet/kubelet_pods.go`).
pub fn by_family(ips: &[IpAddr], node: &[IpAddr]) -> Vec<IpAddr> {
    let primary_is_ipv4 = node.first().is_none_or(IpAddr::is_ipv4);
    let mut sorted = ips.to_vec();
    sorted.sort_by_key(|ip| ip.is_ipv4() != primary_is_ipv4);
    sorted
}

/// What the kubelet's `Ready` condition says when the network cannot take pods (`runtimeState.networkErrors`), after
/// dockershim's words.
pub fn not_ready(problem: &str) -> String {
    format!(
        "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:docker: network \
         plugin is not ready: {problem}"
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_a_node() {
        let node = |spec: &str| v1::Node { spec: Some(serde_saphyr::from_str(spec).unwrap()), ..Default::default() };
        assert_eq!(pod_cidrs(&v1::Node::default()), Vec::<String>::new());
        assert_eq!(pod_cidrs(&node("{podCIDR: '', podCIDRs: []}")), Vec::<String>::new());
        assert_eq!(pod_cidrs(&node("{podCIDR: 10.1.0.0/24}")), ["10.1.0.0/24"]);
        let both = pod_cidrs(&node("{podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, 'fd00::/64']}"));
        assert_eq!(cidrs(&both).unwrap().len(), 2);
        assert!(cidrs(&["10.1.0.0/24".to_owned(), "10.2.0.0/24".to_owned()]).is_err());
        assert!(cidrs(&["10.1.0.0".to_owned()]).is_err());
    }
}
