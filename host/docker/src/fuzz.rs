//! Entry points for fuzz targets: bytes as a daemon may send them, no panic, nothing more than came in.

use std::io;

use bytes::Bytes;
use futures::{AsyncReadExt as _, future, stream};
use longshore_core::ports::streams::Read;
use tokio_util::io::StreamReader;

use crate::logs::Decoder;
use crate::streams::outputs;

/// Takes a log apart; the first byte says whether it is a terminal's or has dates, whether these are wanted, and in pieces of
/// which size it comes. The pieces make no difference to what is read.
pub fn log(bytes: &[u8]) {
    let (&pick, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    let (tty, dates, size) = (pick & 0x80 != 0, pick & 0x40 != 0, usize::from(pick & 0x3f).max(1));
    let read = |size: usize| {
        let (mut decoder, mut read) = (Decoder::new(tty, dates, pick & 1 == 0), [Vec::new(), Vec::new()]);
        for piece in bytes.chunks(size) {
            decoder.feed(&Bytes::copy_from_slice(piece));
            loop {
                match decoder.next() {
                    Ok(Some(chunk)) => read[usize::from(chunk.stderr)].extend_from_slice(&chunk.data),
                    Ok(None) => break,
                    Err(_) => return (read, false),
                }
            }
        }
        (read, true)
    };
    let whole = read(bytes.len().max(1));
    assert!(whole == read(size));
    assert!(whole.0[0].len() + whole.0[1].len() <= bytes.len());
}

/// Takes a command's output apart; the first byte says which of both streams are wanted, and in pieces of which size it
/// comes. The pieces make no difference to what is read, nor does what else is wanted.
pub fn frames(bytes: &[u8]) {
    let (&pick, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    let (stdout, stderr, size) = (pick & 0x80 != 0, pick & 0x40 != 0, usize::from(pick & 0x3f).max(1));
    let read = |size: usize, stdout: bool, stderr: bool| {
        let pieces: Vec<io::Result<Bytes>> = bytes.chunks(size).map(|it| Ok(Bytes::copy_from_slice(it))).collect();
        let (stdout, stderr) = outputs(StreamReader::new(stream::iter(pieces)), stdout, stderr);
        futures::executor::block_on(future::join(whole(stdout), whole(stderr)))
    };
    let all = read(bytes.len().max(1), true, true);
    assert!(all.0.len() + all.1.len() <= bytes.len());
    let some = read(size, stdout, stderr);
    assert!(some.0 == if stdout { all.0 } else { Vec::new() });
    assert!(some.1 == if stderr { all.1 } else { Vec::new() });
}

async fn whole(output: Option<Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut output) = output {
        assert!(output.read_to_end(&mut bytes).await.is_ok());
    }
    bytes
}
