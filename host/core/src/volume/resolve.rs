//! From a pod's volumes and the objects that they refer to, to what must be on the node's disk.
//!
//! As `pkg/volume/{emptydir,hostpath,nfs,projected}`. A volume that cannot be made is a problem with the kubelet's
//! words, and a pod that is not up yet waits.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use k8s_openapi::api::core::v1;

use super::payload::{self, Files, Wanted};
use super::references::used;
use super::{HostPathKind, Objects, VolumeKind, VolumeSpec, claim_of, nested};
use crate::node::NodeFacts;
use crate::pod::Pod;
use crate::{huge_pages, quantity, resources};

/// Annotation of a PersistentVolume with the group that may use it.
const GROUP: &str = "pv.beta.kubernetes.io/gid";
/// The former place of a PersistentVolume's `mountOptions`, which still wins.
const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";

/// Why a volume cannot be had; the event is `FailedMount`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("volume {volume:?}: {message}")]
pub struct VolumeProblem {
    /// Name of the volume in the pod's spec.
    pub volume: String,
    /// What is wrong.
    pub message: String,
    /// The kubelet's words for it, for events and waiting reasons.
    pub told: String,
}

/// The kubelet's words for a volume that cannot be had, for events and waiting reasons. `volume` is what the kubelet calls
/// it: [`spec_name`].
pub fn not_set_up(volume: &str, message: &str) -> String {
    format!("{SET_UP} failed for volume {volume:?} : {message}")
}

/// What the kubelet calls a pod's volume: the PersistentVolume behind a claim has its own name (`Spec.Name` of `pkg/volume`).
pub fn spec_name<'a>(pod: &Pod, objects: &'a Objects, volume: &'a str) -> &'a str {
    let mut volumes = pod.spec().volumes.iter().flatten();
    let claim = volumes.find(|one| one.name == volume).and_then(|one| claim_of(pod, one));
    let bound = claim.and_then(|claim| objects.claims.get(&claim)?.as_ref().ok()?.volume.as_ref());
    bound.and_then(|bound| bound.metadata.name.as_deref()).unwrap_or(volume)
}

/// Volumes of the pod that are for one pod alone, with their claims: the only access mode of the PersistentVolume says so
/// (`GenerateMountVolumeFunc` of `pkg/volume/util/operationexecutor`).
pub fn for_one_pod(pod: &Pod, objects: &Objects) -> Vec<(String, String)> {
    let is_for_one = |claim: &str| {
        let bound = objects.claims.get(claim)?.as_ref().ok()?.volume.as_ref()?;
        let modes = bound.spec.as_ref()?.access_modes.as_ref()?;
        Some(matches!(modes.as_slice(), [mode] if mode == "ReadWriteOncePod"))
    };
    let claims = used(pod).filter_map(|volume| Some((volume.name.clone(), claim_of(pod, volume)?)));
    claims.filter(|(_, claim)| is_for_one(claim) == Some(true)).collect()
}

