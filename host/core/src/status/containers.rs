//! `status.containerStatuses`: one entry per container of the spec, at most two of its lives shown.

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::StatusInput;
use crate::container_config;
use crate::observed::{Container, ContainerState, Exit};
use crate::pod::{ContainerKind, ContainerOf, Pod};
use crate::record::ContainerRecord;
use crate::{restart, volume};

/// Waiting reasons that only say that a start is about to be made: an ended container is then still shown ended.
const ABOUT_TO_START: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// Message of a container that was to run, or ran, and is not there at the pod's end (`TerminatePod`).
const NOT_LOCATED: &str = "The container could not be located when the pod was terminated";

/// Statuses of the init containers and of the app containers, in the order of the spec.
pub(super) fn all(input: &StatusInput<'_>) -> (Vec<v1::ContainerStatus>, Vec<v1::ContainerStatus>) {
    let of = |apps: bool| -> Vec<v1::ContainerStatus> {
        let wanted = input.pod.containers().filter(|of| (of.kind == ContainerKind::App) == apps);
        wanted.map(|container| status(input, container)).collect()
    };
    let (mut inits, mut apps) = (of(false), of(true));
    let at_end = input.record.terminal.is_some() || input.pod.deletion.is_some();
    if at_end && !super::runs(input.observed) {
        close(input, &mut inits, &mut apps);
    }
    (inits, apps)
}

/// Statuses of the ephemeral containers, which are never ready and count for nothing.
pub(super) fn ephemeral(input: &StatusInput<'_>) -> Vec<v1::ContainerStatus> {
    let all = input.pod.ephemeral_containers().map(|container| status(input, container));
    all.map(|status| v1::ContainerStatus { ready: false, started: None, ..status }).collect()
}

/// Whether a container was ever started.
pub(super) fn has_begun(status: &v1::ContainerStatus) -> bool {
    let waits = status.state.as_ref().is_none_or(|state| state.running.is_none() && state.terminated.is_none());
    !waits || status.last_state.is_some()
}

/// Whether a container ended in which the kernel killed for want of memory. An init container that did has not done its work,
/// though it may be ready: for that the kubelet looks at the exit code alone.
pub(super) fn was_out_of_memory(status: &v1::ContainerStatus) -> bool {
    let ended = status.state.as_ref().and_then(|state| state.terminated.as_ref());
    ended.and_then(|ended| ended.reason.as_deref()) == Some(Exit::OUT_OF_MEMORY)
}

/// At a pod's end every container that was begun has ended, also the lost ones; the first init container counts as begun
/// (`initializedContainers`). In a pod that was initialized the app containers were to run, so those that did not failed.
fn close(input: &StatusInput<'_>, inits: &mut [v1::ContainerStatus], apps: &mut [v1::ContainerStatus]) {
    let initialized = inits.is_empty()
        || apps.iter().any(has_begun)
        || inits.last().is_some_and(|last| (last.ready && !was_out_of_memory(last)) || last.started == Some(true));
    let begun = inits.iter().rposition(has_begun).map_or(1, |last| last + 1);
    let lost = |status: &mut v1::ContainerStatus| {
        if status.state.as_ref().is_some_and(|state| state.terminated.is_some()) {
            return;
        }
        let exit = Exit { message: NOT_LOCATED.to_owned(), ..Exit::unknown(input.now) };
        status.state = Some(inferred(&exit));
        status.started = Some(false);
        status.ready = false;
    };
    inits.iter_mut().take(begun).for_each(lost);
    if initialized {
        apps.iter_mut().for_each(lost);
    }
}

fn status(input: &StatusInput<'_>, container: ContainerOf<'_>) -> v1::ContainerStatus {
    let name = container.spec.name.as_str();
    let seen = input.record.newest(input.observed, name);
    let empty = ContainerRecord::default();
    let known = input.record.containers.get(name).unwrap_or(&empty);
    let (state, last) = states(input, container, seen, known);
    let running = state.running.is_some();
    let ours = seen.is_some_and(|seen| known.id.as_deref() == Some(seen.id.as_str()));
    let started = running && ours && known.started;
    let ready = match container.kind {
        ContainerKind::Init => state.terminated.as_ref().is_some_and(|terminated| terminated.exit_code == 0),
        ContainerKind::Sidecar | ContainerKind::App | ContainerKind::Ephemeral => started && known.ready,
    };
    let shown_id = seen.map(|seen| seen.id.clone()).or_else(|| known.id.clone());
    let mut status = v1::ContainerStatus {
        name: name.to_owned(),
        container_id: shown_id.map(|id| format!("docker://{id}")),
        // What it was made from, though its spec may name another by now.
        image: seen
            .map(|seen| seen.image.clone())
            .or_else(|| Some(known.image.clone()).filter(|image| !image.is_empty()))
            .unwrap_or_else(|| container.spec.image.clone().unwrap_or_default()),
        image_id: seen.map_or_else(|| known.image_id.clone(), |seen| seen.image_id.clone()),
        ready,
        started: Some(started),
        // One that is made and not started is no restart yet: it may go again.
        restart_count: i32::try_from(known.restarts).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: last,
        ..Default::default()
    };
    super::resources::fill(container, seen, known, &mut status);
    let images = seen.map_or(&known.volume_images, |seen| &seen.volume_images);
    // What was mounted, whatever the node can do by now.
    let recursive = seen.and_then(|seen| seen.recursive_read_only.clone());
    let recursive = recursive.or_else(|| container_config::recursive(input.pod, input.node, container.spec));
    status.volume_mounts = volume_mounts(input.pod, container, images, &recursive.unwrap_or_default());
    status.user = known.user.as_ref().filter(|_| seen.is_some()).map(|user| v1::ContainerUser {
        linux: Some(v1::LinuxContainerUser {
            uid: user.uid,
            gid: user.gid,
            supplemental_groups: Some(user.groups.clone()).filter(|groups| !groups.is_empty()),
        }),
    });
    status
}

