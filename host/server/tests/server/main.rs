//! The server from outside: who gets in, what is answered, and what the bounds hold against.
#![allow(clippy::unwrap_used)]

mod access;
mod answers;
mod bounds;
mod http2;
mod metrics;
mod played;
mod spdy;
mod streams;
mod world;
