//! Whether a pod may run here: what its probes' plugins, the node and the other pods say.

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::admit::{self, Rejection};
use longshore_core::backoff::{self, Policy};
use longshore_core::event::EventType;
use longshore_core::gate::Hold;
use longshore_core::pod::Pod;
use longshore_core::ports::sources::SourceProblem;
use longshore_core::probe;
use longshore_core::resize;
use longshore_core::room::{self, Occupancy};

use super::Worker;
use super::preempt::Ending;
use crate::gate::Gate;
use crate::health::Shutdown;
use crate::objects;

/// Whether a back-off is of what may fail for an object.
fn fails(key: &str) -> bool {
    key == backoff::POD || backoff::container_of(key).is_some()
}

impl Worker {
    /// When a pod that may not be started is asked about again: plugins come, other agents' pods go.
    pub(super) fn gate_opens(&self, now: Timestamp) -> Option<Timestamp> {
        self.checked.as_ref()?.hold.as_ref()?;
        Some(self.record.backoffs.get(backoff::GATE).map_or(now, |backoff| backoff.until(Policy::SYNC, now)))
    }

    /// Asks once per spec whether it can be carried out here.
    pub(super) async fn check(&mut self) {
        let shared = self.shared.clone();
        let checked = self.gate().check(&self.pod, &self.observed, &self.facts, shared.foreign()).await;
        if let Some(probes) = &checked.probes {
            self.probes.clone_from(probes);
            self.pass_former_probes();
        }
        let missing = checked.hold.as_ref().filter(|_| checked.missing);
        self.tell_sources(missing.map(|hold| hold.message.as_str()));
        match &checked.hold {
            Some(Hold { event, message }) => {
                self.event(None, EventType::Warning, event, message);
                self.failed(backoff::GATE, "ContainerCreating", message);
            }
            None => {
                self.record.backoffs.remove(backoff::GATE);
            }
        }
        self.checked = Some(checked);
    }

    /// A probe that was taken from a running container, which nobody asks any more, keeps it from nothing.
    fn pass_former_probes(&mut self) {
        for seen in self.observed.containers.iter().filter(|seen| seen.is_running()) {
            let known = self.record.containers.get_mut(&seen.name);
            if let Some(known) = known.filter(|known| known.id.as_ref() == Some(&seen.id)) {
                let (started, ready) = probe::initial(&self.probes, &seen.name);
                known.started |= started;
                known.ready |= ready;
            }
        }
    }

    fn gate(&self) -> Gate<'_> {
        let ports = &self.shared.ports;
        Gate { plugins: Some(&*ports.probes), objects: &**self.store(), in_cluster: ports.api.is_some() }
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

    /// Has the pod checked again when objects that it missed have come, and tried again at once what may have failed for them.
    pub(super) async fn objects_changed(&mut self) {
        if self.checked.as_ref().is_some_and(|checked| checked.missing)
            && self.gate().missing(&self.pod, &self.observed).await.is_none()
        {
            self.checked = None;
        }
        if !self.record.backoffs.keys().any(|key| fails(key)) {
            return;
        }
        let store = self.store().clone();
        let (found, _) = objects::look_up(&self.pod, &*store).await;
        if found.hold_more_than(&self.objects) {
            for (_, backoff) in self.record.backoffs.iter_mut().filter(|(key, _)| fails(key)) {
                backoff.last = Timestamp::UNIX_EPOCH;
            }
        }
    }

    /// What failed is tried again at once.
    pub(super) fn try_again(&mut self) {
        self.record.backoffs.retain(|key, _| !fails(key));
    }

    /// Has a pod admitted anew that an earlier start rejected.
    pub(super) fn ask_again(&mut self) {
        if self.pod.deletion.is_none() && admit::is_asked_again(&self.pod.source, &self.record) {
            self.record.begin_anew();
            self.shared.stays(&self.pod.id.uid);
        }
    }

    /// Admits a pod that is new here, or ends it with the kubelet's reason.
    pub(super) async fn admit(&mut self) {
        let shared = self.shared.clone();
        // Given up at the end of this, however it ends.
        let place = self.place.take();
        if self.record.terminal.is_some() || self.pod.deletion.is_some() {
            shared.leaves(&self.pod.id.uid);
            return;
        }
        if self.record.awaits_admission(&self.pod) {
            if let Some(place) = &place {
                place.comes_first().await;
            }
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
                self.record.terminal = Some(rejection.terminal());
                return;
            }
        }
        let resizing = self.record.resize.progress.is_some();
        let held = resizing.then(|| resize::held(&self.pod, &self.observed, &self.record));
        let held = held.as_ref().unwrap_or(&self.pod);
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
        let leaving = self.shared.leaving().clone();
        let occupancy = Occupancy {
            active: &active,
            leaving: &leaving,
            facts: &self.facts,
            node,
            alone: self.shared.ports.api.is_none(),
            pressure: health.pressure(),
            goes_down: health.shutdown() == Shutdown::GoesDown,
        };
        let room = room::admit(&self.pod, occupancy)?;
        let owned = |pods: Vec<&Pod>| pods.into_iter().cloned().collect();
        let ending = Ending { leaving: owned(room.leaving), victims: owned(room.victims) };
        active.insert(self.pod.id.uid.clone(), self.pod.clone());
        Ok(ending)
    }
}
