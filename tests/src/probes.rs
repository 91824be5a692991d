//! Probe plugins in memory: each container's health is what the test last said.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use longshore_core::ports::probes::{ProbeCall, ProbeConfigError, ProbeOutcome, ProbePlugins};

/// The plugins.
#[derive(Debug, Default)]
pub struct FakeProbes {
    answers: Mutex<BTreeMap<String, ProbeOutcome>>,
    calls: Mutex<usize>,
}

impl FakeProbes {
    /// What the probes of a pod's container answer from now on; success unless said.
    pub fn answer(&self, pod: &str, container: &str, outcome: ProbeOutcome) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).insert(format!("{pod}/{container}"), outcome);
    }

    /// Checks so far.
    pub fn calls(&self) -> usize {
        *self.calls.lock().unwrap_or_else(PoisonError::into_inner)
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

    async fn check(&self, call: ProbeCall) -> ProbeOutcome {
        *self.calls.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let key = format!("{}/{}", call.target.pod, call.target.container);
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(&key).cloned().unwrap_or(ProbeOutcome::Success { message: String::new() })
    }
}
