//! exec, attach and port-forward over SPDY, as the API servers before 1.36 and old clients speak it.

#[path = "../../../streaming/tests/client/mod.rs"]
mod client;

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::bounds::place_is_free;
use crate::world::{Caller, World};
use client::{Frame, GOAWAY, PING, Reader, Writer};

/// Streams to a path, by a subprotocol; none for a client from before there were any.
async fn open(world: &World, path: &str, protocol: Option<&str>) -> (Reader, Writer) {
    let mut stream = world.connect(&Caller::default()).await;
    let asked = protocol.map(|name| format!("X-Stream-Protocol-Version: {name}\r\n")).unwrap_or_default();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer t\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         {asked}Content-Length: 0\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 101") && answer.contains("upgrade: spdy/3.1"), "{answer}");
    assert_eq!(answer.contains("x-stream-protocol-version"), protocol.is_some(), "{answer}");
    let (reader, writer, mut io) = client::connect();
    tokio::spawn(async move { tokio::io::copy_bidirectional(&mut io, &mut stream).await });
    (reader, writer)
}

/// All that comes on streams 1, 3, 5 … until the server says goodbye.
async fn receive(reader: &mut Reader, writer: &mut Writer) -> [Vec<u8>; 4] {
    let mut streams: [Vec<u8>; 4] = Default::default();
    while let Some(frame) = reader.next().await {
        match frame {
            Frame::Data { id, data, .. } => streams[id as usize / 2].extend(data),
            frame if frame.words(GOAWAY).is_some() => break,
            frame => {
                if let Some((id, _)) = frame.words(PING) {
                    writer.words(PING, &[id]).await;
                }
            }
        }
    }
    streams
}

#[tokio::test]
async fn exec_and_attach() {
    let world = World::new(|_| {}).await;
    world.allow("master", "t", &["proxy"]);
    for protocol in
        [Some("v4.channel.k8s.io"), Some("v3.channel.k8s.io"), Some("v2.channel.k8s.io"), Some("channel.k8s.io"), None]
    {
        let path = "/exec/n/p/c?command=cat&input=1&output=1&error=1";
        let (mut reader, mut writer) = open(&world, path, protocol).await;
        for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
            writer.open(id, &[("streamtype", kind)]).await;
        }
        writer.data(3, true, b"through").await.unwrap();
        let [error, _, out, err] = receive(&mut reader, &mut writer).await.map(|it| String::from_utf8(it).unwrap());
        assert_eq!((out.as_str(), err.as_str()), ("through", "err"), "{protocol:?}");
        // Before v4 there is a sentence.
        assert_eq!(
            error.contains(r#""reason":"ExitCode","message":"3""#),
            protocol == Some("v4.channel.k8s.io"),
            "{error}"
        );
        assert!(error.contains('3'), "{protocol:?}: {error}");
    }
    let (mut reader, mut writer) = open(&world, "/attach/n/p/c?output=1", Some("v4.channel.k8s.io")).await;
    writer.open(1, &[("streamtype", "error")]).await;
    writer.open(3, &[("streamtype", "stdout")]).await;
    let [error, out, ..] = receive(&mut reader, &mut writer).await.map(|it| String::from_utf8(it).unwrap());
    assert!(out == "said" && (error.is_empty() || error.contains("Success")), "{out} {error}");
}

#[tokio::test]
async fn ports() {
    let world = World::new(|_| {}).await;
    world.allow("master", "t", &["proxy"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    tokio::spawn(async move {
        let (mut inner, _) = listener.accept().await.unwrap();
        let mut asked = String::new();
        inner.read_to_string(&mut asked).await.unwrap();
        inner.write_all(format!("{asked}, pong").as_bytes()).await.unwrap();
    });
    let (mut reader, mut writer) = open(&world, "/portForward/n/p", Some("portforward.k8s.io")).await;
    for (id, kind) in [(1, "error"), (3, "data")] {
        writer.open(id, &[("streamtype", kind), ("port", &port), ("requestid", "0")]).await;
    }
    writer.data(3, true, b"ping").await.unwrap();
    let (mut data, mut ended) = (Vec::new(), 0);
    while ended < 2 {
        match reader.next().await.unwrap() {
            Frame::Data { id, fin, data: piece } => {
                assert!(id == 3 || piece.is_empty(), "{}", String::from_utf8_lossy(&piece));
                data.extend(piece);
                ended += usize::from(fin);
            }
            frame => {
                if let Some((id, _)) = frame.words(PING) {
                    writer.words(PING, &[id]).await;
                }
            }
        }
    }
    assert_eq!(data, b"ping, pong", "each side ends alone");
}

/// Also one that waits for a slot while a pod holds all of them.
#[tokio::test]
async fn a_client_that_goes_away_ends_its_forwards() {
    let world = World::new(|config| (config.forwards, config.connections_per_client) = (1, 1)).await;
    world.allow("master", "t", &["proxy"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let (reader, mut writer) = open(&world, "/portForward/n/p", Some("portforward.k8s.io")).await;
    for (id, kind, request) in [(1, "error", "0"), (3, "data", "0"), (5, "error", "1"), (7, "data", "1")] {
        writer.open(id, &[("streamtype", kind), ("port", &port), ("requestid", request)]).await;
    }
    // A pod that says nothing and never closes.
    let (_held, _) = listener.accept().await.unwrap();
    drop((reader, writer));
    place_is_free(&world).await;
}

/// Who comes when all places of the node are taken is told so; one is free when the client that had it is gone.
#[tokio::test]
async fn forwards_of_all_clients_are_bounded() {
    let world = World::new(|config| config.forwards_in_all = 1).await;
    world.allow("master", "t", &["proxy"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let forward = async || {
        let (reader, mut writer) = open(&world, "/portForward/n/p", Some("portforward.k8s.io")).await;
        for (id, kind) in [(1, "error"), (3, "data")] {
            writer.open(id, &[("streamtype", kind), ("port", &port), ("requestid", "0")]).await;
        }
        (reader, writer)
    };
    let first = forward().await;
    let _held = listener.accept().await.unwrap();
    // What the next one is told, if it does not get to the pod.
    let refused = async || {
        let (mut reader, _writer) = forward().await;
        let told = async {
            loop {
                if let Frame::Data { id: 1, data, .. } = reader.next().await.unwrap() {
                    return String::from_utf8(data).unwrap();
                }
            }
        };
        tokio::select! {
            told = told => Some(told),
            _ = listener.accept() => None,
        }
    };
    let words = format!(
        "error forwarding port {port} to pod p, uid u: 1 connections into pods are open on this node already, try again later"
    );
    assert_eq!(refused().await.as_deref(), Some(words.as_str()));
    drop(first);
    let end = Instant::now() + Duration::from_secs(30);
    while refused().await.is_some() {
        assert!(Instant::now() < end, "the place is not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// `streamingConnectionIdleTimeout`.
#[tokio::test]
async fn an_idle_client_is_sent_away() {
    let world = World::new(|config| config.streaming_idle = Duration::from_millis(200)).await;
    world.allow("master", "t", &["proxy"]);
    let (mut reader, mut writer) =
        open(&world, "/exec/n/p/c?command=cat&input=1&output=1", Some("v4.channel.k8s.io")).await;
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
        writer.open(id, &[("streamtype", kind)]).await;
    }
    assert!(reader.control(GOAWAY).await.is_some());
}
