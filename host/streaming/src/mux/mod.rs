//! What both protocols share: streams with bounded buffers over one byte stream, a writer, closing, idleness.
//! Knows nothing of SPDY's or WebSocket's incoming frames; [`wire`] writes the outgoing ones.
//!
//! One mutex guards a session's state; it is held for copies of at most 32 KiB and never across an await.

mod drive;
mod input;
mod recv;
mod send;
mod state;
mod stream;
mod wire;

pub(crate) use drive::{Demux, Ended, Session, start};
pub(crate) use input::Input;
pub(crate) use state::{End, Entry, Flow, Shared};
pub use stream::Stream;
pub(crate) use wire::rst::REFUSED_STREAM;
pub(crate) use wire::{Codec, control, ws_header};
