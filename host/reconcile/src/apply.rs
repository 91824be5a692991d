//! Does what a plan says: one arm per action, one port call per arm.
//!
//! Holds no policy. What takes long is started in the background ([`crate::background`]) and its end wakes the worker.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use longshore_core::action::{Action, Planned, Stage, Track};
use longshore_core::cgroup;
use longshore_core::container_config::{self, ContainerInput};
use longshore_core::environment::{self, EnvironmentContext};
use longshore_core::event::EventType;
use longshore_core::observed::{Container, ContainerState, Observation, Sandbox};
use longshore_core::plan::Plan;
use longshore_core::ports::files::{FilesError, PodFilesSpec};
use longshore_core::ports::runtime::RuntimeError;
use longshore_core::restart;
use longshore_core::volume::{self, FsGroup, ObjectKind, Objects};
use longshore_core::{credentials, dns, sandbox_config, security};

use crate::background;
use crate::inbox::Failure;
use crate::worker::{Worker, in_seconds};

/// How applying a plan ended.
pub(crate) enum Outcome {
    /// All of it was done: plan again.
    Done,
    /// Something must wait, or goes on in the background.
    Waits,
    /// The pod is gone.
    Gone,
}

/// How one action ended.
pub(crate) enum Step {
    Done,
    Waits,
    Gone,
}

/// Applies a plan, stage after stage. A failure of the pod as a whole ends it, a failure of one container ends that
/// container's part of it.
pub(crate) async fn apply(worker: &mut Worker, plan: &Plan) -> Outcome {
    let mut waits = false;
    let mut skipped: Vec<String> = Vec::new();
    for stage in &plan.stages {
        let (first, rest) = overlap(stage);
        if let Some((start, creation)) = first {
            match start_beside(worker, start, creation).await {
                (true, made) => {
                    if !made {
                        waits = true;
                        skipped.extend(
                            creation.iter().filter_map(|planned| planned.action.container().map(str::to_owned)),
                        );
                    }
                }
                (false, _) => return Outcome::Waits,
            }
        }
        for track in rest {
            for planned in track {
                let container = planned.action.container().map(str::to_owned);
                if container.as_ref().is_some_and(|name| skipped.contains(name)) {
                    break;
                }
                match act(worker, planned).await {
                    Step::Done => {}
                    Step::Gone => return Outcome::Gone,
                    Step::Waits => {
                        waits = true;
                        match container {
                            Some(name) => skipped.push(name),
                            None => return Outcome::Waits,
                        }
                        break;
                    }
                }
            }
        }
    }
    if waits { Outcome::Waits } else { Outcome::Done }
}

/// A stage in which a sandbox starts while its first container is made, taken apart.
fn overlap(stage: &Stage) -> (Option<(&Planned, &Track)>, Vec<&Track>) {
    if let [start, creation] = stage.as_slice()
        && let [planned] = start.as_slice()
        && matches!(planned.action, Action::StartSandbox { .. })
    {
        return (Some((planned, creation)), Vec::new());
    }
    (None, stage.iter().collect())
}

/// Starts the sandbox and makes a container at the same time. Says whether the sandbox runs, and whether the container
/// was made.
async fn start_beside(worker: &mut Worker, start: &Planned, creation: &Track) -> (bool, bool) {
    let Some(id) = worker.observed.sandbox().map(|sandbox| sandbox.id.clone()) else { return (false, false) };
    let runtime = worker.shared.ports.runtime.clone();
    let started = {
        let id = id.clone();
        tokio::spawn(async move {
            runtime.start(&id).await?;
            runtime.inspect(&id).await
        })
    };
    let mut made = true;
    for planned in creation {
        if !matches!(act(worker, planned).await, Step::Done) {
            made = false;
            break;
        }
    }
    let seen = match started.await {
        Ok(seen) => seen,
        Err(_) => Err(RuntimeError::Failed { operation: "start sandbox", message: "its task failed".to_owned() }),
    };
    tracing::debug!(pod = %worker.pod.id, "{}: {}", start.action, start.why);
    (matches!(sandbox_started(worker, &id, seen).await, Step::Done), made)
}

