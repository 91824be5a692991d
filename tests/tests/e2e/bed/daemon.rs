//! A dockerd of a test's own, that may be ended and begun again without harm to others: in a network of
//! its own, without a bridge.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::{docker::Docker, http, until};

/// The daemon and its folder. Dropped, it ends.
pub(crate) struct Daemon {
    folder: PathBuf,
    flags: Vec<String>,
    child: Option<Child>,
}

impl Daemon {
    /// Starts one; `None`, with a line that says so, where there is no dockerd to run.
    pub(crate) fn run(folder: &Path) -> Option<Daemon> {
        Self::run_with(folder, &[])
    }

    /// One that is told more.
    pub(crate) fn run_with(folder: &Path, flags: &[&str]) -> Option<Daemon> {
        let isolated = Command::new("unshare").args(["--net", "dockerd", "--version"]).stdout(Stdio::null()).status();
        if !isolated.is_ok_and(|status| status.success()) {
            crate::bed::skip("no dockerd on the PATH, or no network of its own for it (unshare --net)");
            return None;
        }
        fs::create_dir_all(folder).unwrap();
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut daemon = Daemon { folder: folder.to_owned(), flags, child: None };
        daemon.begin();
        daemon.docker().have_image();
        Some(daemon)
    }

    pub(crate) fn docker(&self) -> Docker {
        Docker { socket: self.folder.join("d.sock") }
    }

    pub(crate) fn begin(&mut self) {
        // One that was killed leaves it, and would refuse to start.
        let _ = fs::remove_file(self.folder.join("pid"));
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut command = Command::new("unshare");
        // A network of its own: without a bridge it would remove docker0, which is another daemon's.
        command.args(["--net", "dockerd", "--bridge=none", "--iptables=false", "--ip6tables=false"]);
        command.args(&self.flags);
        for (flag, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            command.arg(flag).arg(self.folder.join(name));
        }
        command.arg("-H").arg(format!("unix://{}", self.docker().socket.display()));
        let log2 = log.try_clone().unwrap();
        self.child = Some(command.process_group(0).stdin(Stdio::null()).stdout(log).stderr(log2).spawn().unwrap());
        until("dockerd answers", || {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            let log = || fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            assert!(ended.is_none(), "dockerd ended: {}", log());
            http::request(&self.docker().socket, "GET", "/_ping", None).ok().filter(|answer| answer.status == 200)
        });
    }

    /// Ends it as the system does, or as a crash.
    pub(crate) fn end(&mut self, gently: bool) {
        let Some(mut child) = self.child.take() else { return };
        let containerd = self.folder.join("exec/containerd/containerd.pid");
        let containerd: Option<u32> = fs::read_to_string(&containerd).ok().and_then(|text| text.trim().parse().ok());
        let pid = rustix::process::Pid::from_child(&child);
        let signal = if gently { rustix::process::Signal::TERM } else { rustix::process::Signal::KILL };
        let _ = rustix::process::kill_process(pid, signal);
        let _ = child.wait();
        // It ends with its parent, a moment later; the next dockerd would wait for it in vain.
        if let Some(containerd) = containerd {
            let there = || Path::new(&format!("/proc/{containerd}/exe")).exists();
            until("containerd has ended", || (!there()).then_some(()));
            let _ = fs::remove_file(self.folder.join("exec/containerd/containerd.pid"));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.is_none() {
            return;
        }
        let all = http::request(&self.docker().socket, "GET", "/v1.41/containers/json?all=1", None);
        let all = all.map_or(serde_json::Value::Null, |answer| answer.json());
        for id in all.as_array().into_iter().flatten().filter_map(|found| found["Id"].as_str()) {
            let path = format!("/v1.41/containers/{id}?force=1&v=1");
            let _ = http::request(&self.docker().socket, "DELETE", &path, None);
        }
        self.end(true);
        self.end_orphans();
    }
}

impl Daemon {
    /// Ends what a daemon that did not come back left: shims, which have its folder in their command line, and all below.
    fn end_orphans(&self) {
        let mark = self.folder.display().to_string();
        let number = |entry: fs::DirEntry| entry.file_name().to_string_lossy().parse::<i32>().ok();
        let all = || fs::read_dir("/proc").unwrap().flatten().filter_map(number);
        let parent = |pid: i32| {
            let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            text.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<i32>().ok()
        };
        let is_ours = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.contains("containerd") && line.contains(&mark)
        };
        let shims: Vec<i32> = all().filter(is_ours).collect();
        for pid in all().filter(|pid| parent(*pid).is_some_and(|parent| shims.contains(&parent))).chain(shims.clone()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}
