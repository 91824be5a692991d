//! `longshore doctor`: looks at all that a node needs, in both directions, and says for what fails what to change.
//!
//! Looks; changes nothing. What it finds out it finds out as the agent and its users do, not from the agent's memory.

mod back;
mod cluster;
mod machine;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;

use clap::Parser;

use super::out;
use crate::cli::{Cli, Command, DoctorArgs};
use crate::client::Client;
use crate::config::{self, Config, DaemonFlags, Problem, Surroundings};
use crate::socket::api::Info;

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
    /// What could not be looked at, though it might be.
    unseen: usize,
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
        self.unseen += usize::from(outcome == Outcome::Skipped && !advice.is_empty());
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

    /// What does not work always comes with what to change.
    fn bad(&mut self, what: &str, found: impl AsRef<str>, advice: &str) -> std::io::Result<()> {
        debug_assert!(!advice.is_empty(), "{what}");
        self.line(Outcome::Bad, what, found.as_ref(), advice)
    }

    fn skip(&mut self, what: &str, found: impl AsRef<str>, advice: &str) -> std::io::Result<()> {
        self.line(Outcome::Skipped, what, found.as_ref(), advice)
    }
}

/// The configuration to look at: what the running agent was started with, else what the flags say. Fails with its
/// problems.
async fn configuration(
    client: &Client,
    arguments: &DoctorArgs,
    around: Surroundings,
    agent: Option<&Info>,
) -> Result<Config, Vec<Problem>> {
    let given: Option<BTreeMap<String, String>> = client.get("/v1/flags").await.ok();
    let of_agent = given.filter(|_| arguments.daemon == DaemonFlags::default()).and_then(|given| parsed(&given));
    let around = Surroundings { root_dir: around.root_dir.map(absolute), ..around };
    let loaded = match (&of_agent, agent) {
        (Some(flags), Some(agent)) => started_there(agent.pid, || config::load(flags, around)),
        (Some(flags), None) => config::load(flags, around),
        (None, _) => config::load(&arguments.daemon, around),
    };
    let (mut config, _) = loaded?;
    // The agent's $DOCKER_HOST need not be ours.
    if let Some(agent) = agent.filter(|_| arguments.daemon.docker_endpoint.is_none()) {
        config.docker_endpoint.clone_from(&agent.docker.endpoint);
    }
    Ok(config)
}

/// Does something in the folder that a process was started in: relative paths in its flags begin there. Where that cannot
/// be entered it is done here.
fn started_there<T>(pid: u32, work: impl FnOnce() -> T) -> T {
    let here = std::env::current_dir();
    let _ = std::env::set_current_dir(format!("/proc/{pid}/cwd"));
    let done = work();
    if let Ok(here) = here {
        let _ = std::env::set_current_dir(here);
    }
    done
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
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
pub(crate) async fn doctor(client: &Client, arguments: &DoctorArgs, around: Surroundings) -> anyhow::Result<bool> {
    let mut report = Report::default();
    let info = client.get::<Info>("/v1/info").await;
    let agent = info.as_ref().ok().cloned();
    machine::agent(&mut report, client, info).await?;
    match configuration(client, arguments, around, agent.as_ref()).await {
        Ok(config) => {
            machine::check(&mut report, &config, agent.as_ref()).await?;
            if config.joining.in_cluster() {
                let node = cluster::check(&mut report, &config).await?;
                back::check(&mut report, &config, &node, admin(arguments), arguments.pod.as_deref()).await?;
            } else {
                report.skip("cluster", "this node runs alone", "")?;
            }
        }
        Err(problems) => {
            for problem in problems {
                report.bad("configuration", problem.to_string(), "fix it: the agent does not start with that")?;
            }
            if let Some(agent) = &agent {
                machine::docker(&mut report, &agent.docker.endpoint).await?;
            }
            report.skip("all else", "depends on the configuration", "")?;
        }
    }
    let mut summary = match (report.bad, report.warnings) {
        (0, 0) if report.unseen > 0 => "nothing failed".to_owned(),
        (0, 0) => "all is well".to_owned(),
        (0, warnings) => format!("it works; {warnings} to look at"),
        (bad, _) => format!("{bad} failed"),
    };
    if report.unseen > 0 {
        summary.push_str(&format!("; {} could not be checked", report.unseen));
    }
    out::print(&format!("\n{summary}\n"))?;
    Ok(report.bad == 0)
}

/// The kubeconfig of somebody who may run commands in pods.
fn admin(arguments: &DoctorArgs) -> Option<PathBuf> {
    let usual = || Some(PathBuf::from("/etc/kubernetes/admin.conf")).filter(|path| path.exists());
    let variable = || std::env::var_os("KUBECONFIG").and_then(|paths| first_of(&paths));
    arguments.admin_kubeconfig.clone().or_else(variable).or_else(usual)
}

/// The first file of a list of paths that exists, as kubectl has it of `$KUBECONFIG`; where none does, the first, so that
/// what is said names it.
fn first_of(paths: &OsStr) -> Option<PathBuf> {
    let named: Vec<PathBuf> = std::env::split_paths(paths).filter(|path| !path.as_os_str().is_empty()).collect();
    named.iter().find(|path| path.exists()).or(named.first()).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_is_the_first_that_exists() {
        let folder = tempfile::tempdir().expect("a folder");
        let (there, absent) = (folder.path().join("there"), folder.path().join("absent"));
        std::fs::write(&there, "").expect("a file");
        let list = |paths: &[&PathBuf]| std::env::join_paths(paths).expect("paths");
        assert_eq!(first_of(&list(&[&absent, &there])), Some(there));
        assert_eq!(first_of(&list(&[&absent])), Some(absent));
        assert_eq!(first_of(OsStr::new("")), None);
        assert_eq!(first_of(OsStr::new(":")), None);
    }

    #[test]
    fn the_agents_flags_are_read_again() {
        let given = [("hostname-override", "n7"), ("node-labels", "a=b,c=d"), ("port", "10299")];
        let given = given.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let flags = parsed(&given).expect("flags of the daemon");
        assert_eq!(flags.given(), given);
    }
}
