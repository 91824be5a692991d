//! Whether a network can be used: its plugins are there and speak its version. Asked again when the configuration or a
//! program changes.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;
use serde_json::{Map, json};
use tokio::sync::Mutex;

use crate::chain::{ASK, Caller};
use crate::config::NetworkList;
use crate::invoke;
use crate::version::Version;

/// How soon a plugin is asked again that could not be used.
const AGAIN: Duration = Duration::from_secs(5);
/// So many answers are kept.
const KEPT: usize = 100;

/// A program at one moment, and the version that is wanted of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Question {
    kind: String,
    version: String,
    changed: Option<SystemTime>,
}

/// When it was answered, and what.
type Answered = (Instant, Result<(), String>);

/// Answers that hold.
#[derive(Debug, Default)]
pub(crate) struct Validator {
    answers: Mutex<HashMap<Question, Answered>>,
}

impl Validator {
    /// What keeps a network from being used.
    pub(crate) async fn check(&self, caller: &Caller, list: &NetworkList) -> Result<(), String> {
        if list.version > Version::CURRENT {
            return Err(format!("its version {} is newer than {}", list.version, Version::CURRENT));
        }
        let mut answers = self.answers.lock().await;
        for plugin in &list.plugins {
            let program = invoke::find(&plugin.kind, &caller.folders)?;
            let changed = program.metadata().and_then(|found| found.modified()).ok();
            let question = Question { kind: plugin.kind.clone(), version: list.version_text.clone(), changed };
            let known = answers.get(&question).filter(|(at, answer)| answer.is_ok() || at.elapsed() < AGAIN);
            let answer = match known {
                Some((_, answer)) => answer.clone(),
                None => {
                    let answer = speaks(caller, &plugin.kind, list.version).await;
                    if answers.len() >= KEPT {
                        answers.clear();
                    }
                    answers.insert(question, (Instant::now(), answer.clone()));
                    answer
                }
            };
            answer?;
        }
        Ok(())
    }
}

async fn speaks(caller: &Caller, kind: &str, version: Version) -> Result<(), String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        #[serde(default)]
        supported_versions: Vec<String>,
    }
    let input = Map::from_iter([("cniVersion".to_owned(), json!(Version::CURRENT.to_string()))]);
    // Old ones want them for every command.
    let dummies = ["CNI_NETNS", "CNI_IFNAME"].map(|name| (name, "dummy".into()));
    let supported = match caller.ask("VERSION", kind, &input, &dummies, ASK).await {
        Ok(output) => {
            let answer: Answer = serde_json::from_slice(&output)
                .map_err(|error| format!("plugin {kind}: its versions cannot be read: {error}"))?;
            answer.supported_versions
        }
        Err(error) if error.contains("unknown CNI_COMMAND: VERSION") => vec!["0.1.0".to_owned()],
        Err(error) => return Err(format!("plugin {kind}: {error}")),
    };
    match supported.iter().any(|text| Version::parse(text) == Some(version)) {
        true => Ok(()),
        false => Err(format!(
            "plugin {kind} does not support config version {:?} (it speaks {})",
            version.to_string(),
            supported.join(", ")
        )),
    }
}
