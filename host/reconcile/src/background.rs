//! What takes long: stops with their preStop hooks, postStart hooks, pulls, unpacking images. Each runs in a task of its own and puts its
//! end into the worker's inbox; the worker never waits for one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1;
use longshore_core::credentials;
use longshore_core::event::EventType;
use longshore_core::hooks::{self, Hook};
use longshore_core::pod::PodId;
use longshore_core::ports::events::EventSink;
use longshore_core::ports::exec::{ExecRequest, Purpose};
use longshore_core::ports::probes::{ProbeCall, ProbeOutcome, ProbeTarget};
use longshore_core::ports::runtime::Image;

use crate::inbox::{Done, Fetched};
use crate::node::{ImagePull, Ports};
use crate::worker::Worker;

/// What a stop leaves the processes, however little is left of the time (`minimumGracePeriodInSeconds`).
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

    /// Whose hook it is, as messages say it.
    fn whose(&self) -> String {
        format!("for Container {:?} in Pod {:?}", self.target.container, self.pod().in_messages())
    }

    fn pod(&self) -> PodId {
        let ProbeTarget { pod, namespace, pod_uid, .. } = self.target.clone();
        PodId { namespace, name: pod, uid: pod_uid }
    }

    /// Runs the hook within a time limit.
    async fn run(self, limit: Duration) -> Result<(), String> {
        let whose = self.whose();
        match &self.hook {
            Hook::None => Ok(()),
            Hook::Invalid { message } => Err(message.clone()),
            Hook::Sleep { seconds } => {
                tokio::time::sleep(Duration::from_secs(*seconds).min(limit)).await;
                Ok(())
            }
            Hook::Exec { command } => {
                let (shown, command) = (command.join(" "), command.clone());
                let container_id = self.target.container_id.clone();
                let (output_limit, purpose) = (HOOK_OUTPUT, Purpose::Hook);
                let request = ExecRequest { container_id, command, timeout: limit, output_limit, purpose };
                match self.ports.runtime.exec(request).await {
                    Ok(output) if output.exit_code == Some(0) => Ok(()),
                    Ok(output) => {
                        let text = String::from_utf8_lossy(&output.output).into_owned();
                        match output.exit_code {
                            Some(code) => Err(format!(
                                "Exec lifecycle hook ([{shown}]) {whose} failed - error: command '{shown}' exited with {code}, message: {text:?}"
                            )),
                            None => Err(format!(
                                "Exec lifecycle hook ([{shown}]) {whose} failed - error: it did not end in time, message: {text:?}"
                            )),
                        }
                    }
                    Err(error) => Err(format!("Exec lifecycle hook ([{shown}]) {whose} failed - error: {error}")),
                }
            }
            Hook::Http { path, .. } => {
                let Err(mut message) = self.ask(&self.hook, limit).await else { return Ok(()) };
                if let Some(plain) = hooks::without_tls(&self.hook, &message) {
                    match self.ask(&plain, limit).await {
                        Ok(()) => {
                            self.fell_back(&plain);
                            return Ok(());
                        }
                        Err(again) => message = format!("{message}; without TLS: {again}"),
                    }
                }
                Err(format!("HTTP lifecycle hook ({path}) {whose} failed - error: {message}"))
            }
        }
    }

    /// Makes the request of an HTTP hook.
    async fn ask(&self, hook: &Hook, limit: Duration) -> Result<(), String> {
        let Hook::Http { scheme, host, port, path, headers } = hook else { return Ok(()) };
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| serde_json::json!({ "name": name, "value": value })).collect();
        let mut config =
            serde_json::json!({ "scheme": scheme.to_uppercase(), "port": port, "path": path, "httpHeaders": headers });
        if let Some(host) = host {
            config["host"] = host.as_str().into();
        }
        let call = ProbeCall {
            plugin: "http".to_owned(),
            config: config.to_string(),
            target: self.target.clone(),
            budget: limit,
        };
        match self.ports.probes.check(call).await.outcome {
            ProbeOutcome::Success { .. } | ProbeOutcome::Warning { .. } => Ok(()),
            // Any answer will do for a hook (`runHTTPHandler` in pkg/kubelet/lifecycle/handlers.go).
            ProbeOutcome::Failure { message } if message.contains("statuscode:") => Ok(()),
            ProbeOutcome::Failure { message } | ProbeOutcome::Error { message } | ProbeOutcome::Fault { message } => {
                Err(message)
            }
        }
    }

    /// Says that an https hook was answered without TLS only.
    fn fell_back(&self, plain: &Hook) {
        let Hook::Http { host, port, .. } = plain else { return };
        let target = &self.target;
        let host = match (host, target.pod_ip) {
            (Some(host), _) => format!("{host}:{port}"),
            (None, Some(ip)) => SocketAddr::new(ip, *port).to_string(),
            (None, None) => format!(":{port}"),
        };
        let message = format!("request to HTTPS lifecycle hook {host} got HTTP response, retry with HTTP succeeded");
        let (kind, reason) = (EventType::Warning, "LifecycleHTTPFallback");
        self.ports.events.record(&self.pod(), Some(&target.container), kind, reason, &message);
    }
}

