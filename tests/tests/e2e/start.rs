//! A pod starts: its sandbox, names, labels, files, environment, logs; and what is left behind of containers.

use std::fs;

use serde_json::{Value, json};

use crate::bed::{
    Bed, NODE,
    pods::{SLEEP, condition, container, id, is_ready, job, phase, pod, restarts, sleeper, status, uid, with},
    until,
};

#[test]
fn start_a_pod_becomes_ready_and_goes() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&with(sleeper("web"), json!({"metadata": {"labels": {"app": "web"}, "annotations": {"note": "x"}}})));
    let pod = bed.wait_ready("web");
    assert_eq!(phase(&pod), "Running");
    assert_eq!(pod["metadata"]["namespace"], "default");
    assert_eq!(uid(&pod).len(), 32);
    assert_eq!(pod["metadata"]["annotations"]["kubernetes.io/config.source"], "file");
    let seen = pod["metadata"]["annotations"]["kubernetes.io/config.seen"].as_str().unwrap();
    assert!(seen.parse::<jiff::Timestamp>().is_ok_and(|seen| seen <= jiff::Timestamp::now()), "{seen}");
    for kind in ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"] {
        assert!(condition(&pod, kind), "{kind}");
    }
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    assert!(pod["status"]["startTime"].is_string());

    let found = bed.inspect("web", "app");
    let labels = &found["Config"]["Labels"];
    assert_eq!(found["Name"], format!("/k8s_app_web-{NODE}_default_{}_0", uid(&pod)).as_str());
    let sandbox = bed.sandbox("web");
    assert_eq!(sandbox["Name"], format!("/k8s_POD_web-{NODE}_default_{}_0", uid(&pod)).as_str());
    assert_eq!(labels["io.kubernetes.docker.type"], "container");
    assert_eq!(labels["io.kubernetes.sandbox.id"], sandbox["Id"]);
    assert_eq!(labels["io.kubernetes.pod.name"], format!("web-{NODE}").as_str());
    assert_eq!(labels["io.kubernetes.pod.namespace"], "default");
    assert_eq!(labels["io.kubernetes.pod.uid"], uid(&pod));
    assert_eq!(labels["io.kubernetes.container.name"], "app");
    assert_eq!(labels["annotation.io.kubernetes.container.restartCount"], "0");
    assert!(labels["annotation.io.kubernetes.container.hash"].is_string());
    let of_sandbox = &sandbox["Config"]["Labels"];
    assert_eq!(of_sandbox["io.kubernetes.docker.type"], "podsandbox");
    assert_eq!(of_sandbox["io.kubernetes.container.name"], "POD");
    assert_eq!(of_sandbox["app"], "web");
    assert_eq!(of_sandbox["annotation.note"], "x");
    assert_eq!(found["HostConfig"]["NetworkMode"], format!("container:{}", sandbox["Id"].as_str().unwrap()).as_str());
    assert_eq!(found["HostConfig"]["RestartPolicy"]["Name"].as_str().filter(|name| *name != "no").unwrap_or(""), "");
    // The pause image comes from the binary: nothing was pulled.
    assert!(sandbox["Config"]["Image"].as_str().unwrap().starts_with("longshore.dev/pause:"));

    let reasons: Vec<Value> = bed.events("web").iter().map(|event| event["reason"].clone()).collect();
    for reason in ["Created", "Started"] {
        assert!(reasons.contains(&json!(reason)), "{reasons:?}");
    }

    let folder = bed.pod_folder(&pod);
    assert!(folder.is_dir());
    bed.delete("web");
    bed.wait_gone("web");
    until("the pod's folder is removed", || (!folder.exists()).then_some(()));
    until("no mount is left", || bed.mounts().is_empty().then_some(()));
    let cgroup = format!("pod{}", uid(&pod));
    until("its cgroups are removed", || {
        let left = crate::bed::cgroups().into_iter().any(|path| path.to_string_lossy().contains(&cgroup));
        (!left).then_some(())
    });
}