async fn act(worker: &mut Worker, planned: &Planned) -> Step {
    tracing::debug!(pod = %worker.pod.id, container = planned.action.container(), "{}: {}", planned.action, planned.why);
    match &planned.action {
        Action::Prepare => worker.prepare().await,
        Action::CreateSandbox { attempt } => create_sandbox(worker, *attempt).await,
        Action::StartSandbox { .. } => start_sandbox(worker).await,
        Action::EnsureImage { container } => ensure_image(worker, container).await,
        Action::CreateContainer { container, attempt } => create_container(worker, container, *attempt).await,
        Action::StartContainer { container } => start_container(worker, container).await,
        Action::StopContainer { id, container, grace_seconds } => {
            background::stop(worker, id, container, *grace_seconds, &planned.why);
            Step::Waits
        }
        Action::StopSandbox { id } => {
            let stopped = worker.shared.ports.runtime.stop(id, std::time::Duration::from_secs(1)).await;
            settle(worker, stopped, id, "FailedKillPod").await
        }
        Action::RemoveContainer { id, container } => {
            let attempt = worker.observed.containers.iter().find(|seen| seen.id == *id).map_or(0, |seen| seen.attempt);
            worker.shared.ports.files.unlink_log(&worker.pod.id, container, attempt, id).await;
            let removed = worker.shared.ports.runtime.remove(id).await;
            settle_removal(worker, removed, id)
        }
        Action::RemoveSandbox { id } => {
            let removed = worker.shared.ports.runtime.remove(id).await;
            settle_removal(worker, removed, id)
        }
        Action::Release => release(worker).await,
    }
}

async fn settle(worker: &mut Worker, result: Result<(), RuntimeError>, id: &str, event: &str) -> Step {
    match result {
        Ok(()) => {
            worker.look_at(id).await;
            Step::Done
        }
        Err(error) => {
            worker.event(None, EventType::Warning, event, &error.to_string());
            worker.failed("pod", "ContainerCreating", &error.to_string());
            worker.look_at(id).await;
            Step::Waits
        }
    }
}

fn settle_removal(worker: &mut Worker, result: Result<(), RuntimeError>, id: &str) -> Step {
    match result {
        Ok(()) => {
            worker.observed.forget(id);
            Step::Done
        }
        Err(error) => {
            tracing::warn!(pod = %worker.pod.id, "{id} could not be removed: {error}; trying again later");
            worker.inbox_later();
            Step::Waits
        }
    }
}

async fn release(worker: &mut Worker) -> Step {
    let files = worker.shared.ports.files.clone();
    let cgroup = cgroup::pod_cgroup(&worker.pod, &worker.shared.facts);
    let released: Result<(), FilesError> = async {
        files.release(&worker.pod.id).await?;
        files.remove_cgroup(&cgroup).await?;
        files.forget(&worker.pod.id.uid).await
    }
    .await;
    match released {
        Ok(()) => Step::Gone,
        Err(error) => {
            tracing::warn!(pod = %worker.pod.id, "what the pod had on the disk cannot be removed: {error}; trying again");
            worker.inbox_later();
            Step::Waits
        }
    }
}

async fn create_sandbox(worker: &mut Worker, attempt: u32) -> Step {
    let config = match sandbox_config::build(&worker.pod, &worker.shared.facts, attempt) {
        Ok(config) => config,
        Err(error) => return sandbox_failed(worker, &error.to_string()),
    };
    if attempt > 0 {
        worker.event(
            None,
            EventType::Normal,
            "SandboxChanged",
            "Pod sandbox changed, it will be killed and re-created.",
        );
    }
    match worker.shared.ports.runtime.create_sandbox(&config).await {
        Ok(id) => {
            worker.record.initialized = false;
            worker.observed.update(Observation::Sandbox(Sandbox {
                id,
                pod: worker.pod.id.clone(),
                attempt,
                hash: worker.pod.sandbox_hash.clone(),
                created_at: jiff::Timestamp::now(),
                state: longshore_core::observed::SandboxState::Created,
                ips: Vec::new(),
                pid: None,
            }));
            Step::Done
        }
        Err(error) => sandbox_failed(worker, &error.to_string()),
    }
}

fn sandbox_failed(worker: &mut Worker, message: &str) -> Step {
    let text = format!("Failed to create pod sandbox: {message}");
    worker.event(None, EventType::Warning, "FailedCreatePodSandBox", &text);
    worker.failed("pod", "ContainerCreating", &text);
    Step::Waits
}

async fn start_sandbox(worker: &mut Worker) -> Step {
    let Some(id) = worker.observed.sandbox().map(|sandbox| sandbox.id.clone()) else { return Step::Waits };
    let runtime = worker.shared.ports.runtime.clone();
    let seen = match runtime.start(&id).await {
        Ok(()) => runtime.inspect(&id).await,
        Err(error) => Err(error),
    };
    sandbox_started(worker, &id, seen).await
}

