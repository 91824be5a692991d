//! exec and port forwarding over each protocol: nothing of the output's tail is lost, ends and statuses arrive.
#![allow(clippy::unwrap_used)]

mod client;

use std::time::Duration;

use base64::Engine as _;
use client::{Frame, GOAWAY, RST_STREAM, connect};
use futures::{SinkExt as _, StreamExt as _};
use longshore_streaming::negotiate::Protocol;
use longshore_streaming::remote_command::{Outcome, Requested, ServeError, Size};
use longshore_streaming::{Options, port_forward, remote_command};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

async fn websocket() -> (WebSocketStream<DuplexStream>, DuplexStream) {
    let (client, server) = tokio::io::duplex(64 << 10);
    (WebSocketStream::from_raw_socket(client, Role::Client, None).await, server)
}

fn binary(channel: u8, data: &[u8]) -> Message {
    Message::binary([&[channel], data].concat())
}

/// All messages until the server's close, by channel. The client closes then, which the server waits for.
async fn rest(mut client: WebSocketStream<DuplexStream>) -> [Vec<u8>; 4] {
    let mut channels: [Vec<u8>; 4] = Default::default();
    while let Some(Ok(message)) = client.next().await {
        if let Message::Binary(data) = message {
            channels[usize::from(data[0])].extend_from_slice(&data[1..]);
        }
    }
    channels
}

#[tokio::test]
async fn spdy_exec_echoes_and_reports_its_exit_code() {
    const TAIL: usize = 3 << 20;
    let (mut reader, mut writer, io) = connect();
    let client = async move {
        for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr"), (9, "nonsense")] {
            writer.open(id, &[("streamtype", kind)]).await;
        }
        writer.data(3, true, b"hello").await.unwrap();
        let (mut out, mut error, mut fins) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            match reader.next().await.unwrap() {
                Frame::Data { id, fin, data } => {
                    if fin {
                        fins.push(id);
                    }
                    match id {
                        1 => error.extend(data),
                        5 => out.extend(data),
                        _ => assert!(data.is_empty()),
                    }
                }
                frame if frame.words(GOAWAY).is_some() => break,
                frame if frame.words(6).is_some() => writer.words(6, &[frame.words(6).unwrap().0]).await,
                _ => {}
            }
        }
        assert!(out.starts_with(b"hello") && out.len() == 5 + TAIL);
        fins.sort_unstable();
        assert_eq!(fins, [1, 3, 5, 7]);
        String::from_utf8(error).unwrap()
    };
    let server = async {
        let requested = Requested { stdin: true, stdout: true, stderr: true, tty: false };
        let protocol = Protocol::Spdy { version: 4 };
        let mut command = remote_command::serve(io, protocol, requested, Options::default()).await.unwrap();
        let mut text = Vec::new();
        command.stdin.take().unwrap().read_to_end(&mut text).await.unwrap();
        let stdout = command.stdout.as_mut().unwrap();
        stdout.write_all(&text).await.unwrap();
        stdout.write_all(&vec![b'x'; TAIL]).await.unwrap();
        command.finish.finish(Outcome::ExitCode(7)).await.unwrap();
    };
    let (error, ()) = tokio::join!(client, server);
    assert!(error.contains(r#""reason":"ExitCode","message":"7""#), "{error}");
}

#[tokio::test(start_paused = true)]
async fn spdy_exec_waits_for_its_streams_thirty_seconds() {
    let (_reader, mut writer, io) = connect();
    writer.open(1, &[("streamtype", "error")]).await;
    let requested = Requested { stdout: true, ..Requested::default() };
    let begun = tokio::time::Instant::now();
    let served = remote_command::serve(io, Protocol::Spdy { version: 1 }, requested, Options::default()).await;
    assert!(matches!(served, Err(ServeError::TimedOut)));
    assert_eq!(begun.elapsed().as_secs(), 30);
}

#[tokio::test]
async fn channels_carry_a_terminal() {
    for version in [1, 4, 5] {
        let (mut client, io) = websocket().await;
        let requested = Requested { stdin: true, stdout: true, stderr: true, tty: true };
        let protocol = Protocol::Channels { base64: false, version };
        let mut command = remote_command::serve(io, protocol, requested, Options::default()).await.unwrap();
        assert!(command.stderr.is_none());
        assert_eq!(client.next().await.unwrap().unwrap(), binary(1, b""));
        client.send(binary(4, br#"{"Width":120,"Height":40}"#)).await.unwrap();
        client.send(binary(0, b"ls\n")).await.unwrap();
        client.send(Message::Ping(b"p".to_vec().into())).await.unwrap();
        client.send(binary(9, b"nowhere")).await.unwrap();
        let size = command.resize.as_mut().unwrap().recv().await;
        assert_eq!(size, Some(Size { width: 120, height: 40 }));
        let mut line = [0; 3];
        let mut stdin = command.stdin.take().unwrap();
        stdin.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"ls\n");
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Pong(b"p".to_vec().into()));
        if version == 5 {
            client.send(binary(255, &[0])).await.unwrap();
            assert_eq!(stdin.read(&mut line).await.unwrap(), 0, "the close signal ends stdin alone");
        }
        let finish = async {
            command.stdout.as_mut().unwrap().write_all(&vec![b'y'; 1 << 20]).await.unwrap();
            command.finish.finish(Outcome::ExitCode(3)).await.unwrap();
        };
        let ([_, out, _, error], ()) = tokio::join!(rest(client), finish);
        assert_eq!(out.len(), 1 << 20);
        assert_eq!(error, Outcome::ExitCode(3).message(version));
    }
}

#[tokio::test]
async fn channels_speak_base64_in_texts() {
    let (mut client, io) = websocket().await;
    let requested = Requested { stdin: true, stdout: true, ..Requested::default() };
    let protocol = Protocol::Channels { base64: true, version: 1 };
    let mut command = remote_command::serve(io, protocol, requested, Options::default()).await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), Message::text("1"));
    let data: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    let text = base64::engine::general_purpose::STANDARD.encode(&data);
    let send = client.send(Message::text(format!("0{text}")));
    let mut got = vec![0; data.len()];
    let mut stdin = command.stdin.take().unwrap();
    let (sent, read) = tokio::join!(send, stdin.read_exact(&mut got));
    sent.unwrap();
    read.unwrap();
    assert_eq!(got, data);
    command.stdout.as_mut().unwrap().write_all(b"out").await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), Message::text("1b3V0"));
}

