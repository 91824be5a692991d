//! `longshore:exec`: commands in the target's container. It must not let a guest name a container.

use longshore_core::ports::exec::{ExecRequest, Purpose};
use std::time::Instant;

use crate::bindings::longshore::exec::runner::{Completed, ExecError, Host};
use crate::call::{Call, until};
use crate::grants::Capability;
use crate::limits::{EXEC_GRACE, MAX_COMMAND, MAX_EXECS, MAX_OUTPUT};

impl Host for Call {
    async fn run(&mut self, command: Vec<String>) -> wasmtime::Result<Result<Completed, ExecError>> {
        Ok(run(self, command).await)
    }
}

async fn run(call: &mut Call, command: Vec<String>) -> Result<Completed, ExecError> {
    call.ask(Capability::Exec).map_err(|_| ExecError::Denied)?;
    call.used.execs += 1;
    if call.used.execs > MAX_EXECS {
        return Err(ExecError::Invalid(format!("a call may run {MAX_EXECS} commands")));
    }
    if command.first().is_none_or(String::is_empty) {
        return Err(ExecError::Invalid("the command is empty".to_owned()));
    }
    if command.iter().map(|part| part.len() + 1).sum::<usize>() > MAX_COMMAND {
        return Err(ExecError::Invalid(format!("the command is longer than {MAX_COMMAND} bytes")));
    }
    let timeout = call.remaining();
    if timeout.is_zero() {
        return Ok(Completed { exit_code: None, output: Vec::new() });
    }
    let container_id = call.aim.container_id.clone();
    let (output_limit, purpose) = (MAX_OUTPUT, Purpose::Probe);
    let request = ExecRequest { container_id, command, timeout, output_limit, purpose };
    let ended = until(Instant::now() + timeout + EXEC_GRACE, call.exec.exec(request)).await;
    match ended {
        Ok(Ok(mut output)) => {
            output.output.truncate(MAX_OUTPUT);
            Ok(Completed { exit_code: output.exit_code, output: output.output })
        }
        Ok(Err(error)) => Err(ExecError::Runtime(error.to_string())),
        Err(_) => Err(ExecError::Runtime(format!(
            "the container runtime did not answer within {} s after the command's time was over",
            EXEC_GRACE.as_secs()
        ))),
    }
}