async fn sandbox_started(worker: &mut Worker, id: &str, seen: Result<Option<Observation>, RuntimeError>) -> Step {
    match seen {
        Ok(Some(seen)) => worker.observed.update(seen),
        Ok(None) => {
            worker.observed.forget(id);
            return sandbox_failed(worker, "it went away while it was started");
        }
        Err(error) => {
            worker.look_at(id).await;
            return sandbox_failed(worker, &error.to_string());
        }
    }
    worker.record.backoffs.remove("pod");
    let hosts = dns::hosts_file(&worker.pod, &worker.shared.facts, &worker.pod_ips());
    match worker.shared.ports.files.write_hosts(&worker.pod.id, &hosts).await {
        Ok(()) => Step::Done,
        Err(error) => sandbox_failed(worker, &error.to_string()),
    }
}

async fn ensure_image(worker: &mut Worker, container: &str) -> Step {
    let Some(spec) = worker.pod.container(container).map(|container| container.spec) else { return Step::Waits };
    let reference = spec.image.clone().unwrap_or_default();
    if worker.images.get(container).is_some_and(|(known, _)| *known == reference) {
        return Step::Done;
    }
    let policy = spec.image_pull_policy.clone().unwrap_or_else(|| "IfNotPresent".to_owned());
    if let Err(message) = credentials::parse_image(&reference) {
        let message = format!("Failed to apply default image tag {reference:?}: {message}");
        return image_failed(worker, container, &Failure { reason: "InvalidImageName", message });
    }
    if policy != "Always" {
        match worker.shared.ports.runtime.image(&reference).await {
            Ok(Some(image)) => {
                let message = format!("Container image {reference:?} already present on machine");
                worker.event(Some(container), EventType::Normal, "Pulled", &message);
                worker.record.backoffs.remove(&format!("image/{reference}"));
                worker.images.insert(container.to_owned(), (reference, image));
                return Step::Done;
            }
            Ok(None) if policy == "Never" => {
                let message = format!("Container image {reference:?} is not present with pull policy of Never");
                return image_failed(worker, container, &Failure { reason: "ErrImageNeverPull", message });
            }
            Ok(None) => {}
            Err(error) => {
                let message = format!("Failed to inspect image {reference:?}: {error}");
                return image_failed(worker, container, &Failure { reason: "ImageInspectError", message });
            }
        }
    }
    let secrets = pull_secrets(worker).await;
    background::pull(worker, container, &reference, &secrets);
    Step::Waits
}

/// An image that cannot be had without any pull: looked for again as anything that failed, not as a pull.
fn image_failed(worker: &mut Worker, container: &str, failure: &Failure) -> Step {
    let event = if failure.reason == "ErrImageNeverPull" { "ErrImageNeverPull" } else { "Failed" };
    worker.event(Some(container), EventType::Warning, event, &failure.message);
    worker.failed(&format!("create/{container}"), failure.reason, &failure.message);
    Step::Waits
}

async fn pull_secrets(worker: &Worker) -> Vec<Arc<k8s_openapi::api::core::v1::Secret>> {
    let mut secrets = Vec::new();
    for name in volume::pull_secrets(&worker.pod) {
        match worker.shared.ports.objects.secret(&worker.pod.id.namespace, &name).await {
            Ok(Some(secret)) => secrets.push(secret),
            Ok(None) => {
                let message = format!(
                    "Unable to retrieve some image pull secrets ({name}); attempting to pull the image may not succeed."
                );
                worker.event(None, EventType::Warning, "FailedToRetrieveImagePullSecret", &message);
            }
            Err(error) => tracing::warn!(pod = %worker.pod.id, "{error}"),
        }
    }
    secrets
}

async fn create_container(worker: &mut Worker, name: &str, attempt: u32) -> Step {
    match make_container(worker, name, attempt).await {
        Ok(made) => {
            worker.observed.update(Observation::Container(made));
            if let Some(known) = worker.record.containers.get_mut(name) {
                if let Some(exit) = known.exit_or_unknown(jiff::Timestamp::now()) {
                    known.delayed_restarts = restart::counted_restarts(known, &exit).saturating_add(1);
                }
            }
            worker.event(Some(name), EventType::Normal, "Created", &format!("Created container: {name}"));
            Step::Done
        }
        Err(failure) => {
            worker.images.remove(name);
            container_failed(worker, name, &failure)
        }
    }
}

