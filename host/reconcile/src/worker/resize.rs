//! A pod's resize: what it wants is given when there is room, and what goes on is told.
//!
//! As `pkg/kubelet/allocation/allocation_manager.go` (`handlePodResourcesResize`) and `pkg/kubelet/kubelet.go` (`syncPod`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::admit::Rejection;
use longshore_core::backoff;
use longshore_core::event::EventType;
use longshore_core::plan::Plan;
use longshore_core::pod::Pod;
use longshore_core::resize::{self, Allocation, Pending, Progress, Verdict, Wish};

use super::Worker;

/// How often a deferred resize is looked at again, whatever was heard (`retryDelay`).
pub(super) const RETRY: Duration = Duration::from_secs(180);

impl Worker {
    /// Takes in what the source wants. What was given stays in its place, where that is something else.
    pub(super) fn want(&mut self, wanted: Arc<v1::Pod>) {
        self.wanted = wanted;
        self.pod.object = match &self.record.allocated {
            Some(given) => given.apply(&self.wanted),
            None => self.wanted.clone(),
        };
        if self.record.allocated.is_some() && Arc::ptr_eq(&self.pod.object, &self.wanted) {
            // A container may be new.
            self.record.allocated = Some(Allocation::of(&self.wanted));
        }
    }

    /// Gives an admitted pod what it wants, if that is not what it has and there is room. `active` holds all pods' shares.
    pub(super) fn allocate(&mut self, active: &mut BTreeMap<String, Pod>) {
        if Arc::ptr_eq(&self.pod.object, &self.wanted) {
            self.record.allocated.get_or_insert_with(|| Allocation::of(&self.wanted));
            self.record.resize.pending = None;
            self.shared.wishes.remove(&self.pod.id.uid);
            return;
        }
        let since = self.record.resize.pending.as_ref().map(|pending| pending.since);
        let wanted = Pod { object: self.wanted.clone(), ..self.pod.clone() };
        self.shared.wishes.put(Wish { wanted, given: self.pod.clone(), since });
        if !self.shared.wishes.is_open() {
            return;
        }
        let node = self.shared.ports.views.node();
        let wishes = self.shared.wishes.all();
        let mut verdicts = resize::decide(&wishes, active, &self.facts, node.as_deref());
        match verdicts.remove(&self.pod.id.uid) {
            Some(Verdict::Granted) => self.grant(active),
            Some(Verdict::Deferred(Rejection { reason, message })) => {
                self.not_granted("Deferred", "ResizeDeferred", &reason, message);
            }
            Some(Verdict::Infeasible(message)) => {
                self.not_granted("Infeasible", "ResizeInfeasible", "Infeasible", message);
            }
            None => {}
        }
    }

    fn grant(&mut self, active: &mut BTreeMap<String, Pod>) {
        let generation = self.generation();
        self.record.resize.begins_from(self.pod.spec().resources.as_ref());
        self.pod.object = self.wanted.clone();
        self.record.allocated = Some(Allocation::of(&self.wanted));
        self.record.resize.pending = None;
        self.record.resize.progress = Some(Progress { error: None, generation, since: Timestamp::now() });
        self.record.backoffs.remove(backoff::RESIZE);
        self.refresh = true;
        self.event(None, EventType::Normal, "ResizeStarted", &resize::started(&self.wanted, generation));
        self.shared.wishes.remove(&self.pod.id.uid);
        active.insert(self.pod.id.uid.clone(), resize::held(&self.pod, &self.observed, &self.record));
        self.shared.wishes.wake(&self.shared.roster);
    }

    /// `why` is the reason as the event has it.
    fn not_granted(&mut self, reason: &str, event: &str, why: &str, message: String) {
        let generation = self.generation();
        let before = self.record.resize.pending.as_ref();
        let same_reason = before.filter(|before| before.reason == reason);
        let told = same_reason.is_some_and(|before| before.generation == generation);
        let since = same_reason.map_or_else(Timestamp::now, |before| before.since);
        if !told {
            let text = resize::pending(&self.wanted, generation, why, &message);
            self.event(None, EventType::Warning, event, &text);
        }
        self.record.resize.pending = Some(Pending { reason: reason.to_owned(), message, generation, since });
    }

    /// Says that a resize goes on when what runs is not as given, and that it is done when nothing is left to do.
    pub(super) fn begin_resize(&mut self) {
        let goes_on = self.record.terminal.is_none() && self.pod.deletion.is_none();
        if goes_on
            && self.record.resize.progress.is_none()
            && !resize::gaps(&self.pod, &self.observed, &self.record).is_empty()
        {
            self.record.resize.begins_from(self.pod.spec().resources.as_ref());
            let (generation, since) = (self.generation(), Timestamp::now());
            self.record.resize.progress = Some(Progress { error: None, generation, since });
        }
    }

    /// Ends a resize of which nothing is left to do.
    pub(super) fn end_resize(&mut self, plan: &Plan) {
        if !plan.resized {
            return;
        }
        let Some(progress) = self.record.resize.progress.take() else { return };
        self.record.backoffs.remove(backoff::RESIZE);
        self.record.resize.pod.clone_from(&self.pod.spec().resources);
        let text = resize::completed(&self.pod.object, progress.generation);
        self.event(None, EventType::Normal, "ResizeCompleted", &text);
        // What it gave up is free now.
        self.shared.active().insert(self.pod.id.uid.clone(), self.pod.clone());
        self.shared.wishes.wake(&self.shared.roster);
    }

    /// Notes that a resize failed; it is tried again after a while.
    pub(crate) fn resize_failed(&mut self, message: &str) {
        self.failed(backoff::RESIZE, "Error", message);
        let generation = self.generation();
        let progress = self.record.resize.progress.get_or_insert_with(|| Progress {
            error: None,
            generation,
            since: Timestamp::now(),
        });
        if progress.error.as_deref() == Some(message) {
            return;
        }
        if progress.error.is_none() {
            progress.since = Timestamp::now();
        }
        progress.error = Some(message.to_owned());
        let text = resize::failed(&self.pod.object, progress.generation, message);
        self.event(None, EventType::Warning, "ResizeError", &text);
    }

    fn generation(&self) -> i64 {
        self.wanted.metadata.generation.unwrap_or(0)
    }
}
