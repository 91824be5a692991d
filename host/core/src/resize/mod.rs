//! In-place resize: what of its spec's CPU and memory a pod has been given, and what its containers run with.
//!
//! Three things are told apart, as by the kubelet (KEP-1287, `pkg/kubelet/allocation`): what the source *wants*, what
//! this node has *allocated* for it (kept in the record, and what everything but [`decide`] works with), and what a
//! running container was last *actuated* with. Must not plan ([`crate::plan`]) nor report ([`crate::status`]).

mod decide;
mod tell;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Serialize};

use crate::cgroup::{self, PodCgroup};
use crate::container::Resources;
use crate::node::NodeFacts;
use crate::observed::ObservedPod;
use crate::pod::{ContainerKind, ContainerOf, Pod};
use crate::record::PodRecord;
use crate::{quantity, resources};

pub use decide::{Verdict, Wish, decide};
pub use tell::{completed, failed, pending, started};

/// CPU and memory of a container, as far as they can be resized; 0 where there is none. A limit that it does not set is
/// the pod's (`containerResourcesFromRequirements`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// Requested CPU, in thousandths of a core.
    pub cpu_request: i64,
    /// Most CPU, in thousandths of a core.
    pub cpu_limit: i64,
    /// Requested memory, in bytes.
    pub memory_request: i64,
    /// Most memory, in bytes.
    pub memory_limit: i64,
}

impl Amounts {
    /// Those of a container of that pod's spec.
    pub fn of(spec: &v1::PodSpec, container: &v1::Container) -> Amounts {
        let limit = |name| resources::limit(container, name).or_else(|| resources::pod_level_limit(spec, name));
        Amounts {
            cpu_request: resources::request(container, "cpu").unwrap_or(0),
            cpu_limit: limit("cpu").unwrap_or(0),
            memory_request: resources::request(container, "memory").unwrap_or(0),
            memory_limit: limit("memory").unwrap_or(0),
        }
    }

    /// The same as a spec would say it.
    fn requirements(&self) -> v1::ResourceRequirements {
        let list = |cpu: i64, memory: i64| {
            let cpu = (cpu > 0).then(|| ("cpu".to_owned(), quantity::of_milli(cpu)));
            let memory = (memory > 0).then(|| ("memory".to_owned(), quantity::of_bytes(memory)));
            Some(cpu.into_iter().chain(memory).collect())
        };
        v1::ResourceRequirements {
            requests: list(self.cpu_request, self.memory_request),
            limits: list(self.cpu_limit, self.memory_limit),
            ..Default::default()
        }
    }

    /// Whether a change from these to `wanted` needs the container to be restarted: by its resize policy, or because it
    /// takes a memory limit away, which Docker does not do to what runs (it has no word for "no limit any more").
    pub fn needs_restart(&self, wanted: &Amounts, container: &v1::Container) -> bool {
        let cpu = (self.cpu_request, self.cpu_limit) != (wanted.cpu_request, wanted.cpu_limit);
        let memory = (self.memory_request, self.memory_limit) != (wanted.memory_request, wanted.memory_limit);
        let restarts = |name: &str| {
            let mut policies = container.resize_policy.iter().flatten();
            policies.find(|policy| policy.resource_name == name).is_some_and(|p| p.restart_policy == "RestartContainer")
        };
        let unlimited = self.memory_limit > 0 && wanted.memory_limit == 0;
        unlimited || (cpu && restarts("cpu")) || (memory && restarts("memory"))
    }
}

/// What a pod has been given of the CPU and memory (and other resources) that its spec names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Allocation {
    /// By container, init containers included.
    pub containers: BTreeMap<String, v1::ResourceRequirements>,
    /// For the pod as a whole (`spec.resources`).
    pub pod: Option<v1::ResourceRequirements>,
}

impl Allocation {
    /// All that the object's spec names.
    pub fn of(object: &v1::Pod) -> Allocation {
        let Some(spec) = &object.spec else { return Allocation::default() };
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        Allocation {
            containers: containers.map(|of| (of.name.clone(), of.resources.clone().unwrap_or_default())).collect(),
            pod: spec.resources.clone(),
        }
    }

    /// What the API server was told of a pod's containers, whose record was lost; `None` when it was told nothing.
    pub fn told(status: &v1::PodStatus) -> Option<Allocation> {
        let told = [&status.init_container_statuses, &status.container_statuses];
        let containers: BTreeMap<_, _> = told
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|status| {
                let resources = status.resources.clone()?;
                let requests = status.allocated_resources.clone().or(resources.requests.clone());
                Some((status.name.clone(), v1::ResourceRequirements { requests, ..resources }))
            })
            .collect();
        (!containers.is_empty()).then_some(Allocation { containers, pod: None })
    }

    /// The object with what was given in place of what is wanted; the same one when that is the same. A container that
    /// was given nothing yet is new, and has what it wants.
    pub fn apply(&self, wanted: &Arc<v1::Pod>) -> Arc<v1::Pod> {
        if !self.differs(wanted) {
            return wanted.clone();
        }
        let mut object = (**wanted).clone();
        if let Some(spec) = &mut object.spec {
            spec.resources.clone_from(&self.pod);
            for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
                if let Some(given) = self.containers.get(&container.name) {
                    container.resources = Some(given.clone());
                }
            }
        }
        Arc::new(object)
    }

    /// Whether the object wants something else than was given.
    pub fn differs(&self, wanted: &v1::Pod) -> bool {
        let Some(spec) = &wanted.spec else { return false };
        let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        !same(spec.resources.as_ref(), self.pod.as_ref())
            || containers
                .any(|of| self.containers.get(&of.name).is_some_and(|given| !same(of.resources.as_ref(), Some(given))))
    }
}

