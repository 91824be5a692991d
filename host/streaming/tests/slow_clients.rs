//! Clients that read late, over sockets: nothing of the tail is lost, whatever they send meanwhile, and none stays for
//! ever.
#![allow(clippy::unwrap_used)]

mod client;

use std::time::Duration;

use client::{Frame, GOAWAY, PING, Reader, SETTINGS, WINDOW_UPDATE, Writer, connect};
use futures::{SinkExt as _, StreamExt as _};
use longshore_streaming::negotiate::Protocol;
use longshore_streaming::remote_command::{self, Outcome, Requested};
use longshore_streaming::{Limits, Options};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

/// What the server's socket holds with ease, and the client's does not.
const OUTPUT: usize = 200 << 10;

/// A client's end, that takes little until it reads, and the server's.
async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpSocket::new_v4().unwrap();
    listener.set_send_buffer_size(1 << 20).unwrap();
    listener.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = listener.listen(1).unwrap();
    let client = TcpSocket::new_v4().unwrap();
    client.set_recv_buffer_size(16 << 10).unwrap();
    let (client, server) = tokio::join!(client.connect(listener.local_addr().unwrap()), listener.accept());
    (client.unwrap(), server.unwrap().0)
}

/// A command that says all that it has at once, reads nothing, and ends.
fn serve<IO>(io: IO, protocol: Protocol) -> JoinHandle<()>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    tokio::spawn(async move {
        // Those who are not waited for are cut at once here.
        let limits = Limits { linger: Duration::from_millis(10), ..Limits::default() };
        let requested = Requested { stdin: true, stdout: true, ..Requested::default() };
        let options = Options { limits, ..Options::default() };
        let mut command = remote_command::serve(io, protocol, requested, options).await.unwrap();
        drop(command.stdin.take());
        command.stdout.take().unwrap().write_all(&vec![b'x'; OUTPUT]).await.unwrap();
        command.finish.finish(Outcome::Success).await.unwrap();
    })
}

/// Between two signs of life of a client that does not read yet, and how many there are.
const SIGNS: (Duration, usize) = (Duration::from_millis(10), 30);

#[tokio::test]
async fn over_spdy() {
    let (client, server) = sockets().await;
    let server = serve(server, Protocol::Spdy { version: 4 });
    let (reader, writer) = client.into_split();
    let (mut reader, mut writer) = (Reader(reader), Writer::new(writer));
    // Windows that are no bound.
    writer.words(SETTINGS, &[1, 7, 1 << 30]).await;
    writer.words(WINDOW_UPDATE, &[0, 1 << 30]).await;
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
        writer.open(id, &[("streamtype", kind)]).await;
    }
    for _ in 0..SIGNS.1 {
        writer.words(PING, &[1]).await;
        // What cannot be sent is seen by what does not come.
        let _ = writer.data(3, false, &[0; 1 << 10]).await;
        tokio::time::sleep(SIGNS.0).await;
    }
    let (mut out, mut status, mut pongs) = (0, Vec::new(), 0);
    loop {
        match reader.next().await {
            Some(Frame::Data { id: 1, data, .. }) => status.extend(data),
            Some(Frame::Data { data, .. }) => out += data.len(),
            Some(frame) if frame.words(GOAWAY).is_some() => break,
            Some(frame) => pongs += usize::from(frame.words(PING).is_some()),
            None => panic!("the tail is lost after {out} bytes and status {:?}", String::from_utf8_lossy(&status)),
        }
    }
    assert_eq!((out, status), (OUTPUT, Outcome::Success.message(4)));
    while pongs < SIGNS.1 {
        reader.control(PING).await.unwrap();
        pongs += 1;
    }
    assert!(!server.is_finished(), "the client closes first");
    drop((reader, writer));
    server.await.unwrap();
}

#[tokio::test]
async fn over_a_websocket() {
    let (client, server) = sockets().await;
    let server = serve(server, Protocol::Channels { base64: false, version: 4 });
    let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
    for _ in 0..SIGNS.1 {
        let _ = client.send(Message::Ping(Vec::new().into())).await;
        let _ = client.send(Message::binary(vec![0; 64 << 10])).await;
        tokio::time::sleep(SIGNS.0).await;
    }
    let mut channels: [Vec<u8>; 4] = Default::default();
    while let Some(Ok(message)) = client.next().await {
        if let Message::Binary(data) = message {
            channels[usize::from(data[0])].extend_from_slice(&data[1..]);
        }
    }
    let [_, out, _, status] = channels;
    assert_eq!((out.len(), status), (OUTPUT, Outcome::Success.message(4)));
    server.await.unwrap();
}

/// All that a client asks after the end is read, for else it would not get the tail. What does not fit is not answered.
#[tokio::test(start_paused = true)]
async fn a_session_that_closes_gathers_no_answers() {
    const PINGS: usize = 50_000;
    let (mut reader, mut writer, io) = connect();
    let server = serve(io, Protocol::Spdy { version: 4 });
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
        writer.open(id, &[("streamtype", kind)]).await;
    }
    reader.control(GOAWAY).await.unwrap();
    for _ in 0..PINGS {
        writer.words(PING, &[1]).await;
    }
    let mut pongs = 0;
    // Until nothing more comes.
    while let Ok(Some(_)) = tokio::time::timeout(Duration::from_secs(1), reader.control(PING)).await {
        pongs += 1;
    }
    assert!((1..PINGS / 2).contains(&pongs), "{pongs} answers");
    drop((reader, writer));
    server.await.unwrap();
}

/// Nothing may follow the close of a WebSocket.
#[tokio::test(start_paused = true)]
async fn a_websocket_that_closes_answers_no_more() {
    let (mut client, io) = tokio::io::duplex(1 << 20);
    let server = serve(io, Protocol::Channels { base64: false, version: 4 });
    let goodbye = [0x88, 2, 0x03, 0xe8];
    let mut said = Vec::new();
    while !said.ends_with(&goodbye) {
        said.push(client.read_u8().await.unwrap());
    }
    // A ping, under a mask of zeros.
    client.write_all(&[0x89, 0x80, 0, 0, 0, 0]).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(1), client.read_u8()).await.is_err());
    drop(client);
    server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_never_closes_has_fifteen_minutes() {
    let (mut reader, mut writer, io) = connect();
    let begun = tokio::time::Instant::now();
    let server = serve(io, Protocol::Spdy { version: 4 });
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
        writer.open(id, &[("streamtype", kind)]).await;
    }
    reader.control(GOAWAY).await.unwrap();
    loop {
        writer.words(PING, &[1]).await;
        if reader.control(PING).await.is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(begun.elapsed() < Duration::from_secs(3600), "it stays for ever");
    }
    server.await.unwrap();
    assert_eq!(begun.elapsed().as_secs() / 60, 15);
}
