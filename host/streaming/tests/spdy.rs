//! SPDY sessions: windows both ways, half-close, hostile clients.
#![allow(clippy::unwrap_used)]

mod client;

use std::time::Duration;

use client::{Frame, GOAWAY, PING, RST_STREAM, SETTINGS, SYN_REPLY, WINDOW_UPDATE, connect};
use longshore_streaming::spdy::Session;
use longshore_streaming::{Limits, Options};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test]
async fn streams_end_on_each_side_alone() {
    let (mut reader, mut writer, io) = connect();
    let (session, mut incoming) = Session::serve(io, Options::default());
    writer.open(1, &[("streamType", "data"), ("port", "80")]).await;
    let new = incoming.next().await.unwrap();
    assert_eq!((new.id(), new.headers().get("PORT")), (1, Some("80")));
    let mut stream = new.accept();
    assert_eq!(reader.control(SYN_REPLY).await.unwrap().0, 1);
    writer.data(1, true, b"to you").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "to you");
    stream.write_all(b"to me").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(reader.next().await.unwrap(), Frame::Data { id: 1, fin: false, data: b"to me".to_vec() });
    assert_eq!(reader.next().await.unwrap(), Frame::Data { id: 1, fin: true, data: vec![] });
    assert!(stream.write_all(b"more").await.is_err());
    writer.words(PING, &[7]).await;
    assert_eq!(reader.control(PING).await.unwrap().0, 7);
    let closing = tokio::spawn(async move { session.close().await });
    assert_eq!(reader.control(GOAWAY).await, Some((1, 0)));
    drop((reader, writer));
    closing.await.unwrap();
    assert!(incoming.next().await.is_none());
}

#[tokio::test]
async fn a_reset_and_a_lost_client_are_seen() {
    let (reader, mut writer, io) = connect();
    let (session, mut incoming) = Session::serve(io, Options::default());
    writer.open(1, &[]).await;
    writer.open(3, &[]).await;
    let mut first = incoming.next().await.unwrap().accept();
    let mut second = incoming.next().await.unwrap().accept();
    writer.words(RST_STREAM, &[1, 5]).await;
    assert_eq!(first.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(first.write_all(b"x").await.is_err());
    writer.data(3, false, b"last").await.unwrap();
    drop((reader, writer));
    let mut rest = Vec::new();
    second.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"last");
    session.closed().await;
    assert!(second.write_all(b"x").await.is_err());
}

/// As moby/spdystream: never a WINDOW_UPDATE, and all that there is at once, through a slow echo.
#[tokio::test]
async fn a_hundred_megabytes_without_windows() {
    const TOTAL: usize = 100 << 20;
    let (mut reader, mut writer, io) = connect();
    let (_session, mut incoming) = Session::serve(io, Options::default());
    writer.open(1, &[]).await;
    let stream = incoming.next().await.unwrap().accept();
    tokio::spawn(async move {
        let (mut from, mut to) = tokio::io::split(stream);
        tokio::io::copy(&mut from, &mut to).await.unwrap();
        to.shutdown().await.unwrap();
    });
    let (pongs, mut pinged) = tokio::sync::mpsc::unbounded_channel();
    let send = async {
        let chunk: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
        let mut sent = 0;
        while sent < TOTAL {
            while let Ok(id) = pinged.try_recv() {
                writer.words(PING, &[id]).await;
            }
            let n = chunk.len().min(TOTAL - sent);
            writer.data(1, sent + n == TOTAL, &chunk[..n]).await.unwrap();
            sent += n;
        }
        while let Some(id) = pinged.recv().await {
            writer.words(PING, &[id]).await;
        }
    };
    let receive = async move {
        let mut got = 0usize;
        loop {
            match reader.next().await.unwrap() {
                Frame::Data { fin: true, .. } => break,
                Frame::Data { data, .. } => {
                    for (at, byte) in data.iter().enumerate().step_by(997) {
                        let n = ((got + at) % 100_000) as u32;
                        assert_eq!(*byte, (n.wrapping_mul(n) >> 7) as u8, "at {}", got + at);
                    }
                    got += data.len();
                }
                frame => {
                    if let Some((id, _)) = frame.words(PING) {
                        pongs.send(id).unwrap();
                    }
                }
            }
        }
        assert_eq!(got, TOTAL);
    };
    tokio::time::timeout(Duration::from_secs(120), async { tokio::join!(send, receive) }).await.unwrap();
}

