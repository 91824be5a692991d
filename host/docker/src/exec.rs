//! Commands in containers: running, bounding and, when their time is over, ending them with all their processes.
//! It must not read anything into exit codes.

mod processes;

pub(crate) use processes::{Process, is_in_container, read, tell};

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::exec::StartExecResults;
use bollard::models::ExecConfig;
use futures::StreamExt;
use longshore_core::ports::exec::{ExecError, ExecOutput, ExecRequest, Purpose};
use tokio::time::{Instant, timeout_at};

use crate::connection::{ASK, CALL};
use crate::docker::Docker;
use crate::fault::Fault;
use crate::{names, wire};
use processes::Prey;

/// How long after a command's time the answer comes at the latest, where Docker does answer. The kill goes on for [`CALL`].
const ANSWER: Duration = Duration::from_millis(1500);
/// Looks in a row that may fail at a command that goes on without a time limit.
const FAULTS: u32 = 20;
/// Between two looks at an exec whose output has ended and whose exit code is not there yet.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

impl Docker {
    /// Runs a command. A probe's waits for a slot, which is not charged to its time. The work goes on in a task of its own
    /// until the command is dead, also when the caller loses interest, so that nothing is left running.
    pub(crate) async fn run_in_container(&self, request: ExecRequest) -> Result<ExecOutput, ExecError> {
        let gone = || ExecError::NotRunning { container_id: request.container_id.clone() };
        if !self
            .is_ours(&request.container_id)
            .await
            .map_err(|error| ExecError::Runtime { message: error.to_string() })?
        {
            return Err(gone());
        }
        let slot = match request.purpose {
            Purpose::Probe => self.execs().clone().acquire_owned().await.ok(),
            Purpose::Hook => None,
        };
        let (docker, limit) = (self.clone(), request.timeout.saturating_add(self.options().cleanup));
        let task = tokio::spawn(async move {
            let _slot = slot;
            docker.run(request).await
        });
        match tokio::time::timeout(limit, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(ExecError::Runtime { message: error.to_string() }),
            Err(_) => {
                Err(ExecError::Runtime { message: format!("Docker did not end it within {} s", limit.as_secs()) })
            }
        }
    }

