//! From a container's end to the pod's: restart policies, init containers and sidecars, hooks, graces, deadlines.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::bed::{
    Bed,
    pods::{
        SLEEP, anew, assert_anew, condition, container, id, is_ready, job, phase, pod, restarts, status, waiting, with,
    },
    until,
};

/// A hostPath volume that containers write notes into, and its folder.
fn notes(bed: &Bed) -> (Value, Value) {
    let folder = bed.folder.join("notes");
    fs::create_dir_all(&folder).unwrap();
    (json!([{"name": "n", "hostPath": {"path": folder}}]), json!([{"name": "n", "mountPath": "/n"}]))
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn restart_policies_decide_phases() {
    let Some(bed) = Bed::start() else { return };
    for (policy, script) in [("Never", "exit 0"), ("Never", "exit 3"), ("OnFailure", "exit 0")] {
        let name = format!("{}-{}", policy.to_lowercase(), script.replace(' ', "-"));
        bed.apply(&job(&name, policy, script));
    }
    let ended = |name: &str, wanted: &str| {
        let pod = bed.wait(name, wanted, |pod| phase(pod) == wanted);
        assert_eq!(restarts(&pod, "app"), 0);
        assert!(status(&pod, "app")["state"]["terminated"].is_object());
        pod
    };
    let done = ended("never-exit-0", "Succeeded");
    assert_eq!(status(&done, "app")["state"]["terminated"]["reason"], "Completed");
    let ready = done["status"]["conditions"].as_array().unwrap().iter().find(|one| one["type"] == "Ready").cloned();
    assert_eq!(ready.unwrap()["reason"], "PodCompleted");
    ended("never-exit-3", "Failed");
    ended("onfailure-exit-0", "Succeeded");

    let (volumes, mounts) = notes(&bed);
    // As the end-to-end tests of Kubernetes have it: fails once, succeeds once, runs.
    let script = format!("echo x >> /n/$POD; case $(wc -l < /n/$POD) in 1) exit 1;; 2) exit 0;; *) {SLEEP};; esac");
    for (policy, name) in [("Always", "always"), ("OnFailure", "onfailure"), ("Never", "never")] {
        let env = json!([{"name": "POD", "value": name}]);
        let app = with(container("app", &script), json!({"env": env, "volumeMounts": mounts}));
        bed.apply(&pod(name, json!([app]), json!({"restartPolicy": policy, "volumes": volumes})));
    }
    let limit = Duration::from_secs(90);
    let pod = bed.wait_for("never", "Failed", limit, |pod| phase(pod) == "Failed");
    assert_eq!(restarts(&pod, "app"), 0);
    let pod = bed.wait_for("onfailure", "Succeeded", limit, |pod| phase(pod) == "Succeeded");
    assert_eq!(restarts(&pod, "app"), 1);
    let pod = bed.wait_for("always", "runs", limit, |pod| is_ready(pod) && restarts(pod, "app") == 2);
    assert_eq!((phase(&pod), &status(&pod, "app")["lastState"]["terminated"]["exitCode"]), ("Running", &json!(0)));
    // Terminal phases never revert.
    let told = bed.watch.told();
    let mut last = std::collections::BTreeMap::new();
    for (_, pod) in &told.history {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let now = phase(pod).to_owned();
        if let Some(before) = last.insert(name.clone(), now.clone()) {
            assert!(!matches!(before.as_str(), "Succeeded" | "Failed") || before == now, "{name}: {before} → {now}");
        }
    }
}

#[test]
fn restart_in_a_crash_loop_backs_off() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&job("a", "Always", "echo here I go; exit 7"));
    let a = bed.wait("a", "in back-off after a restart", |pod| {
        waiting(pod, "app") == "CrashLoopBackOff" && restarts(pod, "app") >= 1
    });
    let app = status(&a, "app");
    assert_eq!(app["lastState"]["terminated"]["exitCode"], 7);
    assert!(app["state"]["waiting"]["message"].as_str().unwrap().contains("back-off"), "{app}");
    assert_eq!(phase(&a), "Running");
    assert!(!is_ready(&a));
    bed.wait_event("a", "BackOff", "Back-off restarting failed container");
    let table = bed.say(&["get", "pods"]);
    assert!(table.contains("CrashLoopBackOff"), "{table}");
    assert!(bed.say(&["why", "a"]).contains("back-off"));
    assert_eq!(bed.say(&["logs", "-p", "a"]), "here I go\n");
}

