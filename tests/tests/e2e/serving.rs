//! What the node's server is told to serve, and whom, on a node that runs alone.

use std::{fs, net::TcpStream};

use longshore_tests::prometheus;
use serde_json::json;

use crate::bed::{
    Bed, callers, kubectl,
    pods::{SLEEP, container, pod, with},
    ports::free_port,
    until,
};

/// What is served whether or not there is anything for debugging, and on the read-only port.
const READ: [&str; 8] = [
    "/healthz",
    "/healthz/syncloop",
    "/pods",
    "/metrics",
    "/metrics/cadvisor",
    "/metrics/probes",
    "/metrics/resource",
    "/stats/summary",
];
/// What says of itself that it is turned off.
const DEBUG: [&str; 8] = [
    "/run/default/a/app?cmd=true",
    "/exec/default/a/app?command=true&output=1",
    "/attach/default/a/app?output=1",
    "/portForward/default/a",
    "/containerLogs/default/a/app",
    "/runningpods/",
    "/debug/pprof/heap",
    "/logs/",
];
/// What is then not there at all.
const ABSENT: [&str; 5] = ["/configz", "/flagz", "/statusz", "/checkpoint/default/a/app", "/debug/flags/v"];

/// Holds answers to what is served where there is nothing for debugging.
fn assert_undebugged(ask: impl Fn(&str) -> String) {
    let code = |answer: &str| answer.split(' ').nth(1).map(str::to_owned);
    for path in READ {
        let answer = ask(path);
        assert_eq!(code(&answer).as_deref(), Some("200"), "{path}: {answer}");
    }
    for path in DEBUG {
        let answer = ask(path);
        assert_eq!(code(&answer).as_deref(), Some("405"), "{path}: {answer}");
        assert!(answer.ends_with("\r\n\r\nDebug endpoints are disabled.\n"), "{path}: {answer}");
    }
    for path in ABSENT {
        let answer = ask(path);
        assert_eq!(code(&answer).as_deref(), Some("404"), "{path}: {answer}");
    }
}

#[test]
fn serving_without_debugging_handlers() {
    let Some(mut bed) = Bed::new() else { return };
    let (ours, address) = callers::serving(&mut bed);
    let folder = bed.folder.join("configuration");
    fs::create_dir(&folder).unwrap();
    let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    fs::write(folder.join("10.conf"), format!("{head}enableDebuggingHandlers: false\n")).unwrap();
    bed.flags.push(format!("--config-dir={}", folder.display()));
    bed.begin();
    until("it serves", || TcpStream::connect(address).ok());
    let user = ours.connector(Some(&ours.sign("user")));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_undebugged(|path| runtime.block_on(callers::get(&user, address, path)).unwrap());
}

#[test]
fn serving_what_may_be_read_to_everybody() {
    let Some(mut bed) = Bed::new() else { return };
    let (ours, address) = callers::serving(&mut bed);
    let port = free_port();
    bed.flags.push(format!("--read-only-port={port}"));
    bed.begin();
    until("it serves", || TcpStream::connect(address).and(TcpStream::connect(("127.0.0.1", port))).ok());
    assert_undebugged(|path| String::from_utf8(kubectl::get(port, path).unwrap()).unwrap());
    // The same callers get nothing of the other port, where they are nobody.
    let nobody = ours.connector(None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for path in READ.iter().chain(&DEBUG).chain(&ABSENT) {
        let answer = runtime.block_on(callers::get(&nobody, address, path)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 401 ") && answer.ends_with("\r\n\r\nUnauthorized"), "{path}: {answer}");
    }
}

#[test]
fn serving_metrics_that_prometheus_reads() {
    let Some(mut bed) = Bed::new() else { return };
    let port = free_port();
    bed.flags = vec!["--address=127.0.0.1".to_owned(), format!("--read-only-port={port}")];
    bed.begin();
    let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
    let app = with(container("app", SLEEP), json!({"livenessProbe": probe, "readinessProbe": probe}));
    bed.apply(&pod("a", json!([app, container("side", SLEEP)]), json!({})));
    bed.wait_ready("a");
    until("it serves", || TcpStream::connect(("127.0.0.1", port)).ok());
    for (path, family, samples) in [
        ("/metrics", "kubelet_running_containers", 3),
        ("/metrics/cadvisor", "container_network_receive_bytes_total", 1),
        ("/metrics/cadvisor", "container_memory_working_set_bytes", 4),
        ("/metrics/probes", "prober_probe_total", 2),
        ("/metrics/resource", "container_cpu_usage_seconds_total", 2),
        ("/metrics/slis", "kubernetes_healthcheck", 3),
    ] {
        // The checks of health that the last one tells of.
        assert!(!kubectl::get(port, "/healthz").unwrap().is_empty());
        until(family, || {
            let answer = String::from_utf8(kubectl::get(port, path).unwrap()).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(" 200 "), "{path}: {head}");
            let page = prometheus::read(body).unwrap_or_else(|why| panic!("{path}: {why}\n{body}"));
            page.get(family).is_some_and(|family| family.samples.len() >= samples).then_some(())
        });
    }
}
