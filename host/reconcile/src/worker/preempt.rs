//! Room that others still have: a pod begins when those have ended that end anyway, or for it, since it is critical.
//!
//! As `pkg/kubelet/preemption/preemption.go`, but that nothing waits meanwhile: the pod's worker is woken at the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1;
use longshore_core::admit::{self, Rejection};
use longshore_core::pod::Pod;
use longshore_core::{preempt, priority};

use super::Worker;
use crate::inbox::Evict;
use crate::roster::Roster;

/// Why a pod's containers are not started meanwhile.
pub(super) const WAITS: &str = "waits for pods to end that have what it needs of the node";
/// Why they are not while nobody would make those pods anew.
pub(super) const UNHEARD: &str =
    "waits for room: which pods of the API server may end for it is known when that is reached";
/// What ending a pod may take beyond its grace period.
const KILL: Duration = Duration::from_secs(10);

/// Pods whose room another one gets.
#[derive(Default)]
pub(super) struct Ending {
    /// Those that end anyway.
    pub(super) leaving: Vec<Pod>,
    /// Those that must end for it.
    pub(super) victims: Vec<Pod>,
}

/// Room that a pod waits for.
pub(super) struct Room {
    /// UIDs of the pods that have it.
    uids: Vec<String>,
    /// When they are not waited for any longer: the kubelet goes on, too.
    until: Instant,
}

/// Those of the leaving pods that must be gone before a pod fits beside the staying ones: as few as may be, and rather
/// those with little grace. `fits` says whether it fits beside some.
pub(super) fn in_the_way(mut leaving: Vec<&Pod>, staying: &[&Pod], fits: impl Fn(&[&Pod]) -> bool) -> Vec<Pod> {
    leaving.sort_by_key(|pod| std::cmp::Reverse(pod.grace_seconds()));
    let mut beside = staying.to_vec();
    let mut must_go = Vec::new();
    for pod in leaving {
        beside.push(pod);
        if !fits(&beside) {
            beside.pop();
            must_go.push(pod.clone());
        }
    }
    must_go
}

/// Whether the pod of that UID has not given back what it had yet.
fn holds(roster: &Roster, uid: &str) -> bool {
    roster.member(uid).is_some_and(|member| member.holds())
}

impl Worker {
    /// The pods that must end so that this one, which was rejected, may be admitted all the same.
    pub(super) fn make_room(
        &self,
        others: &[&Pod],
        node: Option<&v1::Node>,
        rejection: Rejection,
    ) -> Result<Vec<Pod>, Rejection> {
        let facts = &self.facts;
        let needs = admit::needs(&self.pod, others, facts, node);
        if needs.is_empty() || !priority::is_critical(&self.pod) {
            return Err(rejection);
        }
        admit::admit_but_for_room(&self.pod, others, facts, node)?;
        match preempt::victims(&self.pod, others, &needs) {
            Ok(victims) => Ok(victims.into_iter().cloned().collect()),
            // On a node alone every pod is critical, and the plain reason says more.
            Err(_) if self.shared.ports.api.is_none() => Err(rejection),
            Err(impossible) => Err(Rejection {
                reason: "UnexpectedAdmissionError".into(),
                message: format!(
                    "Unexpected error while attempting to recover from admission failure: preemption: error finding a set \
                     of pods to preempt: {impossible}"
                ),
            }),
        }
    }

    /// Tells pods to end for this one, and waits for those whose room it gets.
    pub(super) fn await_room(&mut self, ending: &Ending) {
        let Ending { leaving, victims } = ending;
        let all = || leaving.iter().chain(victims);
        let Some(longest) = all().map(Pod::grace_seconds).max() else { return };
        for victim in victims {
            tracing::info!(pod = %self.pod.id, preempted = %victim.id, "a pod ends so that a critical one has room");
            let order = Evict {
                reason: preempt::REASON,
                message: preempt::MESSAGE.to_owned(),
                annotations: BTreeMap::new(),
                grace_seconds: victim.grace_seconds(),
                disruption: true,
            };
            self.shared.roster.put(&victim.id.uid, |wakes| wakes.evict = wakes.evict.take().or(Some(order)));
        }
        let limit = Duration::from_secs(longest.unsigned_abs()) + KILL;
        let uids: Vec<String> = all().map(|pod| pod.id.uid.clone()).collect();
        self.room = Some(Room { uids: uids.clone(), until: Instant::now() + limit });
        let (shared, inbox) = (self.shared.clone(), self.inbox.clone());
        tokio::spawn(async move {
            shared.roster.until(limit, |roster| !uids.iter().any(|uid| holds(roster, uid))).await;
            inbox.put(|_| {});
        });
    }

    /// Ends the wait for room when those have ended that had it, or take too long.
    pub(super) fn wait_for_room(&mut self) {
        let roster = &self.shared.roster;
        let over = |room: &Room| room.until <= Instant::now() || !room.uids.iter().any(|uid| holds(roster, uid));
        if self.room.as_ref().is_some_and(over) {
            self.room = None;
        }
    }
}
