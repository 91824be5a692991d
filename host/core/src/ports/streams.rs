//! Byte streams into pods: an interactive command, a container's own streams, a port of the pod.

use async_trait::async_trait;
use futures::io::{AsyncRead, AsyncWrite};

use super::runtime::RuntimeError;

/// Something to read from (`tokio_util::compat` makes it tokio's).
pub type Read = Box<dyn AsyncRead + Send + Unpin>;
/// Something to write to; closing it is the half-close.
pub type Write = Box<dyn AsyncWrite + Send + Unpin>;

/// A command to run in a container with its streams attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamedExec {
    /// ID of the running container.
    pub container_id: String,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Which streams are wanted.
    pub wants: Wants,
}

/// Which streams of a process are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// Its stdin.
    pub stdin: bool,
    /// Its stdout.
    pub stdout: bool,
    /// Its stderr; never with `tty`.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

/// The streams of a process. Dropping them lets go of the process: its stdin ends, and the terminal of an exec that runs is
/// hung up. The outputs have to be read at once: what comes for one may wait for what came before for the other.
pub struct Attached {
    /// Its stdin, where wanted.
    pub stdin: Option<Write>,
    /// Its stdout (with a terminal: all output), where wanted.
    pub stdout: Option<Read>,
    /// Its stderr, where wanted.
    pub stderr: Option<Read>,
    /// What else can be done with it.
    pub control: Box<dyn AttachedControl>,
}

/// What can be done with an attached process besides reading and writing.
#[async_trait]
pub trait AttachedControl: Send + Sync {
    /// Sets the size of its terminal, in characters.
    async fn resize(&self, width: u16, height: u16) -> Result<(), RuntimeError>;

    /// The exit code of an exec, waited for after its streams have ended; `None` for an attachment to a container that
    /// still runs.
    async fn exit_code(&self) -> Result<Option<i32>, RuntimeError>;
}

/// Streams into containers, by the container runtime.
#[async_trait]
pub trait ContainerStreams: Send + Sync {
    /// Starts a command with its streams. One that cannot be started has the runtime's words as its output, and ends with 126
    /// or 127.
    async fn exec_streams(&self, exec: &StreamedExec) -> Result<Attached, RuntimeError>;

    /// Attaches to a container's own process. `wants.stdin` needs a container that was made with `stdin`.
    async fn attach(&self, container_id: &str, wants: Wants) -> Result<Attached, RuntimeError>;

    /// Process ID, in the node's namespace, of a running container's or sandbox's first process.
    async fn process_id(&self, id: &str) -> Result<u32, RuntimeError>;
}
