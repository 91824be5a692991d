//! What woke a worker, merged into what it knows.

use std::time::Duration;

use jiff::Timestamp;
use longshore_core::backoff;
use longshore_core::event::EventType;
use longshore_core::observed::{Exit, Sandbox, SandboxState, by_pod};
use longshore_core::plan::{Cause, Unhealthy};
use longshore_core::pod::{Deletion, Pod, Source};
use longshore_core::ports::runtime::RuntimeChange;
use longshore_core::probe::{ProbeKind, Sample};
use longshore_core::record::{self, ContainerRecord};

use super::Worker;
use crate::apply::not_mounted;
use crate::inbox::{Done, Wakes};
use crate::network::{complete, complete_all};
use crate::pull::NotPulled;

/// What is said of such a pod.
const UNTOLD: &str = "a container of the pod cannot be looked at; nothing is done with the pod until it can: does `docker inspect` answer?";
/// What becomes of a container whose postStart hook failed.
const HOOK_FAILED: Unhealthy = Unhealthy { cause: Cause::PostStart, grace_seconds: None };
/// A pod of which not all could be seen is looked at again after this.
pub(super) const UNSEEN: Duration = Duration::from_secs(5);

impl Worker {
    /// Merges what woke the worker into what it knows.
    pub(super) async fn take_in(&mut self, wakes: Wakes) {
        if let Some(desired) = wakes.desired {
            let (before, asked) = (self.pod.deletion, desired.deletion);
            self.pod = Pod { deletion: before, ..desired };
            self.want(self.pod.object.clone());
            self.hear_of_deletion(asked);
            self.checked = None;
            self.refresh = true;
            let ended = record::ended_in(self.pod.object.status.as_ref()).filter(|_| self.pod.source == Source::Api);
            if let (None, Some(terminal)) = (&self.record.terminal, ended) {
                tracing::info!(pod = %self.pod.id, phase = terminal.phase, "the API server says that the pod has ended");
                self.record.terminal = Some(terminal);
                self.record.ended_at.get_or_insert_with(Timestamp::now);
            }
        }
        self.hear_of_deletion(wakes.deletion);
        if let Some(order) = wakes.evict {
            self.evict(order);
        }
        if let Some(grace) = wakes.shut_down {
            self.shut_down(grace);
        }
        if wakes.bring_back {
            self.bring_back();
        }
        self.record.emptied |= wakes.empty && self.record.terminal.is_some();
        self.refresh |= wakes.objects;
        if wakes.objects {
            self.objects_changed().await;
        }
        if wakes.resync {
            self.try_again();
            self.look().await;
        } else if wakes.seen.is_some_and(|seen| seen != self.observed) {
            // What was found may be older than what the worker did since: it looks for itself.
            self.look().await;
        }
        for ((container_id, kind), verdict) in wakes.verdicts {
            self.judge(&container_id, kind, &verdict.container, verdict.sample, verdict.grace_seconds);
        }
        for done in wakes.done {
            self.finish(done).await;
        }
        for (id, change) in wakes.changed {
            if !self.knows(&id, change) {
                self.look_at(&id).await;
            }
        }
    }

    /// Takes in that the pod is to end, if so.
    pub(super) fn hear_of_deletion(&mut self, asked: Option<Deletion>) {
        if let Some(asked) = asked {
            self.pod.deletion = Some(Deletion::heard(asked, self.pod.deletion, Timestamp::now()));
        }
        self.record.deletion = self.pod.deletion;
    }

    /// Whether an event only tells what the worker saw itself.
    fn knows(&self, id: &str, change: RuntimeChange) -> bool {
        let container = self.observed.containers.iter().find(|seen| seen.id == id);
        let sandbox = self.observed.sandboxes.iter().find(|seen| seen.id == id);
        match change {
            RuntimeChange::Started => {
                container.is_some_and(|seen| seen.is_running()) || sandbox.is_some_and(Sandbox::is_running)
            }
            RuntimeChange::Died => {
                container.is_some_and(|seen| seen.exit().is_some())
                    || sandbox.is_some_and(|seen| seen.state == SandboxState::Exited)
            }
            RuntimeChange::Removed => container.is_none() && sandbox.is_none(),
            // That there was no memory may be told after the end.
            RuntimeChange::Other => container.is_some_and(|seen| seen.exit().is_some_and(Exit::is_out_of_memory)),
        }
    }

