//! Whether pods can be run here: what the Node's `Ready` condition and `/healthz` say.
//!
//! Honest and calm: a runtime that does not answer for a moment is no reason to drop every endpoint of the node.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use longshore_core::cluster::node_status::Pressure;
use longshore_core::shutdown;
use tokio::sync::watch;

/// How long the runtime may be silent (`maxWaitForContainerRuntime`).
const RUNTIME_SILENCE: Duration = Duration::from_secs(30);

/// For how long sources that have not spoken are a problem: a folder or URL that is never there must not keep the node from its
/// cluster's pods. What they are needed for (removals) waits on.
const SOURCES: Duration = Duration::from_secs(60);

/// How old a sign of life of the node's loop may be: it gives one every few seconds, also when nothing happens.
const STANDSTILL: Duration = Duration::from_secs(30);

/// How often a loop that waits says that it lives.
pub(crate) const BEAT: Duration = Duration::from_secs(5);

/// Whether the machine goes down, or all pods are asked to end as if it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shutdown {
    /// It was not asked yet.
    #[default]
    Unknown,
    /// It does not.
    StaysUp,
    /// It does: pods end, and none begins.
    GoesDown,
}

/// The node's health.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    runtime: Option<Instant>,
    runtime_error: Option<String>,
    synced: bool,
    others: BTreeMap<&'static str, String>,
    pressure: Pressure,
    shutdown: Shutdown,
    begun: Instant,
    turned: Instant,
}

impl State {
    /// Whether the runtime has not answered for too long, or not at all yet.
    fn is_silent(&self, now: Instant) -> bool {
        self.runtime.is_none_or(|at| now.saturating_duration_since(at) >= RUNTIME_SILENCE)
    }
}

impl Default for Health {
    fn default() -> Self {
        let state = State {
            runtime: None,
            runtime_error: None,
            synced: false,
            others: BTreeMap::new(),
            pressure: Pressure::default(),
            shutdown: Shutdown::default(),
            begun: Instant::now(),
            turned: Instant::now(),
        };
        Health { state: Mutex::new(state), changed: watch::channel(0).0 }
    }
}

impl Health {
    fn update(&self, change: impl FnOnce(&mut State) -> bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut state);
        drop(state);
        if changed {
            self.changed.send_modify(|version| *version += 1);
        }
    }

    /// The runtime answered to something, or did not.
    pub fn runtime(&self, answer: Result<(), String>) {
        self.runtime_at(Instant::now(), answer);
    }

    fn runtime_at(&self, now: Instant, answer: Result<(), String>) {
        self.update(|state| match answer {
            Ok(()) => {
                let was_silent = state.is_silent(now);
                state.runtime = Some(now);
                state.runtime_error = None;
                was_silent
            }
            Err(error) => {
                state.runtime_error = Some(error);
                false
            }
        });
    }

    /// Whether all sources have said which pods they want.
    pub fn synced(&self, synced: bool) {
        self.update(|state| std::mem::replace(&mut state.synced, synced) != synced);
    }

    /// Whether all sources have said which pods they want.
    pub fn is_synced(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).synced
    }

    /// Something else that keeps pods from being run, by what it is about (`network`); `None` when it is over.
    pub fn other(&self, about: &'static str, problem: Option<String>) {
        self.update(|state| match problem {
            Some(problem) => state.others.insert(about, problem.clone()).as_ref() != Some(&problem),
            None => state.others.remove(about).is_some(),
        });
    }

    /// What the node runs short of.
    pub fn set_pressure(&self, pressure: Pressure) {
        self.update(|state| std::mem::replace(&mut state.pressure, pressure) != pressure);
    }

    /// What the node runs short of.
    pub fn pressure(&self) -> Pressure {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).pressure
    }

    pub(crate) fn set_shutdown(&self, shutdown: Shutdown) {
        self.update(|state| std::mem::replace(&mut state.shutdown, shutdown) != shutdown);
    }

    /// Whether the machine goes down.
    pub fn shutdown(&self) -> Shutdown {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).shutdown
    }

    /// The node's loop turned.
    pub(crate) fn turned(&self) {
        self.update(|state| {
            state.turned = Instant::now();
            false
        });
    }

    /// For how long the node's loop has stood still, if that is too long.
    pub fn standstill(&self) -> Option<Duration> {
        let since = self.state.lock().unwrap_or_else(PoisonError::into_inner).turned.elapsed();
        (since >= STANDSTILL).then_some(since)
    }

    /// Does something that has a time limit of its own; meanwhile the loop counts as turning.
    pub async fn turning<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        let mut beat = tokio::time::interval(BEAT);
        loop {
            // Cancel safe: the work goes on where it was.
            tokio::select! {
                done = &mut work => return done,
                _ = beat.tick() => self.turned(),
            }
        }
    }

    /// Why pods cannot be run now, in the kubelet's words where it has some; empty when they can.
    pub fn problems(&self) -> Vec<String> {
        self.problems_at(Instant::now())
    }

    fn problems_at(&self, now: Instant) -> Vec<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut problems = Vec::new();
        if state.is_silent(now) {
            let error = state.runtime_error.as_deref().unwrap_or("it has not answered yet");
            problems.push(format!("container runtime is down: {error}"));
        }
        if !state.synced && now.saturating_duration_since(state.begun) < SOURCES {
            problems.push("not every pod source has been read yet".to_owned());
        }
        problems.extend(state.others.values().cloned());
        if state.shutdown == Shutdown::GoesDown {
            problems.push(shutdown::NOT_READY.to_owned());
        }
        problems
    }

    /// Told of changes that need not wait for the next look.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_is_silent_for_half_a_minute_is_down_until_it_answers() {
        let health = Health::default();
        health.synced(true);
        let changes = health.subscribe();
        let begin = Instant::now();
        let at = |second| begin + Duration::from_secs(second);
        assert_eq!(health.problems_at(at(0)), ["container runtime is down: it has not answered yet"]);
        health.runtime_at(at(0), Ok(()));
        health.runtime_at(at(10), Err("refused".to_owned()));
        assert!(health.problems_at(at(29)).is_empty());
        assert_eq!(health.problems_at(at(30)), ["container runtime is down: refused"]);
        // That it answers again is told at once; that it goes on answering is no news.
        let before = *changes.borrow();
        health.runtime_at(at(40), Ok(()));
        assert_eq!((health.problems_at(at(40)), *changes.borrow()), (Vec::new(), before + 1));
        health.runtime_at(at(50), Ok(()));
        assert_eq!(*changes.borrow(), before + 1);
    }

    #[test]
    fn a_source_that_never_speaks_is_a_problem_for_a_minute() {
        let health = Health::default();
        let begin = Instant::now();
        health.runtime_at(begin + Duration::from_secs(50), Ok(()));
        let at = |second| health.problems_at(begin + Duration::from_secs(second));
        assert_eq!(at(55), ["not every pod source has been read yet"]);
        assert!(at(61).is_empty());
    }

    #[test]
    fn a_moment_of_silence_is_no_problem() {
        let health = Health::default();
        assert_eq!(health.problems().len(), 2);
        health.runtime(Ok(()));
        health.synced(true);
        health.runtime(Err("refused".to_owned()));
        assert!(health.problems().is_empty());
        health.other("network", Some("no CNI configuration".to_owned()));
        assert_eq!(health.problems(), ["no CNI configuration"]);
        health.other("network", None);
        assert!(health.problems().is_empty());
        health.set_shutdown(Shutdown::GoesDown);
        assert_eq!(health.problems(), ["node is shutting down"]);
    }
}
