//! Mirror pods: the API server's image of a pod that another source wants (`pkg/kubelet/pod/mirror_client.go`).

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::pod::{CONFIG_SEEN, Pod};
use crate::volume;

/// On a mirror: the hash of the pod that it is the image of.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
/// On the pod that another source wants: its hash.
const HASH: &str = "kubernetes.io/config.hash";

/// Whether a pod of the API server is a mirror.
pub fn is_mirror(pod: &v1::Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|found| found.contains_key(MIRROR))
}

/// Why a pod of another source than the API server can have no mirror, for the node's event: it refers to an object, which
/// the API server's NodeRestriction would refuse. `None` when it can.
pub fn why_not(pod: &Pod) -> Option<String> {
    let references = volume::named(pod);
    let first = references.first().map(|reference| format!("{} {:?}", reference.kind.as_str(), reference.name));
    let first = first.or_else(|| volume::pull_secrets(pod).first().map(|name| format!("secret {name:?}")));
    let claim = || pod.spec().volumes.iter().flatten().find_map(|of| volume::claim_of(pod, of));
    let first = first.or_else(|| claim().map(|name| format!("persistentvolumeclaim {name:?}")));
    Some(format!(
        "pod {} has no mirror in the API server, which refuses one that refers to {}, as the pod in its manifest does",
        pod.id, first?
    ))
}

/// The mirror of a pod that was first seen at that time. `node_uid` is the Node's, which owns it.
pub fn of(pod: &Pod, seen: Timestamp, node: &str, node_uid: &str) -> v1::Pod {
    let mut annotations = pod.annotations().clone();
    let hash = annotations.get(HASH).cloned().unwrap_or_else(|| pod.id.uid.clone());
    annotations.insert(MIRROR.to_owned(), hash);
    annotations.insert(CONFIG_SEEN.to_owned(), seen.to_string());
    v1::Pod {
        metadata: ObjectMeta {
            name: Some(pod.id.name.clone()),
            namespace: Some(pod.id.namespace.clone()),
            labels: pod.object.metadata.labels.clone(),
            annotations: Some(annotations),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: node.to_owned(),
                uid: node_uid.to_owned(),
                controller: Some(true),
                ..Default::default()
            }]),
            ..Default::default()
        },
        spec: Some(pod.spec().clone()),
        status: None,
    }
}

/// Whether a mirror is the pod's as it is now.
pub fn fits(mirror: &v1::Pod, pod: &Pod) -> bool {
    let hash = pod.annotations().get(HASH).unwrap_or(&pod.id.uid);
    let shown = mirror.metadata.annotations.as_ref().and_then(|found| found.get(MIRROR));
    shown == Some(hash) && mirror.metadata.deletion_timestamp.is_none()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::pod::{PodId, Source};

    fn pod(spec: serde_json::Value) -> Pod {
        let object = json!({"metadata": {"name": "a", "namespace": "default", "uid": "1", "annotations": {HASH: "h"}},
            "spec": spec});
        Pod {
            id: PodId { namespace: "default".to_owned(), name: "a".to_owned(), uid: "1".to_owned() },
            source: Source::File,
            object: Arc::new(serde_json::from_value(object).unwrap()),
            hashes: BTreeMap::from([("c".to_owned(), "x".to_owned())]),
            sandbox_hash: String::new(),
            deletion: None,
            ephemeral: Vec::new(),
        }
    }

    #[test]
    fn a_mirror_fits_until_the_pod_changes_or_it_ends() {
        let pod = pod(json!({"containers": [{"name": "c"}]}));
        assert_eq!(why_not(&pod), None);
        let seen = "2026-11-27T06:00:00.5Z".parse().unwrap();
        let mut mirror = of(&pod, seen, "n1", "u");
        assert!(is_mirror(&mirror) && fits(&mirror, &pod));
        assert_eq!(mirror.metadata.annotations.as_ref().unwrap()[CONFIG_SEEN], "2026-11-27T06:00:00.5Z");
        mirror.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        assert!(!fits(&mirror, &pod));
        let mut other = of(&pod, seen, "n1", "u");
        other.metadata.annotations.as_mut().unwrap().insert(MIRROR.to_owned(), "other".to_owned());
        assert!(!fits(&other, &pod));
    }

    #[test]
    fn what_refers_to_the_folders_objects_has_none() {
        let pod = pod(json!({"containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "s"}}]}]}));
        assert!(why_not(&pod).unwrap().contains("secret \"s\""));
    }
}
