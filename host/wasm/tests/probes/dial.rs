//! Connections through guests: `redis-probe`, which speaks a protocol, against peers of every kind, and what the host bounds.

use std::path::Path;
use std::time::Duration;

use longshore_core::ports::probes::{ProbeOutcome, ProbePlugins as _};
use longshore_wasm::{Grants, Limits};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::guests::{CONNECT, OK, READ, START_TLS, WRITE, expect, probe};
use super::server::{acceptor, closed};
use super::support::{World, call, failure, success, world};

const DIAL: Grants = Grants { exec: false, dial: true, http: false, host_from_config: false };
const BUDGET: Duration = Duration::from_millis(1200);
/// How much longer than its budget a check may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(4);

/// What a peer does with each connection, once it has heard a line.
#[derive(Clone, Copy)]
enum Peer {
    Says(&'static [u8]),
    /// The same, byte for byte, with so much time after each.
    Trickles(&'static [u8], Duration),
    Silent,
    /// Sends this without end.
    Endless(u8),
    /// Reads without end.
    Swallows,
    /// Answers a line in plain, then speaks TLS and echoes.
    Upgrades,
}

async fn peer(what: Peer, tls: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                if tls {
                    if let Ok(stream) = acceptor(&[]).accept(stream).await {
                        serve(stream, what).await;
                    }
                } else {
                    serve(stream, what).await;
                }
            });
        }
    });
    port
}

/// Ends when the other side does.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, what: Peer) {
    if !matches!(what, Peer::Swallows | Peer::Endless(_)) {
        let mut byte = 0;
        while byte != b'\n' {
            let Ok(read) = stream.read_u8().await else { return };
            byte = read;
        }
    }
    let mut rest = Vec::new();
    match what {
        Peer::Says(answer) => {
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
        }
        Peer::Trickles(answer, pause) => {
            for byte in answer {
                if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
                    return;
                }
                tokio::time::sleep(pause).await;
            }
            let _ = stream.read_to_end(&mut rest).await;
        }
        Peer::Silent => {
            let _ = stream.read_to_end(&mut rest).await;
        }
        Peer::Endless(byte) => while stream.write_all(&[byte; 4096]).await.is_ok() {},
        Peer::Swallows => {
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
        Peer::Upgrades => {
            let _ = stream.write_all(b"S").await;
            let Ok(mut stream) = acceptor(&[]).accept(stream).await else { return };
            let mut heard = [0; 5];
            if stream.read_exact(&mut heard).await.is_ok() {
                let _ = stream.write_all(&heard).await;
                let _ = stream.flush().await;
            }
            let _ = stream.read_to_end(&mut rest).await;
        }
    }
}

/// A host with `redis-probe`, which no binary embeds, as an operator would load it.
fn redis(grants: Grants) -> World {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../guests/redis-probe.wasm");
    let wasm = std::fs::read(&path).unwrap_or_else(|error| {
        panic!("{}: {error}. Run `cargo xtask plugins` first: it builds the guests", path.display())
    });
    let world = world();
    world.host.load_probe("redis", &wasm, grants, Limits::default()).unwrap();
    world
}

