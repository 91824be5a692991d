//! What a call's end means: a verdict, an error, or a fault of the plugin. It must not run anything.

use std::time::Duration;

use longshore_core::ports::probes::ProbeOutcome;
use wasmtime::Trap;

use crate::bindings::exports::longshore::probe::prober::{Health, Report};
use crate::bindings::longshore::types::core::PluginError;
use crate::limits::{Limits, MAX_ANSWER, MAX_ATTRS, MAX_MESSAGE};

/// What a plugin did wrong. Never a verdict on its target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("it ran for more than {} ms on the CPU without coming to an end", .0.as_millis())]
    Cpu(Duration),
    #[error("it wanted more than {} KiB of memory", .0 / 1024)]
    Memory(usize),
    #[error("it did not end {} ms after it was called, long after its time was over", .0.as_millis())]
    Idle(Duration),
    #[error("it crashed: {0}")]
    Trap(String),
    #[error("its answer is not allowed: {0}")]
    Answer(String),
}

impl Fault {
    /// What wasmtime says, in words for people.
    pub(crate) fn of(error: &wasmtime::Error, limits: Limits) -> Self {
        let root = error.root_cause().to_string();
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => Self::Cpu(limits.cpu),
            Some(trap) => Self::Trap(trap.to_string()),
            None if root.contains("growing memory") || root.contains("growing table") => Self::Memory(limits.memory),
            None => Self::Trap(root),
        }
    }
}

/// The outcome of an answer that came.
pub(super) fn of_answer(answer: Result<Report, PluginError>) -> Result<ProbeOutcome, Fault> {
    match answer {
        Ok(Report { message, .. }) if message.len() > MAX_ANSWER => {
            Err(Fault::Answer(format!("a message of {} bytes; {MAX_ANSWER} are the most", message.len())))
        }
        Ok(Report { attrs, .. }) if attrs.len() > MAX_ATTRS => {
            Err(Fault::Answer(format!("{} attributes; {MAX_ATTRS} are the most", attrs.len())))
        }
        Ok(Report { health, message, .. }) => {
            let message = cut(message);
            Ok(match health {
                Health::Healthy => ProbeOutcome::Success { message },
                Health::HealthyWithWarning => ProbeOutcome::Warning { message },
                Health::Unhealthy => ProbeOutcome::Failure { message },
            })
        }
        Err(PluginError::Invalid(text)) => {
            Ok(ProbeOutcome::Error { message: cut(format!("its configuration: {text}")) })
        }
        Err(PluginError::Denied(text)) => Ok(ProbeOutcome::Error {
            message: cut(format!("the plugin needs a capability that it was not granted: {text}")),
        }),
        Err(PluginError::RetryAfter(ms)) => {
            Ok(ProbeOutcome::Error { message: format!("the plugin asks to be tried again in {ms} ms") })
        }
        Err(PluginError::Failed(text)) => Ok(ProbeOutcome::Error { message: cut(text) }),
    }
}

/// The part of a message that is kept.
pub(crate) fn cut(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let mut end = MAX_MESSAGE;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::{Fault, Health, PluginError, ProbeOutcome, Report, cut, of_answer};

    fn report(health: Health, message: &str, attrs: usize) -> Result<Report, PluginError> {
        Ok(Report { health, message: message.to_owned(), attrs: vec![(String::new(), String::new()); attrs] })
    }

    #[test]
    fn answers() {
        let said = || "m".to_owned();
        for (health, outcome) in [
            (Health::Healthy, ProbeOutcome::Success { message: said() }),
            (Health::HealthyWithWarning, ProbeOutcome::Warning { message: said() }),
            (Health::Unhealthy, ProbeOutcome::Failure { message: said() }),
        ] {
            assert_eq!(of_answer(report(health, "m", 16)), Ok(outcome));
        }
        assert_eq!(of_answer(Err(PluginError::Failed(said()))), Ok(ProbeOutcome::Error { message: said() }));
    }

    #[test]
    fn answers_beyond_bounds_are_faults() {
        assert!(matches!(of_answer(report(Health::Healthy, "", 17)), Err(Fault::Answer(_))));
        assert!(matches!(of_answer(report(Health::Healthy, &"x".repeat(70_000), 0)), Err(Fault::Answer(_))));
    }

    #[test]
    fn messages_are_cut_between_letters() {
        assert_eq!(cut("ä".repeat(10_000)).len(), 10 * 1024);
        assert_eq!(cut(format!("a{}", "ä".repeat(10_000))).len(), 10 * 1024 - 1);
    }
}
