//! Resizing what runs: the pod's cgroup and its containers, in an order in which no container ever has more than the pod.
//!
//! As `computePodResizeAction` and `doPodResizeAction` of `pkg/kubelet/kuberuntime/kuberuntime_manager.go`, with one update
//! of a container for its CPU and memory together.

use super::containers::Needs;
use super::{Plan, Situation, planned};
use crate::action::{Action, Track};
use crate::backoff::{self, Policy};
use crate::cgroup;
use crate::observed::Sandbox;
use crate::pod::{ContainerKind, ContainerOf};
use crate::resize::{self, Gap};
use crate::resources;

/// Whether a running container is to be stopped for its new size. If it only needs an update, that is noted.
pub(super) fn must_restart(situation: &Situation<'_>, container: ContainerOf<'_>, needs: &mut Needs) -> bool {
    let Situation { pod, observed, record, .. } = *situation;
    if record.resize.progress.is_none() {
        return false;
    }
    let Some(gap) = resize::gap(pod, container, observed, record) else { return false };
    let restarts = gap.from.is_some_and(|from| from.needs_restart(&gap.to, container.spec));
    if restarts {
        return container.kind != ContainerKind::Init;
    }
    needs.updates.push(gap);
    false
}

/// The last stage of a plan: what changes without a restart.
pub(super) fn stage(situation: &Situation<'_>, updates: Vec<Gap>, plan: &mut Plan) {
    let Situation { pod, observed, record, node, now, .. } = *situation;
    let up = observed.sandbox().is_some_and(Sandbox::is_running);
    if record.resize.progress.is_none() || !up {
        return;
    }
    let backoff = record.backoffs.get(backoff::RESIZE).filter(|backoff| backoff.is_waiting(Policy::SYNC, now));
    if let Some(backoff) = backoff {
        plan.wake_at(backoff.until(Policy::SYNC, now));
        return;
    }
    let (needed, last) = (resize::pod_cgroup(pod, observed, record, node), cgroup::pod_cgroup(pod, node));
    let mut track = Track::new();
    let less = |before: Option<i64>, after: i64| before.is_none_or(|before| before == 0 || before > after);
    let pod_memory = last.memory.filter(|limit| less(situation.cgroup.and_then(|set| set.memory), *limit));
    let shrinking = updates.iter().filter(|gap| gap.to.memory_limit > 0);
    let shrinking = shrinking.filter(|gap| less(gap.from.map(|from| from.memory_limit), gap.to.memory_limit));
    let containers: Vec<(String, i64)> = shrinking.map(|gap| (gap.container.clone(), gap.to.memory_limit)).collect();
    let differs = situation.cgroup != Some(&needed);
    if !containers.is_empty() || (pod_memory.is_some() && (differs || !updates.is_empty())) {
        let check = Action::CheckMemory { pod: pod_memory, containers };
        track.push(planned(check, "memory limits are about to shrink"));
    }
    if differs {
        track.push(planned(Action::SetPodLimits { cgroup: needed }, "the pod is resized"));
    }
    let mut updates = updates;
    // What shrinks makes room for what grows.
    updates.sort_by_key(|gap| gap.from.is_some_and(|from| gap.to.cpu_limit > from.cpu_limit));
    for gap in updates {
        let Some(container) = pod.container(&gap.container) else { continue };
        let resources = resources::of_container(pod, container.spec, node);
        let Gap { id, container, to, .. } = gap;
        track.push(planned(Action::UpdateContainer { id, container, to, resources }, "it is resized"));
    }
    plan.resized = track.is_empty() && resize::gaps(pod, observed, record).is_empty();
    plan.stage(vec![track]);
}