#[tokio::test]
async fn a_window_of_the_client_is_never_overrun() {
    let (mut reader, mut writer, io) = connect();
    let (_session, mut incoming) = Session::serve(io, Options::default());
    writer.words(SETTINGS, &[1, 7, 10_000]).await;
    writer.open(1, &[]).await;
    let mut stream = incoming.next().await.unwrap().accept();
    tokio::spawn(async move {
        let _ = stream.write_all(&vec![1; 200_000]).await;
        let _ = stream.shutdown().await;
    });
    let (mut got, mut window, mut session) = (0, 10_000i64, 64i64 << 10);
    while got < 200_000 {
        match tokio::time::timeout(Duration::from_secs(20), reader.next()).await {
            Ok(Some(Frame::Data { data, .. })) => {
                got += data.len();
                window -= data.len() as i64;
                session -= data.len() as i64;
                assert!(window >= 0 && session >= 0, "{window} {session}");
                if window == 0 && got < 200_000 {
                    // Nothing may come before both windows are open again.
                    writer.words(WINDOW_UPDATE, &[0, 5000]).await;
                    let early = tokio::time::timeout(Duration::from_millis(5), reader.next()).await;
                    assert!(early.is_err(), "{early:?}");
                    writer.words(WINDOW_UPDATE, &[1, 5000]).await;
                    (window, session) = (5000, session + 5000);
                }
            }
            other => assert!(matches!(other, Ok(Some(_))), "{other:?} after {got}"),
        }
    }
}

#[tokio::test]
async fn our_windows_open_as_the_application_reads_and_overrunning_them_resets() {
    let (mut reader, mut writer, io) = connect();
    let (_session, mut incoming) = Session::serve(io, Options::default());
    writer.words(SETTINGS, &[1, 7, 65536]).await;
    writer.open(1, &[]).await;
    let mut stream = incoming.next().await.unwrap().accept();
    reader.control(SYN_REPLY).await.unwrap();
    writer.data(1, false, &[0; 65536]).await.unwrap();
    writer.words(PING, &[1]).await;
    assert_eq!(reader.next().await.unwrap().words(PING).unwrap().0, 1, "no window opens unread");
    stream.read_exact(&mut [0; 32768]).await.unwrap();
    let (id, opened) = reader.control(WINDOW_UPDATE).await.unwrap();
    assert_eq!((id, opened), (1, 32768));
    writer.data(1, false, &[0; 32769]).await.unwrap();
    assert_eq!(reader.control(RST_STREAM).await, Some((1, 7)));
    assert!(stream.read_to_end(&mut Vec::new()).await.is_err());
}

#[tokio::test]
async fn overrunning_the_sessions_window_ends_it() {
    let (mut reader, mut writer, io) = connect();
    let (_session, mut incoming) = Session::serve(io, Options::default());
    // Whoever opens the session's window knows that there is one.
    writer.words(WINDOW_UPDATE, &[0, 1]).await;
    for id in [1, 3] {
        writer.open(id, &[]).await;
    }
    let _unread = (incoming.next().await.unwrap().accept(), incoming.next().await.unwrap().accept());
    writer.data(1, false, &[0; 32768]).await.unwrap();
    writer.data(3, false, &[0; 32768]).await.unwrap();
    writer.words(PING, &[1]).await;
    assert_eq!(reader.control(PING).await.unwrap().0, 1, "all of the window may be used");
    writer.data(3, false, &[0; 1]).await.unwrap();
    assert_eq!(reader.control(GOAWAY).await.map(|goaway| goaway.1), Some(1));
}

#[tokio::test]
async fn who_says_goodbye_opens_nothing_more() {
    let (mut reader, mut writer, io) = connect();
    let (_session, mut incoming) = Session::serve(io, Options::default());
    writer.open(1, &[]).await;
    let mut stream = incoming.next().await.unwrap().accept();
    writer.words(GOAWAY, &[0, 0]).await;
    writer.open(3, &[]).await;
    assert_eq!(reader.control(RST_STREAM).await, Some((3, 3)));
    // What is open goes on.
    writer.data(1, true, b"last").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "last");
}

#[tokio::test]
async fn a_stream_that_nobody_reads_holds_no_more_than_its_bound() {
    let (_reader, mut writer, io) = connect();
    let limits = Limits { stream_buffer: 128 << 10, ..Limits::default() };
    let (_session, mut incoming) = Session::serve(io, Options { limits, ..Options::default() });
    writer.open(1, &[]).await;
    let _stream = incoming.next().await.unwrap().accept();
    let mut sent = 0;
    while tokio::time::timeout(Duration::from_millis(200), writer.data(1, false, &[0; 1000])).await.is_ok() {
        sent += 1000;
        assert!(sent < 400 << 10, "128 KiB of the stream, 32 of the reader, 64 of the test's pipe");
    }
    assert!(sent >= 128 << 10);
}