/// Runs a container's preStop hook, waits until those of `after` have ended, and stops it, in the background and within
/// one grace period, without the hook where that is none; takes the place of a stop with more grace. As `killContainer` of
/// pkg/kubelet/kuberuntime/kuberuntime_container.go.
pub(crate) fn stop(
    worker: &mut Worker,
    id: &str,
    name: &str,
    grace_seconds: i64,
    after: &[String],
    told: Option<&str>,
) {
    let is_new = !worker.busy.stopping.contains_key(id);
    if let Some(slower) = worker.stops.remove(id) {
        slower.abort();
    }
    if is_new {
        let message = told.map_or_else(|| format!("Stopping container {name}"), str::to_owned);
        worker.event(Some(name), EventType::Normal, "Killing", &message);
    }
    worker.stopping(id, grace_seconds);
    let hook = worker.pod.container(name).and_then(|container| hooks::pre_stop(container.spec));
    let hook = hook.filter(|_| grace_seconds > 0 && is_new).map(|hook| HookRun::new(worker, hook, id, name));
    let grace = Duration::from_secs(u64::try_from(grace_seconds).unwrap_or(0));
    let (ports, inbox, pod, name, id) =
        (worker.shared.ports.clone(), worker.inbox.clone(), worker.pod.id.clone(), name.to_owned(), id.to_owned());
    let (key, after, mut running) = (id.clone(), after.to_vec(), worker.running.subscribe());
    let task = tokio::spawn(async move {
        let begun = tokio::time::Instant::now();
        // One that does not end in time is not waited for, and ends with its container.
        let mut hook = hook.map(|hook| Box::pin(hook.run(grace + MINIMUM_GRACE)));
        if let Some(hook) = &mut hook
            && let Ok(Err(message)) = tokio::time::timeout(grace, hook).await
        {
            tracing::warn!(%pod, container = name, "the preStop hook failed: {message}");
            ports.events.record(&pod, Some(&name), EventType::Warning, "FailedPreStopHook", "PreStopHook failed");
        }
        if !after.is_empty() {
            let turn = running
                .wait_for(|running| !running.contains(&id) || !after.iter().any(|other| running.contains(other)));
            // Its turn, too, when the time is over.
            let _ = tokio::time::timeout(grace.saturating_sub(begun.elapsed()), turn).await;
        }
        // Seconds that have begun are given, not taken, as there.
        let left = grace.saturating_sub(Duration::from_secs(begun.elapsed().as_secs()));
        let error = ports.runtime.stop(&id, left.max(MINIMUM_GRACE)).await.err().map(|error| error.to_string());
        drop(hook);
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

/// Pulls an image for a container in the background: its own, or a volume's.
pub(crate) fn pull(worker: &mut Worker, name: &str, image: &str, volume: Option<&str>, secrets: &[Arc<v1::Secret>]) {
    if worker.busy.pulling.contains_key(name) {
        return;
    }
    worker.busy.pulling.insert(name.to_owned(), image.to_owned());
    let fetched = Fetched::new(name, image, volume);
    worker.event(fetched.about(), EventType::Normal, "Pulling", &format!("Pulling image {image:?}"));
    let mut keys = credentials::for_image(image, secrets);
    let (shared, inbox, pod) = (worker.shared.clone(), worker.inbox.clone(), worker.pod.id.clone());
    let image = image.to_owned();
    let service_account = worker.pod.spec().service_account_name.clone().unwrap_or_default();
    tokio::spawn(async move {
        let begun = Instant::now();
        // May run a credential helper or a provider, which takes its time.
        keys.extend(
            (shared.ports.credentials)(ImagePull { image: image.clone(), pod: pod.clone(), service_account }).await,
        );
        let result = shared.puller.pull(&image, keys, &pod.uid).await;
        if let Ok(pulled) = &result {
            let message = pulled.message(&image, begun.elapsed());
            shared.ports.events.record(&pod, fetched.about(), EventType::Normal, "Pulled", &message);
        }
        let result = result.map(|pulled| pulled.image);
        inbox.put(|wakes| wakes.done.push(Done::Pull { fetched, result }));
    });
}

/// Unpacks the image of a volume in the background, for a runtime that does not mount it itself.
pub(crate) fn unpack(worker: &mut Worker, fetched: Fetched, image: &Image) {
    if worker.busy.pulling.contains_key(&fetched.container) {
        return;
    }
    worker.busy.pulling.insert(fetched.container.clone(), fetched.image.clone());
    let (shared, inbox, pod, id) =
        (worker.shared.clone(), worker.inbox.clone(), worker.pod.id.clone(), image.id.clone());
    tokio::spawn(async move {
        let volume = fetched.volume.clone().unwrap_or_default();
        let (files, runtime) = (&shared.ports.files, &shared.ports.runtime);
        let unpacked = async {
            // One at a time: disks and runtimes have better things to do.
            let _turn = shared.unpacking.lock().await;
            // Another pod may have had it unpacked meanwhile.
            let there = files.image_volume(&pod, &volume, &id).await.map_err(|error| error.to_string())?;
            if there.is_some() {
                return Ok(());
            }
            tracing::info!(%pod, image = fetched.image, "unpacking an image for a volume");
            let content = runtime.image_files(&id).await.map_err(|error| error.to_string())?;
            files.unpack_image(&id, content).await.map_err(|error| error.to_string())
        };
        let error = unpacked.await.err();
        inbox.put(|wakes| wakes.done.push(Done::Unpack { fetched, error }));
    });
}
