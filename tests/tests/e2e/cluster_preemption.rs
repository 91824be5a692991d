//! Critical pods that are bound to a node without room for them.

use serde_json::{Value, json};

use crate::bed::{
    cluster::until,
    node::Node,
    pods::{SLEEP, container, is_ready, phase, pod, with},
};

fn asking(name: &str, cpu: i64, spec: Value) -> Value {
    let resources = json!({"resources": {"requests": {"cpu": format!("{cpu}m")}}});
    pod(name, json!([with(container("app", SLEEP), resources)]), spec)
}

#[test]
fn cluster_preemption_ends_what_is_in_a_critical_pods_way() {
    let Some(node) = Node::start() else { return };
    let cpu = node.object()["status"]["allocatable"]["cpu"].as_str().unwrap().to_owned();
    let all: i64 = cpu.strip_suffix('m').map_or_else(|| cpu.parse::<i64>().unwrap() * 1000, |cpu| cpu.parse().unwrap());
    node.bind(&asking("small", 100, json!({})));
    node.bind(&asking("large", all - 300, json!({})));
    node.wait_api_ready("small");
    let large = node.wait_api_ready("large");
    node.bind(&asking("refused", 500, json!({})));
    let refused = node.wait_api("refused", "rejected", |pod| phase(pod) == "Failed");
    assert_eq!(refused["status"]["reason"], "OutOfcpu");
    node.bind(&asking("critical", 500, json!({"priorityClassName": "system-cluster-critical"})));
    let ended = node.wait_api("large", "preempted", |pod| phase(pod) == "Failed");
    assert_eq!(ended["status"]["reason"], "Preempting");
    assert_eq!(ended["status"]["message"], "Preempted in order to admit critical pod");
    let conditions = ended["status"]["conditions"].as_array().unwrap();
    let told = conditions.iter().find(|condition| condition["type"] == "DisruptionTarget").expect("it is told");
    assert_eq!((&told["status"], &told["reason"]), (&json!("True"), &json!("TerminationByKubelet")));
    node.wait_api_ready("critical");
    let event = node.wait_api_event("large", "Preempting", "Preempted in order to admit critical pod");
    assert_eq!(event["type"], "Warning");
    until("nothing of it runs", || node.in_docker(&large).iter().all(|one| one["State"] != "running").then_some(()));
    assert!(is_ready(&node.wait_api_ready("small")));
    // One that is too large whoever ends is refused in the kubelet's words.
    let more = json!({"priorityClassName": "system-cluster-critical"});
    node.bind(&asking("vast", all * 10, more));
    let vast = node.wait_api("vast", "rejected", |pod| phase(pod) == "Failed");
    assert_eq!(vast["status"]["reason"], "UnexpectedAdmissionError");
    assert!(vast["status"]["message"].as_str().unwrap().contains("no set of running pods found to reclaim resources"));
    assert!(is_ready(&node.wait_api_ready("small")), "nobody ends in vain");
}
