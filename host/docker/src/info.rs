//! What the daemon is and can do, and the lowest `oom_score_adj` that it can give.
//!
//! Whether `oom_score_adj` may be lowered depends on the daemon's privileges and not on ours, and no API tells it.
//! So it is tried once: a pause container with -998 is started, and, if that fails, one with 0. That takes a third of a
//! second, so the answer is kept in memory, and in a file that is good until the machine boots again or the daemon is
//! another one. A daemon that starts neither is broken in another way: then 0 is told and nothing is kept.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use bollard::models::{ContainerCreateBody, HostConfig, RestartPolicy, RestartPolicyNameEnum};
use bollard::query_parameters::RemoveContainerOptionsBuilder;
use longshore_core::node::CgroupDriver;
use longshore_core::ports::runtime::{RuntimeError, RuntimeInfo};
use serde::{Deserialize, Serialize};

use crate::connection::{ASK, CALL, filters};
use crate::create::Logs;
use crate::docker::Docker;
use crate::fault::Fault;
use crate::lifecycle::says_no_image;
use crate::wire;

/// The value that is tried; what the kubelet gives its pause processes.
const LOW: i32 = -998;
/// What a daemon is told to allow that can set [`LOW`].
const LOWEST: i32 = -1000;
/// All trials together may take so long, however slow the daemon is.
const TRIALS: Duration = Duration::from_secs(60);
/// Marks the containers of a trial, so that a crash in its midst leaves nothing for long.
const TRIAL: &str = "dev.longshore.trial";

/// What the file holds.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    boot_id: String,
    daemon: String,
    min_oom_score_adj: i32,
}

/// The API from which on it is told whether read-only binds are read-only with all that is mounted below.
pub(crate) const RECURSIVE: (usize, usize) = (1, 44);

/// Major and minor of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether that is among the daemon's security options: `name=selinux`, `name=seccomp,profile=default`.
fn confines(info: &wire::Info, name: &str) -> bool {
    let options = info.security_options.iter().flatten();
    options.flat_map(|option| option.split(',')).any(|part| part.strip_prefix("name=") == Some(name))
}

impl Docker {
    pub(crate) async fn find_out(&self) -> Result<RuntimeInfo, RuntimeError> {
        let info = self.ask_info().await?;
        let session = self.connection().session().await.map_err(|fault| fault.during("ask for the version"))?;
        let (apparmor, selinux) = (confines(&info, "apparmor"), confines(&info, "selinux"));
        let mut runtimes: Vec<String> = info.runtimes.iter().flatten().map(|(name, _)| name.clone()).collect();
        runtimes.sort();
        let kernel = info.kernel_version.as_deref().and_then(version);
        let daemon = format!("{} {}", info.id.as_deref().unwrap_or_default(), session.daemon);
        Ok(RuntimeInfo {
            version: info.server_version.unwrap_or_else(|| session.daemon.clone()),
            api_version: format!("{}.{}", session.api.0, session.api.1),
            cgroup_driver: match info.cgroup_driver.as_deref() {
                Some("systemd") => CgroupDriver::Systemd,
                _ => CgroupDriver::Cgroupfs,
            },
            cgroup_v2: info.cgroup_version.as_deref() == Some("2"),
            apparmor,
            selinux,
            runtimes,
            recursive_read_only: session.api >= RECURSIVE && kernel.is_some_and(|version| version >= (5, 12)),
            min_oom_score_adj: self.least_oom_score_adj(daemon).await,
            cpus: info.ncpu.and_then(|cpus| u32::try_from(cpus).ok()).unwrap_or(1).max(1),
            memory: info.mem_total.unwrap_or_default(),
            data_root: info.docker_root_dir.filter(|folder| folder.is_absolute()),
        })
    }

    /// Whether it confines containers with SELinux. Unlike all that it is, this is asked without a trial.
    pub async fn has_selinux(&self) -> Result<bool, RuntimeError> {
        Ok(confines(&self.ask_info().await?, "selinux"))
    }

    async fn ask_info(&self) -> Result<wire::Info, RuntimeError> {
        let info: wire::Info =
            self.connection().ask(ASK, "/info").await.map_err(|fault| fault.during("ask for information"))?;
        if info.server_version.is_none() || info.mem_total.is_none() {
            let fault = Fault::Nonsense("information without version and memory".to_owned());
            return Err(fault.during("ask for information"));
        }
        Ok(info)
    }

    /// How our containers' logs are kept: within our bounds where the daemon's default log driver is one that rotates,
    /// and by `json-file` where it keeps nothing that could be read. From 20.10 on all others do, the remote ones by a
    /// copy of their own, and they are left as they are.
    pub(crate) async fn log_driver(&self) -> Result<Option<Logs>, RuntimeError> {
        let session = self.connection().session().await.map_err(|fault| fault.during("ask for the version"))?;
        let driver = session.log_driver.get_or_try_init(|| async {
            let driver = self.ask_info().await?.logging_driver.unwrap_or_default();
            if driver == "none" {
                tracing::warn!(
                    "Docker's default log driver is \"none\", which keeps no logs: our containers use json-file"
                );
            }
            Ok::<String, RuntimeError>(driver)
        });
        let driver = match driver.await?.as_str() {
            "json-file" | "none" => "json-file",
            "local" => "local",
            _ => return Ok(None),
        };
        Ok(Some(Logs { driver, bounds: self.options().logs }))
    }

