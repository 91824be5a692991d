//! CPU and memory: from quantities in a pod's spec to shares, quotas, limits and oom scores.
//!
//! As `pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/kuberuntime/kuberuntime_container_linux.go`,
//! `pkg/kubelet/qos/policy.go` and `component-helpers/resource/helpers.go`. Amounts are in thousandths of a core for
//! `cpu` and in bytes or pieces for everything else. Quantities that cannot be read count as not set: manifests
//! that hold such are refused before they come here.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::cgroup::{Qos, qos};
use crate::container::Resources;
use crate::node::NodeFacts;
use crate::pod::{ContainerKind, ContainerOf, Pod, init_kind};
use crate::{priority, quantity};

/// CFS period in µs that quotas are given for, unless the node has another.
pub const QUOTA_PERIOD: i64 = 100_000;
/// Name of what a pod takes on the node's disk.
pub(crate) const EPHEMERAL_STORAGE: &str = "ephemeral-storage";
/// The least quota that the kernel takes, in µs.
const MIN_QUOTA: i64 = 1_000;
/// The least and the most shares that the kernel takes.
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const SHARES_PER_CORE: i64 = 1_024;

/// `oom_score_adj` of pause containers, before clamping.
const SANDBOX_OOM_SCORE_ADJ: i32 = -998;
/// `oom_score_adj` of Guaranteed and of node-critical pods.
const GUARANTEED_OOM_SCORE_ADJ: i32 = -997;
/// `oom_score_adj` of BestEffort pods.
const BEST_EFFORT_OOM_SCORE_ADJ: i32 = 1000;

