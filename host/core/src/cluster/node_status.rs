//! `v1.NodeStatus`: conditions with the kubelet's reasons, and the rest of what a node says of itself.
//!
//! As `pkg/kubelet/nodestatus/setters.go`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::node::{NodeDescription, kubelet_version};
use crate::resources::is_extended;

/// Names of an image that a Node shows at most (`MaxNamesPerImageInNodeStatus`).
const MAX_NAMES: usize = 5;

/// The conditions that are the node's to write.
const OURS: [&str; 4] = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];

/// An image on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeImage {
    /// Its names: `repo:tag` and `repo@digest`.
    pub names: Vec<String>,
    /// Bytes on disk.
    pub size: u64,
}

/// What the node runs short of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// Memory.
    pub memory: bool,
    /// Disk space or inodes.
    pub disk: bool,
    /// Process IDs.
    pub pid: bool,
}

/// What a status is made from.
#[derive(Clone, Debug)]
pub struct NodeStatusInput<'a> {
    /// The node.
    pub description: &'a NodeDescription,
    /// The API server's version.
    pub server: (u32, u32),
    /// Images on the node.
    pub images: &'a [NodeImage],
    /// What it runs short of.
    pub pressure: Pressure,
    /// Why pods cannot be run now; empty when they can.
    pub problems: &'a [String],
    /// The Node as the API server has it, for what stays.
    pub existing: Option<&'a v1::Node>,
    /// The time.
    pub now: Timestamp,
}

/// The status of the node.
pub fn compute(input: &NodeStatusInput<'_>) -> v1::NodeStatus {
    let NodeStatusInput { description, .. } = *input;
    v1::NodeStatus {
        addresses: addresses(input),
        capacity: Some(quantities(&description.capacity)),
        allocatable: Some(allocatable(input)),
        conditions: Some(conditions(input)),
        daemon_endpoints: Some(v1::NodeDaemonEndpoints {
            kubelet_endpoint: Some(v1::DaemonEndpoint { port: description.port }),
        }),
        node_info: Some(v1::NodeSystemInfo {
            architecture: description.architecture.clone(),
            boot_id: description.boot_id.clone(),
            container_runtime_version: description.runtime_version.clone(),
            kernel_version: description.kernel_version.clone(),
            kubelet_version: kubelet_version(description, input.server),
            machine_id: description.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: description.os_image.clone(),
            system_uuid: description.system_uuid.clone(),
            running_in_user_namespace: Some(description.in_user_namespace),
            swap: (description.swap > 0)
                .then(|| v1::NodeSwapStatus { capacity: Some(i64::try_from(description.swap).unwrap_or(i64::MAX)) }),
            ..Default::default()
        }),
        images: Some(images(input.images, description.max_images)),
        runtime_handlers: Some(runtime_handlers(description)),
        features: Some(v1::NodeFeatures { supplemental_groups_policy: Some(false) }),
        declared_features: (!description.declared_features.is_empty()).then(|| description.declared_features.clone()),
        ..Default::default()
    }
}

fn quantities(of: &BTreeMap<String, String>) -> BTreeMap<String, Quantity> {
    of.iter().map(|(name, value)| (name.clone(), Quantity(value.clone()))).collect()
}

/// What pods may use: ours, and all that others say that there is, like extended resources
/// (<https://kubernetes.io/docs/tasks/administer-cluster/extended-resource-node/>).
fn allocatable(input: &NodeStatusInput<'_>) -> BTreeMap<String, Quantity> {
    let found = input.existing.and_then(|node| node.status.as_ref()).and_then(|status| status.capacity.as_ref());
    let others = found.into_iter().flatten().filter(|(name, _)| name.contains('/'));
    let others = others.map(|(name, quantity)| (name.clone(), quantity.clone()));
    others.chain(quantities(&input.description.allocatable)).collect()
}

/// With an external cloud the addresses are its controller's to set: what is there stays, and before that an address is
/// given only where `--node-ip` asks for one.
fn addresses(input: &NodeStatusInput<'_>) -> Option<Vec<v1::NodeAddress>> {
    let description = input.description;
    let found = input.existing.and_then(|node| node.status.as_ref()).and_then(|status| status.addresses.clone());
    let found = found.filter(|found| !found.is_empty());
    let waits = description.external_cloud && !description.asks_for_ip;
    // Not known, or not the machine's yet (`validateNodeIPFunc`): what is there stays.
    if description.external_cloud && found.is_some() || description.ips.is_empty() && !waits {
        return found;
    }
    let address = |kind: &str, address: String| v1::NodeAddress { type_: kind.to_owned(), address };
    let ips = description.ips.iter().filter(|_| !waits);
    let mut addresses: Vec<_> = ips.map(|ip| address("InternalIP", ip.to_string())).collect();
    addresses.push(address("Hostname", description.hostname.clone()));
    Some(addresses)
}

