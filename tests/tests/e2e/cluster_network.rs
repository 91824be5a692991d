//! The pods' network of a node: addresses that the cluster gave it, and what a node without any does.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};

use crate::{
    bed::{
        cluster::until,
        node::Node,
        pods::{condition, is_ready, restarts, sleeper},
        ports::free_port,
    },
    network::{fetch, web},
};

fn cidr(node: &Node) -> String {
    let object = node.wait_node("has a podCIDR", |node| node["spec"]["podCIDR"].is_string());
    object["spec"]["podCIDR"].as_str().unwrap().to_owned()
}

/// Whether a pod's address is one of a /24.
fn is_in(pod: &Value, cidr: &str) -> bool {
    let (network, bits) = cidr.split_once('/').unwrap();
    assert_eq!(bits, "24", "{cidr}");
    pod["status"]["podIP"].as_str().unwrap().starts_with(network.strip_suffix('0').unwrap())
}

/// How often the node said so.
fn told(node: &Node, reason: &str) -> u64 {
    node.node_events(reason).iter().map(|event| event["count"].as_u64().unwrap_or(1)).sum()
}

#[test]
fn cluster_network_pods_have_addresses_of_the_nodes_podcidr() {
    let Some(node) = Node::start() else { return };
    let cidr = cidr(&node);
    let port = free_port();
    node.bind(&web("a", json!({"containerPort": 8080, "hostPort": port})));
    node.bind(&sleeper("b"));
    let (a, b) = (node.wait_api_ready("a"), node.wait_api_ready("b"));
    for pod in [&a, &b] {
        assert!(is_in(pod, &cidr), "{} is not in {cidr}", pod["status"]["podIP"]);
        assert_eq!(pod["status"]["podIPs"], json!([{"ip": pod["status"]["podIP"]}]));
    }
    let ip = a["status"]["podIP"].as_str().unwrap();
    let (code, text) = node.sh("b", &format!("wget -q -O - http://{ip}:8080/"));
    assert!(code == 0 && text.contains("hello"), "one pod reaches another: {text}");
    let answer = until("by the node's port", || fetch(("127.0.0.1", port)).filter(|text| !text.is_empty()));
    assert!(answer.contains("hello"), "{answer}");
    let (_, environment) = node.sh("b", "env");
    assert!(environment.contains("KUBERNETES_SERVICE_HOST=10.96.0.1"), "{environment}");
    let config: Value = serde_json::from_slice(&fs::read(&node.cluster.bootstrap).unwrap()).unwrap();
    let server = config["clusters"][0]["cluster"]["server"].as_str().unwrap().strip_prefix("https://").unwrap();
    let (code, text) = node.sh("b", &format!("echo bye | nc -w 10 {}", server.replace(':', " ")));
    assert_eq!(code, 0, "a pod reaches the API server: {text}");
    // Only what leaves the cluster is masqueraded.
    let rules = Command::new("iptables").args(["-w", "10", "-t", "nat", "-S", "POSTROUTING"]).output().unwrap();
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    let ours: Vec<&str> = rules.lines().filter(|rule| rule.contains(&format!("-s {cidr}"))).collect();
    assert!(ours.len() == 1 && ours[0].contains("! -d 10.244.0.0/16"), "{rules}");
    assert_eq!(told(&node, "PodCIDRMissing"), 0);
    for pod in [a, b] {
        node.cluster.delete(&node.one("pods", pod["metadata"]["name"].as_str().unwrap()), Some(0));
        node.wait_api_gone(&pod);
    }
}

