//! Entry points for fuzz targets: bytes in, no panic, bounded time and memory.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::negotiate::Protocol;
use crate::options::{Limits, Options};
use crate::{port_forward, remote_command, spdy};

fn block_on(future: impl Future<Output = ()>) {
    if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() {
        runtime.block_on(future);
    }
}

/// Inflates and reads one header block.
pub fn headers(block: &[u8]) {
    let _ = spdy::Inflater::default().read(block, &Limits::default());
}

/// Serves a SPDY session to a client that sends these bytes and closes; streams are echoed.
pub fn spdy(bytes: &[u8]) {
    block_on(async {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let (session, mut incoming) = spdy::Session::serve(server, Options::default());
        let serve = async move {
            while let Some(new) = incoming.next().await {
                let (mut reader, mut writer) = tokio::io::split(new.accept());
                tokio::spawn(async move { tokio::io::copy(&mut reader, &mut writer).await });
            }
            session.closed().await;
        };
        tokio::join!(serve, feed(&mut client, bytes));
    });
}

/// Reads terminal sizes.
pub fn sizes(bytes: &[u8]) {
    let _ = remote_command::parse_sizes(&mut bytes.to_vec());
}

/// Serves a command over SPDY to a client that sends these bytes and closes; the first byte picks the version and
/// whether it has a terminal. stdin goes to stdout.
pub fn command(bytes: &[u8]) {
    let (&pick, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    serve_command(Protocol::Spdy { version: (pick & 3) + 1 }, pick & 8 != 0, bytes);
}

/// The same over WebSocket channels.
pub fn websocket(bytes: &[u8]) {
    let (&pick, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    let protocol = Protocol::Channels { base64: pick & 1 != 0, version: [1, 4, 5, 5][usize::from(pick >> 1 & 3)] };
    serve_command(protocol, pick & 8 != 0, bytes);
}

fn serve_command(protocol: Protocol, tty: bool, bytes: &[u8]) {
    let requested = remote_command::Requested { stdin: true, stdout: true, stderr: false, tty };
    block_on(async {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let serve = async {
            let served = remote_command::serve(server, protocol, requested, Options::default()).await;
            let Ok(mut command) = served else { return };
            let copied = async {
                if let (Some(mut stdin), Some(mut stdout)) = (command.stdin.take(), command.stdout.take()) {
                    let _ = tokio::io::copy(&mut stdin, &mut stdout).await;
                }
            };
            let resized = async {
                if let Some(mut sizes) = command.resize.take() {
                    while sizes.recv().await.is_some() {}
                }
            };
            tokio::join!(copied, resized);
            let _ = command.finish.finish(remote_command::Outcome::Success).await;
        };
        tokio::join!(serve, feed(&mut client, bytes));
    });
}

/// Serves two ports over WebSocket channels to a client that sends these bytes and closes; the first byte picks whether
/// they are base64. What comes is sent back.
pub fn forward(bytes: &[u8]) {
    let (&pick, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    serve_forwards(Protocol::Channels { base64: pick & 1 != 0, version: 4 }, &[80, 8080], bytes);
}

/// Serves port forwarding through a tunnel to a client that sends these bytes and closes.
pub fn tunnel(bytes: &[u8]) {
    serve_forwards(Protocol::Tunnel, &[], bytes);
}

fn serve_forwards(protocol: Protocol, ports: &[u16], bytes: &[u8]) {
    block_on(async {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let mut forwards = port_forward::serve(server, protocol, ports, Options::default());
        let serve = async move {
            while let Some(forward) = forwards.next().await {
                tokio::spawn(async move {
                    let (_, data, end) = forward.into_parts();
                    let (mut reader, mut writer) = tokio::io::split(data);
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                    let _ = end.finish(Ok(())).await;
                });
            }
            forwards.close().await;
        };
        tokio::join!(serve, feed(&mut client, bytes));
    });
}

async fn feed(client: &mut tokio::io::DuplexStream, bytes: &[u8]) {
    let (mut reader, mut writer) = tokio::io::split(client);
    let write = async {
        let _ = writer.write_all(bytes).await;
        let _ = writer.shutdown().await;
    };
    let read = async {
        let mut sink = [0; 4096];
        while matches!(reader.read(&mut sink).await, Ok(n) if n > 0) {}
    };
    tokio::join!(write, read);
}
