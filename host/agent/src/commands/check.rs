//! `longshore config check`: every problem of configuration files and folders of drop-ins, with line, field and nearest
//! name. Manifests and folders of them are looked at, too, as the agent would read them.

use std::path::{Path, PathBuf};

use longshore_filesystem::read_once;

use super::out;
use crate::config::{self, Findings};

/// Checks files; whether all are sound.
pub(crate) fn check(files: &[PathBuf]) -> anyhow::Result<bool> {
    let mut sound = true;
    for file in files {
        let findings = if let Err(error) = std::fs::metadata(file) {
            unreadable(file, &error)
        } else if config::is_drop_in_folder(file) {
            config::check_drop_ins(file)
        } else if is_manifest(file) {
            check_manifests(file)
        } else {
            config::check_file(file)
        };
        for problem in &findings.problems {
            out::print(&format!("error: {problem}\n"))?;
        }
        for warning in &findings.warnings {
            out::print(&format!("warning: {warning}\n"))?;
        }
        if findings.problems.is_empty() {
            out::print(&format!("{}: ok\n", file.display()))?;
        }
        sound &= findings.problems.is_empty();
    }
    Ok(sound)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Findings {
    let mut findings = Findings::default();
    let message = match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or folder".to_owned(),
        _ => error.to_string(),
    };
    findings.problem(&path.display().to_string(), message);
    findings
}

/// A folder, or a file that does not say that it is a configuration.
fn is_manifest(file: &Path) -> bool {
    file.is_dir() || !config::is_configuration(file)
}

fn check_manifests(path: &Path) -> Findings {
    let mut findings = Findings::default();
    // Names and UIDs end with the node's name; what is wrong does not depend on it.
    match read_once(path, "node") {
        Ok(reading) => {
            for problem in reading.snapshot.problems {
                match problem.warning {
                    true => findings.warnings.push(format!("{}: {}", problem.place, problem.message)),
                    false => findings.problem(&problem.place, problem.message),
                }
            }
        }
        Err(error) => findings.problem(&path.display().to_string(), error.to_string()),
    }
    findings
}
