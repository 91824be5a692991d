//! Whether a pod may run here: what its probes' plugins, the node and the other pods say.

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::admit::Rejection;
use longshore_core::backoff::Policy;
use longshore_core::event::EventType;
use longshore_core::pod::{Pod, Source};
use longshore_core::ports::sources::SourceProblem;
use longshore_core::record::Terminal;
use longshore_core::room::{self, Others};
use longshore_core::volume::{self, ObjectKind};
use longshore_core::{admit, probe, resize, support};

use super::preempt::Ending;
use super::{Checked, Worker};
use crate::health::Shutdown;

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
        let unsupported = support::unsupported(&self.pod, &self.facts);
        let blocked = blocked.or(unsupported.map(|unsupported| (unsupported.event, unsupported.message)));
        let missing = if blocked.is_none() { self.not_of_the_folder().await } else { None };
        self.tell_sources(missing.as_deref());
        let blocked = blocked.or(missing.clone().map(|message| ("FailedValidation", message)));
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
        self.checked = Some(Checked { blocked: blocked.map(|(_, message)| message), missing });
    }

    /// Why a pod of another source may not run in a cluster: it refers to what only the API server could have. As
    /// `HasAPIObjectReference` (gate PreventStaticPodAPIReferences), but for what lies in the folder. One that runs
    /// already goes on.
    async fn not_of_the_folder(&self) -> Option<String> {
        let in_cluster = self.shared.ports.api.is_some() && self.pod.source != Source::Api;
        if !in_cluster || self.observed.sandbox().is_some() {
            return None;
        }
        let named = volume::references(&self.pod).into_iter().filter(|reference| !reference.optional);
        let named = named.map(|reference| (reference.kind, reference.name));
        let pulls = volume::pull_secrets(&self.pod).into_iter().map(|name| (ObjectKind::Secret, name));
        let namespace = &self.pod.id.namespace;
        for (kind, name) in named.chain(pulls) {
            let there = match kind {
                ObjectKind::ConfigMap => self.store().config_map(namespace, &name).await.map(|found| found.is_some()),
                ObjectKind::Secret => self.store().secret(namespace, &name).await.map(|found| found.is_some()),
            };
            // A folder that cannot be read says nothing; the volumes will wait for it.
            if there == Ok(false) {
                return Some(format!(
                    "static pods may not reference {kind}s of the API server, and {kind} {namespace}/{name} is not in \
                     the manifest folder: put it there, or make this a pod of the API server",
                    kind = kind.as_str()
                ));
            }
        }
        None
    }

    /// Lists the pod among what is wrong with the sources, or no longer.
    pub(super) fn tell_sources(&self, missing: Option<&str>) {
        let problem = |message: &str| SourceProblem {
            place: format!("pod {} of source {}", self.pod.id, self.pod.source.as_str()),
            message: message.to_owned(),
            warning: false,
        };
        self.shared.ports.views.set_problems(&self.pod.id.uid, missing.map(problem).into_iter().collect());
    }

    /// Has the pod checked again when objects that it missed have come.
    pub(super) async fn objects_changed(&mut self) {
        if self.checked.as_ref().is_some_and(|checked| checked.missing.is_some())
            && self.not_of_the_folder().await.is_none()
        {
            self.checked = None;
        }
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
            shared.leaves(&self.pod.id.uid);
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
            // Nobody would make them anew: the pod is neither let in nor refused, which would be for good, and comes
            // again.
            self.unheard =
                admitted.as_ref().is_ok_and(|ending| ending.victims.iter().any(|pod| !shared.may_evict(pod)));
            if self.unheard {
                shared.active().remove(&self.pod.id.uid);
                self.record.start_time = None;
                return;
            }
            let admitted = admitted.map(|ending| self.await_room(&ending));
            if let Err(rejection) = admitted {
                self.event(None, EventType::Warning, &rejection.reason, &rejection.message);
                self.record.terminal = Some(Terminal {
                    phase: "Failed".to_owned(),
                    reason: Some(rejection.reason.into_owned()),
                    message: Some(format!("Pod was rejected: {}", rejection.message)),
                });
                return;
            }
        }
        let resizing = self.record.resize.progress.is_some();
        let held = resizing.then(|| resize::held(&self.pod, &self.observed, &self.record));
        let held = held.as_ref().unwrap_or(&self.pod);
        shared.stays(&self.pod.id.uid);
        let mut active = shared.active();
        if active.get(&self.pod.id.uid) != Some(held) {
            active.insert(self.pod.id.uid.clone(), held.clone());
        }
        self.allocate(&mut active);
    }

    /// Judges and takes the pod's share in one step, so that no two take the same. Gives the pods whose room it gets.
    fn try_admit(&self, node: Option<&v1::Node>) -> Result<Ending, Rejection> {
        let mut active = self.shared.active();
        let health = &self.shared.ports.health;
        if health.shutdown() == Shutdown::GoesDown {
            return Err(admit::shutting_down());
        }
        admit::under_pressure(&self.pod, health.pressure())?;
        let others = active.values().filter(|other| other.id.uid != self.pod.id.uid);
        let going = self.shared.leaving().clone();
        let (leaving, staying): (Vec<&Pod>, Vec<&Pod>) = others.partition(|other| going.contains(&other.id.uid));
        let others = Others { leaving: &leaving, staying: &staying };
        let room = room::find(&self.pod, others, &self.facts, node, self.shared.ports.api.is_none())?;
        let owned = |pods: Vec<&Pod>| pods.into_iter().cloned().collect();
        let ending = Ending { leaving: owned(room.leaving), victims: owned(room.victims) };
        active.insert(self.pod.id.uid.clone(), self.pod.clone());
        Ok(ending)
    }
}
