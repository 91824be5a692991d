//! Writes of an HTTP/1.1 connection: one that makes no progress has a limit. A client that asks and never reads would else
//! keep its place for ever; more than one answer is not gathered for it. It must not know what is written.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::Sleep;

/// A byte stream whose writes are watched.
pub(super) struct Writes<S> {
    stream: S,
    /// How long a write may wait; `None` for as long as it likes.
    limit: watch::Receiver<Option<Duration>>,
    /// Until when the one that waits may do so.
    overdue: Option<Pin<Box<Sleep>>>,
}

impl<S> Writes<S> {
    pub(super) fn new(stream: S, limit: watch::Receiver<Option<Duration>>) -> Writes<S> {
        Writes { stream, limit, overdue: None }
    }

    /// What came of a try.
    fn seen<T>(&mut self, cx: &mut Context<'_>, tried: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if tried.is_ready() {
            self.overdue = None;
            return tried;
        }
        let Some(limit) = *self.limit.borrow() else { return tried };
        let overdue = self.overdue.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        overdue.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Writes<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Writes<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let tried = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.seen(cx, tried)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let tried = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.seen(cx, tried)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let tried = Pin::new(&mut self.stream).poll_flush(cx);
        self.seen(cx, tried)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let tried = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.seen(cx, tried)
    }
}
