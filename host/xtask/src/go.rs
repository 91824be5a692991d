//! Programs of Go modules, built into the cache. Must not decide which.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{place::Place, process, say};

/// Long for a cold build on two cores.
const LIMIT: Duration = Duration::from_secs(1500);

/// Go's own program; the error says what is built with it, and where Go is had. It is not installed by us: Debian 12's is too old.
///
/// # Errors
/// When there is none.
pub(crate) fn program(what: &str) -> Result<PathBuf> {
    let found = process::on_path("go");
    found
        .or_else(|| Some(PathBuf::from("/usr/local/go/bin/go")).filter(|go| go.is_file()))
        .with_context(|| {
            format!(
                "{what} is built from Go modules, and there is no `go` on the PATH or in /usr/local/go/bin: install Go 1.26 \
                 from https://go.dev/dl (1.21 and later fetch that themselves)"
            )
        })
}

/// A module of ours that only names programs of others, so that Go fetches and builds them. What is left of it after a
/// failure is made anew by the next try.
#[derive(Debug)]
pub(crate) struct Module {
    go: PathBuf,
    folder: PathBuf,
    log: PathBuf,
    limit: Duration,
}

impl Module {
    /// An empty one in that folder. What Go says goes to `log`; each of its calls may take as long as `limit`.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub(crate) fn open(go: PathBuf, folder: PathBuf, log: PathBuf, limit: Duration) -> Result<Self> {
        fresh(&folder)?;
        Ok(Self { go, folder, log, limit })
    }

    /// Gives it that `go.mod`, and the packages of the programs.
    ///
    /// # Errors
    /// When that cannot be written.
    pub(crate) fn write(&self, go_mod: &str, packages: &[&str]) -> Result<()> {
        fs::write(self.folder.join("go.mod"), go_mod)?;
        let imports: String = packages.iter().map(|package| format!("\t_ \"{package}\"\n")).collect();
        let text = format!("//go:build programs\n\npackage programs\n\nimport (\n{imports})\n");
        fs::write(self.folder.join("programs.go"), text).context("programs.go")
    }

    /// Go in this module, to be told what to do.
    pub(crate) fn command(&self, cgo: bool) -> Command {
        let mut command = Command::new(&self.go);
        command.current_dir(&self.folder).env("GOFLAGS", "-mod=mod").env("GOWORK", "off");
        command.env("CGO_ENABLED", if cgo { "1" } else { "0" });
        command
    }

    /// Runs it.
    ///
    /// # Errors
    /// When it fails; the end of its log is in the message.
    pub(crate) fn run(&self, name: &str, command: &mut Command) -> Result<()> {
        if process::logged(name, command, &self.log, self.limit)? {
            return Ok(());
        }
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        bail!("{name} failed; {} ends:\n{}", self.log.display(), say::tail(&text, 15))
    }

    /// Takes it away.
    pub(crate) fn close(self) {
        let _ = fs::remove_dir_all(self.folder);
    }
}

/// An empty folder, whatever was there.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn fresh(folder: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))
}

/// Builds the program `package` of `module` in `version` as `file`.
///
/// # Errors
/// When there is no Go, or the build fails; the end of its log is in the message.
pub(crate) fn build(place: &Place, module: &str, version: &str, package: &str, file: &Path) -> Result<()> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let go = program(&name)?;
    say!("building {name} {version} into {} (two or three minutes, once)", file.display());
    let source = file.with_extension("source");
    let built = source.join(&name);
    let programs = Module::open(go, source, place.fresh_log(&format!("{name}-build"))?, LIMIT)?;
    let go_mod = format!("module longshore.dev/{name}\n\ngo 1.26\n\nrequire {module} {version}\n");
    programs.write(&go_mod, &[package])?;
    programs.run("go mod tidy", programs.command(false).args(["mod", "tidy", "-e"]))?;
    let mut command = programs.command(false);
    command.args(["build", "-trimpath", "-ldflags", "-s -w", "-o"]).arg(&built).arg(package);
    programs.run("go build", &mut command)?;
    fs::rename(&built, file).with_context(|| format!("{}", file.display()))?;
    programs.close();
    Ok(())
}
