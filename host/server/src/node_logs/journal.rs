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
    let own = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|cgroup| own_unit(&cgroup));
    let (mut native, mut files) = (Vec::new(), Vec::new());
    for service in &wanted.services {
        match unit(service, &units, own.as_deref()) {
            Some(unit) => native.push(unit),
            None => files.push(service),
        }
    }
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

/// The unit in whose journal a service's log is: the one of that name, and of the kubelet this agent's own, which took its place.
fn unit(service: &str, units: &str, own: Option<&str>) -> Option<String> {
    if let Some(own) = own.filter(|_| service == "kubelet") {
        return Some(own.to_owned());
    }
    let name = format!("{service}.service");
    units.lines().any(|unit| unit.trim() == name).then(|| service.to_owned())
}

/// The unit that a process runs in, by its `/proc/<pid>/cgroup`.
fn own_unit(cgroup: &str) -> Option<String> {
    let parts = cgroup.lines().flat_map(|line| line.rsplit('/'));
    parts.map(str::trim).find(|part| part.ends_with(".service")).map(str::to_owned)
}

/// The names of all units in the journal, as text; empty where there is no journal.
async fn units(deadline: Instant) -> String {
    let mut command = Command::new("journalctl");
    command.args(["--field", "_SYSTEMD_UNIT"]);
    let mut names = Vec::new();
    let _ = output(command, deadline, &mut names).await;
    String::from_utf8_lossy(&names).into_owned()
}

async fn journal(wanted: &Wanted, units: &[String], deadline: Instant, out: &mut Vec<u8>) -> std::io::Result<()> {
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
    units.iter().for_each(|unit| _ = command.arg(format!("--unit={unit}")));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelet_is_this_agent() {
        let v2 = "0::/system.slice/longshore.service\n";
        let v1 =
            "12:pids:/system.slice/longshore.service\n1:name=systemd:/system.slice/longshore.service\n0::/user.slice\n";
        assert_eq!(
            [v2, v1, "0::/\n"].map(own_unit),
            [Some("longshore.service".into()), Some("longshore.service".into()), None]
        );
        let units = "docker.service\nlongshore.service\n";
        let own = Some("longshore.service");
        assert_eq!(unit("docker", units, own).as_deref(), Some("docker"));
        assert_eq!(unit("kubelet", units, own).as_deref(), own);
        // It left its log when this agent took its place.
        assert_eq!(unit("kubelet", "kubelet.service\n", own).as_deref(), own);
        assert_eq!(unit("kubelet", "kubelet.service\n", None).as_deref(), Some("kubelet"));
        assert_eq!((unit("kubelet", "x-kubelet.service\n", None), unit("ssh", units, own)), (None, None));
    }
}
