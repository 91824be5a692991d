//! exec, attach and port-forward over WebSocket channels, as a client of Kubernetes' conformance tests speaks them.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::played::other;
use crate::world::{Caller, World, exchange};

/// A WebSocket to a path.
pub(crate) async fn open(world: &World, path: &str, protocol: &str) -> TlsStream<TcpStream> {
    let mut stream = world.connect(&Caller::default()).await;
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 101") && answer.contains(protocol), "{answer}");
    stream
}

async fn send(stream: &mut TlsStream<TcpStream>, channel: u8, bytes: &[u8]) {
    let length = u8::try_from(bytes.len() + 1).unwrap();
    assert!(length < 126);
    // A mask of zeros.
    stream.write_all(&[&[0x82, 0x80 | length, 0, 0, 0, 0, channel], bytes].concat()).await.unwrap();
}

/// All messages until the close, by channel.
async fn receive(stream: &mut TlsStream<TcpStream>) -> Vec<(u8, Vec<u8>)> {
    let mut messages = Vec::new();
    loop {
        let Ok(first) = stream.read_u8().await else { return messages };
        let mut length = u64::from(stream.read_u8().await.unwrap());
        if length == 126 {
            length = u64::from(stream.read_u16().await.unwrap());
        }
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut payload).await.unwrap();
        match first & 0xf {
            8 => return messages,
            1 | 2 if payload.len() > 1 => messages.push((payload[0], payload[1..].to_vec())),
            _ => {}
        }
    }
}

fn of(messages: &[(u8, Vec<u8>)], channel: u8) -> String {
    let bytes = messages.iter().filter(|(found, _)| *found == channel).flat_map(|(_, bytes)| bytes.clone());
    String::from_utf8(bytes.collect()).unwrap()
}

#[tokio::test]
async fn exec_and_attach() {
    let world = World::new(|_| {}).await;
    world.allow("master", "t", &["proxy"]);
    let path = "/exec/n/p/c?command=cat&input=1&output=1&error=1";
    let mut stream = open(&world, path, "v5.channel.k8s.io").await;
    send(&mut stream, 0, b"through").await;
    send(&mut stream, 255, &[0]).await;
    let messages = receive(&mut stream).await;
    assert_eq!((of(&messages, 1).as_str(), of(&messages, 2).as_str()), ("through", "err"));
    let status: serde_json::Value = serde_json::from_str(&of(&messages, 3)).unwrap();
    assert_eq!(
        (&status["reason"], &status["details"]["causes"][0]["message"]),
        (&"NonZeroExitCode".into(), &"3".into())
    );

    let mut stream = open(&world, "/attach/n/p/u/c?output=1", "v4.channel.k8s.io").await;
    let messages = receive(&mut stream).await;
    assert_eq!(of(&messages, 1), "said");
    assert!(of(&messages, 3).contains("Success"));
}

/// Its status says that it waits; the kubelet asks the runtime.
#[tokio::test]
async fn a_container_whose_hook_runs() {
    let world = World::new(|_| {}).await;
    world.allow("master", "t", &["proxy"]);
    let with = |name: &str, hooks: &[&str]| {
        let mut view = (*other(name, "id-c")).clone();
        let status = view.object.status.as_mut().and_then(|status| status.container_statuses.as_mut()).unwrap();
        let state = serde_json::json!({"waiting": {"reason": "ContainerCreating"}});
        status[0].state = Some(serde_json::from_value(state).unwrap());
        view.standing.busy.post_start = hooks.iter().map(|id| (*id).to_owned()).collect();
        world.pods.others.lock().unwrap().push(view.into());
    };
    with("hooked", &["id-c"]);
    with("waits", &["id-of-another"]);
    for verb in ["exec", "attach"] {
        let path = format!("/{verb}/n/hooked/c?command=x&output=1");
        let mut stream = open(&world, &path, "v4.channel.k8s.io").await;
        assert_eq!(of(&receive(&mut stream).await, 1), "said");
        let refused = world.get("t", &format!("/{verb}/n/waits/c?command=x&output=1")).await;
        assert!(refused.code == 500 && refused.text.contains("not found"), "{refused:?}");
    }
}

/// Only a process's output tells its end; the client wants none, and cannot end its own side.
#[tokio::test]
async fn exec_without_output() {
    let world = World::new(|_| {}).await;
    world.allow("master", "t", &["proxy"]);
    let mut stream = open(&world, "/exec/n/p/c?command=true&input=1", "v4.channel.k8s.io").await;
    let messages = tokio::time::timeout(std::time::Duration::from_secs(30), receive(&mut stream)).await.unwrap();
    assert!(of(&messages, 1).is_empty() && of(&messages, 3).contains("Success"), "{messages:?}");
}

#[tokio::test]
async fn ports() {
    let world = World::new(|_| {}).await;
    world.allow("master", "t", &["proxy"]);
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = TcpListener::bind(address).await else { continue };
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut inner, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 4];
            inner.read_exact(&mut bytes).await.unwrap();
            inner.write_all(b"pong").await.unwrap();
        });
        let mut stream = open(&world, &format!("/portForward/n/p?port={port}"), "v4.channel.k8s.io").await;
        send(&mut stream, 0, b"ping").await;
        let messages = receive(&mut stream).await;
        let data: Vec<u8> =
            messages.iter().filter(|(channel, _)| *channel == 0).flat_map(|(_, it)| it.clone()).collect();
        assert_eq!(data, [&port.to_le_bytes()[..], b"pong"].concat(), "{address}");
    }
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut stream = open(&world, &format!("/portForward/n/p?port={closed}"), "v4.channel.k8s.io").await;
    let messages = receive(&mut stream).await;
    let error: Vec<u8> = messages.iter().filter(|(channel, _)| *channel == 1).flat_map(|(_, it)| it.clone()).collect();
    let error = String::from_utf8_lossy(&error).into_owned();
    let words =
        format!("error forwarding port {closed} to pod p, uid u: failed to connect to localhost:{closed} inside");
    assert!(error.contains(&words), "{error}");
}

#[tokio::test]
async fn refusals_are_lines_of_text() {
    let world = World::new(|_| {}).await;
    world.allow("master", "t", &["proxy"]);
    let mut stream = world.connect(&Caller::default()).await;
    let headers = "Authorization: Bearer t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let refused = exchange(&mut stream, "GET", "/exec/n/p/c?command=x&output=1", headers, "").await;
    let text = refused.text.to_ascii_lowercase();
    assert!(refused.code == 400 && text.ends_with("version 13\n"), "{text}");
    assert!(text.contains("sec-websocket-version: 13\r\n") && text.contains("content-type: text/plain"), "{text}");
}

/// `streamingConnectionIdleTimeout`.
#[tokio::test]
async fn an_idle_client_is_sent_away() {
    let world = World::new(|config| config.streaming_idle = std::time::Duration::from_millis(200)).await;
    world.allow("master", "t", &["proxy"]);
    let mut stream = open(&world, "/exec/n/p/c?command=cat&input=1&output=1", "v5.channel.k8s.io").await;
    let over = tokio::time::timeout(std::time::Duration::from_secs(10), receive(&mut stream)).await;
    assert!(over.is_ok_and(|messages| of(&messages, 1).is_empty()));
}

#[tokio::test]
async fn other_namespaces() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let namespaces = longshore_server::Namespaces::default();
    let own = longshore_server::Namespaces::of(std::process::id()).unwrap();
    match namespaces.connect(Some(&own), port).await {
        Ok(_) => {}
        // Stepping into a namespace, even one's own, is root's.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied),
    }
    assert!(longshore_server::Namespaces::of(u32::MAX).is_err());
}
