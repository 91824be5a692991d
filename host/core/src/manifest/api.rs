//! A pod as the API server has it, as a pod to run.
//!
//! As `pkg/kubelet/config/apiserver.go` and `pkg/util/pod`: identity is the object's own, nothing is derived. Must not
//! judge: what the API server let in is taken as it is.

use std::sync::Arc;

use k8s_openapi::api::core::v1;

use super::pod::CONFIG_SOURCE;
use crate::pod::{Deletion, Pod, PodId, Source};
use crate::{defaults, hash};

/// The pod to run; `None` for an object without UID or name.
///
/// `resourceVersion`, `managedFields` and most of `status` are left out, so that pods are equal unless something has
/// changed that says how to run them: who needs the status asks [`crate::ports::cluster::ApiPods`]. Of the status stays
/// that of a pod that has ended, and the conditions that its readiness gates name. The annotation
/// `kubernetes.io/config.source` is added here, in memory only, as the kubelet does.
pub fn from_api(object: &v1::Pod) -> Option<Pod> {
    let metadata = &object.metadata;
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let id = PodId {
        namespace: filled(&metadata.namespace).unwrap_or_else(|| "default".to_owned()),
        name: filled(&metadata.name)?,
        uid: filled(&metadata.uid)?,
    };
    let deletion = metadata.deletion_timestamp.as_ref().map(|until| {
        let grace_seconds = metadata.deletion_grace_period_seconds.unwrap_or(0).max(0);
        // The API server writes when the grace will be over.
        let grace = jiff::SignedDuration::from_secs(grace_seconds);
        Deletion { requested_at: until.0.checked_sub(grace).unwrap_or(until.0), grace_seconds }
    });
    let mut run = v1::Pod { metadata: metadata.clone(), spec: object.spec.clone(), status: kept_status(object) };
    let hashes = hash::containers(&run, &Source::Api);
    let sandbox_hash = hash::sandbox(&run);
    run.metadata.namespace = Some(id.namespace.clone());
    run.metadata.managed_fields = None;
    run.metadata.resource_version = None;
    let annotations = run.metadata.annotations.get_or_insert_default();
    annotations.insert(CONFIG_SOURCE.to_owned(), Source::Api.as_str().to_owned());
    defaults::apply(&mut run);
    let ephemeral = crate::pod::ephemeral(&run);
    Some(Pod { id, source: Source::Api, object: Arc::new(run), hashes, sandbox_hash, deletion, ephemeral })
}

/// What of a pod's status says how to run it.
fn kept_status(object: &v1::Pod) -> Option<v1::PodStatus> {
    let status = object.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Some(status.clone());
    }
    let gates = object.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let gates: Vec<&str> = gates.map(|gate| gate.condition_type.as_str()).collect();
    let conditions = status.conditions.iter().flatten().filter(|known| gates.contains(&known.type_.as_str()));
    let conditions: Vec<v1::PodCondition> = conditions.cloned().collect();
    (!conditions.is_empty()).then(|| v1::PodStatus { conditions: Some(conditions), ..Default::default() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(change: impl FnOnce(&mut Value)) -> Option<Pod> {
        let mut object = json!({
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u1", "resourceVersion": "7", "generation": 2,
                "labels": {"app": "web"}, "managedFields": [{"manager": "kubectl"}],
            },
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "nginx:1", "command": ["a"]}]},
            "status": {"phase": "Pending"},
        });
        change(&mut object);
        from_api(&serde_json::from_value(object).expect("a pod"))
    }

    #[test]
    fn a_pod_keeps_its_name_and_loses_what_is_not_about_running_it() {
        let pod = read(|_| {}).expect("a pod");
        assert_eq!(pod.id, PodId { namespace: "shop".into(), name: "web".into(), uid: "u1".into() });
        assert_eq!(pod.annotations()["kubernetes.io/config.source"], "api");
        assert_eq!(pod.object.metadata.generation, Some(2));
        assert!(pod.object.status.is_none() && pod.deletion.is_none());
        let later = read(|object| {
            object["metadata"]["resourceVersion"] = "8".into();
            object["metadata"]["managedFields"] = Value::Null;
            object["status"]["phase"] = "Running".into();
        });
        assert_eq!(later, Some(pod));
    }

    #[test]
    fn an_end_and_open_gates_are_part_of_a_pod() {
        let ended = read(|object| object["status"]["phase"] = "Failed".into()).expect("a pod");
        assert!(crate::record::ended_in(ended.object.status.as_ref()).is_some());
        let gated = read(|object| {
            object["spec"]["readinessGates"] = json!([{"conditionType": "x/y"}]);
            object["status"]["conditions"] =
                json!([{"type": "x/y", "status": "True"}, {"type": "Ready", "status": "True"}]);
        })
        .expect("a pod");
        let conditions = gated.object.status.clone().and_then(|status| status.conditions).unwrap_or_default();
        assert_eq!(conditions.iter().map(|known| known.type_.as_str()).collect::<Vec<_>>(), ["x/y"]);
    }

    #[test]
    fn only_another_image_replaces_a_container() {
        let pod = read(|_| {}).expect("a pod");
        let other = |path: &str, value: Value| {
            let changed = read(|object| *object.pointer_mut(path).expect("there") = value).expect("a pod");
            assert_ne!(changed, pod);
            assert_eq!(changed.sandbox_hash, pod.sandbox_hash);
            changed.hashes == pod.hashes
        };
        assert!(other("/metadata/labels", json!({"app": "other"})));
        assert!(other("/spec/containers/0/command", json!(["b"])));
        assert!(!other("/spec/containers/0/image", json!("nginx:2")));
    }

    #[test]
    fn a_deletion_began_before_its_grace_ends() {
        let pod = read(|object| {
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:30Z".into();
            object["metadata"]["deletionGracePeriodSeconds"] = 30.into();
        });
        let deletion = pod.and_then(|pod| pod.deletion).expect("a deletion");
        assert_eq!((deletion.requested_at.to_string().as_str(), deletion.grace_seconds), ("2026-01-01T00:00:00Z", 30));
    }

    #[test]
    fn an_object_without_identity_is_no_pod() {
        assert!(read(|object| object["metadata"]["uid"] = Value::Null).is_none());
        assert!(read(|object| object["metadata"]["name"] = "".into()).is_none());
    }
}
