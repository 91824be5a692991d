//! Services' logs: those of the journal by journalctl, whose arguments are built from checked values alone, the others by
//! their names in the log folder.

use std::future::ready;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::process::Command;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::io::ReaderStream;
use tokio_util::task::AbortOnDropHandle;

use super::wanted::Wanted;
use super::{Found, look};
use crate::routes::respond;

/// Bytes that wait for a slow client.
const AHEAD: usize = 64 << 10;
/// Bytes of the names of all units, and of what a command says of its errors.
const NAMES: u64 = 1 << 20;
const ERRORS: u64 = 64 << 10;
/// How long finding all that is asked for may take, its client's time to read it included; and then the last words of it.
const LIMIT: Duration = Duration::from_secs(30);
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long of that for the names: without them there is still time for the logs.
const NAMES_LIMIT: Duration = Duration::from_secs(10);

/// Answers with what is found, as it is found, and keeps a place until then; what goes wrong is said within. It goes on
/// whether the answer is read or not, so that its time is over for those who do not read, too, and ends with the answer.
pub(super) fn answer(root: PathBuf, wanted: Wanted, place: OwnedSemaphorePermit) -> Response {
    let (from, to) = tokio::io::duplex(AHEAD);
    let writing = AbortOnDropHandle::new(tokio::spawn(async move {
        // It fails when nobody listens any more.
        let written = timeout(LIMIT + LAST_WORDS, write(&root, &wanted, to)).await;
        drop(place);
        written.is_ok()
    }));
    // What was not read in time is missing: nobody is to take the rest for the whole.
    let ended = stream::once(writing).filter_map(|in_time| {
        let error: Option<io::Result<Bytes>> = match in_time {
            Ok(true) => None,
            _ => Some(Err(io::ErrorKind::TimedOut.into())),
        };
        ready(error)
    });
    let body = Body::from_stream(stream::select(ReaderStream::new(from), ended));
    respond(StatusCode::OK, "text/plain;charset=UTF-8", body)
}

async fn write(root: &Path, wanted: &Wanted, mut to: DuplexStream) -> io::Result<()> {
    let deadline = Instant::now() + LIMIT;
    let units = units(Instant::now() + NAMES_LIMIT).await;
    let own = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|cgroup| own_unit(&cgroup));
    let (mut native, mut files) = (Vec::new(), Vec::new());
    for service in &wanted.services {
        match unit(service, &units, own.as_deref()) {
            Some(unit) => native.push(unit),
            None => files.push(service.as_str()),
        }
    }
    if !native.is_empty() && journal(wanted, &native, deadline, &mut to).await.is_err() {
        to.write_all(b"\nerror: journal output not available\n").await?;
    }
    if !files.is_empty() && wanted.has_options() {
        let line = format!(
            "\noptions present and query resolved to log files for [{}]\ntry without specifying options\n",
            files.join(" ")
        );
        return to.write_all(line.as_bytes()).await;
    }
    for name in files {
        copy(root, name, deadline, &mut to).await?;
    }
    Ok(())
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
    let mut names: Vec<u8> = Vec::new();
    let _ = output(command, deadline, &mut names, NAMES).await;
    String::from_utf8_lossy(&names).into_owned()
}

async fn journal(wanted: &Wanted, units: &[String], deadline: Instant, to: &mut DuplexStream) -> io::Result<()> {
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
    output(command, deadline, to, u64::MAX).await
}

/// What a command prints, as far as it comes in time, and then its errors. One that prints more than is wanted is let go.
async fn output(
    mut command: Command,
    deadline: Instant,
    to: &mut (impl AsyncWrite + Unpin),
    most: u64,
) -> io::Result<()> {
    command.kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let (Some(from), Some(mut errors)) = (child.stdout.take(), child.stderr.take()) else { return Ok(()) };
    let mut said = Vec::new();
    let print = async {
        let mut from = from.take(most);
        // With its end the pipe is closed, and what is printed still ends the command.
        tokio::io::copy(&mut from, to).await
    };
    let tell = async {
        (&mut errors).take(ERRORS).read_to_end(&mut said).await?;
        // It must not stand still for the rest.
        tokio::io::copy(&mut errors, &mut tokio::io::sink()).await
    };
    let ended = timeout_at(deadline, async { tokio::try_join!(print, tell) }).await;
    // Not to stay for as long as its errors are read.
    drop(child);
    to.write_all(&said).await?;
    ended.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(drop)
}

/// Copies `<name>`, `<name>.log` or `<name>/<name>.log` of the log folder, the first that is a file, as long as it is now.
async fn copy(root: &Path, name: &str, deadline: Instant, to: &mut DuplexStream) -> io::Result<()> {
    for file in [name.to_owned(), format!("{name}.log"), format!("{name}/{name}.log")] {
        let root = root.to_owned();
        let found = tokio::task::spawn_blocking(move || look(&root, Path::new(&file))).await;
        let error = match found.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(Found::File(opened)) => {
                let mut from = tokio::fs::File::from_std(opened.file).take(opened.size);
                match timeout_at(deadline, tokio::io::copy(&mut from, to)).await {
                    Ok(Ok(_)) => return Ok(()),
                    Ok(Err(error)) => error,
                    Err(_) => io::ErrorKind::TimedOut.into(),
                }
            }
            Ok(Found::Folder(_)) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => error,
        };
        return to.write_all(format!("\nerror getting log for {name}: {error}\n").as_bytes()).await;
    }
    to.write_all(format!("\nlog not found for {name}\n").as_bytes()).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    /// What a script prints, up to so many bytes, and its errors.
    async fn printed(script: &str, most: u64) -> Vec<u8> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut printed: Vec<u8> = Vec::new();
        output(command, Instant::now() + Duration::from_secs(60), &mut printed, most).await.unwrap();
        printed
    }

    #[tokio::test]
    async fn who_prints_more_than_is_wanted_is_not_waited_for() {
        assert_eq!(printed("exec yes", 5).await, b"y\ny\ny");
        let printed = printed("head -c 1000000 /dev/zero >&2; echo end", 5).await;
        assert_eq!((&printed[..4], printed.len() as u64), (&b"end\n"[..], 4 + ERRORS));
    }

    /// Neither a place nor a command is kept by who does not read.
    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_read_ends_in_time_and_is_no_whole_one() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("long"), vec![b'x'; 4 * AHEAD]).unwrap();
        let places = Arc::new(Semaphore::new(1));
        let wanted = Wanted { services: vec!["long".to_owned()], ..Wanted::default() };
        let place = places.clone().try_acquire_owned().unwrap();
        let answer = answer(folder.path().to_owned(), wanted, place);
        drop(timeout(Duration::from_secs(3600), places.acquire()).await.unwrap().unwrap());
        assert!(axum::body::to_bytes(answer.into_body(), usize::MAX).await.is_err());
    }

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