/// The largest ones, digests before tags as the kubelet has them.
fn images(images: &[NodeImage], most: Option<usize>) -> Vec<v1::ContainerImage> {
    let mut sorted: Vec<&NodeImage> = images.iter().filter(|image| !image.names.is_empty()).collect();
    sorted.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.names.cmp(&b.names)));
    let shown = sorted.into_iter().take(most.unwrap_or(usize::MAX)).map(|image| {
        let mut names = image.names.clone();
        names.sort_by_key(|name| !name.contains('@'));
        names.truncate(MAX_NAMES);
        v1::ContainerImage { names: Some(names), size_bytes: Some(i64::try_from(image.size).unwrap_or(i64::MAX)) }
    });
    shown.collect()
}

/// The default handler (without a name) and the runtimes that RuntimeClasses may name.
fn runtime_handlers(description: &NodeDescription) -> Vec<v1::NodeRuntimeHandler> {
    let handler = |name: &str| {
        let recursive = description.recursive_read_only && name.is_empty();
        let features = v1::NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(recursive),
            user_namespaces: Some(false),
        };
        v1::NodeRuntimeHandler { name: Some(name.to_owned()), features: Some(features) }
    };
    let mut names: Vec<&str> = description.runtime_handlers.iter().map(String::as_str).collect();
    names.sort_unstable();
    std::iter::once("").chain(names).map(handler).collect()
}

fn conditions(input: &NodeStatusInput<'_>) -> Vec<v1::NodeCondition> {
    let Pressure { memory, disk, pid } = input.pressure;
    let choose = |holds: bool, yes: (&str, &str), no: (&str, &str)| {
        let (reason, message) = if holds { yes } else { no };
        (holds, reason.to_owned(), message.to_owned())
    };
    let ready = match input.problems {
        [] => (true, "KubeletReady".to_owned(), "kubelet is posting ready status".to_owned()),
        [one] => (false, "KubeletNotReady".to_owned(), one.clone()),
        several => (false, "KubeletNotReady".to_owned(), format!("[{}]", several.join(", "))),
    };
    [
        (
            "MemoryPressure",
            choose(
                memory,
                ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
                ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            ),
        ),
        (
            "DiskPressure",
            choose(
                disk,
                ("KubeletHasDiskPressure", "kubelet has disk pressure"),
                ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            ),
        ),
        (
            "PIDPressure",
            choose(
                pid,
                ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
                ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            ),
        ),
        ("Ready", ready),
    ]
    .into_iter()
    .map(|(kind, (holds, reason, message))| {
        let status = if holds { "True" } else { "False" };
        let known = condition(input.existing, kind).filter(|known| known.status == status);
        let since = known.and_then(|known| known.last_transition_time.clone()).unwrap_or(Time(input.now));
        v1::NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason),
            message: Some(message),
            last_heartbeat_time: Some(Time(input.now)),
            last_transition_time: Some(since),
        }
    })
    .collect()
}

/// A condition of a Node by its type.
pub fn condition<'a>(node: Option<&'a v1::Node>, kind: &str) -> Option<&'a v1::NodeCondition> {
    let conditions = node?.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// The event of a condition that changed, or of one that a new Node has: `NodeReady`, `NodeHasSufficientMemory`, …
pub fn event_of(condition: &v1::NodeCondition) -> Option<&'static str> {
    Some(match (condition.type_.as_str(), condition.status == "True") {
        ("Ready", true) => "NodeReady",
        ("Ready", false) => "NodeNotReady",
        ("MemoryPressure", true) => "NodeHasInsufficientMemory",
        ("MemoryPressure", false) => "NodeHasSufficientMemory",
        ("DiskPressure", true) => "NodeHasDiskPressure",
        ("DiskPressure", false) => "NodeHasNoDiskPressure",
        ("PIDPressure", true) => "NodeHasInsufficientPID",
        ("PIDPressure", false) => "NodeHasSufficientPID",
        _ => return None,
    })
}

/// Whether two statuses differ in more than heartbeats; conditions of others do not count.
pub fn differs(posted: &v1::NodeStatus, now: &v1::NodeStatus) -> bool {
    let plain = |status: &v1::NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
            condition.last_transition_time = None;
        }
        status
    };
    plain(posted) != plain(now)
}