    fn judge(&mut self, container_id: &str, kind: ProbeKind, container: &str, sample: Sample, grace: Option<i64>) {
        let Some(known) = self.record.containers.get_mut(container) else { return };
        if known.id.as_deref() != Some(container_id) {
            return;
        }
        match (kind, sample) {
            (ProbeKind::Readiness, sample) => known.ready = sample == Sample::Success,
            (ProbeKind::Startup, Sample::Success) => known.started = true,
            (ProbeKind::Liveness, Sample::Success) => {}
            (ProbeKind::Liveness | ProbeKind::Startup, Sample::Failure) => {
                let unhealthy = Unhealthy { cause: Cause::Probe(kind), grace_seconds: grace };
                self.unhealthy.insert(container_id.to_owned(), unhealthy);
            }
        }
    }

    /// Containers whose postStart hook failed under the agent before are stopped by this one, too.
    pub(super) fn recall_hooks(&mut self) {
        for id in self.record.containers.values().filter_map(ContainerRecord::failed_hook) {
            self.busy.post_start.insert(id.to_owned());
            self.unhealthy.insert(id.to_owned(), HOOK_FAILED);
        }
    }

    async fn finish(&mut self, done: Done) {
        match done {
            Done::Stop { id, error } => {
                self.busy.stopping.remove(&id);
                self.stops.remove(&id);
                match error {
                    Some(error) => {
                        if self.is_news(&id, &error) {
                            tracing::warn!(pod = %self.pod.id, "a container could not be stopped: {error}; trying again");
                        }
                    }
                    None => drop(self.undone.remove(&id)),
                }
                self.look_at(&id).await;
            }
            Done::PostStart { id, container, error } => {
                if let Some(message) = error {
                    // It stays among those whose hook runs until it has ended: so long it is neither shown to run nor probed.
                    // Not into the event, as there: it may hold secrets.
                    tracing::warn!(pod = %self.pod.id, container, "the postStart hook failed: {message}");
                    self.event(Some(&container), EventType::Warning, "FailedPostStartHook", "PostStartHook failed");
                    self.not_started(&container, &id, record::POST_START_ERROR, &message);
                    self.unhealthy.insert(id, HOOK_FAILED);
                } else {
                    self.busy.post_start.remove(&id);
                }
            }
            Done::Pull { fetched, result } => {
                self.busy.pulling.remove(&fetched.container);
                let (about, image) = (fetched.about(), &fetched.image);
                match result {
                    Ok(pulled) => {
                        self.record.backoffs.remove(&backoff::image(image));
                        self.images.insert((fetched.container, fetched.image), pulled);
                    }
                    Err(NotPulled { said, failure }) => {
                        let message = format!("Failed to pull image {image:?}: {said}");
                        self.event(about, EventType::Warning, "Failed", &message);
                        let message = format!("Error: {}", failure.reason);
                        self.event(Some(&fetched.container), EventType::Warning, "Failed", &message);
                        self.failed(&backoff::image(image), failure.reason, &failure.message);
                    }
                }
            }
            Done::Measured { took, exceeded } => self.measured(took, exceeded),
            Done::Unpack { fetched, error } => {
                self.busy.pulling.remove(&fetched.container);
                if let Some(message) = error {
                    not_mounted(self, &fetched.container, &message);
                }
            }
        }
    }

    /// Looks at everything of the pod again.
    pub(crate) async fn look(&mut self) {
        match self.shared.ports.runtime.list_pod(&self.pod.id.uid).await {
            Ok(mut list) => {
                complete_all(&*self.shared.ports.plugins, &mut list);
                self.observed = by_pod(list).remove(&self.pod.id.uid).unwrap_or_default();
            }
            Err(error) => tracing::debug!(pod = %self.pod.id, "cannot look at the pod: {error}"),
        }
    }

    /// Whether all that there is of the pod has been seen: what to do is not to be decided before. Looks again where it has not.
    pub(super) async fn sees_all(&mut self) -> bool {
        if self.observed.unseen {
            self.look().await;
            if self.observed.unseen && self.told.insert(UNTOLD.to_owned()) {
                tracing::warn!(pod = %self.pod.id, "{UNTOLD}");
                self.tell_sources(Some(UNTOLD));
                // Others are not to wait for it.
                self.place = None;
            }
        }
        !self.observed.unseen
    }

    /// Looks at one thing of the pod again.
    pub(crate) async fn look_at(&mut self, id: &str) {
        match self.shared.ports.runtime.inspect(id).await {
            Ok(Some(mut seen)) => {
                complete(&*self.shared.ports.plugins, &mut seen);
                self.observed.update(seen);
            }
            Ok(None) => self.observed.forget(id),
            Err(error) => tracing::debug!(pod = %self.pod.id, "cannot look at {id}: {error}"),
        }
    }
}
