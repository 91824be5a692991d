//! From a container of a pod to what the runtime is asked to make.
//!
//! As `pkg/kubelet/kuberuntime/kuberuntime_container{,_linux}.go` and `pkg/kubelet/kubelet_pods.go` (makeMounts). Everything that had
//! to be looked up, made or read comes in through [`ContainerInput`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1;

use crate::container::{ContainerConfig, Mount, MountSource, Propagation};
use crate::node::NodeFacts;
use crate::pod::{ContainerOf, Pod};
use crate::ports::files::{PodFiles, SubPath};
use crate::ports::runtime::Image;
use crate::{cgroup, environment, labels, resources, sandbox_config, security, volume};

/// Why a sandbox or container cannot be described: the user's to mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConfigError {
    /// What is wrong, and in which field.
    pub message: String,
    /// What a container waits with.
    pub reason: &'static str,
}

impl ConfigError {
    pub(crate) fn new(message: String) -> Self {
        ConfigError { message, reason: "CreateContainerConfigError" }
    }

    /// What the kubelet leaves to its runtime to find.
    pub(crate) fn of_runtime(message: String) -> Self {
        ConfigError { message, reason: "CreateContainerError" }
    }
}

/// All that a container is made from.
#[derive(Clone, Copy, Debug)]
pub struct ContainerInput<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container.
    pub container: ContainerOf<'a>,
    /// The node.
    pub node: &'a NodeFacts,
    /// How many containers of that name the pod had before.
    pub attempt: u32,
    /// ID of the sandbox that it joins.
    pub sandbox_id: &'a str,
    /// Its image, present in the runtime.
    pub image: &'a Image,
    /// Its environment, from [`environment::build`].
    pub env: &'a [(String, String)],
    /// Where the pod's volumes and files are.
    pub files: &'a PodFiles,
    /// IDs of the images of the image volumes that it mounts, by volume. One that has no place in `files` is mounted by the
    /// runtime.
    pub image_volumes: &'a BTreeMap<String, String>,
    /// Where the parts of volumes are that [`sub_paths`] asked for, by [`SubPath::index`].
    pub sub_paths: &'a BTreeMap<usize, PathBuf>,
    /// Content of the seccomp profiles that [`security::localhost_profiles`] names, as far as they could be read.
    pub seccomp_profiles: &'a BTreeMap<String, String>,
    /// File on the node for its termination message.
    pub termination_file: Option<&'a Path>,
    /// Path of its log link.
    pub log_path: &'a Path,
}

/// The parts of volumes that a container mounts (`subPath`, `subPathExpr`), to be opened before it is made. Those of
/// `image_volumes` that have no place in `files` are the runtime's to open.
pub fn sub_paths(
    pod: &Pod,
    container: ContainerOf<'_>,
    image_volumes: &BTreeMap<String, String>,
    env: &[(String, String)],
    files: &PodFiles,
) -> Result<Vec<SubPath>, ConfigError> {
    let mut wanted = Vec::new();
    for (index, mount) in container.spec.volume_mounts.iter().flatten().enumerate() {
        let place = || format!("volumeMounts[{index}] of container {:?} in pod {}", container.spec.name, pod.id);
        let Some(path) =
            sub_path(mount, env).map_err(|message| ConfigError::new(format!("{message} ({})", place())))?
        else {
            continue;
        };
        if image_volumes.contains_key(&mount.name) && !files.volumes.contains_key(&mount.name) {
            continue;
        }
        wanted.push(SubPath {
            volume: mount.name.clone(),
            root: volume_root(mount, container, files)?.clone(),
            path,
            container: container.spec.name.clone(),
            index,
        });
    }
    Ok(wanted)
}

/// The part of the volume that a mount wants, expanded and checked; `None` where it wants all of it.
fn sub_path(mount: &v1::VolumeMount, env: &[(String, String)]) -> Result<Option<String>, String> {
    let path = match mount.sub_path_expr.as_deref().filter(|expression| !expression.is_empty()) {
        Some(expression) => expand_strictly(expression, env)?,
        None => mount.sub_path.clone().unwrap_or_default(),
    };
    if path.is_empty() {
        return Ok(None);
    }
    if path.starts_with('/') {
        return Err(format!("error SubPath `{path}` must not be an absolute path"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("unable to provision SubPath `{path}`: must not contain '..'"));
    }
    if path.contains('\0') {
        return Err("unable to provision SubPath: must not hold a NUL byte".to_owned());
    }
    Ok(Some(path))
}

/// Unlike in a command, a name without a value is an error: the volume's root would be mounted in its place.
fn expand_strictly(expression: &str, env: &[(String, String)]) -> Result<String, String> {
    let mut missing = BTreeSet::new();
    let expanded = environment::expand(expression, |name| {
        let value = env.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let value = value.unwrap_or_default();
        if value.is_empty() {
            missing.insert(name.to_owned());
        }
        Some(value)
    });
    if missing.is_empty() {
        return Ok(expanded);
    }
    let names: Vec<String> = missing.into_iter().collect();
    Err(format!("missing value for {} in subPathExpr {expression:?}", names.join(", ")))
}

fn volume_root<'a>(
    mount: &v1::VolumeMount,
    container: ContainerOf<'_>,
    files: &'a PodFiles,
) -> Result<&'a PathBuf, ConfigError> {
    files.volumes.get(&mount.name).ok_or_else(|| {
        ConfigError::new(format!(
            "cannot find volume {:?} to mount into container {:?}",
            mount.name, container.spec.name
        ))
    })
}