/// Whether two say the same, whatever the notation of their quantities.
fn same(a: Option<&v1::ResourceRequirements>, b: Option<&v1::ResourceRequirements>) -> bool {
    let list = |of: Option<&BTreeMap<String, Quantity>>| -> BTreeMap<String, (Option<i64>, Option<i64>)> {
        let read = |(name, quantity): (&String, &Quantity)| {
            (name.clone(), (quantity::milli(quantity), quantity::value(quantity)))
        };
        of.into_iter().flatten().map(read).collect()
    };
    let of = |given: Option<&v1::ResourceRequirements>| {
        (
            list(given.and_then(|given| given.requests.as_ref())),
            list(given.and_then(|given| given.limits.as_ref())),
            given.and_then(|given| given.claims.clone()).unwrap_or_default(),
        )
    };
    a == b || of(a) == of(b)
}

/// What is remembered of a pod's resize.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResizeRecord {
    /// Condition `PodResizePending`: what is wanted is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
    /// Condition `PodResizeInProgress`: what is given is not actuated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// `spec.resources` as last actuated, while the pod is resized; later than that it means nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<v1::ResourceRequirements>,
}

impl ResizeRecord {
    /// Notes what the pod has for itself (`given`) before it is given something else. While another resize goes on that is
    /// the larger of both: nobody knows how far it came.
    pub fn begins_from(&mut self, given: Option<&v1::ResourceRequirements>) {
        self.pod = match (&self.progress, &self.pod, given) {
            (Some(_), Some(before), Some(given)) => Some(larger(before, given)),
            (_, _, given) => given.cloned(),
        };
    }
}

/// The larger of what is requested and of the limits, where both have one.
fn larger(a: &v1::ResourceRequirements, b: &v1::ResourceRequirements) -> v1::ResourceRequirements {
    let value = |quantity: &Quantity| quantity::milli(quantity).unwrap_or(i64::MAX);
    let most = |a: &Quantity, b: &Quantity| if value(a) < value(b) { b.clone() } else { a.clone() };
    let mut requests = a.requests.clone().unwrap_or_default();
    for (name, other) in b.requests.iter().flatten() {
        let more = requests.get(name).map_or_else(|| other.clone(), |own| most(own, other));
        requests.insert(name.clone(), more);
    }
    let others = b.limits.clone().unwrap_or_default();
    let limits = a.limits.iter().flatten();
    let limits = limits.filter_map(|(name, own)| Some((name.clone(), most(own, others.get(name)?)))).collect();
    v1::ResourceRequirements { requests: Some(requests), limits: Some(limits), ..a.clone() }
}

/// A resize that is not granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// `Deferred` or `Infeasible`.
    pub reason: String,
    /// What stands in its way.
    pub message: String,
    /// `metadata.generation` of the object that wants it; 0 where there is none.
    pub generation: i64,
    /// Since when it is pending for that reason.
    pub since: Timestamp,
}

/// A resize that is granted and not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What went wrong at the last try.
    pub error: Option<String>,
    /// `metadata.generation` of the object that it was granted to; 0 where there is none.
    pub generation: i64,
    /// Since when it goes on, or fails.
    pub since: Timestamp,
}

/// A running container that was actuated with something else than it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// ID of the container.
    pub id: String,
    /// Name of the container.
    pub container: String,
    /// What it runs with; `None` where that is not known.
    pub from: Option<Amounts>,
    /// What it is given.
    pub to: Amounts,
}

/// Every running container that must be resized, in the order of the spec (`isContainerResourceResizeInProgress`).
pub fn gaps(pod: &Pod, observed: &ObservedPod, record: &PodRecord) -> Vec<Gap> {
    pod.containers().filter_map(|container| gap(pod, container, observed, record)).collect()
}

/// What one container must be resized by, if it runs and must.
pub fn gap(pod: &Pod, container: ContainerOf<'_>, observed: &ObservedPod, record: &PodRecord) -> Option<Gap> {
    let name = &container.spec.name;
    let seen = observed.container(name).filter(|seen| seen.is_running())?;
    let known = record.containers.get(name).filter(|known| known.id.as_deref() == Some(&seen.id))?;
    let to = Amounts::of(pod.spec(), container.spec);
    // An init container does its work once: it is never started again for its size.
    let never = container.kind == ContainerKind::Init
        && known.actuated.is_some_and(|from| from.needs_restart(&to, container.spec));
    let gap = || Gap { id: seen.id.clone(), container: name.clone(), from: known.actuated, to };
    (known.actuated != Some(to) && !never).then(gap)
}