/// How volumes are mounted, those of `recursive` read-only with all below, and which images (`ImageVolumeWithDigest`: an API
/// server that has not this gate on drops them).
fn volume_mounts(
    pod: &Pod,
    container: ContainerOf<'_>,
    images: &[String],
    recursive: &[usize],
) -> Option<Vec<v1::VolumeMountStatus>> {
    let mut volumes: Vec<&str> =
        volume::mounted_images(pod, container.spec).into_iter().map(|image| image.volume).collect();
    volumes.sort_unstable();
    let mounts = container.spec.volume_mounts.iter().flatten().enumerate().map(|(index, mount)| {
        let read_only = mount.read_only.filter(|read_only| *read_only);
        let image = volumes.iter().zip(images).find(|(volume, _)| **volume == mount.name);
        v1::VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only,
            recursive_read_only: read_only
                .map(|_| if recursive.contains(&index) { "Enabled" } else { "Disabled" }.to_owned()),
            volume_status: image
                .map(|(_, id)| v1::VolumeStatus { image: Some(v1::ImageVolumeStatus { image_ref: id.clone() }) }),
        }
    });
    Some(mounts.collect()).filter(|mounts: &Vec<_>| !mounts.is_empty())
}

/// `state` and `lastState`.
fn states(
    input: &StatusInput<'_>,
    container: ContainerOf<'_>,
    seen: Option<&Container>,
    known: &ContainerRecord,
) -> (v1::ContainerState, Option<v1::ContainerState>) {
    let name = container.spec.name.as_str();
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
            (Some(id), exit) => {
                let unknown = Exit::unknown(input.now);
                let exit = exit.as_ref().unwrap_or(&unknown);
                let again = restart::runs_again(input.pod, container, Some(known), exit);
                if exit.is_unknown() && again && !input.plan.finished {
                    // It ran and cannot be found: shown as what it was before, until another one runs.
                    (waiting_for(input, wait), Some(terminated(exit, id)))
                } else {
                    ended(wait, exit, id, before)
                }
            }
            (None, _) if container.kind == ContainerKind::Init && was_passed(input) => {
                let exit = Exit {
                    code: 0,
                    reason: "Completed".to_owned(),
                    message: "Unable to get init container status from container runtime and pod has been \
                              initialized, treat it as exited normally"
                        .to_owned(),
                    started_at: None,
                    finished_at: input.now,
                };
                (inferred(&exit), before)
            }
            (None, _) => (waiting_for(input, wait), before),
        },
    }
}

/// Whether the pod went on past its init containers in the sandbox that it has.
fn was_passed(input: &StatusInput<'_>) -> bool {
    let sandbox = input.observed.sandbox().map(|sandbox| sandbox.id.as_str());
    input.record.app_begun(input.pod, input.observed, sandbox)
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

/// An end that nobody saw: of no known container, at no known time.
fn inferred(exit: &Exit) -> v1::ContainerState {
    let seen = terminated(exit, "").terminated;
    let terminated = seen.map(|seen| v1::ContainerStateTerminated { finished_at: None, ..seen });
    v1::ContainerState { terminated, ..Default::default() }
}

fn terminated(exit: &Exit, id: &str) -> v1::ContainerState {
    let terminated = v1::ContainerStateTerminated {
        container_id: (!id.is_empty()).then(|| format!("docker://{id}")),
        exit_code: exit.code,
        reason: Some(exit.reason.clone()),
        message: (!exit.message.is_empty()).then(|| exit.message.clone()),
        started_at: exit.started_at.map(Time),
        finished_at: Some(Time(exit.finished_at)),
        signal: None,
    };
    v1::ContainerState { terminated: Some(terminated), ..Default::default() }
}
