//! `longshore config check`: every problem of configuration files, with line, field and nearest name.

use std::path::PathBuf;

use super::out;
use crate::config;

/// Checks files; whether all are sound.
pub(crate) fn check(files: &[PathBuf]) -> anyhow::Result<bool> {
    let mut sound = true;
    for file in files {
        let findings = config::check_file(file);
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
