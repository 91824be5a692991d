//! Probes of every kind, through their plugins.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::bed::{
    Bed, limit,
    pods::{SLEEP, container, id, is_ready, pod, restarts, status, with},
    until,
};

fn probed(name: &str, script: &str, probes: Value) -> Value {
    pod(name, json!([with(container("app", script), probes)]), json!({}))
}

#[test]
fn probes_http_readiness_comes_and_goes() {
    let Some(bed) = Bed::start() else { return };
    let script = "mkdir -p /tmp/w; trap 'exit 0' TERM; httpd -f -p 8080 -h /tmp/w & wait";
    let probe = json!({"httpGet": {"path": "/ok", "port": "web"}, "periodSeconds": 1, "failureThreshold": 2});
    bed.apply(&probed(
        "a",
        script,
        json!({"readinessProbe": probe, "ports": [{"name": "web", "containerPort": 8080}]}),
    ));
    let a = bed.wait("a", "runs", |pod| status(pod, "app")["started"] == true);
    assert!(!is_ready(&a));
    bed.wait_event("a", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404");
    bed.exec("a", "app", "echo fine > /tmp/w/ok");
    let ready = bed.wait_ready("a");
    bed.exec("a", "app", "rm /tmp/w/ok");
    bed.wait("a", "not ready any more", |pod| !is_ready(pod));
    bed.exec("a", "app", "echo fine > /tmp/w/ok");
    let again = bed.wait_ready("a");
    assert_eq!((id(&ready, "app"), restarts(&again, "app")), (id(&again, "app"), 0));
    let text = bed.say(&["describe", "pod", "a"]);
    assert!(text.contains("http") && text.contains("Readiness"), "{text}");
}

#[test]
fn probes_tcp_and_failing_liveness_restarts() {
    let Some(bed) = Bed::start() else { return };
    let tcp = |port: u16| json!({"tcpSocket": {"port": port}, "periodSeconds": 1, "failureThreshold": 2});
    bed.apply(&probed("a", "trap 'exit 0' TERM; nc -ll -p 7000 -e cat & wait", json!({"readinessProbe": tcp(7000)})));
    bed.wait_ready("a");
    bed.apply(&probed("b", SLEEP, json!({"livenessProbe": tcp(7001)})));
    let b = bed.wait("b", "restarted", |pod| restarts(pod, "app") == 1);
    assert!(status(&b, "app")["lastState"]["terminated"].is_object());
    bed.wait_event("b", "Unhealthy", "Liveness probe failed");
    bed.wait_event("b", "Killing", "failed liveness probe, will be restarted");
    assert_eq!(restarts(&bed.pod("a").unwrap(), "app"), 0);
}

#[test]
fn probes_exec_and_startup_holds_the_others() {
    let Some(bed) = Bed::start() else { return };
    // Started after two seconds; before that the liveness probe, which would fail, must not run.
    let script =
        "touch /tmp/alive-not-yet; (sleep 2; touch /tmp/alive /tmp/started) & trap 'exit 0' TERM; sleep 100000 & wait";
    let exec = |file: &str, failures: u32| {
        json!({"exec": {"command": ["test", "-e", file]}, "periodSeconds": 1,
        // An exec takes more than a second on an emulated machine.
        "timeoutSeconds": 20, "failureThreshold": failures})
    };
    bed.apply(&probed(
        "a",
        script,
        json!({"startupProbe": exec("/tmp/started", 30), "livenessProbe": exec("/tmp/alive", 1),
            "readinessProbe": exec("/tmp/ready", 1)}),
    ));
    let a = bed.wait("a", "started", |pod| status(pod, "app")["started"] == true);
    assert_eq!(restarts(&a, "app"), 0);
    assert!(!is_ready(&a));
    bed.exec("a", "app", "touch /tmp/ready");
    bed.wait_ready("a");
    bed.exec("a", "app", "rm /tmp/alive");
    let again = bed.wait("a", "restarted", |pod| restarts(pod, "app") == 1);
    assert!(!is_ready(&again), "not ready before the new one's probes say so");
}

#[test]
fn probes_a_startup_that_never_succeeds_restarts() {
    let Some(bed) = Bed::start() else { return };
    let probe = json!({"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 2});
    bed.apply(&probed("a", SLEEP, json!({"startupProbe": probe})));
    bed.wait("a", "restarted", |pod| restarts(pod, "app") == 1);
    bed.wait_event("a", "Unhealthy", "Startup probe failed");
}

#[test]
fn probes_grpc() {
    let Some(bed) = Bed::start() else { return };
    let Ok(image) = std::env::var("LONGSHORE_TEST_EXAMPLE_IMAGE") else {
        crate::bed::skip("LONGSHORE_TEST_EXAMPLE_IMAGE is not set: no gRPC server to probe");
        return;
    };
    let app = json!({"name": "app", "image": image, "imagePullPolicy": "Never", "command": ["grpc-health", "50051", "2"],
        "readinessProbe": {"grpc": {"port": 50051}, "periodSeconds": 1}});
    bed.apply(&pod("a", json!([app]), json!({})));
    bed.wait_event("a", "Unhealthy", "NOT_SERVING");
    bed.wait_ready("a");
}

#[test]
fn probes_by_annotation_below_a_second() {
    let Some(bed) = Bed::start() else { return };
    let app = container("app", "mkdir -p /tmp/w; trap 'exit 0' TERM; httpd -f -p 8080 -h /tmp/w & wait");
    let annotation = "plugin: http\nconfig: {port: 8080, path: /ok}\nperiod: 200ms\nfailureThreshold: 1\n";
    let annotated = json!({"metadata": {"annotations": {"probe.longshore.dev/app.readiness": annotation}}});
    bed.apply(&with(pod("a", json!([app]), json!({})), annotated));
    bed.wait("a", "runs", |pod| status(pod, "app")["started"] == true);
    let before = Instant::now();
    bed.exec("a", "app", "mkdir -p /tmp/w; echo fine > /tmp/w/ok");
    bed.wait_ready("a");
    let mut took = before.elapsed();
    // The machine is busy with other tests: the best of some tries is what the period allows.
    let enough = limit(Duration::from_millis(900));
    for _ in 0..20 {
        if took < enough {
            break;
        }
        bed.exec("a", "app", "rm /tmp/w/ok");
        bed.wait("a", "not ready", |pod| !is_ready(pod));
        bed.exec("a", "app", "mkdir -p /tmp/w; echo fine > /tmp/w/ok");
        let before = Instant::now();
        bed.wait_ready("a");
        took = took.min(before.elapsed());
    }
    assert!(took < enough, "at best {took:?}");
}

#[test]
fn probes_of_an_unknown_plugin_keep_the_pod_pending() {
    let Some(bed) = Bed::start() else { return };
    let annotate = |value: &str| json!({"metadata": {"annotations": {"probe.longshore.dev/app.readiness": value}}});
    bed.apply(&with(pod("a", json!([container("app", SLEEP)]), json!({})), annotate("plugin: nosuch\n")));
    until("an event names the plugin", || {
        bed.events("a")
            .iter()
            .any(|event| event["kind"] == "Warning" && event.to_string().contains("nosuch"))
            .then_some(())
    });
    bed.wait("a", "Pending, with the reason", |pod| {
        crate::bed::pods::phase(pod) == "Pending" && pod["status"].to_string().contains("nosuch")
    });
    assert!(bed.containers("a").is_empty(), "no container is started");
    assert!(bed.say(&["why", "a"]).contains("nosuch"));
    bed.apply(&with(
        pod("a", json!([container("app", SLEEP)]), json!({})),
        annotate("plugin: exec\nconfig: {command: [\"true\"]}\n"),
    ));
    bed.wait_ready("a");
}

#[test]
fn probes_that_time_out_leave_no_process() {
    let Some(bed) = Bed::start() else { return };
    // A name that no other process has, and that children of the command carry as well: one of its session, one in a session of its
    // own, and an orphan.
    let mark = format!("7{:07}", std::process::id());
    let command = format!(
        "test -e /tmp/enough && exit 0; sleep {mark} & setsid sleep {mark} & (setsid sleep {mark} > /dev/null 2>&1 &) ; sleep {mark}"
    );
    // An exec takes more than a second on an emulated machine.
    let timeout = limit(Duration::from_secs(1)).as_secs().min(5);
    let probe = json!({"exec": {"command": ["sh", "-c", command]}, "periodSeconds": 1, "timeoutSeconds": timeout,
        // At the end all four are Ready at once, also where an exec takes more than a second now and then.
        "failureThreshold": 3});
    let name = |at: usize| format!("c{at}");
    let containers: Vec<Value> =
        (0..4).map(|at| with(container(&name(at), SLEEP), json!({"readinessProbe": probe}))).collect();
    bed.apply(&pod("a", json!(containers), json!({})));
    until("20 probes have timed out", || {
        let events = bed.events("a");
        let count = |event: &Value| match event["reason"] == "Unhealthy" {
            true => event["count"].as_u64().unwrap_or(0),
            false => 0,
        };
        (events.iter().map(count).sum::<u64>() >= 20).then_some(())
    });
    let event = bed.wait_event("a", "Unhealthy", "timed out");
    assert!(event["message"].to_string().contains("Readiness probe failed"), "{event}");
    for at in 0..4 {
        bed.exec("a", &name(at), "touch /tmp/enough");
    }
    let a = bed.wait_ready("a");
    // `docker exec` would have left four for each; the containers themselves were not touched.
    until("none of their processes is left", || (processes(&mark) == 0).then_some(()));
    assert!((0..4).all(|at| restarts(&a, &name(at)) == 0));
}

/// How many processes of the machine are `sleep <mark>`.
fn processes(mark: &str) -> usize {
    let is_one = |process: &Path| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.first().is_some_and(|word| word.ends_with(b"sleep")) && words.get(1) == Some(&mark.as_bytes())
    };
    fs::read_dir("/proc").unwrap().flatten().filter(|entry| is_one(&entry.path())).count()
}