/// The container, complete.
pub fn build(input: &ContainerInput<'_>) -> Result<ContainerConfig, ConfigError> {
    let ContainerInput { pod, container, node, image, .. } = *input;
    let spec = container.spec;
    if spec.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err(ConfigError::new(format!("volumeDevices of container {:?} are not supported", spec.name)));
    }
    security::verify_non_root(pod, spec, &image.user)?;
    let (cap_add, cap_drop) = security::capabilities(spec);
    let words = |words: &Option<Vec<String>>| {
        words.as_ref().filter(|words| !words.is_empty()).map(|words| environment::expand_words(words, input.env))
    };
    let stdin = spec.stdin.unwrap_or(false);
    Ok(ContainerConfig {
        pod: pod.id.clone(),
        sandbox_id: input.sandbox_id.to_owned(),
        name: spec.name.clone(),
        kind: container.kind,
        attempt: input.attempt,
        image: image.id.clone(),
        command: words(&spec.command),
        args: words(&spec.args),
        env: input.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        working_dir: spec.working_dir.clone().filter(|folder| !folder.is_empty()),
        mounts: mounts(input)?,
        resources: resources::of_container(pod, spec, node),
        oom_score_adj: resources::oom_score_adj(pod, container, node),
        cgroup_parent: Some(cgroup::parent(pod, node)),
        user: security::user(pod, spec, &image.user),
        groups: security::groups(pod),
        privileged: security::is_privileged(spec),
        cap_add,
        cap_drop,
        read_only_rootfs: security::is_rootfs_read_only(spec),
        security_options: security::options(pod, spec, node, input.seccomp_profiles)?,
        unmasked_proc: security::is_proc_unmasked(spec),
        stdin,
        stdin_once: stdin && spec.stdin_once.unwrap_or(false),
        tty: spec.tty.unwrap_or(false),
        host: sandbox_config::host_namespaces(pod),
        share_process_namespace: sandbox_config::shares_processes(pod),
        processes_of: None,
        labels: labels::for_container(
            pod,
            container,
            &labels::ContainerFacts {
                root: &node.root_id,
                sandbox_id: input.sandbox_id,
                attempt: input.attempt,
                log_path: &input.log_path.to_string_lossy(),
                termination_file: input.termination_file.map(Path::to_string_lossy).as_deref(),
                images: &input.image_volumes.values().map(String::as_str).collect::<Vec<_>>(),
                recursive: recursive(pod, node, spec).as_deref(),
            },
        ),
        stop_signal: spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.clone()),
        runtime: sandbox_config::runtime(pod, node)?,
    })
}

/// The spec's mounts, then ours where the container mounts nothing there itself.
fn mounts(input: &ContainerInput<'_>) -> Result<Vec<Mount>, ConfigError> {
    let spec = input.container.spec;
    let mut mounts: Vec<Mount> = Vec::new();
    for (index, mount) in spec.volume_mounts.iter().flatten().enumerate() {
        let made = of_spec(input, index, mount)?;
        if mounts.iter().any(|other| other.target == made.target) {
            return Err(ConfigError::new(format!(
                "volumeMounts[{index}].mountPath of container {:?}: {:?} is mounted twice",
                spec.name, made.target
            )));
        }
        mounts.push(made);
    }
    let termination = spec.termination_message_path.as_deref().filter(|path| !path.is_empty());
    let ours = [
        (Some(input.files.hosts.as_path()), "/etc/hosts"),
        (Some(input.files.resolv_conf.as_path()), "/etc/resolv.conf"),
        (input.termination_file, termination.unwrap_or("/dev/termination-log")),
    ];
    for (source, target) in ours {
        let target = clean(target);
        let Some(source) = source.filter(|source| !source.as_os_str().is_empty()) else { continue };
        if !mounts.iter().any(|mount| mount.target == target) {
            let source = MountSource::Path(source.to_owned());
            mounts.push(Mount {
                source,
                target,
                read_only: false,
                recursive: false,
                propagation: Propagation::Private,
            });
        }
    }
    Ok(mounts)
}