    async fn run(&self, request: ExecRequest) -> Result<ExecOutput, ExecError> {
        let container = request.container_id.as_str();
        let sort = |fault: Fault| sort(fault, container);
        let begin = Instant::now();
        let prey = Prey::of(container);
        let config = ExecConfig {
            env: Some(vec![prey.mark.clone()]),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(request.command.clone()),
            ..Default::default()
        };
        let made = self
            .connection()
            .call(request.timeout.max(ASK), |docker| {
                let config = config.clone();
                async move { docker.create_exec(container, config).await }
            })
            .await
            .map_err(sort)?;
        let exec = made.id;
        if !names::is_container(&exec) {
            return Err(ExecError::Runtime { message: "Docker made an exec without an ID".to_owned() });
        }
        let output = Arc::new(Mutex::new(Vec::new()));
        let kept = || std::mem::take(&mut *output.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        let mut work = Box::pin(self.clone().attend(exec.clone(), output.clone(), request.output_limit));
        // A command has the whole of its time, even if the daemon took long to make the exec.
        let deadline = Instant::now() + request.timeout;
        if let Ok(done) = timeout_at(deadline, &mut work).await {
            if let Err(fault) = done {
                self.see_to_orphan(&fault, &exec, prey);
                return Err(sort(fault));
            }
            let exit_code = self.exit_code(&exec).await.map_err(sort)?;
            return Ok(ExecOutput { exit_code: Some(exit_code), output: kept() });
        }
        tracing::debug!(container, elapsed = ?begin.elapsed(), "a command took too long and is killed");
        let docker = self.clone();
        let killed = tokio::spawn(async move {
            let mut kill = pin!(docker.end(&exec, prey));
            // The connection stays open meanwhile: Docker takes its end for a reason to end the command its own way.
            tokio::select! {
                () = &mut kill => {}
                _ = work => kill.await,
            }
        });
        let _ = timeout_at(begin + request.timeout + ANSWER, killed).await;
        Ok(ExecOutput { exit_code: None, output: kept() })
    }

    /// Starts an exec and reads its output to the end; what is beyond the limit is dropped.
    async fn attend(self, exec: String, kept: Arc<Mutex<Vec<u8>>>, limit: usize) -> Result<(), Fault> {
        let exec = exec.as_str();
        let started = self.connection().call(CALL, |docker| async move { docker.start_exec(exec, None).await }).await?;
        let StartExecResults::Attached { mut output, input: _input } = started else { return Ok(()) };
        while let Some(piece) = output.next().await {
            let piece = match piece.map_err(|error| Fault::from_bollard(error, &self.connection().name))? {
                LogOutput::StdOut { message } | LogOutput::StdErr { message } | LogOutput::Console { message } => {
                    message
                }
                LogOutput::StdIn { .. } => continue,
            };
            let mut kept = kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let room = limit.saturating_sub(kept.len()).min(piece.len());
            kept.extend_from_slice(&piece[..room]);
        }
        Ok(())
    }

    /// A connection that broke does not end a command: it is ended apart, when the daemon is back.
    fn see_to_orphan(&self, fault: &Fault, exec: &str, prey: Prey) {
        if fault.status().is_none() {
            let (docker, exec) = (self.clone(), exec.to_owned());
            tokio::spawn(async move { docker.end(&exec, prey).await });
        }
    }

    /// The exit code of an exec whose output has ended. Docker notes it a little later.
    async fn exit_code(&self, exec: &str) -> Result<i32, Fault> {
        self.exit_code_at_last(exec, Some(Instant::now() + self.options().cleanup)).await
    }

    /// The same, where a command that has closed its outputs may go on until then, or for as long as it likes.
    pub(crate) async fn exit_code_at_last(&self, exec: &str, mut end: Option<Instant>) -> Result<i32, Fault> {
        let mut pause = LOOKS.0;
        let mut faults = 0;
        loop {
            let seen = match self.look_at_exec(exec).await {
                // A daemon that is busy for a moment ends no command that goes on.
                Err(fault) if end.is_none() && !fault.is_absent() && faults < FAULTS => {
                    faults += 1;
                    tracing::debug!(exec, %fault, "a command cannot be looked at");
                    tokio::time::sleep(LOOKS.1).await;
                    continue;
                }
                seen => seen?,
            };
            faults = 0;
            let running = seen.running.unwrap_or_default();
            if let (false, Some(code)) = (running, seen.exit_code) {
                return Ok(i32::try_from(code).unwrap_or(-1));
            }
            if !running {
                end = end.or(Some(Instant::now() + self.options().cleanup));
            }
            if end.is_some_and(|end| Instant::now() > end) {
                return Err(Fault::Nonsense("the command's output ended, but Docker tells no exit code".to_owned()));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOKS.1);
        }
    }

    async fn look_at_exec(&self, exec: &str) -> Result<wire::Exec, Fault> {
        self.connection().ask(ASK, &format!("/exec/{exec}/json")).await
    }

    /// Kills an exec's command and all that it started. Returns when none is left, or when two minutes have not been enough to
    /// find them.
    async fn end(&self, exec: &str, mut prey: Prey) {
        let end = Instant::now() + CALL;
        let mut pause = LOOKS.0;
        while Instant::now() < end {
            match self.look_at_exec(exec).await {
                Ok(seen) => {
                    let running = seen.running.unwrap_or_default();
                    let pid = seen.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0);
                    prey.session = pid.or(prey.session);
                    // Without either it was not started yet, and must not be left to start later.
                    if prey.session.is_some() || seen.exit_code.is_some() {
                        let all = prey.clone();
                        let left = tokio::task::spawn_blocking(move || all.kill()).await;
                        if matches!(left, Ok(0)) && !running {
                            return;
                        }
                    }
                }
                // It went with its container.
                Err(fault) if fault.is_absent() => return,
                Err(fault) => {
                    tracing::debug!(container = prey.container, %fault, "cannot look at a command that is to be killed");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOKS.1);
        }
        let container = prey.container;
        tracing::warn!(container, "a command that took too long could not be killed; is the daemon on this machine?");
    }
}

fn sort(fault: Fault, container: &str) -> ExecError {
    match fault {
        Fault::Answer { status: 404, .. } => ExecError::NotRunning { container_id: container.to_owned() },
        Fault::Answer { message, .. } if message.contains("is not running") => {
            ExecError::NotRunning { container_id: container.to_owned() }
        }
        other => ExecError::Runtime { message: other.to_string() },
    }
}
