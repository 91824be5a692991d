//! Pods that are resized in place: `kubectl patch --subresource resize`, and what Docker and the kernel make of it.

use std::fs;

use serde_json::{Value, json};

use crate::bed::{
    cluster::until,
    node::Node,
    pods::{SLEEP, condition, container, id, is_ready, pod, restarts, status, with},
};

/// CPU and memory, requested and limited alike.
fn size(cpu: &str, memory: &str) -> Value {
    json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}})
}

fn sized(name: &str, cpu: &str, memory: &str) -> Value {
    pod(name, json!([with(container("app", SLEEP), json!({"resources": size(cpu, memory)}))]), json!({}))
}

/// `kubectl patch --subresource resize` of a list of containers.
fn try_resize(node: &Node, name: &str, list: &str, container: &str, resources: &Value) -> std::process::Output {
    let patch = json!({"spec": {list: [{"name": container, "resources": resources}]}}).to_string();
    let all = ["patch", "pod", name, "-n", &node.name, "--subresource", "resize", "--patch", &patch];
    node.cluster.try_kubectl(&all)
}

fn resize(node: &Node, name: &str, list: &str, container: &str, resources: &Value) {
    let output = try_resize(node, name, list, container, resources);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn of_resize<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    pod["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// A generation as statuses tell it: API servers before 1.34 drop it.
fn observed(node: &Node, generation: &Value) -> Value {
    if node.cluster.minor() < 34 { Value::Null } else { generation.clone() }
}

/// Whether the API server lets memory limits be lowered without a restart: from 1.34 on.
fn lowers_memory(node: &Node) -> bool {
    node.cluster.minor() >= 34
}

/// Waits until a container has that size, as the API tells it, and no resize is left.
fn wait_size(node: &Node, name: &str, container: &str, resources: &Value) -> Value {
    node.wait_api(name, "resized", |pod| {
        let told = status(pod, container);
        told["resources"]["limits"] == resources["limits"]
            && told["resources"]["requests"] == resources["requests"]
            && told["allocatedResources"] == resources["requests"]
            && of_resize(pod, "PodResizePending").is_none()
            && of_resize(pod, "PodResizeInProgress").is_none()
            && is_ready(pod)
    })
}

/// Shares, quota and memory of a container in Docker.
fn in_docker(node: &Node, id: &str) -> (i64, i64, i64) {
    let host = node.docker.inspect(id).expect("it is in Docker")["HostConfig"].clone();
    let number = |name: &str| host[name].as_i64().unwrap_or(0);
    assert_eq!(number("MemorySwap"), number("Memory"), "swap is held to memory");
    (number("CpuShares"), number("CpuQuota"), number("Memory"))
}

/// Memory limits of a container's cgroup and of the pod's above it, as the kernel has them.
fn in_kernel(node: &Node, id: &str) -> (String, String) {
    let pid = node.docker.inspect(id).expect("it is in Docker")["State"]["Pid"].clone();
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let v1 = text.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path));
    let (root, file, path) = match v1 {
        Some(path) => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", path),
        None => ("/sys/fs/cgroup", "memory.max", text.trim().strip_prefix("0::").unwrap()),
    };
    let read = |path: &str| fs::read_to_string(format!("{root}{path}/{file}")).unwrap().trim().to_owned();
    (read(path), read(path.rsplit_once('/').unwrap().0))
}

#[test]
fn cluster_resize_up_and_down_as_it_runs() {
    let Some(mut node) = Node::start() else { return };
    node.bind(&sized("a", "200m", "64Mi"));
    let first = node.wait_api_ready("a");
    assert_eq!(status(&first, "app")["resources"], size("200m", "64Mi"));
    let app = id(&first, "app");
    assert_eq!(in_docker(&node, &app), (204, 20_000, 64 << 20));
    let mut generation = first["metadata"]["generation"].as_i64().unwrap();
    let mut steps = vec![("400m", "128Mi", 40_000, 128_i64 << 20), ("100m", "128Mi", 10_000, 128 << 20)];
    if lowers_memory(&node) {
        steps.push(("100m", "32Mi", 10_000, 32 << 20));
    }
    let last = *steps.last().unwrap();
    for (cpu, memory, quota, bytes) in steps {
        resize(&node, "a", "containers", "app", &size(cpu, memory));
        let now = wait_size(&node, "a", "app", &size(cpu, memory));
        assert_eq!((id(&now, "app"), restarts(&now, "app")), (app.clone(), 0));
        let (_, has_quota, has_memory) = in_docker(&node, &app);
        assert_eq!((has_quota, has_memory), (quota, bytes));
        assert_eq!(in_kernel(&node, &app), (bytes.to_string(), bytes.to_string()));
        generation += 1;
        assert_eq!(now["status"]["observedGeneration"], observed(&node, &json!(generation)));
        node.wait_api_event("a", "ResizeStarted", &format!("\\\"generation\\\":{generation}"));
        node.wait_api_event("a", "ResizeCompleted", &format!("\\\"generation\\\":{generation}"));
    }
    // It is all remembered.
    node.kill();
    node.begin();
    node.wait_node_ready();
    let now = wait_size(&node, "a", "app", &size(last.0, last.1));
    assert_eq!((id(&now, "app"), restarts(&now, "app")), (app, 0));
}

