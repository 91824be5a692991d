//! What a pod needs on the disk before anything of it starts: objects, folder, cgroup, volumes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use longshore_core::event::EventType;
use longshore_core::observed::Sandbox;
use longshore_core::pod::{Pod, Source};
use longshore_core::ports::files::{FilesError, PodFilesSpec};
use longshore_core::ports::objects::ObjectStore;
use longshore_core::volume::{self, FsGroup, Issued, IssuedKind, ObjectKind, User, VolumeProblem};
use longshore_core::{backoff, dns, hash, resize, sandbox_config, services};

use super::Step;
use super::sandbox::tell_of_names;
use crate::objects::{self, Unknown};
use crate::roster::Member;
use crate::worker::Worker;

/// Why a pod is not prepared: reason and message of its event, as the kubelet has them.
struct Unprepared {
    reason: &'static str,
    message: String,
}

impl Unprepared {
    fn volume(volume: &str, message: &str) -> Self {
        Self::mount(volume::not_set_up(volume, message))
    }

    fn mount(message: String) -> Self {
        Unprepared { reason: "FailedMount", message }
    }

    fn cgroup(error: &FilesError) -> Self {
        let message = format!("unable to ensure pod container exists: {error}");
        Unprepared { reason: "FailedCreatePodContainer", message }
    }
}

impl From<FilesError> for Unprepared {
    fn from(error: FilesError) -> Self {
        match error {
            FilesError::Volume { volume, message } => Self::volume(&volume, &message),
            error => Unprepared { reason: "Failed", message: format!("error making pod data directories: {error}") },
        }
    }
}

impl Worker {
    /// Makes the pod's folder, cgroup and volumes, or brings them up to date. As with the kubelet, volumes of a pod that is up
    /// stay as they are when they cannot be brought up to date, and its containers are restarted with them.
    async fn prepare_files(&mut self, starts: bool) -> Result<(), Unprepared> {
        let shared = self.shared.clone();
        self.facts = shared.look().await;
        let is_up = self.observed.sandbox().is_some_and(Sandbox::is_up);
        let mut kept = self.files.as_ref().filter(|_| is_up).map(|files| files.volumes.clone()).unwrap_or_default();
        let named: BTreeSet<String> = volume::used(&self.pod).map(|volume| volume.name.clone()).collect();
        kept.retain(|volume, _| named.contains(volume));
        self.unswept = !self.runs_as_wanted();
        let mut behind = false;
        for unknown in self.look_up_objects().await {
            // What a container's variables need holds up that container alone.
            let User::Volume(volume) = unknown.user else { continue };
            self.tell_if(kept.contains_key(&volume), Unprepared::volume(&volume, &unknown.message))?;
            behind = true;
        }
        let (volumes, problems) = volume::resolve_each(&self.as_told(), &self.facts, &self.objects, &self.pod_ips());
        for VolumeProblem { volume, told, .. } in problems {
            self.tell_if(kept.contains_key(&volume), Unprepared::mount(told))?;
            behind = true;
        }
        // What runs keeps what it has, also where the agent does not know yet who else has it.
        let for_one = if is_up { Vec::new() } else { volume::for_one_pod(&self.pod, &self.objects) };
        // Kept until others see that this pod has them, and given back where it cannot be prepared.
        let _reservation =
            shared.reserved.take(&self.pod.id.namespace, &for_one, |claim| self.is_taken(claim)).map_err(|volume| {
                let name = volume::spec_name(&self.pod, &self.objects, &volume);
                let message = "volume uses the ReadWriteOncePod access mode and is already in use by another pod";
                Unprepared::volume(name, message)
            })?;
        let cgroup = resize::pod_cgroup(&self.pod, &self.observed, &self.record, &self.facts);
        shared.ports.files.prepare_cgroup(&cgroup).await.map_err(|error| Unprepared::cgroup(&error))?;
        self.cgroup = Some(cgroup);
        let names = hash::names(&self.pod.object);
        let renamed = self.record.names.as_ref().is_some_and(|known| *known != names);
        let mut spec = PodFilesSpec {
            pod: self.pod.id.clone(),
            volumes,
            only: (!self.unswept).then_some(named),
            fs_group: FsGroup::of(&self.pod),
            resolv_conf: dns::resolv_conf(&self.pod, &self.facts),
            // As dockershim: what runs keeps what its sandbox was made with, unless the pod itself says something else.
            new_resolv_conf: renamed || !self.observed.sandbox().is_some_and(Sandbox::is_running),
        };
        let mut files = loop {
            match shared.ports.files.prepare(&spec).await {
                Err(FilesError::Volume { volume, message }) => {
                    let is_kept = kept.contains_key(&volume) && spec.volumes.iter().any(|spec| spec.name == volume);
                    let name = volume::spec_name(&self.pod, &self.objects, &volume);
                    let unprepared = Unprepared::volume(name, &message);
                    self.tell_if(is_kept, unprepared)?;
                    spec.volumes.retain(|spec| spec.name != volume);
                    behind = true;
                }
                prepared => break prepared?,
            }
        };
        self.record.names = Some(names);
        if renamed {
            tell_of_names(self);
        }
        self.behind = behind;
        for (volume, place) in kept {
            files.volumes.entry(volume).or_insert(place);
        }
        // A pod may write in its own, which stays until a container is made (`makeHostsMount` of `pkg/kubelet/kubelet_pods.go`).
        let hosts = dns::hosts_file(&self.pod, &self.facts, &self.pod_ips());
        if starts || self.record.hosts.as_ref() != Some(&hash::text(&hosts)) {
            self.write_hosts(&hosts).await?;
        }
        if self.files.replace(files).is_none() {
            self.files_since = Some(Timestamp::now());
        }
        if !for_one.is_empty() {
            shared.roster.tell(Member::new(&self.pod, &self.observed, &self.record, self.files.as_ref()));
        }
        Ok(())
    }