#[tokio::test]
async fn a_client_that_goes_away_ends_stdin() {
    let (mut client, io) = websocket().await;
    let requested = Requested { stdin: true, stdout: true, ..Requested::default() };
    let protocol = Protocol::Channels { base64: false, version: 4 };
    let mut command = remote_command::serve(io, protocol, requested, Options::default()).await.unwrap();
    let gone = command.gone();
    let close = async move {
        client.close(None).await.unwrap();
        while client.next().await.is_some_and(|message| message.is_ok()) {}
    };
    tokio::join!(close, gone.wait());
    let mut stdin = command.stdin.take().unwrap();
    assert_eq!(stdin.read(&mut [0; 8]).await.unwrap(), 0);
    assert!(command.stdout.as_mut().unwrap().write_all(b"x").await.is_err());
    assert!(command.finish.finish(Outcome::Success).await.is_err());
}

#[tokio::test]
async fn nonsense_frames_close_a_websocket() {
    for (bytes, status) in [
        (&[0x82, 0x01, 0, 0][..], 1002u16),
        (&[0xc2, 0x80, 0, 0, 0, 0], 1002),
        (&[0x80, 0x80, 0, 0, 0, 0], 1002),
        (&[0x09, 0x80, 0, 0, 0, 0], 1002),
        // Half of a status.
        (&[0x88, 0x81, 0, 0, 0, 0, 3], 1002),
        (&[0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0], 1009),
    ] {
        let (mut client, io) = tokio::io::duplex(1024);
        let requested = Requested { stdout: true, ..Requested::default() };
        let protocol = Protocol::Channels { base64: false, version: 4 };
        let command = remote_command::serve(io, protocol, requested, Options::default()).await.unwrap();
        client.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, [&[0x82, 1, 1, 0x88, 2][..], &status.to_be_bytes()].concat());
        command.gone().wait().await;
    }
}

async fn echo(forward: port_forward::Forward) {
    let (port, data, end) = forward.into_parts();
    let (mut from, mut to) = tokio::io::split(data);
    to.write_all(&port.to_be_bytes()).await.unwrap();
    tokio::io::copy(&mut from, &mut to).await.unwrap();
    to.shutdown().await.unwrap();
    end.finish(Ok(())).await.unwrap();
}

#[tokio::test]
async fn spdy_forwards_pair_their_streams() {
    let (mut reader, mut writer, io) = connect();
    let mut forwards = port_forward::serve(io, Protocol::Spdy { version: 1 }, &[], Options::default());
    let server = tokio::spawn(async move {
        let mut ports = Vec::new();
        while let Some(forward) = forwards.next().await {
            ports.push(forward.port);
            tokio::spawn(echo(forward));
        }
        forwards.close().await;
        ports
    });
    let open = |id, kind, port, request| (id, [("streamtype", kind), ("port", port), ("requestid", request)]);
    for (id, headers) in [
        open(1, "error", "80", "a"),
        open(3, "error", "81", "b"),
        open(5, "data", "81", "b"),
        open(7, "data", "80", "a"),
        open(9, "error", "82", ""),
        open(11, "data", "82", ""),
        open(13, "data", "0", "c"),
        // None has a name so long.
        open(15, "data", "80", &"7".repeat(257)),
    ] {
        writer.open(id, &headers).await;
    }
    for id in [5, 7, 11] {
        writer.data(id, true, b"ping").await.unwrap();
    }
    let (mut ended, mut refused, mut got) = (0, Vec::new(), Vec::new());
    while ended < 6 || refused.len() < 2 {
        match reader.next().await.unwrap() {
            Frame::Data { id, fin, data } => {
                ended += u32::from(fin);
                got.extend(data.iter().map(|byte| (id, *byte)));
            }
            frame => refused.extend(frame.words(RST_STREAM)),
        }
    }
    refused.sort_unstable();
    assert_eq!(refused, [(13, 3), (15, 1)]);
    for (id, port) in [(5, 81), (7, 80), (11, 82)] {
        let bytes: Vec<u8> = got.iter().filter(|(of, _)| *of == id).map(|(_, byte)| *byte).collect();
        assert_eq!(bytes, [&[0, port][..], b"ping"].concat());
    }
    drop((reader, writer));
    let mut ports = server.await.unwrap();
    ports.sort_unstable();
    assert_eq!(ports, [80, 81, 82]);
}