#[test]
fn cluster_network_a_pod_reaches_itself_through_its_service() {
    if std::env::var_os("LONGSHORE_TEST_DOCKER_PID").is_none() {
        return crate::bed::skip("it changes the node's network: run in `cargo xtask world -- COMMAND`");
    }
    if !Path::new("/sys/class/net/node0").exists() {
        return crate::bed::skip("/sys/class/net does not show the world's devices");
    }
    let Some(node) = Node::start() else { return };
    cidr(&node);
    node.bind(&web("a", json!({"containerPort": 8080})));
    let pod = node.wait_api_ready("a");
    let ip = pod["status"]["podIP"].as_str().unwrap();
    // As kube-proxy has them.
    for rule in [
        format!("PREROUTING -d 10.96.0.77 -p tcp --dport 80 -j DNAT --to-destination {ip}:8080"),
        format!("POSTROUTING -s {ip} -d {ip} -j MASQUERADE"),
    ] {
        let rule = rule.split(' ');
        let output = Command::new("iptables").args(["-w", "10", "-t", "nat", "-I"]).args(rule).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let (code, text) = node.sh("a", "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 10 10.96.0.77 80");
    assert!(code == 0 && text.contains("hello"), "{text}");
    node.told(|| assert_eq!(told(&node, "HairpinFailed"), 0));
}

/// The controllers, which give nodes their networks, stopped; they go on when this is dropped.
struct Stopped(rustix::process::Pid);

impl Stopped {
    fn controllers(node: &Node) -> Stopped {
        let pid = fs::read_to_string(node.cluster.folder.join("kube-controller-manager.pid")).unwrap();
        let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, rustix::process::Signal::CONT);
    }
}

#[test]
fn cluster_network_without_a_podcidr_pods_are_on_dockers_own() {
    // Its certificate is signed by the controllers, so it joins first.
    let Some(mut node) = Node::start() else { return };
    cidr(&node);
    node.told(|| until("it has a network", || (told(&node, "PodNetworkCreated") == 1).then_some(())));
    node.kill();
    for network in node.docker.networks(&format!("dev.longshore.root={}", node.root_id())) {
        node.docker.remove_network(network["Id"].as_str().unwrap());
    }
    let stopped = Stopped::controllers(&node);
    node.cluster.delete(&node.path(), None);
    node.begin();
    // With the taint that the controllers would take away.
    node.wait_node("Ready", |node| condition(node, "Ready"));
    assert!(node.object()["spec"]["podCIDR"].is_null(), "{}", node.object()["spec"]);
    node.bind(&sleeper("a"));
    let a = node.wait_api_ready("a");
    assert!(a["status"]["podIP"].as_str().unwrap().starts_with("172."), "{}", a["status"]["podIP"]);
    node.told(|| until("the node says so", || (told(&node, "PodCIDRMissing") == 1).then_some(())));
    drop(stopped);
    let cidr = cidr(&node);
    node.told(|| until("it has a network", || (told(&node, "PodNetworkCreated") == 2).then_some(())));
    node.bind(&sleeper("b"));
    assert!(is_in(&node.wait_api_ready("b"), &cidr));
    let again = node.wait_api("a", "is as it was", is_ready);
    assert_eq!((&again["status"]["podIP"], restarts(&again, "app")), (&a["status"]["podIP"], 0));
    assert_eq!(told(&node, "PodCIDRMissing"), 1);
}

#[test]
fn cluster_network_is_not_ready_without_a_cni_configuration() {
    let Some(mut node) = Node::new(&["--network-plugin=cni"], false) else { return };
    let conf = node.folder.join("net.d");
    fs::create_dir(&conf).unwrap();
    let (conf_dir, cache_dir) = (format!("--cni-conf-dir={}", conf.display()), node.folder.join("cache"));
    node.flags.extend([conf_dir, format!("--cni-cache-dir={}", cache_dir.display())]);
    node.begin();
    let ready = |node: &Value| {
        let all = node["status"]["conditions"].as_array().into_iter().flatten();
        all.into_iter().find(|condition| condition["type"] == "Ready").cloned().unwrap_or_default()
    };
    let expected = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:docker: \
                    network plugin is not ready: cni config uninitialized";
    node.wait_node("says why it is not Ready", |node| {
        let told = ready(node);
        told["status"] == "False" && told["message"].as_str().is_some_and(|message| message.contains(expected))
    });
    node.bind(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "host"}, "spec": {
        "hostNetwork": true, "tolerations": [{"operator": "Exists"}],
        "containers": [crate::bed::pods::container("app", "sleep 1000")]}}));
    node.wait_api_ready("host");
}
