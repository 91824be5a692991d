//! What a plugin did wrong, in words for people: its author, and whoever runs the node. It must not decide what comes of it.

use std::time::Duration;

use wasmtime::Trap;
use wasmtime_wasi::I32Exit;

use crate::limits::{Limits, MAX_INSTANCES, TABLE_ELEMENTS};

/// What a plugin did wrong. Never a verdict on its target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("it ran for more than {} ms on the CPU without coming to an end", .0.as_millis())]
    Cpu(Duration),
    #[error("it wanted more than {} KiB of memory", .0 / 1024)]
    Memory(usize),
    #[error("it is linked of more than {} modules, which are the most", MAX_INSTANCES)]
    Instances,
    #[error("it wanted a table of more than {} elements", TABLE_ELEMENTS)]
    Table,
    #[error(
        "it still waited in WASI (a sleep, a poll or a stream) after its time of {} ms was over; longshore:clock's `sleep` ends with it",
        .0.as_millis()
    )]
    Waited(Duration),
    #[error("it did not end {} ms after it was called, long after its time was over", .0.as_millis())]
    Idle(Duration),
    #[error("it crashed: {0}")]
    Trap(String),
    #[error("it ended itself, with exit status {0}, where an answer was due")]
    Exit(i32),
    #[error("its answer is not allowed: {0}")]
    Answer(String),
}

impl Fault {
    /// What wasmtime says, in words for people.
    pub(crate) fn of(error: &wasmtime::Error, limits: Limits) -> Self {
        if let Some(fault) = error.downcast_ref::<Self>() {
            return fault.clone();
        }
        if let Some(exit) = error.downcast_ref::<I32Exit>() {
            return Self::Exit(exit.0);
        }
        let root = error.root_cause().to_string();
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => Self::Cpu(limits.cpu),
            Some(trap) => Self::Trap(trap.to_string()),
            None if root.contains("growing memory") => Self::Memory(limits.memory),
            None if root.contains("growing table") => Self::Table,
            None if root.contains("instance count too high") => Self::Instances,
            None => Self::Trap(root),
        }
    }
}
