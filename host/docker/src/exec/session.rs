//! Killing a session in a container. Docker has no call for it: the processes are sought in `/proc`.
//!
//! A process is killed through a pidfd, after its session and its cgroup were read while that pidfd held its number, so
//! that no stranger who got the number meanwhile is hit. The cgroup has to be the container's: a path with the
//! container's ID in it, which both versions and both drivers have. It must not talk to the daemon.

use std::fs;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Rounds of looking and killing: a process may fork between the two.
const ROUNDS: usize = 100;

/// Kills all processes of a session in a container with SIGKILL, again until none is left. Returns how many were left
/// in the end. Zombies, which only wait for their parent, do not count.
pub(super) fn kill(session: i32, container: &str) -> usize {
    let mut left = 0;
    let mut quiet = 0;
    for round in 0..ROUNDS {
        left = members(session, container).into_iter().filter(|pid| kill_one(*pid, session, container)).count();
        // A process that was forked while `/proc` was read may have been missed: two quiet rounds are wanted.
        quiet = if left == 0 { quiet + 1 } else { 0 };
        if quiet == 2 {
            return 0;
        }
        if round > 0 && left > 0 {
            thread::sleep(Duration::from_millis(2));
        }
    }
    left
}

/// Whether it was a living member.
fn kill_one(pid: i32, session: i32, container: &str) -> bool {
    let Some(number) = Pid::from_raw(pid) else { return false };
    let Ok(handle) = pidfd_open(number, PidfdFlags::empty()) else { return false };
    // From here on the number is not given to anybody else while the handle is good.
    if !is_member(pid, session, container) {
        return false;
    }
    pidfd_send_signal(&handle, Signal::KILL).is_ok()
}

fn members(session: i32, container: &str) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| is_member(*pid, session, container))
        .collect()
}

fn is_member(pid: i32, session: i32, container: &str) -> bool {
    let of_session = fs::read(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| session_of(&String::from_utf8_lossy(&stat)))
        .is_some_and(|(found, alive)| found == session && alive);
    of_session && fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| is_in_container(&text, container))
}

/// The session of a line of `/proc/PID/stat`, and whether the process is more than a zombie.
fn session_of(stat: &str) -> Option<(i32, bool)> {
    // The second field is the command's name in parentheses, which may hold anything.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let session = fields.nth(2)?.parse().ok()?;
    Some((session, !matches!(state, "Z" | "X" | "x")))
}

/// Whether a `/proc/PID/cgroup` is of a container: `…/<id>…` with cgroupfs, `…/docker-<id>.scope…` with systemd.
pub(crate) fn is_in_container(cgroups: &str, id: &str) -> bool {
    id.len() >= 12
        && cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|path| {
            path.split('/').any(|part| {
                let part = part.strip_suffix(".scope").unwrap_or(part);
                part == id || part.rsplit_once('-').is_some_and(|(_, rest)| rest == id)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions() {
        assert_eq!(session_of("12 (a) b) S 1 12 7 0 -1"), Some((7, true)));
        assert_eq!(session_of("12 (a) Z 1 12 7 0 -1"), Some((7, false)));
        assert_eq!(session_of("12 (a) S 1"), None);
        assert_eq!(session_of(""), None);
    }

    #[test]
    fn cgroups_of_both_versions_and_drivers() {
        let id = "0123456789abcdef";
        for of_it in [
            "12:pids:/docker/0123456789abcdef\n0::/docker/0123456789abcdef\n",
            "0::/system.slice/docker-0123456789abcdef.scope\n",
            "0::/kubepods.slice/kubepods-burstable.slice/docker-0123456789abcdef.scope/init\n",
            "1:name=systemd:/kubepods/podu/0123456789abcdef",
            "0::/../0123456789abcdef",
        ] {
            assert!(is_in_container(of_it, id), "{of_it}");
        }
        for other in ["0::/\n", "0::/docker/0123456789abcdeff\n", "0::/x0123456789abcdef", ""] {
            assert!(!is_in_container(other, id), "{other}");
        }
        assert!(!is_in_container("0::/", ""));
    }

    #[test]
    #[allow(clippy::unwrap_used)]
    fn our_own_session_is_spared() {
        // Read as the code reads it: `getsid` is 0 where the session's leader is outside of this pid namespace.
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let (own, alive) = session_of(&stat).unwrap();
        assert!(alive);
        assert_eq!(kill(own, &"f".repeat(64)), 0);
    }
}