/// What the kubelet does with a volume when it finds that it cannot be had.
#[derive(Clone, Copy)]
enum Failed {
    /// Looking up what is behind a claim (`pkg/kubelet/volumemanager/populator`).
    Claim,
    /// A step of mounting it, by its name in `pkg/volume/util/operationexecutor`.
    Mount(&'static str),
}

const SET_UP: &str = "MountVolume.SetUp";

fn problem(pod: &Pod, objects: &Objects, volume: &str, failed: Failed, message: String) -> VolumeProblem {
    let told = match failed {
        // `WaitForAttachAndMount` of `pkg/kubelet/volumemanager`.
        Failed::Claim => format!(
            "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[], failed to process volumes=[{volume}]: {message}"
        ),
        Failed::Mount(step) => {
            format!("{step} failed for volume {:?} : {message}", spec_name(pod, objects, volume))
        }
    };
    VolumeProblem { volume: volume.to_owned(), message, told }
}

/// Everything that the volumes hold which a pod's containers use, in order of the spec, but for image volumes ([`super::mounted_images`]), and what
/// is wrong with the others. `pod_ips` are empty before the sandbox runs; then the downward API's addresses are too.
pub fn resolve_each(
    pod: &Pod,
    node: &NodeFacts,
    objects: &Objects,
    pod_ips: &[IpAddr],
) -> (Vec<VolumeSpec>, Vec<VolumeProblem>) {
    let (mut specs, mut problems) = (Vec::new(), Vec::new());
    for volume in used(pod).filter(|volume| volume.image.is_none()) {
        let found = match claim_of(pod, volume) {
            Some(claim) => claimed(pod, node, objects, volume, &claim),
            None => kind(pod, node, objects, pod_ips, volume).map_err(|message| (Failed::Mount(SET_UP), message)),
        };
        match found {
            Ok(kind) => specs.push(with_mount_points(pod, volume, kind)),
            Err((failed, message)) => problems.push(problem(pod, objects, &volume.name, failed, message)),
        }
    }
    (specs, problems)
}

/// The same of a pod that needs them all.
///
/// # Errors
/// What is wrong with the first that cannot be had.
pub fn resolve(
    pod: &Pod,
    node: &NodeFacts,
    objects: &Objects,
    pod_ips: &[IpAddr],
) -> Result<Vec<VolumeSpec>, VolumeProblem> {
    let (specs, problems) = resolve_each(pod, node, objects, pod_ips);
    problems.into_iter().next().map_or(Ok(specs), Err)
}

fn with_mount_points(pod: &Pod, volume: &v1::Volume, kind: VolumeKind) -> VolumeSpec {
    let mount_points = match &kind {
        VolumeKind::Payload { .. } => nested::mount_points(pod, &volume.name),
        _ => Vec::new(),
    };
    VolumeSpec { name: volume.name.clone(), kind, mount_points }
}

/// Volumes on disk that have a size limit: name, limit in bytes, and the limit as it is written.
pub fn size_limits(pod: &Pod) -> Vec<(String, u64, String)> {
    let volumes = pod.spec().volumes.iter().flatten();
    let limits = volumes.filter_map(|volume| {
        let source =
            volume.empty_dir.as_ref().filter(|source| source.medium.as_deref().unwrap_or_default().is_empty())?;
        let limit = source.size_limit.as_ref()?;
        let bytes = quantity::value(limit).and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0)?;
        Some((volume.name.clone(), bytes, limit.0.clone()))
    });
    limits.collect()
}

/// Volumes that take the node's own disk (`IsLocalEphemeralVolume` of `pkg/volume/util`).
pub fn on_disk(pod: &Pod) -> Vec<String> {
    let is_plain = |source: &v1::EmptyDirVolumeSource| source.medium.as_deref().unwrap_or_default().is_empty();
    let volumes = pod.spec().volumes.iter().flatten();
    let found = volumes.filter(|volume| volume.config_map.is_some() || volume.empty_dir.as_ref().is_some_and(is_plain));
    found.map(|volume| volume.name.clone()).collect()
}

/// Whether a volume is a hostPath without a type: nothing is checked then, and what is not there is made.
pub fn is_untyped_host_path(pod: &Pod, name: &str) -> bool {
    let untyped = |source: &v1::HostPathVolumeSource| source.type_.as_deref().unwrap_or_default().is_empty();
    let mut volumes = pod.spec().volumes.iter().flatten();
    volumes.any(|volume| volume.name == name && volume.host_path.as_ref().is_some_and(untyped))
}

/// Whether containers may only read a volume: it is written by us alone, or its claim says so
/// (`GetAttributes` in `pkg/volume/{configmap,secret,downwardapi,projected,image}`).
pub fn is_read_only(volume: &v1::Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
        || volume.image.is_some()
        || volume.nfs.as_ref().is_some_and(|nfs| nfs.read_only == Some(true))
        || volume.persistent_volume_claim.as_ref().is_some_and(|claim| claim.read_only == Some(true))
}

