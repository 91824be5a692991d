//! The Docker of the demo: one that runs, or one that is installed and started after saying so. A daemon of the demo's own is stopped
//! again by `--stop`; a service is the machine's, and others may use it by then. Must not stop one that it did not start.

use std::{
    env, fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{apt, http::Client, place, process, say};

/// A Docker that answers.
#[derive(Debug)]
pub(crate) struct Engine {
    /// Its socket.
    pub socket: PathBuf,
    /// Its version.
    pub version: String,
    /// Whether it was started just now.
    pub started: bool,
}

/// Whose the Docker of a demo is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Owner {
    /// Somebody's who started it before.
    Others,
    /// The machine's, as a service that was started for the demo.
    Service,
    /// The demo's: this process.
    Demo(i32),
}

impl Owner {
    /// What is said of it when the agent has stopped and nothing else has.
    pub(crate) fn keeps_running(self) -> String {
        match self {
            Self::Others => "Docker runs on, as it did before.".to_owned(),
            Self::Service => {
                format!("Docker's service, which the demo started, runs on, also after --stop: {}", advice())
            }
            Self::Demo(pid) => format!("The dockerd that the demo started (process {pid}) runs on until --stop."),
        }
    }
}

/// How a service is stopped.
fn advice() -> String {
    let command = if has_systemd() { "systemctl stop docker.socket docker.service" } else { "service docker stop" };
    format!("`{command}` stops it")
}

fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Whose it is, by what was noted in `root`.
pub(crate) fn owner(root: &Path) -> Owner {
    match ours(root) {
        Some(pid) => Owner::Demo(pid),
        None if service(root).exists() => Owner::Service,
        None => Owner::Others,
    }
}

/// The running Docker, or one that is started now (and installed, if need be).
///
/// # Errors
/// When there is none and none can be had.
pub(crate) fn find_or_start(root: &Path) -> Result<Engine> {
    let given = env::var("DOCKER_HOST").ok().and_then(|host| host.strip_prefix("unix://").map(PathBuf::from));
    let socket = given.unwrap_or_else(|| "/var/run/docker.sock".into());
    if let Ok(version) = ask(&socket) {
        return Ok(Engine { socket, version, started: false });
    }
    let installs = process::on_path("dockerd").is_none();
    if installs {
        if !place::has_apt() {
            bail!(
                "no Docker answers at {}, and there is no apt-get to install one: start Docker first",
                socket.display()
            );
        }
        apt::install(&["docker.io"], "no Docker is installed")?;
    }
    match ask(&socket) {
        // The package has started it.
        Ok(_) if installs => note_service(root)?,
        // It only did not answer at first.
        Ok(version) => return Ok(Engine { socket, version, started: false }),
        Err(_) => start(&socket, root)?,
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match ask(&socket) {
            Ok(version) => return Ok(Engine { socket, version, started: true }),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("Docker does not come up at {}", socket.display())));
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
        process::check_interrupted()?;
    }
}

fn ask(socket: &Path) -> Result<String> {
    let version = Client::new(socket, Duration::from_secs(10)).get("/version")?;
    Ok(version["Version"].as_str().context("a Docker without a version")?.to_owned())
}

fn start(socket: &Path, root: &Path) -> Result<()> {
    if has_systemd() {
        say!("starting Docker: systemctl start docker");
        process::output("systemctl", Command::new("systemctl").args(["start", "docker"]), Duration::from_secs(90))?;
        return note_service(root);
    }
    say!("starting Docker: dockerd (its log is {})", log(root).display());
    let program = process::on_path("dockerd").context("dockerd is not on the PATH")?;
    let (out, err) = process::log_pair(&log(root))?;
    // Not a `Running`: it is to outlive us, as the pods do.
    let child = Command::new(program)
        .arg("-H")
        .arg(format!("unix://{}", socket.display()))
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .process_group(0)
        .spawn()
        .context("dockerd cannot be started")?;
    fs::write(pid_file(root), child.id().to_string())?;
    Ok(())
}

fn note_service(root: &Path) -> Result<()> {
    fs::create_dir_all(root).with_context(|| format!("{}", root.display()))?;
    fs::write(service(root), b"").with_context(|| format!("{}", service(root).display()))
}

/// Stops the daemon that [`find_or_start`] started, if it did; of a service it says that it stays.
///
/// # Errors
/// When it does not end within half a minute.
pub(crate) fn stop(root: &Path) -> Result<()> {
    let pid = match owner(root) {
        Owner::Others => return Ok(()),
        Owner::Service => {
            say!("Docker's service, which was started for this, keeps running: {}", advice());
            return Ok(());
        }
        Owner::Demo(pid) => pid,
    };
    say!("stopping the dockerd that was started for this");
    let Some(process) = Pid::from_raw(pid) else { return Ok(()) };
    let _ = kill_process(process, Signal::TERM);
    let deadline = Instant::now() + Duration::from_secs(30);
    while ours(root).is_some() {
        if Instant::now() > deadline {
            bail!("dockerd (process {pid}) does not end");
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The process that we started, if it is still that one.
fn ours(root: &Path) -> Option<i32> {
    let pid: i32 = fs::read_to_string(pid_file(root)).ok()?.trim().parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let zombie = state.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'));
    (name.trim() == "dockerd" && !zombie).then_some(pid)
}

/// Unmounts what lies under `root` (tmpfs of Secrets, bind mounts of subPaths) and removes it, unless a dockerd of
/// ours still writes its log there: then everything but that.
///
/// # Errors
/// When something cannot be removed.
pub(crate) fn clean(root: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mut points: Vec<String> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(|point| point.replace("\\040", " "))
        .filter(|point| Path::new(point).starts_with(root) && Path::new(point) != root)
        .collect();
    points.reverse();
    for point in points {
        process::output("umount", Command::new("umount").arg(&point), Duration::from_secs(20))?;
    }
    let keep = ours(root).is_some();
    for entry in fs::read_dir(root).into_iter().flatten() {
        let path = entry?.path();
        if keep && (path == log(root) || path == pid_file(root)) {
            continue;
        }
        let removed =
            if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("{}", path.display()))?;
    }
    if !keep {
        let _ = fs::remove_dir(root);
    }
    Ok(())
}

fn log(root: &Path) -> PathBuf {
    root.join("dockerd.log")
}

fn pid_file(root: &Path) -> PathBuf {
    root.join("dockerd.pid")
}

/// Its presence says that a service was started.
fn service(root: &Path) -> PathBuf {
    root.join("docker.service-started")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_told_from_what_ran_before_and_stays() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(owner(root.path()), Owner::Others);
        note_service(root.path()).unwrap();
        assert_eq!(owner(root.path()), Owner::Service);
        assert!(owner(root.path()).keeps_running().contains("also after --stop: `s"));
        stop(root.path()).unwrap();
        clean(root.path()).unwrap();
        assert_eq!(owner(root.path()), Owner::Others, "the next demo finds it running");
    }

    #[test]
    fn a_process_id_that_is_another_programs_now_is_not_ours() {
        let root = tempfile::tempdir().unwrap();
        fs::write(pid_file(root.path()), std::process::id().to_string()).unwrap();
        assert_eq!(owner(root.path()), Owner::Others);
    }
}
