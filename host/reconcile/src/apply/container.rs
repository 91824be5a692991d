//! Making a container, and starting it.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1;
use longshore_core::container_config::{self, ContainerInput};
use longshore_core::environment::{self, EnvFiles, EnvironmentContext};
use longshore_core::event::EventType;
use longshore_core::observed::{Container, ContainerState, Observation};
use longshore_core::pod::PodId;
use longshore_core::ports::files::{FileStore, PodFiles};
use longshore_core::volume::{self, User};
use longshore_core::{backoff, cgroup, restart, security};

use super::{Step, image};
use crate::background;
use crate::inbox::Failure;
use crate::worker::Worker;

/// Bytes of a file that variables come from.
const ENV_FILE: usize = 1 << 20;
/// What a container that the runtime does not start is shown with (`ErrRunContainer`).
const RUN_ERROR: &str = "RunContainerError";

pub(super) async fn create_container(worker: &mut Worker, name: &str, attempt: u32) -> Step {
    let before = worker.record.newest(&worker.observed, name).zip(worker.pod.container(name));
    let is_another = before.is_some_and(|(before, container)| {
        restart::is_another(&worker.pod, container, before, worker.record.containers.get(name))
    });
    match make_container(worker, name, attempt).await {
        Ok(made) => {
            worker.observed.update(Observation::Container(made));
            if let Some(known) = worker.record.containers.get_mut(name)
                && let Some(exit) = known.followed(jiff::Timestamp::now())
            {
                known.delayed_restarts = restart::counted_with_next(known, &exit, is_another);
            }
            worker.event(Some(name), EventType::Normal, "Created", "Container created");
            Step::Done
        }
        Err(failure) => {
            worker.forget_images(name);
            container_failed(worker, name, &failure)
        }
    }
}

fn container_failed(worker: &mut Worker, name: &str, failure: &Failure) -> Step {
    worker.event(Some(name), EventType::Warning, "Failed", &format!("Error: {}", failure.message));
    worker.failed(&backoff::create(name), failure.reason, &failure.message);
    Step::Waits
}

/// Makes a container; what is known of it then needs no look.
async fn make_container(worker: &mut Worker, name: &str, attempt: u32) -> Result<Container, Failure> {
    let config_error = |message: String| Failure { reason: "CreateContainerConfigError", message };
    let create_error = |message: String| Failure { reason: "CreateContainerError", message };
    let (shared, facts) = (worker.shared.clone(), worker.facts.clone());
    let pod = worker.pod.clone();
    let Some(container) = pod.container(name) else {
        return Err(config_error(format!("the pod has no container {name:?}")));
    };
    let own = (name.to_owned(), container.spec.image.clone().unwrap_or_default());
    let Some(image) = worker.images.get(&own).cloned() else {
        return Err(create_error("its image went away".to_owned()));
    };
    let Some(sandbox) = worker.observed.sandbox().map(|sandbox| sandbox.id.clone()) else {
        return Err(create_error("its sandbox went away".to_owned()));
    };
    let unknown = worker.look_up_objects().await;
    let own = User::Container(name.to_owned());
    if let Some(unknown) = unknown.into_iter().find(|unknown| unknown.user == own) {
        return Err(config_error(unknown.message));
    }
    let Some(mut files) = worker.files.clone() else {
        return Err(create_error("its volumes are not prepared".to_owned()));
    };
    let env_files = read_env_files(worker, container.spec, &files).await;
    let pod_ips = worker.pod_ips();
    let services = worker.service_variables().await.map_err(config_error)?;
    let context = EnvironmentContext {
        node: &facts,
        objects: &worker.objects,
        pod_ips: &pod_ips,
        host_ips: &facts.ips,
        services: &services,
        files: &env_files,
    };
    let env =
        environment::build(&worker.as_told(), container, &context).map_err(|error| config_error(error.to_string()))?;
    let (image_volumes, places) = image::of_volumes(worker, container.spec).await.map_err(create_error)?;
    files.volumes.extend(places);
    let wanted = container_config::sub_paths(&pod, container, &image_volumes, &env, &files)
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
    let mut config = container_config::build(&ContainerInput {
        pod: &pod,
        container,
        node: &facts,
        attempt,
        sandbox_id: &sandbox,
        image: &image,
        env: &env,
        files: &files,
        image_volumes: &image_volumes,
        sub_paths: &sub_paths,
        seccomp_profiles: &seccomp_profiles,
        termination_file: Some(&termination),
        log_path: &log_path,
    })
    .map_err(|error| Failure { reason: error.reason, message: error.message })?;
    if let Some(target) = pod.target_of(name) {
        let Some(seen) = worker.observed.container(target) else {
            return Err(config_error(format!("unable to find target container {target}")));
        };
        if !seen.is_running() {
            return Err(create_error(format!("target container {target} does not run")));
        }
        config.processes_of = Some(seen.id.clone());
    }
    for group in volume::groups(&worker.objects) {
        if !config.groups.contains(&group) {
            config.groups.push(group);
        }
    }
    config.runtime = worker.runtime().await.map_err(create_error)?;
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
        volume_images: image_volumes.into_values().collect(),
        recursive_read_only: container_config::recursive(&pod, &facts, container.spec),
        created_at: jiff::Timestamp::now(),
        state: ContainerState::Created,
        runtime_log: None,
        termination_message_file: Some(termination.display().to_string()),
        grace_seconds: Some(pod.own_grace_seconds()),
        resources: Some(config.resources),
        user: None,
    })
}

