//! A SPDY/3.1 server over any byte stream.
//!
//! **Windows.** The clients that matter (kubectl and the API server, by moby/spdystream) know no flow control: they
//! send no WINDOW_UPDATE, ignore ours, and send as much as they have. A client that does use windows must not be
//! overrun. Both are told apart by what they do:
//! - To send: the initial windows (64 KiB for each stream and for the session, or what SETTINGS says) always hold.
//!   A client that ever sent WINDOW_UPDATE or an initial window is held to its windows strictly, for streams and
//!   session each. Of a client that has sent neither when a window is used up, a PING behind the data asks for a
//!   sign: one that uses windows opens them as it reads, before it answers. Without a window 10 ms after the answer
//!   (2 s without an answer) it counts as one that knows none, and TCP alone slows us. If a window opens later
//!   all the same, windows hold from then on.
//! - To receive: our windows open only as the application reads. A client that uses windows and overruns a stream's
//!   gets RST_STREAM FLOW_CONTROL_ERROR, the session's GOAWAY. For others a stream holds up to
//!   `Limits::stream_buffer`; beyond it the socket is not read until the application reads (TCP's backpressure).
//!   That stops the session's other streams too, as it does in the kubelet, only later. While it lasts, PINGs are
//!   sent so that a client that is gone is noticed.
//!
//! **Bounds.** Data frames pass through a buffer of 32 KiB, whatever length they announce. Control frames, inflated
//! header blocks, headers, streams, buffered input and output are bounded by `Limits`; a client that provokes answers
//! and does not read them is read no further.

mod dictionary;
mod headers;
mod reader;
mod session;

pub use headers::{HeaderError, Headers};
pub use session::{Incoming, NewStream, Session};

pub(crate) use headers::Inflater;
