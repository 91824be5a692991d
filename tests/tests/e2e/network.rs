//! Addresses and ports of pods.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use serde_json::{Value, json};

use crate::bed::{
    Bed, NODE, callers, inside,
    pods::{condition, container, job, phase, pod, restarts, waiting, with},
    ports::free_port,
    until,
};

pub(crate) const WEB: &str =
    "mkdir -p /tmp/w; echo hello > /tmp/w/index.html; trap 'exit 0' TERM; httpd -f -p 8080 -h /tmp/w & wait";

pub(crate) fn web(name: &str, port: Value) -> Value {
    let probe = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    pod(name, json!([with(container("app", WEB), json!({"ports": [port], "readinessProbe": probe}))]), json!({}))
}

pub(crate) fn fetch(address: (&str, u16)) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

#[test]
fn network_pods_are_reached() {
    let Some(bed) = Bed::start() else { return };
    let port = free_port();
    bed.apply(&web("a", json!({"containerPort": 8080, "hostPort": port})));
    let a = bed.wait_ready("a");
    let ip = a["status"]["podIP"].as_str().unwrap().to_owned();
    assert_eq!(a["status"]["podIPs"][0]["ip"], ip.as_str());
    until("by the pod's address", || fetch((&ip, 8080)).filter(|text| text.contains("hello")));
    let answer = until("by the node's port", || fetch(("127.0.0.1", port)).filter(|text| !text.is_empty()));
    assert!(answer.contains("hello"), "{answer}");
    bed.delete("a");
    bed.wait_gone("a");
    until("the port is free again", || TcpListener::bind(("0.0.0.0", port)).ok());
}

#[test]
fn network_one_port_for_one_pod() {
    let Some(bed) = Bed::start() else { return };
    let port = free_port();
    bed.apply(&web("a", json!({"containerPort": 8080, "hostPort": port})));
    bed.wait_ready("a");
    bed.apply(&web("b", json!({"containerPort": 8080, "hostPort": port})));
    let b = bed.wait("b", "Failed", |pod| phase(pod) == "Failed");
    assert_eq!(b["status"]["reason"], "NodePorts");
    assert!(bed.containers("b").is_empty());
    bed.apply(&web("c", json!({"containerPort": 8080, "hostPort": port, "hostIP": "127.0.0.1"})));
    assert_eq!(bed.wait("c", "Failed", |pod| phase(pod) == "Failed")["status"]["reason"], "NodePorts");
    bed.apply(&web("d", json!({"containerPort": 8080, "hostPort": port, "protocol": "UDP"})));
    bed.wait("d", "runs", |pod| phase(pod) == "Running" && condition(pod, "PodReadyToStartContainers"));
}

/// A pod's network is there while its sandbox runs, though all its containers are between two runs.
#[test]
fn network_is_forwarded_into_a_pod_in_a_crash_loop() {
    let Some(mut bed) = Bed::new() else { return };
    let (ours, server) = callers::serving(&mut bed);
    bed.begin();
    bed.apply(&job("a", "Always", "exit 7"));
    // Its first restart is at once, those after it are not.
    bed.wait("a", "in back-off", |pod| waiting(pod, "app") == "CrashLoopBackOff" && restarts(pod, "app") >= 1);
    let pid = bed.sandbox("a")["State"]["Pid"].to_string();
    let listener = inside::run(&pid, || TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"hi").unwrap());
    let user = ours.connector(Some(&ours.sign("user")));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let path = format!("/portForward/default/a-{NODE}?port={port}");
    runtime.block_on(callers::begun(&user, server, &path));
}

#[test]
fn network_what_does_not_fit_is_rejected() {
    let Some(bed) = Bed::start_with(&["--max-pods=2"]) else { return };
    let huge = json!({"resources": {"requests": {"memory": "1000Ti"}}});
    bed.apply(&pod("huge", json!([with(container("app", WEB), huge)]), json!({})));
    let huge = bed.wait("huge", "Failed", |pod| phase(pod) == "Failed");
    assert_eq!(huge["status"]["reason"], "OutOfmemory");
    for name in ["a", "b"] {
        bed.apply(&web(name, json!({"containerPort": 8080})));
        bed.wait_ready(name);
    }
    bed.apply(&web("c", json!({"containerPort": 8080})));
    let c = bed.wait("c", "Failed", |pod| phase(pod) == "Failed");
    assert_eq!(c["status"]["reason"], "OutOfpods");
}
