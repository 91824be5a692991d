//! The API server gone, back, and restarted; Docker silent; and the agent killed under its pods.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::bed::{
    cluster::until,
    etcd,
    front::{Asked, Fate},
    limit,
    node::{MOMENT, Node},
    pods::{SLEEP, condition, container, id, is_ready, job, phase, pod, restarts, sleeper, with},
    proxy::Proxy,
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
fn cluster_faults_etcd_is_compacted_and_the_api_server_restarted_with_another_certificate() {
    let Some(node) = Node::start_fronted() else { return };
    for name in ["a", "b"] {
        node.bind(&sleeper(name));
    }
    let [before, b] = ["a", "b"].map(|name| node.wait_api_ready(name));
    let since = node.ready_since();
    // Whoever is up to date does not notice that the past is forgotten.
    etcd::compact(&node.cluster);
    node.bind(&sleeper("c"));
    node.wait_api_ready("c");
    assert_eq!(node.front().expired(), 0);

    // One that was away meanwhile asks for what is forgotten, of an API server that remembers nothing either.
    let began = Instant::now();
    node.front().judge(|_, _| Fate::Gone);
    node.front().end_watches(None);
    let is_of_pods = |one: &Asked| one.is_watch() && one.path.starts_with("/api/v1/pods?");
    until("the node is cut off", || node.front().asked_since(began).iter().any(is_of_pods).then_some(()));
    node.cluster.delete(&node.one("pods", "b"), None);
    node.bind(&sleeper("d"));
    etcd::compact(&node.cluster);
    let file = node.cluster.folder.join("kube-apiserver.pid");
    let pid = || fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<i32>().ok());
    let old = pid().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(old).unwrap(), rustix::process::Signal::KILL).unwrap();
    until("another API server", || pid().filter(|now| *now != old));
    node.cluster.get("/readyz");
    assert_eq!(node.running(&b), Some(id(&b, "app")));
    node.front().pass();
    node.wait_api_ready("d");
    node.wait_api_gone(&b);
    assert!(node.front().expired() > 0, "the API server has forgotten nothing");
    let now = node.wait_api_ready("a");
    assert_eq!((id(&now, "app"), restarts(&now, "app")), (id(&before, "app"), 0));
    assert_eq!(node.ready_since(), since);
}

#[test]
fn cluster_faults_agent_killed_restarts_nothing() {
    let Some(mut node) = Node::start() else { return };
    // An exec may take more than a second on a busy machine; three of those would be another moment of Ready.
    let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 1, "timeoutSeconds": 20});
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

/// A pod that uses a Secret, a ConfigMap and a token, and is probed.
fn needy(node: &Node) -> Value {
    let object = |kind: &str, name: &str, field: &str, data: Value| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, field: data});
    node.cluster.create(&node.all("secrets"), &object("Secret", "s", "stringData", json!({"key": "hush"})));
    node.cluster.create(&node.all("configmaps"), &object("ConfigMap", "c", "data", json!({"word": "map"})));
    let app = with(
        container("app", &format!("touch /tmp/ready; {SLEEP}")),
        json!({
            "env": [{"name": "WORD", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "word"}}}],
            "volumeMounts": [{"name": "s", "mountPath": "/s"}],
            "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1},
        }),
    );
    pod("needy", json!([app]), json!({"volumes": [{"name": "s", "secret": {"secretName": "s"}}]}))
}

/// A pod as the node itself has it; nothing while it does not know its pods yet.
fn own(node: &Node, name: &str) -> Value {
    let told = node.cli(&["get", "pods", "-n", &node.name, "-o", "json"]);
    let told: Value = serde_json::from_slice(&told.stdout).unwrap_or_default();
    let all = told["items"].as_array().cloned().unwrap_or_else(|| vec![told]);
    all.into_iter().find(|pod| pod["metadata"]["name"] == name).unwrap_or(Value::Null)
}

/// What a reboot takes away: containers, mounts, and all that was in memory.
fn reboot(node: &Node) {
    for one in node.containers_of_node() {
        node.docker.remove(one["Id"].as_str().unwrap());
    }
    node.unmount();
    let _ = fs::remove_dir_all(node.volatile());
}

