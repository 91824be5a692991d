//! Changing what a pod and its containers may use while they run.

use std::time::Duration;

use longshore_core::cgroup::{self, PodCgroup};
use longshore_core::container::Resources;
use longshore_core::ports::stats::PodQuery;
use longshore_core::resize::Amounts;

use super::Step;
use crate::worker::Worker;

/// How long it may take to read what a pod uses.
const READ: Duration = Duration::from_secs(10);

/// Sees that no new memory limit is below what is in use (`validateMemoryResizeAction`).
pub(super) async fn check_memory(worker: &mut Worker, pod: Option<i64>, containers: &[(String, i64)]) -> Step {
    let facts = &worker.facts;
    let running = worker.observed.containers.iter().filter(|seen| seen.is_running());
    let query = PodQuery {
        pod: worker.pod.id.clone(),
        cgroup: cgroup::pod_cgroup(&worker.pod, facts).path(facts.cgroup_driver),
        sandbox_process: None,
        containers: running.map(|seen| (seen.name.clone(), seen.id.clone())).collect(),
    };
    let read = tokio::time::timeout(READ, worker.shared.ports.stats.pod(&query)).await;
    let usage = read.unwrap_or_default();
    let mut problems = Vec::new();
    if let Some(limit) = pod {
        match usage.usage.memory_usage {
            None => problems.push("missing pod memory usage".to_owned()),
            Some(used) if used >= limit.unsigned_abs() => {
                problems.push(format!("attempting to set pod memory limit ({limit}) below current usage ({used})"))
            }
            Some(_) => {}
        }
    }
    for (name, limit) in containers {
        let found = usage.containers.iter().find(|(known, _)| known == name);
        match found.and_then(|(_, usage)| usage.memory_usage) {
            None => problems.push(format!("missing container {name:?} memory usage")),
            Some(used) if used >= limit.unsigned_abs() => problems.push(format!(
                "attempting to set container {name:?} memory limit ({limit}) below current usage ({used})"
            )),
            Some(_) => {}
        }
    }
    match problems.as_slice() {
        [] => return Step::Done,
        [one] => worker.resize_failed(&format!("cannot decrease memory limits: {one}")),
        several => worker.resize_failed(&format!("cannot decrease memory limits: [{}]", several.join(", "))),
    }
    Step::Waits
}

pub(super) async fn set_pod_limits(worker: &mut Worker, cgroup: &PodCgroup) -> Step {
    match worker.shared.ports.files.prepare_cgroup(cgroup).await {
        Ok(()) => {
            worker.cgroup = Some(cgroup.clone());
            Step::Done
        }
        Err(error) => {
            worker.resize_failed(&error.to_string());
            Step::Waits
        }
    }
}

pub(super) async fn update_container(
    worker: &mut Worker,
    id: &str,
    name: &str,
    to: Amounts,
    resources: &Resources,
) -> Step {
    let updated = worker.shared.ports.runtime.update(id, resources).await;
    if updated.is_ok()
        && let Some(known) = worker.record.containers.get_mut(name).filter(|known| known.id.as_deref() == Some(id))
    {
        known.actuated = Some(to);
    }
    worker.look_at(id).await;
    match updated {
        Ok(()) => Step::Done,
        // One that ended meanwhile is made anew with its new size, if at all.
        Err(_) if !worker.observed.container(name).is_some_and(|seen| seen.id == id && seen.is_running()) => Step::Done,
        Err(error) => {
            worker.resize_failed(&error.to_string());
            Step::Waits
        }
    }
}