fn kind(
    pod: &Pod,
    node: &NodeFacts,
    objects: &Objects,
    pod_ips: &[IpAddr],
    volume: &v1::Volume,
) -> Result<VolumeKind, String> {
    if let Some(source) = &volume.empty_dir {
        return empty_dir(pod, node, source);
    }
    if let Some(source) = &volume.host_path {
        return host_path(source);
    }
    if let Some(source) = &volume.nfs {
        return Ok(nfs(source, Vec::new()));
    }
    if let Some(source) = &volume.config_map {
        let wanted = Wanted {
            name: &source.name,
            items: source.items.as_deref(),
            optional: source.optional,
            default_mode: payload::mode(source.default_mode),
        };
        return files(payload::config_map(&wanted, objects)?, false, "kubernetes.io~configmap");
    }
    if let Some(source) = &volume.secret {
        let wanted = Wanted {
            name: source.secret_name.as_deref().unwrap_or_default(),
            items: source.items.as_deref(),
            optional: source.optional,
            default_mode: payload::mode(source.default_mode),
        };
        return files(payload::secret(&wanted, objects)?, true, "kubernetes.io~secret");
    }
    if let Some(source) = &volume.downward_api {
        let items = source.items.as_deref().unwrap_or_default();
        let mode = payload::mode(source.default_mode);
        return files(payload::downward_api(pod, node, pod_ips, items, mode)?, false, "kubernetes.io~downward-api");
    }
    if let Some(source) = &volume.projected {
        return projected(pod, node, objects, pod_ips, &volume.name, source);
    }
    Err(format!("volume kind {} is not supported", unsupported_kind(volume)))
}

fn files(files: Files, memory: bool, plugin: &'static str) -> Result<VolumeKind, String> {
    let files = payload::checked(files)?;
    Ok(VolumeKind::Payload { files, memory, plugin })
}

/// Sources in order, later ones win where two give the same path; every source's problem is told.
fn projected(
    pod: &Pod,
    node: &NodeFacts,
    objects: &Objects,
    pod_ips: &[IpAddr],
    volume: &str,
    source: &v1::ProjectedVolumeSource,
) -> Result<VolumeKind, String> {
    let default_mode = payload::mode(source.default_mode);
    let mut merged = BTreeMap::new();
    let mut problems = Vec::new();
    let mut memory = false;
    for (index, source) in source.sources.iter().flatten().enumerate() {
        let found = if let Some(source) = &source.config_map {
            let items = source.items.as_deref();
            payload::config_map(&Wanted { name: &source.name, items, optional: source.optional, default_mode }, objects)
        } else if let Some(source) = &source.secret {
            memory = true;
            let items = source.items.as_deref();
            payload::secret(&Wanted { name: &source.name, items, optional: source.optional, default_mode }, objects)
        } else if let Some(source) = &source.downward_api {
            let items = source.items.as_deref().unwrap_or_default();
            payload::downward_api(pod, node, pod_ips, items, default_mode)
        } else if let Some(files) = payload::issued(pod, objects, volume, index, source, default_mode) {
            memory = true;
            files
        } else {
            Ok(Files::new())
        };
        match found {
            Ok(files) => merged.extend(files),
            Err(problem) => problems.push(problem),
        }
    }
    match problems.as_slice() {
        [] => files(merged, memory, "kubernetes.io~projected"),
        [only] => Err(only.clone()),
        several => Err(format!("[{}]", several.join(", "))),
    }
}

/// Groups that the volumes behind a pod's claims are for: its containers get them besides its own
/// (`GetExtraSupplementalGroupsForPod` in `pkg/kubelet/volumemanager`).
pub fn groups(objects: &Objects) -> Vec<i64> {
    let volumes = objects.claims.values().filter_map(|claim| claim.as_ref().ok()?.volume.as_ref());
    let annotated = volumes.filter_map(|volume| volume.metadata.annotations.as_ref()?.get(GROUP));
    annotated.filter_map(|group| group.parse().ok().filter(|group| *group >= 0)).collect()
}

/// The volume behind a claim: one that is a folder of this node (`pkg/volume/{local,hostpath}`), or on a server.
fn claimed(
    pod: &Pod,
    node: &NodeFacts,
    objects: &Objects,
    volume: &v1::Volume,
    name: &str,
) -> Result<VolumeKind, (Failed, String)> {
    let bound = bound_volume(pod, objects, volume, name).map_err(|message| (Failed::Claim, message))?;
    let spec = bound.spec.clone().unwrap_or_default();
    let terms = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    if terms.is_some_and(|terms| !crate::admit::selects(terms, node)) {
        return Err((Failed::Mount("MountVolume.NodeAffinity check"), "no matching NodeSelectorTerms".to_owned()));
    }
    let options = mount_options(bound);
    if let Some(source) = &spec.host_path {
        if !options.is_empty() {
            let message = "mount options are not supported for this volume type".to_owned();
            return Err((Failed::Mount("MountVolume.MountOptionSupport check"), message));
        }
        return host_path(source).map_err(|message| (Failed::Mount(SET_UP), message));
    }
    if let Some(source) = &spec.nfs {
        return Ok(nfs(source, options));
    }
    match &spec.local {
        Some(local) => {
            Ok(VolumeKind::Local { path: PathBuf::from(&local.path), read_only: is_read_only(volume), options })
        }
        None => {
            let message = "it needs a driver that this node does not have; local, hostPath and nfs volumes work here";
            Err((Failed::Mount(SET_UP), message.to_owned()))
        }
    }
}

