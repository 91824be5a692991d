//! An agent that still runs on the demo's root folder, since its xtask was killed, or another terminal shows it. Must not end
//! anybody else's.

use std::{
    fs,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{process, say};

/// How long it may take to end.
const GRACE: Duration = Duration::from_secs(20);

/// Ends it, if there is one.
///
/// # Errors
/// When it stays.
pub(super) fn end(root: &Path) -> Result<()> {
    let Some(pid) = holder(root) else { return Ok(()) };
    let Some(process) = Pid::from_raw(pid) else { return Ok(()) };
    say!("ending the agent that still runs on {} (process {pid})", root.display());
    let _ = kill_process(process, Signal::TERM);
    let deadline = Instant::now() + GRACE;
    while holder(root) == Some(pid) {
        if Instant::now() > deadline {
            bail!("longshore (process {pid}) does not end within {} s: kill it, and try again", GRACE.as_secs());
        }
        process::check_interrupted()?;
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The process that noted itself in the folder's lock, if it is still that one.
fn holder(root: &Path) -> Option<i32> {
    let pid: i32 = fs::read_to_string(root.join("lock")).ok()?.trim().parse().ok()?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    is_agent_of(&line, root).then_some(pid)
}

/// Whether a command line is an agent's, as the demo starts it.
fn is_agent_of(line: &[u8], root: &Path) -> bool {
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let flag: [&[u8]; 2] = [b"--root-dir", root.as_os_str().as_bytes()];
    words[0].ends_with(b"/longshore") && words.windows(2).any(|pair| pair == flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_agent_of_that_folder_is_ended() {
        let root = Path::new("/var/lib/longshore-demo");
        let line = b"/t/release/longshore\0run\0--config\0/m\0--root-dir\0/var/lib/longshore-demo\0";
        assert!(is_agent_of(line, root));
        assert!(!is_agent_of(line, Path::new("/var/lib/longshore")));
        assert!(
            !is_agent_of(b"/bin/sh\0-c\0--root-dir\0/var/lib/longshore-demo\0", root),
            "its process ID is another's now"
        );
        assert!(!is_agent_of(b"", root), "it has ended");
    }
}
