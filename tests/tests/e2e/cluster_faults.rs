//! The API server gone, back, and restarted; and the agent killed under its pods.

use std::{fs, thread};

use serde_json::{Value, json};

use crate::bed::{
    cluster::until,
    node::{MOMENT, Node},
    pods::{SLEEP, condition, container, id, is_ready, pod, restarts, sleeper, with},
};

#[test]
fn cluster_faults_pods_go_on_without_the_api_server() {
    let Some(mut node) = Node::start_gated() else { return };
    for name in ["a", "b", "c"] {
        node.bind(&sleeper(name));
    }
    let [a, b, c] = ["a", "b", "c"].map(|name| node.wait_api_ready(name));
    node.gate.as_ref().unwrap().shut();
    // What dies is restarted.
    node.docker.kill(&id(&a, "app"), "KILL");
    let runs = |pod: &Value| {
        let all = node.in_docker(pod).into_iter();
        all.filter(|one| one["Labels"]["io.kubernetes.container.name"] == "app" && one["State"] == "running").count()
    };
    node.told(|| {
        until("a has another container", || {
            let ids: Vec<Value> = node.in_docker(&a).iter().map(|one| one["Id"].clone()).collect();
            (runs(&a) == 1 && !(ids.len() == 2 && ids.contains(&json!(id(&a, "app"))))).then_some(())
        })
    });
    // One is deleted meanwhile, which the node cannot know yet.
    node.cluster.delete(&node.one("pods", "b"), None);
    thread::sleep(MOMENT);
    assert_eq!(runs(&b), 1);
    node.gate.as_ref().unwrap().open();
    node.wait_api_gone(&b);
    node.wait_api("a", "told as restarted", |pod| is_ready(pod) && restarts(pod, "app") == 1);
    assert_eq!(id(&node.wait_api_ready("c"), "app"), id(&c, "app"));
    node.wait_node_ready();

    // An agent that is started without an API server keeps what there is.
    let before = ["a", "c"].map(|name| id(&node.wait_api_ready(name), "app"));
    node.gate.as_ref().unwrap().shut();
    node.kill();
    node.begin();
    thread::sleep(MOMENT);
    node.gate.as_ref().unwrap().open();
    node.wait_node_ready();
    thread::sleep(MOMENT);
    assert_eq!(["a", "c"].map(|name| id(&node.wait_api_ready(name), "app")), before);
}

#[test]
fn cluster_faults_api_server_is_restarted_with_another_certificate() {
    let Some(node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    let before = node.wait_api_ready("a");
    let file = node.cluster.folder.join("kube-apiserver.pid");
    let pid = || fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<i32>().ok());
    let old = pid().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(old).unwrap(), rustix::process::Signal::KILL).unwrap();
    until("another API server", || pid().filter(|now| *now != old));
    node.cluster.get("/readyz");
    node.bind(&sleeper("b"));
    node.wait_api_ready("b");
    let now = node.wait_api_ready("a");
    assert_eq!((id(&now, "app"), restarts(&now, "app")), (id(&before, "app"), 0));
    assert!(condition(&node.wait_node_ready(), "Ready"));
}

#[test]
fn cluster_faults_agent_killed_restarts_nothing() {
    let Some(mut node) = Node::start() else { return };
    let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
    let probed = with(container("app", SLEEP), json!({"readinessProbe": probe}));
    for name in ["a", "b", "c", "d"] {
        node.bind(&pod(name, json!([probed]), json!({})));
    }
    let names = ["a", "b", "c", "d"];
    let before = names.map(|name| node.wait_api_ready(name));
    for _ in 0..2 {
        node.kill();
        node.begin();
        node.wait_node_ready();
    }
    thread::sleep(MOMENT);
    for (name, before) in names.into_iter().zip(before) {
        let now = node.wait_api_ready(name);
        assert_eq!((id(&now, "app"), restarts(&now, "app")), (id(&before, "app"), 0), "{name}");
        let since = |pod: &Value| {
            let all = pod["status"]["conditions"].as_array().unwrap().iter();
            all.filter(|one| one["type"] == "Ready").map(|one| one["lastTransitionTime"].clone()).next()
        };
        assert_eq!(since(&now), since(&before), "{name} was not Ready meanwhile");
    }
}