#[test]
fn start_hosts_resolver_and_hostname() {
    let Some(bed) = Bed::start_with(&["--cluster-dns=10.96.0.10", "--cluster-domain=cluster.local"]) else { return };
    let aliases = json!([{"ip": "10.1.2.3", "hostnames": ["one.example", "two.example"]}]);
    bed.apply(&pod("a", json!([container("app", SLEEP)]), json!({"hostAliases": aliases})));
    let dns =
        json!({"nameservers": ["10.0.0.9"], "searches": ["x.example"], "options": [{"name": "ndots", "value": "2"}]});
    let spec = json!({"hostname": "other", "subdomain": "sub", "dnsPolicy": "None", "dnsConfig": dns});
    bed.apply(&pod("b", json!([container("app", SLEEP)]), spec));

    let a = bed.wait_ready("a");
    let hosts = bed.exec("a", "app", "cat /etc/hosts");
    assert!(hosts.starts_with("# Kubernetes-managed hosts file."), "{hosts}");
    let ip = a["status"]["podIP"].as_str().unwrap();
    assert!(hosts.contains(&format!("{ip}\ta-{NODE}")), "{hosts}");
    assert!(hosts.contains("10.1.2.3\tone.example\ttwo.example"), "{hosts}");
    let resolver = bed.exec("a", "app", "cat /etc/resolv.conf");
    assert!(resolver.contains("nameserver 10.96.0.10"), "{resolver}");
    assert!(resolver.contains("search default.svc.cluster.local svc.cluster.local cluster.local"), "{resolver}");
    assert!(resolver.contains("options ndots:5"), "{resolver}");
    assert_eq!(bed.exec("a", "app", "hostname").trim(), format!("a-{NODE}"));

    bed.wait_ready("b");
    let resolver = bed.exec("b", "app", "cat /etc/resolv.conf");
    assert!(resolver.contains("nameserver 10.0.0.9") && !resolver.contains("10.96"), "{resolver}");
    assert!(resolver.contains("search x.example") && resolver.contains("options ndots:2"), "{resolver}");
    assert_eq!(bed.exec("b", "app", "hostname").trim(), "other");
    let hosts = bed.exec("b", "app", "cat /etc/hosts");
    assert!(hosts.contains("\tother.sub.default.svc.cluster.local\tother"), "{hosts}");
}

#[test]
fn start_takes_the_nodes_names_as_they_are_then() {
    let Some(mut bed) = Bed::new() else { return };
    let names = bed.folder.join("resolv.conf");
    fs::write(&names, "nameserver 10.1.0.1\nsearch one.example\n").unwrap();
    bed.flags = vec![format!("--resolv-conf={}", names.display())];
    bed.begin();
    let named = |name: &str| {
        let file = bed.exec(name, "app", "cat /etc/resolv.conf");
        file.lines().next().unwrap_or_default().to_owned()
    };
    bed.apply(&sleeper("a"));
    let a = bed.wait_ready("a");
    assert_eq!(named("a"), "nameserver 10.1.0.1");
    fs::write(&names, "nameserver 10.2.0.1\n").unwrap();
    bed.apply(&sleeper("b"));
    bed.wait_ready("b");
    assert_eq!(named("b"), "nameserver 10.2.0.1");
    // What runs keeps what it has, over restarts of its container, too.
    bed.docker.kill(&id(&a, "app"), "KILL");
    bed.wait("a", "ready again", |pod| is_ready(pod) && restarts(pod, "app") == 1);
    assert_eq!(named("a"), "nameserver 10.1.0.1");
}

#[test]
fn start_logs_in_json() {
    let Some(bed) = Bed::start_with(&["--logging-format=json"]) else { return };
    bed.apply(&sleeper("a"));
    bed.wait_ready("a");
    let log = until("it tells of the start", || {
        let log = fs::read_to_string(bed.folder.join("log")).unwrap();
        (log.contains("\"Started\"") && log.ends_with('\n')).then_some(log)
    });
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect();
    let started = lines.iter().find(|line| line["reason"] == "Started").unwrap();
    assert_eq!((&started["pod"], &started["container"]), (&json!(format!("default/a-{NODE}")), &json!("app")));
    assert!(started["level"] == "INFO" && started["message"].as_str().unwrap().contains("Container started"));
}

