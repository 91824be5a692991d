//! What is kept of what was seen: the record is brought up to date before it is used. Code that acted adds to it only what
//! no look can tell: restarts counted for the delay, sizes actuated, hashes of written files.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::observed::{Container, ContainerState, Exit, ObservedPod};
use crate::plan::{self, Plan};
use crate::pod::{ContainerOf, Pod};
use crate::record::{ContainerRecord, EndedContainer, PodRecord};
use crate::{backoff, resize, restart};

/// Brings the record up to date with what is seen: counts never fall, the newest exit and the one before are kept, also
/// when their containers are removed; one that ran and cannot be found ended unknown, once; the addresses stay when their
/// sandbox goes. `messages` has termination messages by container ID. Nothing that is remembered lies after `now`.
pub fn remember(
    record: &mut PodRecord,
    pod: &Pod,
    observed: &ObservedPod,
    messages: &BTreeMap<String, String>,
    now: Timestamp,
) {
    let sandbox = observed.sandbox().filter(|sandbox| sandbox.is_running() && !sandbox.ips.is_empty());
    if let Some(sandbox) = sandbox {
        record.ips.clone_from(&sandbox.ips);
    }
    let mut names: Vec<&str> = observed.containers.iter().map(|seen| seen.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let started = |seen: &&Container| seen.state != ContainerState::Created;
        let Some(seen) = observed.containers_named(name).find(started) else { continue };
        let known = record.containers.entry(name.to_owned()).or_default();
        if let Some(last) = &mut known.last_exit
            && let Some(exit) =
                observed.containers_named(name).find(|older| older.id == last.id).and_then(Container::exit)
        {
            learn(&mut last.exit, exit);
        }
        if !known.outlives(seen) {
            let went_on = known.exit.is_none();
            take_in(known, seen, observed, messages);
            // Stopped for the others' sake.
            if let Some(exit) = known.exit.as_mut().filter(|_| record.restarting_all && went_on) {
                restarting_all(exit);
            }
            if let Some(of) = pod.container(name).filter(|_| known.actuated.is_none()) {
                known.actuated = resize::actuated(pod, of.spec, seen.resources.as_ref());
            }
        }
    }
    let goes_on = pod.deletion.is_none() && record.terminal.is_none();
    begin_anew(record, pod, observed, goes_on, now);
    let anew = record.restarting_all;
    for (name, known) in &mut record.containers {
        let went_on = known.exit.is_none();
        vanish(known, name, pod, observed, goes_on && !anew, now);
        if let Some(exit) = known.exit.as_mut().filter(|_| anew && went_on) {
            restarting_all(exit);
        }
    }
    record.containers.retain(|name, _| pod.container(name).is_some() || observed.container(name).is_some());
    record.backoffs.retain(|key, _| is_about(pod, key));
    record.forget_the_future(now);
}

/// That there was no memory may be told after the end.
fn learn(kept: &mut Exit, seen: &Exit) {
    let is_same = kept.finished_at == seen.finished_at && matches!(kept.reason.as_str(), "Error" | "Completed");
    if is_same && seen.is_out_of_memory() {
        kept.reason.clone_from(&seen.reason);
    }
}

fn take_in(known: &mut ContainerRecord, seen: &Container, observed: &ObservedPod, messages: &BTreeMap<String, String>) {
    if known.id.as_deref() != Some(seen.id.as_str()) {
        let before = observed
            .containers_named(&seen.name)
            .filter(|older| older.id != seen.id)
            .find_map(|older| older.exit().map(|exit| EndedContainer { id: older.id.clone(), exit: exit.clone() }));
        let remembered = known.id.clone().zip(known.exit.clone()).map(|(id, exit)| EndedContainer { id, exit });
        known.last_exit = remembered.or(before).or(known.last_exit.take());
        known.id = Some(seen.id.clone());
        known.sandbox = Some(seen.sandbox_id.clone());
        // One that cannot be started has no time of its own, and must not seem to have run as long as the one before.
        known.started_at = None;
        known.image.clone_from(&seen.image);
        known.image_id.clone_from(&seen.image_id);
        known.volume_images.clone_from(&seen.volume_images);
        known.exit = None;
        known.started = false;
        known.ready = false;
        known.restarting = false;
        known.actuated = None;
        known.user = None;
        known.failed_start = known.failed_start.take().filter(|failed| failed.id == seen.id);
    }
    // A record of before image IDs were kept has none.
    if known.image_id.is_empty() {
        known.image_id.clone_from(&seen.image_id);
    }
    // The first look counts: a process may change who it is.
    if known.user.is_none() {
        known.user.clone_from(&seen.user);
    }
    known.restarts = known.restarts.max(seen.attempt);
    if let ContainerState::Running { started_at, .. } = seen.state {
        known.started_at = Some(started_at);
        known.exit = None;
    }
    if let (Some(exit), Some(kept)) = (seen.exit(), &mut known.exit) {
        learn(kept, exit);
    }
    if let (Some(exit), None) = (seen.exit(), &known.exit) {
        let mut exit = exit.clone();
        if let Some(message) = messages.get(&seen.id).filter(|message| !message.is_empty()) {
            exit.message = message.clone();
        }
        known.exit = Some(exit);
        known.started = false;
        known.ready = false;
    }
}

