//! CPU and memory in the statuses of containers and of the pod as a whole, and the conditions of a resize.
//!
//! As `convertContainerStatusResources` of `pkg/kubelet/kubelet_pods.go` and `toKubeContainerResources` of
//! `pkg/kubelet/kuberuntime/kuberuntime_container_linux.go`.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::StatusInput;
use crate::container::Resources;
use crate::observed::Container;
use crate::pod::ContainerOf;
use crate::record::ContainerRecord;
use crate::{quantity, resize, resources};

/// The least CPU limit, in thousandths, that has an effect of its own (`MinMilliCPULimit`).
const LEAST_CPU_LIMIT: i64 = 10;
/// As much CPU, in thousandths, is the least weight (`MinShares`).
const LEAST_CPU_REQUEST: i64 = 2;

type List = BTreeMap<String, Quantity>;

/// Says what the container was given and what it has; nothing of one that was never made.
pub(super) fn fill(
    container: ContainerOf<'_>,
    seen: Option<&Container>,
    known: &ContainerRecord,
    status: &mut v1::ContainerStatus,
) {
    if seen.is_none() && known.id.is_none() {
        return;
    }
    let mut given = container.spec.resources.clone().unwrap_or_default();
    for list in [&mut given.requests, &mut given.limits].into_iter().flatten() {
        list.values_mut().for_each(|quantity| *quantity = quantity::canonical(quantity));
    }
    status.allocated_resources = given.requests.clone().filter(|requests| !requests.is_empty());
    if let Some(seen) = seen.filter(|seen| seen.is_running()) {
        overlay(&mut given, seen.resources.as_ref(), known);
    }
    status.resources = Some(given);
}

/// Says what the pod as a whole, whose phase is told already, was given and what it has
/// (`convertToAPIPodLevelResourcesStatus`). While it runs that is what its cgroup has, of CPU and memory; before and after it,
/// what its containers have together of whatever they name (`getEffectiveAllocatedResources`).
pub(super) fn fill_pod(input: &StatusInput<'_>, status: &mut v1::PodStatus) {
    let spec = input.pod.spec();
    let names = names(spec);
    status.allocated_resources = list(names.iter().copied(), |name| Some(resources::pod_request(spec, name)));
    let (requests, limits) = if status.phase.as_deref() == Some("Running") {
        let has = v1::PodSpec { resources: resize::pod_level(input.pod, input.record).cloned(), ..spec.clone() };
        let shown: BTreeSet<&str> = named(has.resources.as_ref()).chain(["cpu", "memory"]).collect();
        let requests = list(shown.iter().copied(), |name| Some(resources::pod_request(&has, name)));
        (requests, list(shown.iter().copied(), |name| resources::pod_limit(&has, name)))
    } else {
        let limits = list(names.iter().copied(), |name| Some(resources::sum_of_limits(spec, name)));
        (status.allocated_resources.clone(), limits)
    };
    status.resources =
        (requests.is_some() || limits.is_some()).then_some(v1::ResourceRequirements { requests, limits, claims: None });
}

/// Those amounts that there are; `None` where there is none.
fn list<'a>(names: impl Iterator<Item = &'a str>, amount: impl Fn(&str) -> Option<i64>) -> Option<List> {
    let amounts = names.filter_map(|name| Some((name, amount(name).filter(|amount| *amount > 0)?)));
    let list: List = amounts.map(|(name, amount)| (name.to_owned(), written(name, amount))).collect();
    (!list.is_empty()).then_some(list)
}

/// An amount of that resource, in the API server's notation.
fn written(name: &str, amount: i64) -> Quantity {
    match name {
        "cpu" => quantity::of_milli(amount),
        "memory" | resources::EPHEMERAL_STORAGE => quantity::of_bytes(amount),
        _ if name.starts_with("hugepages-") => quantity::of_bytes(amount),
        _ => Quantity(quantity::decimal_si(amount)),
    }
}

/// The resources that a pod, its containers or its overhead name.
fn names(spec: &v1::PodSpec) -> BTreeSet<&str> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let given = containers.map(|container| container.resources.as_ref()).chain([spec.resources.as_ref()]);
    let overhead = spec.overhead.iter().flat_map(BTreeMap::keys).map(String::as_str);
    given.flat_map(named).chain(overhead).collect()
}

/// The resources that requests or limits name.
fn named(of: Option<&v1::ResourceRequirements>) -> impl Iterator<Item = &str> {
    let lists = of.into_iter().flat_map(|of| [&of.requests, &of.limits]);
    lists.flatten().flat_map(BTreeMap::keys).map(String::as_str)
}

/// Puts what the runtime has in place of what was given.
fn overlay(given: &mut v1::ResourceRequirements, has: Option<&Resources>, known: &ContainerRecord) {
    let has = has.copied().unwrap_or_default();
    if let Some(limits) = &mut given.limits {
        let cpu = if has.cpu_period > 0 { has.cpu_quota.max(0).saturating_mul(1000) / has.cpu_period } else { 0 };
        cpu_of(limits, cpu, LEAST_CPU_LIMIT);
        memory_of(limits, has.memory);
    }
    if let Some(requests) = &mut given.requests {
        // Rounded up, as the kubelet does: shares are coarser than thousandths.
        let cpu = if has.cpu_shares >= 2 { (has.cpu_shares.saturating_mul(1000) + 1023) / 1024 } else { 0 };
        cpu_of(requests, cpu, LEAST_CPU_REQUEST);
        // The runtime knows of no memory request.
        memory_of(requests, known.actuated.map_or(0, |actuated| actuated.memory_request));
    }
}

/// Below the least amount the given one stays, for both have the same effect.
fn cpu_of(list: &mut List, milli: i64, least: i64) {
    let given = list.get("cpu").and_then(quantity::milli).unwrap_or(0);
    if milli > 0 && milli != given && (milli > least || given > least) {
        list.insert("cpu".to_owned(), quantity::of_milli(milli));
    }
}

fn memory_of(list: &mut List, bytes: i64) {
    if bytes > 0 && list.get("memory").and_then(quantity::value) != Some(bytes) {
        list.insert("memory".to_owned(), quantity::of_bytes(bytes));
    }
}

/// `PodResizePending` and `PodResizeInProgress`, which are there only while they are true.
pub(super) fn conditions(input: &StatusInput<'_>) -> Vec<v1::PodCondition> {
    let resize = &input.record.resize;
    let condition = |name: &str, reason: Option<&str>, message: Option<&str>, generation: i64, since| {
        let text = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
        v1::PodCondition {
            type_: name.to_owned(),
            status: "True".to_owned(),
            reason: text(reason),
            message: text(message),
            observed_generation: (generation != 0).then_some(generation),
            last_probe_time: Some(Time(since)),
            last_transition_time: Some(Time(since)),
        }
    };
    let pending = resize.pending.as_ref().map(|pending| {
        let (reason, message) = (Some(pending.reason.as_str()), Some(pending.message.as_str()));
        condition("PodResizePending", reason, message, pending.generation, pending.since)
    });
    let progress = resize.progress.as_ref().map(|progress| {
        let reason = progress.error.as_ref().map(|_| "Error");
        condition("PodResizeInProgress", reason, progress.error.as_deref(), progress.generation, progress.since)
    });
    pending.into_iter().chain(progress).collect()
}
