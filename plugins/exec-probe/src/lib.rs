//! The kubelet's exec probe (`pkg/probe/exec/exec.go`): a command in the container, healthy when it exits with 0. It must not know
//! how a command gets into a container.

use longshore_guest::config::Fields;
use longshore_guest::runner::{self, Completed, ExecError};
use longshore_guest::{Guest, Health, PluginError, Report, Target, report, wording};

struct Plugin;

#[cfg(target_arch = "wasm32")]
longshore_guest::export!(Plugin with_types_in longshore_guest::bindings);

impl Guest for Plugin {
    fn validate(config: String) -> Result<(), String> {
        command(&config).map(drop)
    }

    fn check(_target: Target, config: String, budget_ms: u32) -> Result<Report, PluginError> {
        let command = command(&config).map_err(PluginError::Invalid)?;
        verdict(&command, budget_ms, runner::run(&command))
    }
}

fn command(config: &str) -> Result<Vec<String>, String> {
    let command = Fields::read(config, &["command"])?.texts("command")?;
    if command.is_empty() { Err("command: required".to_owned()) } else { Ok(command) }
}

fn verdict(command: &[String], budget_ms: u32, ended: Result<Completed, ExecError>) -> Result<Report, PluginError> {
    match ended {
        Ok(Completed { exit_code: Some(0), output }) => Ok(report(Health::Healthy, lossy(output))),
        Ok(Completed { exit_code: Some(_), output }) => Ok(report(Health::Unhealthy, lossy(output))),
        Ok(Completed { exit_code: None, .. }) => {
            let command = wording::quote(&command.join(" "));
            let time = wording::duration(budget_ms);
            Ok(report(Health::Unhealthy, format!("command timed out: {command} timed out after {time}")))
        }
        Err(ExecError::Denied) => Err(PluginError::Denied("longshore:exec".to_owned())),
        Err(ExecError::Invalid(text)) => Err(PluginError::Invalid(format!("command: {text}"))),
        Err(ExecError::Runtime(text)) => Err(PluginError::Failed(text)),
    }
}

fn lossy(output: Vec<u8>) -> String {
    String::from_utf8(output).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{Completed, ExecError, Guest, Health, Plugin, PluginError, verdict};

    fn ended(exit_code: Option<i32>, output: &[u8]) -> (Health, String) {
        let command = ["sh".to_owned(), "-c".to_owned(), "sleep 9".to_owned()];
        let report = verdict(&command, 1500, Ok(Completed { exit_code, output: output.to_vec() })).unwrap();
        (report.health, report.message)
    }

    #[test]
    fn exit_codes_and_timeouts() {
        assert_eq!(ended(Some(0), b"ok\n"), (Health::Healthy, "ok\n".to_owned()));
        for code in [1, 126, 127, 137] {
            assert_eq!(ended(Some(code), b"no\xff"), (Health::Unhealthy, "no\u{fffd}".to_owned()));
        }
        let text = r#"command timed out: "sh -c sleep 9" timed out after 1.5s"#;
        assert_eq!(ended(None, b"partial"), (Health::Unhealthy, text.to_owned()));
    }

    #[test]
    fn a_runtime_that_fails_is_no_verdict() {
        let error = verdict(&["x".to_owned()], 1000, Err(ExecError::Runtime("gone".to_owned()))).unwrap_err();
        assert!(matches!(error, PluginError::Failed(text) if text == "gone"));
    }

    #[test]
    fn configurations() {
        let validate = |config: &str| Plugin::validate(config.to_owned());
        assert_eq!(validate(r#"{"command": ["true"]}"#), Ok(()));
        assert_eq!(validate("{}"), Err("command: required".to_owned()));
        assert_eq!(validate(r#"{"command": []}"#), Err("command: required".to_owned()));
        let shell = r#"command: expected a list of texts, found the text "true""#;
        assert_eq!(validate(r#"{"command": "true"}"#), Err(shell.to_owned()));
        let near = r#"comand: unknown field; did you mean "command"?"#;
        assert_eq!(validate(r#"{"comand": ["true"]}"#), Err(near.to_owned()));
    }
}
