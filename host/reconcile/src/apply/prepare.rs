//! What a pod needs on the disk before anything of it starts: objects, folder, cgroup, volumes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use longshore_core::event::EventType;
use longshore_core::pod::Source;
use longshore_core::ports::files::{FilesError, PodFilesSpec};
use longshore_core::ports::objects::ObjectStore;
use longshore_core::volume::{self, FsGroup, Issued, IssuedKind, ObjectKind, Objects};
use longshore_core::{dns, resize, sandbox_config, services};

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
        let cgroup = resize::pod_cgroup(&self.pod, &self.observed, &self.record, &shared.facts);
        shared.ports.files.prepare_cgroup(&cgroup).await?;
        self.cgroup = Some(cgroup);
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
                self.prepared_at = Some(std::time::Instant::now());
                // Before the sandbox runs, the back-off may be about that: its start ends it.
                if !self.pod_ips().is_empty() {
                    self.record.backoffs.remove("pod");
                }
                Step::Done
            }
            Err(error) => {
                self.prepared_at = self.prepared_at.map(|_| std::time::Instant::now());
                let message = format!("MountVolume.SetUp failed for {error}");
                self.event(None, EventType::Warning, "FailedMount", &message);
                self.failed("pod", "ContainerCreating", &message);
                Step::Waits
            }
        }
    }

    /// Where what the pod refers to is kept.
    pub(crate) fn store(&self) -> &Arc<dyn ObjectStore> {
        self.shared.objects(&self.pod.source)
    }

    /// Looks up what the pod refers to. What a source of a volume needs and cannot be had is left to the volume to tell.
    pub(super) async fn look_up_objects(&mut self) -> Result<(), String> {
        let store = self.store().clone();
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
        for reference in volume::issued_references(&self.pod) {
            let issued = match &reference.kind {
                IssuedKind::Token(query) => store
                    .token(&self.pod.id, query)
                    .await
                    .map(Issued::Token)
                    .map_err(|error| format!("failed to fetch token: {}", error.message)),
                IssuedKind::TrustBundles(query) => {
                    store.trust_bundles(query).await.map(Issued::TrustBundles).map_err(|error| error.to_string())
                }
                IssuedKind::Certificate(query) => store
                    .certificate(&self.pod.object, query)
                    .await
                    .map(Issued::Certificate)
                    .map_err(|error| error.to_string()),
            };
            if let Ok(Issued::Token(token)) = &issued
                && token.expires <= jiff::Timestamp::now()
            {
                let message = format!("The token of volume {:?} has expired; the API server is away", reference.volume);
                self.event(None, EventType::Warning, "ExpiredToken", &message);
            }
            objects.issued.insert((reference.volume, reference.index), issued);
        }
        for volume in self.pod.spec().volumes.iter().flatten() {
            let Some(name) = volume::claim_of(&self.pod, volume) else { continue };
            let claim = match store.claim(&namespace, &name).await {
                Ok(Some(claim)) => Ok(claim),
                Ok(None) => {
                    Err(format!("failed to fetch PVC from API server: persistentvolumeclaims {name:?} not found"))
                }
                Err(error) => Err(format!("failed to fetch PVC from API server: {error}")),
            };
            objects.claims.insert(name, claim);
        }
        self.objects = objects;
        Ok(())
    }

    /// Says which objects the pod refers to, so that the store follows them, whenever that changed.
    pub(crate) fn hold_objects(&mut self) {
        let secrets = volume::pull_secrets(&self.pod).into_iter().map(|name| (ObjectKind::Secret, name));
        let named = volume::references(&self.pod).into_iter().map(|reference| (reference.kind, reference.name));
        let wanted: BTreeSet<(ObjectKind, String)> =
            if self.record.terminal.is_some() { BTreeSet::new() } else { named.chain(secrets).collect() };
        if wanted != self.held {
            self.store().hold(&self.pod.id, &wanted);
            self.held = wanted;
        }
    }

    /// Lets go of what the pod referred to.
    pub(crate) fn let_go(&mut self) {
        if !self.held.is_empty() {
            self.held.clear();
            self.store().hold(&self.pod.id, &BTreeSet::new());
        }
        self.store().forget(&self.pod);
    }

    /// The variables of Services that the pod's containers get; a pod of the API server waits until they are known.
    pub(super) async fn service_variables(&self) -> Result<BTreeMap<String, String>, String> {
        let links = self.pod.spec().enable_service_links.unwrap_or(true);
        // In a cluster they are for every pod.
        let ports = &self.shared.ports;
        let store = ports.api.as_ref().map_or(&ports.objects, |api| &api.objects);
        match store.services(&self.pod.id.namespace).await {
            Some(services) => Ok(services::variables(&services, links)),
            None if self.pod.source != Source::Api => Ok(BTreeMap::new()),
            None => Err("services have not yet been read at least once, cannot construct envvars".to_owned()),
        }
    }

    /// The daemon's runtime for the pod's RuntimeClass, or why there is none.
    pub(super) async fn runtime(&self) -> Result<Option<String>, String> {
        let class = self.pod.spec().runtime_class_name.as_deref().unwrap_or_default();
        if self.pod.source != Source::Api || class.is_empty() {
            return sandbox_config::runtime(&self.pod, &self.shared.facts).map_err(|error| error.to_string());
        }
        match self.store().runtime_handler(class).await {
            Ok(Some(handler)) => {
                sandbox_config::runtime_of(&handler, &self.shared.facts).map_err(|error| error.to_string())
            }
            Ok(None) => {
                Err(format!("failed to get RuntimeClass {class}: runtimeclasses.node.k8s.io {class:?} not found"))
            }
            Err(error) => Err(format!("failed to get RuntimeClass {class}: {error}")),
        }
    }
}
