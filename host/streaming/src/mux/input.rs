//! A read buffer of fixed size over the socket: whole headers, and payloads piece by piece.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

const SIZE: usize = 32 << 10;

/// Buffered input of which no more than one buffer is held, whatever lengths the peer announces.
#[derive(Debug)]
pub(crate) struct Input<R> {
    io: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<R: AsyncRead + Unpin> Input<R> {
    pub(crate) fn new(io: R) -> Self {
        Self { io, buffer: vec![0; SIZE].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Exactly `N` bytes; `None` at a clean end before the first of them.
    pub(crate) async fn array<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        let mut taken = [0; N];
        let mut filled = 0;
        while filled < N {
            let piece = self.some(N - filled).await?;
            if piece.is_empty() {
                return if filled == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            taken[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
            let n = piece.len();
            self.consume(n);
        }
        Ok(Some(taken))
    }

    /// Between one and `most` bytes that wait to be consumed; empty at the end of the input.
    pub(crate) async fn some(&mut self, most: usize) -> io::Result<&mut [u8]> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            self.end = self.io.read(&mut self.buffer).await?;
        }
        let end = self.end.min(self.start.saturating_add(most));
        Ok(&mut self.buffer[self.start..end])
    }

    /// Drops the first `n` bytes of what [`Self::some`] gave.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }

    /// `length` bytes as one vector, which grows as they arrive. The caller bounds `length`.
    pub(crate) async fn body(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        while body.len() < length {
            let piece = self.some(length - body.len()).await?;
            if piece.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            body.extend_from_slice(piece);
            let n = piece.len();
            self.consume(n);
        }
        Ok(body)
    }
}
