//! Whether a pod may run on this node at all. A pod that may not ends Failed; of those that are not the API server's the
//! agent's next start asks again.
//!
//! The kubelet's own reasons and no others, as far as they need no API server:
//! `pkg/kubelet/lifecycle/{predicate,handlers}.go`, `pkg/scheduler/eventhandlers.go` (`AdmissionCheck`) and
//! `pkg/kubelet/sysctl/allowlist.go`. What this agent cannot do is another matter ([`crate::support`]).
//! Whom a critical pod preempts is another matter, too ([`crate::preempt`]).

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;

use crate::node::NodeFacts;
use crate::pod::{ContainerKind, Pod, Source, init_kind};
use crate::preempt::Need;
use crate::record::{PodRecord, Terminal};
use crate::{quantity, resources, shutdown};

mod affinity;
mod pressure;
pub mod sysctls;

pub(crate) use affinity::selects;
pub use pressure::under_pressure;

/// What a pod is told that comes while the machine goes down.
pub fn shutting_down() -> Rejection {
    Rejection { reason: shutdown::REJECTED_REASON.into(), message: shutdown::REJECTED_MESSAGE.to_owned() }
}

/// Why a pod may not run here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Rejection {
    /// `status.reason`.
    pub reason: Cow<'static, str>,
    /// `status.message`.
    pub message: String,
}

/// What the message of every rejected pod begins with.
const REJECTED: &str = "Pod was rejected: ";

impl Rejection {
    /// How a pod ends for it.
    pub fn terminal(self) -> Terminal {
        let message = Some(format!("{REJECTED}{}", self.message));
        Terminal { phase: "Failed".to_owned(), reason: Some(self.reason.into_owned()), message }
    }
}

/// Whether a pod that was rejected is asked about again when the agent starts: what was in its way may have gone since, and
/// no controller makes another in its place. The kubelet forgets that it rejected a static pod.
pub fn is_asked_again(source: &Source, record: &PodRecord) -> bool {
    let message = record.terminal.as_ref().and_then(|terminal| terminal.message.as_deref());
    *source != Source::Api && message.is_some_and(|message| message.starts_with(REJECTED))
}

