//! The client library kube, as programs in Rust use it: exec, attach, port-forward and logs over WebSockets, through the
//! API server and past it.

use futures::{SinkExt, StreamExt};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Status};
use kube::{
    Api, Client, Config,
    api::{AttachParams, AttachedProcess, LogParams, TerminalSize},
    config::{KubeConfigOptions, Kubeconfig},
    core::kubelet_debug::KubeletDebugParams,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bed::{
    cluster::LONG,
    inside, limit,
    node::Node,
    pods::{SLEEP, container, pod, with},
};

/// Bytes there and back: below the buffers of the client, which does not read while it writes.
const BYTES: usize = 1 << 20;

/// As whom the cluster's owner calls.
async fn config(node: &Node) -> Config {
    // Another test's may have been first.
    drop(rustls::crypto::ring::default_provider().install_default());
    let kubeconfig = Kubeconfig::read_from(node.cluster.kubeconfig()).unwrap();
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap()
}

fn attach() -> AttachParams {
    let buffer = 2 * BYTES;
    AttachParams::default().stdin(true).max_stdin_buf_size(buffer).max_stdout_buf_size(buffer)
}

/// The exit code of a status, 0 of a success.
fn exit_code(status: Option<Status>) -> i32 {
    let status = status.expect("a status");
    if status.status.as_deref() == Some("Success") {
        return 0;
    }
    assert_eq!(status.reason.as_deref(), Some("NonZeroExitCode"), "{status:?}");
    let causes = status.details.unwrap().causes.unwrap();
    let code = causes.iter().find(|cause| cause.reason.as_deref() == Some("ExitCode")).unwrap();
    code.message.as_ref().unwrap().parse().unwrap()
}

async fn exec(pods: &Api<Pod>) {
    let script = "cat; echo err >&2; exit 3";
    let mut process = pods.exec("a", ["sh", "-c", script], &attach()).await.unwrap();
    let bytes: Vec<u8> = (0..BYTES as u32 / 4).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    let (mut stdin, mut stdout) = (process.stdin().unwrap(), process.stdout().unwrap());
    let (mut stderr, status) = (process.stderr().unwrap(), process.take_status().unwrap());
    let write = async {
        stdin.write_all(&bytes).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let (mut back, mut err) = (Vec::new(), String::new());
    let (_, read, complained) = tokio::join!(write, stdout.read_to_end(&mut back), stderr.read_to_string(&mut err));
    read.unwrap();
    complained.unwrap();
    assert!(back == bytes, "{} of {BYTES} bytes came back, or others", back.len());
    assert_eq!((err.as_str(), exit_code(status.await)), ("err\n", 3));
    process.join().await.unwrap();

    // A terminal, and its size.
    let terminal = AttachParams::interactive_tty();
    let process =
        pods.exec("a", ["sh", "-c", "until stty size 2>/dev/null | grep '33 77'; do sleep 0.1; done"], &terminal);
    let mut process = process.await.unwrap();
    let mut size = process.terminal_size().unwrap();
    size.send(TerminalSize { height: 33, width: 77 }).await.unwrap();
    let mut shown = String::new();
    process.stdout().unwrap().read_to_string(&mut shown).await.unwrap();
    assert_eq!(shown.trim(), "33 77");
    assert_eq!(exit_code(process.take_status().unwrap().await), 0);
}

async fn attach_and_logs(pods: &Api<Pod>) {
    let mut process = pods.attach("b", &attach().container("app")).await.unwrap();
    assert_eq!(said(&mut process, b"one\ntwo\n").await, "got one\ngot two\nended\n");

    let log = pods.logs("b", &LogParams { tail_lines: Some(2), ..LogParams::default() }).await.unwrap();
    assert_eq!(log, "got two\nended\n");
    let followed = LogParams { follow: true, ..LogParams::default() };
    // What it reads by are the traits of futures.
    let lines = futures::AsyncBufReadExt::lines(pods.log_stream("b", &followed).await.unwrap());
    let lines: Vec<String> = lines.map(Result::unwrap).collect().await;
    assert_eq!(lines, ["got one", "got two", "ended"]);
}

async fn forward(pods: &Api<Pod>) {
    let mut forward = pods.portforward("a", &[8080, 8099]).await.unwrap();
    let mut stream = forward.take_stream(8080).unwrap();
    stream.write_all(b"GET /3000000 HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(b"xxx") && answer.len() > 3_000_000, "{} bytes", answer.len());
    // Nobody listens there.
    let error = forward.take_error(8099).unwrap().await.expect("an error");
    assert!(error.contains("8099"), "{error}");
    forward.abort();
}

/// The same with nobody between: the client of `kubelet-debug`.
async fn directly(node: &Node) {
    let mut config = config(node).await;
    config.cluster_url = format!("https://{}:{}", node.cluster.address, node.port).parse().unwrap();
    config.accept_invalid_certs = true;
    let client = Client::try_from(config).unwrap();
    let pod = |name| KubeletDebugParams { name, namespace: &node.name, pod_uid: None };
    let log = client.kubelet_node_logs(&pod("a"), "app", &LogParams::default()).await.unwrap();
    let lines: Vec<String> = futures::AsyncBufReadExt::lines(log).map(Result::unwrap).collect().await;
    assert_eq!(lines, ["begun"]);

    let words = ["sh", "-c", "cat; exit 3"];
    let mut process = client.kubelet_node_exec(&pod("a"), "app", words, &attach()).await.unwrap();
    let status = process.take_status().unwrap();
    assert_eq!(said(&mut process, b"there and back").await, "there and back");
    assert_eq!(exit_code(status.await), 3);

    let mut process = client.kubelet_node_attach(&pod("c"), "app", &attach()).await.unwrap();
    assert_eq!(said(&mut process, b"one\n").await, "got one\nended\n");

    let mut forward = client.kubelet_node_portforward(&pod("a"), &[8080]).await.unwrap();
    let mut stream = forward.take_stream(8080).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("hello\n"), "{answer}");
    forward.abort();
}

/// What a process says to an input, to its end.
async fn said(process: &mut AttachedProcess, input: &[u8]) -> String {
    let (mut stdin, mut stdout) = (process.stdin().unwrap(), process.stdout().unwrap());
    stdin.write_all(input).await.unwrap();
    stdin.shutdown().await.unwrap();
    let mut shown = String::new();
    stdout.read_to_string(&mut shown).await.unwrap();
    shown
}

async fn timely(what: &str, work: impl Future<Output = ()>) {
    let within = tokio::time::timeout(limit(LONG), work).await;
    assert!(within.is_ok(), "{what}: not within {:?}", limit(LONG));
}

#[test]
fn cluster_kube_library() {
    let Some(node) = Node::start() else { return };
    node.bind(&pod("a", json!([container("app", &format!("echo begun; {SLEEP}"))]), json!({})));
    let script = "while read line; do echo got $line; done; echo ended; sleep 1";
    let talker = with(container("app", script), json!({"stdin": true, "stdinOnce": true}));
    for name in ["b", "c"] {
        node.bind(&pod(name, json!([talker]), json!({"restartPolicy": "Never"})));
    }
    for name in ["a", "b", "c"] {
        node.wait_api_ready(name);
    }
    node.wait_server();
    inside::listen(&node, "a", "127.0.0.1:8080", inside::hello);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let work = async {
        let pods = Api::namespaced(Client::try_from(config(&node).await).unwrap(), &node.name);
        timely("exec", exec(&pods)).await;
        timely("attach and logs", attach_and_logs(&pods)).await;
        timely("port-forward", forward(&pods)).await;
        timely("directly", directly(&node)).await;
    };
    node.told(|| runtime.block_on(work));
}
