//! Hanging up a terminal whose user went away, as the kernel does with one whose other side is closed: that side is Docker's
//! (containerd's), which keeps it open, and has no call for it. The session's leader and the foreground's group are told by
//! SIGHUP, and woken. What ignores that, or was put into the background by a shell that lets go of its jobs, lives on, as
//! on any terminal.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;

use crate::connection::ASK;
use crate::docker::Docker;
use crate::exec::{self, Process};
use crate::wire;

/// A command may still be about to start.
const PATIENCE: Duration = Duration::from_secs(10);
/// A Docker that hangs may be well again, with all that ran.
const ILLNESS: Duration = Duration::from_secs(3600);
/// Between two looks at it, and when Docker did not answer.
const LOOKS: (Duration, Duration, Duration) =
    (Duration::from_millis(5), Duration::from_millis(200), Duration::from_secs(5));

/// Hangs up the terminal of an exec in a container. Nothing happens when it has ended.
pub(super) async fn hang_up(docker: Docker, container: String, exec: String) {
    let begin = Instant::now();
    let (mut pause, mut waits_since) = (LOOKS.0, None);
    let leader = loop {
        let longest = match docker.connection().ask::<wire::Exec>(ASK, &format!("/exec/{exec}/json")).await {
            Ok(seen) if seen.exit_code.is_some() && !seen.running.unwrap_or_default() => return,
            Ok(seen) => {
                if let Some(pid) = seen.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0) {
                    break pid;
                }
                if waits_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                    return tracing::warn!(container, "a command whose user went away does not begin");
                }
                LOOKS.1
            }
            // It went with its container.
            Err(fault) if fault.is_absent() => return,
            Err(fault) => {
                tracing::debug!(container, %fault, "cannot look at a command whose user went away");
                waits_since = None;
                LOOKS.2
            }
        };
        if begin.elapsed() > ILLNESS {
            return tracing::warn!(container, "a command whose user went away may still run; is Docker well?");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    };
    let told = tokio::task::spawn_blocking(move || hang_up_session(leader, &container)).await;
    tracing::debug!(?told, "a terminal whose user went away was hung up");
}

/// Tells the leader, then the foreground of its terminal. Returns how many were told.
fn hang_up_session(leader: i32, container: &str) -> usize {
    let Some(seen) = exec::read(leader).filter(|seen| seen.session == leader) else { return 0 };
    let is_foreground = |seen: &Process| seen.session == leader && seen.group == seen.foreground;
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let foreground: Vec<i32> =
        pids.filter(|pid| *pid != leader && exec::read(*pid).is_some_and(|seen| is_foreground(&seen))).collect();
    // A stopped one notices only when it goes on.
    let signals = [Signal::HUP, Signal::CONT];
    let is_leader = |now: &Process| (now.group, now.session) == (seen.group, seen.session);
    let first = exec::tell(leader, container, &signals, is_leader);
    let rest = foreground.into_iter().filter(|pid| exec::tell(*pid, container, &signals, is_foreground)).count();
    usize::from(first) + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_outside_of_the_container_is_told() {
        let mut child = std::process::Command::new("setsid").args(["sleep", "100"]).spawn().expect("setsid");
        let pid = i32::try_from(child.id()).expect("a process ID");
        // A moment later it leads a session of its own.
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while exec::read(pid).is_none_or(|seen| seen.session != pid) && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        let told = hang_up_session(pid, &"f".repeat(64));
        let lives = child.try_wait().expect("a child of ours").is_none();
        child.kill().expect("a child of ours");
        child.wait().expect("a child of ours");
        assert!(told == 0 && lives, "{told} {lives}");
    }
}
