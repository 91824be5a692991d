//! The files of images, for volumes of a runtime that cannot mount images itself.
//!
//! `<root>/images/<hex of the ID>` holds one image's files, whole or not at all, for all pods; each pod's volume is a
//! read-only mount of it. A pod that uses one has a mark in its folder, which goes with the folder; what no pod marks is
//! removed. Marks are made, and what has none is looked for, under one lock. It must not know where files come from.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use longshore_core::ports::files::FilesError;
use rustix::mount::MountFlags;

use crate::layout::{At, Layout, part, refuse};
use crate::{mounts, remove, write};

/// The folder of volumes of this kind, and of marks.
pub(crate) const PLUGIN: &str = "kubernetes.io~image";
/// Before the name of what is still being unpacked, and of what is being removed.
const FRESH: &str = ".new-";
const GONE: &str = ".gone-";

/// The images' files of one root folder.
#[derive(Debug, Default)]
pub(crate) struct Images {
    marks: Mutex<()>,
    /// Who unpacks: one that was given up for taking too long may still be at it when the next one comes.
    unpacking: Mutex<()>,
}

impl Images {
    /// A turn to unpack; `None` while another one lasts, which is not waited for.
    pub(crate) fn alone(&self) -> Option<MutexGuard<'_, ()>> {
        match self.unpacking.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Marks an image as the pod's, and mounts its files as the pod's volume; `None` when they are not there.
    pub(crate) fn mount(
        &self,
        layout: &Layout,
        pod: &Path,
        volume: &str,
        image: &str,
    ) -> Result<Option<PathBuf>, FilesError> {
        let content = place(layout, image)?;
        {
            let _alone = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
            write::rewrite(&mark(pod, image)?, b"", 0o640)?;
        }
        if !content.is_dir() {
            return Ok(None);
        }
        let mut target = pod.join("volumes");
        write::folder(&target, 0o750)?;
        for (what, name) in [("volume plugin", PLUGIN), ("volume name", volume)] {
            let name = part(&target, what, name)?;
            target.push(name);
            write::folder(&target, 0o750)?;
        }
        if mounts::is_mount(&target)? && !is_same(&content, &target)? {
            // The image behind the name is another one by now. Containers that run keep theirs.
            mounts::unmount(&target)?;
        }
        if !mounts::is_mount(&target)? {
            rustix::mount::mount_bind(&content, &target).map_err(|errno| cannot_mount(&target, errno))?;
        }
        // Always: a crash may have come after the bind, which takes no flags.
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount_remount(&target, flags, "").map_err(|errno| cannot_mount(&target, errno))?;
        Ok(Some(target))
    }

    /// Takes the files of images away that no pod uses any more.
    pub(crate) fn sweep(&self, layout: &Layout) -> Result<(), FilesError> {
        let folder = folder(layout);
        if !folder.is_dir() {
            return Ok(());
        }
        let mut gone = Vec::new();
        {
            let _alone = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
            for entry in std::fs::read_dir(&folder).at(&folder)? {
                let entry = entry.at(&folder)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with(GONE) {
                    gone.push(entry.path());
                    continue;
                }
                let hex = name.strip_prefix(FRESH).unwrap_or(&name);
                if is_marked(layout, hex)? {
                    continue;
                }
                let aside = folder.join(format!("{GONE}{hex}"));
                remove::tree(&aside)?;
                std::fs::rename(entry.path(), &aside).at(&aside)?;
                gone.push(aside);
            }
        }
        gone.iter().try_for_each(|path| remove::tree(path))
    }
}

fn cannot_mount(target: &Path, errno: rustix::io::Errno) -> FilesError {
    refuse(target, format!("cannot mount an image's files here: {errno}; longshore needs CAP_SYS_ADMIN for it"))
}

fn is_same(one: &Path, other: &Path) -> Result<bool, FilesError> {
    let (a, b) = (rustix::fs::stat(one).at(one)?, rustix::fs::stat(other).at(other)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

fn folder(layout: &Layout) -> PathBuf {
    layout.root.join("images")
}

/// An image's ID as a part of a path.
fn hex(image: &str) -> Result<&str, FilesError> {
    let name = image.strip_prefix("sha256:").unwrap_or(image);
    part(Path::new("images"), "image ID", name)
}

/// Where an image's files are.
pub(crate) fn place(layout: &Layout, image: &str) -> Result<PathBuf, FilesError> {
    Ok(folder(layout).join(hex(image)?))
}

/// Makes an empty folder to unpack into; [`keep`] gives it its place.
pub(crate) fn begin(layout: &Layout, image: &str) -> Result<PathBuf, FilesError> {
    let folder = folder(layout);
    write::folder(&folder, 0o750)?;
    let fresh = folder.join(format!("{FRESH}{}", hex(image)?));
    remove::tree(&fresh)?;
    write::folder(&fresh, 0o755)?;
    Ok(fresh)
}

/// Gives what was unpacked its place, once it is on the disk: what is there is whole, also after a power cut.
pub(crate) fn keep(layout: &Layout, image: &str, fresh: &Path) -> Result<(), FilesError> {
    let place = place(layout, image)?;
    let open = std::fs::File::open(fresh).at(fresh)?;
    rustix::fs::syncfs(&open).at(fresh)?;
    std::fs::rename(fresh, &place).at(&place)?;
    let folder = folder(layout);
    std::fs::File::open(&folder).and_then(|folder| folder.sync_all()).at(&folder)
}

fn marks(pod: &Path) -> PathBuf {
    pod.join("plugins").join(PLUGIN)
}

fn mark(pod: &Path, image: &str) -> Result<PathBuf, FilesError> {
    let folder = marks(pod);
    write::folder(&pod.join("plugins"), 0o750)?;
    write::folder(&folder, 0o750)?;
    Ok(folder.join(hex(image)?))
}

fn is_marked(layout: &Layout, hex: &str) -> Result<bool, FilesError> {
    let pods = layout.pods();
    for pod in std::fs::read_dir(&pods).at(&pods)? {
        if std::fs::symlink_metadata(marks(&pod.at(&pods)?.path()).join(hex)).is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
