//! The ends of a hijacked connection, and the taking apart of Docker's frames. It must not talk to the daemon.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use longshore_core::ports::streams::{Read, Write};
use tokio::io::{AsyncBufRead as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, ReadBuf};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

/// What is read at a time.
const PIECE: usize = 64 << 10;
/// How long a half-close may take whose owner went away.
const CLOSING: Duration = Duration::from_secs(10);

/// Docker's frames, taken apart by whoever reads an output: a kind, three zeros, the length (big endian), the bytes.
/// Nothing is held but what one read brings, so a slow reader holds both outputs up: they have to be read at once.
/// What nobody wants, or whose reader is gone, is thrown away.
struct Frames<R> {
    from: BufReader<R>,
    head: [u8; 8],
    /// Bytes of the next head that are there.
    got: usize,
    /// Whose the frame is, and what is left of it.
    kind: Kind,
    left: usize,
    over: bool,
    /// By [`Kind`].
    wanted: [bool; 2],
    waiting: [Option<Waker>; 2],
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Stdout = 0,
    Stderr = 1,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    /// As many frames as are there: Docker makes one of every few KiB.
    fn poll_read(&mut self, cx: &mut Context<'_>, kind: Kind, into: &mut ReadBuf<'_>) -> Poll<()> {
        // The connection wakes whoever asked it last, who then wakes the other.
        self.waiting[kind as usize] = Some(cx.waker().clone());
        let before = into.filled().len();
        let so_far = |into: &ReadBuf<'_>| if into.filled().len() > before { Poll::Ready(()) } else { Poll::Pending };
        while !self.over && into.remaining() > 0 {
            let piece = match Pin::new(&mut self.from).poll_fill_buf(cx) {
                Poll::Ready(Ok(piece)) => piece,
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "a stream of Docker's broke");
                    &[]
                }
                Poll::Pending => return so_far(into),
            };
            if piece.is_empty() {
                self.over = true;
                self.wake();
                break;
            }
            if self.left == 0 {
                let n = piece.len().min(self.head.len() - self.got);
                self.head[self.got..self.got + n].copy_from_slice(&piece[..n]);
                Pin::new(&mut self.from).consume(n);
                self.got += n;
                if self.got == self.head.len() {
                    let [kind, .., a, b, c, d] = self.head;
                    // 3 is what the daemon itself has to say.
                    self.kind = if matches!(kind, 2 | 3) { Kind::Stderr } else { Kind::Stdout };
                    self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                    self.got = 0;
                }
                continue;
            }
            let mut n = piece.len().min(self.left);
            if self.kind == kind {
                n = n.min(into.remaining());
                into.put_slice(&piece[..n]);
            } else if self.wanted[self.kind as usize] {
                if let Some(other) = self.waiting[self.kind as usize].take() {
                    other.wake();
                }
                return so_far(into);
            }
            Pin::new(&mut self.from).consume(n);
            self.left -= n;
        }
        Poll::Ready(())
    }
}

impl<R> Frames<R> {
    fn wake(&mut self) {
        self.waiting.iter_mut().filter_map(Option::take).for_each(Waker::wake);
    }
}

struct Output<R> {
    frames: Arc<Mutex<Frames<R>>>,
    kind: Kind,
}

impl<R> Output<R> {
    fn frames(&self) -> MutexGuard<'_, Frames<R>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Output<R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.frames().poll_read(cx, self.kind, buf).map(Ok)
    }
}

impl<R> Drop for Output<R> {
    fn drop(&mut self) {
        let mut frames = self.frames();
        frames.wanted[self.kind as usize] = false;
        // The connection may know of nobody else who waits.
        frames.wake();
    }
}

/// The outputs of a process, stdout and stderr, where they are wanted.
pub(crate) fn outputs(
    from: impl AsyncRead + Send + Unpin + 'static,
    stdout: bool,
    stderr: bool,
) -> (Option<Read>, Option<Read>) {
    let frames = Arc::new(Mutex::new(Frames {
        from: BufReader::with_capacity(PIECE, from),
        head: [0; 8],
        got: 0,
        kind: Kind::Stdout,
        left: 0,
        over: false,
        wanted: [stdout, stderr],
        waiting: [None, None],
    }));
    let output = |kind| -> Read { Box::new(Output { frames: frames.clone(), kind }.compat()) };
    (stdout.then(|| output(Kind::Stdout)), stderr.then(|| output(Kind::Stderr)))
}

struct Stdin<W: AsyncWrite + Send + Unpin + 'static> {
    /// `None` once it is closed.
    inner: Option<W>,
}

/// The stdin of a process. Dropping it ends the process's stdin as closing does.
pub(super) fn stdin(inner: impl AsyncWrite + Send + Unpin + 'static) -> Write {
    Box::new(Stdin { inner: Some(inner) }.compat_write())
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Cursor;

    use futures::AsyncReadExt as _;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    async fn whole(output: Option<Read>) -> Vec<u8> {
        let mut bytes = Vec::new();
        output.unwrap().read_to_end(&mut bytes).await.unwrap();
        bytes
    }

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
            frame(3, b"why"),
            frame(1, &[7; 100_000]),
            frame(1, b"cut")[..9].to_vec(),
        ];
        let (out, err) = outputs(Cursor::new(bytes.concat()), true, true);
        let (out, err) = tokio::join!(whole(out), whole(err));
        assert_eq!((&out[..3], out.len(), &err[..]), (&b"out"[..], 100_004, &b"errwhy"[..]));

        let bytes = [frame(2, &[1; 10_000]), frame(1, b"x")].concat();
        let (out, err) = outputs(Cursor::new(bytes.clone()), true, false);
        assert!(err.is_none());
        assert_eq!(whole(out).await, b"x");
        let (out, err) = outputs(Cursor::new(bytes), true, true);
        let reading = tokio::spawn(whole(out));
        // Waits for the other's reader, and is told when that is gone.
        tokio::task::yield_now().await;
        assert!(!reading.is_finished());
        drop(err);
        assert_eq!(reading.await.unwrap(), b"x");
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_by_the_other() {
        let (mut docker, from) = tokio::io::duplex(16);
        let (out, err) = outputs(from, true, true);
        let (out, err) = (tokio::spawn(whole(out)), tokio::spawn(whole(err)));
        for kind in [1, 2, 2, 1, 2] {
            docker.write_all(&frame(kind, &[kind; 100])).await.unwrap();
        }
        drop(docker);
        assert_eq!((out.await.unwrap().len(), err.await.unwrap().len()), (200, 300));
    }
}
