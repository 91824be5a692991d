//! HTTP/2: what is answered over it, and what its bounds hold against.

use std::time::{Duration, Instant};

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::world::{Ca, Caller, World, get};

const WINDOW: u32 = 64 << 10;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A world in which nobody may be slow. A handshake, a ping's answer and the farewell have a limit of their own.
async fn hurried(handshake: Duration) -> World {
    World::new(|config| {
        // For longer than a first request takes on a busy machine.
        config.header_limit = Duration::from_secs(1);
        config.idle_limit = Duration::from_secs(1);
        config.handshake_limit = handshake;
    })
    .await
}

/// Whether a connection ends, whose client answers all pings.
async fn ends(connection: JoinHandle<hyper::Result<()>>) -> bool {
    tokio::time::timeout(Duration::from_secs(30), connection).await.is_ok()
}

#[tokio::test]
async fn who_asks_nothing_does_not_stay() {
    let world = hurried(Duration::from_secs(2)).await;
    let mut silent = world.connect_with(&Caller::default(), &["h2"]).await;
    assert_eq!(silent.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut said = Vec::new();
    let closed = silent.read_to_end(&mut said);
    assert!(tokio::time::timeout(Duration::from_secs(30), closed).await.is_ok(), "a preface has a limit");

    let (_client, connection) = world.http2(&Caller::default(), WINDOW).await;
    assert!(ends(connection).await, "a first request has a limit");

    let (mut client, connection) = world.http2(&Caller::default(), WINDOW).await;
    let answer = client.send_request(get("/healthz", None)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "Unauthorized");
    assert!(ends(connection).await, "idleness has a limit");

    let (mut client, connection) = world.http2(&Caller::default(), 0).await;
    let answer = client.send_request(get("/healthz", None)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert!(ends(connection).await, "a stranger that does not take its refusal has a limit");
    drop(answer);
}

#[tokio::test]
async fn who_waits_for_an_answer_stays() {
    let world = hurried(Duration::from_secs(10)).await;
    world.allow("master", "t", &["proxy", "healthz"]);
    let (mut client, connection) = world.http2(&Caller::default(), WINDOW).await;
    let path = "/containerLogs/n/p/silent?follow=true";
    let answer = client.send_request(get(path, Some("t"))).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let mut log = answer.into_body();
    assert_eq!(log.frame().await.unwrap().unwrap().into_data().unwrap(), "some");
    // Until another one was sent away for its idleness.
    let (_idle, other) = world.http2(&Caller::default(), WINDOW).await;
    assert!(ends(other).await);
    world.logs.more.notify_one();
    assert_eq!(log.frame().await.unwrap().unwrap().into_data().unwrap(), "more");
    let answer = client.send_request(get("/healthz", Some("t"))).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-length"], "2");
    assert!(!connection.is_finished());
    drop((log, answer));
    assert!(ends(connection).await);
}

/// However many a connection may ask for.
#[tokio::test]
async fn logs_that_are_read_are_bounded() {
    let world = World::new(|config| (config.log_readers, config.system_log_query) = (2, true)).await;
    world.allow("master", "t", &["proxy", "log"]);
    let (mut client, _connection) = world.http2(&Caller::default(), WINDOW).await;
    let (container, service) = ("/containerLogs/n/p/silent?follow=true", "/logs/?query=one");
    let mut ask = async |path: &str| client.send_request(get(path, Some("t"))).await.unwrap();
    let _first = ask(container).await;
    let second = ask(container).await;
    assert_eq!(second.status(), StatusCode::OK);
    for path in [container, service] {
        let third = ask(path).await;
        assert_eq!(third.status(), StatusCode::TOO_MANY_REQUESTS);
        let words = third.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(words, "2 logs are read on this node already, try again later");
    }
    drop(second);
    let end = Instant::now() + Duration::from_secs(30);
    for path in [service, container] {
        while ask(path).await.status() != StatusCode::OK {
            assert!(Instant::now() < end, "places are not given back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The output of each is kept until it ends.
#[tokio::test]
async fn commands_that_are_run_are_bounded() {
    let world = World::new(|_| {}).await;
    world.allow("master", "t", &["proxy"]);
    let (mut client, _connection) = world.http2(&Caller::default(), WINDOW).await;
    let mut run = |command: &str| {
        let request = Request::post(format!("https://node/run/n/p/c?cmd={command}"));
        client.send_request(request.header("authorization", "Bearer t").body(Body::empty()).unwrap())
    };
    let (refused, _, others) = futures::future::select_all((0..9).map(|_| Box::pin(run("hang")))).await;
    let refused = refused.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let words = refused.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(words, "8 commands are run on this node already, try again later");
    drop(others);
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = run("true").await.unwrap();
        if answer.status() == StatusCode::OK {
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "saiderr");
            return;
        }
        assert!(Instant::now() < end, "places are not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn frames_are_bounded() {
    let world = World::new(|_| {}).await;
    let mut stream = world.connect_with(&Caller::default(), &["h2"]).await;
    stream.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).await.unwrap();
    let (kind, payload) = next(&mut stream).await.unwrap();
    let settings: Vec<(u16, u32)> = payload
        .chunks(6)
        .map(|one| (u16::from_be_bytes([one[0], one[1]]), u32::from_be_bytes([one[2], one[3], one[4], one[5]])))
        .collect();
    assert_eq!(kind, 4);
    // SETTINGS_MAX_CONCURRENT_STREAMS and SETTINGS_MAX_HEADER_LIST_SIZE.
    assert!(settings.contains(&(3, 100)) && settings.contains(&(6, 64 << 10)), "{settings:?}");

    // GET / of https, and a change of mind, again and again (CVE-2023-44487).
    let mut flood = Vec::new();
    for id in (1..4001).step_by(2) {
        flood.extend(frame(1, 5, id, &[0x82, 0x87, 0x84, 0x41, 4, b'n', b'o', b'd', b'e']));
        flood.extend(frame(3, 0, id, &8u32.to_be_bytes()));
    }
    let _ = stream.write_all(&flood).await;
    let goodbye = loop {
        match next(&mut stream).await {
            Some((7, payload)) => break payload[4..8].to_vec(),
            Some(_) => {}
            None => panic!("it ends without a reason"),
        }
    };
    assert_eq!(goodbye, 11u32.to_be_bytes(), "ENHANCE_YOUR_CALM");

    let (mut client, _connection) = world.http2(&Caller::default(), WINDOW).await;
    let mut request: Request<Body> = get("/healthz", None);
    request.headers_mut().insert("x", "y".repeat(128 << 10).parse().unwrap());
    let answer = client.send_request(request).await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 431));
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

async fn next(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], payload))
}

/// A connection may outlast the CA that its certificate was good for.
#[tokio::test]
async fn a_certificate_counts_while_its_ca_does() {
    let world = World::new(|_| {}).await;
    world.judge.rights.lock().unwrap().push(("cert".to_owned(), "healthz".to_owned()));
    let caller = Caller { token: None, certificate: Some(world.ca.sign("cert", &[])) };
    let (mut client, _connection) = world.http2(&caller, WINDOW).await;
    let mut ask = async || client.send_request(get("/healthz", None)).await.unwrap().status();
    assert_eq!(ask().await, StatusCode::OK);
    let file = world.folder.path().join("ca.pem");
    for (pem, wanted) in [(Ca::new("others").pem, StatusCode::UNAUTHORIZED), (world.ca.pem.clone(), StatusCode::OK)] {
        std::fs::write(&file, pem).unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        while ask().await != wanted {
            assert!(Instant::now() < end, "it never becomes {wanted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