#[test]
fn start_environment() {
    let Some(bed) = Bed::start() else { return };
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"},
        "data": {"color": "blue", "9bad": "x"}});
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"key": "s3cr3t"}});
    bed.apply(&map);
    bed.apply(&secret);
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let env = json!([
        {"name": "PLAIN", "value": "one"},
        {"name": "NESTED", "value": "$(PLAIN)-$$(PLAIN)-$(NOT_THERE)"},
        {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "key"}}},
        {"name": "ABSENT", "valueFrom": {"secretKeyRef": {"name": "none", "key": "key", "optional": true}}},
        {"name": "MY_NAME", "valueFrom": field("metadata.name")},
        {"name": "MY_NS", "valueFrom": field("metadata.namespace")},
        {"name": "MY_UID", "valueFrom": field("metadata.uid")},
        {"name": "MY_NODE", "valueFrom": field("spec.nodeName")},
        {"name": "MY_IP", "valueFrom": field("status.podIP")},
        {"name": "MY_HOST", "valueFrom": field("status.hostIP")},
        {"name": "MY_LABEL", "valueFrom": field("metadata.labels['app']")},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
        {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory", "divisor": "1Mi"}}},
    ]);
    let app = with(
        container("app", &format!("env; {SLEEP}")),
        json!({"env": env,
            "envFrom": [{"configMapRef": {"name": "settings"}}, {"prefix": "S_", "secretRef": {"name": "keys"}}],
            "args": ["$(PLAIN)"],
            "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"memory": "32Mi", "cpu": "10m"}}}),
    );
    bed.apply(&with(pod("a", json!([app]), json!({})), json!({"metadata": {"labels": {"app": "web"}}})));
    let a = bed.wait_ready("a");
    let environment = bed.exec("a", "app", "cat /proc/1/environ | tr '\\0' '\\n'");
    let has = |line: &str| assert!(environment.lines().any(|one| one == line), "no {line} in\n{environment}");
    has("PLAIN=one");
    has("NESTED=one-$(PLAIN)-$(NOT_THERE)");
    has("COLOR=blue");
    has("KEY=s3cr3t");
    has("color=blue");
    has("S_key=s3cr3t");
    has(&format!("MY_NAME=a-{NODE}"));
    has("MY_NS=default");
    has(&format!("MY_UID={}", uid(&a)));
    has(&format!("MY_NODE={NODE}"));
    has(&format!("MY_IP={}", a["status"]["podIP"].as_str().unwrap()));
    has(&format!("MY_HOST={}", a["status"]["hostIP"].as_str().unwrap()));
    has("MY_LABEL=web");
    has("CPU=500");
    has("MEMORY=32");
    assert!(!environment.contains("ABSENT"), "{environment}");
    assert_eq!(bed.inspect("a", "app")["Args"].as_array().unwrap().last().unwrap(), "one");
}

#[test]
fn start_waits_for_what_the_environment_needs() {
    let Some(bed) = Bed::start() else { return };
    let env = json!([{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "late", "key": "key"}}}]);
    bed.apply(&pod("a", json!([with(container("app", SLEEP), json!({"env": env}))]), json!({})));
    let a = bed.wait("a", "waits for its secret", |pod| {
        status(pod, "app")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    });
    assert!(status(&a, "app")["state"]["waiting"]["message"].to_string().contains("late"), "{a}");
    bed.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "late"}, "stringData": {"key": "v"}}));
    bed.wait_ready("a");
    assert_eq!(restarts(&bed.pod("a").unwrap(), "app"), 0);
}

