//! The program that is PID 1 of a pod's sandbox, as bytes. It must not know Docker or images: whoever loads it
//! (`longshore-docker`) makes the image of it.

/// The pause program: a static ELF executable for the architecture that longshore itself is built for. It needs no
/// libc and no other file, reaps orphans, and exits with 0 on SIGTERM and SIGINT. It blocks all other signals.
pub static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::{self, Permissions};
    use std::io::ErrorKind;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    use rustix::process::{Pid, Signal, kill_process};

    use super::PROGRAM;

    /// A child that does not outlive its test, also when that fails.
    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn write(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("pause");
        fs::write(&path, PROGRAM).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Starts it. Another test's thread may fork between our write and our exec, which makes the file busy.
    fn start(command: &mut Command) -> Running {
        loop {
            match command.spawn() {
                Ok(child) => return Running(child),
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn until(what: &str, mut condition: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < end, "not within 30 s: {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether it is in its wait for signals (`rt_sigtimedwait`), which unblocks them for as long as it lasts.
    fn waits(child: &Running) -> bool {
        let number = if cfg!(target_arch = "x86_64") { "128 " } else { "137 " };
        let pid = child.0.id();
        let is_pause = fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "pause");
        is_pause && fs::read_to_string(format!("/proc/{pid}/syscall")).is_ok_and(|call| call.starts_with(number))
    }

    #[test]
    fn ends_with_zero_on_term_and_int_and_ignores_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path());
        for signal in [Signal::TERM, Signal::INT] {
            let mut child = start(&mut Command::new(&path));
            until("it waits for signals", || waits(&child));
            let pid = Pid::from_child(&child.0);
            for harmless in [Signal::HUP, Signal::USR1, Signal::CHILD] {
                kill_process(pid, harmless).unwrap();
            }
            kill_process(pid, signal).unwrap();
            let status = child.0.wait().unwrap();
            assert_eq!((status.code(), status.signal()), (Some(0), None));
        }
    }

    /// The children of a shell that replaces itself by pause are pause's children.
    #[test]
    fn reaps_what_ends_and_sleeps_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path());
        // A shell does not try again what is busy.
        drop(start(&mut Command::new(&path)));
        let script = format!("true & true & (sleep 0.05; exit 3) & exec {}", path.display());
        let mut child = start(Command::new("sh").args(["-c", &script]));
        let pid = child.0.id();
        let children = || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        until("it runs", || waits(&child));
        until("its children are reaped", || children().trim().is_empty());
        // The last one that it reaped may have kept it awake until now.
        until("it sleeps", || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") S ")));
        kill_process(Pid::from_child(&child.0), Signal::TERM).unwrap();
        assert_eq!(child.0.wait().unwrap().code(), Some(0));
    }

    #[test]
    fn is_small_and_static() {
        assert!(PROGRAM.starts_with(b"\x7fELF"));
        assert!(PROGRAM.len() < 16 * 1024, "{} bytes", PROGRAM.len());
        assert!(!PROGRAM.windows(6).any(|bytes| bytes == b"/lib64"), "it names a dynamic loader");
    }
}
