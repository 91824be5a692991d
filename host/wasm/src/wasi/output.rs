//! What guests print, as lines of our log. It must not keep more of a line than the log does.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::limits::{MAX_LINE, MAX_PRINT};
use crate::log::{Level, Voice};

/// Standard output or error of a guest; all handles on it share its line.
#[derive(Clone)]
pub(super) struct Output(Arc<Mutex<Line>>);

/// The line that has not ended yet.
struct Line {
    voice: Arc<Voice>,
    level: Level,
    bytes: Vec<u8>,
}

impl Output {
    pub(super) fn new(voice: &Arc<Voice>, level: Level) -> Self {
        Self(Arc::new(Mutex::new(Line { voice: Arc::clone(voice), level, bytes: Vec::new() })))
    }

    fn print(&self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).print(bytes);
    }
}

impl Line {
    fn print(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = piece.strip_suffix(b"\n");
            // One byte more than a line may have, so that the log sees that it was longer.
            let room = (MAX_LINE + 1).saturating_sub(self.bytes.len());
            let wanted = text.unwrap_or(piece);
            self.bytes.extend_from_slice(&wanted[..wanted.len().min(room)]);
            if text.is_some() {
                self.end();
            }
        }
    }

    fn end(&mut self) {
        let line = String::from_utf8_lossy(&self.bytes);
        let line = line.trim_end();
        if !line.is_empty() {
            self.voice.say(self.level, line);
        }
        self.bytes.clear();
    }
}

/// A guest that ends, or is ended, in the middle of a line has still said it: often why.
impl Drop for Line {
    fn drop(&mut self) {
        self.end();
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

#[async_trait::async_trait]
impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.print(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_PRINT)
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, _context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.print(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
