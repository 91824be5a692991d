//! The loop behind a [`super::PluginSource`]: poll, read, say, wait. Guarantees: one poll at a time, each within its budget; a fault or a
//! failure takes no pod away; each problem is logged when it comes and not again while it stays.

use std::sync::Arc;
use std::time::Duration;

use longshore_core::manifest::{self, Origin, Parsed};
use longshore_core::ports::sources::SourceProblem;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::plugin::{Plugin, Warm};
use super::state::{News, State};
use super::{SourceOptions, Word};
use crate::bindings::longshore::types::core::PluginError;
use crate::bindings::source::exports::longshore::source::provider::{Batch, Delta, Entry, Update};
use crate::fault::Fault;
use crate::limits::{MAX_CURSOR, MAX_ENTRIES, MAX_KEY, MAX_MANIFEST, MAX_SOURCE_WAIT};
use crate::probe::outcome::cut;

/// The shortest time between two polls.
const MIN_PERIOD: Duration = Duration::from_millis(100);

pub(super) struct Task {
    plugin: Arc<Plugin>,
    warm: Option<Warm>,
    options: SourceOptions,
    origin: Origin,
    places: Arc<Semaphore>,
    state: State,
    /// What the last good answer gave; the next poll gets it.
    cursor: Option<Vec<u8>>,
    /// Faults in a row.
    faults: u32,
    said: Vec<SourceProblem>,
    words: watch::Sender<Word>,
    stop: CancellationToken,
}

impl Task {
    pub(super) fn new(
        plugin: Arc<Plugin>,
        mut options: SourceOptions,
        places: Arc<Semaphore>,
        words: watch::Sender<Word>,
        stop: CancellationToken,
    ) -> Self {
        let state = State::new(std::mem::take(&mut options.former));
        let (source, node_name, place) = (options.source.clone(), options.node_name.clone(), options.place.clone());
        let origin = Origin { source, node_name, place };
        options.period = options.period.max(MIN_PERIOD);
        Self {
            plugin,
            warm: None,
            options,
            origin,
            places,
            state,
            cursor: None,
            faults: 0,
            said: Vec::new(),
            words,
            stop,
        }
    }

