//! Running other programs: a time limit for each, output to a log file, an end for everything on Ctrl-C.
//! Must not know what it runs.
//!
//! Every child gets a process group of its own, so that a Ctrl-C on the terminal reaches only us: we then end
//! the groups one by one and unwind, which lets every guard (daemons, worlds, virtual machines) stop its own.
//! A second Ctrl-C kills what is left and exits at once.

use std::{
    fs::File,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static GROUPS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// How long a child may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(30);

/// Whether Ctrl-C, SIGTERM or SIGHUP has arrived: whoever waits, stops waiting.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Fails if we were interrupted, so that loops can end with `?`.
///
/// # Errors
/// When a signal has arrived.
pub(crate) fn check_interrupted() -> Result<()> {
    if interrupted() {
        bail!("interrupted");
    }
    Ok(())
}

/// Starts the thread that hears signals. Call it once, before anything is started.
///
/// # Errors
/// When the handlers cannot be installed.
pub(crate) fn hear_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("signal handlers")?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for _ in signals.forever() {
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                for group in groups().iter() {
                    let _ = kill_process_group(*group, Signal::KILL);
                }
                std::process::exit(130);
            }
        }
    })?;
    Ok(())
}

fn groups() -> std::sync::MutexGuard<'static, Vec<Pid>> {
    GROUPS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A child in a process group of its own, ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    group: Pid,
    name: String,
    ended: bool,
}

impl Running {
    /// Starts `command` with no stdin. Its name is only for messages.
    ///
    /// # Errors
    /// When the program is not there or cannot be run.
    pub(crate) fn start(name: &str, command: &mut Command) -> Result<Self> {
        check_interrupted()?;
        let program = command.get_program().to_owned();
        let child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("{name}: {} cannot be started", program.display()))?;
        let group = Pid::from_child(&child);
        groups().push(group);
        Ok(Self { child, group, name: name.to_owned(), ended: false })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.group.as_raw_nonzero().get()
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// When the kernel refuses to say.
    pub(crate) fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        if status.is_some() {
            self.forget();
        }
        Ok(status)
    }

    /// Waits for its end; ends it when `limit` passes or we are interrupted.
    ///
    /// # Errors
    /// When the limit passed or we were interrupted.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_millis(2);
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if interrupted() {
                self.stop(GRACE);
                bail!("{}: interrupted", self.name);
            }
            if Instant::now() >= deadline {
                self.stop(GRACE);
                bail!("{}: not done within {} s, ended", self.name, limit.as_secs());
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Sends SIGTERM to the group, waits `grace` for the child, then kills what is left of the group.
    pub(crate) fn stop(&mut self, grace: Duration) {
        if self.ended {
            return;
        }
        let _ = kill_process_group(self.group, Signal::TERM);
        let deadline = Instant::now() + grace;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = kill_process_group(self.group, Signal::KILL);
        let _ = self.child.wait();
        self.forget();
    }

    fn forget(&mut self) {
        self.ended = true;
        groups().retain(|group| *group != self.group);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop(GRACE);
    }
}

/// Runs `command` to its end with stdout and stderr appended to `log`; `Ok(true)` is exit code 0.
///
/// # Errors
/// When it cannot be started, or did not end within `limit`, or we were interrupted.
pub(crate) fn logged(name: &str, command: &mut Command, log: &Path, limit: Duration) -> Result<bool> {
    let (out, err) = log_pair(log)?;
    let mut running = Running::start(name, command.stdout(out).stderr(err))?;
    Ok(running.wait(limit)?.success())
}

/// Opens `log` for appending, twice: for stdout and for stderr.
///
/// # Errors
/// When the file cannot be opened.
pub(crate) fn log_pair(log: &Path) -> Result<(File, File)> {
    if let Some(folder) = log.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    }
    let out = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("{} cannot be opened", log.display()))?;
    let err = out.try_clone()?;
    Ok((out, err))
}

/// Runs `command` and gives its stdout; its stderr is in the error when it fails.
///
/// # Errors
/// When it cannot be started, fails, or did not end within `limit`.
pub(crate) fn output(name: &str, command: &mut Command, limit: Duration) -> Result<String> {
    let out = tempfile::tempfile()?;
    let err = tempfile::tempfile()?;
    let mut running = Running::start(name, command.stdout(out.try_clone()?).stderr(err.try_clone()?))?;
    let status = running.wait(limit)?;
    if !status.success() {
        bail!("{name}: {status}: {}", read_back(err)?.trim());
    }
    read_back(out)
}

fn read_back(mut file: File) -> Result<String> {
    use std::io::{Read as _, Seek as _};
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Where `program` is on the PATH, if it is there.
pub(crate) fn on_path(program: &str) -> Option<std::path::PathBuf> {
    let mut folders: Vec<_> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    // Daemons live in sbin, which is not on every user's PATH.
    folders.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(Into::into));
    folders.into_iter().map(|folder| folder.join(program)).find(|path| {
        use std::os::unix::fs::PermissionsExt as _;
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}
