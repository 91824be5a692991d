//! The agent under the benchmark: started on a folder of its own, fed with pods, watched through its socket.
//! Must not measure anything.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::watch::Watch;
use crate::{
    demo::pods::{SOCKET, Shown},
    images, process,
    process::Running,
    say,
};

/// What keeps the folder from being empty: an emptied folder is not "no pods".
const EMPTY: &str = "empty.json";

/// A running agent.
#[derive(Debug)]
pub(super) struct Agent {
    running: Running,
    watch: Watch,
    folder: PathBuf,
}

impl Agent {
    /// Starts `binary` with everything in `folder`, which may hold the state of an earlier one, and waits until
    /// its socket answers.
    ///
    /// # Errors
    /// When it does not come up in half a minute; its log's end is in the message.
    pub(super) fn start(binary: &Path, folder: &Path, docker: &Path) -> Result<Self> {
        Self::start_with(binary, folder, docker, &[])
    }

    /// The same with more flags.
    ///
    /// # Errors
    /// See there.
    pub(super) fn start_with(binary: &Path, folder: &Path, docker: &Path, flags: &[String]) -> Result<Self> {
        let manifests = folder.join("manifests");
        fs::create_dir_all(&manifests)?;
        let empty = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "empty"}});
        fs::write(manifests.join(EMPTY), empty.to_string())?;
        let log = folder.join("longshore.log");
        let (out, err) = process::log_pair(&log)?;
        let root = folder.join("root");
        let mut command = Command::new(binary);
        command.arg("run").arg("--config").arg(&manifests).arg("--root-dir").arg(&root);
        command.arg("--docker-endpoint").arg(format!("unix://{}", docker.display())).arg("--register-node=false");
        command.arg("--pod-logs-dir").arg(folder.join("logs/pods"));
        command.arg("--container-logs-dir").arg(folder.join("logs/containers")).args(flags);
        let mut running = Running::start("longshore", command.stdout(out).stderr(err))?;
        let deadline = Instant::now() + Duration::from_secs(30);
        let socket = root.join(SOCKET);
        loop {
            if let Ok(watch) = Watch::open(&socket, "/v1/pods?watch=1", false) {
                return Ok(Self { running, watch, folder: folder.to_owned() });
            }
            if running.try_wait()?.is_some() || Instant::now() > deadline {
                let text = fs::read_to_string(&log).unwrap_or_default();
                bail!("longshore does not come up; {} ends:\n{}", log.display(), say::tail(&text, 20));
            }
            process::check_interrupted()?;
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Its process.
    pub(super) fn pid(&self) -> i32 {
        self.running.pid()
    }

    /// Writes `count` manifests called `<prefix>-<n>`, each a busybox that sleeps and ends at once when told to.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(super) fn write_pods(&self, prefix: &str, count: usize, probe: bool) -> Result<()> {
        for at in 0..count {
            let mut container = json!({
                "name": "app",
                "image": images::BUSYBOX,
                "imagePullPolicy": "Never",
                "command": ["sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"],
            });
            if probe {
                container["readinessProbe"] = json!({"exec": {"command": ["true"]}, "periodSeconds": 10});
            }
            let pod = json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": format!("{prefix}-{at}")},
                "spec": {"containers": [container]},
            });
            self.write(&format!("{prefix}-{at}"), &pod)?;
        }
        Ok(())
    }

    /// Writes a manifest in one step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, name: &str, object: &Value) -> Result<()> {
        let manifests = self.folder.join("manifests");
        let partial = manifests.join(format!(".{name}"));
        fs::write(&partial, object.to_string())?;
        fs::rename(&partial, manifests.join(format!("{name}.json")))?;
        Ok(())
    }

    /// Removes all of its manifests.
    ///
    /// # Errors
    /// When one cannot be removed.
    fn remove_pods(&self) -> Result<()> {
        for entry in fs::read_dir(self.folder.join("manifests"))? {
            let path = entry?.path();
            if !path.ends_with(EMPTY) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Waits until its pods are as `good` has it, and gives them.
    ///
    /// # Errors
    /// When they are not within `limit`; the pods are in the message.
    pub(super) fn wait(&self, what: &str, limit: Duration, good: impl Fn(&[Shown]) -> bool) -> Result<Vec<Shown>> {
        self.watch.wait(what, limit, good)
    }

    /// Kills it, as a crash would.
    pub(super) fn kill(mut self) {
        self.running.stop(Duration::ZERO);
    }

    /// Removes its manifests and waits until its pods are gone.
    ///
    /// # Errors
    /// When they are not within two minutes.
    pub(super) fn clear(&self) -> Result<()> {
        self.remove_pods()?;
        self.wait("all pods gone", Duration::from_secs(120), <[Shown]>::is_empty).context("clearing up").map(drop)
    }
}
