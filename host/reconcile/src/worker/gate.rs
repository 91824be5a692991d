//! Whether a pod may run here: what its probes' plugins, the node and the other pods say.

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::admit::Rejection;
use longshore_core::backoff::Policy;
use longshore_core::event::EventType;
use longshore_core::pod::Pod;
use longshore_core::record::Terminal;
use longshore_core::{admit, probe, support};

use super::{Checked, Worker};

/// Key of what keeps the pod from being started at all.
const GATE: &str = "gate";

impl Worker {
    /// When a pod that may not be started is asked about again: plugins come, other agents' pods go.
    pub(super) fn gate_opens(&self, now: Timestamp) -> Option<Timestamp> {
        self.checked.as_ref()?.blocked.as_ref()?;
        Some(self.record.backoffs.get(GATE).map_or(now, |backoff| backoff.until(Policy::SYNC, now)))
    }

    /// Asks once per spec whether it can be carried out here.
    pub(super) async fn check(&mut self) {
        let blocked = match probe::specs(&self.pod) {
            Err(error) => Some(("FailedCreatePodSandBox", error.to_string())),
            Ok(specs) => {
                let mut refused = None;
                for spec in &specs {
                    if let Err(error) = self.shared.ports.probes.validate(&spec.plugin, &spec.config).await {
                        let message = format!("{} probe of container {}: {error}", spec.kind.as_str(), spec.container);
                        refused = Some(("FailedCreatePodSandBox", message));
                        break;
                    }
                }
                self.probes = specs;
                refused
            }
        };
        let unsupported = support::unsupported(&self.pod, &self.shared.facts);
        let blocked = blocked.or(unsupported.map(|unsupported| (unsupported.event, unsupported.message)));
        let blocked = match blocked {
            None => self.foreign().await.map(|message| ("FailedCreatePodSandBox", message)),
            blocked => blocked,
        };
        match &blocked {
            Some((event, message)) => {
                self.event(None, EventType::Warning, event, message);
                self.failed(GATE, "ContainerCreating", message);
            }
            None => {
                self.record.backoffs.remove(GATE);
            }
        }
        self.checked = Some(Checked { blocked: blocked.map(|(_, message)| message) });
    }

    /// Says so when another agent's containers of this pod run: two agents on one pod would fight.
    async fn foreign(&self) -> Option<String> {
        if !self.observed.containers.is_empty() || !self.observed.sandboxes.is_empty() {
            return None;
        }
        let foreign = self.shared.foreign().await;
        let other = foreign.iter().find(|other| other.pod.uid == self.pod.id.uid && other.running)?;
        let whose = match &other.longshore_root {
            Some(root) => format!("the longshore agent of root {root}"),
            None => "another agent (dockershim or cri-dockerd)".to_owned(),
        };
        Some(format!(
            "container {} of this pod runs already under {whose}; stop that agent's pod, or run `longshore takeover`",
            other.name
        ))
    }

    /// Admits a pod that is new here, or ends it with the kubelet's reason.
    pub(super) async fn admit(&mut self) {
        let shared = self.shared.clone();
        if self.record.terminal.is_some() || self.pod.deletion.is_some() {
            shared.active().remove(&self.pod.id.uid);
            return;
        }
        if self.record.start_time.is_none() {
            self.record.start_time = Some(Timestamp::now());
            let mut admitted = self.try_admit(shared.ports.views.node().as_deref());
            if let (Err(rejection), Some(api)) = (&admitted, &shared.ports.api)
                && admit::may_be_outdated(rejection)
                && let Some(node) = (api.node)().await
            {
                admitted = self.try_admit(Some(&node));
            }
            if let Err(rejection) = admitted {
                self.event(None, EventType::Warning, rejection.reason, &rejection.message);
                self.record.terminal = Some(Terminal {
                    phase: "Failed".to_owned(),
                    reason: Some(rejection.reason.to_owned()),
                    message: Some(format!("Pod was rejected: {}", rejection.message)),
                });
                return;
            }
        }
        let mut active = shared.active();
        if active.get(&self.pod.id.uid) != Some(&self.pod) {
            active.insert(self.pod.id.uid.clone(), self.pod.clone());
        }
    }

    /// Judges and takes the pod's share in one step, so that no two take the same.
    fn try_admit(&self, node: Option<&v1::Node>) -> Result<(), Rejection> {
        let mut active = self.shared.active();
        let others: Vec<&Pod> = active.values().filter(|other| other.id.uid != self.pod.id.uid).collect();
        let facts = &self.shared.facts;
        match self.shared.ports.api {
            Some(_) => admit::admit_in_cluster(&self.pod, &others, facts, node)?,
            None => admit::admit(&self.pod, &others, facts)?,
        }
        active.insert(self.pod.id.uid.clone(), self.pod.clone());
        Ok(())
    }
}
