//! What a node is told on its command line and in its files, as the API server has it then.

use std::fs;

use serde_json::{Value, json};

use crate::bed::{
    cluster::until,
    front::server_of,
    node::Node,
    pods::{SLEEP, condition, container, id, is_ready, pod, restarts, sleeper, with},
    ports::free_port,
};

/// The whole log.
fn log(node: &Node) -> String {
    fs::read_to_string(node.folder.join("log")).unwrap_or_default()
}

#[test]
fn cluster_flags_a_node_that_may_not_register_waits_to_be_created() {
    let Some(mut node) = Node::new(&["--register-node=false"], false) else { return };
    node.apply(&with(sleeper("s"), json!({"metadata": {"namespace": node.name}})));
    node.begin();
    let waits = |times: usize| {
        node.told(|| {
            until("it says what it waits for", || {
                let said = log(&node).matches("it is not created, since --register-node=false").count();
                (said >= times).then_some(())
            });
        });
        assert!(node.object().is_null());
    };
    waits(1);
    let unmirrored = json!({"metadata": {"name": format!("s-{}", node.name)}});
    let runs = node.told(|| until("pods of the folder run", || node.running(&unmirrored)));
    let object =
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name, "labels": {"mine": "yes"}}});
    node.cluster.create("/api/v1/nodes", &object);
    let object = node.wait_node_ready();
    let labels = &object["metadata"]["labels"];
    assert_eq!((&labels["mine"], &labels["kubernetes.io/hostname"]), (&json!("yes"), &json!(node.name)));
    assert_eq!(object["status"]["addresses"][0]["address"], node.cluster.address.as_str());
    let mirror = node.wait_api_ready(&format!("s-{}", node.name));
    assert_eq!(id(&mirror, "app"), runs);
    node.bind(&sleeper("a"));
    node.wait_api_ready("a");
    // One that is deleted is not made again.
    node.cluster.delete(&node.path(), None);
    waits(2);
}

#[test]
fn cluster_flags_say_what_the_node_is() {
    let flags = [
        "--register-with-taints=example.com/odd=1:NoSchedule,example.com/even=:PreferNoSchedule",
        "--provider-id=harbour://quay/7",
        "--kubelet-version=v1.35.9",
    ];
    let Some(node) = Node::start_with(&flags, false) else { return };
    let object = node.object();
    let has = |key: &str, value: Value, effect: &str| {
        let taints = object["spec"]["taints"].as_array().unwrap();
        taints.iter().any(|taint| taint["key"] == key && taint["value"] == value && taint["effect"] == effect)
    };
    assert!(has("example.com/odd", json!("1"), "NoSchedule"), "{}", object["spec"]);
    assert!(has("example.com/even", Value::Null, "PreferNoSchedule"), "{}", object["spec"]);
    assert_eq!(object["spec"]["providerID"], "harbour://quay/7");
    assert_eq!(object["status"]["nodeInfo"]["kubeletVersion"], "v1.35.9");
    // The scheduler heeds it: of two pods that want to come here, that one does which tolerates the node.
    let wants = |name: &str| with(sleeper(name), json!({"spec": node.selector()}));
    node.cluster.create(&node.all("pods"), &wants("strict"));
    let tolerations = json!([{"key": "example.com/odd", "operator": "Exists"}]);
    node.cluster.create(&node.all("pods"), &with(wants("lenient"), json!({"spec": {"tolerations": tolerations}})));
    node.wait_api_ready("lenient");
    let strict = node.wait_api("strict", "told", |pod| pod["status"]["conditions"][0]["reason"] == "Unschedulable");
    assert!(strict["spec"]["nodeName"].is_null(), "{}", strict["spec"]);
}

#[test]
fn cluster_flags_an_external_cloud_says_where_the_node_is() {
    let Some(node) = Node::start_with(&["--cloud-provider=external"], false) else { return };
    let object = node.object();
    let waits = "node.cloudprovider.kubernetes.io/uninitialized";
    let tainted = |node: &Value| node["spec"]["taints"].to_string().contains(waits);
    assert!(tainted(&object), "{}", object["spec"]);
    let given = !node.cluster.address.starts_with("127.");
    let provided = &object["metadata"]["annotations"]["alpha.kubernetes.io/provided-node-ip"];
    assert_eq!(provided.as_str(), given.then_some(node.cluster.address.as_str()));
    let first = if given { "InternalIP" } else { "Hostname" };
    assert_eq!(object["status"]["addresses"][0]["type"], first, "{}", object["status"]["addresses"]);
    node.cluster.create(&node.all("pods"), &with(sleeper("a"), json!({"spec": node.selector()})));
    node.wait_api("a", "told", |pod| pod["status"]["conditions"][0]["reason"] == "Unschedulable");
    // What a cloud's controller does.
    let addresses = json!([{"type": "InternalIP", "address": node.cluster.address}, {"type": "ExternalIP", "address": "192.0.2.7"},
        {"type": "Hostname", "address": node.name}]);
    node.cluster.patch(&format!("{}/status", node.path()), &json!({"status": {"addresses": addresses}}));
    node.cluster.patch(&node.path(), &json!({"spec": {"providerID": "harbour://quay/7"}}));
    node.cluster.kubectl(&["taint", "node", &node.name, &format!("{waits}-")]);
    node.wait_api_ready("a");
    let address = node.cluster.address.as_str();
    node.wait_api("a", "told the address that the cloud gave", |pod| pod["status"]["hostIP"] == address);
    // The node's next word, which its own need causes, leaves that as it is.
    node.cluster.kubectl(&["label", "node", &node.name, "--overwrite", "kubernetes.io/os=plan9"]);
    node.wait_node("mended", |node| node["metadata"]["labels"]["kubernetes.io/os"] == "linux");
    let lie = json!([{"type": "Ready", "status": "False", "reason": "Lie"}]);
    node.cluster.patch(&format!("{}/status", node.path()), &json!({"status": {"conditions": lie}}));
    let now = node.wait_node("Ready again", |node| condition(node, "Ready"));
    assert_eq!(now["status"]["addresses"], addresses);
    assert_eq!(now["spec"]["providerID"], "harbour://quay/7");
    assert!(!tainted(&now), "{}", now["spec"]);
}

