//! Ending a pod: stop what runs in the right order, then remove what is dead, then release what it had.

use jiff::Timestamp;

use super::{Plan, Situation, planned};
use crate::action::{Action, Stage};
use crate::observed::Container;
use crate::pod::{ContainerKind, MOST_GRACE_SECONDS, Pod};

/// The action that stops a container, or `None` when it is being stopped soon enough already. `after`: IDs of those
/// that end first. `told`: what its event says of it alone.
pub(super) fn stop_action(
    situation: &Situation<'_>,
    seen: &Container,
    grace: i64,
    after: Vec<String>,
    told: Option<String>,
    plan: &mut Plan,
) -> Option<Action> {
    let (now, grace) = (situation.now, grace.clamp(0, MOST_GRACE_SECONDS));
    if let Some(deadline) = situation.busy.stopping.get(&seen.id) {
        let wanted = now.checked_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(jiff::Timestamp::MAX);
        // A second's slack: the same grace period, reckoned again a moment later, is not a new wish.
        if wanted.duration_since(*deadline).as_secs() >= -1 {
            // Looked at again when it is overdue; one that is overdue already wakes nobody again and again.
            let later = jiff::SignedDuration::from_secs(5);
            plan.wake_at((*deadline).max(now).checked_add(later).unwrap_or(jiff::Timestamp::MAX));
            return None;
        }
    }
    let (id, container) = (seen.id.clone(), seen.name.clone());
    Some(Action::StopContainer { id, container, grace_seconds: grace, after, told })
}

/// Seconds that are left of the pod's grace period; no more than an eviction leaves. Told by when its end began, so that
/// another agent gives no more.
fn remaining_grace(situation: &Situation<'_>) -> i64 {
    let Situation { pod, record, now, .. } = *situation;
    let own = match pod.deletion {
        None => left_of(pod.grace_seconds(), record.ended_at, now),
        Some(deletion) => left_of(deletion.grace_seconds, Some(deletion.requested_at), now),
    };
    record.evicted.map_or(own, |evicted| own.min(left_of(evicted.grace_seconds, record.ended_at, now)))
}

/// Seconds that are left of a grace period, one at the least: what runs is asked before it is killed
/// (`calculateEffectiveGracePeriod`).
pub(crate) fn left_of(grace: i64, since: Option<Timestamp>, now: Timestamp) -> i64 {
    // The clock may have stepped back: never wait longer than the grace period itself.
    let passed = since.map_or(0, |since| now.duration_since(since).as_secs().max(0));
    let grace = grace.max(1);
    (grace - passed).clamp(1, grace)
}

/// IDs of what ends before a container of a pod that ends: for a sidecar the app containers and the sidecars after it;
/// nothing else waits (`newTerminationOrdering` of pkg/kubelet/kuberuntime/kuberuntime_termination_order.go).
fn before(pod: &Pod, running: &[&Container], seen: &Container) -> Vec<String> {
    if seen.kind != ContainerKind::Sidecar {
        return Vec::new();
    }
    let inits = pod.spec().init_containers.as_deref().unwrap_or_default();
    let place = |name: &str| inits.iter().position(|init| init.name == name);
    let first = running.iter().filter(|other| match other.kind {
        ContainerKind::App => true,
        ContainerKind::Sidecar => place(&other.name) > place(&seen.name),
        ContainerKind::Init | ContainerKind::Ephemeral => false,
    });
    first.map(|other| other.id.clone()).collect()
}

/// Stops everything that runs: all at once and within one grace period, hooks first, each in its turn ([`before`]);
/// then the sandbox. `None` when nothing runs.
fn stops(situation: &Situation<'_>, why: &str, plan: &mut Plan) -> Option<Stage> {
    let Situation { pod, observed, .. } = *situation;
    let grace = remaining_grace(situation);
    let running: Vec<&Container> = observed.containers.iter().filter(|seen| seen.is_running()).collect();
    if !running.is_empty() {
        let mut stop = |seen: &Container| {
            let after = before(pod, &running, seen);
            stop_action(situation, seen, grace, after, None, plan).map(|action| vec![planned(action, why)])
        };
        return Some(running.iter().filter_map(|seen| stop(seen)).collect());
    }
    let sandboxes = observed.sandboxes.iter().filter(|sandbox| sandbox.is_running());
    let stage: Stage =
        sandboxes.map(|sandbox| vec![planned(Action::StopSandbox { id: sandbox.id.clone() }, why)]).collect();
    (!stage.is_empty()).then_some(stage)
}

/// Stops everything of a pod that begins again in a new sandbox. `changed`: its containers are stopped only for that,
/// and start again whatever their restart policy.
pub(super) fn stop_all(situation: &Situation<'_>, why: &str, changed: bool) -> Plan {
    let mut plan = Plan::default();
    if changed {
        let running = situation.observed.containers.iter().filter(|seen| seen.is_running());
        plan.restarting = running.map(|seen| seen.name.clone()).collect();
    }
    if let Some(stage) = stops(situation, why, &mut plan) {
        plan.stage(stage);
    }
    plan
}

/// Stops everything of a pod that has ended, and keeps the dead for their logs. What else it had is given back once its
/// end is known for good (`SyncTerminatedPod`); an evicted one keeps nothing (`ShouldPodContentBeRemoved`).
pub(super) fn finish(situation: &Situation<'_>, why: &str) -> Plan {
    let Situation { observed, record, .. } = *situation;
    let mut plan = Plan { finished: true, ..Plan::default() };
    if let Some(stage) = stops(situation, why, &mut plan) {
        plan.stage(stage);
    }
    if observed.is_running() || record.terminal.is_none() {
        super::collect(situation, &mut plan);
        return plan;
    }
    if record.emptied {
        plan.stage(removals(situation, "nothing of the pod is kept"));
    } else {
        super::collect(situation, &mut plan);
    }
    if !record.released {
        plan.stage(vec![vec![planned(Action::ReleaseFiles, why)]]);
    }
    plan
}

/// Removes all that is there.
fn removals(situation: &Situation<'_>, why: &str) -> Stage {
    let observed = situation.observed;
    let containers = observed
        .containers
        .iter()
        .map(|seen| vec![planned(Action::RemoveContainer { id: seen.id.clone(), container: seen.name.clone() }, why)]);
    let sandboxes =
        observed.sandboxes.iter().map(|sandbox| vec![planned(Action::RemoveSandbox { id: sandbox.id.clone() }, why)]);
    containers.chain(sandboxes).collect()
}

/// Ends a pod for good: nothing of it stays.
pub(super) fn delete(situation: &Situation<'_>) -> Plan {
    let mut plan = Plan { finished: true, ..Plan::default() };
    let why = "the pod is deleted";
    if let Some(stage) = stops(situation, why, &mut plan) {
        plan.stage(stage);
        // Background stops end first; then the next plan goes on.
        let only_sandboxes = plan.actions().all(|planned| matches!(planned.action, Action::StopSandbox { .. }));
        if !only_sandboxes || plan.is_empty() {
            return plan;
        }
    }
    plan.stage(removals(situation, why));
    if plan.is_empty() {
        plan.stage(vec![vec![planned(Action::Release, why)]]);
    }
    plan
}
