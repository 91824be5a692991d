//! Streams of commands and containers over Docker's hijacked connections ([`ContainerStreams`]).
//!
//! Whoever lets go of a command with a terminal hangs it up. One without is left to itself, but for its stdin, which ends:
//! the kubelet does no more. It must not read anything into exit codes, and speaks no protocol of those who want the streams.

mod ahead;
mod end;
mod hang_up;
mod pipe;

pub(crate) use pipe::outputs;

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bollard::models::ExecConfig;
use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use longshore_core::ports::runtime::RuntimeError;
use longshore_core::ports::streams::{Attached, AttachedControl, ContainerStreams, Read, StreamedExec, Wants};
use tokio_util::compat::TokioAsyncReadCompatExt as _;

use crate::connection::{ASK, CALL};
use crate::docker::Docker;
use crate::fault::Fault;
use crate::{names, observe, wire};

/// Docker lets go of a terminal by keys, and holds the first of them back until it sees the next: by default Ctrl-P,
/// which shells and editors want at once. An exec has no such keys in Kubernetes: these begin with the one that is least
/// missed, and are never typed. An attach keeps Docker's, as dockershim's did: old kubectls have no others.
const NEVER_TYPED: &str = "ctrl-^,ctrl-@,ctrl-_,ctrl-^,ctrl-@,ctrl-_,ctrl-^,ctrl-@";

/// Whose streams they are.
enum Of {
    Exec { id: String, container: String },
    Container(String),
}

struct Control {
    docker: Docker,
    of: Of,
    terminal: bool,
    /// Its process is known to have ended.
    ended: AtomicBool,
}

impl Drop for Control {
    fn drop(&mut self) {
        let Of::Exec { id, container } = &self.of else { return };
        if self.terminal
            && !self.ended.load(Ordering::Relaxed)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(hang_up::hang_up(self.docker.clone(), container.clone(), id.clone()));
        }
    }
}

impl Docker {
    /// A look at a running or dead container or sandbox of ours.
    async fn process(&self, id: &str, operation: &'static str) -> Result<wire::Inspect, RuntimeError> {
        let absent = || RuntimeError::NotFound { what: format!("container {id}") };
        if !names::is_container(id) {
            return Err(absent());
        }
        let sort = |fault: Fault| if fault.is_absent() { absent() } else { fault.during(operation) };
        let inspect: wire::Inspect =
            self.connection().ask(CALL, &format!("/containers/{id}/json")).await.map_err(sort)?;
        if !observe::is_ours(&inspect, self.root_id()) {
            return Err(absent());
        }
        Ok(inspect)
    }

    /// The ends of a connection, of which the process has `ended` when that resolves.
    fn parts(
        &self,
        upgraded: Upgraded,
        wants: Wants,
        terminal: bool,
        of: Of,
        ended: impl Future<Output = ()> + Send + 'static,
    ) -> Attached {
        let (read, write) = tokio::io::split(TokioIo::new(upgraded));
        let read = ahead::ahead(read, ended);
        let (stdout, stderr) = match terminal && wants.stdout {
            true => (Some(Box::new(read.compat()) as Read), None),
            false => outputs(read, wants.stdout, wants.stderr && !terminal),
        };
        let stdin = wants.stdin.then(|| pipe::stdin(write));
        let control = Control { docker: self.clone(), of, terminal, ended: AtomicBool::new(false) };
        Attached { stdin, stdout, stderr, control: Box::new(control) }
    }
}

fn not_running(id: &str, operation: &'static str) -> RuntimeError {
    RuntimeError::Failed { operation, message: format!("container {id} is not running") }
}

