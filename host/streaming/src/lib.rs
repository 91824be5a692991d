//! SPDY/3.1 sessions and WebSocket channels over any byte stream, as kubectl and the API server speak them.
//!
//! [`negotiate`] picks the protocol before the answer 101, [`remote_command`] serves exec and attach, and
//! [`port_forward`] port forwarding, each the same over both protocols. Knows nothing of pods, HTTP servers or
//! container runtimes.

pub mod fuzz;
mod mux;
pub mod negotiate;
mod options;
pub mod port_forward;
pub mod remote_command;
pub mod spdy;
mod websocket;

pub use mux::Stream;
pub use options::{Limits, Options};
