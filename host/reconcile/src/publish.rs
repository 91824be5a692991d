//! What a worker publishes: the pod with its status, and its way to readiness for `longshore why`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longshore_core::observed::Container;
use longshore_core::plan::Plan;
use longshore_core::pod::CONFIG_SEEN;
use longshore_core::ports::runtime::LogOptions;
use longshore_core::view::{PodView, Standing, Step, StepState};
use longshore_core::why::{self, Journey};

use crate::worker::Worker;

/// Since when each step is in its state, where that is known.
pub(crate) type Steps = BTreeMap<String, (StepState, Option<Timestamp>)>;

/// Lines and bytes of a log that stand in for a termination message (`FallbackToLogsOnError`).
const FALLBACK_LINES: u64 = 80;
const FALLBACK_BYTES: usize = 2048;

/// A pod's published state.
pub(crate) fn view(worker: &Worker, plan: &Plan, status: v1::PodStatus, since: &mut Steps) -> PodView {
    let mut object = (*worker.wanted).clone();
    if let Some(deletion) = worker.pod.deletion {
        object.metadata.deletion_timestamp.get_or_insert(Time(deletion.requested_at));
        object.metadata.deletion_grace_period_seconds.get_or_insert(deletion.grace_seconds);
    }
    let annotations = object.metadata.annotations.get_or_insert_default();
    annotations.insert(CONFIG_SEEN.to_owned(), worker.seen.to_string());
    if let Some(start) = worker.record.start_time {
        object.metadata.creation_timestamp.get_or_insert(Time(start));
    }
    let pulls = worker.busy.pulling.iter().filter_map(|(name, image)| {
        let progress = worker.shared.puller.progress(image)?;
        Some((name.clone(), (image.clone(), progress.bytes, progress.since.elapsed())))
    });
    let mut steps = why::journey(&Journey {
        pod: &worker.pod,
        observed: &worker.observed,
        record: &worker.record,
        plan,
        status: &status,
        pulls: &pulls.collect(),
        prepared: worker.files.is_some(),
        blocked: worker.blocked(),
    });
    tell_times(worker, &mut steps, since);
    object.status = Some(status);
    let sandbox = worker.observed.sandbox().filter(|sandbox| sandbox.is_running());
    let standing = Standing { blocked: worker.blocked().map(str::to_owned), busy: worker.busy.clone() };
    PodView {
        id: worker.pod.id.clone(),
        source: worker.pod.source.clone(),
        object,
        sandbox: sandbox.map(|sandbox| sandbox.id.clone()),
        steps,
        probes: Vec::new(),
        standing,
    }
}

/// Since when each step is as it is. What this agent finds when it takes a pod on is so since before it was there.
fn tell_times(worker: &Worker, steps: &mut [Step], since: &mut Steps) {
    let is_found = since.is_empty() && worker.observed.sandbox().is_some();
    let now = (!is_found).then(Timestamp::now);
    for step in steps {
        let known = since.get(&step.name).filter(|(state, _)| *state == step.state).map(|(_, at)| *at);
        // The sandbox was made as well before this is told, and has a time of its own.
        let is_prepared = step.name == "volumes" && step.state == StepState::Done && !is_found;
        let at = known.unwrap_or_else(|| worker.files_since.filter(|_| is_prepared).or(now));
        since.insert(step.name.clone(), (step.state, at));
        step.since = step.since.or(at);
    }
}

/// What a container left behind when it ended: its termination message, or the end of its log where its policy says so
/// (`getTerminationMessage` in pkg/kubelet/kuberuntime/kuberuntime_container.go).
pub(crate) async fn termination_message(worker: &Worker, seen: &Container, limit: usize) -> String {
    if let Some(file) = &seen.termination_message_file {
        let message = worker.shared.ports.files.read_termination_message(std::path::Path::new(file), limit).await;
        if !message.is_empty() {
            return message;
        }
    }
    let Some(spec) = worker.pod.container(&seen.name).map(|container| container.spec) else { return String::new() };
    let falls_back = spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    let failed = seen.exit().is_some_and(|exit| exit.code != 0);
    if falls_back && failed { log_end(worker, seen).await } else { String::new() }
}

async fn log_end(worker: &Worker, seen: &Container) -> String {
    use futures::StreamExt;
    let options = LogOptions { tail: Some(FALLBACK_LINES), ..LogOptions::default() };
    let mut chunks = worker.shared.ports.runtime.logs(&seen.id, options);
    let mut text: Vec<u8> = Vec::new();
    let read = async {
        while let Some(Ok(chunk)) = chunks.next().await {
            text.extend_from_slice(&chunk.data);
            let surplus = text.len().saturating_sub(FALLBACK_BYTES);
            text.drain(..surplus);
        }
    };
    // Dropping the stream at the limit loses nothing but the rest of the log.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), read).await;
    String::from_utf8_lossy(&text).into_owned()
}
