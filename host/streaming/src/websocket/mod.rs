//! WebSocket channels on the server's side, over an upgraded byte stream: `channel.k8s.io` and its relatives, and
//! SPDY tunnelled in binary messages (k8s.io/streaming `pkg/httpstream/wsstream/conn.go`).
//!
//! Frames are read here and not by a WebSocket library because a library hands out whole messages: a message passes
//! through a buffer of 32 KiB into its channel, and a channel that is not read stops the socket instead of growing.

mod base64;
mod reader;

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::mux::{self, Codec, Session, Shared, Stream};
use crate::options::Options;

/// Who may use a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    /// Nobody: what arrives is dropped.
    Ignored,
    /// Data from the client.
    Read,
    /// Data for the client.
    Write,
    /// Both.
    ReadWrite,
}

/// Serves channels; a [`Stream`] for each that is not ignored.
pub(crate) fn channels<IO>(
    io: IO,
    base64: bool,
    close_signals: bool,
    channels: &[Channel],
    options: Options,
) -> (Session, Vec<Option<Stream>>)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let shared = Arc::new(Shared::new(Codec::Channels { base64 }, options));
    let streams = channels.iter().zip(0u32..).map(|(channel, id)| {
        let mut state = shared.state();
        let entry = state.open(id);
        entry.ignored = !matches!(channel, Channel::Read | Channel::ReadWrite);
        entry.sent_fin = !matches!(channel, Channel::Write | Channel::ReadWrite);
        drop(state);
        (*channel != Channel::Ignored).then(|| Stream::new(shared.clone(), id))
    });
    let streams = streams.collect();
    let reader = reader::Reader::new(reader::Kind::Channels { base64, close_signals, count: channels.len() as u32 });
    (mux::start(io, shared, reader), streams)
}

/// The byte stream inside a tunnel: every binary message's payload, in turn. Its shutdown closes the WebSocket.
pub(crate) fn tunnel<IO>(io: IO, options: Options) -> Stream
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let shared = Arc::new(Shared::new(Codec::Tunnel, options));
    shared.state().open(0);
    let stream = Stream::new(shared.clone(), 0);
    stream.with_session(mux::start(io, shared, reader::Reader::new(reader::Kind::Tunnel)))
}
