//! A session as the application sees it: streams that arrive, each to be accepted or refused.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::headers::{Headers, empty_block};
use super::reader::Reader;
use crate::mux::{self, Codec, Shared, Stream};
use crate::options::Options;

/// A stream that the client opened.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) id: u32,
    pub(crate) headers: Headers,
}

/// A SPDY/3.1 session on the server's side. When the last clone is dropped, the session closes in order.
#[derive(Debug, Clone)]
pub struct Session(mux::Session);

impl Session {
    /// Serves a session over a byte stream. Needs a Tokio runtime.
    pub fn serve<IO>(io: IO, options: Options) -> (Self, Incoming)
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new(Codec::Spdy, options));
        let session = mux::start(io, shared.clone(), Reader::new(sender));
        (Self(session), Incoming { receiver, shared })
    }

    /// Says GOAWAY and waits until the client has read all that was written, and closed; or is gone, or had its time.
    pub async fn close(&self) {
        self.0.close().await;
    }

    /// Resolves when the client went away, or the session is over for another reason.
    pub async fn closed(&self) {
        self.0.shared.over.cancelled().await;
    }

    pub(crate) fn into_inner(self) -> mux::Session {
        self.0
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }
}

/// The streams that the client opens. When it is dropped, further ones are refused.
#[derive(Debug)]
pub struct Incoming {
    receiver: mpsc::UnboundedReceiver<Arrived>,
    shared: Arc<Shared>,
}

impl Incoming {
    /// The next stream; `None` when the client went away or the session closes.
    pub async fn next(&mut self) -> Option<NewStream> {
        let arrived = tokio::select! {
            biased;
            arrived = self.receiver.recv() => arrived?,
            () = self.shared.closing.cancelled() => return None,
        };
        Some(NewStream { shared: self.shared.clone(), arrived: Some(arrived) })
    }
}

/// A stream that waits for an answer. Dropped without one, it is refused.
#[derive(Debug)]
pub struct NewStream {
    shared: Arc<Shared>,
    arrived: Option<Arrived>,
}

impl NewStream {
    /// What the client said of the stream.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        static NONE: std::sync::LazyLock<Headers> = std::sync::LazyLock::new(Headers::default);
        self.arrived.as_ref().map_or(&NONE, |arrived| &arrived.headers)
    }

    /// The stream's number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.arrived.as_ref().map_or(0, |arrived| arrived.id)
    }

    /// Accepts the stream (SYN_REPLY).
    #[must_use]
    pub fn accept(mut self) -> Stream {
        let id = self.id();
        self.arrived = None;
        let shared = &self.shared;
        let mut state = shared.state();
        if !state.closing {
            let first = !std::mem::replace(&mut state.replied, true);
            state.append(|out| {
                let mut body = id.to_be_bytes().to_vec();
                empty_block(&mut body, first);
                out.extend_from_slice(&[0x80, 3, 0, 2]);
                out.extend_from_slice(&(body.len() as u32).to_be_bytes());
                out.extend_from_slice(&body);
            });
        }
        drop(state);
        shared.to_write.notify_one();
        Stream::new(shared.clone(), id)
    }

    /// Refuses the stream (RST_STREAM REFUSED_STREAM).
    pub fn refuse(self) {}
}

impl Drop for NewStream {
    fn drop(&mut self) {
        if let Some(arrived) = self.arrived.take() {
            let shared = &self.shared;
            let mut state = shared.state();
            if !state.closing {
                state.reset(shared.codec, arrived.id, crate::mux::REFUSED_STREAM);
            }
            state.entries.remove(&arrived.id);
            drop(state);
            shared.to_write.notify_one();
        }
    }
}
