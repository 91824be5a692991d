//! The node itself: how it joins, what it says of itself, and that it goes on saying it.

use std::fs;

use serde_json::{Value, json};

use crate::bed::{
    cluster::{Cluster, until},
    node::Node,
    pods::{condition, phase, sleeper, with},
};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

fn reason<'a>(node: &'a Value, kind: &str) -> &'a str {
    let all = node["status"]["conditions"].as_array().into_iter().flatten();
    let found = all.into_iter().find(|condition| condition["type"] == kind);
    found.and_then(|condition| condition["reason"].as_str()).unwrap_or_default()
}

/// A quantity of bytes as the API writes those of a node.
fn bytes(quantity: &Value) -> u64 {
    let text = quantity.as_str().unwrap_or_default();
    let digits = text.trim_end_matches(|sign: char| sign.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => 1,
    };
    digits.parse::<u64>().unwrap_or_default() * unit
}

/// The requests for certificates of a node, by signer.
fn requests(cluster: &Cluster, node: &str) -> Vec<Value> {
    let user = format!("system:node:{node}");
    let all = cluster.list(REQUESTS).into_iter();
    all.filter(|request| {
        let by_token = request["spec"]["username"].as_str().is_some_and(|name| name.starts_with("system:bootstrap:"));
        request["spec"]["username"] == user.as_str() || by_token
    })
    .collect()
}

#[test]
fn cluster_node_says_what_it_is() {
    let Some(node) = Node::start() else { return };
    let object = node.object();
    let meta = &object["metadata"];
    for (label, value) in [("kubernetes.io/hostname", node.name.as_str()), ("kubernetes.io/os", "linux")] {
        assert_eq!(meta["labels"][label], value, "{label}");
    }
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    assert_eq!(meta["labels"]["kubernetes.io/arch"], arch);
    for (kind, wanted) in [
        ("Ready", "KubeletReady"),
        ("MemoryPressure", "KubeletHasSufficientMemory"),
        ("DiskPressure", "KubeletHasNoDiskPressure"),
        ("PIDPressure", "KubeletHasSufficientPID"),
    ] {
        assert_eq!(reason(&object, kind), wanted, "{kind}");
        assert_eq!(condition(&object, kind), kind == "Ready", "{kind}");
    }
    let status = &object["status"];
    let has = |kind: &str, address: &str| {
        status["addresses"].as_array().unwrap().iter().any(|one| one["type"] == kind && one["address"] == address)
    };
    assert!(has("InternalIP", &node.cluster.address) && has("Hostname", &node.name), "{}", status["addresses"]);
    let cores = std::thread::available_parallelism().unwrap().get().to_string();
    assert_eq!(status["capacity"]["cpu"], cores.as_str());
    assert_eq!(status["capacity"]["pods"], "110");
    let total = fs::read_to_string("/proc/meminfo").unwrap();
    let total: u64 = total.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_eq!(bytes(&status["capacity"]["memory"]), total << 10);
    for resource in ["memory", "ephemeral-storage"] {
        let (all, ours) = (bytes(&status["capacity"][resource]), bytes(&status["allocatable"][resource]));
        assert!(0 < ours && ours <= all, "{resource}: {ours} of {all}");
    }
    let info = &status["nodeInfo"];
    let version = info["kubeletVersion"].as_str().unwrap();
    assert!(version.starts_with(&format!("v1.{}.", node.cluster.minor())), "{version}");
    assert!(info["containerRuntimeVersion"].as_str().unwrap().starts_with("docker://"), "{info}");
    assert_eq!(info["operatingSystem"], "linux");
    assert_eq!(info["kernelVersion"], fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim());
    for name in ["machineID", "systemUUID", "bootID", "osImage", "architecture"] {
        assert!(info[name].is_string(), "{name} is missing: {info}");
    }
    assert_eq!(status["daemonEndpoints"]["kubeletEndpoint"]["Port"], node.port);
    let image = crate::bed::docker::image();
    let named = status["images"].as_array().unwrap().iter().any(|one| one["names"].to_string().contains(&image));
    assert!(named, "{image} is not among {}", status["images"]);
}

#[test]
fn cluster_node_joins_by_a_token_and_signs_of_its_own() {
    let Some(mut node) = Node::start() else { return };
    let user = format!("system:node:{}", node.name);
    let serving = node.told(|| {
        until("a serving certificate", || {
            requests(&node.cluster, &node.name).into_iter().find(|request| {
                request["spec"]["signerName"] == "kubernetes.io/kubelet-serving"
                    && request["spec"]["username"] == user.as_str()
                    && request["status"]["certificate"].is_string()
            })
        })
    });
    let usages = serving["spec"]["usages"].to_string();
    assert!(usages.contains("server auth") && usages.contains("digital signature"), "{usages}");
    let by_token = requests(&node.cluster, &node.name).into_iter().any(|request| {
        request["spec"]["signerName"] == "kubernetes.io/kube-apiserver-client-kubelet"
            && request["status"]["certificate"].is_string()
    });
    assert!(by_token);
    let config = fs::read_to_string(node.folder.join("kubeconfig")).unwrap();
    assert!(!config.contains("token:"), "the token must not stay in the kubeconfig: {config}");
    // Another start uses what there is.
    let own = || {
        let all = requests(&node.cluster, &node.name).into_iter();
        all.filter(|request| request["spec"]["username"] == user.as_str()).count()
    };
    let before = own();
    node.stop();
    node.begin();
    node.wait_node_ready();
    let after = requests(&node.cluster, &node.name);
    assert_eq!(after.iter().filter(|request| request["spec"]["username"] == user.as_str()).count(), before);
}

