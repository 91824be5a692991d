//! Ports for what listens a moment later. Must not be of those that the system gives to clients, which would take them meanwhile.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
};

/// Below 30000, where those of Services begin, and 32768, where those of clients do.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// A port on which nobody listens, and that no other test of this process gets.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Two processes with tests begin at different ones.
    let begin = (std::process::id() % u32::from(COUNT)) as u16;
    loop {
        let port = FIRST + (begin + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}
