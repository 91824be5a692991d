//! What events say of a resize (`pkg/kubelet/events/resize.go`).

use k8s_openapi::api::core::v1;
use serde_json::{Value, json};

/// Message of `ResizeStarted`.
pub fn started(object: &v1::Pod, generation: i64) -> String {
    message("Pod resize started", object, generation, "")
}

/// Message of `ResizeCompleted`.
pub fn completed(object: &v1::Pod, generation: i64) -> String {
    message("Pod resize completed", object, generation, "")
}

/// Message of `ResizeError`.
pub fn failed(object: &v1::Pod, generation: i64, error: &str) -> String {
    message("Pod resize error", object, generation, error)
}

/// Message of `ResizeDeferred`, whose reason is that of the check, and of `ResizeInfeasible`.
pub fn pending(object: &v1::Pod, generation: i64, reason: &str, error: &str) -> String {
    message(&format!("Pod resize {reason}"), object, generation, error)
}

/// The prefix, then what the spec asks for, as Go writes it: fields in the order of the type.
fn message(prefix: &str, object: &v1::Pod, generation: i64, error: &str) -> String {
    let list = |containers: &[v1::Container]| -> String {
        let texts = containers.iter().map(|container| {
            let resources = container.resources.as_ref().map_or_else(|| json!({}), |resources| json!(resources));
            format!("{{\"name\":{},\"resources\":{resources}}}", Value::from(container.name.clone()))
        });
        format!("[{}]", texts.collect::<Vec<_>>().join(","))
    };
    let spec = object.spec.clone().unwrap_or_default();
    let mut fields = Vec::new();
    if let Some(inits) = spec.init_containers.filter(|inits| !inits.is_empty()) {
        fields.push(format!("\"initContainers\":{}", list(&inits)));
    }
    if !spec.containers.is_empty() {
        fields.push(format!("\"containers\":{}", list(&spec.containers)));
    }
    fields.push(format!("\"generation\":{generation}"));
    if !error.is_empty() {
        fields.push(format!("\"error\":{}", Value::from(error)));
    }
    format!("{prefix}: {{{}}}", fields.join(","))
}
