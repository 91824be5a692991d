//! A pod's volumes, made as their specs say, again and again.
//!
//! Owns `<pod>/volumes` and `<pod>/plugins`. It must not look into objects or specs of Kubernetes: a [`VolumeSpec`] is
//! complete. As `pkg/volume/{emptydir,hostpath,configmap,secret,downwardapi,projected}`.

use std::path::{Path, PathBuf};

use longshore_core::ports::files::FilesError;
use longshore_core::volume::{FsGroup, VolumeKind, VolumeSpec};

use crate::layout::{At, part};
use crate::{host_path, mounts, ownership, payload, remove, write};

const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// Sets one volume up; says where it is.
pub(crate) fn set_up(pod: &Path, volume: &VolumeSpec, group: Option<FsGroup>) -> Result<PathBuf, FilesError> {
    let failed = |message: String| FilesError::Volume { volume: volume.name.clone(), message };
    match &volume.kind {
        VolumeKind::HostPath { path, kind } => {
            host_path::check(path, *kind).map_err(failed)?;
            Ok(path.clone())
        }
        VolumeKind::EmptyDir { memory, size_limit } => {
            empty_dir(pod, &volume.name, memory.then_some(*size_limit), group)
                .map_err(|error| failed(error.to_string()))
        }
        VolumeKind::Payload { files, memory, plugin } => {
            let folder = folder_of(pod, plugin, &volume.name)?;
            let group = group.map(|group| group.gid);
            let written = plain_folder(&folder, *memory, group).and_then(|()| payload::update(&folder, files, group));
            written.map_err(|error| failed(error.to_string()))?;
            Ok(folder)
        }
    }
}

/// Where a volume is. The names come from the pod's spec.
fn folder_of(pod: &Path, plugin: &str, name: &str) -> Result<PathBuf, FilesError> {
    let volumes = pod.join("volumes");
    let folder = volumes.join(part(&volumes, "volume plugin", plugin)?);
    let name = part(&folder, "volume name", name)?;
    write::folder(&volumes, 0o750)?;
    write::folder(&folder, 0o750)?;
    Ok(folder.join(name))
}

/// An empty folder that is there with its mode and owner, or not at all; `memory` holds the size of a tmpfs.
fn empty_dir(
    pod: &Path,
    name: &str,
    memory: Option<Option<u64>>,
    group: Option<FsGroup>,
) -> Result<PathBuf, FilesError> {
    let folder = folder_of(pod, EMPTY_DIR, name)?;
    let gid = group.map(|group| group.gid);
    match memory {
        Some(size) => {
            write::folder(&folder, 0o777)?;
            mounts::tmpfs(&folder, size, gid)?;
        }
        None if !folder.is_dir() => fresh(&folder, gid)?,
        None => {}
    }
    // The kubelet hands an emptyDir over once, when it is fresh. So it is here: the mark tells a folder that was handed
    // to this group from one whose containers have since changed modes, and a new fsGroup of a pod changed in place.
    let Some(group) = group else { return Ok(folder) };
    let mark = mark_of(pod, name)?;
    let wanted = group.gid.to_string();
    if std::fs::read_to_string(&mark).ok().as_deref() != Some(wanted.as_str()) {
        ownership::apply(&folder, group, false)?;
        write::replace(&mark, wanted.as_bytes(), 0o640)?;
    }
    Ok(folder)
}

fn mark_of(pod: &Path, name: &str) -> Result<PathBuf, FilesError> {
    let mut folder = pod.join("plugins");
    write::folder(&folder, 0o750)?;
    for name in [EMPTY_DIR, name] {
        folder.push(name);
        write::folder(&folder, 0o750)?;
    }
    Ok(folder.join("fs-group"))
}

/// The folder of a payload volume.
fn plain_folder(folder: &Path, memory: bool, gid: Option<u32>) -> Result<(), FilesError> {
    if memory {
        write::folder(folder, 0o777)?;
        return mounts::tmpfs(folder, None, gid);
    }
    if !folder.is_dir() {
        fresh(folder, gid)?;
    }
    let Some(gid) = gid else { return Ok(()) };
    // Only its root: what lies below gets its owner when it is written, before anyone can see it.
    let root = std::fs::metadata(folder).at(folder)?;
    if std::os::unix::fs::MetadataExt::gid(&root) != gid {
        hand_root(folder, gid)?;
    }
    Ok(())
}

/// Makes a folder beside its place, finishes it, and moves it there: a crash leaves none that is half made.
fn fresh(folder: &Path, gid: Option<u32>) -> Result<(), FilesError> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let next = folder.with_file_name(format!(".{name}.new"));
    remove::tree(&next)?;
    write::folder(&next, 0o777)?;
    if let Some(gid) = gid {
        hand_root(&next, gid)?;
    }
    std::fs::rename(&next, folder).at(folder)
}

fn hand_root(folder: &Path, gid: u32) -> Result<(), FilesError> {
    rustix::fs::chown(folder, None, Some(rustix::fs::Gid::from_raw(gid))).at(folder)?;
    let mode = 0o777 | ownership::mask(true, false);
    std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(mode)).at(folder)
}
