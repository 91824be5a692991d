//! A node that runs short: the right pod ends, the others go on, and everybody is told.

use serde_json::{Value, json};

use crate::bed::{
    cluster::until,
    node::Node,
    pods::{SLEEP, condition, container, id, is_ready, phase, pod, sleeper, status, with},
};

/// Bytes that the node has left of its memory, as it says itself.
fn available(node: &Node) -> u64 {
    let path = format!("/api/v1/nodes/{}/proxy/stats/summary", node.name);
    // A node's own certificate may be signed a little after it is Ready.
    let summary: Value =
        until("a summary", || serde_json::from_slice(&node.cluster.try_kubectl(&["get", "--raw", &path]).stdout).ok());
    summary["node"]["memory"]["availableBytes"].as_u64().unwrap()
}

fn is_tainted(node: &Value) -> bool {
    let taints = node["spec"]["taints"].as_array();
    taints.is_some_and(|taints| taints.iter().any(|taint| taint["key"] == "node.kubernetes.io/memory-pressure"))
}

fn requests(app: Value, memory: &str) -> Value {
    with(app, json!({"resources": {"requests": {"memory": memory}}}))
}

#[test]
fn cluster_eviction_ends_the_pod_that_takes_too_much_memory() {
    let Some(mut node) = Node::start() else { return };
    // It waits to be told, and then fills a file in memory.
    let available = available(&node);
    let size = (available / 4).min(3 << 30);
    let script = format!(
        "until [ -e /m/go ]; do sleep 0.1; done; dd if=/dev/zero of=/m/f bs=1048576 count={} 2>/dev/null; {SLEEP}",
        size >> 20
    );
    let greedy = requests(container("app", &script), "16Mi");
    let greedy = with(greedy, json!({"volumeMounts": [{"name": "m", "mountPath": "/m"}]}));
    let volumes = json!({"volumes": [{"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}}]});
    node.bind(&pod("greedy", json!([greedy]), volumes));
    node.bind(&pod("modest", json!([requests(container("app", SLEEP), "64Mi")]), json!({})));
    node.wait_api_ready("greedy");
    let modest = node.wait_api_ready("modest");

    // Other tests take memory, too: what there is now counts.
    let available = available.min(self::available(&node));
    node.stop();
    node.flags.push(format!("--eviction-hard=memory.available<{}", available - size / 2));
    node.flags.push("--eviction-pressure-transition-period=20s".to_owned());
    node.begin();
    node.wait_node_ready();
    assert!(!condition(&node.object(), "MemoryPressure"));
    assert_eq!(node.sh("greedy", "touch /m/go").0, 0);

    let pressed = node.wait_node("short of memory", |node| condition(node, "MemoryPressure"));
    node.wait_node("tainted for it", is_tainted);
    let conditions = pressed["status"]["conditions"].to_string();
    assert!(conditions.contains("KubeletHasInsufficientMemory"), "{conditions}");
    let greedy = node.wait_api("greedy", "evicted", |pod| phase(pod) == "Failed");
    assert_eq!(greedy["status"]["reason"], "Evicted");
    let message = greedy["status"]["message"].as_str().unwrap();
    assert!(message.starts_with("The node was low on resource: memory. Threshold quantity: "), "{message}");
    assert!(message.contains("Container app was using "), "{message}");
    assert!(message.ends_with(", request is 16Mi, has larger consumption of memory. "), "{message}");
    assert!(condition(&greedy, "DisruptionTarget"), "{}", greedy["status"]["conditions"]);
    assert!(status(&greedy, "app")["state"]["terminated"].is_object(), "{}", greedy["status"]);
    let event = node.wait_api_event("greedy", "Evicted", "low on resource: memory");
    assert_eq!(event["type"], "Warning");
    let annotations = &event["metadata"]["annotations"];
    assert_eq!(
        (&annotations["starved_resource"], &annotations["offending_containers"]),
        (&json!("memory"), &json!("app"))
    );
    assert!(annotations["offending_containers_usage"].is_string(), "{annotations}");
    let shown = node.cluster.kubectl(&["describe", "pod", "greedy", "--namespace", &node.name]);
    let reason = shown.lines().find_map(|line| line.strip_prefix("Reason:")).map(str::trim);
    assert_eq!(reason, Some("Evicted"), "{shown}");
    // Nothing of it is kept but the object.
    node.told(|| until("nothing in Docker", || node.in_docker(&greedy).is_empty().then_some(())));

    // As long as it is so, who asks for nothing is not let in, and who asks for something is.
    node.bind(&sleeper("late"));
    let late = node.wait_api("late", "refused", |pod| phase(pod) == "Failed");
    assert_eq!(late["status"]["reason"], "Evicted");
    assert_eq!(late["status"]["message"], "Pod was rejected: The node had condition: [MemoryPressure]. ");

    node.wait_node("enough memory again", |node| !condition(node, "MemoryPressure"));
    node.wait_node("without the taint", |node| !is_tainted(node));
    let now = node.wait_api("modest", "unharmed", is_ready);
    assert_eq!(id(&now, "app"), id(&modest, "app"));
    assert_eq!(node.cluster.get(&node.one("pods", "greedy")).unwrap()["status"]["phase"], "Failed");
    node.cluster.delete(&node.one("pods", "greedy"), None);
    node.wait_api("greedy", "gone", Value::is_null);
}

#[test]
fn cluster_eviction_of_a_pod_with_a_full_empty_dir_is_its_own_doing() {
    let Some(node) = Node::start() else { return };
    let app = with(
        container("app", &format!("dd if=/dev/zero of=/e/f bs=1048576 count=4 2>/dev/null; {SLEEP}")),
        json!({"volumeMounts": [{"name": "e", "mountPath": "/e"}]}),
    );
    let volumes = json!({"volumes": [{"name": "e", "emptyDir": {"sizeLimit": "1Mi"}}]});
    node.bind(&pod("full", json!([app]), volumes));
    let full = node.wait_api("full", "evicted", |pod| phase(pod) == "Failed");
    assert_eq!(full["status"]["reason"], "Evicted");
    assert_eq!(full["status"]["message"], "Usage of EmptyDir volume \"e\" exceeds the limit \"1Mi\". ");
    assert!(!condition(&full, "DisruptionTarget"), "{}", full["status"]["conditions"]);
    assert_eq!(node.wait_api_event("full", "Evicted", "exceeds the limit")["type"], "Warning");
    let volumes = node.root().join("pods").join(crate::bed::pods::uid(&full)).join("volumes");
    node.told(|| until("the disk is given back", || (!volumes.exists()).then_some(())));
}
