//! What is remembered of a pod: brought up to date with what was seen, ended, and stored.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use longshore_core::event::EventType;
use longshore_core::observed::ContainerState;
use longshore_core::record::{Evicted, FailedStart, StoredPod, Terminal};
use longshore_core::{evict, probe, status};

use super::Worker;
use crate::apply::DISK;
use crate::inbox::Evict;
use crate::publish;

/// Bytes of a termination message that are kept (`MaxContainerTerminationMessageLength`).
const TERMINATION_MESSAGE_LIMIT: usize = 4096;

impl Worker {
    /// Brings the record up to date with what was seen, termination messages included.
    pub(super) async fn remember(&mut self) {
        let running = self.observed.containers.iter().filter(|seen| seen.is_running());
        let running: BTreeSet<String> = running.map(|seen| seen.id.clone()).collect();
        self.running.send_if_modified(|known| {
            let changed = *known != running;
            *known = running;
            changed
        });
        let mut fresh: Vec<(String, String)> = Vec::new();
        for seen in &self.observed.containers {
            let read = seen.exit().is_some() && !self.messages.contains_key(&seen.id);
            if read {
                fresh
                    .push((seen.id.clone(), publish::termination_message(self, seen, TERMINATION_MESSAGE_LIMIT).await));
            }
        }
        self.messages.extend(fresh);
        let known: BTreeSet<&str> = self.observed.containers.iter().map(|seen| seen.id.as_str()).collect();
        self.messages.retain(|id, _| known.contains(id.as_str()));
        self.unhealthy.retain(|id, _| known.contains(id.as_str()));
        let goes_on = |id: &String| self.observed.containers.iter().any(|seen| seen.id == *id && seen.exit().is_none());
        self.busy.post_start.retain(goes_on);
        let is_sandbox = |about: &str| self.observed.sandboxes.iter().any(|seen| seen.id == about);
        self.undone.retain(|about, _| about == DISK || known.contains(about.as_str()) || is_sandbox(about));
        let before: BTreeMap<String, Option<String>> =
            self.record.containers.iter().map(|(name, known)| (name.clone(), known.id.clone())).collect();
        status::remember(&mut self.record, &self.pod, &self.observed, &self.messages, Timestamp::now());
        for (name, known) in &mut self.record.containers {
            let is_new = before.get(name).cloned().flatten() != known.id;
            let runs =
                self.observed.container(name).is_some_and(|seen| matches!(seen.state, ContainerState::Running { .. }));
            if is_new && runs {
                (known.started, known.ready) = probe::initial(&self.probes, name);
            }
        }
    }

    /// Remembers why a container could not be started.
    pub(crate) fn not_started(&mut self, container: &str, id: &str, reason: &str, message: &str) {
        let failed = FailedStart { id: id.to_owned(), reason: reason.to_owned(), message: message.to_owned() };
        self.record.containers.entry(container.to_owned()).or_default().failed_start = Some(failed);
    }

    /// Ends the pod for others, with no more grace than that. One that has ended already stays what it is.
    pub(crate) fn evict(&mut self, order: Evict) {
        if self.record.terminal.is_some() {
            return;
        }
        let Evict { reason, message, annotations, grace_seconds, disruption } = order;
        self.shared.ports.events.record_with(&self.pod.id, EventType::Warning, reason, &message, annotations);
        self.record.evicted = Some(Evicted { grace_seconds, disruption });
        self.record.emptied = reason == evict::REASON;
        self.conclude(Terminal { phase: "Failed".to_owned(), reason: Some(reason.to_owned()), message: Some(message) });
    }

    pub(crate) fn end(&mut self, terminal: Terminal) {
        if let (Some(reason), Some(message)) = (&terminal.reason, &terminal.message) {
            self.event(None, EventType::Normal, reason, message);
        }
        self.conclude(terminal);
    }

    pub(super) fn conclude(&mut self, terminal: Terminal) {
        tracing::info!(pod = %self.pod.id, phase = terminal.phase, "the pod has ended");
        self.record.terminal = Some(terminal);
        self.record.ended_at = Some(Timestamp::now());
        self.shared.leaves(&self.pod.id.uid);
    }

    /// Stores the pod, when anything about it changed.
    pub(super) async fn save(&mut self) {
        let stored = StoredPod {
            source: self.pod.source.clone(),
            object: (*self.wanted).clone(),
            hashes: self.pod.hashes.clone(),
            sandbox_hash: self.pod.sandbox_hash.clone(),
            record: self.record.clone(),
        };
        if self.saved.as_ref() == Some(&stored) {
            return;
        }
        match self.shared.ports.files.save(&self.pod.id.uid, &stored).await {
            Ok(()) => {
                self.saved = Some(stored);
                self.unsaved = false;
            }
            Err(_) if self.unsaved => {}
            Err(error) => {
                tracing::error!(pod = %self.pod.id, "the pod's record cannot be stored; it is tried again: {error}");
                self.unsaved = true;
            }
        }
    }
}