    /// Whether another pod has that claim. One that runs has all of its volumes, though a new agent did not look at them yet.
    fn is_taken(&self, claim: &str) -> bool {
        let members = self.shared.roster.members();
        let is_here = |pod: &Pod| pod.id.namespace == self.pod.id.namespace && pod.id.uid != self.pod.id.uid;
        let has = |other: &Member| {
            let runs = other.sandbox_process.is_some();
            let mut made = volume::used(&other.pod).filter(|one| runs || other.volumes.contains_key(&one.name));
            made.any(|one| volume::claim_of(&other.pod, one).as_deref() == Some(claim))
        };
        members.iter().any(|other| is_here(&other.pod) && has(other))
    }

    /// Writes the pod's hosts file.
    pub(super) async fn write_hosts(&mut self, text: &str) -> Result<(), FilesError> {
        self.shared.ports.files.write_hosts(&self.pod.id, text).await?;
        self.record.hosts = Some(hash::text(text));
        Ok(())
    }

    /// [`Action::Prepare`], where containers are about to start; also called when objects or the pod's fields changed.
    pub(crate) async fn prepare(&mut self, starts: bool) -> Step {
        match self.prepare_files(starts).await {
            Ok(()) => {
                self.prepared_at = Some(std::time::Instant::now());
                // Before the sandbox runs, the back-off may be about that: its start ends it.
                if !self.pod_ips().is_empty() {
                    self.record.backoffs.remove(backoff::POD);
                }
                Step::Done
            }
            Err(unprepared) => {
                (self.prepared_at, self.behind) = (Some(std::time::Instant::now()), true);
                self.tell_unprepared(&unprepared);
                self.failed(backoff::POD, "ContainerCreating", &unprepared.message);
                Step::Waits
            }
        }
    }

    /// Whether all that runs was made as the spec has it now, so that it uses no other volumes.
    fn runs_as_wanted(&self) -> bool {
        let mut running = self.observed.containers.iter().filter(|seen| seen.is_running());
        running.all(|seen| self.pod.hashes.get(&seen.name) == Some(&seen.hash))
    }

    /// Whether volumes that the spec does not name any more can be taken away now, and could not before; said once.
    pub(crate) fn can_sweep(&mut self) -> bool {
        let can = self.unswept && self.runs_as_wanted();
        self.unswept &= !can;
        can
    }

