//! The plugin host from outside: the built-in probes and source against servers on loopback, and guests that mean harm.
#![allow(clippy::unwrap_used)]

mod bounds;
mod built_in;
mod cache;
mod dial;
mod guests;
mod hostile;
mod server;
mod sources;
mod support;
mod wasi;
