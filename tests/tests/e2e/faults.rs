//! A Docker that is not there, breaks, or is slow: the agent waits, says so, and goes on.

use std::{fs, time::Duration};

use serde_json::json;

use crate::bed::{
    Bed, NODE, callers,
    daemon::Daemon,
    limit,
    pods::{SLEEP, condition, container, id, is_ready, job, phase, pod, restarts, sleeper, uid, with},
    proxy::{Mode, Proxy},
    until,
};

/// A bed whose agent sees Docker through a proxy at this path.
fn behind_a_proxy() -> Option<(Bed, std::path::PathBuf)> {
    let mut bed = Bed::new()?;
    let socket = bed.folder.join("d.sock");
    bed.flags.push(format!("--docker-endpoint=unix://{}", socket.display()));
    Some((bed, socket))
}

fn problem(bed: &Bed, part: &str) {
    until(&format!("a problem with {part:?}"), || bed.get("/v1/problems").to_string().contains(part).then_some(()));
}

#[test]
fn faults_docker_comes_later() {
    let Some((mut bed, socket)) = behind_a_proxy() else { return };
    bed.apply(&sleeper("a"));
    bed.begin();
    problem(&bed, "d.sock");
    let output = bed.cli(&["get", "pods"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("d.sock"), "get says what is wrong: {text}");
    let proxy = Proxy::start(&socket, &bed.docker.socket);
    bed.wait_for("a", "ready", Duration::from_secs(60), is_ready);
    until("the problem is gone", || {
        bed.get("/v1/problems")["items"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    bed.kill();
    drop(proxy);
}

#[test]
fn faults_docker_goes_and_comes_back() {
    let Some((mut bed, socket)) = behind_a_proxy() else { return };
    let proxy = Proxy::start(&socket, &bed.docker.socket);
    bed.begin();
    for name in ["a", "b", "c"] {
        bed.apply(&sleeper(name));
    }
    let a = bed.wait_ready("a");
    let b = bed.wait_ready("b");
    bed.wait_ready("c");
    proxy.set(Mode::Refuse);
    // What happens meanwhile is told by no event.
    bed.docker.kill(&id(&b, "app"), "KILL");
    bed.delete("c");
    bed.apply(&sleeper("d"));
    problem(&bed, "Docker");
    assert!(is_ready(&bed.pod("a").unwrap()), "what ran is not called unready for it");
    proxy.set(Mode::Pass);
    let limit = Duration::from_secs(60);
    bed.wait_for("b", "restarted", limit, |pod| is_ready(pod) && restarts(pod, "app") == 1);
    bed.wait_for("d", "ready", limit, is_ready);
    bed.wait_gone("c");
    let now = bed.pod("a").unwrap();
    assert_eq!((id(&now, "app"), restarts(&now, "app")), (id(&a, "app"), 0));
    let told = bed.watch.told();
    let of_a = told.history.iter().filter(|(_, pod)| pod["metadata"]["uid"] == a["metadata"]["uid"]);
    let ready: Vec<bool> = of_a.map(|(_, pod)| condition(pod, "Ready")).collect();
    let first = ready.iter().position(|ready| *ready).unwrap();
    assert!(ready[first..].iter().all(|ready| *ready), "readiness flapped");
    drop(told);
    bed.kill();
}

#[test]
fn faults_docker_answers_with_errors() {
    let Some((mut bed, socket)) = behind_a_proxy() else { return };
    let proxy = Proxy::start(&socket, &bed.docker.socket);
    bed.begin();
    bed.apply(&sleeper("a"));
    let a = bed.wait_ready("a");
    proxy.set(Mode::Errors);
    bed.apply(&sleeper("b"));
    until("an event or a problem tells Docker's words", || {
        let told = bed.get("/v1/events").to_string() + &bed.get("/v1/problems").to_string();
        told.contains("no space left on device").then_some(())
    });
    proxy.set(Mode::Pass);
    bed.wait_for("b", "ready", Duration::from_secs(60), is_ready);
    let now = bed.pod("a").unwrap();
    assert_eq!((id(&now, "app"), restarts(&now, "app")), (id(&a, "app"), 0));
    bed.kill();
}

#[test]
fn faults_docker_is_slow() {
    let Some((mut bed, socket)) = behind_a_proxy() else { return };
    let proxy = Proxy::start(&socket, &bed.docker.socket);
    proxy.set(Mode::Slow(Duration::from_millis(700)));
    bed.begin();
    for name in ["a", "b", "c"] {
        bed.apply(&sleeper(name));
    }
    for name in ["a", "b", "c"] {
        let pod = bed.wait_for(name, "ready", Duration::from_secs(90), is_ready);
        assert_eq!(restarts(&pod, "app"), 0);
        assert_eq!(bed.containers(name).len(), 2, "nothing is doubled");
    }
    bed.delete("a");
    bed.wait_gone("a");
    bed.kill();
}

/// What comes of it, in the time that it may take.
fn in_time<T>(runtime: &tokio::runtime::Runtime, work: impl Future<Output = T>) -> T {
    let limited = async { tokio::time::timeout(limit(Duration::from_secs(60)), work).await };
    runtime.block_on(limited).expect("it hangs")
}

/// A daemon that takes calls and answers none, with streams of users open.
#[test]
fn faults_docker_hangs() {
    let Some((mut bed, socket)) = behind_a_proxy() else { return };
    let proxy = Proxy::start(&socket, &bed.docker.socket);
    let endpoint = std::mem::take(&mut bed.flags);
    let (ours, server) = callers::serving(&mut bed);
    bed.flags.extend(endpoint);
    bed.begin();
    let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 1, "timeoutSeconds": 5});
    let app = with(container("app", &format!("echo hi; {SLEEP}")), json!({"livenessProbe": probe}));
    bed.apply(&pod("a", json!([app]), json!({})));
    let a = bed.wait_ready("a");
    let of = format!("default/a-{NODE}");
    let paths = [
        format!("/exec/{of}/app?command=sh&command=-c&command=echo%20hi%3Bcat&input=1&output=1"),
        format!(
            "/exec/{of}/app?command=sh&command=-c&command=echo%20hi%3Bexec%20sleep%201000000&output=1&tty=1&input=1"
        ),
        format!("/containerLogs/{of}/app?follow=true"),
    ];
    let user = ours.connector(Some(&ours.sign("user")));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", bed.pid())).unwrap().count();
    let before = descriptors();
    let mut streams = Vec::new();
    while streams.len() < 60 {
        let begun = paths.iter().cycle().take(12).map(|path| callers::begun(&user, server, path));
        streams.extend(in_time(&runtime, futures::future::join_all(begun)));
    }
    let among = descriptors();
    assert!(among > before + 60, "{before} descriptors, then {among}");

    proxy.hang(true);
    drop(streams);
    until("it has let go of those whose clients went", || (descriptors() < before + 45).then_some(()));
    let (asker, path) = (user.clone(), paths[0].clone());
    let meanwhile = runtime.spawn(async move { drop(callers::begun(&asker, server, &path).await) });
    // What needs no Docker is answered as ever.
    assert!(String::from_utf8_lossy(&bed.cli(&["get", "pods"]).stdout).contains("1/1"));
    problem(&bed, "did not answer");

    assert!(!meanwhile.is_finished());
    proxy.hang(false);
    in_time(&runtime, meanwhile).unwrap();
    until("no process is left", || {
        let count = |name| bed.docker.exec(&id(&a, "app"), &["pidof", name]).1.split_whitespace().count();
        (count("cat") == 0 && count("sleep") == 1).then_some(())
    });
    let log = format!("/containerLogs/{of}/app");
    until("the log is read", || {
        let answer = in_time(&runtime, callers::get(&user, server, &log)).unwrap();
        answer.contains("hi\n").then_some(())
    });
    until("nothing is left open", || (descriptors() < before + 25).then_some(()));
    until("no problem is left", || {
        bed.get("/v1/problems")["items"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    let now = bed.wait_ready("a");
    assert_eq!((id(&now, "app"), restarts(&now, "app")), (id(&a, "app"), 0));
    bed.kill();
}

#[test]
fn faults_what_cannot_be_done_here_stays_pending() {
    let Some(bed) = Bed::start() else { return };
    let mut a = sleeper("a");
    a["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    // Where no container mounts it, nobody waits for it.
    let mut left_over = sleeper("left-over");
    left_over["spec"]["volumes"] = a["spec"]["volumes"].clone();
    bed.apply(&left_over);
    a["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    bed.apply(&a);
    let mut b = sleeper("b");
    b["spec"]["runtimeClassName"] = json!("nosuch");
    bed.apply(&b);
    bed.wait_event("a", "FailedMount", "persistentVolumeClaim");
    bed.wait_event("b", "FailedCreatePodSandBox", "nosuch");
    for name in ["a", "b"] {
        bed.wait(name, "Pending", |pod| phase(pod) == "Pending");
        assert!(bed.containers(name).is_empty());
    }
    bed.wait_ready("left-over");
}

#[test]
fn faults_the_daemon_goes_and_comes() {
    let Some(mut bed) = Bed::new() else { return };
    let Some(mut daemon) = Daemon::run(&bed.folder.join("dk")) else { return };
    bed.docker = daemon.docker();
    // This daemon has no bridge, so that it disturbs no other.
    let on_host = |name: &str| pod(name, json!([container("app", SLEEP)]), json!({"hostNetwork": true}));
    bed.apply(&on_host("a"));
    let mut done = job("done", "Never", "exit 0");
    done["spec"]["hostNetwork"] = json!(true);
    bed.apply(&done);
    bed.begin();
    let a = bed.wait_ready("a");
    bed.wait("done", "Succeeded", |pod| phase(pod) == "Succeeded");
    for gently in [true, false] {
        let before = bed.pod("a").unwrap();
        daemon.end(gently);
        problem(&bed, "Docker");
        let during = if gently { "b" } else { "c" };
        bed.apply(&on_host(during));
        daemon.begin();
        let limit = Duration::from_secs(60);
        bed.wait_for(during, "ready", limit, is_ready);
        // A daemon that ends takes its containers along; they come back, in a new sandbox, and are the same pod.
        let again =
            bed.wait_for("a", "ready again", limit, |pod| is_ready(pod) && id(pod, "app") != id(&before, "app"));
        assert_eq!(uid(&again), uid(&a));
    }
    let done = bed.pod("done").unwrap();
    assert_eq!((phase(&done), restarts(&done, "app")), ("Succeeded", 0), "what is done does not run again");
    for name in ["a", "b", "c", "done"] {
        bed.delete(name);
        bed.wait_gone(name);
    }
    bed.kill();
}
