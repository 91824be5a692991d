//! Handing a volume to the pod's fsGroup.
//!
//! Owns the rule of `pkg/volume/volume_linux.go`: group, setgid on folders, access for the group. It must not follow
//! a link: what lies in a volume was made by containers.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use longshore_core::ports::files::FilesError;
use longshore_core::volume::FsGroup;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::layout::{At, refuse};
use crate::remove::mount_id;

const SETGID: u32 = 0o2000;
/// Deeper folders are refused rather than run out of stack and descriptors on them.
const DEPTH: usize = 200;

/// The bits that a group needs, for a folder or a file, in a volume that it may write or only read.
pub(crate) fn mask(folder: bool, read_only: bool) -> u32 {
    let access = if read_only { 0o440 } else { 0o660 };
    if folder { access | SETGID | 0o110 } else { access }
}

/// Gives a volume and all that is in it to the group. What cannot be handed over (a file that is immutable, a file system
/// without owners) stays as it is, and the log says so once, as the kubelet has it (`changeFilePermission`).
pub(crate) fn apply(root: &Path, group: FsGroup, read_only: bool) -> Result<(), FilesError> {
    let open = rustix::fs::openat(CWD, root, PATH, Mode::empty()).at(root)?;
    let stat = rustix::fs::fstat(&open).at(root)?;
    if group.on_root_mismatch && fits(&stat, group.gid, read_only) {
        return Ok(());
    }
    let mount = mount_id(open.as_fd()).at(root)?;
    // The root comes last: once it fits, OnRootMismatch trusts all that is below it.
    let mut hands = Hands { gid: group.gid, read_only, mount, told: false };
    hands.below(open.as_fd(), root, 0)?;
    hands.over(&open, &stat, root);
    Ok(())
}

/// Those that hand a volume over.
struct Hands {
    gid: u32,
    read_only: bool,
    mount: u64,
    /// Whether the log says that something could not be handed over.
    told: bool,
}

/// Whether a volume's root has the group, its access and setgid (`requiresPermissionChange`).
fn fits(stat: &Stat, gid: u32, read_only: bool) -> bool {
    let mask = mask(true, read_only);
    stat.st_gid == gid && stat.st_mode & mask == mask
}

const PATH: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Hands {
    fn below(&mut self, folder: BorrowedFd<'_>, place: &Path, depth: usize) -> Result<(), FilesError> {
        const READ: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
        let readable = rustix::fs::openat(folder, ".", READ, Mode::empty());
        for entry in Dir::new(readable.at(place)?).at(place)? {
            let entry = entry.at(place)?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let path = place.join(&*name.to_string_lossy());
            let open = match rustix::fs::openat(folder, name, PATH, Mode::empty()) {
                Ok(open) => open,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno).at(&path),
            };
            let stat = rustix::fs::fstat(&open).at(&path)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                if mount_id(open.as_fd()).at(&path)? != self.mount {
                    continue;
                }
                if depth >= DEPTH {
                    return Err(refuse(&path, "folders are nested too deeply to hand them to the fsGroup"));
                }
                self.below(open.as_fd(), &path, depth + 1)?;
            }
            self.over(&open, &stat, &path);
        }
        Ok(())
    }

    fn over(&mut self, open: &OwnedFd, stat: &Stat, path: &Path) {
        let Err(errno) = hand_over(open, stat, self.gid, self.read_only) else { return };
        if !std::mem::replace(&mut self.told, true) {
            let (path, group) = (path.display(), self.gid);
            tracing::warn!(%path, group, %errno, "a file of a volume cannot be given to the pod's fsGroup; others may follow");
        }
    }
}

fn hand_over(open: &OwnedFd, stat: &Stat, gid: u32, read_only: bool) -> Result<(), Errno> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let given = match stat.st_gid == gid {
        true => Ok(()),
        false => rustix::fs::chownat(open, "", None, Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH),
    };
    let mode = (stat.st_mode & 0o7777) | mask(kind == FileType::Directory, read_only);
    if kind == FileType::Symlink {
        return given;
    }
    // chown takes setuid and setgid away, so the mode is set even where it looks right. fchmod refuses O_PATH, and
    // a path could have become a link by now: /proc names this very file.
    given.and(rustix::fs::chmod(format!("/proc/self/fd/{}", open.as_raw_fd()), Mode::from_raw_mode(mode)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn seen(path: &Path) -> (u32, u32) {
        let meta = std::fs::symlink_metadata(path).unwrap();
        (meta.gid(), meta.mode() & 0o7777)
    }

    #[test]
    fn group_setgid_and_access_are_given_and_links_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::write(&outside, "").unwrap();
        std::fs::set_permissions(&outside, PermissionsExt::from_mode(0o600)).unwrap();
        let root = dir.path().join("v");
        std::fs::create_dir_all(root.join("d")).unwrap();
        std::fs::write(root.join("d/f"), "").unwrap();
        std::fs::set_permissions(root.join("d/f"), PermissionsExt::from_mode(0o4711)).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        apply(&root, FsGroup { gid: 4321, on_root_mismatch: false }, false).unwrap();
        assert_eq!(seen(&root), (4321, 0o2775));
        assert_eq!(seen(&root.join("d")), (4321, 0o2775));
        assert_eq!(seen(&root.join("d/f")), (4321, 0o4771));
        assert_eq!(seen(&root.join("link")).0, 4321);
        assert_eq!(seen(&outside), (0, 0o600));
    }

    #[test]
    fn what_cannot_be_handed_over_stays_and_the_rest_is() {
        let dir = tempfile::tempdir().unwrap();
        let [fixed, plain] = ["fixed", "plain"].map(|name| dir.path().join(name));
        let file = std::fs::File::create(&fixed).unwrap();
        std::fs::write(&plain, "").unwrap();
        // Not every file system has immutable files.
        if rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::IMMUTABLE).is_err() {
            return;
        }
        let applied = apply(dir.path(), FsGroup { gid: 4321, on_root_mismatch: false }, false);
        rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::empty()).unwrap();
        assert_eq!(applied, Ok(()));
        assert_eq!((seen(&fixed).0, seen(&plain).0, seen(dir.path()).0), (0, 4321, 4321));
    }

    #[test]
    fn on_root_mismatch_trusts_a_root_that_fits() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "").unwrap();
        let group = FsGroup { gid: 77, on_root_mismatch: true };
        apply(dir.path(), group, false).unwrap();
        assert_eq!(seen(&file).0, 77);
        rustix::fs::chown(&file, None, Some(Gid::from_raw(0))).unwrap();
        apply(dir.path(), group, false).unwrap();
        assert_eq!(seen(&file).0, 0);
        apply(dir.path(), FsGroup { on_root_mismatch: false, ..group }, false).unwrap();
        assert_eq!(seen(&file).0, 77);
    }
}
