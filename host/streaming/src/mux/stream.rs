//! The application's handle of one stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::state::{End, Shared};
use super::wire::rst;

/// One stream of a session, both ways. Split it with [`tokio::io::split`].
///
/// Shutting it down ends our side only; reading ends when the peer ended its side or went away, and fails with
/// `ConnectionReset` after a reset. Dropping it ends our side and drops whatever still arrives.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    id: u32,
    flushing: Option<u64>,
    /// Keeps the session of a tunnel, which has no other handle.
    _session: Option<super::Session>,
}

impl Stream {
    pub(crate) fn new(shared: Arc<Shared>, id: u32) -> Self {
        Self { shared, id, flushing: None, _session: None }
    }

    pub(crate) fn with_session(mut self, session: super::Session) -> Self {
        self._session = Some(session);
        self
    }

    /// The stream's number (SPDY), or the channel's (WebSocket).
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Aborts the stream (RST_STREAM CANCEL); what waits to be written is still written. WebSocket channels only end.
    pub fn reset(&self) {
        self.reset_other(self.id);
    }

    /// Aborts another stream of the session.
    pub(crate) fn reset_other(&self, id: u32) {
        let mut state = self.shared.state();
        if !state.closing && state.entries.get(&id).is_some_and(|entry| entry.ended != Some(End::Reset)) {
            state.reset(self.shared.codec, id, rst::CANCEL);
        }
        drop(state);
        self.shared.to_write.notify_one();
    }

    /// Resolves when the peer went away or the session is over.
    pub async fn closed(&self) {
        self.shared.over.cancelled().await;
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.shared.poll_read(cx, self.id, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.shared.poll_write(cx, self.id, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.shared.poll_flush(cx, this.id, &mut this.flushing)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.shared.fin(this.id);
        this.shared.poll_flush(cx, this.id, &mut this.flushing)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.release(self.id);
    }
}
