//! kubectl, as xtask itself uses it. Must not be used by tests, which have their own.

use std::{
    io::{Seek as _, Write as _},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::process::{self, Running};

/// Longer than any request that is not a watch.
const LIMIT: Duration = Duration::from_secs(60);

/// The program and whom it speaks for.
#[derive(Clone, Debug)]
pub(crate) struct Kubectl {
    /// The program.
    pub program: PathBuf,
    /// Its kubeconfig.
    pub kubeconfig: PathBuf,
}

impl Kubectl {
    /// A command with these arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        // Its cache of what the server knows is per server, and ours change with each run.
        command.env("KUBECACHEDIR", self.kubeconfig.with_file_name("kubectl-cache"));
        command
    }

    /// Runs it and gives what it prints.
    ///
    /// # Errors
    /// When it fails; what it says is in the message.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        let name = format!("kubectl {}", arguments.first().copied().unwrap_or_default());
        process::output(&name, &mut self.command(arguments), LIMIT)
    }

    /// Creates or changes objects.
    ///
    /// # Errors
    /// When the server refuses one.
    pub(crate) fn apply(&self, objects: &[Value]) -> Result<()> {
        let mut file = tempfile::NamedTempFile::new().context("a temporary file")?;
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        file.write_all(list.to_string().as_bytes())?;
        file.rewind()?;
        let mut errors = tempfile::tempfile()?;
        let mut command = self.command(&["apply", "--server-side", "-f"]);
        command.arg(file.path()).stdout(std::process::Stdio::null()).stderr(errors.try_clone()?);
        if !Running::start("kubectl apply", &mut command)?.wait(LIMIT)?.success() {
            let mut text = String::new();
            errors.rewind()?;
            std::io::Read::read_to_string(&mut errors, &mut text)?;
            bail!("kubectl apply: {}", text.trim());
        }
        Ok(())
    }
}
