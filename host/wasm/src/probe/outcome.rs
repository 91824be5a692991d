//! What a probe's answer means: a verdict, an error, or a fault of the plugin. It must not run anything.

use std::time::Duration;

use longshore_core::ports::probes::{ProbeAnswer, ProbeOutcome};

use crate::bindings::exports::longshore::probe::prober::{Health, Report};
use crate::bindings::longshore::types::core::PluginError;
use crate::fault::Fault;
use crate::limits::{MAX_ANSWER, MAX_ATTR_NAME, MAX_ATTR_VALUE, MAX_ATTRS, MAX_MESSAGE};

/// What an answer that came says.
pub(super) fn of_answer(answer: Result<Report, PluginError>) -> Result<ProbeAnswer, Fault> {
    let error = |message: String| ProbeAnswer::from(ProbeOutcome::Error { message: cut(message) });
    match answer {
        Ok(Report { message, .. }) if message.len() > MAX_ANSWER => {
            Err(Fault::Answer(format!("a message of {} bytes; {MAX_ANSWER} are the most", message.len())))
        }
        Ok(Report { attrs, .. }) if attrs.len() > MAX_ATTRS => {
            Err(Fault::Answer(format!("{} attributes; {MAX_ATTRS} are the most", attrs.len())))
        }
        Ok(Report { health, message, attrs }) => {
            let message = cut(message);
            let outcome = match health {
                Health::Healthy => ProbeOutcome::Success { message },
                Health::HealthyWithWarning => ProbeOutcome::Warning { message },
                Health::Unhealthy => ProbeOutcome::Failure { message },
            };
            let kept = |(name, value)| (cut_to(name, MAX_ATTR_NAME), cut_to(value, MAX_ATTR_VALUE));
            Ok(ProbeAnswer { attrs: attrs.into_iter().map(kept).collect(), ..outcome.into() })
        }
        Err(PluginError::Invalid(text)) => Ok(error(format!("its configuration: {text}"))),
        Err(PluginError::Denied(text)) => {
            Ok(error(format!("the plugin needs a capability that it was not granted: {text}")))
        }
        Err(PluginError::RetryAfter(ms)) => {
            let answer = error(format!("the plugin asks to be tried again in {ms} ms"));
            Ok(ProbeAnswer { again: Some(Duration::from_millis(ms.into())), ..answer })
        }
        Err(PluginError::Failed(text)) => Ok(error(text)),
    }
}

/// The part of a message that is kept.
pub(crate) fn cut(message: String) -> String {
    cut_to(message, MAX_MESSAGE)
}

fn cut_to(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

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
            assert_eq!(of_answer(report(health, "m", 16)).map(|answer| answer.outcome), Ok(outcome));
        }
        let error = ProbeOutcome::Error { message: said() };
        assert_eq!(of_answer(Err(PluginError::Failed(said()))), Ok(error.into()));
    }

    #[test]
    fn what_is_said_beside_is_kept() {
        let attrs = vec![("version".to_owned(), "7.2".to_owned()), ("n".repeat(100), "ä".repeat(2000))];
        let answer = of_answer(Ok(Report { health: Health::Healthy, message: String::new(), attrs })).unwrap();
        assert_eq!(answer.attrs[0], ("version".to_owned(), "7.2".to_owned()));
        assert_eq!((answer.attrs[1].0.len(), answer.attrs[1].1.len()), (64, 1024));
        assert_eq!(answer.again, None);
        let later = of_answer(Err(PluginError::RetryAfter(1500))).unwrap();
        assert_eq!(later.again, Some(Duration::from_millis(1500)));
        assert!(matches!(later.outcome, ProbeOutcome::Error { .. }));
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
