//! The Node object: what is created, and what is mended on one that exists.
//!
//! As `pkg/kubelet/kubelet_node_status.go` (`initialNode`, `reconcileExistingNode`…). Labels, annotations and taints
//! of others are left alone.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

use crate::ports::runtime::RuntimeInfo;

/// Volumes are attached by the controller manager, not by the node.
const CONTROLLER_ATTACHES: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
/// The address that `--node-ip` named, for the external cloud controller.
pub const PROVIDED_NODE_IP: &str = "alpha.kubernetes.io/provided-node-ip";
/// Keeps pods away until the external cloud controller has looked at the node.
pub const UNINITIALIZED: &str = "node.cloudprovider.kubernetes.io/uninitialized";

/// What a node is and has, gathered when the agent starts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeDescription {
    /// Name of the Node.
    pub name: String,
    /// The machine's host name, for the address of type `Hostname`.
    pub hostname: String,
    /// Labels: the standard ones and `--node-labels`.
    pub labels: BTreeMap<String, String>,
    /// `--register-with-taints`.
    pub taints: Vec<v1::Taint>,
    /// `--provider-id`.
    pub provider_id: Option<String>,
    /// Whether an external cloud controller looks after the node (`--cloud-provider=external`).
    pub external_cloud: bool,
    /// `--node-ip`, where given.
    pub given_ips: Vec<IpAddr>,
    /// Whether `--node-ip` is given at all, if only `0.0.0.0` or `::` for a family.
    pub asks_for_ip: bool,
    /// The node's addresses, the primary one first; empty while they are not the machine's yet.
    pub ips: Vec<IpAddr>,
    /// What the machine has, by resource, as quantities.
    pub capacity: BTreeMap<String, String>,
    /// What pods may use of it.
    pub allocatable: BTreeMap<String, String>,
    /// Content of `/etc/machine-id`.
    pub machine_id: String,
    /// The hardware's UUID, or the machine ID where there is none.
    pub system_uuid: String,
    /// Content of `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Kernel release.
    pub kernel_version: String,
    /// `PRETTY_NAME` of `/etc/os-release`.
    pub os_image: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// Swap of the machine, in bytes.
    pub swap: u64,
    /// Whether this process is not in the machine's own user namespace.
    pub in_user_namespace: bool,
    /// Version of the container runtime: `docker://29.0.0`.
    pub runtime_version: String,
    /// Names of the container runtime's handlers.
    pub runtime_handlers: Vec<String>,
    /// Whether its own handler makes mounts read-only with all that is mounted below.
    pub recursive_read_only: bool,
    /// Port of the node's HTTPS server; 0 when it has none.
    pub port: i32,
    /// Features that the node declares.
    pub declared_features: Vec<String>,
    /// Images that are shown at most (`nodeStatusMaxImages`); `None` for all.
    pub max_images: Option<usize>,
    /// `--kubelet-version`, where given.
    pub kubelet_version: Option<String>,
    /// longshore's own version.
    pub version: String,
}

impl NodeDescription {
    /// The same node on that container runtime, which may be another one than at the start.
    pub fn on(self, runtime: &RuntimeInfo) -> NodeDescription {
        let runtime_version = format!("docker://{}", runtime.version);
        NodeDescription {
            runtime_version,
            runtime_handlers: runtime.runtimes.clone(),
            recursive_read_only: runtime.recursive_read_only,
            ..self
        }
    }
}

/// What stands in for the kubelet's version: the API server's minor version, at most the newest one that this agent was
/// built for, with our own after it. Never newer than the server, whose skew rules it has to fit.
pub fn kubelet_version(description: &NodeDescription, server: (u32, u32)) -> String {
    /// The newest minor version whose types and rules are known here.
    const NEWEST: u32 = 37;
    if let Some(given) = &description.kubelet_version {
        return given.clone();
    }
    format!("v{}.{}.0+longshore.{}", server.0, server.1.min(NEWEST), description.version)
}

/// The addresses that a Node has for its pods (`GetNodeHostIPs`): its first one, internal before external, and the first of
/// the other family; none while nobody gave it any.
pub fn host_ips(node: &v1::Node) -> Vec<IpAddr> {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let of = |kind: &'static str| addresses.iter().filter(move |one| one.type_ == kind);
    let ips = of("InternalIP").chain(of("ExternalIP")).filter_map(|one| one.address.parse::<IpAddr>().ok());
    let mut found: Vec<IpAddr> = Vec::new();
    for ip in ips {
        if found.iter().all(|other| other.is_ipv4() != ip.is_ipv4()) {
            found.push(ip);
        }
    }
    found
}

