//! Running a command inside a container: the port that exec probes and lifecycle hooks use.

use std::time::Duration;

use async_trait::async_trait;

/// A command to run in a running container, as an exec probe or an exec hook does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecRequest {
    /// ID of the running container.
    pub container_id: String,
    /// The command and its arguments; never a shell line.
    pub command: Vec<String>,
    /// How long the command may run. When it is over, the command and every process that it started are killed.
    pub timeout: Duration,
    /// Bytes of output (stdout and stderr together) that are kept; the rest is read and dropped.
    pub output_limit: usize,
    /// Who asks.
    pub purpose: Purpose,
}

/// What a command is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A probe: one of many that come again and again, so many at a time as the runtime allows.
    Probe,
    /// A lifecycle hook: once in a container's life, as long as it takes, and it waits for no other's end.
    Hook,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// The exit code, or `None` when the time was over and the command was killed.
    pub exit_code: Option<i32>,
    /// stdout and stderr as they came, at most `output_limit` bytes.
    pub output: Vec<u8>,
}

/// Why a command could not be run at all. An exit code, also 126 and 127, is not an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    /// The container does not exist or does not run any more.
    #[error("container {container_id} is not running")]
    NotRunning {
        /// The container that was named.
        container_id: String,
    },
    /// The container runtime failed; trying again may help.
    #[error("the container runtime could not run the command: {message}")]
    Runtime {
        /// What the runtime said.
        message: String,
    },
}

/// Runs commands in containers.
#[async_trait]
pub trait ContainerExec: Send + Sync {
    /// Runs a command and waits for its end or its timeout, whichever comes first. What cannot be killed within a second or
    /// so after the timeout (it may wait for a disk) is killed later: the answer does not wait for that.
    async fn exec(&self, request: ExecRequest) -> Result<ExecOutput, ExecError>;
}
