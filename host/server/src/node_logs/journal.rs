//! Services' logs: those of the journal by journalctl, whose arguments are built from checked values alone, the others by
//! their names in the log folder.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::{Instant, timeout_at};

use super::wanted::Wanted;
use super::{Found, look};
use crate::routes::respond;

/// Bytes of an answer.
const OUTPUT: u64 = 16 << 20;
/// How long it may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Answers with what is found; what goes wrong is said within.
pub(super) async fn answer(root: PathBuf, wanted: Wanted) -> Response {
    let deadline = Instant::now() + LIMIT;
    let units = units(deadline).await;
    let of_journal = |service: &&String| units.contains(&format!("{service}.service"));
    let (native, files): (Vec<_>, Vec<_>) = wanted.services.iter().partition(of_journal);
    let mut out = Vec::new();
    if !native.is_empty() && journal(&wanted, &native, deadline, &mut out).await.is_err() {
        out.extend_from_slice(b"\nerror: journal output not available\n");
    }
    if !files.is_empty() && wanted.has_options() {
        let names: Vec<&str> = files.iter().map(|name| name.as_str()).collect();
        let line = format!(
            "\noptions present and query resolved to log files for [{}]\ntry without specifying options\n",
            names.join(" ")
        );
        out.extend_from_slice(line.as_bytes());
    } else if !files.is_empty() {
        let names: Vec<String> = files.into_iter().cloned().collect();
        let read = tokio::task::spawn_blocking(move || {
            let mut out = Vec::new();
            names.iter().for_each(|name| copy(&root, name, &mut out));
            out
        });
        out.append(&mut read.await.unwrap_or_default());
    }
    respond(StatusCode::OK, "text/plain;charset=UTF-8", Body::from(out))
}

/// The names of all units in the journal, as text; empty where there is no journal.
async fn units(deadline: Instant) -> String {
    let mut command = Command::new("journalctl");
    command.args(["--field", "_SYSTEMD_UNIT"]);
    let mut names = Vec::new();
    let _ = output(command, deadline, &mut names).await;
    String::from_utf8_lossy(&names).into_owned()
}

async fn journal(wanted: &Wanted, services: &[&String], deadline: Instant, out: &mut Vec<u8>) -> std::io::Result<()> {
    let mut command = Command::new("journalctl");
    command.args(["--utc", "--no-pager", "--output=short-precise"]);
    for (flag, time) in [("since", wanted.since), ("until", wanted.until)] {
        if let Some(time) = time {
            command.arg(format!("--{flag}={}", time.strftime("%Y-%m-%d %H:%M:%S UTC")));
        }
    }
    if let Some(lines) = wanted.tail {
        command.arg("--pager-end").arg(format!("--lines={lines}"));
    }
    services.iter().for_each(|service| _ = command.arg(format!("--unit={service}")));
    if !wanted.pattern.is_empty() {
        command.arg(format!("--grep={}", wanted.pattern));
    }
    if let Some(boot) = wanted.boot {
        command.arg("--boot").arg(boot.to_string());
    }
    output(command, deadline, out).await
}

/// What a command prints, errors with it.
async fn output(mut command: Command, deadline: Instant, out: &mut Vec<u8>) -> std::io::Result<()> {
    command.kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (from, errors) = (child.stdout.take(), child.stderr.take());
    let read = async {
        let first = async {
            match from {
                Some(from) => from.take(OUTPUT).read_to_end(&mut stdout).await.map(drop),
                None => Ok(()),
            }
        };
        let second = async {
            match errors {
                Some(errors) => errors.take(OUTPUT).read_to_end(&mut stderr).await.map(drop),
                None => Ok(()),
            }
        };
        tokio::try_join!(first, second).map(drop)
    };
    let ended = timeout_at(deadline, read).await;
    // What came in time is worth something.
    out.append(&mut stdout);
    out.append(&mut stderr);
    ended.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
}

/// Copies `<name>`, `<name>.log` or `<name>/<name>.log` of the log folder, the first that is a file.
fn copy(root: &Path, name: &str, out: &mut Vec<u8>) {
    use std::io::Read;
    for file in [name.to_owned(), format!("{name}.log"), format!("{name}/{name}.log")] {
        match look(root, Path::new(&file)) {
            Ok(Found::File(opened)) => {
                let left = OUTPUT.saturating_sub(out.len() as u64);
                if let Err(error) = opened.file.take(left).read_to_end(out) {
                    out.extend_from_slice(format!("\nerror getting log for {name}: {error}\n").as_bytes());
                }
                return;
            }
            Ok(Found::Folder(_)) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                out.extend_from_slice(format!("\nerror getting log for {name}: {error}\n").as_bytes());
                return;
            }
        }
    }
    out.extend_from_slice(format!("\nlog not found for {name}\n").as_bytes());
}