#[test]
fn cluster_flags_name_several_api_servers_and_the_first_that_answers_is_used() {
    let Some(mut node) = Node::new(&[], false) else { return };
    let mut config: Value = serde_json::from_slice(&fs::read(&node.cluster.bootstrap).unwrap()).unwrap();
    let server = server_of(&config);
    let nobody = || format!("https://127.0.0.1:{}", free_port());
    // The kubeconfig's own address is nobody's either: it is not asked.
    config["clusters"][0]["cluster"]["server"] = json!(nobody());
    let bootstrap = node.folder.join("elsewhere.kubeconfig");
    fs::write(&bootstrap, config.to_string()).unwrap();
    node.flags.retain(|flag| !flag.starts_with("--bootstrap-kubeconfig="));
    node.flags.push(format!("--bootstrap-kubeconfig={}", bootstrap.display()));
    node.flags.push(format!("--api-servers={},https://{server}", nobody()));
    node.begin();
    node.wait_node_ready();
    node.bind(&sleeper("a"));
    let before = node.wait_api_ready("a");
    // Another agent, which has a kubeconfig of its own by now, does the same.
    node.stop();
    node.begin();
    node.bind(&sleeper("b"));
    node.wait_api_ready("b");
    let now = node.wait_api_ready("a");
    assert_eq!((id(&now, "app"), restarts(&now, "app")), (id(&before, "app"), 0));
}

/// Flags as kubeadm leaves them in `kubeadm-flags.env`.
const KUBEADM_FLAGS: &str = "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///var/run/containerd/containerd.sock \
                             --pod-infra-container-image=registry.k8s.io/pause:3.10 \
                             --register-with-taints=example.com/odd=1:PreferNoSchedule\"\n";

#[test]
fn cluster_flags_a_nodes_files_of_kubeadm_are_enough() {
    let Some(mut node) = Node::new(&[], false) else { return };
    let manifests = node.folder.join("manifests");
    fs::create_dir(&manifests).unwrap();
    let client_ca = node.cluster.folder.join("pki/ca.crt");
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"cacheTTL": "0s", "enabled": true},
            "x509": {"clientCAFile": client_ca}},
        "authorization": {"mode": "Webhook", "webhook": {"cacheAuthorizedTTL": "0s", "cacheUnauthorizedTTL": "0s"}},
        "clusterDNS": ["10.96.0.10"],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": "",
        "cpuManagerReconcilePeriod": "0s",
        "crashLoopBackOff": {},
        "evictionPressureTransitionPeriod": "0s",
        "fileCheckFrequency": "0s",
        "healthzBindAddress": "127.0.0.1",
        "httpCheckFrequency": "0s",
        "imageMaximumGCAge": "0s",
        "imageMinimumGCAge": "0s",
        "logging": {"flushFrequency": 0, "options": {"json": {"infoBufferSize": "0"}, "text": {"infoBufferSize": "0"}}, "verbosity": 0},
        "memorySwap": {},
        "nodeStatusReportFrequency": "0s",
        "rotateCertificates": true,
        "serverTLSBootstrap": true,
        "runtimeRequestTimeout": "0s",
        "shutdownGracePeriod": "0s",
        "staticPodPath": manifests,
        "streamingConnectionIdleTimeout": "0s",
        "syncFrequency": "0s",
        "volumeStatsAggPeriod": "0s",
    });
    let file = node.folder.join("config.yaml");
    fs::write(&file, config.to_string()).unwrap();
    let flags = KUBEADM_FLAGS.split_once('"').unwrap().1.trim_end().trim_end_matches('"');
    // What only this test's machine needs stays beside them.
    let here = ["--bootstrap-kubeconfig", "--kubeconfig", "--cert-dir", "--hostname-override", "--port", "--node-ip"];
    let full = ["--eviction-hard", "--image-gc-high-threshold"];
    node.flags.retain(|flag| here.iter().chain(&full).any(|kept| flag.starts_with(&format!("{kept}="))));
    node.flags.push(format!("--config={}", file.display()));
    // That image is a registry's to give.
    let flags = flags.split_whitespace().filter(|flag| !flag.starts_with("--pod-infra-container-image="));
    node.flags.extend(flags.map(str::to_owned));
    let fixed = with(sleeper("s"), json!({"metadata": {"namespace": node.name}}));
    fs::write(manifests.join("s.yaml"), fixed.to_string()).unwrap();
    node.begin();
    let object = node.wait_node_ready();
    assert!(object["spec"]["taints"].to_string().contains("example.com/odd"), "{}", object["spec"]);
    node.wait_api_ready(&format!("s-{}", node.name));
    node.bind(&pod("a", json!([container("app", SLEEP)]), json!({})));
    node.wait_api("a", "Ready", is_ready);
    assert!(node.sh("a", "cat /etc/resolv.conf").1.contains("nameserver 10.96.0.10"));
    node.wait_server();
    assert!(node.cluster.kubectl(&["exec", "-n", &node.name, "a", "--", "echo", "hello"]).contains("hello"));
    let log = log(&node);
    assert!(log.contains("--container-runtime-endpoint"), "what has no effect is named: {log}");
}