/// The Node as it is created, without a status.
pub fn initial(description: &NodeDescription) -> v1::Node {
    let mut taints = description.taints.clone();
    if description.external_cloud && !taints.iter().any(|taint| taint.key == UNINITIALIZED) {
        taints.push(v1::Taint {
            key: UNINITIALIZED.to_owned(),
            value: Some("true".to_owned()),
            effect: "NoSchedule".to_owned(),
            ..Default::default()
        });
    }
    v1::Node {
        metadata: ObjectMeta {
            name: Some(description.name.clone()),
            labels: Some(description.labels.clone()),
            annotations: Some(annotations(description)),
            ..Default::default()
        },
        spec: Some(v1::NodeSpec {
            provider_id: description.provider_id.clone(),
            taints: (!taints.is_empty()).then_some(taints),
            ..Default::default()
        }),
        status: None,
    }
}

fn annotations(description: &NodeDescription) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::from([(CONTROLLER_ATTACHES.to_owned(), "true".to_owned())]);
    if description.external_cloud && !description.given_ips.is_empty() {
        let ips: Vec<String> = description.given_ips.iter().map(ToString::to_string).collect();
        annotations.insert(PROVIDED_NODE_IP.to_owned(), ips.join(","));
    }
    annotations
}

/// Labels that a Node which exists already is given when it is taken on; the others are for one that is created, and
/// whoever administers the cluster may change them (`updateDefaultLabels`).
const DEFAULT_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];
/// Labels that are put right whenever somebody changes them (`updateNode`).
const KEPT_LABELS: [&str; 2] = ["kubernetes.io/os", "kubernetes.io/arch"];

/// The strategic merge patch that makes an existing Node ours; `None` when nothing is to be mended. Taints are only
/// given to a Node that is created, as the kubelet has it.
pub fn adopt(existing: &v1::Node, description: &NodeDescription) -> Option<Value> {
    let labels = labels(existing, description, &DEFAULT_LABELS);
    let mut patch = patch(labels, notes(existing, &annotations(description)));
    // An ID that is set is never changed: the API server forbids it.
    let unset = existing.spec.as_ref().and_then(|spec| spec.provider_id.as_ref()).is_none_or(String::is_empty);
    if let (true, Some(id)) = (unset, &description.provider_id) {
        patch.insert("spec".to_owned(), json!({"providerID": id}));
    }
    (!patch.is_empty()).then(|| patch.into())
}

/// The strategic merge patch that puts right what others changed and may not; `None` when nothing is to be mended.
pub fn mend(existing: &v1::Node, description: &NodeDescription) -> Option<Value> {
    let mut wanted = annotations(description);
    wanted.retain(|key, _| key == PROVIDED_NODE_IP);
    let patch = patch(labels(existing, description, &KEPT_LABELS), notes(existing, &wanted));
    (!patch.is_empty()).then(|| patch.into())
}

type Patch = Map<String, Value>;

fn patch(labels: Patch, notes: Patch) -> Patch {
    let mut metadata = Patch::new();
    if !labels.is_empty() {
        metadata.insert("labels".to_owned(), labels.into());
    }
    if !notes.is_empty() {
        metadata.insert("annotations".to_owned(), notes.into());
    }
    let mut patch = Patch::new();
    if !metadata.is_empty() {
        patch.insert("metadata".to_owned(), metadata.into());
    }
    patch
}

/// What is to be set of these labels.
fn labels(existing: &v1::Node, description: &NodeDescription, keys: &[&str]) -> Patch {
    let wanted = keys.iter().filter_map(|key| description.labels.get_key_value(*key));
    differing(wanted, existing.metadata.labels.as_ref())
}

/// What is to be set of these annotations; an address that is provided no more is taken away.
fn notes(existing: &v1::Node, wanted: &BTreeMap<String, String>) -> Patch {
    let found = existing.metadata.annotations.as_ref();
    let mut notes = differing(wanted.iter(), found);
    if found.is_some_and(|found| found.contains_key(PROVIDED_NODE_IP)) && !wanted.contains_key(PROVIDED_NODE_IP) {
        notes.insert(PROVIDED_NODE_IP.to_owned(), Value::Null);
    }
    notes
}

