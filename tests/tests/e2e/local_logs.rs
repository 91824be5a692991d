//! Logs of a Docker whose own driver is `local`, which keeps them in a form of its own, through the node's server.

use std::net::SocketAddr;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::bed::{
    Bed, NODE, callers,
    daemon::Daemon,
    pods::{SLEEP, container, id, pod},
    until,
};

/// The body of an answer to HTTP/1.0, which is in one piece.
async fn body(user: &TlsConnector, server: SocketAddr, path: &str) -> String {
    let mut stream = callers::connect(user, TcpStream::connect(server).await.unwrap()).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: node\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.split(' ').nth(1) == Some("200"), "{path}: {answer}");
    body.to_owned()
}

#[test]
fn local_logs_through_the_server() {
    let Some(mut bed) = Bed::new() else { return };
    let Some(daemon) = Daemon::run_with(&bed.folder.join("dk"), &["--log-driver=local"]) else { return };
    bed.docker = daemon.docker();
    let (ours, server) = callers::serving(&mut bed);
    bed.begin();
    let script =
        format!("i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done; sleep 1; echo err >&2; {SLEEP}");
    bed.apply(&pod("a", json!([container("app", &script)]), json!({"hostNetwork": true})));
    let app = id(&bed.wait_ready("a"), "app");
    assert_eq!(bed.docker.inspect(&app).unwrap()["HostConfig"]["LogConfig"]["Type"], "local");
    let user = ours.connector(Some(&ours.sign("user")));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let log = |query: &str| {
        let path = format!("/containerLogs/default/a-{NODE}/app?{query}");
        runtime.block_on(body(&user, server, &path))
    };
    let lines: String = (0..200).map(|number| format!("line {number}\n")).collect();
    until("all is logged", || (log("stream=Stdout") == lines && log("stream=Stderr") == "err\n").then_some(()));
    assert_eq!(log("limitBytes=13"), lines[..13]);
    assert_eq!(log("follow=true&limitBytes=1000"), lines[..1000], "followed, it ends where it is to end");
    let tail = log("tailLines=20&timestamps=true");
    let times = tail.lines().filter(|line| line.contains("Z line 1") || line.ends_with("Z err")).count();
    assert_eq!((tail.lines().count(), times), (20, 20), "{tail}");
}