#[test]
fn start_termination_messages() {
    let Some(bed) = Bed::start() else { return };
    let run = |name: &str, script: &str, more: Value| {
        bed.apply(&pod(name, json!([with(container("app", script), more)]), json!({"restartPolicy": "Never"})));
    };
    run("file", "printf done > /dev/termination-log", json!({}));
    run("own", "printf mine > /tmp/message; exit 4", json!({"terminationMessagePath": "/tmp/message"}));
    let fallback = json!({"terminationMessagePolicy": "FallbackToLogsOnError"});
    run("logs", "echo the last words; exit 3", fallback.clone());
    run("quiet", "echo not an error", fallback);
    run("long", "head -c 20000 /dev/zero | tr '\\0' x > /dev/termination-log", json!({}));
    let message = |name: &str| {
        let pod = bed.wait(name, "ended", |pod| matches!(phase(pod), "Succeeded" | "Failed"));
        let ended = status(&pod, "app")["state"]["terminated"].clone();
        (ended["exitCode"].as_i64().unwrap(), ended["message"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(message("file"), (0, "done".to_owned()));
    assert_eq!(message("own"), (4, "mine".to_owned()));
    assert_eq!(message("logs"), (3, "the last words\n".to_owned()));
    assert_eq!(message("quiet"), (0, String::new()));
    assert_eq!(message("long").1.len(), 4096);
}

#[test]
fn start_logs_are_linked_and_read() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&pod("a", json!([container("app", &format!("echo first; echo second; {SLEEP}"))]), json!({})));
    let a = bed.wait_ready("a");
    let link = bed.folder.join(format!("l/pods/default_a-{NODE}_{}/app/0.log", uid(&a)));
    until("the log link", || fs::symlink_metadata(&link).ok().filter(fs::Metadata::is_symlink));
    let target = bed.inspect("a", "app")["LogPath"].as_str().unwrap().to_owned();
    assert_eq!(fs::read_link(&link).unwrap().to_str().unwrap(), target);
    let collector = bed.folder.join(format!("l/containers/a-{NODE}_default_app-{}.log", id(&a, "app")));
    assert_eq!(until("the collector's link", || fs::read_link(&collector).ok()), link);
    until("both lines in the log", || (bed.say(&["logs", "a"]) == "first\nsecond\n").then_some(()));
    assert_eq!(bed.say(&["logs", "--tail=1", "a"]), "second\n");
    assert_eq!(bed.say(&["logs", "a", "-c", "app"]), "first\nsecond\n");
    bed.delete("a");
    bed.wait_gone("a");
    until("the links are removed", || (!link.is_symlink() && !collector.is_symlink()).then_some(()));
}

#[test]
fn start_one_dead_container_is_kept() {
    let Some(bed) = Bed::start() else { return };
    let volume = bed.folder.join("count");
    fs::create_dir(&volume).unwrap();
    // Two quick ends, then it stays.
    let script = format!("echo x >> /c/n; test $(wc -l < /c/n) -ge 3 || exit 1; {SLEEP}");
    let app = with(container("app", &script), json!({"volumeMounts": [{"name": "c", "mountPath": "/c"}]}));
    let spec = json!({"volumes": [{"name": "c", "hostPath": {"path": volume}}]});
    bed.apply(&pod("a", json!([app]), spec));
    let limit = std::time::Duration::from_secs(60);
    let a = bed.wait_for("a", "runs after two restarts", limit, |pod| is_ready(pod) && restarts(pod, "app") == 2);
    assert_eq!(status(&a, "app")["lastState"]["terminated"]["exitCode"], 1);
    let running = bed.inspect("a", "app");
    assert_eq!(running["Config"]["Labels"]["annotation.io.kubernetes.container.restartCount"], "2");
    until("one dead container is left", || {
        let left = bed.containers("a").into_iter().filter(|one| one["Labels"]["io.kubernetes.container.name"] == "app");
        (left.count() == 2).then_some(())
    });
}

#[test]
fn start_an_exit_code_is_shown() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&job("a", "Never", "exit 42"));
    bed.apply(&pod(
        "b",
        json!([with(container("app", ""), json!({"command": ["/no/such/program"]}))]),
        json!({"restartPolicy": "Never"}),
    ));
    let a = bed.wait("a", "Failed", |pod| phase(pod) == "Failed");
    let ended = &status(&a, "app")["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(42), &json!("Error")));
    assert!(ended["startedAt"].is_string() && ended["finishedAt"].is_string());
    let b = bed.wait("b", "Failed", |pod| phase(pod) == "Failed");
    let ended = &status(&b, "app")["state"]["terminated"];
    assert!(ended["exitCode"].as_i64().unwrap() >= 127, "{ended}");
    assert!(ended["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{ended}");
}