#[test]
fn lifecycle_init_containers_run_one_by_one() {
    let Some(bed) = Bed::start() else { return };
    let (volumes, mounts) = notes(&bed);
    let note = |name: &str, text: &str| {
        with(
            container(name, &format!("echo {text} begins >> /n/order; sleep 0.3; echo {text} ends >> /n/order")),
            json!({"volumeMounts": mounts}),
        )
    };
    let app = with(container("app", &format!("echo app >> /n/order; {SLEEP}")), json!({"volumeMounts": mounts}));
    let spec = json!({"volumes": volumes, "initContainers": [note("one", "1"), note("two", "2")]});
    bed.apply(&pod("a", json!([app]), spec));
    let a = bed.wait_ready("a");
    // Running, it may not have come to its first word yet.
    let order =
        until("the app's word", || Some(lines(&bed.folder.join("notes/order"))).filter(|order| order.len() >= 5));
    assert_eq!(order, ["1 begins", "1 ends", "2 begins", "2 ends", "app"]);
    assert_eq!(status(&a, "one")["state"]["terminated"]["reason"], "Completed");
    assert_eq!(status(&a, "one")["ready"], true);
    let told = bed.watch.told();
    assert!(told.history.iter().any(|(_, pod)| waiting(pod, "app") == "PodInitializing"));
}

#[test]
fn lifecycle_a_failing_init_container_fails_the_pod() {
    let Some(bed) = Bed::start() else { return };
    let spec =
        json!({"restartPolicy": "Never", "initContainers": [container("init", "exit 5"), container("second", "true")]});
    bed.apply(&pod("a", json!([container("app", SLEEP)]), spec));
    let a = bed.wait("a", "Failed", |pod| phase(pod) == "Failed");
    assert_eq!(status(&a, "init")["state"]["terminated"]["exitCode"], 5);
    assert_eq!(waiting(&a, "app"), "PodInitializing");
    let conditions = a["status"]["conditions"].as_array().unwrap();
    let initialized = conditions.iter().find(|one| one["type"] == "Initialized").unwrap();
    assert_eq!((&initialized["status"], &initialized["reason"]), (&json!("False"), &json!("ContainersNotInitialized")));
}

#[test]
fn lifecycle_sidecars_start_in_order_and_stop_in_reverse() {
    let Some(bed) = Bed::start() else { return };
    let (volumes, mounts) = notes(&bed);
    let run = |name: &str, more: Value| {
        let script = format!(
            "trap 'echo {name} ends >> /n/order; exit 0' TERM; echo {name} begins >> /n/order; sleep 1000000 & wait"
        );
        with(with(container(name, &script), json!({"volumeMounts": mounts})), more)
    };
    let sidecar = json!({"restartPolicy": "Always"});
    // The second waits for the first to be started, which its probe tells.
    let started = json!({"restartPolicy": "Always",
        "startupProbe": {"exec": {"command": ["test", "-e", "/n/order"]}, "periodSeconds": 1, "timeoutSeconds": 20,
            "failureThreshold": 30}});
    let spec = json!({"volumes": volumes, "terminationGracePeriodSeconds": 20,
        "initContainers": [run("first", started), run("second", sidecar)]});
    bed.apply(&pod("a", json!([run("app", json!({}))]), spec));
    let a = bed.wait_ready("a");
    assert!(status(&a, "first")["ready"] == true && status(&a, "second")["started"] == true);
    // Their traps are set before they say so.
    until("all three have begun", || (lines(&bed.folder.join("notes/order")).len() == 3).then_some(()));
    bed.delete("a");
    bed.wait_gone("a");
    let order = lines(&bed.folder.join("notes/order"));
    assert_eq!(order, ["first begins", "second begins", "app begins", "app ends", "second ends", "first ends"]);
}

