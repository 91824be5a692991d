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

/// A pod that uses half a core, of which a busy machine leaves it its share: one that asks for nothing would get nothing.
pub(crate) fn busy(name: &str) -> Value {
    let size = json!({"resources": {"limits": {"cpu": "500m", "memory": "64Mi"}}});
    pod(name, json!([with(container("app", "while :; do :; done"), size)]), json!({}))
}

/// A pod that runs one script, with a restart policy.
pub(crate) fn job(name: &str, policy: &str, script: &str) -> Value {
    pod(name, json!([container("app", script)]), json!({"restartPolicy": policy}))
}

/// A pod whose containers all begin anew when `app` ends with 42, which it does when there is a file `/v/go`. The init container
/// leaves a line in `/v/inits` each time, and it runs beside a sidecar.
pub(crate) fn anew(name: &str) -> Value {
    let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let mounted = |value: Value| with(value, json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    let app = mounted(container("app", "until [ -e /v/go ]; do sleep 0.1; done; rm /v/go; exit 42"));
    let app = with(app, json!({"restartPolicy": "Never", "restartPolicyRules": rules}));
    let other = mounted(container("other", SLEEP));
    let inits = json!([
        mounted(container("setup", "echo again >> /v/inits")),
        with(container("side", SLEEP), json!({"restartPolicy": "Always"})),
    ]);
    let spec = json!({"restartPolicy": "Never", "initContainers": inits, "volumes": [{"name": "v", "emptyDir": {}}]});
    pod(name, json!([app, other]), spec)
}

/// What has become of such a pod once it began anew that often.
pub(crate) fn assert_anew(pod: &Value, before: &Value, times: i64) {
    for container in ["setup", "side", "app", "other"] {
        assert_eq!(restarts(pod, container), times, "{container}: {pod:#}");
        assert_ne!(id(pod, container), id(before, container), "{container}");
    }
    let last = |container: &str| status(pod, container)["lastState"]["terminated"].clone();
    assert_eq!(last("app")["exitCode"], 42);
    assert_eq!(last("other")["reason"], "RestartingAllContainers");
    assert_eq!((phase(pod), condition(pod, "Initialized")), ("Running", true));
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
