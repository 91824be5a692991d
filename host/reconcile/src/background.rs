//! What takes long: stops with their preStop hooks, postStart hooks, pulls. Each runs in a task of its own and puts its
//! end into the worker's inbox; the worker never waits for one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1;
use longshore_core::credentials;
use longshore_core::event::EventType;
use longshore_core::hooks::{self, Hook};
use longshore_core::ports::events::EventSink;
use longshore_core::ports::exec::ExecRequest;
use longshore_core::ports::probes::{ProbeCall, ProbeOutcome, ProbeTarget};

use crate::inbox::Done;
use crate::node::{ImagePull, Ports};
use crate::worker::Worker;

/// What a stop leaves the processes after a preStop hook that took all the time (`minimumGracePeriodInSeconds`).
const MINIMUM_GRACE: Duration = Duration::from_secs(2);
/// How long a postStart hook may take: the kubelet waits without end, which holds up a pod forever.
const POST_START_LIMIT: Duration = Duration::from_secs(600);
/// Bytes of a hook's output that are kept for its event.
const HOOK_OUTPUT: usize = 4096;

/// Everything that a hook needs to run.
struct HookRun {
    ports: Ports,
    hook: Hook,
    target: ProbeTarget,
}

impl HookRun {
    fn new(worker: &Worker, hook: Hook, id: &str, container: &str) -> Self {
        let target = ProbeTarget {
            pod_uid: worker.pod.id.uid.clone(),
            namespace: worker.pod.id.namespace.clone(),
            pod: worker.pod.id.name.clone(),
            container: container.to_owned(),
            container_id: id.to_owned(),
            pod_ip: worker.pod_ips().first().copied(),
            ports: Vec::new(),
        };
        HookRun { ports: worker.shared.ports.clone(), hook, target }
    }

    /// Runs the hook within a time limit.
    async fn run(self, limit: Duration) -> Result<(), String> {
        match self.hook {
            Hook::None => Ok(()),
            Hook::Invalid { message } => Err(message),
            Hook::Sleep { seconds } => {
                tokio::time::sleep(Duration::from_secs(seconds).min(limit)).await;
                Ok(())
            }
            Hook::Exec { command } => {
                let shown = command.join(" ");
                let container_id = self.target.container_id.clone();
                let request = ExecRequest { container_id, command, timeout: limit, output_limit: HOOK_OUTPUT };
                match self.ports.runtime.exec(request).await {
                    Ok(output) if output.exit_code == Some(0) => Ok(()),
                    Ok(output) => {
                        let text = String::from_utf8_lossy(&output.output).into_owned();
                        match output.exit_code {
                            Some(code) => Err(format!(
                                "Exec lifecycle hook ([{shown}]) failed - error: command exited with {code}, message: {text:?}"
                            )),
                            None => Err(format!(
                                "Exec lifecycle hook ([{shown}]) failed - error: it did not end in time, message: {text:?}"
                            )),
                        }
                    }
                    Err(error) => Err(format!("Exec lifecycle hook ([{shown}]) failed - error: {error}")),
                }
            }
            Hook::Http { scheme, host, port, path, headers } => {
                let headers: Vec<_> = headers
                    .into_iter()
                    .map(|(name, value)| serde_json::json!({ "name": name, "value": value }))
                    .collect();
                let mut config = serde_json::json!({ "scheme": scheme.to_uppercase(), "port": port, "path": path, "httpHeaders": headers });
                if let Some(host) = host {
                    config["host"] = host.into();
                }
                let call = ProbeCall {
                    plugin: "http".to_owned(),
                    config: config.to_string(),
                    target: self.target,
                    budget: limit,
                };
                match self.ports.probes.check(call).await {
                    ProbeOutcome::Success { .. } | ProbeOutcome::Warning { .. } => Ok(()),
                    // Any answer will do for a hook (`runHTTPHandler` in pkg/kubelet/lifecycle/handlers.go).
                    ProbeOutcome::Failure { message } if message.contains("statuscode:") => Ok(()),
                    ProbeOutcome::Failure { message }
                    | ProbeOutcome::Error { message }
                    | ProbeOutcome::Fault { message } => {
                        Err(format!("HTTP lifecycle hook ({path}) failed - error: {message}"))
                    }
                }
            }
        }
    }
}

