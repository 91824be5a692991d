//! Why a pod is evicted, in the kubelet's words (`evictionMessage`).

use super::{PodUse, Resource, Starved};
use crate::pod::Pod;
use crate::quantity;

/// The message of a pod that is evicted because something is starved: what was short, by how much, and which of its
/// containers had more of it than they asked for.
pub fn message(starved: &Starved, pod: &Pod, usage: Option<&PodUse>) -> String {
    let resource = starved.resource();
    let written = |amount: i64| match resource {
        Resource::Memory | Resource::EphemeralStorage => binary(amount),
        Resource::Inodes | Resource::Pids => decimal(amount),
    };
    let mut text = format!(
        "The node was low on resource: {}. Threshold quantity: {}, available: {}. ",
        resource.name(),
        written(starved.quantity),
        written(starved.available)
    );
    let Some(usage) = usage else { return text };
    let lists = |request: Option<&std::collections::BTreeMap<String, _>>| {
        let found: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> = request?.get(resource.name());
        found.map(|found| (found.0.clone(), quantity::value(found).unwrap_or(0)))
    };
    let blame = |text: &mut String, what: &str, name: &str, used: i64, request: &str| {
        text.push_str(&format!(
            "{what} {name} was using {}, request is {request}, has larger consumption of {}. ",
            binary(used),
            resource.name()
        ));
    };
    let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let of_pod = pod.spec().resources.as_ref().and_then(|resources| lists(resources.requests.as_ref()));
    if let (Resource::Memory, Some((request, _)), Some(used)) = (resource, of_pod, usage.memory) {
        blame(&mut text, "Pod", &pod.id.name, whole(used), &request);
    }
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
        }
    }
    text
}

/// Bytes as the apimachinery writes a number of them (`BinarySI`): `100Mi`, `1500`, `1536Mi`.
fn binary(amount: i64) -> String {
    written(amount, 1024, &["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])
}

/// Another number (`DecimalSI`): `5k`, `1500`, `2M`.
fn decimal(amount: i64) -> String {
    written(amount, 1000, &["", "k", "M", "G", "T", "P", "E"])
}

/// With the largest unit that leaves a whole number.
fn written(mut amount: i64, step: i64, units: &[&str]) -> String {
    let mut unit = 0;
    while amount != 0 && amount % step == 0 && unit + 1 < units.len() {
        amount /= step;
        unit += 1;
    }
    format!("{amount}{}", units.get(unit).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_apimachinery_writes_them() {
        let cases =
            [(0, "0"), (100 << 20, "100Mi"), (1500, "1500"), (3 << 29, "1536Mi"), (1023, "1023"), (-2048, "-2Ki")];
        for (amount, text) in cases {
            assert_eq!(binary(amount), text);
        }
        for (amount, text) in
            [(5_000, "5k"), (1_500, "1500"), (2_000_000, "2M"), (0, "0"), (i64::MIN, "-9223372036854775808")]
        {
            assert_eq!(decimal(amount), text);
        }
    }
}
