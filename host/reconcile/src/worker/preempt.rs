//! Room for a critical pod: others end for it, and it begins when they have.
//!
//! As `pkg/kubelet/preemption/preemption.go`, but that nothing waits meanwhile: the pod's worker is woken at the end.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1;
use longshore_core::admit::{self, Rejection};
use longshore_core::pod::Pod;
use longshore_core::{evict, preempt};

use super::Worker;
use crate::inbox::Evict;
use crate::roster::Roster;

/// Why a pod's containers are not started meanwhile.
pub(super) const WAITS: &str = "waits for the pods to end that were preempted for it";
/// What ending a pod may take beyond its grace period.
const KILL: Duration = Duration::from_secs(10);

/// Pods that end so that another one has room.
pub(super) struct Preempting {
    uids: Vec<String>,
    /// When they are not waited for any longer: the kubelet goes on, too.
    until: Instant,
}

/// Whether something of a pod still runs, or it was not told yet.
fn holds(roster: &Roster, uid: &str) -> bool {
    roster.member(uid).is_some_and(|member| !member.ended || member.containers.iter().any(|one| one.running))
}

impl Worker {
    /// The pods that must end so that this one, which was rejected, may be admitted all the same.
    pub(super) fn make_room(
        &self,
        others: &[&Pod],
        node: Option<&v1::Node>,
        rejection: Rejection,
    ) -> Result<Vec<Pod>, Rejection> {
        let facts = &self.shared.facts;
        let needs = admit::needs(&self.pod, others, facts);
        if needs.is_empty() || !evict::is_critical(&self.pod) {
            return Err(rejection);
        }
        admit::admit_but_for_room(&self.pod, others, facts, node)?;
        match preempt::victims(&self.pod, others, &needs) {
            Ok(victims) => Ok(victims.into_iter().cloned().collect()),
            // On a node alone every pod is critical, and the plain reason says more.
            Err(_) if self.shared.ports.api.is_none() => Err(rejection),
            Err(impossible) => Err(Rejection {
                reason: "UnexpectedAdmissionError",
                message: format!(
                    "Unexpected error while attempting to recover from admission failure: preemption: error finding a set \
                     of pods to preempt: {impossible}"
                ),
            }),
        }
    }

    /// Tells pods to end for this one.
    pub(super) fn preempt(&mut self, victims: &[Pod]) {
        let Some(longest) = victims.iter().map(Pod::grace_seconds).max() else { return };
        for victim in victims {
            tracing::info!(pod = %self.pod.id, preempted = %victim.id, "a pod ends so that a critical one has room");
            let order = Evict {
                reason: preempt::REASON,
                message: preempt::MESSAGE.to_owned(),
                grace_seconds: victim.grace_seconds(),
                disruption: true,
            };
            self.shared.roster.put(&victim.id.uid, |wakes| wakes.evict = wakes.evict.take().or(Some(order)));
        }
        let limit = Duration::from_secs(longest.unsigned_abs()) + KILL;
        let uids: Vec<String> = victims.iter().map(|victim| victim.id.uid.clone()).collect();
        self.preempting = Some(Preempting { uids: uids.clone(), until: Instant::now() + limit });
        let (shared, inbox) = (self.shared.clone(), self.inbox.clone());
        tokio::spawn(async move {
            shared.roster.until(limit, |roster| !uids.iter().any(|uid| holds(roster, uid))).await;
            inbox.put(|_| {});
        });
    }

    /// Ends the wait for preempted pods when they have ended, or take too long.
    pub(super) fn wait_for_preempted(&mut self) {
        let roster = &self.shared.roster;
        let over = |preempting: &Preempting| {
            preempting.until <= Instant::now() || !preempting.uids.iter().any(|uid| holds(roster, uid))
        };
        if self.preempting.as_ref().is_some_and(over) {
            self.preempting = None;
        }
    }
}