fn container_failed(worker: &mut Worker, name: &str, failure: &Failure) -> Step {
    worker.event(Some(name), EventType::Warning, "Failed", &format!("Error: {}", failure.message));
    worker.failed(&format!("create/{name}"), failure.reason, &failure.message);
    Step::Waits
}

/// Makes a container; what is known of it then needs no look.
async fn make_container(worker: &mut Worker, name: &str, attempt: u32) -> Result<Container, Failure> {
    let config_error = |message: String| Failure { reason: "CreateContainerConfigError", message };
    let create_error = |message: String| Failure { reason: "CreateContainerError", message };
    let shared = worker.shared.clone();
    let pod = worker.pod.clone();
    let Some(container) = pod.container(name) else {
        return Err(config_error(format!("the pod has no container {name:?}")));
    };
    let Some((_, image)) = worker.images.get(name).cloned() else {
        return Err(create_error("its image went away".to_owned()));
    };
    let Some(sandbox) = worker.observed.sandbox().map(|sandbox| sandbox.id.clone()) else {
        return Err(create_error("its sandbox went away".to_owned()));
    };
    worker.look_up_objects().await.map_err(config_error)?;
    let pod_ips = worker.pod_ips();
    let services = BTreeMap::new();
    let context = EnvironmentContext {
        node: &shared.facts,
        objects: &worker.objects,
        pod_ips: &pod_ips,
        host_ips: &shared.facts.ips,
        services: &services,
    };
    let env = environment::build(&pod, container, &context).map_err(|error| config_error(error.to_string()))?;
    let Some(files) = worker.files.clone() else { return Err(create_error("its volumes are not prepared".to_owned())) };
    let wanted = container_config::sub_paths(&pod, container, &shared.facts, &env, &files)
        .map_err(|error| config_error(error.to_string()))?;
    let mut sub_paths = BTreeMap::new();
    for sub_path in &wanted {
        let path = shared.ports.files.sub_path(&pod.id, sub_path).await;
        sub_paths.insert(sub_path.index, path.map_err(|error| config_error(error.to_string()))?);
    }
    let mut seccomp_profiles = BTreeMap::new();
    for profile in security::localhost_profiles(&pod) {
        // One that cannot be read is left out: only the container that uses it fails, and says why.
        match shared.ports.files.seccomp_profile(&profile).await {
            Ok(text) => {
                seccomp_profiles.insert(profile, text);
            }
            Err(error) => tracing::warn!(pod = %pod.id, "{error}"),
        }
    }
    let termination = shared.ports.files.termination_file(&pod.id, name, attempt).await;
    let termination = termination.map_err(|error| create_error(error.to_string()))?;
    let log_path = shared.ports.files.log_path(&pod.id, name, attempt);
    let config = container_config::build(&ContainerInput {
        pod: &pod,
        container,
        node: &shared.facts,
        attempt,
        sandbox_id: &sandbox,
        image: &image,
        env: &env,
        files: &files,
        sub_paths: &sub_paths,
        seccomp_profiles: &seccomp_profiles,
        termination_file: Some(&termination),
        log_path: &log_path,
    })
    .map_err(|error| config_error(error.to_string()))?;
    let id = shared.ports.runtime.create_container(&config).await.map_err(|error| create_error(error.to_string()))?;
    Ok(Container {
        id,
        pod: pod.id.clone(),
        name: name.to_owned(),
        kind: container.kind,
        attempt,
        hash: pod.hashes.get(name).cloned().unwrap_or_default(),
        sandbox_id: sandbox,
        image: container.spec.image.clone().unwrap_or_default(),
        image_id: format!("docker://{}", image.id),
        created_at: jiff::Timestamp::now(),
        state: ContainerState::Created,
        runtime_log: None,
        termination_message_file: Some(termination.display().to_string()),
        grace_seconds: pod.spec().termination_grace_period_seconds,
    })
}