#[tokio::test(start_paused = true)]
async fn half_a_pair_is_told_after_thirty_seconds() {
    let (mut reader, mut writer, io) = connect();
    let mut forwards = port_forward::serve(io, Protocol::Spdy { version: 1 }, &[], Options::default());
    writer.open(1, &[("streamtype", "error"), ("port", "80"), ("requestid", "0")]).await;
    tokio::spawn(async move { forwards.next().await.is_none() });
    loop {
        if let Frame::Data { id, data, .. } = reader.next().await.unwrap() {
            assert_eq!((id, &data[..]), (1, &b"(request=0) timed out waiting for streams"[..]));
            break;
        }
    }
}

#[tokio::test]
async fn the_tunnel_carries_spdy() {
    let (mut client, io) = websocket().await;
    let mut forwards = port_forward::serve(io, Protocol::Tunnel, &[], Options::default());
    tokio::spawn(async move {
        let (_, _data, end) = forwards.next().await.unwrap().into_parts();
        end.finish(Err("no such port".to_owned())).await.unwrap();
        forwards.close().await;
    });
    // The frames of the SPDY client, in binary messages cut anywhere.
    let (_reader, mut writer, mut bytes) = connect();
    writer.open(1, &[("streamtype", "error"), ("port", "80"), ("requestid", "0")]).await;
    writer.open(3, &[("streamtype", "data"), ("port", "80"), ("requestid", "0")]).await;
    drop((writer, _reader));
    let mut frames = Vec::new();
    bytes.read_to_end(&mut frames).await.unwrap();
    for piece in frames.chunks(7) {
        client.send(Message::binary(piece.to_vec())).await.unwrap();
    }
    let (mut answer, goaway) = (Vec::new(), [0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 0]);
    while let Some(Ok(message)) = client.next().await {
        if let Message::Binary(data) = message {
            answer.extend_from_slice(&data);
            if answer.ends_with(&goaway) {
                client.close(None).await.unwrap();
            }
        }
    }
    let text = b"\x00\x00\x00\x01\x00\x00\x00\x0cno such port";
    assert!(answer.windows(text.len()).any(|window| window == text));
    for id in [3, 1] {
        let reset = [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, id, 0, 0, 0, 5];
        assert!(answer.windows(reset.len()).any(|window| window == reset), "{id} is aborted");
    }
    assert!(answer.ends_with(&goaway));
}

#[tokio::test]
async fn channels_forward_the_ports_of_the_query() {
    let (mut client, io) = websocket().await;
    let protocol = Protocol::Channels { base64: false, version: 4 };
    let mut forwards = port_forward::serve(io, protocol, &[80, 8080], Options::default());
    let first = forwards.next().await.unwrap();
    let second = forwards.next().await.unwrap();
    for (channel, port) in [(0, 80u16), (1, 80), (2, 8080), (3, 8080)] {
        assert_eq!(client.next().await.unwrap().unwrap(), binary(channel, &port.to_le_bytes()));
    }
    client.send(binary(2, b"GET")).await.unwrap();
    let (_, mut data, end) = second.into_parts();
    let mut got = [0; 3];
    data.read_exact(&mut got).await.unwrap();
    data.write_all(b"200").await.unwrap();
    drop(data);
    end.finish(Ok(())).await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), binary(2, b"200"));
    first.finish(Err("refused".to_owned())).await.unwrap();
    let (next, [_, error, _, _]) = tokio::join!(
        async {
            let next = forwards.next().await;
            forwards.close().await;
            next
        },
        rest(client)
    );
    assert!(next.is_none());
    assert_eq!(error, b"refused");
}

#[tokio::test]
async fn hostile_bytes_end() {
    use longshore_streaming::fuzz;
    let within = tokio::time::timeout(
        Duration::from_secs(20),
        tokio::task::spawn_blocking(|| {
            let mut seed = 1u32;
            for round in 0..200 {
                let bytes: Vec<u8> = (0..round)
                    .map(|_| {
                        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (seed >> 24) as u8 & if round % 2 == 0 { 0x83 } else { 0xff }
                    })
                    .collect();
                fuzz::spdy(&bytes);
                fuzz::websocket(&bytes);
                fuzz::tunnel(&bytes);
                fuzz::headers(&bytes);
                fuzz::sizes(&bytes);
            }
        }),
    );
    within.await.unwrap().unwrap();
}