#[test]
fn cluster_resize_restarts_what_its_policy_says() {
    let Some(node) = Node::start() else { return };
    let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    let app = with(container("app", SLEEP), json!({"resources": size("100m", "64Mi"), "resizePolicy": policy}));
    let other = with(container("other", SLEEP), json!({"resources": size("100m", "64Mi")}));
    node.bind(&pod("a", json!([app, other]), json!({})));
    let first = node.wait_api_ready("a");
    resize(&node, "a", "containers", "app", &size("200m", "64Mi"));
    let now = wait_size(&node, "a", "app", &size("200m", "64Mi"));
    assert_eq!(id(&now, "app"), id(&first, "app"), "CPU needs no restart");
    resize(&node, "a", "containers", "app", &size("200m", "96Mi"));
    let now = node.wait_api("a", "restarted", |pod| is_ready(pod) && restarts(pod, "app") == 1);
    assert_ne!(id(&now, "app"), id(&first, "app"));
    let now = wait_size(&node, "a", "app", &size("200m", "96Mi"));
    assert_eq!(in_docker(&node, &id(&now, "app")).2, 96 << 20);
    assert_eq!((id(&now, "other"), restarts(&now, "other")), (id(&first, "other"), 0));
    node.wait_api_event("a", "Killing", "Container app resize requires restart");
}

#[test]
fn cluster_resize_of_a_sidecar() {
    let Some(node) = Node::start() else { return };
    let side = json!({"restartPolicy": "Always", "resources": size("100m", "64Mi")});
    let spec = json!({"initContainers": [with(container("side", SLEEP), side)]});
    let app = with(container("app", SLEEP), json!({"resources": size("100m", "64Mi")}));
    node.bind(&pod("a", json!([app]), spec));
    let first = node.wait_api_ready("a");
    resize(&node, "a", "initContainers", "side", &size("300m", "128Mi"));
    let now = wait_size(&node, "a", "side", &size("300m", "128Mi"));
    assert_eq!((id(&now, "side"), id(&now, "app")), (id(&first, "side"), id(&first, "app")));
    assert_eq!(in_docker(&node, &id(&now, "side")).2, 128 << 20);
}

/// Thousandths of a core that the node has.
fn allocatable(node: &Node) -> i64 {
    let cpu = node.object()["status"]["allocatable"]["cpu"].as_str().unwrap().to_owned();
    match cpu.strip_suffix('m') {
        Some(milli) => milli.parse().unwrap(),
        None => cpu.parse::<i64>().unwrap() * 1000,
    }
}

#[test]
fn cluster_resize_deferred_until_another_pod_goes() {
    let Some(mut node) = Node::start() else { return };
    let all = allocatable(&node);
    let request = |cpu: i64| json!({"requests": {"cpu": format!("{cpu}m"), "memory": "16Mi"}, "limits": {"cpu": "50"}});
    let asking = |name: &str, cpu: i64| {
        pod(name, json!([with(container("app", SLEEP), json!({"resources": request(cpu)}))]), json!({}))
    };
    node.bind(&asking("a", 200));
    node.bind(&asking("b", all - 350));
    let first = node.wait_api_ready("a");
    node.wait_api_ready("b");
    resize(&node, "a", "containers", "app", &request(all - 300));
    let reason = |pod: &Value| of_resize(pod, "PodResizePending").map(|condition| condition["reason"].clone());
    let deferred = |pod: &Value| reason(pod) == Some(json!("Deferred"));
    let pending = node.wait_api("a", "deferred", deferred);
    let told = of_resize(&pending, "PodResizePending").unwrap();
    assert!(told["message"].as_str().unwrap().starts_with("Node didn't have enough resource: cpu"), "{told}");
    assert_eq!(told["observedGeneration"], observed(&node, &pending["metadata"]["generation"]));
    assert_eq!(status(&pending, "app")["allocatedResources"]["cpu"], "200m");
    node.wait_api_event("a", "ResizeDeferred", "Pod resize OutOfcpu");
    // The agent's end and new start neither gives nor forgets it.
    node.kill();
    node.begin();
    node.wait_node_ready();
    let pending = node.wait_api("a", "still deferred", |pod| deferred(pod) && is_ready(pod));
    assert_eq!(id(&pending, "app"), id(&first, "app"));
    assert_eq!(in_docker(&node, &id(&pending, "app")).0, 204);
    node.cluster.delete(&node.one("pods", "b"), Some(0));
    let now = node.wait_api("a", "resized", |pod| {
        of_resize(pod, "PodResizePending").is_none()
            && of_resize(pod, "PodResizeInProgress").is_none()
            && status(pod, "app")["allocatedResources"]["cpu"] == format!("{}m", all - 300)
    });
    assert_eq!((id(&now, "app"), restarts(&now, "app")), (id(&first, "app"), 0));
    assert_eq!(in_docker(&node, &id(&first, "app")).0, (all - 300) * 1024 / 1000);
}

