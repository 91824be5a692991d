//! What cargo makes of the workspace: its test binaries and the agent, linted as they are compiled. Must not run a test.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{place::Place, process, say};

/// The compiler with lints.
pub(crate) const CLIPPY: &str = "clippy-driver";

/// How long a cold build may take.
const BUILD: Duration = Duration::from_secs(1800);

/// A compiled test binary.
#[derive(Debug)]
pub(crate) struct Executable {
    package: String,
    pub(crate) name: String,
    /// Of a `tests/` folder, not of the sources.
    integration: bool,
    pub(crate) path: PathBuf,
    /// The package's folder: where cargo, too, would run it.
    folder: PathBuf,
}

impl Executable {
    /// Those that talk to the Docker of `DOCKER_HOST`, or make networks: each is run in worlds.
    pub(crate) fn needs_docker(&self) -> bool {
        self.integration
            && matches!(
                (self.package.as_str(), self.name.as_str()),
                ("docker", "docker") | ("cni", "cni") | ("tests", "e2e")
            )
    }

    pub(crate) fn title(&self) -> String {
        match self.integration {
            true => format!("{}/tests: {}", self.package, self.name),
            false => self.package.clone(),
        }
    }

    /// What a test finds when cargo runs it, and where `longshore` is.
    pub(crate) fn environment(&self, place: &Place, command: &mut Command) {
        command
            .current_dir(&self.folder)
            .env("CARGO_MANIFEST_DIR", &self.folder)
            .env("CARGO", program())
            .env("LONGSHORE_BIN", place.target.join("debug/longshore"))
            .env("INSTA_UPDATE", "no")
            .env("INSTA_WORKSPACE_ROOT", &place.root);
    }
}

/// What `compile` made.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) tests: Vec<Executable>,
    /// What the compiler and clippy found, as they print it.
    pub(crate) warnings: String,
}

/// Compiles the workspace's tests and its binary with one call, so that cargo settles features once.
pub(crate) fn compile(place: &Place) -> Result<Compiled> {
    let messages = place.fresh_log("compile-messages")?;
    let errors = place.fresh_log("compile")?;
    let (out, _) = process::log_pair(&messages)?;
    let (err, _) = process::log_pair(&errors)?;
    let mut command = linting(place);
    command
        .args(["build", "--quiet", "--workspace", "--all-targets", "--message-format", "json"])
        .stdout(out)
        .stderr(err);
    let built = process::Running::start("cargo build", &mut command)?.wait(BUILD)?.success();
    let mut tests = Vec::new();
    let mut warnings = String::new();
    for line in fs::read_to_string(&messages)?.lines() {
        let message: Value = serde_json::from_str(line).context("cargo's messages")?;
        if message["reason"] == "compiler-message"
            && ["warning", "error"].iter().any(|it| message["message"]["level"] == *it)
        {
            warnings.push_str(message["message"]["rendered"].as_str().unwrap_or_default());
        }
        if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
            continue;
        }
        let (Some(path), Some(manifest)) = (message["executable"].as_str(), message["manifest_path"].as_str()) else {
            continue;
        };
        let folder = Path::new(manifest).parent().context("a manifest without a folder")?;
        tests.push(Executable {
            package: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            name: message["target"]["name"].as_str().unwrap_or("?").to_owned(),
            integration: message["target"]["kind"][0] == "test",
            path: path.into(),
            folder: folder.to_owned(),
        });
    }
    if !built {
        bail!("{}", say::tail(&format!("{warnings}{}", fs::read_to_string(&errors)?), 80));
    }
    tests.sort_by(|a, b| (&a.package, &a.name).cmp(&(&b.package, &b.name)));
    Ok(Compiled { tests, warnings })
}

pub(crate) fn program() -> std::ffi::OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

pub(crate) fn cargo(place: &Place) -> Command {
    let mut command = Command::new(program());
    command.current_dir(&place.root);
    let asked = env::var_os("CARGO_INCREMENTAL").is_some();
    if !asked && (env::var_os("CI").is_some() || !is_incremental(&place.target)) {
        command.env("CARGO_INCREMENTAL", "0");
    }
    command
}

/// Whether tests were compiled there with what the next compilation begins with. A folder that begins empty does without: that is
/// gigabytes and minutes, for compilations that may never come. Whichever it is, it stays: the other would be a second one of each.
fn is_incremental(target: &Path) -> bool {
    holds_tests(&target.join("debug/incremental"))
}

/// Whether tests were compiled there at all.
pub(crate) fn is_warm(target: &Path) -> bool {
    holds_tests(&target.join("debug/deps"))
}

/// Whether cargo put there something of the end-to-end tests, which are the last to be compiled. Of other crates there is
/// something as soon as they are built: of xtask itself always.
fn holds_tests(folder: &Path) -> bool {
    let mut entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.any(|entry| entry.file_name().to_string_lossy().starts_with("e2e-"))
}

/// cargo with clippy as the compiler of the workspace, which it is as well: `cargo clippy` beside a build would check all
/// dependencies a second time, and that takes minutes.
pub(crate) fn linting(place: &Place) -> Command {
    let mut command = cargo(place);
    if has_clippy() {
        command.env("RUSTC_WORKSPACE_WRAPPER", CLIPPY);
    }
    command
}

/// Whether there is one: rustup has a program of that name also where it is not installed.
pub(crate) fn has_clippy() -> bool {
    process::output(CLIPPY, Command::new(CLIPPY).arg("--version"), Duration::from_secs(60)).is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_incremental_once_its_tests_are() {
        let target = tempfile::tempdir().unwrap();
        let kinds = || (is_warm(target.path()), is_incremental(target.path()));
        assert_eq!(kinds(), (false, false));
        fs::create_dir_all(target.path().join("debug/incremental/longshore_xtask-1a2b")).unwrap();
        fs::create_dir_all(target.path().join("debug/deps")).unwrap();
        assert_eq!(kinds(), (false, false), "xtask builds itself");
        fs::write(target.path().join("debug/deps/e2e-3c4d"), b"").unwrap();
        assert_eq!(kinds(), (true, false), "it was compiled without");
        fs::create_dir_all(target.path().join("debug/incremental/e2e-5e6f")).unwrap();
        assert_eq!(kinds(), (true, true));
    }
}