/// What a container that is newly known of was actuated with: what it is given, unless the runtime says otherwise and
/// it may be changed without a restart; then `None`, and it is brought up to it. A memory limit where none is given is
/// told, for only a restart takes it away.
///
/// Where the runtime says nothing (it left out what its kernel has no controller for) it is believed.
pub fn actuated(pod: &Pod, container: &v1::Container, seen: Option<&Resources>) -> Option<Amounts> {
    let given = Amounts::of(pod.spec(), container);
    if let Some(seen) = seen.filter(|seen| seen.memory > 0 && given.memory_limit == 0) {
        return Some(Amounts { memory_limit: seen.memory, ..given });
    }
    let drifted = seen.is_some_and(|seen| drifted(pod, container, seen));
    let restarts = container.resize_policy.iter().flatten().any(|policy| policy.restart_policy == "RestartContainer");
    (!drifted || restarts).then_some(given)
}

/// Whether the runtime has something else for a container than it is given. Another period of the quota, or a quota that is
/// not enforced any more, is not: a node that is configured anew leaves alone what runs.
pub fn drifted(pod: &Pod, container: &v1::Container, seen: &Resources) -> bool {
    let wanted = Amounts::of(pod.spec(), container);
    let period = if seen.cpu_period > 0 { seen.cpu_period } else { resources::QUOTA_PERIOD };
    let other = |seen: i64, wanted: i64| seen > 0 && wanted > 0 && seen != wanted;
    other(seen.cpu_shares, resources::cpu_shares(pod.spec(), container))
        || other(seen.cpu_quota, resources::milli_cpu_to_quota(wanted.cpu_limit, period))
        || other(seen.memory, wanted.memory_limit)
        || (seen.cpu_quota > 0 && wanted.cpu_limit == 0)
        || (seen.memory > 0 && wanted.memory_limit == 0)
}

/// The pod as it runs while its containers have those gaps.
fn before(pod: &Pod, record: &PodRecord, gaps: &[Gap]) -> Pod {
    let mut allocation = Allocation::of(&pod.object);
    allocation.pod = pod_level(pod, record).cloned();
    for gap in gaps {
        if let Some(from) = gap.from {
            allocation.containers.insert(gap.container.clone(), from.requirements());
        }
    }
    Pod { object: allocation.apply(&pod.object), ..pod.clone() }
}

/// The pod's cgroup as it must be now: as given, and while containers are resized never less than what they still run
/// with, so that it grows before them and shrinks after them (`doPodResizeAction`).
pub fn pod_cgroup(pod: &Pod, observed: &ObservedPod, record: &PodRecord, node: &NodeFacts) -> PodCgroup {
    let given = cgroup::pod_cgroup(pod, node);
    let gaps = gaps(pod, observed, record);
    if gaps.is_empty() {
        return given;
    }
    let before = cgroup::pod_cgroup(&before(pod, record, &gaps), node);
    let most = |a: Option<i64>, b: Option<i64>| a.zip(b).map(|(a, b)| a.max(b));
    PodCgroup {
        cpu_shares: given.cpu_shares.max(before.cpu_shares),
        cpu_quota: most(given.cpu_quota, before.cpu_quota),
        memory: most(given.memory, before.memory),
        ..given
    }
}

/// The pod as it counts against the node: what it is given, and no less than what its containers still run with.
pub fn held(pod: &Pod, observed: &ObservedPod, record: &PodRecord) -> Pod {
    let gaps = gaps(pod, observed, record);
    let settled = gaps.is_empty() && same(pod_level(pod, record), pod.spec().resources.as_ref());
    if settled { pod.clone() } else { most(pod, &before(pod, record, &gaps)) }
}

/// `spec.resources` as actuated.
pub fn pod_level<'a>(pod: &'a Pod, record: &'a PodRecord) -> Option<&'a v1::ResourceRequirements> {
    let resizes = record.resize.progress.is_some();
    if resizes { record.resize.pod.as_ref() } else { pod.spec().resources.as_ref() }
}

/// The pod with the larger of both requests for CPU and for memory, container by container.
fn most(pod: &Pod, other: &Pod) -> Pod {
    let (mut allocation, others) = (Allocation::of(&pod.object), Allocation::of(&other.object));
    let raise = |own: &mut v1::ResourceRequirements, other: &v1::ResourceRequirements| {
        for (name, quantity) in other.requests.iter().flatten() {
            let value = |quantity: &Quantity| quantity::milli(quantity).unwrap_or(i64::MAX);
            let requests = own.requests.get_or_insert_default();
            if matches!(name.as_str(), "cpu" | "memory")
                && requests.get(name).is_none_or(|own| value(own) < value(quantity))
            {
                requests.insert(name.clone(), quantity.clone());
            }
        }
    };
    for (name, own) in &mut allocation.containers {
        if let Some(other) = others.containers.get(name) {
            raise(own, other);
        }
    }
    if let (Some(own), Some(other)) = (&mut allocation.pod, &others.pod) {
        raise(own, other);
    }
    Pod { object: allocation.apply(&pod.object), ..pod.clone() }
}