#[test]
fn cluster_resize_that_can_never_be_is_infeasible() {
    let Some(node) = Node::start() else { return };
    let all = allocatable(&node);
    node.bind(&sized("a", "200m", "64Mi"));
    let first = node.wait_api_ready("a");
    let much = size(&format!("{}m", all + 1000), "64Mi");
    // From 1.36 on the API server refuses what a node does not have, unless it is told that the node has more.
    until("the API server takes it", || {
        let more = json!({"status": {"allocatable": {"cpu": "1000"}, "capacity": {"cpu": "1000"}}});
        node.cluster.patch(&format!("{}/status", node.path()), &more);
        try_resize(&node, "a", "containers", "app", &much).status.success().then_some(())
    });
    let pending = node.wait_api("a", "infeasible", |pod| {
        of_resize(pod, "PodResizePending").is_some_and(|condition| condition["reason"] == "Infeasible")
    });
    let told = of_resize(&pending, "PodResizePending").unwrap();
    let message = format!("Node didn't have enough capacity: cpu, requested: {}, capacity: {all}", all + 1000);
    assert_eq!(told["message"], message.as_str());
    node.wait_api_event("a", "ResizeInfeasible", "Pod resize Infeasible");
    assert_eq!(status(&pending, "app")["resources"], size("200m", "64Mi"));
    resize(&node, "a", "containers", "app", &size("200m", "64Mi"));
    let now = wait_size(&node, "a", "app", &size("200m", "64Mi"));
    assert_eq!((id(&now, "app"), restarts(&now, "app")), (id(&first, "app"), 0));
    assert!(condition(&now, "Ready"));
}

#[test]
fn cluster_resize_leaves_memory_that_is_in_use() {
    let Some(node) = Node::start() else { return };
    if !lowers_memory(&node) {
        crate::bed::skip(&format!("Kubernetes {} refuses lower memory limits", node.cluster.version));
        return;
    }
    node.bind(&sized("a", "200m", "128Mi"));
    let first = node.wait_api_ready("a");
    let (code, text) = node.sh("a", "dd if=/dev/zero of=/dev/shm/x bs=1M count=40");
    assert_eq!(code, 0, "{text}");
    resize(&node, "a", "containers", "app", &size("200m", "32Mi"));
    let failed = node.wait_api("a", "an error", |pod| {
        of_resize(pod, "PodResizeInProgress").is_some_and(|condition| condition["reason"] == "Error")
    });
    let told = of_resize(&failed, "PodResizeInProgress").unwrap()["message"].as_str().unwrap().to_owned();
    assert!(told.starts_with("cannot decrease memory limits: ") && told.contains("below current usage"), "{told}");
    assert_eq!(status(&failed, "app")["resources"]["limits"]["memory"], "128Mi");
    node.wait_api_event("a", "ResizeError", "Pod resize error");
    node.sh("a", "rm /dev/shm/x");
    let now = wait_size(&node, "a", "app", &size("200m", "32Mi"));
    assert_eq!((id(&now, "app"), restarts(&now, "app")), (id(&first, "app"), 0));
    assert_eq!(in_docker(&node, &id(&now, "app")).2, 32 << 20);
}