#[test]
fn lifecycle_hooks_of_sidecars_run_before_the_app_has_ended() {
    let Some(bed) = Bed::start() else { return };
    let (volumes, mounts) = notes(&bed);
    let run = |name: &str, lasts: u32| {
        let script = format!(
            "trap 'sleep {lasts}; echo {name} ends >> /n/order; exit 0' TERM; echo {name} begins >> /n/order; \
             sleep 1000000 & wait"
        );
        with(container(name, &script), json!({"volumeMounts": mounts}))
    };
    let sidecar = |name: &str| {
        let hook = json!(["sh", "-c", format!("echo {name} told >> /n/order")]);
        with(run(name, 0), json!({"restartPolicy": "Always", "lifecycle": {"preStop": {"exec": {"command": hook}}}}))
    };
    let spec = json!({"volumes": volumes, "terminationGracePeriodSeconds": 20,
        "initContainers": [sidecar("first"), sidecar("second")]});
    // Long enough for two commands in containers of a busy machine.
    bed.apply(&pod("a", json!([run("app", 8)]), spec));
    bed.wait_ready("a");
    until("all three have begun", || (lines(&bed.folder.join("notes/order")).len() == 3).then_some(()));
    bed.delete("a");
    bed.wait_gone("a");
    let mut order = lines(&bed.folder.join("notes/order"));
    assert_eq!(order.len(), 8, "{order:?}");
    order[3..5].sort();
    assert_eq!(order[3..], ["first told", "second told", "app ends", "second ends", "first ends"]);
}

#[test]
fn lifecycle_all_containers_share_one_grace_period() {
    let Some(bed) = Bed::start() else { return };
    let deaf = |name: &str| container(name, "trap '' TERM; while true; do sleep 1; done");
    let sidecar = |name: &str| with(deaf(name), json!({"restartPolicy": "Always"}));
    let spec = json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 4,
        "initContainers": [sidecar("first"), sidecar("second")]});
    bed.apply(&pod("a", json!([container("app", "sleep 2")]), spec));
    bed.wait_ready("a");
    bed.wait("a", "the app has ended", |pod| status(pod, "app")["state"]["terminated"].is_object());
    bed.wait("a", "Succeeded", |pod| phase(pod) == "Succeeded");
    until("nothing of it runs", || bed.containers("a").iter().all(|one| one["State"] != "running").then_some(()));
    // As Docker has it: the test may have seen it late.
    let ended = |container: &str| {
        let ended = bed.inspect("a", container)["State"]["FinishedAt"].as_str().unwrap().to_owned();
        ended.parse::<jiff::Timestamp>().unwrap()
    };
    let last = ended("first").max(ended("second"));
    let took = last.duration_since(ended("app")).as_secs_f64();
    assert!((3.5..11.0).contains(&took), "{took} s");
}

#[test]
fn lifecycle_sidecars_do_not_keep_a_job_from_succeeding() {
    let Some(bed) = Bed::start() else { return };
    let sidecar = with(container("side", SLEEP), json!({"restartPolicy": "Always"}));
    let spec = json!({"restartPolicy": "Never", "initContainers": [sidecar]});
    bed.apply(&pod("a", json!([container("app", "sleep 1")]), spec));
    let a = bed.wait("a", "Succeeded", |pod| phase(pod) == "Succeeded");
    assert_eq!(restarts(&a, "side"), 0);
    until("nothing of it runs", || bed.containers("a").iter().all(|one| one["State"] != "running").then_some(()));
}

