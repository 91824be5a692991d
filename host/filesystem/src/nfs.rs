//! NFS mounts, by the helper `mount.nfs` of the node.
//!
//! A server that does not answer stops whoever asks it, in the kernel, where nothing can be interrupted. So the helper runs as
//! a process that is waited for only so long, and nothing here looks at what is mounted. As `pkg/volume/nfs/nfs.go`.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::mounts;

const HELPER: &str = "mount.nfs";
/// Where else than on the `PATH` helpers are: mount(8) looks there alone.
const PLACES: [&str; 2] = ["/sbin", "/usr/sbin"];
/// What a mount may take: less than the job that it is a part of.
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes of what a helper says that are kept.
const SAID: u64 = 4096;
const PAUSE: Duration = Duration::from_millis(10);

/// Mounts an export at a folder that is there; nothing is done where something is mounted already.
pub(crate) fn mount(target: &Path, server: &str, export: &str, options: &[String]) -> Result<(), String> {
    if mounts::is_mount(target).map_err(|error| error.to_string())? {
        return Ok(());
    }
    let Some(helper) = find(std::env::var_os("PATH")) else {
        return Err(format!(
            "{HELPER} is not installed on this node: install nfs-common (Debian, Ubuntu) or nfs-utils (others)"
        ));
    };
    mount_by(&helper, target, server, export, options, LIMIT)
}

fn mount_by(
    helper: &Path,
    target: &Path,
    server: &str,
    export: &str,
    options: &[String],
    limit: Duration,
) -> Result<(), String> {
    let arguments = arguments(target, server, export, options)?;
    let shown: Vec<_> = arguments.iter().map(|argument| argument.to_string_lossy()).collect();
    let ended = run(helper, &arguments, limit);
    ended.map_err(|message| {
        let (helper, arguments) = (helper.display(), shown.join(" "));
        format!("mount failed: {message}\nMounting command: {helper}\nMounting arguments: {arguments}")
    })
}

/// What the helper is called with: `server:export target -o options`.
fn arguments(target: &Path, server: &str, export: &str, options: &[String]) -> Result<Vec<OsString>, String> {
    if server.is_empty() || server.starts_with('-') || server.contains(['\0', '/']) {
        return Err(format!("{server:?} cannot be the name of an NFS server"));
    }
    if !export.starts_with('/') || export.contains('\0') {
        return Err(format!("the path {export:?} of an NFS server must be absolute"));
    }
    let server = match server.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => server.to_owned(),
    };
    let mut arguments = vec![OsString::from(format!("{server}:{export}")), target.as_os_str().to_owned()];
    if !options.is_empty() {
        arguments.extend([OsString::from("-o"), OsString::from(options.join(","))]);
    }
    Ok(arguments)
}

fn find(path: Option<OsString>) -> Option<PathBuf> {
    let path = path.unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(PLACES.map(PathBuf::from));
    folders.filter(|folder| folder.is_absolute()).map(|folder| folder.join(HELPER)).find(|helper| helper.is_file())
}

/// Runs the helper to its end, or ends it with all that it started.
fn run(helper: &Path, arguments: &[OsString], limit: Duration) -> Result<(), String> {
    let deadline = Instant::now() + limit;
    let child = Command::new(helper)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = child.map_err(|error| format!("it cannot be started: {error}"))?;
    let said = said(&mut child);
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            Ok(None) => {
                end(child);
                let seconds = limit.as_secs();
                return Err(format!("it has not ended within {seconds} s; is the server there, and does it answer?"));
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    if status.success() {
        return Ok(());
    }
    // What it started may hold the pipe; its own last words came before its end.
    let said = said.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
    let code = status.code().map_or_else(|| status.to_string(), |code| format!("exit status {code}"));
    Err(format!("{code}\nOutput: {}", said.trim()))
}

/// What a child says, once it has said all.
fn said(child: &mut Child) -> mpsc::Receiver<String> {
    let (sender, said) = mpsc::channel();
    if let Some(stderr) = child.stderr.take() {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.take(SAID).read_to_end(&mut text);
            let _ = sender.send(String::from_utf8_lossy(&text).into_owned());
        });
    }
    said
}

/// Kills a child and its own; a process that hangs in the kernel ends when that lets it go, and a thread waits for that.
fn end(mut child: Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    std::thread::spawn(move || child.wait());
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn called(server: &str, export: &str, options: &[&str]) -> Result<String, String> {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let arguments = arguments(Path::new("/pods/u/v"), server, export, &options)?;
        Ok(arguments.iter().map(|argument| argument.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn what_the_helper_is_called_with() {
        assert_eq!(called("files.example", "/data", &[]).unwrap(), "files.example:/data /pods/u/v");
        assert_eq!(called("10.0.0.1", "/", &["ro", "nfsvers=4.1"]).unwrap(), "10.0.0.1:/ /pods/u/v -o ro,nfsvers=4.1");
        assert_eq!(called("fd00::1", "/d", &[]).unwrap(), "[fd00::1]:/d /pods/u/v");
        for (server, export) in [("-o", "/d"), ("", "/d"), ("a/b", "/d"), ("s", "d"), ("s", "")] {
            assert!(called(server, export, &[]).is_err(), "{server}:{export}");
        }
    }

    /// Runs a script in the helper's place.
    fn run_script(script: &str, limit: Duration) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let helper = dir.path().join(HELPER);
        std::fs::write(&helper, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find(Some(dir.path().as_os_str().to_owned())), Some(helper.clone()));
        // Another test's thread may fork while the file is open for writing, which makes it busy.
        loop {
            match mount_by(&helper, Path::new("/target"), "server", "/export", &["ro".to_owned()], limit) {
                Err(error) if error.contains("busy") => std::thread::yield_now(),
                other => return other,
            }
        }
    }

    #[test]
    fn a_helper_that_works_fails_or_hangs() {
        let long = Duration::from_secs(30);
        assert_eq!(run_script("[ \"$1 $2 $3 $4\" = 'server:/export /target -o ro' ]", long), Ok(()));
        let refused = run_script("echo mount.nfs: access denied by server >&2; exit 32", long).unwrap_err();
        assert!(refused.starts_with("mount failed: exit status 32\nOutput: mount.nfs: access denied by server\n"));
        assert!(refused.contains("Mounting arguments: server:/export /target -o ro"), "{refused}");
        let begun = Instant::now();
        let hangs = run_script("sleep 1000 & wait", Duration::from_millis(200)).unwrap_err();
        assert!(hangs.contains("has not ended within 0 s; is the server there"), "{hangs}");
        assert!(begun.elapsed() < long);
        let talks = run_script("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1", long).unwrap_err();
        assert!(talks.len() < 5000);
        assert!(run_script("kill -9 $$", long).unwrap_err().contains("signal"));
    }

    #[test]
    fn helpers_are_looked_for_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let found = find(Some(dir.path().as_os_str().to_owned()));
        assert!(found.is_none_or(|helper| PLACES.iter().any(|place| helper.starts_with(place))));
        assert_ne!(find(Some("relative".into())), Some(PathBuf::from("relative/mount.nfs")));
    }
}