/// The PersistentVolume that a claim is bound to.
fn bound_volume<'a>(
    pod: &Pod,
    objects: &'a Objects,
    volume: &v1::Volume,
    name: &str,
) -> Result<&'a v1::PersistentVolume, String> {
    let place = format!("error processing PVC {}/{name}", pod.id.namespace);
    let bound = match objects.claims.get(name) {
        None => return Err(format!("{place}: there is no API server to ask for it")),
        Some(Err(message)) => return Err(format!("{place}: {message}")),
        Some(Ok(bound)) => bound,
    };
    // Who may make pods must not get at any claim that is named like one of a pod's own (`VolumeIsForPod` in
    // `component-helpers/storage/ephemeral`).
    if volume.ephemeral.is_some() && !is_of_pod(&bound.claim, pod) {
        let (namespace, pod) = (&pod.id.namespace, &pod.id.name);
        return Err(format!("PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"));
    }
    if bound.claim.metadata.deletion_timestamp.is_some() {
        return Err(format!("{place}: PVC is being deleted"));
    }
    let Some(volume) = &bound.volume else { return Err(format!("{place}: PVC is not bound")) };
    let pv = volume.metadata.name.as_deref().unwrap_or_default();
    let spec = volume.spec.as_ref();
    // A volume may have been bound to another claim since (`getPVSpec` of `pkg/kubelet/volumemanager/populator`).
    let bound_to = spec.and_then(|spec| spec.claim_ref.as_ref()?.uid.as_ref());
    if bound_to != bound.claim.metadata.uid.as_ref() {
        return Err(format!("{place}: PV {pv} is not bound to the claim, but to another one or to none"));
    }
    if spec.and_then(|spec| spec.volume_mode.as_deref()) == Some("Block") {
        return Err(format!("{place}: volume {pv} has volumeMode Block, and raw block volumes are not supported here"));
    }
    Ok(volume)
}

/// Options to mount a PersistentVolume with (`MountOptionFromSpec` of `pkg/volume/util`).
fn mount_options(volume: &v1::PersistentVolume) -> Vec<String> {
    let annotated = volume.metadata.annotations.as_ref().and_then(|annotations| annotations.get(MOUNT_OPTIONS));
    let mut options: Vec<String> = match annotated {
        Some(options) => options.split(',').map(str::to_owned).collect(),
        None => volume.spec.as_ref().and_then(|spec| spec.mount_options.clone()).unwrap_or_default(),
    };
    // An empty one is none (`JoinMountOptions`).
    options.retain(|option| !option.is_empty());
    options
}

/// Whether a claim was made for the pod's ephemeral volume.
fn is_of_pod(claim: &v1::PersistentVolumeClaim, pod: &Pod) -> bool {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    owners.any(|owner| owner.controller == Some(true) && owner.uid == pod.id.uid)
}

/// `pkg/volume/nfs`: read-only first, then what the PersistentVolume says.
fn nfs(source: &v1::NFSVolumeSource, options: Vec<String>) -> VolumeKind {
    let read_only = source.read_only.filter(|read_only| *read_only).map(|_| "ro".to_owned());
    let options = read_only.into_iter().chain(options).collect();
    VolumeKind::Nfs { server: source.server.clone(), path: source.path.clone(), options }
}

