//! Why a pod is evicted, in the kubelet's words (`evictionMessage`).

use std::collections::BTreeMap;

use super::{Amount, PodUse, Resource, Starved};
use crate::pod::Pod;
use crate::quantity;

/// The message of a pod that is evicted because something is starved: what was short, by how much, and which of its
/// containers had more of it than they asked for. With it the event's annotations, which say the same to programs:
/// autoscalers give such a container more memory. None where nothing is known of the pod's use.
pub fn message(starved: &Starved, pod: &Pod, usage: Option<&PodUse>) -> (String, BTreeMap<String, String>) {
    let resource = starved.resource();
    // As it was written; a part of the capacity is in binary units whatever it is of.
    let threshold = match starved.threshold.amount {
        Amount::Percent(_) => quantity::binary_si(starved.quantity),
        written => written.to_string(),
    };
    let available = match resource {
        Resource::Memory | Resource::EphemeralStorage => quantity::binary_si(starved.available),
        Resource::Inodes | Resource::Pids => quantity::decimal_si(starved.available),
    };
    let mut text = format!(
        "The node was low on resource: {}. Threshold quantity: {threshold}, available: {available}. ",
        resource.name()
    );
    let Some(usage) = usage else { return (text, BTreeMap::new()) };
    let lists = |request: Option<&BTreeMap<String, _>>| {
        let found: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> = request?.get(resource.name());
        found.map(|found| (found.0.clone(), quantity::value(found).unwrap_or(0)))
    };
    let blame = |text: &mut String, what: &str, name: &str, used: i64, request: &str| {
        text.push_str(&format!(
            "{what} {name} was using {}, request is {request}, has larger consumption of {}. ",
            quantity::binary_si(used),
            resource.name()
        ));
    };
    let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let of_pod = pod.spec().resources.as_ref().and_then(|resources| lists(resources.requests.as_ref()));
    let mut annotations = BTreeMap::new();
    if let (Resource::Memory, Some((request, _)), Some(used)) = (resource, of_pod, usage.memory) {
        blame(&mut text, "Pod", &pod.id.name, whole(used), &request);
        annotations.insert("offending_pod".to_owned(), pod.id.name.clone());
        annotations.insert("offending_pod_usage".to_owned(), quantity::binary_si(whole(used)));
    }
    let mut offending: Vec<(&str, String)> = Vec::new();
    for container in pod.containers() {
        let name = container.spec.name.as_str();
        let Some(of) = usage.containers.get(name) else { continue };
        let used = match resource {
            Resource::Memory => of.memory,
            Resource::EphemeralStorage => {
                of.rootfs.zip(of.logs).map(|(rootfs, logs)| rootfs.bytes.saturating_add(logs.bytes))
            }
            Resource::Inodes | Resource::Pids => None,
        };
        let requests = container.spec.resources.as_ref().and_then(|resources| lists(resources.requests.as_ref()));
        let (request, asked) = requests.unwrap_or_else(|| ("0".to_owned(), 0));
        if let Some(used) = used.map(whole).filter(|used| *used > asked) {
            blame(&mut text, "Container", name, used, &request);
            offending.push((name, quantity::binary_si(used)));
        }
    }
    let (names, used): (Vec<&str>, Vec<String>) = offending.into_iter().unzip();
    let always = [
        ("starved_resource", resource.name().to_owned()),
        ("offending_containers", names.join(",")),
        ("offending_containers_usage", used.join(",")),
    ];
    annotations.extend(always.map(|(name, value)| (name.to_owned(), value)));
    (text, annotations)
}
