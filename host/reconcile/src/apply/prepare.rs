//! What a pod needs on the disk before anything of it starts: objects, folder, cgroup, volumes.

use longshore_core::event::EventType;
use longshore_core::ports::files::{FilesError, PodFilesSpec};
use longshore_core::volume::{self, FsGroup, ObjectKind, Objects};
use longshore_core::{cgroup, dns};

use super::Step;
use crate::worker::Worker;

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
                // Before the sandbox runs, the back-off may be about that: its start ends it.
                if !self.pod_ips().is_empty() {
                    self.record.backoffs.remove("pod");
                }
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
    pub(super) async fn look_up_objects(&mut self) -> Result<(), String> {
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
}
