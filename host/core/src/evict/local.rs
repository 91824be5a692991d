//! What a pod may take of the node's disk by its own spec: it ends when it takes more, whatever the node has left.
//!
//! As `localStorageEviction` of `pkg/kubelet/eviction/eviction_manager.go`, in its order and words: volumes, then the whole
//! pod, then each container. It is the pod's own doing, so no `DisruptionTarget` is told.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::PodUse;
use crate::node::NodeFacts;
use crate::pod::{ContainerKind, Pod, init_kind};
use crate::resources::EPHEMERAL_STORAGE;
use crate::{quantity, volume};

/// What must be measured to hold a pod to its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// Volumes with a size limit.
    pub volumes: bool,
    /// All that it takes, writable layers and logs included.
    pub storage: bool,
}

/// What must be measured of a pod; nothing of one without limits, nor where the node does not account disk.
pub fn watched(pod: &Pod, node: &NodeFacts) -> Watched {
    if node.allocatable_ephemeral_storage.is_none() {
        return Watched::default();
    }
    Watched { volumes: !volume::size_limits(pod).is_empty(), storage: pod_limit(pod.spec()).is_some() }
}

/// The message of a pod that takes more than it may; `None` of one that keeps to its limits. `dedicated` is whether writable
/// layers are on a disk of their own: then a container is held to its limit by its logs alone. What was not counted is
/// nothing: what was may be too much already.
pub fn exceeded(pod: &Pod, usage: &PodUse, dedicated: bool) -> Option<String> {
    for (name, limit, text) in volume::size_limits(pod) {
        if usage.volumes.get(&name).is_some_and(|used| used.bytes > limit) {
            return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {text:?}. "));
        }
    }
    let (limit, text) = pod_limit(pod.spec())?;
    let of_containers = usage.containers.values().flat_map(|used| [used.rootfs, used.logs]).flatten();
    let all = of_containers.chain(usage.volumes.values().copied()).chain([usage.files]);
    if all.fold(0u64, |sum, used| sum.saturating_add(used.bytes)) > limit {
        return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {text}. "));
    }
    let sidecars = pod.spec().init_containers.iter().flatten().filter(|init| init_kind(init) == ContainerKind::Sidecar);
    for container in pod.spec().containers.iter().chain(sidecars) {
        let Some((limit, text)) = limit_of(container) else { continue };
        let Some(used) = usage.containers.get(&container.name) else { continue };
        let layer = used.rootfs.filter(|_| !dedicated).map_or(0, |layer| layer.bytes);
        let logs = used.logs.map_or(0, |logs| logs.bytes);
        if layer.saturating_add(logs) > limit {
            let name = &container.name;
            return Some(format!("Container {name} exceeded its local ephemeral storage limit {text:?}. "));
        }
    }
    None
}

/// A container's limit in bytes, and as the API writes it; `None` for none.
fn limit_of(container: &v1::Container) -> Option<(u64, String)> {
    let limit = container.resources.as_ref()?.limits.as_ref()?.get(EPHEMERAL_STORAGE)?;
    let bytes = quantity::value(limit).and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0)?;
    Some((bytes, quantity::canonical(limit).0))
}