/// The files that a container's variables come from.
async fn read_env_files(worker: &Worker, container: &v1::Container, files: &PodFiles) -> EnvFiles {
    let mut found = EnvFiles::new();
    for (volume, path) in environment::env_files(container) {
        let Some(root) = files.volumes.get(&volume) else { continue };
        let content = worker.shared.ports.files.read_volume(&worker.pod.id, root, &path, ENV_FILE).await;
        found.insert((volume, path), content.map_err(|error| error.to_string()));
    }
    found
}

pub(super) async fn start_container(worker: &mut Worker, name: &str) -> Step {
    let Some(id) = worker.observed.container(name).map(|seen| seen.id.clone()) else { return Step::Waits };
    let started = worker.shared.ports.runtime.start(&id).await;
    worker.look_at(&id).await;
    if let Err(error) = started {
        worker.event(Some(name), EventType::Warning, "Failed", &format!("Error: {error}"));
        // A start that left an exit behind is restarted like any other end; one that left nothing is tried again.
        let ended = worker.observed.container(name).is_some_and(|seen| seen.exit().is_some());
        match ended {
            true => worker.not_started(name, &id, RUN_ERROR, &error.to_string()),
            false => worker.failed(&backoff::create(name), RUN_ERROR, &error.to_string()),
        }
        return Step::Waits;
    }
    worker.record.backoffs.remove(&backoff::create(name));
    worker.forget_images(name);
    worker.event(Some(name), EventType::Normal, "Started", "Container started");
    if let Some(seen) = worker.observed.container(name) {
        link_log(&*worker.shared.ports.files, &worker.pod.id, seen).await;
    }
    if !worker.facts.single_process_oom_kill {
        kill_together(worker, &id).await;
    }
    background::post_start(worker, &id, name);
    Step::Done
}

/// As the kubelet asks of its runtimes (`generateLinuxContainerResources`); Docker has no word for it.
async fn kill_together(worker: &Worker, id: &str) {
    let cgroup = cgroup::pod_cgroup(&worker.pod, &worker.facts);
    if let Err(error) = worker.shared.ports.files.kill_together(&cgroup, id).await {
        let pod = &worker.pod.id;
        tracing::warn!(%pod, container = id, "without memory it loses single processes, and goes on: {error}");
    }
}

impl Worker {
    /// Links the logs of all that was there when the agent began, which may have been killed before it did; in the background, for
    /// a disk may hang.
    pub(crate) fn link_logs(&self) {
        let (shared, id) = (self.shared.clone(), self.pod.id.clone());
        let seen = self.observed.containers.clone();
        tokio::spawn(async move {
            for seen in &seen {
                link_log(&*shared.ports.files, &id, seen).await;
            }
        });
    }
}

async fn link_log(files: &dyn FileStore, id: &PodId, seen: &Container) {
    let Some(log) = &seen.runtime_log else { return };
    if let Err(error) = files.link_log(id, &seen.name, seen.attempt, &seen.id, Path::new(log)).await {
        tracing::warn!(pod = %id, container = seen.name, "the log cannot be linked: {error}");
    }
}