    pub(super) async fn run(mut self) {
        let stop = self.stop.clone();
        // A source keeps its place as long as it runs: its instance is warm.
        let places = Arc::clone(&self.places);
        let Some(Ok(_place)) = stop.run_until_cancelled(places.acquire()).await else { return };
        loop {
            // Cancel safe: a poll that is dropped takes its instance with it, and nothing was said of it.
            let Some(wait) = stop.run_until_cancelled(self.turn()).await else { return };
            self.publish();
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    /// Polls once; how long to wait for the next time.
    async fn turn(&mut self) -> Duration {
        let SourceOptions { config, period, budget, .. } = &self.options;
        let (period, budget) = (*period, *budget);
        let cursor = self.cursor.as_deref();
        let answer = self.plugin.poll(&mut self.warm, config, cursor, Duration::ZERO, budget).await;
        let answer = answer.and_then(|answer| match answer {
            Ok(batch) => check(batch, self.cursor.is_some()).map(Ok).inspect_err(|_| {
                self.plugin.at_fault();
                self.warm = None;
            }),
            Err(error) => Ok(Err(error)),
        });
        match answer {
            Ok(Ok(batch)) => {
                self.faults = 0;
                let news = read(batch.update, &self.origin).await;
                self.cursor = news.is_some().then_some(batch.cursor);
                self.state.heard(news.unwrap_or(News::Unchanged));
                period.max(Duration::from_millis(batch.min_wait_ms.into()).min(MAX_SOURCE_WAIT))
            }
            Ok(Err(error)) => {
                self.faults = 0;
                let (message, wait) = match error {
                    PluginError::Invalid(text) => (format!("the source's configuration: {text}"), period),
                    PluginError::Denied(text) | PluginError::Failed(text) => (text, period),
                    PluginError::RetryAfter(ms) => {
                        let wait = Duration::from_millis(ms.into()).min(MAX_SOURCE_WAIT);
                        ("it cannot be read now; it is asked again later".to_owned(), wait.max(period))
                    }
                };
                self.fail(message);
                wait
            }
            Err(fault) => {
                self.faults = self.faults.saturating_add(1);
                // Whatever broke it may be in there; the next answer is whole.
                self.cursor = None;
                let name = &self.plugin.name;
                self.fail(format!("plugin {name} failed, its last pods are kept: {fault}"));
                let factor = 1_u32 << self.faults.min(10).saturating_sub(1);
                period.saturating_mul(factor).min(MAX_SOURCE_WAIT.max(period))
            }
        }
    }

    fn fail(&mut self, message: String) {
        let message = cut(message.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect());
        self.state.failed(SourceProblem { place: self.options.place.clone(), message, warning: false });
    }

    /// Says what is new, and nothing else.
    fn publish(&mut self) {
        let problems = self.state.problems();
        for problem in problems.iter().filter(|problem| !self.said.contains(problem)) {
            let SourceProblem { place, message, .. } = problem;
            tracing::warn!(source = self.options.source.as_str(), place, "{message}");
        }
        if problems.is_empty() && !self.said.is_empty() {
            tracing::info!(
                source = self.options.source.as_str(),
                place = self.options.place,
                "the source is well again"
            );
        }
        self.said = problems;
        let snapshot = self.state.snapshot();
        self.words.send_if_modified(|word| {
            let mut changed = false;
            let unsaid = if snapshot.is_some() { Vec::new() } else { self.said.clone() };
            if word.unsaid != unsaid {
                word.unsaid = unsaid;
                word.unsaid_version += 1;
                changed = true;
            }
            if let Some(snapshot) = snapshot.filter(|snapshot| word.snapshot.as_deref() != Some(snapshot)) {
                word.snapshot = Some(Arc::new(snapshot));
                word.snapshot_version += 1;
                changed = true;
            }
            changed
        });
    }
}

/// Whether an answer keeps to the interface.
fn check(batch: Batch, had_cursor: bool) -> Result<Batch, Fault> {
    let wrong = |text: String| Err(Fault::Answer(text));
    if batch.cursor.len() > MAX_CURSOR {
        return wrong(format!("a cursor of {} bytes; {MAX_CURSOR} are the most", batch.cursor.len()));
    }
    let (entries, removed) = match &batch.update {
        Update::Unchanged | Update::Delta(_) if !had_cursor => {
            return wrong("without a cursor it must be a snapshot".to_owned());
        }
        Update::Unchanged => return Ok(batch),
        Update::Snapshot(entries) => (entries, 0),
        Update::Delta(delta) => (&delta.upsert, delta.remove.len()),
    };
    if entries.len() + removed > MAX_ENTRIES {
        return wrong(format!("{} manifests; {MAX_ENTRIES} are the most", entries.len() + removed));
    }
    if let Some(entry) = entries.iter().find(|entry| entry.key.len() > MAX_KEY || entry.manifest.len() > MAX_MANIFEST) {
        return wrong(format!("a manifest with a key of {} and {} bytes", entry.key.len(), entry.manifest.len()));
    }
    Ok(batch)
}

/// Reads an answer's manifests, in a thread of their own: great ones take their time. Nothing, when that broke off.
async fn read(update: Update, origin: &Origin) -> Option<News> {
    let (manifests, removed, whole) = match update {
        Update::Unchanged => return Some(News::Unchanged),
        Update::Snapshot(entries) => (entries, Vec::new(), true),
        Update::Delta(Delta { upsert, remove }) => (upsert, remove, false),
    };
    let its = origin.clone();
    let reading = move || manifests.into_iter().map(|entry| parse(entry, &its)).collect::<Vec<_>>();
    match tokio::task::spawn_blocking(reading).await {
        Ok(read) if whole => Some(News::Snapshot(read)),
        Ok(read) => Some(News::Delta(read, removed)),
        Err(error) => {
            tracing::error!(place = origin.place, "reading manifests broke off: {error}");
            None
        }
    }
}

/// One manifest; its place is the source's, with the key when there is one.
fn parse(entry: Entry, origin: &Origin) -> (String, Parsed) {
    let mut origin = origin.clone();
    if !entry.key.is_empty() {
        origin.place = format!("{}#{}", origin.place, entry.key);
    }
    let mut parsed =
        if entry.manifest.is_empty() { Parsed::default() } else { manifest::parse(&entry.manifest, &origin) };
    let place = origin.place;
    let objects = !(parsed.config_maps.is_empty() && parsed.secrets.is_empty());
    let nothing = parsed.documents == 0 && parsed.problems.is_empty();
    let mut complain = |message: &str, warning| {
        parsed.problems.push(SourceProblem { place: place.clone(), message: message.to_owned(), warning });
    };
    if entry.manifest.is_empty() {
        complain("zero-length data received: expected a Pod, a PodList or a List; the last pods are kept", false);
    } else if nothing {
        complain("it describes nothing: expected a Pod, a PodList or a List; the last pods are kept", false);
    }
    if objects {
        complain("ConfigMaps and Secrets are not taken from here: put them into the manifest folder", true);
    }
    (entry.key, parsed)
}