fn config(port: u16, tls: bool) -> String {
    format!(r#"{{"port": {port}, "tls": {tls}}}"#)
}

#[tokio::test]
async fn a_protocol_is_spoken_plain_and_over_tls() {
    let world = redis(DIAL);
    let locked = "NOAUTH Authentication required.";
    let loading = "LOADING Redis is loading the dataset in memory";
    for tls in [false, true] {
        for (peer_is, said) in [
            (Peer::Says(b"+PONG\r\n"), success("")),
            (Peer::Says(b"-NOAUTH Authentication required.\r\n"), success(locked)),
            (Peer::Says(b"-LOADING Redis is loading the dataset in memory\r\n"), failure(loading)),
            (Peer::Trickles(b"+PONG\r\n+more", Duration::from_millis(5)), success("")),
            (Peer::Says(b"SSH-2.0\r\n"), failure(r#"unexpected answer to PING: "SSH-2.0""#)),
        ] {
            let port = peer(peer_is, tls).await;
            assert_eq!(world.check("redis", &config(port, tls)).await, said, "TLS: {tls}");
        }
    }
    let port = peer(Peer::Says(b"+PONG\r\n"), false).await;
    let answer = world.host.check(call("redis", &config(port, false), Duration::from_secs(5))).await;
    assert_eq!(answer.attrs, [("answer".to_owned(), "PONG".to_owned())]);
}

#[tokio::test]
async fn peers_that_misbehave_are_unhealthy_in_time() {
    let world = redis(DIAL);
    let minute = Duration::from_secs(60);
    for tls in [false, true] {
        for (peer_is, said) in [
            (Peer::Silent, "no answer in time"),
            (Peer::Trickles(b"+PONG", minute), "no answer in time"),
            (Peer::Trickles(&[b'x'; 500], Duration::from_millis(50)), "no answer in time"),
            (Peer::Endless(b'x'), "and no end of a line"),
            (Peer::Says(b"+PON"), "EOF"),
        ] {
            let port = peer(peer_is, tls).await;
            let (outcome, took) = world.timed("redis", &config(port, tls), BUDGET).await;
            let begin = format!("PING to 127.0.0.1:{port}: ");
            assert!(
                matches!(&outcome, ProbeOutcome::Failure { message } if message.starts_with(&begin) && message.ends_with(said)),
                "{said}: {outcome:?}"
            );
            assert!(took < BUDGET + PATIENCE, "{said}: {took:?}");
        }
    }
}

#[tokio::test]
async fn connections_and_handshakes_that_fail() {
    let world = redis(DIAL);
    let port = closed();
    let refused = failure(&format!("dial tcp 127.0.0.1:{port}: connect: connection refused"));
    assert_eq!(world.check("redis", &config(port, true)).await, refused);
    // Neither a peer that speaks no TLS, nor one that says nothing at all, holds a handshake up.
    let port = peer(Peer::Says(b"-ERR Protocol error\r\n"), false).await;
    let (outcome, took) = world.timed("redis", &config(port, true), BUDGET).await;
    assert!(matches!(&outcome, ProbeOutcome::Failure { .. }) && took < BUDGET + PATIENCE, "{outcome:?} {took:?}");
    let port = peer(Peer::Swallows, false).await;
    let (outcome, took) = world.timed("redis", &config(port, true), BUDGET).await;
    let late = failure(&format!("dial tcp 127.0.0.1:{port}: i/o timeout"));
    assert!(outcome == late && took >= BUDGET && took < BUDGET + PATIENCE, "{outcome:?} {took:?}");

    let denied = redis(Grants::default()).check("redis", &config(port, false)).await;
    assert!(
        matches!(&denied, ProbeOutcome::Error { message } if message.ends_with("not granted: longshore:dial")),
        "{denied:?}"
    );
}

/// A guest that connects and then does this; results are at 640, and the connection is `$peer`.
fn connected(world: &World, port: u16, body: &str) {
    let connect = format!(
        "(local $peer i32)
        (call $connect (i32.const {port}) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
            (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 512))
        {}
        (local.set $peer (i32.load (i32.const 516)))",
        expect("(i32.eqz (i32.load8_u (i32.const 512)))", 1)
    );
    let imports = [CONNECT, READ, WRITE, START_TLS].concat();
    let guest = probe(&imports, &[&connect, body].concat());
    world.host.load_probe("raw", &guest, DIAL, Limits::default()).unwrap();
}

/// A result at 640 that is this case of `dial-error`.
fn is_error(case: u32) -> String {
    format!("(i32.and (i32.load8_u (i32.const 640)) (i32.eq (i32.load8_u (i32.const 644)) (i32.const {case})))")
}

const LIMIT: u32 = 2;
const TIMEOUT: u32 = 3;

#[tokio::test]
async fn what_is_read_and_written_in_a_call_is_bounded() {
    let world = world();
    let body = "(loop $again
            (call $read (local.get $peer) (i32.const 65536) (i32.const 0) (i32.const 0) (i32.const 640))
            (if (i32.eqz (i32.load8_u (i32.const 640))) (then
                (local.set $count (i32.add (local.get $count) (i32.load (i32.const 648))))
                (br $again))))"
        .to_owned()
        + &expect(&is_error(LIMIT), 2)
        + &expect("(i32.eq (local.get $count) (i32.const 1048576))", 3)
        + OK;
    connected(&world, peer(Peer::Endless(0), false).await, &body);
    assert_eq!(world.check("raw", "{}").await, success("hello"));

    let body = "(loop $again
            (call $write (local.get $peer) (i32.const 0) (i32.const 65536) (i32.const 0) (i32.const 0) (i32.const 640))
            (if (i32.eqz (i32.load8_u (i32.const 640))) (then
                (local.set $count (i32.add (local.get $count) (i32.const 1)))
                (br $again))))"
        .to_owned()
        + &expect(&is_error(LIMIT), 2)
        + &expect("(i32.eq (local.get $count) (i32.const 16))", 3)
        + OK;
    connected(&world, peer(Peer::Swallows, false).await, &body);
    assert_eq!(world.check("raw", "{}").await, success("hello"));
}

#[tokio::test]
async fn a_read_and_a_write_end_with_their_own_time() {
    let world = world();
    let read = "(call $read (local.get $peer) (i32.const 10) (i32.const 1) (i32.const 20) (i32.const 640))".to_owned()
        + &expect(&is_error(TIMEOUT), 2)
        + OK;
    let silent = peer(Peer::Silent, false).await;
    connected(&world, silent, &read);
    let (outcome, took) = world.timed("raw", "{}", Duration::from_secs(60)).await;
    assert!(outcome == success("hello") && took < PATIENCE, "{outcome:?} {took:?}");
    // Nobody reads there: the buffers between fill up, or the call's share is used up.
    let late = is_error(TIMEOUT);
    let limit = is_error(LIMIT);
    let write = "(loop $again
            (call $write (local.get $peer) (i32.const 0) (i32.const 65536) (i32.const 1) (i32.const 20) (i32.const 640))
            (br_if $again (i32.eqz (i32.load8_u (i32.const 640)))))"
        .to_owned()
        + &expect(&format!("(i32.or {late} {limit})"), 2)
        + OK;
    connected(&world, silent, &write);
    let (outcome, took) = world.timed("raw", "{}", Duration::from_secs(60)).await;
    assert!(outcome == success("hello") && took < PATIENCE, "{outcome:?} {took:?}");
}