#[test]
fn cluster_resize_is_not_for_static_pods() {
    let Some(node) = Node::start() else { return };
    let resources = json!({"requests": {"cpu": "0.1", "memory": "16384Ki"}});
    let fixed = pod("s", json!([with(container("app", SLEEP), json!({"resources": resources}))]), json!({}));
    node.apply(&with(fixed, json!({"metadata": {"namespace": node.name}})));
    let name = format!("s-{}", node.name);
    let mirror = node.wait_api_ready(&name);
    // However a manifest writes its quantities, the status is told in the API server's notation, and then rests.
    let canonical = json!({"cpu": "100m", "memory": "16Mi"});
    assert_eq!(status(&mirror, "app")["allocatedResources"], canonical);
    let refused = try_resize(&node, &name, "containers", "app", &size("200m", "32Mi"));
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("static pods"));
    let version = || node.wait_api_ready(&name)["metadata"]["resourceVersion"].clone();
    node.told(|| {
        until("its status is not written again and again", || {
            let before = version();
            std::thread::sleep(crate::bed::node::MOMENT);
            (version() == before).then_some(())
        })
    });
}

#[test]
fn cluster_resize_of_an_init_container() {
    let Some(node) = Node::start() else { return };
    if node.cluster.minor() < 36 {
        return;
    }
    let init = with(container("init", SLEEP), json!({"resources": size("100m", "64Mi")}));
    let app = with(container("app", SLEEP), json!({"resources": size("100m", "64Mi")}));
    node.bind(&pod("a", json!([app]), json!({"initContainers": [init]})));
    let runs = |pod: &Value| status(pod, "init")["state"]["running"].is_object();
    let first = node.wait_api("a", "initializing", runs);
    resize(&node, "a", "initContainers", "init", &size("200m", "128Mi"));
    let now = node.wait_api("a", "resized", |pod| {
        status(pod, "init")["resources"] == size("200m", "128Mi") && of_resize(pod, "PodResizeInProgress").is_none()
    });
    assert_eq!((id(&now, "init"), restarts(&now, "init")), (id(&first, "init"), 0));
    assert_eq!(in_docker(&node, &id(&now, "init")).2, 128 << 20);
}

#[test]
fn cluster_resize_of_the_pod_as_a_whole() {
    let Some(mut node) = Node::start() else { return };
    // From 1.36 on the API server lets such a resize through; that of 1.35 keeps what nodes declare, and no more.
    if node.cluster.minor() < 36 {
        return;
    }
    let declared = node.object()["status"]["declaredFeatures"].clone();
    let declares = |name: &str| declared.as_array().is_some_and(|all| all.contains(&json!(name)));
    assert!(declares("InPlacePodLevelResourcesVerticalScaling"), "{declared:?}");
    let own = with(container("own", SLEEP), json!({"resources": size("50m", "32Mi")}));
    node.bind(&pod("a", json!([container("app", SLEEP), own]), json!({"resources": size("200m", "128Mi")})));
    let first = node.wait_api_ready("a");
    let given = |pod: &Value| (pod["status"]["resources"].clone(), pod["status"]["allocatedResources"].clone());
    assert_eq!(given(&first), (size("200m", "128Mi"), size("200m", "128Mi")["requests"].clone()));
    let (app, limited) = (id(&first, "app"), id(&first, "own"));
    for (cpu, memory, quota, bytes) in [("400m", "256Mi", 40_000, 256_i64 << 20), ("100m", "64Mi", 10_000, 64 << 20)] {
        let patch = json!({"spec": {"resources": size(cpu, memory)}}).to_string();
        node.cluster.kubectl(&["patch", "pod", "a", "-n", &node.name, "--subresource", "resize", "--patch", &patch]);
        let now = node.wait_api("a", "resized", |pod| {
            given(pod) == (size(cpu, memory), size(cpu, memory)["requests"].clone())
                && of_resize(pod, "PodResizePending").is_none()
                && of_resize(pod, "PodResizeInProgress").is_none()
                && is_ready(pod)
        });
        assert_eq!((id(&now, "app"), restarts(&now, "app")), (app.clone(), 0));
        let (_, has_quota, has_memory) = in_docker(&node, &app);
        assert_eq!((has_quota, has_memory), (quota, bytes), "what has no limits of its own has the pod's");
        assert_eq!(in_docker(&node, &limited), (51, 5_000, 32 << 20));
        assert_eq!(in_kernel(&node, &app), (bytes.to_string(), bytes.to_string()));
    }
    // It is all remembered.
    node.kill();
    node.begin();
    node.wait_node_ready();
    let now = node.wait_api("a", "the same", |pod| is_ready(pod) && given(pod).0 == size("100m", "64Mi"));
    assert_eq!((id(&now, "app"), restarts(&now, "app")), (app, 0));
}
