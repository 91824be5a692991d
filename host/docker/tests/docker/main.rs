//! The adapter against a real daemon, and against a fake one that misbehaves.
//!
//! The daemon is that of `DOCKER_HOST`, or the one at `/var/run/docker.sock`. Without one, the tests that need it say so
//! and pass, unless `LONGSHORE_REQUIRE_DOCKER` is set. They touch nothing but what they made.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod exec;
mod fake;
mod faults;
mod foreign;
mod lifecycle;
mod networks;
mod pulls;
mod store;
mod streams;
mod watching;
mod world;
