//! The machine's own end: told beforehand by whoever ends it, and put off for a while.

use std::time::Duration;

use async_trait::async_trait;

/// Why the machine's end cannot be followed or put off.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShutdownError {
    /// Nobody here tells of it, or cannot be reached now.
    #[error("{message}")]
    Unreachable {
        /// Who was sought where, and what went wrong.
        message: String,
    },
    /// It would not wait for long enough, and cannot be made to.
    #[error("the machine waits {allowed:?} at most before it goes down, {needed:?} are needed: {message}")]
    TooShort {
        /// What is needed.
        needed: Duration,
        /// What it waits.
        allowed: Duration,
        /// What was tried, and where to change it.
        message: String,
    },
    /// It goes down already: too late to put it off.
    #[error("the machine goes down already: {message}")]
    TooLate {
        /// What was answered.
        message: String,
    },
    /// Anything else.
    #[error("{message}")]
    Failed {
        /// What was asked and what was answered.
        message: String,
    },
}

/// Whoever ends the machine.
#[async_trait]
pub trait MachineEnd: Send + Sync {
    /// Follows what it is about to do, and has it wait for us up to `delay` from now on. A machine that waits for less
    /// than that is made to wait for longer, if that can be done.
    async fn follow(&self, delay: Duration) -> Result<Box<dyn EndWatch>, ShutdownError>;
}

/// The machine's end, followed. Dropping it lets the machine go.
#[async_trait]
pub trait EndWatch: Send {
    /// Waits for news: `true` when the machine is about to go down, `false` when it is not (any more), `None` when it cannot
    /// be followed any more. The first word comes at once. Cancel safe.
    async fn next(&mut self) -> Option<bool>;

    /// Has the machine wait again, after it was let go.
    async fn hold(&mut self) -> Result<(), ShutdownError>;

    /// Lets the machine go down.
    fn let_go(&mut self);
}
