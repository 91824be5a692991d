//! Entry points for fuzz targets: bytes in, no panic, bounded time and memory.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::options::{Limits, Options};
use crate::spdy;

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