#[test]
fn cluster_node_renews_its_lease() {
    let Some(node) = Node::start() else { return };
    let path = format!("{LEASES}/{}", node.name);
    let lease = node.cluster.wait(&path, "there", |lease| !lease.is_null());
    assert_eq!(lease["spec"]["holderIdentity"], node.name.as_str());
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
    assert_eq!(lease["metadata"]["ownerReferences"][0]["kind"], "Node");
    let first = lease["spec"]["renewTime"].clone();
    node.cluster.wait(&path, "renewed", |lease| lease["spec"]["renewTime"] != first);
}

#[test]
fn cluster_node_keeps_what_others_wrote_and_comes_back_when_deleted() {
    let Some(mut node) = Node::start_with(&["--node-labels=example.com/rack=a"], false) else { return };
    assert_eq!(node.object()["metadata"]["labels"]["example.com/rack"], "a");
    let name = node.name.clone();
    node.cluster.kubectl(&["label", "node", &name, "example.com/zone=b"]);
    node.cluster.kubectl(&["annotate", "node", &name, "example.com/note=c"]);
    node.cluster.kubectl(&["taint", "node", &name, "example.com/odd=1:PreferNoSchedule"]);
    node.stop();
    node.begin();
    node.wait_node_ready();
    let object = node.object();
    assert_eq!(object["metadata"]["labels"]["example.com/zone"], "b");
    assert_eq!(object["metadata"]["annotations"]["example.com/note"], "c");
    assert!(object["spec"]["taints"].to_string().contains("example.com/odd"), "{}", object["spec"]);

    node.cluster.delete(&node.path(), None);
    let again = node.wait_node("registered again", |now| {
        !now.is_null() && now["metadata"]["uid"] != object["metadata"]["uid"] && condition(now, "Ready")
    });
    assert_eq!(again["metadata"]["labels"]["example.com/rack"], "a");
}

#[test]
fn cluster_node_that_stops_is_found_out_and_comes_back() {
    let Some(mut node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    let a = node.wait_api_ready("a");
    node.kill();
    node.wait_node("unknown to the node controller", |object| !condition(object, "Ready"));
    // Its pods are as they were, and so they are found again.
    assert!(!node.in_docker(&a).is_empty());
    node.begin();
    node.wait_node_ready();
    let now = node.wait_api_ready("a");
    assert_eq!(
        now["status"]["containerStatuses"][0]["containerID"],
        a["status"]["containerStatuses"][0]["containerID"]
    );
}

#[test]
fn cluster_node_labels_and_taints_of_others_count() {
    let Some(node) = Node::start() else { return };
    let name = node.name.clone();
    let picky = |pod: &str| with(sleeper(pod), json!({"spec": {"nodeSelector": {"example.com/disk": "fast"}}}));
    node.cluster.kubectl(&["label", "node", &name, "example.com/disk=fast"]);
    node.bind(&picky("a"));
    node.wait_api_ready("a");
    node.cluster.kubectl(&["label", "node", &name, "example.com/disk-"]);
    // The node says that it heard of this, and so of what was changed before.
    node.cluster.kubectl(&["cordon", &name]);
    node.wait_node_event("NodeNotSchedulable");
    node.bind(&picky("b"));
    let b = node.wait_api("b", "refused", |pod| phase(pod) == "Failed");
    assert_eq!(b["status"]["reason"], "NodeAffinity", "{}", b["status"]);
    // The one that runs is left alone: that is the controllers' affair.
    node.wait_api_ready("a");
    node.cluster.kubectl(&["taint", "node", &name, "example.com/out=1:NoExecute"]);
    node.cluster.kubectl(&["uncordon", &name]);
    node.wait_node_event("NodeSchedulable");
    node.bind(&sleeper("c"));
    // The controller that evicts may be first.
    let c = node.wait_api("c", "refused", |pod| pod.is_null() || phase(pod) == "Failed");
    assert!(c.is_null() || c["status"]["reason"] == "TaintToleration", "{}", c["status"]);
    assert!(node.in_docker(&c).is_empty());
}

#[test]
fn cluster_node_mends_what_others_may_not_change() {
    let Some(node) = Node::start() else { return };
    node.cluster.kubectl(&["label", "node", &node.name, "--overwrite", "kubernetes.io/os=plan9"]);
    node.wait_node("its system again", |now| now["metadata"]["labels"]["kubernetes.io/os"] == "linux");
    let lie = json!([{"type": "Ready", "status": "False", "reason": "Lie"}, {"type": "Mine", "status": "True"}]);
    node.cluster.patch(&format!("{}/status", node.path()), &json!({"status": {"conditions": lie}}));
    let again = node.wait_node("its conditions again", |now| {
        condition(now, "Ready") && reason(now, "MemoryPressure") == "KubeletHasSufficientMemory"
    });
    assert!(condition(&again, "Mine"), "others' conditions stay: {}", again["status"]["conditions"]);
    node.cluster.kubectl(&["cordon", &node.name]);
    node.wait_node_event("NodeNotSchedulable");
}
