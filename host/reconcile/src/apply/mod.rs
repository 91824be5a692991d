//! Does what a plan says: one function per action; which actions, and when, is core's.
//!
//! What takes long is started in the background ([`crate::background`]) and its end wakes the worker.

mod container;
mod image;
mod prepare;
mod resize;
mod sandbox;

use jiff::{SignedDuration, Timestamp};
use longshore_core::action::{Action, Planned, Stage, Track};
use longshore_core::cgroup::{self, PodCgroup, Qos};
use longshore_core::event::EventType;
use longshore_core::plan::Plan;
use longshore_core::ports::files::FilesError;
use longshore_core::ports::runtime::RuntimeError;

use crate::background;
use crate::worker::Worker;

pub(crate) use image::not_mounted;

/// In the place of a container's ID: what the pod has on the disk.
pub(crate) const DISK: &str = "disk";

/// How applying a plan ended.
pub(crate) enum Outcome {
    /// All of it was done: plan again.
    Done,
    /// Something must wait, or goes on in the background.
    Waits,
    /// The pod is gone.
    Gone,
}

/// How one action ended.
pub(crate) enum Step {
    Done,
    Waits,
    Gone,
}

/// Applies a plan, stage after stage. A failure of the pod as a whole ends it, a failure of one container ends that
/// container's part of it, and nothing more is started beside a postStart hook: the next plan goes on.
pub(crate) async fn apply(worker: &mut Worker, plan: &Plan) -> Outcome {
    let mut waits = false;
    let mut hooked = false;
    let mut skipped: Vec<String> = Vec::new();
    for stage in &plan.stages {
        let (first, rest) = overlap(stage);
        if let Some((start, creation)) = first {
            match sandbox::start_beside(worker, start, creation).await {
                (true, made) => {
                    if !made {
                        waits = true;
                        skipped.extend(
                            creation.iter().filter_map(|planned| planned.action.container().map(str::to_owned)),
                        );
                    }
                }
                (false, _) => return Outcome::Waits,
            }
        }
        for track in rest {
            for planned in track {
                let container = planned.action.container().map(str::to_owned);
                let is_skipped = container.as_ref().is_some_and(|name| skipped.contains(name));
                if is_skipped || (hooked && is_of_start(&planned.action)) {
                    break;
                }
                match act(worker, planned).await {
                    Step::Done => hooked |= container.is_some_and(|name| worker.runs_hook(&name)),
                    Step::Gone => return Outcome::Gone,
                    Step::Waits => {
                        waits = true;
                        match container {
                            Some(name) => skipped.push(name),
                            None => return Outcome::Waits,
                        }
                        break;
                    }
                }
            }
        }
    }
    if waits { Outcome::Waits } else { Outcome::Done }
}

/// Whether it is for a container to start.
fn is_of_start(action: &Action) -> bool {
    matches!(action, Action::EnsureImage { .. } | Action::CreateContainer { .. } | Action::StartContainer { .. })
}

/// A stage in which a sandbox starts while its first container is made, taken apart.
fn overlap(stage: &Stage) -> (Option<(&Planned, &Track)>, Vec<&Track>) {
    if let [start, creation] = stage.as_slice()
        && let [planned] = start.as_slice()
        && matches!(planned.action, Action::StartSandbox { .. })
    {
        return (Some((planned, creation)), Vec::new());
    }
    (None, stage.iter().collect())
}

