//! What the node's server is told to serve, and whom, on a node that runs alone.

use std::{fs, net::TcpStream};

use crate::bed::{Bed, callers, kubectl, ports::free_port, until};

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
