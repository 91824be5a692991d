//! What the kubelet adds to a pod that it did not get from the API server.
//!
//! As `pkg/kubelet/config/common.go` (`applyDefaults`, `tryDecodeSinglePod`), but for the UID, which is derived
//! from canonical JSON in place of a dump of Go's memory. `kubernetes.io/config.seen` needs a clock: it is
//! set where the pod is shown, and told to its containers.

use std::sync::Arc;

use k8s_openapi::api::core::v1;
use sha2::{Digest, Sha256};

use super::Origin;
use super::references;
use crate::document::{Node, Value};
use crate::pod::{Pod, PodId, Source};
use crate::validate::FieldError;
use crate::{defaults, hash, validate};

/// Annotation with the pod's source.
pub(super) const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// Annotation with the UID that the pod would have without one of its own.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// The document without its `status`, which only the agent writes.
pub(super) fn without_status(node: &Node) -> Node {
    let mut node = node.clone();
    if let Value::Map(entries) = &mut node.value {
        entries.retain(|entry| entry.key != "status");
    }
    node
}

/// The pod that runs here for the one that was written, with warnings.
pub(super) fn build(
    document: &Node,
    written: v1::Pod,
    origin: &Origin,
) -> Result<(Pod, Vec<FieldError>), Vec<FieldError>> {
    let name = written.metadata.name.clone().unwrap_or_default();
    if name.is_empty() {
        return Err(vec![FieldError::new("metadata.name", "Required value: name is needed for the pod")]);
    }
    let hashes = hash::containers(&written, &origin.source);
    let sandbox_hash = hash::sandbox(&written);

    let mut object = written;
    let metadata = &mut object.metadata;
    let uid = metadata.uid.clone().filter(|uid| !uid.is_empty()).unwrap_or_else(|| derived_uid(document, origin));
    let written_name = name;
    let name = format!("{written_name}-{}", origin.node_name.to_lowercase());
    let namespace = metadata.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".to_owned());
    metadata.uid = Some(uid.clone());
    metadata.name = Some(name.clone());
    metadata.namespace = Some(namespace.clone());
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(CONFIG_HASH.to_owned(), uid.clone());
    annotations.insert(CONFIG_SOURCE.to_owned(), origin.source.as_str().to_owned());
    let spec = object.spec.get_or_insert_default();
    spec.node_name = Some(origin.node_name.clone());
    if origin.source == Source::File {
        tolerate_no_execute(spec);
    }
    defaults::apply(&mut object);

    let mut errors = validate::validate(&object);
    // The name is shown as it is written.
    for error in errors.iter_mut().filter(|error| error.path == "metadata.name") {
        error.message = error.message.replacen(&format!("{name:?}"), &format!("{written_name:?}"), 1);
    }
    errors.extend(references::forbidden(&object, &origin.source));
    if errors.iter().any(|error| !error.warning) {
        return Err(errors);
    }
    let pod = Pod {
        id: PodId { namespace, name, uid },
        source: origin.source.clone(),
        object: Arc::new(object),
        hashes,
        sandbox_hash,
        deletion: None,
        ephemeral: Vec::new(),
    };
    errors.extend(references::waits(&pod));
    Ok((pod, errors))
}

/// 32 hex digits from the pod as written, the node and the place: another content is another pod. Comments, the
/// order of keys, nulls and the format do not count, nor do `apiVersion`, `kind` and `status`.
fn derived_uid(document: &Node, origin: &Origin) -> String {
    let mut content = document.clone();
    if let Value::Map(entries) = &mut content.value {
        entries.retain(|entry| !matches!(entry.key.as_str(), "apiVersion" | "kind" | "status"));
    }
    let mut json = String::new();
    content.canonical_json(&mut json);
    let mut hasher = Sha256::new();
    for part in ["longshore pod 1", origin.node_name.as_str(), origin.place.as_str(), json.as_str()] {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    hash::hex(&hasher.finalize()[..16])
}

/// So that a static pod is not evicted when its node has problems.
fn tolerate_no_execute(spec: &mut v1::PodSpec) {
    let toleration = v1::Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Default::default()
    };
    let tolerations = spec.tolerations.get_or_insert_default();
    let same = |known: &&mut v1::Toleration| {
        known.key.as_deref().unwrap_or("").is_empty()
            && known.effect.as_deref() == Some("NoExecute")
            && known.operator.as_deref() == Some("Exists")
            && known.value.as_deref().unwrap_or("").is_empty()
    };
    match tolerations.iter_mut().find(same) {
        Some(known) => *known = toleration,
        None => tolerations.push(toleration),
    }
}
