//! Making and starting a pod's sandbox.

use longshore_core::action::{Planned, Track};
use longshore_core::event::EventType;
use longshore_core::observed::{Observation, Sandbox, SandboxState};
use longshore_core::ports::runtime::RuntimeError;
use longshore_core::{dns, sandbox_config};

use super::{Step, act};
use crate::worker::Worker;

/// Starts the sandbox and makes a container at the same time. Says whether the sandbox runs, and whether the container
/// was made.
pub(super) async fn start_beside(worker: &mut Worker, start: &Planned, creation: &Track) -> (bool, bool) {
    let Some(id) = worker.observed.sandbox().map(|sandbox| sandbox.id.clone()) else { return (false, false) };
    let runtime = worker.shared.ports.runtime.clone();
    let started = {
        let id = id.clone();
        tokio::spawn(async move {
            runtime.start(&id).await?;
            runtime.inspect(&id).await
        })
    };
    let mut made = true;
    for planned in creation {
        if !matches!(act(worker, planned).await, Step::Done) {
            made = false;
            break;
        }
    }
    let seen = match started.await {
        Ok(seen) => seen,
        Err(_) => Err(RuntimeError::Failed { operation: "start sandbox", message: "its task failed".to_owned() }),
    };
    tracing::debug!(pod = %worker.pod.id, "{}: {}", start.action, start.why);
    (matches!(sandbox_started(worker, &id, seen).await, Step::Done), made)
}

pub(super) async fn create_sandbox(worker: &mut Worker, attempt: u32) -> Step {
    let mut config = match sandbox_config::build(&worker.pod, &worker.shared.facts, attempt) {
        Ok(config) => config,
        Err(error) => return sandbox_failed(worker, &error.to_string()),
    };
    config.runtime = match worker.runtime().await {
        Ok(runtime) => runtime,
        Err(message) => return sandbox_failed(worker, &message),
    };
    if attempt > 0 {
        worker.event(
            None,
            EventType::Normal,
            "SandboxChanged",
            "Pod sandbox changed, it will be killed and re-created.",
        );
    }
    match worker.shared.ports.runtime.create_sandbox(&config).await {
        Ok(id) => {
            worker.observed.update(Observation::Sandbox(Sandbox {
                id,
                pod: worker.pod.id.clone(),
                attempt,
                hash: worker.pod.sandbox_hash.clone(),
                created_at: jiff::Timestamp::now(),
                state: SandboxState::Created,
                ips: Vec::new(),
                pid: None,
            }));
            Step::Done
        }
        Err(error) => sandbox_failed(worker, &error.to_string()),
    }
}

fn sandbox_failed(worker: &mut Worker, message: &str) -> Step {
    let text = format!("Failed to create pod sandbox: {message}");
    worker.event(None, EventType::Warning, "FailedCreatePodSandBox", &text);
    worker.failed("pod", "ContainerCreating", &text);
    Step::Waits
}

pub(super) async fn start_sandbox(worker: &mut Worker) -> Step {
    let Some(id) = worker.observed.sandbox().map(|sandbox| sandbox.id.clone()) else { return Step::Waits };
    let runtime = worker.shared.ports.runtime.clone();
    let seen = match runtime.start(&id).await {
        Ok(()) => runtime.inspect(&id).await,
        Err(error) => Err(error),
    };
    sandbox_started(worker, &id, seen).await
}

async fn sandbox_started(worker: &mut Worker, id: &str, seen: Result<Option<Observation>, RuntimeError>) -> Step {
    match seen {
        Ok(Some(seen)) => worker.observed.update(seen),
        Ok(None) => {
            worker.observed.forget(id);
            return sandbox_failed(worker, "it went away while it was started");
        }
        Err(error) => {
            worker.look_at(id).await;
            return sandbox_failed(worker, &error.to_string());
        }
    }
    worker.record.backoffs.remove("pod");
    let hosts = dns::hosts_file(&worker.pod, &worker.shared.facts, &worker.pod_ips());
    match worker.shared.ports.files.write_hosts(&worker.pod.id, &hosts).await {
        Ok(()) => Step::Done,
        Err(error) => sandbox_failed(worker, &error.to_string()),
    }
}