#[tokio::test(start_paused = true)]
async fn a_lost_client_is_seen_though_its_stream_stands() {
    let (reader, mut writer, io) = connect();
    let (session, mut incoming) = Session::serve(io, Options::default());
    writer.open(1, &[]).await;
    let _unread = incoming.next().await.unwrap().accept();
    assert!(tokio::time::timeout(Duration::from_secs(1), writer.data(1, false, &[0; 1 << 20])).await.is_err());
    drop((reader, writer));
    tokio::time::timeout(Duration::from_secs(10), session.closed()).await.unwrap();
}

#[tokio::test]
async fn floods_are_refused() {
    let (mut reader, mut writer, io) = connect();
    let limits = Limits { streams: 10, ..Limits::default() };
    let (_session, mut incoming) = Session::serve(io, Options { limits, ..Options::default() });
    tokio::spawn(async move {
        for id in 0..1000 {
            writer.open(2 * id + 1, &[]).await;
        }
        writer.words(PING, &[1]).await;
        std::future::pending::<()>().await;
    });
    let (mut refused, mut replied) = (0, 0);
    while let Some(frame) = reader.next().await {
        if let Some((_, status)) = frame.words(RST_STREAM) {
            assert_eq!(status, 3);
            refused += 1;
        }
        replied += usize::from(frame.words(PING).is_some());
        if replied > 0 {
            break;
        }
    }
    // The PING's answer may overtake refusals.
    while refused < 990 {
        refused += usize::from(reader.control(RST_STREAM).await.is_some());
    }
    let mut arrived = Vec::new();
    for _ in 0..10 {
        arrived.push(incoming.next().await.unwrap().accept());
    }
    assert!(tokio::time::timeout(Duration::from_millis(50), incoming.next()).await.is_err());
}

#[tokio::test]
async fn a_client_that_asks_and_never_reads_is_read_no_further() {
    let (_reader, mut writer, io) = connect();
    let (_session, _incoming) = Session::serve(io, Options::default());
    let mut sent = 0;
    let flood: Vec<u8> = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1].repeat(100);
    while tokio::time::timeout(Duration::from_millis(200), writer.io.write_all(&flood)).await.is_ok() {
        sent += flood.len();
        assert!(sent < 1 << 20);
    }
}

#[tokio::test]
async fn nonsense_ends_the_session() {
    let syn = |block: &[u8]| {
        let mut frame = vec![0x80, 3, 0, 1, 0, 0, 0, 10 + block.len() as u8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        frame.extend_from_slice(block);
        frame
    };
    for bytes in [
        vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
        vec![0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0],
        vec![0x80, 3, 0, 4, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff],
        vec![0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![0, 0, 0, 0, 0, 0, 0, 0],
        syn(b"not zlib"),
    ] {
        let (mut reader, mut writer, io) = connect();
        let (_session, _incoming) = Session::serve(io, Options::default());
        writer.io.write_all(&bytes).await.unwrap();
        assert_eq!(reader.control(GOAWAY).await.map(|goaway| goaway.1), Some(1), "{bytes:?}");
        assert!(reader.next().await.is_none());
    }
    let (mut reader, mut writer, io) = connect();
    let (_session, _incoming) = Session::serve(io, Options::default());
    writer.open_raw(1, &[0xff; 8]).await;
    assert_eq!(reader.control(RST_STREAM).await, Some((1, 1)));
    writer.data(99, false, b"x").await.unwrap();
    assert_eq!(reader.control(RST_STREAM).await, Some((99, 2)));
}

#[tokio::test(start_paused = true)]
async fn idleness_and_dropping_end_a_session() {
    let (mut reader, _writer, io) = connect();
    let (session, _incoming) = Session::serve(io, Options::default());
    let begun = tokio::time::Instant::now();
    drop(session);
    assert!(reader.control(GOAWAY).await.is_some());
    assert!(begun.elapsed() < Duration::from_secs(1));
    let (mut reader, _writer, io) = connect();
    let (session, _incoming) = Session::serve(io, Options::default());
    assert!(reader.control(GOAWAY).await.is_some());
    session.closed().await;
    assert_eq!(begun.elapsed().as_secs() / 3600, 4);
    // A client that pings is there, though nothing is said: kubectl does, every few seconds.
    let (mut reader, mut writer, io) = connect();
    let (session, _incoming) = Session::serve(io, Options::default());
    for id in (1..12).step_by(2) {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        writer.words(PING, &[id]).await;
        assert_eq!(reader.control(PING).await.map(|(id, _)| id), Some(id));
    }
    let pinged = tokio::time::Instant::now();
    session.closed().await;
    assert_eq!(pinged.elapsed().as_secs() / 3600, 4);
}