#[test]
fn lifecycle_hooks_are_called() {
    let Some(bed) = Bed::start() else { return };
    let (volumes, mounts) = notes(&bed);
    let hooks = json!({
        "postStart": {"exec": {"command": ["sh", "-c", "sleep 1; echo post >> /n/order"]}},
        "preStop": {"exec": {"command": ["sh", "-c", "echo pre >> /n/order"]}},
    });
    let script = "trap 'echo term >> /n/order; exit 0' TERM; sleep 1000000 & wait";
    let app = with(container("app", script), json!({"lifecycle": hooks, "volumeMounts": mounts}));
    bed.apply(&pod("a", json!([app]), json!({"volumes": volumes, "terminationGracePeriodSeconds": 20})));
    let a = bed.wait_ready("a");
    let order = bed.folder.join("notes/order");
    assert_eq!(lines(&order), ["post"], "it is not running before its hook is done");
    assert!(condition(&a, "Ready"));
    bed.delete("a");
    bed.wait_gone("a");
    assert_eq!(lines(&order), ["post", "pre", "term"]);
}

#[test]
fn lifecycle_a_failing_post_start_hook_ends_the_container() {
    let Some(bed) = Bed::start() else { return };
    let hooks = json!({"postStart": {"exec": {"command": ["sh", "-c", "echo no good; exit 3"]}}});
    let app = with(container("app", SLEEP), json!({"lifecycle": hooks}));
    bed.apply(&pod("a", json!([app]), json!({"restartPolicy": "Never"})));
    bed.wait_event("a", "FailedPostStartHook", "");
    bed.wait("a", "ended", |pod| matches!(phase(pod), "Failed" | "Succeeded"));
}

#[test]
fn lifecycle_http_and_sleep_hooks() {
    let Some(bed) = Bed::start() else { return };
    let hooks = json!({
        "postStart": {"sleep": {"seconds": 1}},
        "preStop": {"httpGet": {"path": "/cgi-bin/bye", "port": 8080}},
    });
    let (volumes, mounts) = notes(&bed);
    let script = "mkdir -p /tmp/w/cgi-bin; \
        printf '#!/bin/sh\\necho asked >> /n/order\\nprintf \"Content-Type: text/plain\\\\r\\\\n\\\\r\\\\nok\"\\n' > /tmp/w/cgi-bin/bye; \
        chmod 755 /tmp/w/cgi-bin/bye; trap 'exit 0' TERM; httpd -f -p 8080 -h /tmp/w & wait";
    let probe = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    let app =
        with(container("app", script), json!({"lifecycle": hooks, "volumeMounts": mounts, "readinessProbe": probe}));
    bed.apply(&pod("a", json!([app]), json!({"volumes": volumes, "terminationGracePeriodSeconds": 20})));
    bed.wait_ready("a");
    bed.delete("a");
    bed.wait_gone("a");
    assert_eq!(lines(&bed.folder.join("notes/order")), ["asked"]);
}

#[test]
fn lifecycle_grace_is_kept_and_ends() {
    let Some(bed) = Bed::start() else { return };
    let deaf = container("app", "trap '' TERM; while true; do sleep 1; done");
    bed.apply(&pod("a", json!([deaf]), json!({"terminationGracePeriodSeconds": 3})));
    bed.wait_ready("a");
    let before = Instant::now();
    bed.delete("a");
    bed.wait_gone("a");
    assert!(before.elapsed() >= Duration::from_millis(2800), "killed after {:?}", before.elapsed());
}

#[test]
fn lifecycle_a_deadline_ends_the_pod() {
    let Some(bed) = Bed::start() else { return };
    let spec = json!({"activeDeadlineSeconds": 3, "terminationGracePeriodSeconds": 1});
    bed.apply(&pod("a", json!([container("app", SLEEP)]), spec));
    let a = bed.wait("a", "Failed", |pod| phase(pod) == "Failed");
    assert_eq!(a["status"]["reason"], "DeadlineExceeded");
    until("nothing of it runs", || bed.containers("a").iter().all(|one| one["State"] != "running").then_some(()));
}

