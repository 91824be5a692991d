//! Removing a folder that containers wrote in: never through a symlink, never across a mount.
//!
//! Owns the deletion of pods' folders and nothing else. What lies in them was made by strangers, so every step works
//! on open folders, and a mount that is still there (a hostPath or another pod's data may be behind it) ends the removal.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use longshore_core::ports::files::FilesError;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::layout::{At, refuse};

/// Deeper folders are moved up first: a container can nest more of them than there are file descriptors.
const DEPTH: usize = 48;
/// How often a folder is read again in which there is still something that goes.
const ROUNDS: usize = 64;
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes what is in a folder, but for the entries of that name at the top. A missing folder is empty.
pub(crate) fn contents(folder: &Path, keep: &[&str]) -> Result<(), FilesError> {
    let top = match rustix::fs::openat(CWD, folder, FOLDER, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno).at(folder),
    };
    let dir = Dir::read_from(&top).at(folder)?;
    Removal { mount: mount_id(top.as_fd()).at(folder)?, top, deep: 0 }.clear(dir, folder, keep, 0)
}

/// Removes a folder with all that is in it. A missing one is no error.
pub(crate) fn tree(folder: &Path) -> Result<(), FilesError> {
    contents(folder, &[])?;
    match rustix::fs::rmdir(folder) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno).at(folder),
    }
}

struct Removal {
    top: OwnedFd,
    mount: u64,
    deep: u64,
}

impl Removal {
    /// Removes what is in an open folder one by one as it is read, for it may hold millions; then it is read again, as file
    /// systems may leave out some while others go, until nothing more goes. Where somebody still makes new ones that ends as
    /// well; at the top there is nobody, and folders that were moved there may hold deeper ones.
    fn clear(&mut self, mut dir: Dir, place: &Path, keep: &[&str], depth: usize) -> Result<(), FilesError> {
        let mut rounds = 0;
        loop {
            let mut removed = false;
            while let Some(entry) = dir.read() {
                let entry = entry.at(place)?;
                let (name, kind) = (entry.file_name(), entry.file_type());
                if name == c"." || name == c".." || keep.iter().any(|kept| kept.as_bytes() == name.to_bytes()) {
                    continue;
                }
                let parent = dir.fd().at(place)?;
                removed |= match kind {
                    FileType::Directory if depth > DEPTH => self.move_up(parent, place, name)?,
                    _ => self.entry(parent, place, name, kind, depth)?,
                };
            }
            rounds += 1;
            if !removed || (depth > 0 && rounds >= ROUNDS) {
                return Ok(());
            }
            dir.rewind();
        }
    }

    /// Removes an entry with all that is in it; whether it was there.
    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        place: &Path,
        name: &CStr,
        kind: FileType,
        depth: usize,
    ) -> Result<bool, FilesError> {
        let path = || join(place, name);
        if kind != FileType::Directory {
            match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
                Ok(()) => return Ok(true),
                Err(Errno::NOENT) => return Ok(false),
                // Linux says EISDIR when the kind was not known and it is a folder after all.
                Err(Errno::ISDIR) => {}
                Err(Errno::BUSY) => return Err(refuse(&path(), "is a mount point: not removed")),
                Err(errno) => return Err(errno).at(&path()),
            }
        }
        let folder = match rustix::fs::openat(parent, name, FOLDER, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(errno).at(&path()),
        };
        if mount_id(folder.as_fd()).at(&path())? != self.mount {
            return Err(refuse(&path(), "something is mounted here: not removed; unmount it first"));
        }
        self.clear(Dir::new(folder).at(&path())?, &path(), &[], depth + 1)?;
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(Errno::BUSY) => Err(refuse(&path(), "is a mount point: not removed")),
            Err(errno) => Err(errno).at(&path()),
        }
    }

    /// Puts a folder at the top, to be removed there; whether it was there.
    fn move_up(&mut self, parent: BorrowedFd<'_>, place: &Path, name: &CStr) -> Result<bool, FilesError> {
        loop {
            self.deep += 1;
            let aside = format!("{MOVED}{}", self.deep);
            match rustix::fs::renameat(parent, name, &self.top, aside.as_str()) {
                Ok(()) => return Ok(true),
                Err(Errno::NOENT) => return Ok(false),
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                Err(errno) => return Err(errno).at(&join(place, name)),
            }
        }
    }
}

const MOVED: &str = "..longshore-removed-";

fn join(place: &Path, name: &CStr) -> PathBuf {
    place.join(std::ffi::OsStr::new(&*name.to_string_lossy()))
}

/// Which mount an open folder lies in. A device number would not do: bind mounts share it.
pub(crate) fn mount_id(folder: BorrowedFd<'_>) -> std::io::Result<u64> {
    if let Ok(stat) = rustix::fs::statx(folder, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        && StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID)
    {
        return Ok(stat.stx_mnt_id);
    }
    // Before Linux 5.8.
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", folder.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).and_then(|id| id.trim().parse().ok());
    id.ok_or_else(|| std::io::Error::other("the kernel does not say in which mount it lies"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustix::mount::UnmountFlags;

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("precious"), "x").unwrap();
        let pod = dir.path().join("pod");
        std::fs::create_dir_all(pod.join("a/b")).unwrap();
        std::os::unix::fs::symlink(&outside, pod.join("a/link")).unwrap();
        std::os::unix::fs::symlink("../../../../../../..", pod.join("a/b/up")).unwrap();
        tree(&pod).unwrap();
        assert!(!pod.exists());
        assert!(outside.join("precious").exists());
        tree(&pod).unwrap();
    }

    #[test]
    fn mounted_folders_and_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("precious"), "x").unwrap();
        let pod = dir.path().join("pod");
        std::fs::create_dir_all(pod.join("v/mnt")).unwrap();
        // The same file system: a comparison of devices would walk into it.
        rustix::mount::mount_bind(&outside, pod.join("v/mnt")).unwrap();
        let folder = tree(&pod);
        rustix::mount::unmount(pod.join("v/mnt"), UnmountFlags::empty()).unwrap();
        std::fs::write(pod.join("v/file"), "").unwrap();
        rustix::mount::mount_bind(outside.join("precious"), pod.join("v/file")).unwrap();
        let file = tree(&pod);
        rustix::mount::unmount(pod.join("v/file"), UnmountFlags::empty()).unwrap();
        assert!(folder.unwrap_err().to_string().contains("v/mnt: something is mounted here"));
        assert!(file.unwrap_err().to_string().contains("v/file: is a mount point"));
        assert!(outside.join("precious").exists());
        tree(&pod).unwrap();
    }

    #[test]
    fn a_tree_deeper_than_paths_and_descriptors_allow_goes() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("pod");
        std::fs::create_dir(&pod).unwrap();
        let mut at = rustix::fs::open(&pod, FOLDER, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "deep", Mode::from_raw_mode(0o755)).unwrap();
            rustix::fs::mkdirat(&at, "wide", Mode::from_raw_mode(0o755)).unwrap();
            at = rustix::fs::openat(&at, "deep", FOLDER, Mode::empty()).unwrap();
        }
        tree(&pod).unwrap();
        assert!(!pod.exists());
    }

    #[test]
    fn what_is_kept_stays() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("record.json"), "{}").unwrap();
        std::fs::create_dir(dir.path().join("volumes")).unwrap();
        for n in 0..3000 {
            std::fs::write(dir.path().join(format!("volumes/{n}")), "").unwrap();
        }
        contents(dir.path(), &["record.json"]).unwrap();
        assert!(dir.path().join("record.json").exists());
        assert!(!dir.path().join("volumes").exists());
    }
}