async fn start_container(worker: &mut Worker, name: &str) -> Step {
    let Some(id) = worker.observed.container(name).map(|seen| seen.id.clone()) else { return Step::Waits };
    let started = worker.shared.ports.runtime.start(&id).await;
    worker.look_at(&id).await;
    if let Err(error) = started {
        worker.event(Some(name), EventType::Warning, "Failed", &format!("Error: {error}"));
        // A start that left an exit behind is restarted like any other end; one that left nothing is tried again.
        let ended = worker.observed.container(name).is_some_and(|seen| seen.exit().is_some());
        if !ended {
            worker.failed(&format!("create/{name}"), "RunContainerError", &error.to_string());
        }
        return Step::Waits;
    }
    worker.record.backoffs.remove(&format!("create/{name}"));
    worker.images.remove(name);
    worker.event(Some(name), EventType::Normal, "Started", &format!("Started container {name}"));
    let seen = worker.observed.container(name).cloned();
    if let Some(seen) = &seen
        && let Some(log) = &seen.runtime_log
    {
        let linked = worker.shared.ports.files.link_log(&worker.pod.id, name, seen.attempt, &id, Path::new(log)).await;
        if let Err(error) = linked {
            tracing::warn!(pod = %worker.pod.id, container = name, "the log cannot be linked: {error}");
        }
    }
    background::post_start(worker, &id, name);
    Step::Done
}

impl Worker {
    /// Makes the pod's folder, cgroup and volumes, or brings them up to date.
    async fn prepare_files(&mut self) -> Result<(), FilesError> {
        let shared = self.shared.clone();
        let volume = |volume: String, message: String| FilesError::Volume { volume, message };
        let of_object = |message: String| FilesError::Volume { volume: "objects".to_owned(), message };
        self.look_up_objects().await.map_err(of_object)?;
        let volumes = volume::resolve(&self.pod, &shared.facts, &self.objects, &self.pod_ips())
            .map_err(|problem| volume(problem.volume, problem.message))?;
        let security = self.pod.spec().security_context.as_ref();
        let fs_group = security.and_then(|security| {
            Some(FsGroup {
                gid: u32::try_from(security.fs_group?).ok()?,
                on_root_mismatch: security.fs_group_change_policy.as_deref() == Some("OnRootMismatch"),
            })
        });
        shared.ports.files.prepare_cgroup(&cgroup::pod_cgroup(&self.pod, &shared.facts)).await?;
        let spec = PodFilesSpec {
            pod: self.pod.id.clone(),
            volumes,
            fs_group,
            resolv_conf: dns::resolv_conf(&self.pod, &shared.facts),
        };
        let files = shared.ports.files.prepare(&spec).await?;
        let hosts = dns::hosts_file(&self.pod, &shared.facts, &self.pod_ips());
        shared.ports.files.write_hosts(&self.pod.id, &hosts).await?;
        self.files = Some(files);
        Ok(())
    }

    /// [`Action::Prepare`]; also called when objects or the pod's fields changed.
    pub(crate) async fn prepare(&mut self) -> Step {
        match self.prepare_files().await {
            Ok(()) => {
                self.record.backoffs.remove("pod");
                Step::Done
            }
            Err(error) => {
                let message = format!("MountVolume.SetUp failed for {error}");
                self.event(None, EventType::Warning, "FailedMount", &message);
                self.failed("pod", "ContainerCreating", &message);
                Step::Waits
            }
        }
    }

    /// Looks up the ConfigMaps and Secrets that the pod refers to.
    async fn look_up_objects(&mut self) -> Result<(), String> {
        let store = self.shared.ports.objects.clone();
        let namespace = self.pod.id.namespace.clone();
        let mut objects = Objects::default();
        for reference in volume::references(&self.pod) {
            match reference.kind {
                ObjectKind::ConfigMap if !objects.config_maps.contains_key(&reference.name) => {
                    let found =
                        store.config_map(&namespace, &reference.name).await.map_err(|error| error.to_string())?;
                    objects.config_maps.extend(found.map(|found| (reference.name.clone(), found)));
                }
                ObjectKind::Secret if !objects.secrets.contains_key(&reference.name) => {
                    let found = store.secret(&namespace, &reference.name).await.map_err(|error| error.to_string())?;
                    objects.secrets.extend(found.map(|found| (reference.name.clone(), found)));
                }
                ObjectKind::ConfigMap | ObjectKind::Secret => {}
            }
        }
        self.objects = objects;
        Ok(())
    }

    /// Comes back to what failed, in a while.
    fn inbox_later(&self) {
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            inbox.put(|_| {});
        });
    }

    /// Marks a container as being stopped.
    pub(crate) fn stopping(&mut self, id: &str, grace_seconds: i64) {
        self.busy.stopping.insert(id.to_owned(), in_seconds(grace_seconds));
    }
}
