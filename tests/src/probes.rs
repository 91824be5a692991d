//! Probe plugins in memory: each container's health is what the test last said, and what was asked is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use longshore_core::ports::probes::{ProbeAnswer, ProbeCall, ProbeConfigError, ProbeOutcome, ProbePlugins};

/// A check that was asked for.
#[derive(Clone, Debug)]
pub struct Check {
    /// What was asked.
    pub call: ProbeCall,
    /// When.
    pub begun: Timestamp,
}

#[derive(Debug, Default)]
struct State {
    answers: BTreeMap<String, ProbeAnswer>,
    /// Answers by a part of the configuration.
    by_config: Vec<(String, ProbeAnswer)>,
    takes: Duration,
    /// Pods whose checks never end.
    hanging: BTreeSet<String>,
    checks: Vec<Check>,
    running: usize,
    peak: usize,
}

/// The plugins.
#[derive(Debug, Default)]
pub struct FakeProbes {
    state: Mutex<State>,
}

impl FakeProbes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the probes of a pod's container answer from now on; success unless said.
    pub fn answer(&self, pod: &str, container: &str, answer: impl Into<ProbeAnswer>) {
        self.state().answers.insert(format!("{pod}/{container}"), answer.into());
    }

    /// What is answered, whoever asks, where the configuration holds that.
    pub fn answer_to(&self, part: &str, answer: impl Into<ProbeAnswer>) {
        self.state().by_config.push((part.to_owned(), answer.into()));
    }

    /// How long each check takes from now on.
    pub fn takes(&self, time: Duration) {
        self.state().takes = time;
    }

    /// The checks of that pod do not end any more.
    pub fn hangs(&self, pod: &str) {
        self.state().hanging.insert(pod.to_owned());
    }

    /// Checks so far.
    pub fn calls(&self) -> usize {
        self.state().checks.len()
    }

    /// Every check so far, in order.
    pub fn checks(&self) -> Vec<Check> {
        self.state().checks.clone()
    }

    /// Checks of a pod so far, in order.
    pub fn checks_of(&self, pod: &str) -> Vec<Check> {
        self.state().checks.iter().filter(|check| check.call.target.pod == pod).cloned().collect()
    }

    /// How many checks went on at a time at most.
    pub fn peak(&self) -> usize {
        self.state().peak
    }
}

#[async_trait]
impl ProbePlugins for FakeProbes {
    async fn validate(&self, plugin: &str, _: &str) -> Result<(), ProbeConfigError> {
        if ["exec", "tcp", "http", "grpc"].contains(&plugin) {
            return Ok(());
        }
        Err(ProbeConfigError::UnknownPlugin { plugin: plugin.to_owned(), known: vec!["tcp".to_owned()] })
    }

    async fn check(&self, call: ProbeCall) -> ProbeAnswer {
        let takes = {
            let mut state = self.state();
            state.checks.push(Check { call: call.clone(), begun: Timestamp::now() });
            state.running += 1;
            state.peak = state.peak.max(state.running);
            if state.hanging.contains(&call.target.pod) { Duration::MAX } else { state.takes }
        };
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        let mut state = self.state();
        state.running -= 1;
        let by_config = state.by_config.iter().find(|(part, _)| call.config.contains(part)).map(|(_, answer)| answer);
        let key = format!("{}/{}", call.target.pod, call.target.container);
        let answer = by_config.or_else(|| state.answers.get(&key)).cloned();
        answer.unwrap_or_else(|| ProbeOutcome::Success { message: String::new() }.into())
    }
}