/// CPU shares (cgroup v1's scale) for an amount of CPU: 1024 a core, between 2 and 262144.
pub fn milli_cpu_to_shares(milli: i64) -> i64 {
    (milli.max(0).saturating_mul(SHARES_PER_CORE) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// CFS quota in µs per that period (µs, too) for an amount of CPU, at least 1 ms; 0, which is no quota, for none.
pub fn milli_cpu_to_quota(milli: i64, period: i64) -> i64 {
    if milli <= 0 { 0 } else { (milli.saturating_mul(period) / 1000).max(MIN_QUOTA) }
}

/// Whether a resource is one that somebody else than Kubernetes defines (`IsExtendedResourceName` in
/// `pkg/apis/core/v1/helper`): `example.com/dongle`.
pub(crate) fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

/// An amount in a list of quantities; `None` where it is absent or zero.
pub(crate) fn amount(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i64> {
    let found = list?.get(name)?;
    let parsed = if name == "cpu" { quantity::milli(found) } else { quantity::value(found) };
    parsed.filter(|amount| *amount > 0)
}

/// A container's limit; `None` where it is not set or zero.
pub fn limit(container: &v1::Container, name: &str) -> Option<i64> {
    amount(container.resources.as_ref()?.limits.as_ref(), name)
}

/// A container's request, which is its limit where only that is set; `None` where neither is.
pub fn request(container: &v1::Container, name: &str) -> Option<i64> {
    let resources = container.resources.as_ref()?;
    match resources.requests.as_ref().is_some_and(|requests| requests.contains_key(name)) {
        true => amount(resources.requests.as_ref(), name),
        false => amount(resources.limits.as_ref(), name),
    }
}

/// The limit in `spec.resources`, where it is set.
pub fn pod_level_limit(spec: &v1::PodSpec, name: &str) -> Option<i64> {
    amount(spec.resources.as_ref()?.limits.as_ref(), name)
}

/// The request in `spec.resources`, where it is set.
pub fn pod_level_request(spec: &v1::PodSpec, name: &str) -> Option<i64> {
    amount(spec.resources.as_ref()?.requests.as_ref(), name)
}

/// What a pod needs at its busiest: app containers and sidecars together, or an init container and the sidecars
/// before it, whichever is more.
fn aggregate(spec: &v1::PodSpec, of: impl Fn(&v1::Container) -> i64) -> i64 {
    let mut sidecars = 0i64;
    let mut init_peak = 0i64;
    for container in spec.init_containers.iter().flatten() {
        let own = of(container);
        if init_kind(container) == ContainerKind::Sidecar {
            sidecars = sidecars.saturating_add(own);
            init_peak = init_peak.max(sidecars);
        } else {
            init_peak = init_peak.max(own.saturating_add(sidecars));
        }
    }
    let running = spec.containers.iter().map(of).fold(sidecars, i64::saturating_add);
    running.max(init_peak)
}

/// What a pod requests, overhead included: `spec.resources`, else what its containers need together.
pub fn pod_request(spec: &v1::PodSpec, name: &str) -> i64 {
    let own = pod_level_request(spec, name)
        .unwrap_or_else(|| aggregate(spec, |container| request(container, name).unwrap_or(0)));
    // Where only a limit is given for the pod, a request that no container makes is that limit.
    let own = if own == 0 { pod_level_limit(spec, name).unwrap_or(0) } else { own };
    own.saturating_add(amount(spec.overhead.as_ref(), name).unwrap_or(0))
}

/// What a pod may use, overhead included: `spec.resources`, else what its containers may use together; `None` when
/// a container, of whatever kind, has no limit.
pub fn pod_limit(spec: &v1::PodSpec, name: &str) -> Option<i64> {
    let own = pod_level_limit(spec, name).or_else(|| {
        let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let all = containers.all(|container| limit(container, name).is_some());
        (all && !spec.containers.is_empty()).then(|| aggregate(spec, |container| limit(container, name).unwrap_or(0)))
    })?;
    Some(own.saturating_add(amount(spec.overhead.as_ref(), name).unwrap_or(0)))
}

/// CPU shares of a container: of its request, else of its limit, else of the pod's. A request of 0 is one.
pub(crate) fn cpu_shares(spec: &v1::PodSpec, container: &v1::Container) -> i64 {
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let of_pod = match requests.is_some_and(|requests| requests.contains_key("cpu")) {
        true => None,
        false => pod_level_limit(spec, "cpu"),
    };
    milli_cpu_to_shares(request(container, "cpu").or(of_pod).unwrap_or(0))
}

/// What a pod's limits are together, overhead included: `spec.resources`, else those of the containers that have one
/// (`PodLimits`); 0 where none has.
pub fn sum_of_limits(spec: &v1::PodSpec, name: &str) -> i64 {
    let own =
        pod_level_limit(spec, name).unwrap_or_else(|| aggregate(spec, |container| limit(container, name).unwrap_or(0)));
    if own == 0 { 0 } else { own.saturating_add(amount(spec.overhead.as_ref(), name).unwrap_or(0)) }
}

/// CPU and memory of a container here. Limits that it does not set are the pod's (`spec.resources`).
pub fn of_container(pod: &Pod, container: &v1::Container, node: &NodeFacts) -> Resources {
    let cpu_limit = limit(container, "cpu").or_else(|| pod_level_limit(pod.spec(), "cpu")).unwrap_or(0);
    let cpu_quota = node.cpu_quota_period.map_or(0, |period| milli_cpu_to_quota(cpu_limit, period));
    Resources {
        cpu_shares: cpu_shares(pod.spec(), container),
        cpu_quota,
        cpu_period: node.cpu_quota_period.filter(|_| cpu_quota > 0).unwrap_or(0),
        memory: limit(container, "memory").or_else(|| pod_level_limit(pod.spec(), "memory")).unwrap_or(0),
    }
}

/// `oom_score_adj` of a pod's pause container here.
pub fn sandbox_oom_score_adj(node: &NodeFacts) -> i32 {
    SANDBOX_OOM_SCORE_ADJ.max(node.min_oom_score_adj)
}

/// What to tell the node where the runtime may not set all scores, as in a user namespace or without CAP_SYS_RESOURCE.
pub fn limited_oom_scores(node: &NodeFacts) -> Option<String> {
    let lowest = node.min_oom_score_adj;
    (lowest > SANDBOX_OOM_SCORE_ADJ).then(|| {
        format!(
            "Docker may not set oom_score_adj below {lowest} here: guaranteed and critical pods get {} in place of \
             {GUARANTEED_OOM_SCORE_ADJ}, and their sandboxes {lowest} in place of {SANDBOX_OOM_SCORE_ADJ}; out of \
             memory, the kernel may end them sooner",
            lowest.max(GUARANTEED_OOM_SCORE_ADJ)
        )
    })
}

/// `oom_score_adj` of a container's processes here: what uses more memory than it asked for is killed first.
/// Sidecars score no higher than the app container with the smallest request.
pub fn oom_score_adj(pod: &Pod, container: ContainerOf<'_>, node: &NodeFacts) -> i32 {
    unclamped_oom_score_adj(pod, container, node.memory_capacity).max(node.min_oom_score_adj)
}

fn unclamped_oom_score_adj(pod: &Pod, container: ContainerOf<'_>, capacity: i64) -> i32 {
    if priority::is_node_critical(pod) {
        return GUARANTEED_OOM_SCORE_ADJ;
    }
    match qos(pod.spec()) {
        Qos::Guaranteed => return GUARANTEED_OOM_SCORE_ADJ,
        Qos::BestEffort => return BEST_EFFORT_OOM_SCORE_ADJ,
        Qos::Burstable => {}
    }
    let memory = |spec: &v1::Container| request(spec, "memory").unwrap_or(0);
    let mut asked = memory(container.spec);
    if container.kind == ContainerKind::Sidecar {
        asked = asked.max(pod.spec().containers.iter().map(memory).min().unwrap_or(0));
    }
    asked = asked.saturating_add(share_of_pod_level_memory(pod.spec()));
    let part = i128::from(asked) * 1000 / i128::from(capacity.max(1));
    // At least 3, so that it never outlives a Guaranteed pod; at most 999, so that it outlives BestEffort ones.
    i32::try_from((1000 - part).clamp(i128::from(1000 + GUARANTEED_OOM_SCORE_ADJ), 999)).unwrap_or(999)
}

/// A container's part of the memory that `spec.resources` requests beyond what the containers request themselves.
fn share_of_pod_level_memory(spec: &v1::PodSpec) -> i64 {
    let Some(pod_level) = pod_level_request(spec, "memory") else { return 0 };
    let asked = aggregate(spec, |container| request(container, "memory").unwrap_or(0));
    let count = spec.containers.len() + spec.init_containers.as_ref().map_or(0, Vec::len);
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    (pod_level - asked).max(0) / count.max(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