async fn act(worker: &mut Worker, planned: &Planned) -> Step {
    tracing::debug!(pod = %worker.pod.id, container = planned.action.container(), "{}: {}", planned.action, planned.why);
    match &planned.action {
        Action::Prepare => worker.prepare(true).await,
        Action::CreateSandbox { attempt } => sandbox::create_sandbox(worker, *attempt).await,
        Action::StartSandbox { .. } => sandbox::start_sandbox(worker).await,
        Action::EnsureImage { container } => image::ensure(worker, container).await,
        Action::CreateContainer { container, attempt } => {
            container::create_container(worker, container, *attempt).await
        }
        Action::StartContainer { container } => container::start_container(worker, container).await,
        Action::StopContainer { id, container, grace_seconds, after, told } => {
            background::stop(worker, id, container, *grace_seconds, after, told.as_deref());
            Step::Waits
        }
        Action::StopSandbox { id } => {
            sandbox::detach(worker, id).await;
            let stopped = worker.shared.ports.runtime.stop(id, std::time::Duration::from_secs(1)).await;
            // What kept an old one from ending is not what the next one waits for.
            if stopped.is_ok() && worker.observed.sandbox().is_some_and(|newest| newest.id == *id) {
                worker.record.backoffs.remove("pod");
            }
            settle(worker, stopped, id, "FailedKillPod").await
        }
        Action::RemoveContainer { id, container } => {
            let attempt = worker.observed.containers.iter().find(|seen| seen.id == *id).map_or(0, |seen| seen.attempt);
            worker.shared.ports.files.unlink_log(&worker.pod.id, container, attempt, id).await;
            let removed = worker.shared.ports.runtime.remove(id).await;
            settle_removal(worker, removed, id)
        }
        Action::RemoveSandbox { id } => {
            // One that ended by itself, or that plugins did not let go when it was stopped.
            sandbox::detach(worker, id).await;
            let removed = worker.shared.ports.runtime.remove(id).await;
            settle_removal(worker, removed, id)
        }
        Action::CheckMemory { pod, containers } => resize::check_memory(worker, *pod, containers).await,
        Action::SetPodLimits { cgroup } => resize::set_pod_limits(worker, cgroup).await,
        Action::UpdateContainer { id, container, to, resources } => {
            resize::update_container(worker, id, container, *to, resources).await
        }
        Action::ReleaseFiles => release_files(worker).await,
        Action::Release => release(worker).await,
    }
}

async fn settle(worker: &mut Worker, result: Result<(), RuntimeError>, id: &str, event: &str) -> Step {
    match result {
        Ok(()) => {
            worker.look_at(id).await;
            Step::Done
        }
        Err(error) => {
            worker.event(None, EventType::Warning, event, &error.to_string());
            worker.failed("pod", "ContainerCreating", &error.to_string());
            worker.look_at(id).await;
            Step::Waits
        }
    }
}

fn settle_removal(worker: &mut Worker, result: Result<(), RuntimeError>, id: &str) -> Step {
    match result {
        Ok(()) => {
            worker.observed.forget(id);
            Step::Done
        }
        Err(error) => {
            if worker.is_news(id, &error.to_string()) {
                tracing::warn!(pod = %worker.pod.id, "{id} could not be removed: {error}; trying again");
            }
            worker.inbox_later();
            Step::Waits
        }
    }
}

async fn release_files(worker: &mut Worker) -> Step {
    match give_back(worker).await {
        Ok(()) => {
            worker.undone.remove(DISK);
            worker.record.released = true;
            worker.files = None;
            Step::Done
        }
        Err(error) => not_released(worker, &error),
    }
}

async fn release(worker: &mut Worker) -> Step {
    let files = worker.shared.ports.files.clone();
    let released: Result<(), FilesError> = async {
        give_back(worker).await?;
        files.forget(&worker.pod.id.uid).await
    }
    .await;
    match released {
        Ok(()) => Step::Gone,
        Err(error) => not_released(worker, &error),
    }
}

/// Volumes and cgroup, also of a class that the pod had before.
async fn give_back(worker: &Worker) -> Result<(), FilesError> {
    let files = &worker.shared.ports.files;
    files.release(&worker.pod.id).await?;
    let now = cgroup::pod_cgroup(&worker.pod, &worker.facts);
    for qos in Qos::ALL {
        files.remove_cgroup(&PodCgroup { qos, ..now.clone() }).await?;
    }
    Ok(())
}

fn not_released(worker: &mut Worker, error: &FilesError) -> Step {
    if worker.is_news(DISK, &error.to_string()) {
        tracing::warn!(pod = %worker.pod.id, "what the pod had on the disk cannot be removed: {error}; trying again");
    }
    worker.inbox_later();
    Step::Waits
}

impl Worker {
    /// Whether the postStart hook of the newest container of that name runs, or failed.
    fn runs_hook(&self, name: &str) -> bool {
        self.observed.container(name).is_some_and(|seen| self.busy.post_start.contains(&seen.id))
    }

    /// Whether something could not be stopped or removed, and the last try did not fail for the same reason.
    pub(crate) fn is_news(&mut self, about: &str, error: &str) -> bool {
        self.undone.insert(about.to_owned(), error.to_owned()).as_deref() != Some(error)
    }

    /// Comes back to what failed, in a while.
    fn inbox_later(&self) {
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            inbox.put(|_| {});
        });
    }

    /// Marks a container as being stopped.
    pub(crate) fn stopping(&mut self, id: &str, grace_seconds: i64) {
        let killed = Timestamp::now().checked_add(SignedDuration::from_secs(grace_seconds));
        self.busy.stopping.insert(id.to_owned(), killed.unwrap_or(Timestamp::MAX));
    }
}
