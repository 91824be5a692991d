//! `longshore doctor`: looks at all that a node needs, in both directions, and says for what fails what to change.
//!
//! Looks; changes nothing. What it finds out it finds out as the agent and its users do, not from the agent's memory.

mod back;
mod cluster;
mod machine;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Parser;

use super::out;
use crate::cli::{Cli, Command, DoctorArgs};
use crate::client::Client;
use crate::config::{self, Config, DaemonFlags, Problem, Surroundings};

/// What is known after a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It is as it should be.
    Good,
    /// It works, and may be better otherwise.
    Warning,
    /// It does not work.
    Bad,
    /// It could not be looked at.
    Skipped,
}

/// Prints each finding as it comes, and counts.
#[derive(Debug, Default)]
struct Report {
    bad: usize,
    warnings: usize,
}

impl Report {
    fn line(&mut self, outcome: Outcome, what: &str, found: &str, advice: &str) -> std::io::Result<()> {
        let word = match outcome {
            Outcome::Good => "ok",
            Outcome::Warning => "warn",
            Outcome::Bad => "FAIL",
            Outcome::Skipped => "skip",
        };
        self.bad += usize::from(outcome == Outcome::Bad);
        self.warnings += usize::from(outcome == Outcome::Warning);
        let mut text = format!("{word:<5} {what:<18} {found}\n");
        if !advice.is_empty() {
            text.push_str(&format!("{:25}-> {advice}\n", ""));
        }
        out::print(&text)
    }

    fn good(&mut self, what: &str, found: impl AsRef<str>) -> std::io::Result<()> {
        self.line(Outcome::Good, what, found.as_ref(), "")
    }

    fn warn(&mut self, what: &str, found: impl AsRef<str>, advice: &str) -> std::io::Result<()> {
        self.line(Outcome::Warning, what, found.as_ref(), advice)
    }

    fn bad(&mut self, what: &str, found: impl AsRef<str>, advice: &str) -> std::io::Result<()> {
        self.line(Outcome::Bad, what, found.as_ref(), advice)
    }

    fn skip(&mut self, what: &str, found: impl AsRef<str>, advice: &str) -> std::io::Result<()> {
        self.line(Outcome::Skipped, what, found.as_ref(), advice)
    }
}

/// The configuration to look at: the running agent's, else what the flags say. Fails with its problems.
pub(crate) async fn configuration(
    client: &Client,
    arguments: &DoctorArgs,
    around: Surroundings,
) -> Result<(Config, bool), Vec<Problem>> {
    let given: Option<BTreeMap<String, String>> = client.get("/v1/flags").await.ok();
    let running = given.is_some();
    let of_agent = given.filter(|_| arguments.daemon == DaemonFlags::default()).and_then(|given| parsed(&given));
    let flags = of_agent.as_ref().unwrap_or(&arguments.daemon);
    config::load(flags, around).map(|(config, _)| (config, running))
}

fn parsed(given: &BTreeMap<String, String>) -> Option<DaemonFlags> {
    let words = given.iter().map(|(name, value)| format!("--{name}={value}"));
    let cli = Cli::try_parse_from(["longshore".to_owned(), "run".to_owned()].into_iter().chain(words)).ok()?;
    match cli.command {
        Some(Command::Run(flags)) => Some(*flags),
        _ => None,
    }
}

/// Looks at everything; true when nothing is wrong.
pub(crate) async fn doctor(config: &Config, running: bool, arguments: &DoctorArgs) -> anyhow::Result<bool> {
    let mut report = Report::default();
    machine::check(&mut report, config, running).await?;
    if config.joining.in_cluster() {
        let node = cluster::check(&mut report, config).await?;
        back::check(&mut report, config, &node, admin(arguments), arguments.pod.as_deref()).await?;
    } else {
        report.skip("cluster", "this node runs alone", "")?;
    }
    let summary = match (report.bad, report.warnings) {
        (0, 0) => "all is well".to_owned(),
        (0, warnings) => format!("it works; {warnings} to look at"),
        (bad, _) => format!("{bad} failed"),
    };
    out::print(&format!("\n{summary}\n"))?;
    Ok(report.bad == 0)
}

/// The kubeconfig of somebody who may run commands in pods.
fn admin(arguments: &DoctorArgs) -> Option<PathBuf> {
    let usual = || Some(PathBuf::from("/etc/kubernetes/admin.conf")).filter(|path| path.exists());
    let variable = || std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty()).map(PathBuf::from);
    arguments.admin_kubeconfig.clone().or_else(variable).or_else(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_flags_are_read_again() {
        let given = [("hostname-override", "n7"), ("node-labels", "a=b,c=d"), ("port", "10299")];
        let given = given.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let flags = parsed(&given).expect("flags of the daemon");
        assert_eq!(flags.given(), given);
    }
}