/// Whether somebody else changed a status that was posted: `answer` is what the API server made of it then, `found` what it
/// has now. Heartbeats and what others write (their conditions, attached volumes, capacity of theirs) do not count.
pub fn overwritten(answer: &v1::NodeStatus, found: &v1::NodeStatus) -> bool {
    let ours = |status: &v1::NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
            condition.last_transition_time = None;
        }
        let conditions = status.conditions.get_or_insert_default();
        conditions.retain(|condition| OURS.contains(&condition.type_.as_str()));
        conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        if let Some(capacity) = &mut status.capacity {
            capacity.retain(|name, _| !name.contains('/'));
        }
        v1::NodeStatus { volumes_attached: None, volumes_in_use: None, phase: None, config: None, ..status }
    };
    ours(answer) != ours(found)
}

/// Whether somebody else changed the `Ready` condition of a status that was posted, which drops the node's endpoints.
pub fn ready_differs(answer: &v1::NodeStatus, found: &v1::NodeStatus) -> bool {
    let ready = |status: &v1::NodeStatus| {
        let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
        ready.map(|ready| (ready.status.clone(), ready.reason.clone()))
    };
    ready(answer) != ready(found)
}

/// The strategic merge patch that posts a status. `previous` is what the Node has: what is no longer true is taken away.
pub fn patch(previous: Option<&v1::NodeStatus>, status: &v1::NodeStatus) -> Value {
    let mut patch = json!(status);
    // Addresses are merged by their type, which may come twice: they are replaced as a whole.
    if let Some(addresses) = patch["addresses"].as_array_mut() {
        addresses.push(json!({"$patch": "replace"}));
    }
    for (field, before, now) in [
        ("capacity", previous.and_then(|status| status.capacity.as_ref()), &status.capacity),
        ("allocatable", previous.and_then(|status| status.allocatable.as_ref()), &status.allocatable),
    ] {
        for name in before.into_iter().flatten().map(|(name, _)| name) {
            if !now.as_ref().is_some_and(|now| now.contains_key(name)) {
                // Extended capacity is others' to set and to take away; what is allocatable of it follows.
                let is_ours = !name.contains('/') || (field == "allocatable" && is_extended(name));
                if is_ours {
                    patch[field][name] = Value::Null;
                }
            }
        }
    }
    let declared = previous.and_then(|status| status.declared_features.as_ref()).is_some_and(|list| !list.is_empty());
    if declared && status.declared_features.is_none() {
        patch["declaredFeatures"] = Value::Null;
    }
    // What a kubelet left that ran here before: nothing that must be detached is mounted by us, and nobody else says so.
    if previous.and_then(|status| status.volumes_in_use.as_ref()).is_some_and(|list| !list.is_empty()) {
        patch["volumesInUse"] = Value::Null;
    }
    json!({"status": patch})
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn description() -> NodeDescription {
        NodeDescription {
            name: "n1".to_owned(),
            hostname: "host".to_owned(),
            ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            capacity: BTreeMap::from([("cpu".to_owned(), "2".to_owned())]),
            ..Default::default()
        }
    }

    fn input<'a>(
        description: &'a NodeDescription,
        problems: &'a [String],
        existing: Option<&'a v1::Node>,
        second: i64,
    ) -> NodeStatusInput<'a> {
        NodeStatusInput {
            description,
            server: (1, 36),
            images: &[],
            pressure: Pressure::default(),
            problems,
            existing,
            now: Timestamp::from_second(second).unwrap(),
        }
    }

    #[test]
    fn transition_times_move_only_with_the_status() {
        let description = description();
        let first = compute(&input(&description, &[], None, 1));
        let node = v1::Node { status: Some(first.clone()), ..Default::default() };
        let second = compute(&input(&description, &[], Some(&node), 2));
        assert!(!differs(&first, &second));
        let of = |status: &v1::NodeStatus| {
            let node = v1::Node { status: Some(status.clone()), ..Default::default() };
            let ready = condition(Some(&node), "Ready").unwrap().clone();
            (ready.status, ready.last_transition_time.unwrap().0.as_second(), ready.message.unwrap())
        };
        assert_eq!(of(&second).1, 1);
        let problems = ["container runtime is down".to_owned(), "pods are not known yet".to_owned()];
        let third = compute(&input(&description, &problems, Some(&node), 3));
        assert!(differs(&second, &third));
        let expected = "[container runtime is down, pods are not known yet]".to_owned();
        assert_eq!(of(&third), ("False".to_owned(), 3, expected));
    }

    #[test]
    fn what_others_may_not_change_is_noticed() {
        let answer = compute(&input(&description(), &[], None, 1));
        let mut found = compute(&input(&description(), &[], None, 2));
        found.conditions.as_mut().unwrap().reverse();
        found.conditions.as_mut().unwrap().push(v1::NodeCondition {
            type_: "NetworkUnavailable".to_owned(),
            status: "False".to_owned(),
            ..Default::default()
        });
        found.capacity.as_mut().unwrap().insert("example.com/dongle".to_owned(), Quantity("4".to_owned()));
        found.volumes_attached = Some(Vec::new());
        assert!(!overwritten(&answer, &found) && !ready_differs(&answer, &found));
        let mut without = found.clone();
        without.conditions.as_mut().unwrap().retain(|condition| condition.type_ != "MemoryPressure");
        assert!(overwritten(&answer, &without) && !ready_differs(&answer, &without));
        let mut unknown = found.clone();
        unknown.conditions.as_mut().unwrap().iter_mut().find(|one| one.type_ == "Ready").unwrap().status =
            "Unknown".to_owned();
        assert!(overwritten(&answer, &unknown) && ready_differs(&answer, &unknown));
        found.addresses = None;
        assert!(overwritten(&answer, &found));
    }

    #[test]
    fn addresses_are_replaced_and_an_external_clouds_stay() {
        let description = description();
        let status = compute(&input(&description, &[], None, 1));
        let patch = patch(None, &status);
        let addresses = patch["status"]["addresses"].as_array().unwrap();
        assert_eq!(addresses.len(), 4);
        assert_eq!(addresses[3]["$patch"], "replace");

        // Before the cloud's controller has spoken its name is told, and an address where one was asked for.
        let external = NodeDescription { external_cloud: true, ..description.clone() };
        let hostname = compute(&input(&external, &[], None, 1)).addresses.unwrap();
        assert_eq!((hostname.len(), hostname[0].type_.as_str()), (1, "Hostname"));
        let of_a_family = NodeDescription { asks_for_ip: true, ..external.clone() };
        assert_eq!(compute(&input(&of_a_family, &[], None, 1)).addresses, status.addresses);
        let node = v1::Node { status: Some(status.clone()), ..Default::default() };
        assert_eq!(compute(&input(&external, &[], Some(&node), 1)).addresses, status.addresses);

        // Before the machine has the ones that were named nothing is said, and nothing that was is taken back.
        let given_ips = description.ips.clone();
        let pending = NodeDescription { ips: Vec::new(), given_ips, asks_for_ip: true, ..description };
        assert!(compute(&input(&pending, &[], None, 1)).addresses.is_none());
        assert_eq!(compute(&input(&pending, &[], Some(&node), 1)).addresses, status.addresses);
        let external = NodeDescription { external_cloud: true, ..pending };
        assert!(compute(&input(&external, &[], None, 1)).addresses.is_none());
    }

    #[test]
    fn what_is_no_longer_there_is_taken_away_but_for_what_others_set() {
        let mut old = compute(&input(&description(), &[], None, 1));
        let capacity = old.capacity.as_mut().unwrap();
        capacity.insert("hugepages-2Mi".to_owned(), Quantity("0".to_owned()));
        capacity.insert("example.com/dongle".to_owned(), Quantity("4".to_owned()));
        old.allocatable.as_mut().unwrap().insert("example.com/gone".to_owned(), Quantity("1".to_owned()));
        old.volumes_in_use = Some(vec!["kubernetes.io/csi/driver^volume".to_owned()]);
        let node = v1::Node { status: Some(old.clone()), ..Default::default() };
        let new = compute(&input(&description(), &[], Some(&node), 2));
        // What others have is for pods to use, as the kubelet has it.
        assert!(differs(&old, &new) && overwritten(&new, &old));
        let patch = patch(Some(&old), &new);
        assert!(patch["status"].as_object().unwrap()["volumesInUse"].is_null());
        let capacity = patch["status"]["capacity"].as_object().unwrap();
        assert!(capacity["hugepages-2Mi"].is_null());
        assert!(!capacity.contains_key("example.com/dongle"));
        let allocatable = &patch["status"]["allocatable"];
        assert_eq!(allocatable["example.com/dongle"], "4");
        assert!(allocatable.as_object().unwrap()["example.com/gone"].is_null());
    }

    #[test]
    fn the_largest_images_are_shown() {
        let images: Vec<NodeImage> =
            (0..60).map(|n| NodeImage { names: vec![format!("i:{n}"), format!("i@sha256:{n}")], size: n }).collect();
        assert_eq!(super::images(&images, None).len(), 60);
        let shown = super::images(&images, Some(50));
        assert_eq!(shown.len(), 50);
        assert_eq!(shown[0].names.as_ref().unwrap()[0], "i@sha256:59");
    }
}