#[tokio::test]
async fn tls_begins_in_the_middle_where_a_protocol_wants_it() {
    let world = world();
    let done = |step| expect("(i32.eqz (i32.load8_u (i32.const 640)))", step);
    let body = [
        // "hello\n" in plain, for an "S".
        "(i32.store8 (i32.const 261) (i32.const 10))
        (call $write (local.get $peer) (i32.const 256) (i32.const 6) (i32.const 0) (i32.const 0) (i32.const 640))",
        &done(2),
        "(call $read (local.get $peer) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 640))",
        &expect("(i32.eq (i32.load8_u (i32.load (i32.const 644))) (i32.const 83))", 3),
        "(call $tls (local.get $peer) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
            (i32.const 0) (i32.const 0) (i32.const 640))",
        &done(4),
        "(call $write (local.get $peer) (i32.const 256) (i32.const 5) (i32.const 0) (i32.const 0) (i32.const 640))
        (call $read (local.get $peer) (i32.const 5) (i32.const 0) (i32.const 0) (i32.const 640))
        (call $report (i32.const 0) (i32.load (i32.const 644)) (i32.load (i32.const 648)))",
    ];
    connected(&world, peer(Peer::Upgrades, false).await, &body.concat());
    assert_eq!(world.check("raw", "{}").await, success("hello"));
}