/// Notes that all containers are to begin anew when one ended that asks for it, and, once none of them is left, forgets what
/// was of the ones before but how they ended (`ShouldAllContainersRestart`, `AllContainersRestartCleanedUp`).
fn begin_anew(record: &mut PodRecord, pod: &Pod, observed: &ObservedPod, goes_on: bool, now: Timestamp) {
    let asks = |of: ContainerOf<'_>| {
        let exit = record.newest(observed, &of.spec.name).and_then(Container::exit);
        exit.is_some_and(|exit| restart::restarts_all(of.spec, exit.code))
    };
    record.restarting_all = goes_on && (record.restarting_all || pod.containers().any(asks));
    if !record.restarting_all || pod.containers().any(|of| observed.container(&of.spec.name).is_some()) {
        return;
    }
    record.restarting_all = false;
    for of in pod.containers() {
        let Some(known) = record.containers.get_mut(&of.spec.name) else { continue };
        let Some(id) = known.id.take() else { continue };
        let counted = known.exit.as_ref().is_some_and(Exit::is_unknown);
        let exit = known.exit.take().filter(|exit| !exit.is_unknown()).unwrap_or_else(|| {
            let mut exit = Exit { started_at: known.started_at, ..Exit::unknown(now) };
            restarting_all(&mut exit);
            exit
        });
        *known = ContainerRecord {
            restarts: known.restarts.saturating_add(u32::from(!counted)),
            delayed_restarts: known.delayed_restarts,
            started_at: exit.started_at,
            last_exit: Some(EndedContainer { id, exit }),
            image: std::mem::take(&mut known.image),
            image_id: std::mem::take(&mut known.image_id),
            restarting: true,
            ..ContainerRecord::default()
        };
    }
}

/// Says of an end that it was for all containers to begin anew.
fn restarting_all(exit: &mut Exit) {
    plan::restart_all::REASON.clone_into(&mut exit.reason);
    plan::restart_all::MESSAGE.clone_into(&mut exit.message);
}

/// A container that ran and is gone ended unknown, and is counted as restarted when it will be
/// (`convertToAPIContainerStatuses`). Kept, so that its delay runs from now on and not from every later look.
fn vanish(known: &mut ContainerRecord, name: &str, pod: &Pod, observed: &ObservedPod, goes_on: bool, now: Timestamp) {
    let Some(id) = known.id.as_deref() else { return };
    if known.exit.is_some() || observed.containers.iter().any(|seen| seen.id == id) {
        return;
    }
    let exit = Exit { started_at: known.started_at, ..Exit::unknown(now) };
    let again = pod.container(name).is_some_and(|of| restart::runs_again(pod, of, Some(known), &exit));
    if goes_on && again {
        known.restarts = known.restarts.saturating_add(1);
    }
    known.exit = Some(exit);
    known.started = false;
    known.ready = false;
}

/// Whether a back-off's key is still about something in the pod.
fn is_about(pod: &Pod, key: &str) -> bool {
    if let Some(image) = backoff::image_of(key) {
        let mut containers = pod.containers().chain(pod.ephemeral_containers());
        let mut volumes = pod.spec().volumes.iter().flatten().filter_map(|volume| volume.image.as_ref());
        return containers.any(|container| container.spec.image.as_deref() == Some(image))
            || volumes.any(|volume| volume.reference.as_deref() == Some(image));
    }
    backoff::container_of(key).is_none_or(|name| pod.container(name).is_some())
}

/// Remembers which containers a plan stops only to start them again, so that they do start, whatever their exit code
/// and however the agent ends meanwhile.
pub fn remember_restarts(record: &mut PodRecord, plan: &Plan) {
    for name in &plan.restarting {
        if let Some(known) = record.containers.get_mut(name) {
            known.restarting = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff::Policy;
    use crate::testing::{at, container, exit, pod_from, running};

    #[test]
    fn one_that_cannot_be_started_has_its_back_off_however_long_the_one_before_ran() {
        let pod = pod_from("{containers: [{name: a, image: i}]}");
        let of = pod.container("a").expect("its container");
        // With no time of its own in records of before it was given that of its making.
        for started_at in [None, Some(at(3601))] {
            let mut record = PodRecord::default();
            let refused = Exit { started_at, ..exit(128, 3601, 3601) };
            let ended = ContainerState::Exited;
            for (attempt, state) in [(0, running(0)), (0, ended(exit(1, 0, 3600))), (1, ended(refused.clone()))] {
                let observed =
                    ObservedPod { containers: vec![container(of, attempt, state)], ..ObservedPod::default() };
                remember(&mut record, &pod, &observed, &BTreeMap::new(), at(10_000));
            }
            let known = record.containers.get_mut("a").expect("it is known");
            known.delayed_restarts = 1;
            assert_eq!(restart::restart_at(known, &refused, Policy::CRASH_LOOP, at(3601)), at(3611));
        }
    }

    #[test]
    fn back_offs_last_as_long_as_what_they_are_about() {
        let pod = pod_from("{containers: [{name: a, image: own}], volumes: [{name: v, image: {reference: volume}}]}");
        let known = ["image/own", "image/volume", "create/a", "pod"];
        assert!(known.iter().all(|key| is_about(&pod, key)));
        assert!(!is_about(&pod, "image/other") && !is_about(&pod, "create/b"));
        let object: k8s_openapi::api::core::v1::Pod = serde_json::from_value(serde_json::json!({"spec": {
            "containers": [], "ephemeralContainers": [{"name": "debug", "image": "tools"}]}}))
        .expect("a pod");
        let pod = Pod { ephemeral: crate::pod::ephemeral(&object), object: object.into(), ..pod };
        assert!(is_about(&pod, "image/tools") && is_about(&pod, "create/debug"));
    }
}