#[test]
fn lifecycle_a_dead_sandbox_renews_the_pod() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&pod("a", json!([container("app", SLEEP)]), json!({})));
    let a = bed.wait_ready("a");
    let sandbox = bed.sandbox("a")["Id"].as_str().unwrap().to_owned();
    bed.docker.kill(&sandbox, "KILL");
    let limit = Duration::from_secs(60);
    let again =
        bed.wait_for("a", "ready in a new sandbox", limit, |pod| is_ready(pod) && id(pod, "app") != id(&a, "app"));
    assert_eq!(crate::bed::pods::uid(&again), crate::bed::pods::uid(&a));
    bed.wait_event("a", "SandboxChanged", "");
    until("one sandbox is left", || (bed.sandboxes("a").len() == 1).then_some(()));
    assert_ne!(bed.sandbox("a")["Id"], sandbox.as_str());
}

#[test]
fn restart_a_killed_container_comes_back() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&pod("a", json!([container("app", SLEEP), container("other", SLEEP)]), json!({})));
    let a = bed.wait_ready("a");
    bed.docker.kill(&id(&a, "app"), "KILL");
    let again = bed.wait("a", "ready again", |pod| is_ready(pod) && restarts(pod, "app") == 1);
    assert_eq!(status(&again, "app")["lastState"]["terminated"]["exitCode"], 137);
    assert_eq!(id(&again, "other"), id(&a, "other"));
    // Removed behind the agent's back: it comes back as well, and is counted.
    bed.docker.remove(&id(&again, "app"));
    let third =
        bed.wait_for("a", "ready once more", Duration::from_secs(60), |pod| is_ready(pod) && restarts(pod, "app") == 2);
    assert_eq!(id(&third, "other"), id(&a, "other"));
}

#[test]
fn lifecycle_per_container_restart_rules() {
    let Some(bed) = Bed::start() else { return };
    let rules = json!({"restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]});
    let (volumes, mounts) = notes(&bed);
    let script = "echo x >> /n/n; test $(wc -l < /n/n) = 1 && exit 42; exit 3";
    let app = with(with(container("app", script), rules), json!({"volumeMounts": mounts}));
    bed.apply(&pod("a", json!([app]), json!({"restartPolicy": "Never", "volumes": volumes})));
    let a = bed.wait("a", "Failed", |pod| phase(pod) == "Failed");
    assert_eq!(restarts(&a, "app"), 1);
    assert_eq!(status(&a, "app")["state"]["terminated"]["exitCode"], 3);
}

#[test]
fn lifecycle_all_containers_begin_anew_in_their_sandbox() {
    let Some(mut bed) = Bed::start() else { return };
    bed.apply(&anew("p"));
    let mut before = bed.wait_ready("p");
    let sandbox = bed.sandbox("p")["Id"].clone();
    for times in [1, 2] {
        bed.exec("p", "other", "touch /v/go");
        if times == 2 {
            // In the midst of it, or before or after.
            bed.kill();
            bed.begin();
        }
        let now = bed.wait("p", "begun anew", |pod| is_ready(pod) && restarts(pod, "other") == times);
        assert_anew(&now, &before, times);
        assert_eq!(bed.sandbox("p")["Id"], sandbox);
        assert_eq!(bed.exec("p", "other", "cat /v/inits").lines().count() as i64, times + 1);
        before = now;
    }
    let conditions = before["status"]["conditions"].as_array().unwrap();
    let restarting = conditions.iter().find(|condition| condition["type"] == "AllContainersRestarting").unwrap();
    assert_eq!(restarting["status"], "False");
    assert_eq!(bed.containers("p").len(), 5, "the sandbox, and nothing is left of those before");
}
