//! Pods that are bound to the node: what is told of them, their probes, logs and events, and what refuses them.

use std::time::Instant;

use serde_json::{Value, json};

use crate::bed::{
    cluster::until,
    node::{MOMENT, Node},
    pods::{
        SLEEP, anew, assert_anew, condition, container, id, is_ready, job, phase, pod, restarts, sleeper, status,
        waiting, with,
    },
};

#[test]
fn cluster_pod_runs_and_says_so() {
    let Some(node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    let a = node.wait_api_ready("a");
    let told = &a["status"];
    assert_eq!(told["phase"], "Running");
    assert_eq!(told["hostIP"], node.cluster.address.as_str());
    assert_eq!(told["hostIPs"][0]["ip"], told["hostIP"]);
    assert!(told["podIP"].is_string() && told["podIPs"][0]["ip"] == told["podIP"], "{told}");
    assert_eq!(told["qosClass"], "BestEffort");
    assert!(told["startTime"].is_string());
    for kind in ["PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"] {
        assert!(condition(&a, kind), "{kind}: {}", told["conditions"]);
    }
    let app = status(&a, "app");
    assert_eq!((&app["ready"], &app["started"], &app["restartCount"]), (&json!(true), &json!(true), &json!(0)));
    assert!(app["state"]["running"]["startedAt"].is_string());
    assert!(app["containerID"].as_str().unwrap().starts_with("docker://"));
    assert!(app["image"].is_string() && app["imageID"].as_str().is_some_and(|image| !image.is_empty()), "{app}");
    let inspected = node.docker.inspect(&id(&a, "app")).expect("the container is in Docker");
    assert_eq!(inspected["State"]["Running"], true);
    let (_, hosts) = node.sh("a", "cat /etc/hosts; hostname");
    assert!(hosts.contains(told["podIP"].as_str().unwrap()) && hosts.ends_with("a\n"), "{hosts}");
}

#[test]
fn cluster_pod_that_stays_as_it_is_costs_no_requests() {
    let Some(node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    node.wait_api_ready("a");
    let patches = || node.asked().iter().filter(|(verb, path, _)| verb == "patch" && path.contains("/pods/a/")).count();
    // An API server that leaves out what it does not know of the status is not told of it again and again.
    let told = node.told(|| {
        until("no more of its status is sent", || {
            let before = patches();
            std::thread::sleep(MOMENT);
            Some(before).filter(|before| patches() == *before)
        })
    });
    assert!((1..=6).contains(&told), "{told} patches");
}

#[test]
fn cluster_pod_is_ready_when_its_readiness_gates_are() {
    let Some(node) = Node::start() else { return };
    let gates = json!({"readinessGates": [{"conditionType": "example.com/served"}]});
    node.bind(&pod("a", json!([container("app", SLEEP)]), gates));
    let find = |pod: &Value, kind: &str| {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|one| one["type"] == kind).unwrap_or_default()
    };
    let waits = |pod: &Value| {
        condition(pod, "ContainersReady") && find(pod, "Ready")["reason"] == "ReadinessGatesNotReady" && !is_ready(pod)
    };
    node.wait_api("a", "ready but for its gate", waits);
    // As whoever owns that condition would, beside the node's own.
    let say = |status: &str| {
        let path = format!("{}/status", node.one("pods", "a"));
        let patch = json!({"status": {"conditions": [{"type": "example.com/served", "status": status}]}});
        let answer = node.cluster.call("PATCH", &path, "application/strategic-merge-patch+json", Some(&patch));
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    say("True");
    let ready = node.wait_api_ready("a");
    assert_eq!(find(&ready, "example.com/served")["status"], "True", "it is not the node's to take away");
    say("False");
    let again = node.wait_api("a", "not ready again", waits);
    assert_eq!(find(&again, "example.com/served")["status"], "False");
    assert_eq!(restarts(&again, "app"), 0);
}

#[test]
fn cluster_pod_keeps_what_others_say_of_its_phase() {
    let Some(node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    node.wait_api_ready("a");
    let said = json!({"status": {"reason": "Observed", "message": "by somebody else"}});
    let kind = "application/strategic-merge-patch+json";
    let path = format!("{}/status", node.one("pods", "a"));
    assert_eq!(node.cluster.call("PATCH", &path, kind, Some(&said)).status, 200);
    // The node has something to say as well.
    node.sh("a", "kill 1");
    let a = node.wait_api("a", "restarted", |pod| restarts(pod, "app") == 1 && is_ready(pod));
    assert_eq!((&a["status"]["reason"], phase(&a)), (&json!("Observed"), "Running"));
    node.cluster.delete(&node.one("pods", "a"), None);
    node.wait_api_gone(&a);
}

#[test]
fn cluster_pods_end_for_a_drain_and_the_api_knows_before_it_is_over() {
    let Some(node) = Node::start() else { return };
    let script = "trap 'sleep 1; exit 0' TERM; while :; do sleep 0.1; done";
    for name in ["a", "b"] {
        node.bind(&pod(name, json!([container("app", script)]), json!({"terminationGracePeriodSeconds": 20})));
    }
    for name in ["a", "b"] {
        node.wait_api_ready(name);
    }
    let output = node.cli(&["drain-node", "--local"]);
    // At once: after this the machine may be gone.
    let pods = ["a", "b"].map(|name| node.cluster.get(&node.one("pods", name)).unwrap());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    for pod in pods {
        assert_eq!((phase(&pod), &pod["status"]["reason"]), ("Failed", &json!("Terminated")), "{}", pod["status"]);
        assert!(condition(&pod, "DisruptionTarget") && !is_ready(&pod), "{}", pod["status"]["conditions"]);
    }
    let shown = node.wait_node("not Ready", |node| !condition(node, "Ready"));
    assert!(shown["status"]["conditions"].to_string().contains("node is shutting down"), "{}", shown["status"]);
    assert!(node.say(&["drain-node", "--local", "--cancel"]).contains("may start again"));
    node.wait_node_ready();
}

#[test]
fn cluster_pod_has_the_clusters_dns_and_services() {
    let Some(node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    node.wait_api_ready("a");
    let (_, text) = node.sh("a", "cat /etc/resolv.conf");
    assert!(text.contains("nameserver 10.96.0.10"), "{text}");
    let search = format!("search {}.svc.cluster.local svc.cluster.local cluster.local", node.name);
    assert!(text.contains(&search) && text.contains("ndots:5"), "{text}");
    let (_, text) = node.sh("a", "env");
    for variable in ["KUBERNETES_SERVICE_HOST=10.96.0.1", "KUBERNETES_SERVICE_PORT=443"] {
        assert!(text.contains(variable), "{variable} is missing: {text}");
    }
}

#[test]
fn cluster_pod_events_are_the_kubelets() {
    let Some(node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    node.wait_api_ready("a");
    for reason in ["Created", "Started"] {
        let event = node.wait_api_event("a", reason, "");
        assert_eq!(event["source"]["component"], "kubelet", "{event}");
        assert_eq!(event["source"]["host"], node.name.as_str(), "{event}");
        assert_eq!(event["reportingComponent"], "kubelet", "{event}");
        assert_eq!(event["type"], "Normal");
        assert_eq!(event["involvedObject"]["fieldPath"], "spec.containers{app}", "{event}");
        assert_eq!(event["involvedObject"]["kind"], "Pod");
    }
    let all = node.cluster.kubectl(&["get", "events", "-n", &node.name, "--field-selector", "source=kubelet"]);
    assert!(all.contains("Started"), "{all}");
}

#[test]
fn cluster_pod_ends_gracefully_and_whole() {
    let Some(node) = Node::start() else { return };
    let slow = container("app", "trap 'sleep 2; exit 0' TERM; sleep 100000 & wait");
    node.bind(&pod("a", json!([slow]), json!({"terminationGracePeriodSeconds": 20})));
    let a = node.wait_api_ready("a");
    let began = Instant::now();
    node.cluster.delete(&node.one("pods", "a"), None);
    let ending = node.wait_api("a", "ending", |pod| pod.is_null() || pod["metadata"]["deletionTimestamp"].is_string());
    assert!(!ending.is_null(), "it was gone at once");
    node.wait_api("a", "gone", Value::is_null);
    assert!(began.elapsed().as_secs() >= 2, "its containers were not waited for");
    assert!(node.in_docker(&a).iter().all(|one| one["State"] != "running"), "gone, and still running");
    let cgroup = a["metadata"]["uid"].as_str().unwrap();
    let left = |path: std::path::PathBuf| path.to_string_lossy().replace('_', "-").contains(cgroup);
    assert!(!crate::bed::cgroups().into_iter().any(left), "gone, and its cgroup is there");
    assert!(!node.pod_folder(&a).join("volumes").exists(), "gone, and its volumes are there");
    node.wait_api_gone(&a);
    crate::bed::cluster::until("its folder is removed", || (!node.pod_folder(&a).exists()).then_some(()));
}

#[test]
fn cluster_pod_deleted_by_force_ends_all_the_same() {
    let Some(node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    let a = node.wait_api_ready("a");
    node.cluster.kubectl(&["delete", "pod", "a", "-n", &node.name, "--force", "--grace-period=0", "--wait=false"]);
    node.wait_api_gone(&a);
    // The name is free for another one, which is not mistaken for the first.
    node.bind(&sleeper("a"));
    let b = node.wait_api_ready("a");
    assert_ne!(a["metadata"]["uid"], b["metadata"]["uid"]);
}

#[test]
fn cluster_pod_deleted_while_the_agent_is_away() {
    let Some(mut node) = Node::start() else { return };
    for name in ["graceful", "forced", "stays"] {
        node.bind(&sleeper(name));
    }
    let [graceful, forced, stays] = ["graceful", "forced", "stays"].map(|name| node.wait_api_ready(name));
    node.kill();
    node.cluster.delete(&node.one("pods", "graceful"), None);
    node.cluster.delete(&node.one("pods", "forced"), Some(0));
    node.wait_api("forced", "gone from the API", Value::is_null);
    assert!(!node.in_docker(&forced).is_empty());
    node.begin();
    node.wait_api_gone(&graceful);
    node.wait_api_gone(&forced);
    let now = node.wait_api_ready("stays");
    assert_eq!(id(&now, "app"), id(&stays, "app"));
    assert_eq!(restarts(&now, "app"), 0);
}

#[test]
fn cluster_pod_that_ends_has_its_phase() {
    let Some(node) = Node::start() else { return };
    node.bind(&job("good", "Never", "echo bye > /dev/termination-log"));
    node.bind(&job("bad", "Never", "exit 3"));
    node.bind(&job("again", "OnFailure", "exit 4"));
    let host = json!({"spec": {"hostNetwork": true}});
    node.bind(&with(job("host", "Never", "exit 0"), host.clone()));
    let absent = with(container("app", SLEEP), json!({"image": "longshore.dev/nowhere:1"}));
    node.bind(&with(pod("pending", json!([absent]), json!({})), host));
    let good = node.wait_api("good", "Succeeded", |pod| phase(pod) == "Succeeded");
    let ended = &status(&good, "app")["state"]["terminated"];
    assert_eq!(
        (&ended["exitCode"], &ended["reason"], &ended["message"]),
        (&json!(0), &json!("Completed"), &json!("bye\n"))
    );
    let bad = node.wait_api("bad", "Failed", |pod| phase(pod) == "Failed");
    let ended = &status(&bad, "app")["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(3), &json!("Error")));
    // Where they were is told of those that have ended as well; of one on the node's network from the first.
    let host = node.wait_api("host", "Succeeded", |pod| phase(pod) == "Succeeded");
    let pending = node.wait_api("pending", "waits", |pod| waiting(pod, "app") == "ErrImageNeverPull");
    assert_eq!(phase(&pending), "Pending");
    for (pod, of_node) in [(&good, false), (&bad, false), (&host, true), (&pending, true)] {
        let told = &pod["status"];
        assert!(told["podIP"].is_string() && told["podIPs"][0]["ip"] == told["podIP"], "{told}");
        assert_eq!(told["podIP"] == told["hostIP"], of_node, "{told}");
    }
    let again = node.wait_api("again", "restarted", |pod| restarts(pod, "app") >= 1);
    assert_eq!(status(&again, "app")["lastState"]["terminated"]["exitCode"], 4);
    node.wait_api("again", "backing off", |pod| waiting(pod, "app") == "CrashLoopBackOff");
    node.wait_api_event("again", "BackOff", "");
    // What happens again is counted in the event that there is.
    let started = || {
        let all = node.events_of("again").into_iter();
        let all: Vec<Value> = all.filter(|event| event["reason"] == "Started").collect();
        all.iter().any(|event| event["count"].as_i64() >= Some(2)).then_some(all)
    };
    let started = node.told(|| until("the second start is counted", started));
    assert_eq!(started.len(), 1, "{started:#?}");
    let path = format!("/events/{}", started[0]["metadata"]["name"].as_str().unwrap());
    let patched =
        |(verb, asked, code): &(String, String, u64)| verb == "patch" && asked.contains(&path) && *code == 200;
    assert!(node.asked().iter().any(patched), "{path}");
}

#[test]
fn cluster_pod_that_somebody_holds_keeps_its_end() {
    let Some(mut node) = Node::start() else { return };
    let held = |pod: Value| with(pod, json!({"metadata": {"finalizers": ["longshore.dev/held"]}}));
    let deaf = container("app", "trap '' TERM; while :; do sleep 0.1; done");
    node.bind(&held(pod("killed", json!([deaf]), json!({}))));
    node.bind(&held(sleeper("good")));
    let absent = json!({"image": "127.0.0.1:1/no/such:1", "imagePullPolicy": "IfNotPresent"});
    node.bind(&held(pod("pulling", json!([with(container("app", SLEEP), absent)]), json!({}))));
    for name in ["killed", "good"] {
        node.wait_api_ready(name);
    }
    node.wait_api("pulling", "no image", |pod| ["ErrImagePull", "ImagePullBackOff"].contains(&waiting(pod, "app")));
    let wanted = [("killed", "Failed"), ("good", "Succeeded"), ("pulling", "Failed")];
    for (name, _) in wanted {
        node.cluster.delete(&node.one("pods", name), None);
    }
    let over = |pod: &Value| pod["metadata"]["deletionGracePeriodSeconds"] == 0;
    let ended = wanted.map(|(name, wanted)| node.wait_api(name, "ended", |pod| phase(pod) == wanted && over(pod)));
    let [killed, good, pulling] = &ended;
    for (pod, code) in [(killed, 137), (good, 0)] {
        assert_eq!(status(pod, "app")["state"]["terminated"]["exitCode"], code, "{}", pod["status"]);
        assert!(pod["status"]["podIPs"][0]["ip"].is_string() && !is_ready(pod), "{}", pod["status"]);
    }
    assert!(!condition(pulling, "Ready"), "{}", pulling["status"]);
    for pod in &ended {
        crate::bed::cluster::until("nothing of it runs", || node.in_docker(pod).is_empty().then_some(()));
    }
    // So it stays as long as somebody holds them, whatever becomes of the agent.
    node.kill();
    node.begin();
    node.bind(&sleeper("later"));
    node.wait_api_ready("later");
    for before in &ended {
        let now = node.cluster.get(&node.one("pods", before["metadata"]["name"].as_str().unwrap())).unwrap();
        assert_eq!(now["status"], before["status"]);
        assert!(node.in_docker(before).is_empty());
        let path = node.one("pods", before["metadata"]["name"].as_str().unwrap());
        node.cluster.patch(&path, &json!({"metadata": {"finalizers": null}}));
        node.wait_api_gone(before);
    }
}

#[test]
fn cluster_pod_whose_image_is_missing_waits() {
    let Some(node) = Node::start() else { return };
    let app =
        with(container("app", SLEEP), json!({"image": "127.0.0.1:1/no/such:1", "imagePullPolicy": "IfNotPresent"}));
    node.bind(&pod("a", json!([app]), json!({})));
    node.wait_api("a", "no image", |pod| ["ErrImagePull", "ImagePullBackOff"].contains(&waiting(pod, "app")));
    node.wait_api_event("a", "Failed", "127.0.0.1:1/no/such:1");
    let never = with(container("app", SLEEP), json!({"image": "longshore.dev/nowhere:1", "imagePullPolicy": "Never"}));
    node.bind(&pod("b", json!([never]), json!({})));
    node.wait_api("b", "no image", |pod| waiting(pod, "app") == "ErrImageNeverPull");
}

#[test]
fn cluster_pod_is_an_endpoint_only_while_it_is_ready() {
    let Some(node) = Node::start() else { return };
    let probe = json!({"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1});
    let app = with(container("app", SLEEP), json!({"readinessProbe": probe}));
    let labelled = with(pod("a", json!([app]), json!({})), json!({"metadata": {"labels": {"app": "a"}}}));
    node.bind(&labelled);
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"selector": {"app": "a"}, "ports": [{"port": 80}]}});
    node.cluster.create(&node.all("services"), &service);
    node.wait_api("a", "Running, and not Ready", |pod| phase(pod) == "Running" && !is_ready(pod));
    let ready = |wanted: bool| {
        let slices =
            format!("{}?labelSelector=kubernetes.io%2Fservice-name%3Ds", node.all("discovery.k8s.io/endpointslices"));
        node.told(|| {
            node.cluster
                .wait(&slices, "an endpoint", |list| list["items"][0]["endpoints"][0]["conditions"]["ready"] == wanted)
        });
    };
    ready(false);
    node.sh("a", "touch /tmp/ready");
    node.wait_api_ready("a");
    ready(true);
    node.sh("a", "rm /tmp/ready");
    ready(false);
}

#[test]
fn cluster_pod_that_does_not_fit_fails() {
    let Some(node) = Node::start() else { return };
    let big = with(container("app", SLEEP), json!({"resources": {"requests": {"cpu": "1000"}}}));
    node.bind(&pod("big", json!([big]), json!({})));
    let big = node.wait_api("big", "refused", |pod| phase(pod) == "Failed");
    assert_eq!(big["status"]["reason"], "OutOfcpu", "{}", big["status"]);
}

#[test]
fn cluster_pod_gets_what_others_advertise_and_no_more() {
    let Some(node) = Node::start() else { return };
    let advertise = |amount: Value| {
        let capacity = json!({"status": {"capacity": {"example.com/dongle": amount}}});
        node.cluster.patch(&format!("{}/status", node.path()), &capacity);
    };
    let dongles = |node: &Value| node["status"]["allocatable"]["example.com/dongle"].clone();
    advertise(json!("3"));
    node.wait_node("allocatable as well", |node| dongles(node) == "3");
    let wants = |name: &str| {
        let two = json!({"example.com/dongle": "2"});
        pod(name, json!([with(container("app", SLEEP), json!({"resources": {"limits": two}}))]), json!({}))
    };
    node.bind(&wants("a"));
    let a = node.wait_api_ready("a");
    node.bind(&wants("b"));
    let b = node.wait_api("b", "refused", |pod| phase(pod) == "Failed");
    assert_eq!(b["status"]["reason"], "OutOfexample.com/dongle", "{}", b["status"]);
    node.cluster.delete(&node.one("pods", "a"), None);
    node.wait_api_gone(&a);
    // A third one, by the scheduler.
    node.cluster.create(&node.all("pods"), &with(wants("c"), json!({"spec": node.selector()})));
    node.wait_api_ready("c");
    advertise(Value::Null);
    node.wait_node("not allocatable any more", |node| dongles(node).is_null());
    node.wait_api_ready("c");
}

#[test]
fn cluster_pod_that_selects_another_node_fails() {
    let Some(node) = Node::start() else { return };
    let elsewhere = json!({"nodeSelector": {"kubernetes.io/hostname": "elsewhere"}});
    node.bind(&pod("elsewhere", json!([container("app", SLEEP)]), elsewhere));
    let elsewhere = node.wait_api("elsewhere", "refused", |pod| phase(pod) == "Failed");
    assert_eq!(elsewhere["status"]["reason"], "NodeAffinity", "{}", elsewhere["status"]);
}

#[test]
fn cluster_pod_ends_at_its_deadline() {
    let Some(node) = Node::start() else { return };
    node.bind(&pod("a", json!([container("app", SLEEP)]), json!({"activeDeadlineSeconds": 3})));
    let a = node.wait_api("a", "failed", |pod| phase(pod) == "Failed");
    assert_eq!(a["status"]["reason"], "DeadlineExceeded", "{}", a["status"]);
    node.wait_api("a", "its container has ended", |pod| status(pod, "app")["state"]["terminated"].is_object());
}

#[test]
fn cluster_pod_keeps_its_restart_count_when_its_record_is_lost() {
    let Some(mut node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    let first = node.wait_api_ready("a");
    node.docker.kill(&id(&first, "app"), "KILL");
    let a = node.wait_api("a", "restarted", |pod| is_ready(pod) && restarts(pod, "app") == 1);
    node.kill();
    for one in node.in_docker(&a) {
        node.docker.remove(one["Id"].as_str().unwrap());
    }
    std::fs::remove_file(node.pod_folder(&a).join("record.json")).unwrap();
    node.begin();
    let again = node.wait_api("a", "another one", |pod| is_ready(pod) && id(pod, "app") != id(&a, "app"));
    assert!(restarts(&again, "app") >= 2, "{}", again["status"]);
    assert_eq!(again["status"]["startTime"], a["status"]["startTime"]);
}

#[test]
fn cluster_pod_tells_who_it_runs_as_and_what_it_mounts() {
    let Some(node) = Node::start() else { return };
    let mounts = json!([{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/r", "readOnly": true}]);
    let app = with(container("app", SLEEP), json!({"volumeMounts": mounts}));
    let security = json!({"runAsUser": 1000, "runAsGroup": 3000, "supplementalGroups": [4000]});
    let volumes = json!([{"name": "v", "emptyDir": {}}]);
    let spec = json!({"securityContext": security, "volumes": volumes, "automountServiceAccountToken": false});
    node.bind(&pod("a", json!([app]), spec));
    let a = node.wait_api_ready("a");
    let told = status(&a, "app");
    let user = &told["user"]["linux"];
    assert_eq!((&user["uid"], &user["gid"]), (&json!(1000), &json!(3000)), "{told}");
    let groups = user["supplementalGroups"].as_array().expect("groups");
    assert!(groups.contains(&json!(4000)), "{told}");
    let read_only = json!({"name": "v", "mountPath": "/r", "readOnly": true, "recursiveReadOnly": "Disabled"});
    assert_eq!(told["volumeMounts"], json!([{"name": "v", "mountPath": "/v"}, read_only]));
}

#[test]
fn cluster_pods_begin_anew_as_their_rules_say() {
    let Some(node) = Node::start() else { return };
    // From 1.36 on the API server keeps what nodes declare, and lets such rules through.
    let Some(declared) = node.object()["status"]["declaredFeatures"].as_array().cloned() else { return };
    assert!(declared.contains(&json!("RestartAllContainersOnContainerExits")), "{declared:?}");
    node.bind(&anew("p"));
    let before = node.wait_api_ready("p");
    node.sh("p", "touch /v/go");
    let seen = node.wait_api("p", "begun anew", |pod| is_ready(pod) && restarts(pod, "other") == 1);
    assert_anew(&seen, &before, 1);
}
