//! Waiting for room that others still have, without holding anything up: the pod's worker is woken when they have ended.
//!
//! Whose room a pod gets is not decided here ([`longshore_core::room`]).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use longshore_core::pod::Pod;
use longshore_core::preempt;

use super::Worker;
use crate::inbox::Evict;
use crate::roster::Roster;

/// Why a pod's containers are not started while nobody would make those pods anew.
pub(super) const UNHEARD: &str =
    "waiting for room: which pods may be preempted is known once the API server is reached";
/// What ending a pod may take beyond its grace period.
const KILL: Duration = Duration::from_secs(10);

/// Pods whose room this one gets.
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

/// Whether the pod of that UID has not given back what it had yet.
fn holds(roster: &Roster, uid: &str) -> bool {
    roster.member(uid).is_some_and(|member| member.holds())
}

impl Worker {
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
