//! The ends of a hijacked connection, and the taking apart of Docker's frames. It must not talk to the daemon.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use longshore_core::ports::streams::{Read, Write};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

/// What is read at a time.
const PIECE: usize = 32 << 10;
/// How long a half-close may take whose owner went away.
const CLOSING: Duration = Duration::from_secs(10);

/// Ends the taking apart when the last part of an attachment is dropped, so that the connection closes and the
/// process's stdin ends.
#[derive(Default)]
pub(super) struct Guard(Option<tokio::task::AbortHandle>);

impl Guard {
    pub(super) fn new(task: Option<tokio::task::AbortHandle>) -> Arc<Guard> {
        Arc::new(Guard(task))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

struct Output<R> {
    inner: R,
    _guard: Arc<Guard>,
}

/// An output of a process.
pub(super) fn output(inner: impl AsyncRead + Send + Unpin + 'static, guard: &Arc<Guard>) -> Read {
    Box::new(Output { inner, _guard: guard.clone() }.compat())
}

impl<R: AsyncRead + Unpin> AsyncRead for Output<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

struct Stdin<W: AsyncWrite + Send + Unpin + 'static> {
    /// `None` once it is closed.
    inner: Option<W>,
    _guard: Arc<Guard>,
}

/// The stdin of a process. Dropping it ends the process's stdin as closing does.
pub(super) fn stdin(inner: impl AsyncWrite + Send + Unpin + 'static, guard: &Arc<Guard>) -> Write {
    Box::new(Stdin { inner: Some(inner), _guard: guard.clone() }.compat_write())
}

impl<W: AsyncWrite + Send + Unpin + 'static> AsyncWrite for Stdin<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Some(inner) => Pin::new(inner).poll_write(cx, buf),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Some(inner) => Pin::new(inner).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(Ok(())) };
        let done = std::task::ready!(Pin::new(inner).poll_shutdown(cx));
        self.inner = None;
        Poll::Ready(done)
    }
}

impl<W: AsyncWrite + Send + Unpin + 'static> Drop for Stdin<W> {
    fn drop(&mut self) {
        if let (Some(mut inner), Ok(runtime)) = (self.inner.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                // What fails here is closed already.
                let _ = tokio::time::timeout(CLOSING, inner.shutdown()).await;
            });
        }
    }
}

/// Takes Docker's frames apart until the connection ends: a kind, three zeros, the length (big endian), the bytes. An
/// output whose reader is gone, or that nobody wants, is thrown away; a slow reader holds everything up, which is what
/// keeps memory bounded.
pub(super) async fn demultiplex(
    mut from: impl AsyncRead + Unpin,
    mut stdout: Option<DuplexStream>,
    mut stderr: Option<DuplexStream>,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let mut head = [0; 8];
        match from.read_exact(&mut head).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut left = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        while left > 0 {
            let room = left.min(PIECE);
            let got = from.read(&mut piece[..room]).await?;
            if got == 0 {
                return Ok(());
            }
            left -= got;
            let to = if head[0] == 2 { &mut stderr } else { &mut stdout };
            if let Some(writer) = to
                && writer.write_all(&piece[..got]).await.is_err()
            {
                *to = None;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn frame(kind: u8, bytes: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 0, 0];
        frame.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(bytes);
        frame
    }

    #[tokio::test]
    async fn frames_are_taken_apart_and_what_nobody_wants_is_dropped() {
        let bytes = [
            frame(1, b"out"),
            frame(2, b""),
            frame(2, b"err"),
            frame(1, &[7; 100_000]),
            frame(1, b"cut")[..9].to_vec(),
        ];
        let bytes = bytes.concat();
        let (out_write, mut out_read) = tokio::io::duplex(64);
        let (err_write, mut err_read) = tokio::io::duplex(64);
        let work = tokio::spawn(async move { demultiplex(&bytes[..], Some(out_write), Some(err_write)).await });
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let (first, second) = tokio::join!(out_read.read_to_end(&mut out), err_read.read_to_end(&mut err));
        first.unwrap();
        second.unwrap();
        work.await.unwrap().unwrap();
        assert_eq!((&out[..3], out.len(), &err[..]), (&b"out"[..], 100_004, &b"err"[..]));

        let bytes = [frame(2, &[1; 10_000]), frame(1, b"x")].concat();
        let (out_write, mut out_read) = tokio::io::duplex(64);
        let (err_write, err_read) = tokio::io::duplex(64);
        drop(err_read);
        demultiplex(&bytes[..], Some(out_write), Some(err_write)).await.unwrap();
        let mut out = String::new();
        out_read.read_to_string(&mut out).await.unwrap();
        assert_eq!(out, "x");
    }
}
