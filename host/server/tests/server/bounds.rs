//! Callers that mean harm.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::streams::open;
use crate::world::{Caller, World, exchange, plain};

/// Whether the other side closes at all.
async fn closes(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> bool {
    let mut bytes = Vec::new();
    tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut bytes)).await.is_ok()
}

#[tokio::test]
async fn the_slow_are_cut_off() {
    let world = World::new(|config| {
        // For longer than our own handshakes take on a busy machine.
        config.header_limit = Duration::from_secs(1);
        config.handshake_limit = Duration::from_secs(2);
    })
    .await;
    let mut silent = TcpStream::connect(world.https).await.unwrap();
    assert!(closes(&mut silent).await, "a handshake has a limit");
    let mut slow = world.connect(&Caller::default()).await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost").await.unwrap();
    assert!(closes(&mut slow).await, "a head has a limit");
    let mut idle = world.connect(&Caller::default()).await;
    assert!(closes(&mut idle).await, "idleness has a limit");
    let mut slow = TcpStream::connect(world.healthz).await.unwrap();
    slow.write_all(b"GET ").await.unwrap();
    assert!(closes(&mut slow).await, "also without TLS");
}

#[tokio::test]
async fn heads_and_numbers_are_bounded() {
    let world = World::new(|config| config.connections_per_client = 5).await;
    let many = (0..200).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    let mut stream = world.connect(&Caller::default()).await;
    assert_eq!(exchange(&mut stream, "GET", "/healthz", &many, "").await.code, 431);
    let mut stream = world.connect(&Caller::default()).await;
    let long = format!("X: {}\r\n", "y".repeat(200 << 10));
    assert!(matches!(exchange(&mut stream, "GET", "/healthz", &long, "").await.code, 431 | 0));
    let mut stream = world.connect(&Caller::default()).await;
    let long = format!("/exec/n/p/c?command={}&output=1", "y".repeat(64 << 10));
    let code = exchange(&mut stream, "POST", &long, "", "").await.code;
    assert!(matches!(code, 414 | 431 | 0), "{code}");
    drop(stream);

    let mut held = Vec::new();
    for _ in 0..200 {
        held.push(TcpStream::connect(world.https).await.unwrap());
    }
    let last = held.last_mut().unwrap();
    assert!(closes(last).await, "beyond the bound it is closed at once");
    assert_eq!(plain(world.healthz, "/healthz").await.code, 200, "other ports have bounds of their own");
    drop(held);
    place_is_free(&world).await;
}

/// Whoever they are of: those beyond are closed at once, those who are in are served on, and other ports do not notice.
#[tokio::test]
async fn connections_in_all_are_bounded() {
    let long = Duration::from_secs(300);
    let world = World::new(|config| {
        (config.connections, config.header_limit, config.handshake_limit) = (5, long, long);
    })
    .await;
    world.allow("master", "t", &["healthz"]);
    let from = async |last: u8| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
        socket.connect(world.https).await.unwrap()
    };
    let mut inside = world.connect(&Caller::default()).await;
    let mut held = Vec::new();
    for last in 2..6 {
        held.push(from(last).await);
    }
    for last in 6..12 {
        assert!(closes(&mut from(last).await).await, "beyond the bound it is closed at once");
        assert_eq!(plain(world.healthz, "/healthz").await.code, 200);
        assert_eq!(plain(world.read_only, "/healthz").await.code, 200);
    }
    assert_eq!(exchange(&mut inside, "GET", "/healthz", "Authorization: Bearer t\r\n", "").await.code, 200);
    drop((inside, held));
    place_is_free(&world).await;
}

fn request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer t\r\n\r\n").into_bytes()
}

/// Over HTTP/1.1.
#[tokio::test]
async fn who_asks_and_never_reads_is_cut_off() {
    let world = World::new(|config| {
        (config.header_limit, config.streaming_idle) = (Duration::from_secs(1), Duration::from_secs(1));
        config.connections_per_client = 1;
    })
    .await;
    world.allow("master", "t", &["log", "proxy"]);
    // Their answers are as long: more than all sockets hold.
    let requests = request(&format!("/logs?{}", "y".repeat(16 << 10))).repeat(4096);
    let mut stream = world.connect(&Caller::default()).await;
    let sent = tokio::time::timeout(Duration::from_secs(30), stream.write_all(&requests)).await;
    assert!(sent.is_ok_and(|sent| sent.is_err()), "all is taken, or nothing comes of it");
    place_is_free(&world).await;
    // An answer that never ends.
    let mut stream = world.connect(&Caller::default()).await;
    stream.write_all(&request("/containerLogs/n/p/endless?follow=true")).await.unwrap();
    place_is_free(&world).await;
}

/// Waits for a place among the connections of HTTPS.
pub(crate) async fn place_is_free(world: &World) {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let mut stream = TcpStream::connect(world.https).await.unwrap();
        // A place is free when the server waits for a handshake.
        let mut byte = [0];
        if tokio::time::timeout(Duration::from_millis(100), stream.read(&mut byte)).await.is_err() {
            return;
        }
        assert!(Instant::now() < end, "places are not given back");
    }
}

/// A stream takes its connection's place for as long as it lasts.
#[tokio::test]
async fn streams_are_connections() {
    let world = World::new(|config| {
        config.connections_per_client = 1;
        // For longer than we wait for the connection to be closed.
        config.handshake_limit = Duration::from_secs(60);
    })
    .await;
    world.allow("master", "t", &["proxy"]);
    let stream = open(&world, "/exec/n/p/c?command=cat&input=1&output=1", "v4.channel.k8s.io").await;
    let mut second = TcpStream::connect(world.https).await.unwrap();
    assert!(closes(&mut second).await, "beyond the bound it is closed at once");
    drop(stream);
    place_is_free(&world).await;
}