/// Runs a container's preStop hook and stops it, in the background; takes the place of a stop with more grace.
pub(crate) fn stop(worker: &mut Worker, id: &str, name: &str, grace_seconds: i64, why: &str) {
    let is_new = !worker.busy.stopping.contains_key(id);
    if let Some(slower) = worker.stops.remove(id) {
        slower.abort();
    }
    if is_new {
        let message = if why.starts_with("Container ") { why.to_owned() } else { format!("Stopping container {name}") };
        worker.event(Some(name), EventType::Normal, "Killing", &message);
    }
    worker.stopping(id, grace_seconds);
    let hook = worker.pod.container(name).and_then(|container| hooks::pre_stop(container.spec));
    let hook = hook.filter(|_| grace_seconds > 0 && is_new).map(|hook| HookRun::new(worker, hook, id, name));
    let grace = Duration::from_secs(u64::try_from(grace_seconds).unwrap_or(0));
    let (ports, inbox, pod, name, id) =
        (worker.shared.ports.clone(), worker.inbox.clone(), worker.pod.id.clone(), name.to_owned(), id.to_owned());
    let key = id.clone();
    let task = tokio::spawn(async move {
        let mut left = grace;
        if let Some(hook) = hook {
            let begun = Instant::now();
            let ended = tokio::time::timeout(grace, hook.run(grace)).await;
            if let Ok(Err(message)) = ended {
                ports.events.record(&pod, Some(&name), EventType::Warning, "FailedPreStopHook", &message);
            }
            left = grace.saturating_sub(begun.elapsed()).max(MINIMUM_GRACE);
        }
        let error = ports.runtime.stop(&id, left).await.err().map(|error| error.to_string());
        if error.is_some() {
            // Not at once again: the worker plans the same stop as soon as this one is told to have ended.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        inbox.put(|wakes| wakes.done.push(Done::Stop { id, error }));
    });
    worker.stops.insert(key, task);
}

/// Runs a container's postStart hook in the background, if it has one.
pub(crate) fn post_start(worker: &mut Worker, id: &str, name: &str) {
    let Some(hook) = worker.pod.container(name).and_then(|container| hooks::post_start(container.spec)) else { return };
    worker.busy.post_start.insert(id.to_owned());
    let run = HookRun::new(worker, hook, id, name);
    let (inbox, id, container) = (worker.inbox.clone(), id.to_owned(), name.to_owned());
    tokio::spawn(async move {
        let error = match tokio::time::timeout(POST_START_LIMIT, run.run(POST_START_LIMIT)).await {
            Ok(ended) => ended.err(),
            Err(_) => Some(format!("PostStart hook did not end within {} s", POST_START_LIMIT.as_secs())),
        };
        inbox.put(|wakes| wakes.done.push(Done::PostStart { id, container, error }));
    });
}

/// Pulls a container's image in the background.
pub(crate) fn pull(worker: &mut Worker, name: &str, image: &str, secrets: &[Arc<v1::Secret>]) {
    if !worker.busy.pulling.insert(name.to_owned()) {
        return;
    }
    worker.event(Some(name), EventType::Normal, "Pulling", &format!("Pulling image {image:?}"));
    let mut keys = credentials::for_image(image, secrets);
    let (shared, inbox, pod) = (worker.shared.clone(), worker.inbox.clone(), worker.pod.id.clone());
    let (container, image) = (name.to_owned(), image.to_owned());
    let service_account = worker.pod.spec().service_account_name.clone().unwrap_or_default();
    tokio::spawn(async move {
        let begun = Instant::now();
        // May run a credential helper or a provider, which takes its time.
        keys.extend(
            (shared.ports.credentials)(ImagePull { image: image.clone(), pod: pod.clone(), service_account }).await,
        );
        let result = shared.puller.pull(&image, keys, &pod.uid).await;
        if let Ok(pulled) = &result {
            let took = begun.elapsed().as_secs_f64();
            let message =
                format!("Successfully pulled image {image:?} in {took:.3}s. Image size: {} bytes.", pulled.size);
            shared.ports.events.record(&pod, Some(&container), EventType::Normal, "Pulled", &message);
        }
        inbox.put(|wakes| wakes.done.push(Done::Pull { container, image, result }));
    });
}
