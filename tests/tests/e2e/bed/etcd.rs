//! The cluster's etcd, which is the API server's alone: tests make it forget what was, and nothing else.

use std::net::SocketAddr;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{cluster::Cluster, front};

/// Where it listens.
fn address(cluster: &Cluster) -> SocketAddr {
    let line = front::command_line(&cluster.folder, "kube-apiserver");
    let servers = line.iter().find_map(|word| word.strip_prefix("--etcd-servers=https://"));
    servers.expect("the API server has an etcd").parse().unwrap()
}

/// Forgets all that was before now, as the API server has it do every five minutes; the revision from which on it knows.
pub(crate) fn compact(cluster: &Cluster) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let there = call(cluster, "range", &json!({"key": STANDARD.encode("/"), "keys_only": true})).await;
        let revision = there["header"]["revision"].as_str().and_then(|text| text.parse().ok());
        let revision: u64 = revision.unwrap_or_else(|| panic!("etcd says no revision: {there}"));
        let done = call(cluster, "compaction", &json!({"revision": revision, "physical": true})).await;
        // Somebody else may have been quicker.
        let text = done.to_string();
        assert!(done["header"].is_object() || text.contains("has been compacted"), "{text}");
        revision
    })
}

/// A call of etcd's gateway.
async fn call(cluster: &Cluster, method: &str, body: &Value) -> Value {
    let pki = cluster.folder.join("pki");
    let address = address(cluster);
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = front::connector(&pki, "etcd-ca", "etcd");
    let mut stream = connector.connect(ServerName::from(address.ip()), stream).await.unwrap();
    let body = body.to_string();
    let head = format!("POST /v3/kv/{method} HTTP/1.0\r\nHost: etcd\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("etcd: {answer}"));
    serde_json::from_str(body).unwrap_or_else(|_| panic!("etcd: {answer}"))
}