fn reject(reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Result<(), Rejection> {
    Err(Rejection { reason: reason.into(), message: message.into() })
}

/// Whether the pod may run beside the `active` ones, which hold their share of the node already: asked once of every pod
/// that is new here. The pod itself may be among them. Those that end count until nothing of them runs, as for the kubelet;
/// but who calls asks again without them, since a pod that only they keep out is better made to wait than rejected for good.
///
/// `node` is the Node as the API server has it now: its labels count, and for pods of the API server its taints. On a node
/// that is alone there is none. Where there is none in a cluster, it is not known yet: for pods of the API server the
/// scheduler's word is taken then. Other pods are checked against the labels that are known here. Extended resources are
/// fitted where the Node has them; those that no Node has hold no pod up.
pub fn admit(pod: &Pod, active: &[&Pod], facts: &NodeFacts, node: Option<&v1::Node>) -> Result<(), Rejection> {
    let others: Vec<&Pod> = active.iter().copied().filter(|other| other.id.uid != pod.id.uid).collect();
    operating_system(pod)?;
    groups_policy(pod)?;
    features(pod)?;
    fit(pod, &others, facts, node)?;
    placed(pod, &others, facts, node)
}

/// As [`admit`], were there room: asked of a critical pod that was refused and lacks room, before others end for it. What
/// is refused here is refused for something that nobody's end mends.
pub fn admit_but_for_room(
    pod: &Pod,
    active: &[&Pod],
    facts: &NodeFacts,
    node: Option<&v1::Node>,
) -> Result<(), Rejection> {
    let others: Vec<&Pod> = active.iter().copied().filter(|other| other.id.uid != pod.id.uid).collect();
    operating_system(pod)?;
    groups_policy(pod)?;
    features(pod)?;
    placed(pod, &others, facts, node)
}

/// All that is neither about the pod alone nor about room.
fn placed(pod: &Pod, others: &[&Pod], facts: &NodeFacts, node: Option<&v1::Node>) -> Result<(), Rejection> {
    let is_static = pod.source != Source::Api;
    match node {
        Some(node) => {
            let labels = node.metadata.labels.clone().unwrap_or_default();
            affinity::check(pod, &NodeFacts { labels, ..facts.clone() })?;
        }
        None if is_static => affinity::check(pod, facts)?,
        None => {}
    }
    node_name(pod, facts)?;
    host_ports(pod, others)?;
    if !is_static {
        taints(pod, node)?;
    }
    sysctls::check(pod, facts)?;
    apparmor(pod, facts)
}

/// Whether a newer look at the Node may turn a rejection into its opposite: a pod is often bound for a label that was only
/// just set (`generalFilter` in `pkg/kubelet/lifecycle/predicate.go`), or since a taint was only just taken away.
pub fn may_be_outdated(rejection: &Rejection) -> bool {
    matches!(&*rejection.reason, "NodeAffinity" | "TaintToleration")
}

/// Only `NoExecute` counts for the kubelet (`pkg/kubelet/lifecycle/predicate.go`).
fn taints(pod: &Pod, node: Option<&v1::Node>) -> Result<(), Rejection> {
    let taints = node.and_then(|node| node.spec.as_ref()).into_iter().flat_map(|spec| spec.taints.iter().flatten());
    let tolerations = pod.spec().tolerations.as_deref().unwrap_or_default();
    for taint in taints.filter(|taint| taint.effect == "NoExecute") {
        if !tolerations.iter().any(|toleration| tolerates(toleration, taint)) {
            let message = "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
            return reject("TaintToleration", message);
        }
    }
    Ok(())
}

fn tolerates(toleration: &v1::Toleration, taint: &v1::Taint) -> bool {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let effect = given(&toleration.effect).is_none_or(|effect| effect == taint.effect);
    let key = given(&toleration.key).is_none_or(|key| key == taint.key);
    let value = || toleration.value.clone().unwrap_or_default() == taint.value.clone().unwrap_or_default();
    effect
        && key
        && match toleration.operator.as_deref() {
            None | Some("" | "Equal") => given(&toleration.key).is_some() && value(),
            Some("Exists") => true,
            Some(_) => false,
        }
}

fn operating_system(pod: &Pod) -> Result<(), Rejection> {
    let label = pod.labels().get("kubernetes.io/os");
    if label.is_some_and(|os| os != "linux") {
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return reject("PodOSSelectorNodeLabelDoesNotMatch", message);
    }
    if pod.spec().os.as_ref().is_some_and(|os| os.name != "linux") {
        return reject("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS");
    }
    Ok(())
}

fn groups_policy(pod: &Pod) -> Result<(), Rejection> {
    // Docker always merges the groups of the image's /etc/group.
    let policy =
        pod.spec().security_context.as_ref().and_then(|security| security.supplemental_groups_policy.as_deref());
    if policy == Some("Strict") {
        let message = "SupplementalGroupsPolicy=Strict is not supported in this node";
        return reject("SupplementalGroupsPolicyNotSupported", message);
    }
    Ok(())
}

/// What a pod needs that this node does not declare (`declaredFeaturesAdmitHandler` in `pkg/kubelet/lifecycle/handlers.go`,
/// `InferForScheduling` of each feature in `component-helpers/nodedeclaredfeatures/features`).
fn features(pod: &Pod) -> Result<(), Rejection> {
    let spec = pod.spec();
    let user_namespace = spec.host_network == Some(true) && spec.host_users == Some(false);
    let options =
        |mount: &v1::VolumeMount| mount.bind_mount_options.as_ref().is_some_and(|options| !options.is_empty());
    let mount_options = pod.containers().any(|container| container.spec.volume_mounts.iter().flatten().any(options));
    let lacking = [(user_namespace, "UserNamespacesHostNetworkSupport"), (mount_options, "VolumeBindMountOptions")];
    let lacking: Vec<&str> = lacking.into_iter().filter(|(needed, _)| *needed).map(|(_, name)| name).collect();
    match lacking.is_empty() {
        true => Ok(()),
        false => reject(
            "PodFeatureUnsupported",
            format!("Pod requires node features that are not available: {}", lacking.join(", ")),
        ),
    }
}

fn fit(pod: &Pod, others: &[&Pod], facts: &NodeFacts, node: Option<&v1::Node>) -> Result<(), Rejection> {
    match shortages(pod, others, facts, node).into_iter().next() {
        Some(Shortage { resource, requested, used, capacity }) => reject(
            format!("OutOf{resource}"),
            format!(
                "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        ),
        None => Ok(()),
    }
}

/// What a pod lacks to run beside the `active` ones; nothing when there is room.
pub fn needs(pod: &Pod, active: &[&Pod], facts: &NodeFacts, node: Option<&v1::Node>) -> Vec<Need> {
    let others: Vec<&Pod> = active.iter().copied().filter(|other| other.id.uid != pod.id.uid).collect();
    let lacking = |short: Shortage| Need {
        amount: short.requested.saturating_sub(short.capacity.saturating_sub(short.used)),
        resource: short.resource,
    };
    shortages(pod, &others, facts, node).into_iter().map(lacking).collect()
}

/// A resource of which there is not enough left.
struct Shortage {
    resource: String,
    requested: i64,
    used: i64,
    capacity: i64,
}

/// In the order of `fitsRequest` in `pkg/scheduler/framework/plugins/noderesources/fit.go`.
fn shortages(pod: &Pod, others: &[&Pod], facts: &NodeFacts, node: Option<&v1::Node>) -> Vec<Shortage> {
    let mut found = Vec::new();
    let count = others.len() as i64;
    let most = i64::from(facts.max_pods);
    if count + 1 > most {
        found.push(Shortage { resource: "pods".to_owned(), requested: 1, used: count, capacity: most });
    }
    let wanted = pod_requests(pod.spec());
    let mut used: BTreeMap<String, i64> = BTreeMap::new();
    for other in others {
        for (name, value) in pod_requests(other.spec()) {
            let sum = used.entry(name).or_default();
            *sum = sum.saturating_add(value);
        }
    }
    let of = |list: &BTreeMap<String, i64>, name: &str| list.get(name).copied().unwrap_or(0);
    let all = [
        ("cpu", facts.allocatable_milli_cpu),
        ("memory", facts.allocatable_memory),
        (resources::EPHEMERAL_STORAGE, facts.allocatable_ephemeral_storage.unwrap_or(0)),
    ];
    let scalar = wanted.keys().filter(|name| name.starts_with("hugepages-") || name.contains('/'));
    let scalar = scalar.filter_map(|name| Some((name.as_str(), scalar_capacity(name, facts, node)?)));
    for (name, capacity) in all.into_iter().chain(scalar) {
        let (requested, used) = (of(&wanted, name), of(&used, name));
        if requested > 0 && requested > capacity.saturating_sub(used) {
            found.push(Shortage { resource: name.to_owned(), requested, used, capacity });
        }
    }
    found
}

/// How much pods may have of huge pages, or of what others advertise on the Node; `None` where it does not matter
/// (`removeMissingExtendedResources` in `pkg/kubelet/lifecycle/predicate.go`: a cluster's own scheduler sees to it).
fn scalar_capacity(name: &str, facts: &NodeFacts, node: Option<&v1::Node>) -> Option<i64> {
    if !name.contains('/') {
        return Some(facts.huge_pages.get(name).copied().unwrap_or(0));
    }
    let allocatable = node.and_then(|node| node.status.as_ref()).and_then(|status| status.allocatable.as_ref());
    match allocatable.and_then(|allocatable| allocatable.get(name)) {
        Some(quantity) => Some(amount(name, quantity)),
        None if resources::is_extended(name) => None,
        None => Some(0),
    }
}

/// What a pod requests as a whole, overhead included; CPU in thousandths, all else in whole units
/// (`component-helpers/resource/helpers.go`, `PodRequests`).
pub fn pod_requests(spec: &v1::PodSpec) -> BTreeMap<String, i64> {
    let mut sum = container_requests(spec);
    // What is requested for the pod as a whole stands in place of its containers' sum.
    for (name, quantity) in spec.resources.iter().flat_map(|resources| resources.requests.iter().flatten()) {
        if matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-") {
            sum.insert(name.clone(), amount(name, quantity));
        }
    }
    for (name, quantity) in spec.overhead.iter().flatten() {
        let value = sum.entry(name.clone()).or_default();
        *value = value.saturating_add(amount(name, quantity));
    }
    sum
}

/// What the containers need together: app containers and sidecars run at once, each init container runs beside
/// the sidecars before it.
pub fn container_requests(spec: &v1::PodSpec) -> BTreeMap<String, i64> {
    let mut running: BTreeMap<String, i64> = BTreeMap::new();
    for container in &spec.containers {
        add(&mut running, &requests(container));
    }
    let mut sidecars: BTreeMap<String, i64> = BTreeMap::new();
    let mut peak: BTreeMap<String, i64> = BTreeMap::new();
    for container in spec.init_containers.iter().flatten() {
        let mut now = requests(container);
        if init_kind(container) == ContainerKind::Sidecar {
            add(&mut running, &now);
            add(&mut sidecars, &now);
            now = sidecars.clone();
        } else {
            add(&mut now, &sidecars);
        }
        raise(&mut peak, now);
    }
    raise(&mut running, peak);
    running
}

fn requests(container: &v1::Container) -> BTreeMap<String, i64> {
    let list = container.resources.iter().flat_map(|resources| resources.requests.iter().flatten());
    list.map(|(name, quantity)| (name.clone(), amount(name, quantity))).collect()
}

fn amount(name: &str, quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> i64 {
    let value = if name == "cpu" { quantity::milli(quantity) } else { quantity::value(quantity) };
    // Validated before; what is too large for 64 bits fits nowhere.
    value.unwrap_or(i64::MAX)
}

fn add(sum: &mut BTreeMap<String, i64>, more: &BTreeMap<String, i64>) {
    for (name, value) in more {
        let known = sum.entry(name.clone()).or_default();
        *known = known.saturating_add(*value);
    }
}

fn raise(sum: &mut BTreeMap<String, i64>, to: BTreeMap<String, i64>) {
    for (name, value) in to {
        let known = sum.entry(name).or_default();
        *known = value.max(*known);
    }
}

fn node_name(pod: &Pod, node: &NodeFacts) -> Result<(), Rejection> {
    match pod.spec().node_name.as_deref() {
        Some(name) if !name.is_empty() && name != node.name => {
            reject("NodeName", "Predicate NodeName failed: node(s) didn't match the requested node name")
        }
        _ => Ok(()),
    }
}

/// Address, protocol and number of a port of the node that a pod takes.
type HostPort = (String, String, i32);

fn ports(pod: &Pod) -> Vec<HostPort> {
    let taken = pod
        .containers()
        // Ports of init containers that are not sidecars are not held while the pod runs.
        .filter(|container| container.kind != ContainerKind::Init)
        .flat_map(|container| container.spec.ports.iter().flatten());
    taken
        .filter_map(|port| {
            let number = port.host_port.filter(|port| *port > 0)?;
            let ip = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
            Some((ip, port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), number))
        })
        .collect()
}

fn host_ports(pod: &Pod, others: &[&Pod]) -> Result<(), Rejection> {
    let wanted = ports(pod);
    if wanted.is_empty() {
        return Ok(());
    }
    let every = |ip: &str| matches!(ip, "0.0.0.0" | "::");
    let clash = |a: &HostPort, b: &HostPort| a.1 == b.1 && a.2 == b.2 && (a.0 == b.0 || every(&a.0) || every(&b.0));
    for other in others {
        let taken = ports(other);
        if let Some((_, protocol, number)) = wanted.iter().find(|port| taken.iter().any(|held| clash(port, held))) {
            let message = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
            // Whose pods there are is not for every user of a cluster to know.
            let holder =
                (pod.source != Source::Api).then(|| format!(": pod {} has {protocol} port {number}", other.id));
            return reject("NodePorts", format!("{message}{}", holder.unwrap_or_default()));
        }
    }
    Ok(())
}

fn apparmor(pod: &Pod, node: &NodeFacts) -> Result<(), Rejection> {
    // The kubelet refuses only what needs AppArmor; `Unconfined` does not (`pkg/security/apparmor/validate.go`).
    let needs =
        |profile: &Option<v1::AppArmorProfile>| profile.as_ref().is_some_and(|profile| profile.type_ != "Unconfined");
    let of_pod = pod.spec().security_context.as_ref().is_some_and(|security| needs(&security.app_armor_profile));
    let of_container = pod
        .containers()
        .any(|container| container.spec.security_context.as_ref().is_some_and(|s| needs(&s.app_armor_profile)));
    let annotated = pod.annotations().iter().any(|(key, value)| {
        key.starts_with("container.apparmor.security.beta.kubernetes.io/") && value != "unconfined"
    });
    if !node.apparmor && (of_pod || of_container || annotated) {
        return reject("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host");
    }
    Ok(())
}

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) mod testing;