/// What all containers may take together (`PodLimits` of `component-helpers/resource`): unlike with memory, those without a
/// limit count for nothing.
fn pod_limit(spec: &v1::PodSpec) -> Option<(u64, String)> {
    let inits = spec.init_containers.iter().flatten();
    let mut texts: Vec<String> = Vec::new();
    let (mut together, mut sidecars, mut peak) = (0u64, 0u64, 0u64);
    for (bytes, text) in spec.containers.iter().filter_map(limit_of) {
        together = together.saturating_add(bytes);
        texts.push(text);
    }
    for init in inits {
        let Some((bytes, text)) = limit_of(init) else { continue };
        texts.push(text);
        if init_kind(init) == ContainerKind::Sidecar {
            sidecars = sidecars.saturating_add(bytes);
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars.saturating_add(bytes));
        }
    }
    let first = texts.first()?;
    let overhead = spec.overhead.as_ref().and_then(|overhead: &BTreeMap<String, Quantity>| {
        quantity::value(overhead.get(EPHEMERAL_STORAGE)?).and_then(|bytes| u64::try_from(bytes).ok())
    });
    let limit = together.saturating_add(sidecars).max(peak).saturating_add(overhead.unwrap_or(0));
    let bytes = i64::try_from(limit).unwrap_or(i64::MAX);
    // A sum is written as the first of its parts is: with binary units, or with decimal ones.
    let binary = first.ends_with('i');
    let written = if binary { quantity::of_bytes(bytes) } else { quantity::of_milli(bytes.saturating_mul(1000)) };
    Some((limit, written.0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::ContainerUse;
    use super::*;
    use crate::ports::files::DiskUsage;
    use crate::testing::{node, pod_from};

    const MIB: u64 = 1 << 20;

    fn bytes(bytes: u64) -> DiskUsage {
        DiskUsage { bytes, inodes: 1 }
    }

    /// A pod whose containers take a layer and a log each, and its volume `v` so much.
    fn used(containers: &[(&str, u64, u64)], volume: u64) -> PodUse {
        let of = |(name, rootfs, logs): &(&str, u64, u64)| {
            let used =
                ContainerUse { rootfs: Some(bytes(*rootfs)), logs: Some(bytes(*logs)), ..ContainerUse::default() };
            ((*name).to_owned(), used)
        };
        let volumes = [("v".to_owned(), bytes(volume))].into();
        PodUse { containers: containers.iter().map(of).collect(), volumes, ..PodUse::default() }
    }

    fn limited(of_a: &str, of_b: &str, size: &str) -> Pod {
        let container = |name: &str, limit: &str| match limit {
            "" => format!("{{name: {name}, image: i}}"),
            limit => format!("{{name: {name}, image: i, resources: {{limits: {{ephemeral-storage: {limit}}}}}}}"),
        };
        let size = if size.is_empty() { String::new() } else { format!("sizeLimit: {size}") };
        pod_from(&format!(
            "{{containers: [{}, {}], volumes: [{{name: v, emptyDir: {{{size}}}}}]}}",
            container("a", of_a),
            container("b", of_b)
        ))
    }

    /// The pod's sum does not show it where a container of its kind has room left.
    #[test]
    fn a_sidecar_keeps_to_its_own_limit() {
        let limit = |of: &str| format!("resources: {{limits: {{ephemeral-storage: {of}}}}}");
        let sidecar = format!("{{name: side, image: i, restartPolicy: Always, {}}}", limit("1Mi"));
        let init = format!("{{name: init, image: i, {}}}", limit("1Mi"));
        let app = format!("{{name: a, image: i, {}}}", limit("9Mi"));
        let pod = pod_from(&format!("{{initContainers: [{sidecar}, {init}], containers: [{app}]}}"));
        let said = "Container side exceeded its local ephemeral storage limit \"1Mi\". ";
        let uses = |name| exceeded(&pod, &used(&[(name, 2 * MIB, 0)], 0), false);
        assert_eq!((uses("side").as_deref(), uses("init"), uses("a")), (Some(said), None, None));
    }

    #[test]
    fn volumes_then_the_pod_then_its_containers() {
        let pod = limited("2Mi", "3Mi", "1Mi");
        let all = |a: (u64, u64), b: (u64, u64), volume: u64| {
            exceeded(&pod, &used(&[("a", a.0, a.1), ("b", b.0, b.1)], volume), false)
        };
        assert_eq!(all((MIB, MIB), (0, 3 * MIB), 0), None, "exactly at the limits");
        let volume = "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ";
        assert_eq!(all((9 * MIB, 0), (0, 0), MIB + 1).as_deref(), Some(volume));
        let whole = "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. ";
        assert_eq!(all((2 * MIB, 0), (2 * MIB, MIB / 2), MIB).as_deref(), Some(whole), "volumes count");
        let written = PodUse { files: bytes(1), ..used(&[("a", 2 * MIB, 0), ("b", 2 * MIB, 0)], MIB) };
        assert_eq!(exceeded(&pod, &written, false).as_deref(), Some(whole), "and the pod's own files");
        let one = "Container a exceeded its local ephemeral storage limit \"2Mi\". ";
        assert_eq!(all((MIB, MIB + 1), (0, 0), 0).as_deref(), Some(one));
    }

    #[test]
    fn layers_on_a_disk_of_their_own_are_not_the_containers() {
        let pod = limited("2Mi", "9Mi", "");
        let usage = used(&[("a", 3 * MIB, MIB)], 0);
        assert!(exceeded(&pod, &usage, false).is_some());
        assert_eq!(exceeded(&pod, &usage, true), None);
    }

    #[test]
    fn what_has_no_limit_is_not_watched() {
        let watches = |a: &str, size: &str| watched(&limited(a, "", size), &node());
        assert_eq!(watches("", ""), Watched::default());
        assert_eq!(watches("", "1Mi"), Watched { volumes: true, storage: false });
        assert_eq!(watches("1Mi", ""), Watched { volumes: false, storage: true });
        assert_eq!(watches("0", "0"), Watched::default());
        let careless = NodeFacts { allocatable_ephemeral_storage: None, ..node() };
        assert_eq!(watched(&limited("1Mi", "", "1Mi"), &careless), Watched::default());
        let usage = used(&[("a", u64::MAX, u64::MAX), ("b", u64::MAX, 1)], u64::MAX);
        assert_eq!(exceeded(&limited("", "", ""), &usage, false), None);
    }

    #[test]
    fn a_sum_is_written_as_its_first_part_is() {
        let text = |spec: &str| pod_limit(pod_from(spec).spec()).unwrap().1;
        let of = |a: &str, b: &str| {
            text(&format!(
                "{{containers: [{{name: a, resources: {{limits: {{ephemeral-storage: {a}}}}}}}, {{name: b, resources: \
                 {{limits: {{ephemeral-storage: {b}}}}}}}]}}"
            ))
        };
        assert_eq!(of("1Gi", "1Gi"), "2Gi");
        assert_eq!(of("1536Mi", "512Mi"), "2Gi");
        assert_eq!(of("1G", "500M"), "1500M");
        // An init container counts by what it needs beyond the others, a sidecar beside them.
        let init = "{initContainers: [{name: i, resources: {limits: {ephemeral-storage: 3Gi}}},
            {name: s, restartPolicy: Always, resources: {limits: {ephemeral-storage: 1Gi}}}],
            containers: [{name: a, resources: {limits: {ephemeral-storage: 1Gi}}}]}";
        assert_eq!(text(init), "3Gi");
        assert_eq!(text(&init.replace("3Gi", "512Mi")), "2Gi");
    }
}