fn differing<'a>(
    wanted: impl Iterator<Item = (&'a String, &'a String)>,
    found: Option<&BTreeMap<String, String>>,
) -> Patch {
    let found = |key: &String| found.and_then(|found| found.get(key));
    wanted.filter(|(key, value)| found(key) != Some(value)).map(|(key, value)| (key.clone(), json!(value))).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pods_have_a_nodes_first_addresses_of_both_families() {
        let told = |addresses: &[(&str, &str)]| {
            let address = |(kind, address): &(&str, &str)| json!({"type": kind, "address": address});
            let addresses: Vec<Value> = addresses.iter().map(address).collect();
            let node: v1::Node = serde_json::from_value(json!({"status": {"addresses": addresses}})).unwrap();
            host_ips(&node).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let hostname = ("Hostname", "10.0.0.9");
        assert!(told(&[]).is_empty() && told(&[hostname]).is_empty());
        let external = ("ExternalIP", "192.0.2.7");
        assert_eq!(told(&[hostname, external, ("InternalIP", "10.0.0.1")]), ["10.0.0.1"]);
        assert_eq!(told(&[external, ("InternalIP", "fd00::1"), ("InternalIP", "fd00::2")]), ["fd00::1", "192.0.2.7"]);
    }

    fn description() -> NodeDescription {
        NodeDescription {
            name: "n1".to_owned(),
            labels: BTreeMap::from([("kubernetes.io/os".to_owned(), "linux".to_owned())]),
            version: "0.1.0".to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn versions_never_exceed_the_server() {
        assert_eq!(kubelet_version(&description(), (1, 33)), "v1.33.0+longshore.0.1.0");
        assert_eq!(kubelet_version(&description(), (1, 40)), "v1.37.0+longshore.0.1.0");
        let given = NodeDescription { kubelet_version: Some("v1.30.1".to_owned()), ..description() };
        assert_eq!(kubelet_version(&given, (1, 40)), "v1.30.1");
    }

    #[test]
    fn an_external_cloud_keeps_pods_away_until_it_looked() {
        let external =
            NodeDescription { external_cloud: true, given_ips: vec!["10.0.0.1".parse().unwrap()], ..description() };
        let node = initial(&external);
        assert_eq!(node.spec.unwrap().taints.unwrap()[0].key, UNINITIALIZED);
        assert_eq!(node.metadata.annotations.unwrap()[PROVIDED_NODE_IP], "10.0.0.1");
        assert!(initial(&description()).spec.unwrap().taints.is_none());
    }

    #[test]
    fn an_id_is_set_once() {
        let with_id = NodeDescription { provider_id: Some("x://1".to_owned()), ..description() };
        let mut node = initial(&description());
        assert_eq!(adopt(&node, &with_id).unwrap(), json!({"spec": {"providerID": "x://1"}}));
        node.spec.as_mut().unwrap().provider_id = Some("y://2".to_owned());
        assert_eq!(adopt(&node, &with_id), None);
    }

    #[test]
    fn an_address_that_is_provided_no_more_is_taken_away() {
        let external =
            NodeDescription { external_cloud: true, given_ips: vec!["10.0.0.1".parse().unwrap()], ..description() };
        let node = initial(&external);
        assert_eq!(mend(&node, &external), None);
        let gone = json!({"metadata": {"annotations": {PROVIDED_NODE_IP: null}}});
        assert_eq!(mend(&node, &description()), Some(gone.clone()));
        assert_eq!(adopt(&node, &description()), Some(gone));
        assert_eq!(
            mend(&initial(&description()), &external).unwrap()["metadata"]["annotations"][PROVIDED_NODE_IP],
            "10.0.0.1"
        );
    }

    fn label() -> impl Strategy<Value = String> {
        prop::sample::select(&["kubernetes.io/os", "kubernetes.io/arch", "kubernetes.io/hostname", "a", "b"][..])
            .prop_map(str::to_owned)
    }

    proptest! {
        #[test]
        fn what_was_created_needs_no_mending_and_others_labels_stay(
            labels in prop::collection::btree_map(label(), "[a-c]", 0..6),
            foreign in prop::collection::btree_map("[d-f]", "[a-c]", 0..4),
            changed in prop::collection::btree_map(label(), "[x-z]", 0..6),
        ) {
            let description = NodeDescription { labels, ..description() };
            let mut node = initial(&description);
            prop_assert_eq!((mend(&node, &description), adopt(&node, &description)), (None, None));
            let found = node.metadata.labels.as_mut().unwrap();
            found.extend(foreign.clone());
            prop_assert_eq!((mend(&node, &description), adopt(&node, &description)), (None, None));
            node.metadata.labels.as_mut().unwrap().extend(changed.clone());
            for (patch, keys) in [
                (mend(&node, &description), &KEPT_LABELS[..]),
                (adopt(&node, &description), &DEFAULT_LABELS[..]),
            ] {
                let none = Patch::new();
                let touched = patch.as_ref().map_or(&none, |patch| patch["metadata"]["labels"].as_object().unwrap());
                for key in description.labels.keys() {
                    let mended = changed.contains_key(key) && keys.contains(&key.as_str());
                    prop_assert_eq!(touched.contains_key(key), mended, "{}", key);
                }
                prop_assert!(touched.keys().all(|key| description.labels.contains_key(key)));
            }
        }
    }
}