#[async_trait]
impl ContainerStreams for Docker {
    async fn exec_streams(&self, exec: &StreamedExec) -> Result<Attached, RuntimeError> {
        const OPERATION: &str = "exec in container";
        let (id, wants) = (exec.container_id.as_str(), exec.wants);
        if !self.is_ours(id).await? {
            return Err(RuntimeError::NotFound { what: format!("container {id}") });
        }
        let config = ExecConfig {
            attach_stdin: Some(wants.stdin),
            attach_stdout: Some(wants.stdout),
            attach_stderr: Some(wants.stderr && !wants.tty),
            tty: Some(wants.tty),
            detach_keys: wants.tty.then(|| NEVER_TYPED.to_owned()),
            cmd: Some(exec.command.clone()),
            ..Default::default()
        };
        let sort = |fault: Fault| match fault {
            fault if fault.is_absent() => RuntimeError::NotFound { what: format!("container {id}") },
            Fault::Answer { message, .. } if message.contains("is not running") => not_running(id, OPERATION),
            other => other.during(OPERATION),
        };
        let made = self
            .connection()
            .call(CALL, |docker| {
                let config = config.clone();
                async move { docker.create_exec(id, config).await }
            })
            .await
            .map_err(sort)?;
        if !names::is_container(&made.id) {
            return Err(RuntimeError::Failed {
                operation: OPERATION,
                message: "Docker made an exec without an ID".to_owned(),
            });
        }
        let body = Bytes::from(serde_json::json!({"Detach": false, "Tty": wants.tty}).to_string());
        let upgraded = self.connection().hijack(CALL, &format!("/exec/{}/start", made.id), body).await.map_err(sort)?;
        let ended = end::of_exec(self.clone(), made.id.clone());
        Ok(self.parts(upgraded, wants, wants.tty, Of::Exec { id: made.id, container: id.to_owned() }, ended))
    }

    async fn attach(&self, container_id: &str, wants: Wants) -> Result<Attached, RuntimeError> {
        const OPERATION: &str = "attach to container";
        let inspect = self.process(container_id, OPERATION).await?;
        if !inspect.state.as_ref().and_then(|state| state.running).unwrap_or_default() {
            return Err(not_running(container_id, OPERATION));
        }
        let ended = end::of_container(self.clone(), inspect.state.and_then(|state| state.pid));
        let config = inspect.config.unwrap_or_default();
        let terminal = config.tty.unwrap_or_default();
        // `kubectl attach -i` does not look whether a container has a stdin, and other runtimes do not mind.
        let nowhere = wants.stdin && !config.open_stdin.unwrap_or_default();
        let wants = Wants { stdin: wants.stdin && !nowhere, ..wants };
        let path = format!(
            "/containers/{container_id}/attach?stream=true&logs=false&stdin={}&stdout={}&stderr={}",
            wants.stdin,
            wants.stdout,
            wants.stderr && !terminal
        );
        let upgraded =
            self.connection().hijack(CALL, &path, Bytes::new()).await.map_err(|fault| fault.during(OPERATION))?;
        let mut attached = self.parts(upgraded, wants, terminal, Of::Container(container_id.to_owned()), ended);
        if nowhere {
            attached.stdin = Some(Box::new(futures::io::sink()));
        }
        Ok(attached)
    }

    async fn process_id(&self, id: &str) -> Result<u32, RuntimeError> {
        let state = self.process(id, "inspect container").await?.state.unwrap_or_default();
        match state.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0) {
            Some(pid) if state.running.unwrap_or_default() => Ok(pid),
            _ => Err(not_running(id, "inspect container")),
        }
    }
}

#[async_trait]
impl AttachedControl for Control {
    async fn resize(&self, width: u16, height: u16) -> Result<(), RuntimeError> {
        let path = match &self.of {
            Of::Exec { id, .. } => format!("/exec/{id}/resize?h={height}&w={width}"),
            Of::Container(id) => format!("/containers/{id}/resize?h={height}&w={width}"),
        };
        self.docker.connection().post(ASK, &path).await.map_err(|fault| fault.during("resize terminal"))
    }

    async fn exit_code(&self) -> Result<Option<i32>, RuntimeError> {
        match &self.of {
            Of::Exec { id, .. } => {
                let code = self.docker.exit_code_at_last(id, None).await;
                let code = code.map_err(|fault| fault.during("exec in container"))?;
                self.ended.store(true, Ordering::Relaxed);
                Ok(Some(code))
            }
            Of::Container(id) => {
                let state = self.docker.process(id, "inspect container").await?.state.unwrap_or_default();
                let ended = !state.running.unwrap_or_default();
                Ok(state.exit_code.filter(|_| ended).map(|code| i32::try_from(code).unwrap_or(-1)))
            }
        }
    }
}