#[test]
fn cluster_faults_reboot_without_the_api_server() {
    let Some(mut node) = Node::new(&[], true) else { return };
    let key = node.folder.join("key");
    fs::write(&key, [7; 32]).unwrap();
    node.flags.push(format!("--state-key-file={}", key.display()));
    node.begin();
    node.wait_node_ready();
    node.bind(&needy(&node));
    node.bind(&sleeper("plain"));
    node.bind(&job("done", "Never", "true"));
    let [needy, plain] = ["needy", "plain"].map(|name| node.wait_api_ready(name));
    let done = node.wait_api("done", "done", |pod| phase(pod) == "Succeeded");
    let token = node.sh("needy", "cat /var/run/secrets/kubernetes.io/serviceaccount/token").1;
    node.gate.as_ref().unwrap().shut();

    // Another agent, without an API server, takes on what runs, keeps it running and probes it.
    node.kill();
    node.begin();
    node.told(|| until("taken on", || is_ready(&own(&node, "needy")).then_some(())));
    assert_eq!(node.running(&needy), Some(id(&needy, "app")));
    node.docker.exec(&id(&needy, "app"), &["rm", "/tmp/ready"]);
    node.told(|| until("found not ready", || (!is_ready(&own(&node, "needy"))).then_some(())));
    node.docker.kill(&id(&plain, "app"), "KILL");
    node.told(|| until("restarted", || node.running(&plain).filter(|now| *now != id(&plain, "app"))));

    // After a reboot all is as it was, with what it needs; what had ended stays so.
    node.kill();
    reboot(&node);
    node.begin();
    let again = node.told(|| until("it runs again", || node.running(&needy)));
    let (_, text) = node.docker.exec(&again, &["sh", "-c", "cat /s/key; echo $WORD $KUBERNETES_SERVICE_HOST"]);
    assert_eq!(text, "hushmap 10.96.0.1\n");
    let script = "cat /var/run/secrets/kubernetes.io/serviceaccount/token";
    assert_eq!(node.docker.exec(&again, &["sh", "-c", script]).1, token);
    node.told(|| until("ready again", || is_ready(&own(&node, "needy")).then_some(())));
    let other = node.told(|| until("so does the other one", || node.running(&plain)));
    assert_eq!(phase(&own(&node, "done")), "Succeeded");
    assert!(node.in_docker(&done).is_empty());

    // The API server is back: it is told, and nothing restarts.
    node.gate.as_ref().unwrap().open();
    node.wait_node_ready();
    for (name, container) in [("needy", &again), ("plain", &other)] {
        let now = node.wait_api(name, "told", |pod| is_ready(pod) && id(pod, "app") == *container);
        assert!(restarts(&now, "app") >= 1, "{name}: {}", now["status"]);
    }
    thread::sleep(MOMENT);
    assert_eq!(node.running(&needy), Some(again));
    assert_eq!(node.running(&plain), Some(other));
    assert_eq!(phase(&node.cluster.get(&node.one("pods", "done")).unwrap()), "Succeeded");
    assert!(node.in_docker(&done).is_empty());
}

#[test]
fn cluster_faults_reboot_without_a_state_key() {
    let Some(mut node) = Node::start_gated() else { return };
    node.bind(&needy(&node));
    node.bind(&with(sleeper("plain"), json!({"spec": {"automountServiceAccountToken": false}})));
    let [needy, plain] = ["needy", "plain"].map(|name| node.wait_api_ready(name));
    node.gate.as_ref().unwrap().shut();
    node.kill();
    reboot(&node);
    node.begin();
    node.told(|| until("what needs no secret runs", || node.running(&plain)));
    let why = || node.say(&["why", "-n", &node.name, "needy"]);
    node.told(|| until("the other one says what it waits for", || why().contains("--state-key-file").then_some(())));
    assert_eq!(node.running(&needy), None);
    node.gate.as_ref().unwrap().open();
    node.wait_api("needy", "Ready again", |pod| is_ready(pod) && id(pod, "app") != id(&needy, "app"));
}

/// A daemon that takes calls and answers none makes the node NotReady, not sooner than the kubelet would be.
#[test]
fn cluster_faults_docker_is_silent_and_answers_again() {
    let Some(mut node) = Node::new(&[], false) else { return };
    let socket = node.folder.join("d.sock");
    let proxy = Proxy::start(&socket, &node.docker.socket);
    node.flags.push(format!("--docker-endpoint=unix://{}", socket.display()));
    node.begin();
    node.wait_node_ready();
    node.bind(&sleeper("a"));
    let before = node.wait_api_ready("a");
    proxy.hang(true);
    let began = Instant::now();
    let told = "container runtime is down: Docker at unix:///";
    node.wait_node("not Ready, and says why", |object| {
        let mut all = object["status"]["conditions"].as_array().into_iter().flatten();
        let ready = all.find(|one| one["type"] == "Ready").unwrap_or(&Value::Null);
        ready["status"] == "False" && ready["message"].as_str().is_some_and(|message| message.contains(told))
    });
    // The last answer was ten seconds old at most.
    assert!(began.elapsed() > Duration::from_secs(15), "after {:?}", began.elapsed());
    proxy.hang(false);
    let began = Instant::now();
    node.wait_node("Ready again", |object| condition(object, "Ready"));
    assert!(began.elapsed() < limit(Duration::from_secs(10)), "after {:?}", began.elapsed());
    // The controller has called its pods not ready meanwhile.
    let now = node.wait_api_ready("a");
    assert_eq!((id(&now, "app"), restarts(&now, "app")), (id(&before, "app"), 0));
    node.bind(&sleeper("b"));
    node.wait_api_ready("b");
    node.kill();
}
