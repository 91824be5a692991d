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

/// Go's own program, if there is one.
pub(crate) fn program() -> Option<PathBuf> {
    process::on_path("go").or_else(|| Some(PathBuf::from("/usr/local/go/bin/go")).filter(|go| go.is_file()))
}

/// Builds the program `package` of `module` in `version` as `file`.
///
/// # Errors
/// When there is no Go, or the build fails; the end of its log is in the message.
pub(crate) fn build(place: &Place, module: &str, version: &str, package: &str, file: &Path) -> Result<()> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let go =
        program().with_context(|| format!("{name} is built from a Go module, and there is no `go` on the PATH"))?;
    say!("building {name} {version} into {} (two or three minutes, once)", file.display());
    let source = file.with_extension("source");
    let _ = fs::remove_dir_all(&source);
    fs::create_dir_all(&source).with_context(|| format!("{}", source.display()))?;
    fs::write(
        source.join("go.mod"),
        format!("module longshore.dev/{name}\n\ngo 1.26\n\nrequire {module} {version}\n"),
    )?;
    let import = format!("//go:build programs\n\npackage programs\n\nimport _ \"{package}\"\n");
    fs::write(source.join("programs.go"), import)?;
    let log = place.fresh_log(&format!("{name}-build"))?;
    let built = source.join(&name);
    for arguments in [
        vec!["mod", "tidy", "-e"],
        vec!["build", "-trimpath", "-ldflags", "-s -w", "-o", &built.display().to_string(), package],
    ] {
        let mut command = Command::new(&go);
        command.current_dir(&source).args(&arguments);
        command.env("GOFLAGS", "-mod=mod").env("GOWORK", "off").env("CGO_ENABLED", "0");
        if !process::logged(&format!("go {}", arguments[0]), &mut command, &log, LIMIT)? {
            let text = fs::read_to_string(&log).unwrap_or_default();
            bail!("go {} failed; {} ends:\n{}", arguments[0], log.display(), say::tail(&text, 15));
        }
    }
    fs::rename(&built, file).with_context(|| format!("{}", file.display()))?;
    let _ = fs::remove_dir_all(&source);
    Ok(())
}
