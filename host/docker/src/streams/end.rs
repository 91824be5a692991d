//! When the process behind streams ends, by the kernel's word: Docker answers nothing about an exec that has ended before its
//! output was taken, or dropped. Of a Docker on another machine nothing is known.

use std::future::pending;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::docker::Docker;
use crate::wire;

/// Docker's silence about an exec means after so long that it has ended: after two seconds its output is dropped. One that takes
/// longer to begin is read ahead, too.
const SILENCE: Duration = Duration::from_secs(1);
/// Between two looks at one that has not begun.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// Resolves when the command of an exec has ended, or nothing can be learned about it.
pub(super) async fn of_exec(docker: Docker, exec: String) {
    if !docker.connection().is_local() {
        return pending().await;
    }
    let mut pause = LOOKS.0;
    loop {
        match docker.connection().ask::<wire::Exec>(SILENCE, &format!("/exec/{exec}/json")).await {
            Ok(seen) if seen.exit_code.is_some() && !seen.running.unwrap_or_default() => return,
            Ok(wire::Exec { pid: Some(pid), .. }) if pid > 0 => return of_process(pid).await,
            Ok(_) => {}
            Err(fault) => return tracing::debug!(exec, %fault, "a command with streams cannot be looked at"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOKS.1);
    }
}

/// Resolves when the first process of a container, as Docker numbers it, has ended.
pub(super) async fn of_container(docker: Docker, pid: Option<i64>) {
    match pid {
        Some(pid) if pid > 0 && docker.connection().is_local() => of_process(pid).await,
        _ => pending().await,
    }
}

async fn of_process(pid: i64) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return pending().await };
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH) => return,
        Err(error) => return unwatched(pid, &error.into()).await,
    };
    // What the function without `unsafe` is deprecated for cannot be with an `OwnedFd`: another file behind the number.
    #[expect(deprecated)]
    let process = AsyncFd::with_interest(process, Interest::READABLE);
    let ended = match &process {
        Ok(process) => process.readable().await.map(|_| ()),
        Err(error) => return unwatched(pid, error).await,
    };
    if let Err(error) = ended {
        unwatched(pid, &error).await;
    }
}

/// Its output is read as it is wanted.
async fn unwatched(pid: Pid, error: &std::io::Error) {
    tracing::debug!(?pid, %error, "the end of a process cannot be watched");
    pending().await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn the_end_of_a_process_is_seen() {
        // A kernel before 5.3, or a sandbox, may have no such thing.
        if pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).is_err() {
            return;
        }
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = i64::from(child.id());
        let mut end = Box::pin(of_process(pid));
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut end).await.is_err());
        child.kill().unwrap();
        // Before anybody asked for its exit code.
        tokio::time::timeout(PATIENCE, end).await.unwrap();
        child.wait().unwrap();
        tokio::time::timeout(PATIENCE, of_process(pid)).await.unwrap();
    }
}