    /// Tells of a volume that stays as it is; what is not one of these is in the way of the pod.
    fn tell_if(&self, is_kept: bool, unprepared: Unprepared) -> Result<(), Unprepared> {
        if !is_kept {
            return Err(unprepared);
        }
        self.tell_unprepared(&unprepared);
        Ok(())
    }

    fn tell_unprepared(&self, Unprepared { reason, message }: &Unprepared) {
        self.event(None, EventType::Warning, reason, message);
    }

    /// How long until volumes are brought up to date again that have issued tokens, or could not be; `None` for a pod that has
    /// none, or is not up.
    pub(crate) fn remount_in(&self) -> Option<Duration> {
        let prepared = self.prepared_at?;
        let runs = self.record.terminal.is_none() && self.pod.deletion.is_none() && self.observed.sandbox().is_some();
        let due = self.behind || !volume::issued_references(&self.pod).is_empty();
        (runs && due).then(|| self.shared.options.remount.saturating_sub(prepared.elapsed()))
    }

    /// Where what the pod refers to is kept.
    pub(crate) fn store(&self) -> &Arc<dyn ObjectStore> {
        self.shared.objects(&self.pod.source)
    }

    /// Looks up what the pod refers to; what cannot be told stays as it was, and is given back. What a source of a volume
    /// needs and cannot be had is left to the volume to tell.
    pub(super) async fn look_up_objects(&mut self) -> Vec<Unknown> {
        let store = self.store().clone();
        let namespace = self.pod.id.namespace.clone();
        let (mut objects, unknown) = objects::look_up(&self.pod, &*store).await;
        for (kind, name) in unknown.iter().map(|unknown| &unknown.object) {
            match kind {
                ObjectKind::ConfigMap => objects.config_maps.extend(self.objects.config_maps.remove_entry(name)),
                ObjectKind::Secret => objects.secrets.extend(self.objects.secrets.remove_entry(name)),
            }
        }
        let is_up = self.observed.sandbox().is_some();
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
                IssuedKind::Certificate(query) => {
                    let word = store.certificate(&self.pod.object, query).await;
                    for warning in &word.warnings {
                        self.event(None, EventType::Warning, warning.reason, &warning.message);
                    }
                    word.certificate.map(Issued::Certificate).map_err(|error| error.message)
                }
            };
            if let Ok(Issued::Token(token)) = &issued
                && token.expires <= Timestamp::now()
                && self.expired.insert(reference.volume.clone(), token.expires) != Some(token.expires)
            {
                let message = format!("The token of volume {:?} has expired; the API server is away", reference.volume);
                self.event(None, EventType::Warning, "ExpiredToken", &message);
            }
            objects.issued.insert((reference.volume, reference.index), issued);
        }
        for volume in volume::used(&self.pod) {
            let Some(name) = volume::claim_of(&self.pod, volume) else { continue };
            // The kubelet asks before it first mounts a pod's volumes, and never again: a pod that is up keeps what it
            // has when its claim is deleted, which waits for it, or cannot be had.
            let kept = self.objects.claims.get(&name).filter(|kept| is_up && kept.is_ok());
            let claim = match (store.claim(&namespace, &name).await, kept) {
                (Ok(Some(mut claim)), _) => {
                    claim.claim.metadata.deletion_timestamp.take_if(|_| is_up);
                    Ok(claim)
                }
                (Ok(None) | Err(_), Some(kept)) => kept.clone(),
                (Ok(None), None) => {
                    Err(format!("failed to fetch PVC from API server: persistentvolumeclaims {name:?} not found"))
                }
                (Err(error), None) => Err(format!("failed to fetch PVC from API server: {error}")),
            };
            objects.claims.insert(name, claim);
        }
        self.objects = objects;
        unknown
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
            return sandbox_config::runtime(&self.pod, &self.facts).map_err(|error| error.to_string());
        }
        match self.store().runtime_handler(class).await {
            Ok(Some(handler)) => sandbox_config::runtime_of(&handler, &self.facts).map_err(|error| error.to_string()),
            Ok(None) => {
                Err(format!("failed to get RuntimeClass {class}: runtimeclasses.node.k8s.io {class:?} not found"))
            }
            Err(error) => Err(format!("failed to get RuntimeClass {class}: {error}")),
        }
    }
}
