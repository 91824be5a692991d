//! `status.containerStatuses`: one entry per container of the spec, at most two of its lives shown.

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::StatusInput;
use crate::observed::{Container, ContainerState, Exit};
use crate::pod::{ContainerKind, ContainerOf};
use crate::record::{ContainerRecord, EndedContainer};

/// Waiting reasons that only say that a start is about to be made: an ended container is then still shown ended.
const ABOUT_TO_START: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// Statuses of the containers of some kinds, in the order of the spec.
pub(super) fn statuses(input: &StatusInput<'_>, wanted: impl Fn(ContainerKind) -> bool) -> Vec<v1::ContainerStatus> {
    input
        .pod
        .containers()
        .filter(|container| wanted(container.kind))
        .map(|container| status(input, container))
        .collect()
}

fn status(input: &StatusInput<'_>, container: ContainerOf<'_>) -> v1::ContainerStatus {
    let name = container.spec.name.as_str();
    let seen = input.observed.container(name);
    let empty = ContainerRecord::default();
    let known = input.record.containers.get(name).unwrap_or(&empty);
    let (state, last) = states(input, name, seen, known);
    let running = state.running.is_some();
    let ours = seen.is_some_and(|seen| known.id.as_deref() == Some(seen.id.as_str()));
    let started = running && ours && known.started;
    let ready = match container.kind {
        ContainerKind::Init => state.terminated.as_ref().is_some_and(|terminated| terminated.exit_code == 0),
        ContainerKind::Sidecar | ContainerKind::App => started && known.ready,
    };
    let shown_id = match (&state.terminated, seen) {
        (_, Some(seen)) => Some(seen.id.clone()),
        (_, None) => known.id.clone(),
    };
    v1::ContainerStatus {
        name: name.to_owned(),
        container_id: shown_id.map(|id| format!("docker://{id}")),
        image: container.spec.image.clone().unwrap_or_default(),
        image_id: seen.map(|seen| seen.image_id.clone()).unwrap_or_default(),
        ready,
        started: Some(started),
        restart_count: i32::try_from(known.restarts.max(seen.map_or(0, |seen| seen.attempt))).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: last,
        ..Default::default()
    }
}

/// `state` and `lastState`.
fn states(
    input: &StatusInput<'_>,
    name: &str,
    seen: Option<&Container>,
    known: &ContainerRecord,
) -> (v1::ContainerState, Option<v1::ContainerState>) {
    let before = known.last_exit.as_ref().map(|ended| terminated(&ended.exit, &ended.id));
    let wait = input.plan.waits.get(name);
    match seen.map(|seen| (seen, &seen.state)) {
        Some((seen, ContainerState::Running { started_at, .. })) => {
            if input.busy.post_start.contains(&seen.id) {
                return (waiting(default_reason(input), ""), before);
            }
            let running = v1::ContainerStateRunning { started_at: Some(Time(*started_at)) };
            (v1::ContainerState { running: Some(running), ..Default::default() }, before)
        }
        Some((seen, ContainerState::Exited(exit))) => {
            // The record has the same exit with its termination message.
            let exit = known.exit.as_ref().filter(|_| known.id.as_deref() == Some(seen.id.as_str())).unwrap_or(exit);
            ended(wait, exit, &seen.id, before)
        }
        Some((_, ContainerState::Created)) => (waiting_for(input, wait), last_of(known).or(before)),
        None => match (&known.id, &known.exit) {
            (Some(id), Some(exit)) => ended(wait, exit, id, before),
            // It ran and cannot be found: `ContainerStatusUnknown` in lastState until something newer runs, in state
            // once the pod is at its end.
            (Some(id), None) => {
                let lost = Exit::unknown(input.now);
                if input.plan.finished {
                    (terminated(&lost, id), before)
                } else {
                    (waiting_for(input, wait), Some(terminated(&lost, id)))
                }
            }
            (None, _) => (waiting_for(input, wait), before),
        },
    }
}

fn last_of(known: &ContainerRecord) -> Option<v1::ContainerState> {
    let (id, exit) = (known.id.as_ref()?, known.exit.as_ref()?);
    Some(terminated(exit, id))
}

fn ended(
    wait: Option<&crate::plan::Wait>,
    exit: &Exit,
    id: &str,
    before: Option<v1::ContainerState>,
) -> (v1::ContainerState, Option<v1::ContainerState>) {
    match wait.filter(|wait| !ABOUT_TO_START.contains(&wait.reason.as_str())) {
        Some(wait) => (waiting(&wait.reason, &wait.message), Some(terminated(exit, id))),
        None => (terminated(exit, id), before),
    }
}

fn default_reason(input: &StatusInput<'_>) -> &'static str {
    let has_init = input.pod.spec().init_containers.as_ref().is_some_and(|init| !init.is_empty());
    if has_init { "PodInitializing" } else { "ContainerCreating" }
}

fn waiting_for(input: &StatusInput<'_>, wait: Option<&crate::plan::Wait>) -> v1::ContainerState {
    match wait {
        Some(wait) => waiting(&wait.reason, &wait.message),
        None => {
            let message = input.plan.waits.get("").map_or("", |wait| wait.message.as_str());
            waiting(default_reason(input), message)
        }
    }
}

fn waiting(reason: &str, message: &str) -> v1::ContainerState {
    let waiting = v1::ContainerStateWaiting {
        reason: (!reason.is_empty()).then(|| reason.to_owned()),
        message: (!message.is_empty()).then(|| message.to_owned()),
    };
    v1::ContainerState { waiting: Some(waiting), ..Default::default() }
}

fn terminated(exit: &Exit, id: &str) -> v1::ContainerState {
    let terminated = v1::ContainerStateTerminated {
        container_id: Some(format!("docker://{id}")),
        exit_code: exit.code,
        reason: Some(exit.reason.clone()),
        message: (!exit.message.is_empty()).then(|| exit.message.clone()),
        started_at: exit.started_at.map(Time),
        finished_at: Some(Time(exit.finished_at)),
        signal: None,
    };
    v1::ContainerState { terminated: Some(terminated), ..Default::default() }
}

/// Brings the record up to date with what is seen, before it is used: counts never fall, the newest exit and the
/// one before are kept, also when their containers are removed. `messages` has termination messages by container ID.
pub fn remember(
    record: &mut crate::record::PodRecord,
    observed: &crate::observed::ObservedPod,
    messages: &std::collections::BTreeMap<String, String>,
) {
    let mut names: Vec<&str> = observed.containers.iter().map(|seen| seen.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let Some(seen) = observed.containers_named(name).find(|seen| seen.state != ContainerState::Created) else {
            continue;
        };
        let known = record.containers.entry(name.to_owned()).or_default();
        if known.id.as_deref() != Some(seen.id.as_str()) {
            // Something older than what is remembered (the newer one was pruned) says nothing new.
            if known.id.is_some() && seen.attempt < known.restarts {
                continue;
            }
            let before = observed
                .containers_named(name)
                .filter(|older| older.id != seen.id)
                .find_map(|older| older.exit().map(|exit| EndedContainer { id: older.id.clone(), exit: exit.clone() }));
            let remembered = known.id.clone().zip(known.exit.clone()).map(|(id, exit)| EndedContainer { id, exit });
            known.last_exit = remembered.or(before).or(known.last_exit.take());
            known.id = Some(seen.id.clone());
            known.exit = None;
            known.started = false;
            known.ready = false;
        }
        known.restarts = known.restarts.max(seen.attempt);
        if let ContainerState::Running { started_at, .. } = seen.state {
            known.started_at = Some(started_at);
            known.exit = None;
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
}
