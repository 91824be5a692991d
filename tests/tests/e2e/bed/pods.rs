//! Pods to write, and questions to ask of what the agent shows.

use serde_json::{Value, json};

use super::docker::image;

/// Runs until it is told to end, and ends at once then.
pub(crate) const SLEEP: &str = "trap 'exit 0' TERM; sleep 1000000 & wait";

/// A container that runs a shell script.
pub(crate) fn container(name: &str, script: &str) -> Value {
    json!({"name": name, "image": image(), "imagePullPolicy": "Never", "command": ["sh", "-c", script]})
}

/// A pod of these containers, with the fields of `spec` beside them.
pub(crate) fn pod(name: &str, containers: Value, spec: Value) -> Value {
    let mut whole = json!({"terminationGracePeriodSeconds": 2, "containers": containers});
    merge(&mut whole, spec);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": whole})
}

/// A pod that sleeps.
pub(crate) fn sleeper(name: &str) -> Value {
    pod(name, json!([container("app", SLEEP)]), json!({}))
}

/// A pod that runs one script, with a restart policy.
pub(crate) fn job(name: &str, policy: &str, script: &str) -> Value {
    pod(name, json!([container("app", script)]), json!({"restartPolicy": policy}))
}

/// Puts the fields of `more` into `value`, in place of those that are there; objects are merged.
pub(crate) fn merge(value: &mut Value, more: Value) {
    match (value, more) {
        (Value::Object(value), Value::Object(more)) => {
            for (key, more) in more {
                merge(value.entry(key).or_insert(Value::Null), more);
            }
        }
        (value, more) => *value = more,
    }
}

/// `value` with the fields of `more`.
pub(crate) fn with(mut value: Value, more: Value) -> Value {
    merge(&mut value, more);
    value
}

/// The status of a container, app or init.
pub(crate) fn status<'a>(pod: &'a Value, container: &str) -> &'a Value {
    let lists = ["containerStatuses", "initContainerStatuses"];
    let mut all = lists.iter().flat_map(|list| pod["status"][list].as_array().into_iter().flatten());
    all.find(|status| status["name"] == container).unwrap_or(&Value::Null)
}

/// Whether a condition is `True`.
pub(crate) fn condition(pod: &Value, kind: &str) -> bool {
    let all = pod["status"]["conditions"].as_array().into_iter().flatten();
    all.into_iter().any(|condition| condition["type"] == kind && condition["status"] == "True")
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready") && pod["metadata"]["deletionTimestamp"].is_null()
}

pub(crate) fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

pub(crate) fn uid(pod: &Value) -> &str {
    pod["metadata"]["uid"].as_str().unwrap_or_default()
}

pub(crate) fn restarts(pod: &Value, container: &str) -> i64 {
    status(pod, container)["restartCount"].as_i64().unwrap_or(-1)
}

/// The reason why a container waits.
pub(crate) fn waiting<'a>(pod: &'a Value, container: &str) -> &'a str {
    status(pod, container)["state"]["waiting"]["reason"].as_str().unwrap_or_default()
}

/// The ID of a container in Docker.
pub(crate) fn id(pod: &Value, container: &str) -> String {
    let id = status(pod, container)["containerID"].as_str().unwrap_or_default();
    id.strip_prefix("docker://").unwrap_or_default().to_owned()
}
