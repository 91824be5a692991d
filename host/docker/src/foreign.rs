//! Containers of other agents: finding them, and, for `longshore takeover`, ending dockershim's and cri-dockerd's.
//! It must not touch another longshore's.

use std::time::Duration;

use futures::stream::{self, StreamExt};
use longshore_core::labels;
use longshore_core::pod::PodId;
use longshore_core::ports::runtime::{ForeignContainer, RuntimeError};

use crate::connection::{CALL, filters};
use crate::docker::Docker;
use crate::{names, wire};

/// The kubelet's default where a container's labels say nothing of its grace period.
const GRACE: Duration = Duration::from_secs(30);

impl Docker {
    pub(crate) async fn find_foreign(&self) -> Result<Vec<ForeignContainer>, RuntimeError> {
        let path = format!("/containers/json?all=true&filters={}", filters(&[("label", &[labels::TYPE.to_owned()])]));
        let listed: Vec<wire::Summary> =
            self.connection().ask_list(CALL, &path).await.map_err(|fault| fault.during("list containers"))?;
        Ok(listed.into_iter().filter_map(|summary| self.foreigner(summary)).collect())
    }

    fn foreigner(&self, summary: wire::Summary) -> Option<ForeignContainer> {
        let labels = summary.labels?;
        let text = |key: &str| labels.get(key).cloned();
        let longshore_root = text(labels::ROOT);
        if longshore_root.as_deref() == Some(self.root_id()) {
            return None;
        }
        let name = summary.names.and_then(|names| names.into_iter().next()).unwrap_or_default();
        Some(ForeignContainer {
            id: summary.id?,
            name: name.trim_start_matches('/').to_owned(),
            pod: PodId {
                namespace: text(labels::POD_NAMESPACE)?,
                name: text(labels::POD_NAME)?,
                uid: text(labels::POD_UID)?,
            },
            is_sandbox: text(labels::TYPE)? == "podsandbox",
            running: matches!(summary.state.as_deref(), Some("running" | "paused" | "restarting")),
            longshore_root,
        })
    }

    /// Stops and removes containers of dockershim and cri-dockerd: all containers first, then the sandboxes. The grace
    /// period is the one that each was made with, unless one is given. Returns what could not be ended, and why.
    /// What is another longshore's, or no pod's at all by now, is refused.
    pub async fn remove_foreign(
        &self,
        containers: &[ForeignContainer],
        grace: Option<Duration>,
    ) -> Vec<(ForeignContainer, RuntimeError)> {
        let (sandboxes, others): (Vec<_>, Vec<_>) = containers.iter().cloned().partition(|found| found.is_sandbox);
        let mut failed = Vec::new();
        for group in [others, sandboxes] {
            // They are stopped all at once: each waits for its own grace period.
            let ends: Vec<_> = stream::iter(group)
                .map(|found| async move { (self.end_foreigner(&found, grace).await, found) })
                .buffer_unordered(64)
                .collect()
                .await;
            failed.extend(ends.into_iter().filter_map(|(ended, found)| ended.err().map(|error| (found, error))));
        }
        failed
    }

    /// The process of a container of another agent, while it runs on this machine.
    pub async fn foreign_pid(&self, id: &str) -> Result<Option<u32>, RuntimeError> {
        if !self.connection().is_local() || !names::is_container(id) {
            return Ok(None);
        }
        let inspect: wire::Inspect = match self.connection().ask(CALL, &format!("/containers/{id}/json")).await {
            Ok(inspect) => inspect,
            Err(fault) if fault.is_absent() => return Ok(None),
            Err(fault) => return Err(fault.during("inspect container")),
        };
        let state = inspect.state.unwrap_or_default();
        let pid = state.pid.filter(|_| state.running == Some(true)).and_then(|pid| u32::try_from(pid).ok());
        Ok(pid.filter(|pid| *pid != 0))
    }

    async fn end_foreigner(&self, found: &ForeignContainer, grace: Option<Duration>) -> Result<(), RuntimeError> {
        let refused = |message: &str| RuntimeError::Failed {
            operation: "take over container",
            message: format!("{}: {message}", found.name),
        };
        if !names::is_container(&found.id) {
            return Err(refused("this is not a container ID"));
        }
        // Looked at again: time has passed since it was found, and its word is not taken for who made it.
        let inspect: wire::Inspect = match self.connection().ask(CALL, &format!("/containers/{}/json", found.id)).await
        {
            Ok(inspect) => inspect,
            Err(fault) if fault.is_absent() => return Ok(()),
            Err(fault) => return Err(fault.during("inspect container")),
        };
        let labels = inspect.config.and_then(|config| config.labels).unwrap_or_default();
        if labels.contains_key(labels::ROOT) || !labels.contains_key(labels::TYPE) {
            return Err(refused("neither dockershim nor cri-dockerd made it"));
        }
        let label = format!("{}io.kubernetes.pod.terminationGracePeriod", labels::ANNOTATION_PREFIX);
        let own = labels.get(&label).and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
        tracing::info!(container = %found.name, pod = %found.pod, "ending a container of another agent");
        let id = inspect.id.as_deref().unwrap_or(&found.id);
        self.stop_any(id, grace.or(own).unwrap_or(GRACE)).await?;
        self.remove_any(id).await
    }
}
