//! What a CNI plugin is told of a pod: its ports, its bandwidth, the node's networks.
//!
//! By dockershim's rules (`pkg/kubelet/dockershim/network/cni/cni.go`) and CNI's conventions (`CONVENTIONS.md`).

use serde_json::{Map, Value, json};

use crate::cidr::Cidr;
use crate::container::PortMapping;
use crate::pod::{Pod, PodId};
use crate::quantity;

/// A pod's sandbox that is to join the pods' network.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    /// The pod.
    pub pod: PodId,
    /// ID of its sandbox.
    pub sandbox_id: String,
    /// Process ID of the sandbox, whose network namespace joins.
    pub pid: u32,
    /// By capability, what plugins that declare it are told.
    pub capabilities: Map<String, Value>,
}

/// Why a pod cannot join: its annotations are wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {annotation}: {problem}")]
pub struct BandwidthError {
    /// Which one.
    pub annotation: &'static str,
    /// What is wrong.
    pub problem: String,
}

/// Where pods say how much they may receive and send, in bits a second.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Bits a second that make sense (`pkg/util/bandwidth`).
const BANDWIDTH: std::ops::RangeInclusive<i64> = 1_000..=1_000_000_000_000_000;
/// Bits that may come at once: as good as no limit.
const BURST: i64 = i32::MAX as i64;

/// What plugins may be told of a pod, by capability; each gets what it declares.
pub fn capabilities(
    pod: &Pod,
    ports: &[PortMapping],
    pod_cidrs: &[Cidr],
) -> Result<Map<String, Value>, BandwidthError> {
    let mut all = Map::new();
    let mappings = ports.iter().filter(|mapping| mapping.host_port != 0).map(|mapping| {
        json!({
            "hostPort": mapping.host_port,
            "containerPort": mapping.container_port,
            "protocol": mapping.protocol,
            "hostIP": mapping.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        })
    });
    all.insert("portMappings".to_owned(), mappings.collect());
    let mut bandwidth = Map::new();
    for (annotation, rate, burst) in [(INGRESS, "ingressRate", "ingressBurst"), (EGRESS, "egressRate", "egressBurst")] {
        if let Some(bits) = bits_a_second(pod, annotation)? {
            bandwidth.insert(rate.to_owned(), bits.into());
            bandwidth.insert(burst.to_owned(), BURST.into());
        }
    }
    if !bandwidth.is_empty() {
        all.insert("bandwidth".to_owned(), bandwidth.into());
    }
    if !pod_cidrs.is_empty() {
        let ranges = pod_cidrs.iter().map(|cidr| json!([{"subnet": cidr.network().to_string()}]));
        all.insert("ipRanges".to_owned(), ranges.collect());
    }
    Ok(all)
}

/// Whether the pod says how much it may receive or send, which only plugins see to.
pub fn limits_bandwidth(pod: &Pod) -> bool {
    let annotations = pod.object.metadata.annotations.as_ref();
    annotations.is_some_and(|all| [INGRESS, EGRESS].iter().any(|limit| all.contains_key(*limit)))
}

fn bits_a_second(pod: &Pod, annotation: &'static str) -> Result<Option<i64>, BandwidthError> {
    let Some(text) = pod.object.metadata.annotations.as_ref().and_then(|all| all.get(annotation)) else {
        return Ok(None);
    };
    let wrong = |problem: String| BandwidthError { annotation, problem };
    let bits = quantity::parse(text, 0).ok_or_else(|| wrong(format!("{text:?} is not a quantity")))?;
    match bits {
        bits if BANDWIDTH.contains(&bits) => Ok(Some(bits)),
        bits if bits < *BANDWIDTH.start() => Err(wrong("resource is unreasonably small (< 1kbit)".to_owned())),
        _ => Err(wrong("resource is unreasonably large (> 1Pbit)".to_owned())),
    }
}

/// `CNI_ARGS`, as pairs.
pub fn arguments(attachment: &Attachment) -> Vec<(String, String)> {
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    vec![
        pair("IgnoreUnknown", "1"),
        pair("K8S_POD_NAMESPACE", &attachment.pod.namespace),
        pair("K8S_POD_NAME", &attachment.pod.name),
        pair("K8S_POD_INFRA_CONTAINER_ID", &attachment.sandbox_id),
        pair("K8S_POD_UID", &attachment.pod.uid),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::pod_from;

    fn with(annotations: &[(&str, &str)]) -> Pod {
        let mut pod = pod_from("containers: [{name: a}]");
        let object = Arc::make_mut(&mut pod.object);
        let pairs = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        object.metadata.annotations = Some(pairs.collect());
        pod
    }

    #[test]
    fn what_plugins_are_told() {
        let mapping = |host_port, host_ip: Option<&str>| PortMapping {
            host_port,
            container_port: 80,
            protocol: "tcp".to_owned(),
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        };
        let ports = [mapping(8080, Some("127.0.0.1")), mapping(0, None), mapping(8081, None)];
        let cidrs = ["10.1.0.5/24".parse().unwrap(), "fd00::/64".parse().unwrap()];
        let pod = with(&[(INGRESS, "10M"), (EGRESS, "1k")]);
        let expected = json!({
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
                {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
            ],
            "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": 2_147_483_647,
                          "egressRate": 1000, "egressBurst": 2_147_483_647},
            "ipRanges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]],
        });
        assert_eq!(Value::from(capabilities(&pod, &ports, &cidrs).unwrap()), expected);
        assert!(limits_bandwidth(&pod) && limits_bandwidth(&with(&[(EGRESS, "1k")])) && !limits_bandwidth(&with(&[])));
        assert_eq!(Value::from(capabilities(&with(&[]), &[], &[]).unwrap()), json!({"portMappings": []}));
    }

    #[test]
    fn bandwidths_that_make_no_sense() {
        for (text, word) in [("1", "small"), ("2P", "large"), ("fast", "quantity")] {
            let error = capabilities(&with(&[(EGRESS, text)]), &[], &[]).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(EGRESS), "{error}");
        }
    }
}