fn empty_dir(pod: &Pod, node: &NodeFacts, source: &v1::EmptyDirVolumeSource) -> Result<VolumeKind, String> {
    let size_limit = match &source.size_limit {
        None => None,
        Some(limit) => {
            let bytes = quantity::value(limit).and_then(|bytes| u64::try_from(bytes).ok());
            Some(bytes.ok_or_else(|| format!("sizeLimit {:?} is not a size in bytes", limit.0))?)
        }
    };
    let size_limit = size_limit.filter(|bytes| *bytes > 0);
    match source.medium.as_deref().unwrap_or_default() {
        "" => Ok(VolumeKind::EmptyDir { memory: false, size_limit }),
        "Memory" => {
            // `pkg/volume/emptydir` calculateEmptyDirMemorySize: no more than the pod's memory, nor than all pods'.
            let bounds = [Some(node.allocatable_memory), resources::pod_limit(pod.spec(), "memory")];
            let bounds = bounds.into_iter().flatten().filter_map(|bytes| u64::try_from(bytes).ok());
            let least = bounds.filter(|bytes| *bytes > 0).chain(size_limit).min();
            Ok(VolumeKind::EmptyDir { memory: true, size_limit: least })
        }
        "HugePages" => of_huge_pages(pod, None),
        other => match other.strip_prefix("HugePages-") {
            Some(size) => of_huge_pages(pod, Some(size)),
            None => {
                Err(format!("emptyDir medium {other:?} is not supported: expected \"\", \"Memory\" or \"HugePages\""))
            }
        },
    }
}

/// Pages of that size, or of the one that the pod requests (`getPageSizeMountOption` in `pkg/volume/emptydir`).
fn of_huge_pages(pod: &Pod, size: Option<&str>) -> Result<VolumeKind, String> {
    let spec = pod.spec();
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let of_containers = containers.filter_map(|container| container.resources.as_ref());
    let lists =
        spec.resources.iter().chain(of_containers).flat_map(|resources| [&resources.requests, &resources.limits]);
    let names: BTreeSet<&str> = lists.flatten().flat_map(BTreeMap::keys).map(String::as_str).collect();
    let mut requested = names.into_iter().filter(|name| name.starts_with("hugepages-"));
    let medium = size.map_or_else(|| "HugePages".to_owned(), |size| format!("HugePages-{size}"));
    let name = match size {
        Some(size) => requested.find(|name| name.strip_prefix("hugepages-") == Some(size)),
        None => {
            let first = requested.next();
            if requested.next().is_some() {
                return Err(format!("medium: {medium} can't be used if container requests multiple huge page sizes"));
            }
            first
        }
    };
    let Some(name) = name else {
        return Err(format!(
            "medium {medium}: hugePages storage requested, but there is no resource request for huge pages"
        ));
    };
    let size = huge_pages::of_resource(name).ok_or_else(|| format!("{name} is not a huge page size"))?;
    Ok(VolumeKind::HugePages { page: size.bytes })
}

fn host_path(source: &v1::HostPathVolumeSource) -> Result<VolumeKind, String> {
    if !source.path.starts_with('/') {
        return Err(format!("hostPath.path {:?} is not absolute", source.path));
    }
    if source.path.split('/').any(|part| part == "..") {
        return Err(format!("hostPath.path {:?} must not contain '..'", source.path));
    }
    let kind = match source.type_.as_deref().unwrap_or_default() {
        "" => HostPathKind::Unset,
        "DirectoryOrCreate" => HostPathKind::DirectoryOrCreate,
        "Directory" => HostPathKind::Directory,
        "FileOrCreate" => HostPathKind::FileOrCreate,
        "File" => HostPathKind::File,
        "Socket" => HostPathKind::Socket,
        "CharDevice" => HostPathKind::CharDevice,
        "BlockDevice" => HostPathKind::BlockDevice,
        other => return Err(format!("hostPath.type {other:?} is not a type of host path")),
    };
    Ok(VolumeKind::HostPath { path: PathBuf::from(&source.path), kind })
}

/// The field that says what a volume is, by the object's own JSON, so that new kinds are named too.
fn unsupported_kind(volume: &v1::Volume) -> String {
    let object = serde_json::to_value(volume).ok();
    let fields = object.as_ref().and_then(serde_json::Value::as_object);
    let kind = fields.into_iter().flatten().map(|(key, _)| key).find(|key| *key != "name");
    kind.map_or_else(|| "(none)".to_owned(), |kind| format!("{kind:?}"))
}
