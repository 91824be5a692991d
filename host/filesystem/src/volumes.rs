//! A pod's volumes, made as their specs say, again and again.
//!
//! Owns `<pod>/volumes` and `<pod>/plugins`. It must not look into objects or specs of Kubernetes: a [`VolumeSpec`] is
//! complete. As `pkg/volume/{emptydir,hostpath,local,nfs,configmap,secret,downwardapi,projected}`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use longshore_core::ports::files::FilesError;
use longshore_core::volume::{FsGroup, HostPathKind, VolumeKind, VolumeSpec};

use crate::layout::{At, part};
use crate::{host_path, images, mounts, nfs, ownership, payload, remove, sub_path, write};

const EMPTY_DIR: &str = "kubernetes.io~empty-dir";
const LOCAL: &str = "kubernetes.io~local-volume";
const NFS: &str = "kubernetes.io~nfs";

/// Sets one volume up; says where it is.
pub(crate) fn set_up(pod: &Path, volume: &VolumeSpec, group: Option<FsGroup>) -> Result<PathBuf, FilesError> {
    made(pod, volume, group).map_err(|message| FilesError::Volume { volume: volume.name.clone(), message })
}

fn made(pod: &Path, volume: &VolumeSpec, group: Option<FsGroup>) -> Result<PathBuf, String> {
    let told = |error: FilesError| error.to_string();
    match &volume.kind {
        VolumeKind::HostPath { path, kind } => {
            host_path::check(path, *kind)?;
            Ok(path.clone())
        }
        VolumeKind::Local { path, read_only, options } => {
            if std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device()) {
                let device = path.display();
                return Err(format!(
                    "a block device behind a `local` volume is not supported on this node: make a file system on {device}, mount it, \
                     and let the volume's path be the folder that it is mounted on"
                ));
            }
            host_path::check(path, HostPathKind::Directory)?;
            if let Some(group) = group.filter(|_| !read_only) {
                // The path is the administrator's and may be a link; below it none is followed.
                let folder = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
                hand_once(pod, LOCAL, &volume.name, &folder, group).map_err(told)?;
            }
            if options.is_empty() {
                return Ok(path.clone());
            }
            let folder = folder_of(pod, LOCAL, &volume.name).map_err(told)?;
            write::folder(&folder, 0o750).and_then(|()| mounts::bind(path, &folder, options)).map_err(told)?;
            Ok(folder)
        }
        VolumeKind::EmptyDir { memory, size_limit } => {
            let medium = if *memory { Medium::Memory(*size_limit) } else { Medium::Disk };
            empty_dir(pod, &volume.name, medium, group).map_err(told)
        }
        VolumeKind::HugePages { page } => empty_dir(pod, &volume.name, Medium::HugePages(*page), group).map_err(told),
        VolumeKind::Nfs { server, path, options } => {
            let folder = folder_of(pod, NFS, &volume.name).map_err(told)?;
            // Not made again once it is mounted: whoever looks at it asks the server.
            if !mounts::is_mount(&folder).map_err(told)? {
                write::folder(&folder, 0o750).map_err(told)?;
            }
            nfs::mount(&folder, server, path, options)?;
            Ok(folder)
        }
        VolumeKind::Payload { files, memory, plugin } => {
            let folder = folder_of(pod, plugin, &volume.name).map_err(told)?;
            let group = group.map(|group| group.gid);
            let written = plain_folder(&folder, *memory, group)
                .and_then(|()| places(&folder, &volume.mount_points))
                .and_then(|()| payload::update(&folder, files, group));
            written.map_err(told)?;
            Ok(folder)
        }
    }
}

/// Takes away what the pod has of volumes that are neither among `names` nor `made` where it is: content, mounts, what was
/// mounted of their parts, and marks. Nobody may be using them.
pub(crate) fn sweep(pod: &Path, names: &BTreeSet<String>, made: &BTreeMap<String, PathBuf>) -> Result<(), FilesError> {
    let mut gone: Vec<PathBuf> = Vec::new();
    let is_named =
        |place: &Path| place.file_name().and_then(|name| name.to_str()).is_some_and(|name| names.contains(name));
    gone.extend(entries(&pod.join(sub_path::FOLDER))?.into_iter().filter(|place| !is_named(place)));
    for plugin in entries(&pod.join("volumes"))? {
        // One that is of another kind by now has another place.
        let moved = |place: &Path| made.iter().any(|(name, now)| place.ends_with(name) && now != place);
        gone.extend(entries(&plugin)?.into_iter().filter(|place| !is_named(place) || moved(place)));
    }
    for plugin in entries(&pod.join("plugins"))?.into_iter().filter(|plugin| !plugin.ends_with(images::PLUGIN)) {
        gone.extend(entries(&plugin)?.into_iter().filter(|place| !is_named(place)));
    }
    for place in gone {
        mounts::unmount_below(&place)?;
        remove::tree(&place)?;
    }
    Ok(())
}

/// What is in a folder; nothing where there is none.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, FilesError> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry.at(folder)?.path())).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).at(folder),
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

/// What an empty folder lies on.
#[derive(Clone, Copy)]
enum Medium {
    Disk,
    /// A tmpfs, with its size in bytes.
    Memory(Option<u64>),
    /// Huge pages of that size in bytes.
    HugePages(u64),
}

/// An empty folder that is there with its mode and owner, or not at all.
fn empty_dir(pod: &Path, name: &str, medium: Medium, group: Option<FsGroup>) -> Result<PathBuf, FilesError> {
    let folder = folder_of(pod, EMPTY_DIR, name)?;
    let gid = group.map(|group| group.gid);
    match medium {
        Medium::Memory(size) => {
            write::folder(&folder, 0o777)?;
            mounts::tmpfs(&folder, size, gid)?;
        }
        Medium::HugePages(page) => {
            write::folder(&folder, 0o777)?;
            mounts::huge_pages(&folder, page, gid)?;
        }
        Medium::Disk if !folder.is_dir() => fresh(&folder, gid)?,
        Medium::Disk => {}
    }
    if let Some(group) = group {
        hand_once(pod, EMPTY_DIR, name, &folder, group)?;
    }
    Ok(folder)
}

/// The kubelet hands a volume to the fsGroup once, when it sets it up. So it is here: the mark tells a folder that was handed
/// to this group from one whose containers have since changed modes, and a new fsGroup of a pod changed in place.
fn hand_once(pod: &Path, plugin: &str, name: &str, folder: &Path, group: FsGroup) -> Result<(), FilesError> {
    let mark = mark_of(pod, plugin, name)?;
    let wanted = group.gid.to_string();
    if std::fs::read_to_string(&mark).ok().as_deref() != Some(wanted.as_str()) {
        ownership::apply(folder, group, false)?;
        write::replace(&mark, wanted.as_bytes(), 0o640)?;
    }
    Ok(())
}

fn mark_of(pod: &Path, plugin: &str, name: &str) -> Result<PathBuf, FilesError> {
    let name = part(pod, "volume name", name)?;
    let mut folder = pod.join("plugins");
    write::folder(&folder, 0o750)?;
    for name in [plugin, name] {
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

/// Makes the folders that other volumes are mounted on.
fn places(folder: &Path, mount_points: &[String]) -> Result<(), FilesError> {
    for path in mount_points {
        payload::check_path(folder, path)?;
        let mut place = folder.to_owned();
        for part in path.split('/') {
            place.push(part);
            write::folder(&place, 0o755)?;
        }
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
