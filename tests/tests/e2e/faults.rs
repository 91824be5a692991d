//! A Docker that is not there, breaks, or is slow: the agent waits, says so, and goes on.

use std::time::Duration;

use serde_json::json;

use crate::bed::{
    Bed,
    daemon::Daemon,
    pods::{SLEEP, condition, container, id, is_ready, job, phase, pod, restarts, sleeper, uid},
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

#[test]
fn faults_what_cannot_be_done_here_stays_pending() {
    let Some(bed) = Bed::start() else { return };
    let mut a = sleeper("a");
    a["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
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