    async fn least_oom_score_adj(&self, daemon: String) -> i32 {
        let mut floor = self.oom_floor().lock().await;
        if let Some((_, known)) = floor.as_ref().filter(|(of, _)| *of == daemon) {
            return *known;
        }
        let boot_id = boot_id();
        let file = self.options().cache.clone();
        if let Some(kept) =
            file.as_deref().and_then(read).filter(|kept| kept.boot_id == boot_id && kept.daemon == daemon)
        {
            *floor = Some((daemon, kept.min_oom_score_adj));
            return kept.min_oom_score_adj;
        }
        let Ok(Some(found)) = tokio::time::timeout(TRIALS, self.try_oom_scores()).await else { return 0 };
        tracing::info!(min_oom_score_adj = found, "found out how low Docker may set oom_score_adj");
        *floor = Some((daemon.clone(), found));
        if let Some(file) = file {
            let kept = Kept { boot_id, daemon, min_oom_score_adj: found };
            if let Err(error) = write(&file, &kept) {
                tracing::warn!(file = %file.display(), %error, "cannot keep what was found out about Docker");
            }
        }
        found
    }

    async fn try_oom_scores(&self) -> Option<i32> {
        self.sweep_trials().await;
        if self.try_oom_score(LOW).await.is_ok() {
            return Some(LOWEST);
        }
        // In a session that was given a positive value, nothing lower may be set.
        let own = std::fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse().ok());
        let mut last = None;
        for value in [0].into_iter().chain(own.filter(|own| *own > 0)).chain([1000]) {
            match self.try_oom_score(value).await {
                Ok(()) => return Some(value),
                Err(fault) => last = Some(fault),
            }
        }
        if let Some(fault) = last {
            tracing::warn!(%fault, "cannot find out how low Docker may set oom_score_adj, it is left alone");
        }
        None
    }

    /// Removes what a trial left behind that was cut short.
    async fn sweep_trials(&self) {
        let label = [format!("{TRIAL}={}", self.root_id())];
        let path = format!("/containers/json?all=true&filters={}", filters(&[("label", &label)]));
        let left: Vec<wire::Summary> = self.connection().ask(ASK, &path).await.unwrap_or_default();
        for id in left.into_iter().filter_map(|summary| summary.id) {
            self.remove_trial(&id).await;
        }
    }

    async fn remove_trial(&self, id: &str) {
        let options = RemoveContainerOptionsBuilder::default().v(true).force(true).build();
        let removed = self
            .connection()
            .call(CALL, |docker| {
                let options = options.clone();
                async move { docker.remove_container(id, Some(options)).await }
            })
            .await;
        if let Err(fault) = removed {
            tracing::warn!(id, label = TRIAL, %fault, "cannot remove a container of a trial");
        }
    }

    /// Starts and removes a container with that value.
    async fn try_oom_score(&self, value: i32) -> Result<(), Fault> {
        let host_config = HostConfig {
            network_mode: Some("none".to_owned()),
            oom_score_adj: Some(value.into()),
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
            ..Default::default()
        };
        // Not our root's label: nobody is to take it for a part of a pod.
        let body = ContainerCreateBody {
            image: Some(self.pause_image().to_owned()),
            labels: Some(HashMap::from([(TRIAL.to_owned(), self.root_id().to_owned())])),
            host_config: Some(host_config),
            ..Default::default()
        };
        let create = || {
            self.connection().call(CALL, |docker| {
                let body = body.clone();
                async move { docker.create_container(None, body).await }
            })
        };
        let made = match create().await {
            Err(Fault::Answer { status: 404, message }) if says_no_image(&message) => {
                self.bring_pause_image().await.map_err(|error| Fault::Nonsense(error.to_string()))?;
                create().await?
            }
            made => made?,
        };
        let started = self.start_any(&made.id).await;
        self.remove_trial(&made.id).await;
        started
    }
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn read(file: &Path) -> Option<Kept> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

fn write(file: &Path, kept: &Kept) -> std::io::Result<()> {
    // Replaced whole: a reader finds the old one or the new one.
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, serde_json::to_vec(kept)?)?;
    std::fs::rename(&fresh, file)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_confines_is_among_the_security_options() {
        let options = ["name=seccomp,profile=selinux", "name=apparmor"].map(str::to_owned).to_vec();
        let info = wire::Info { security_options: Some(options), ..Default::default() };
        assert_eq!(["seccomp", "apparmor", "selinux"].map(|name| confines(&info, name)), [true, true, false]);
        let info = wire::Info { security_options: Some(vec!["name=selinux".to_owned()]), ..Default::default() };
        assert!(confines(&info, "selinux") && !confines(&wire::Info::default(), "selinux"));
    }

    #[test]
    fn the_file_outlives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("docker.json");
        let kept = Kept { boot_id: "b".to_owned(), daemon: "d".to_owned(), min_oom_score_adj: 0 };
        assert_eq!(read(&file), None);
        write(&file, &kept).unwrap();
        assert_eq!(read(&file), Some(kept));
        std::fs::write(&file, "{").unwrap();
        assert_eq!(read(&file), None);
    }
}
