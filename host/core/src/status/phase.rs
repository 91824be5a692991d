//! The phase of a pod, from the statuses of its containers: `getPhase` of `pkg/kubelet/kubelet_pods.go`.

use k8s_openapi::api::core::v1;

use super::StatusInput;
use crate::observed::Exit;
use crate::pod::{ContainerKind, ContainerOf};
use crate::record::exit_of;
use crate::restart;

/// What one container contributes.
enum Part {
    Running,
    /// Not begun yet.
    Waiting,
    /// Ended, now or before what it waits for.
    Stopped {
        code: i32,
        ended_now: bool,
        again: bool,
    },
    Unknown,
}

fn part(input: &StatusInput<'_>, container: ContainerOf<'_>, status: &v1::ContainerStatus) -> Part {
    let exit = |state: Option<&v1::ContainerState>| Some(exit_of(state?.terminated.as_ref()?));
    let known = input.record.containers.get(&status.name);
    let stopped = |exit: Exit, ended_now: bool| Part::Stopped {
        code: exit.code,
        ended_now,
        again: restart::runs_again(input.pod, container, known, &exit),
    };
    match status.state.as_ref() {
        Some(state) if state.running.is_some() => Part::Running,
        Some(state) if state.waiting.is_some() => {
            exit(status.last_state.as_ref()).map_or(Part::Waiting, |exit| stopped(exit, false))
        }
        state => exit(state).map_or(Part::Unknown, |exit| stopped(exit, true)),
    }
}

/// The phase. A pod that is being deleted, and has nothing left that runs, is at its end whatever its restart policy.
pub(super) fn phase(
    input: &StatusInput<'_>,
    inits: &[v1::ContainerStatus],
    apps: &[v1::ContainerStatus],
) -> &'static str {
    let pod = input.pod;
    let ending = pod.deletion.is_some() && !super::runs(input.observed);
    let of = |status: &v1::ContainerStatus| pod.container(&status.name).map(|of| part(input, of, status));
    let is_sidecar =
        |status: &&v1::ContainerStatus| pod.container(&status.name).is_some_and(|of| of.kind == ContainerKind::Sidecar);

    let (mut running, mut waiting, mut unknown) = (0, 0, 0);
    let mut pending_inits = false;
    for status in inits.iter().filter(|status| !is_sidecar(status)) {
        match of(status) {
            Some(Part::Stopped { code, again: false, .. }) if code != 0 => return "Failed",
            Some(Part::Stopped { .. }) => {}
            _ => pending_inits = true,
        }
    }
    let mut pending_sidecars = false;
    for status in inits.iter().filter(is_sidecar) {
        match of(status) {
            Some(Part::Running) => {
                pending_sidecars |= !status.started.unwrap_or(false);
                running += 1;
            }
            Some(Part::Stopped { .. }) => {}
            Some(Part::Waiting) => {
                pending_sidecars = true;
                waiting += 1;
            }
            Some(Part::Unknown) | None => unknown += 1,
        }
    }
    let (mut stopped, mut for_good, mut succeeded) = (0, 0, 0);
    for status in apps {
        match of(status) {
            Some(Part::Running) => running += 1,
            Some(Part::Waiting) => waiting += 1,
            Some(Part::Stopped { code, ended_now, again }) => {
                stopped += 1;
                succeeded += usize::from(code == 0 && ended_now);
                for_good += usize::from(!again);
            }
            Some(Part::Unknown) | None => unknown += 1,
        }
    }
    let sandbox = input.observed.sandbox().map(|sandbox| sandbox.id.as_str());
    let begun = input.record.app_begun(pod, input.observed, sandbox);
    if pending_inits || (pending_sidecars && !begun) || waiting > 0 {
        return "Pending";
    }
    if unknown > 0 {
        return "Pending";
    }
    if running > 0 {
        return "Running";
    }
    match stopped {
        0 => "Pending",
        _ if for_good != stopped && !ending => "Running",
        _ if stopped == succeeded => "Succeeded",
        _ => "Failed",
    }
}