fn of_spec(input: &ContainerInput<'_>, index: usize, mount: &v1::VolumeMount) -> Result<Mount, ConfigError> {
    let name = &input.container.spec.name;
    let image = input.image_volumes.get(&mount.name);
    let place = format!("volumeMounts[{index}] of container {name:?}");
    let part = sub_path(mount, input.env).map_err(|message| ConfigError::new(format!("{message} ({place})")))?;
    let of_runtime = image.filter(|_| !input.files.volumes.contains_key(&mount.name));
    let source = match (of_runtime, part) {
        (Some(id), sub_path) => MountSource::Image { id: id.clone(), sub_path },
        (None, None) => {
            let root = volume_root(mount, input.container, input.files)?.clone();
            if volume::is_untyped_host_path(input.pod, &mount.name) {
                MountSource::HostPath(root)
            } else {
                MountSource::Path(root)
            }
        }
        // Never joined here: only the file store opens a sub-path so that no link leads out of the volume.
        (None, Some(path)) => input.sub_paths.get(&index).cloned().map(MountSource::Path).ok_or_else(|| {
            ConfigError::new(format!(
                "failed to prepare subPath for volumeMount {:?} of container {name:?}: {path:?} was not opened",
                mount.name
            ))
        })?,
    };
    let propagation = match mount.mount_propagation.as_deref() {
        None | Some("" | "None") => Propagation::Private,
        Some("HostToContainer") => Propagation::HostToContainer,
        Some("Bidirectional") => Propagation::Bidirectional,
        Some(other) => {
            return Err(ConfigError::new(format!("{place}: invalid MountPropagation mode: {other:?}")));
        }
    };
    let target = clean(&mount.mount_path);
    if target == "/" {
        return Err(ConfigError::new(format!("{place}: mountPath {:?} is the container's root", mount.mount_path)));
    }
    let recursive = is_recursive(input.pod, input.node, mount).map_err(|message| {
        ConfigError::new(format!("failed to resolve recursive read-only mode: {message} ({place})"))
    })?;
    let mut volumes = input.pod.spec().volumes.iter().flatten();
    let ours_alone = volumes.any(|volume| volume.name == mount.name && volume::is_read_only(volume));
    // Our own mount of an image's files is read-only and more (noexec), which a runtime that makes it read-only again undoes.
    let is_bound = image.is_some() && of_runtime.is_none();
    let read_only = !is_bound && (mount.read_only.unwrap_or(false) || ours_alone);
    Ok(Mount { source, target, read_only, recursive: recursive && read_only, propagation })
}

/// Indices of a container's `volumeMounts` that are made read-only with all that is mounted below; `None` where no mount asks
/// for that.
pub fn recursive(pod: &Pod, node: &NodeFacts, container: &v1::Container) -> Option<Vec<usize>> {
    let mounts = || container.volume_mounts.iter().flatten();
    mounts().any(|mount| mount.recursive_read_only.is_some()).then(|| {
        let recursive = mounts().enumerate().filter(|(_, mount)| is_recursive(pod, node, mount) == Ok(true));
        recursive.map(|(index, _)| index).collect()
    })
}

/// Whether a mount is read-only with all that is mounted below (`resolveRecursiveReadOnly` in pkg/kubelet/kubelet_pods.go).
/// Docker's own runtime alone is known to do that.
fn is_recursive(pod: &Pod, node: &NodeFacts, mount: &v1::VolumeMount) -> Result<bool, String> {
    let of_docker = pod.spec().runtime_class_name.as_deref().is_none_or(str::is_empty);
    let name = &mount.name;
    match mount.recursive_read_only.as_deref() {
        None | Some("" | "Disabled") => Ok(false),
        _ if mount.read_only != Some(true) => {
            Err(format!("volume {name:?} requested recursive read-only mode, but it is not read-only"))
        }
        _ if mount.mount_propagation.as_deref().is_some_and(|mode| !matches!(mode, "" | "None")) => Err(format!(
            "volume {name:?} requested recursive read-only mode, but it is not compatible with mount propagation"
        )),
        Some("IfPossible") => Ok(node.recursive_read_only && of_docker),
        _ if node.recursive_read_only && of_docker => Ok(true),
        _ => Err(format!(
            "volume {name:?} requested recursive read-only mode, but it is not supported by the runtime: that is Docker's own \
             from version 25 on, with Linux 5.12 or later"
        )),
    }
}

/// An absolute path without doubled or trailing slashes and without `.`, so that equal targets are seen to be.
pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
