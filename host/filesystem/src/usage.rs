//! How much a folder's files take on the disk.
//!
//! Owns the count: blocks as `du` counts them, hard links once, no other file system, no longer than it may take.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use longshore_core::ports::files::DiskUsage;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Folders that are open at a time; a tree that needs more is no one's to measure.
const OPEN: usize = 256;
/// Files with several links that are remembered.
const LINKED: usize = 1 << 20;
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What a folder or file takes; `None` when that cannot be said before `deadline`.
pub(crate) fn measure(path: &Path, deadline: Instant) -> Option<DiskUsage> {
    let top = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&top).ok()?;
    let mut total = own(&stat)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Some(total);
    }
    let mut linked = HashSet::new();
    // Folders still to be read: a name, and the open folder that it is in, which closes with the last of its children.
    let mut rest: Vec<(Rc<OwnedFd>, std::ffi::CString)> = vec![(Rc::new(top), c".".to_owned())];
    let mut open: Vec<std::rc::Weak<OwnedFd>> = Vec::new();
    while let Some((parent, name)) = rest.pop() {
        if Instant::now() >= deadline {
            return None;
        }
        let folder = match rustix::fs::openat(parent.as_fd(), &name, FOLDER, Mode::empty()) {
            Ok(folder) => Rc::new(folder),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(_) => return None,
        };
        drop(parent);
        open.retain(|folder| folder.strong_count() > 0);
        if open.len() >= OPEN {
            return None;
        }
        open.push(Rc::downgrade(&folder));
        for (n, entry) in Dir::read_from(folder.as_fd()).ok()?.enumerate() {
            let Ok(entry) = entry else { return None };
            if n % 1024 == 1023 && Instant::now() >= deadline {
                return None;
            }
            let child = entry.file_name();
            if child == c"." || child == c".." {
                continue;
            }
            let Ok(found) = rustix::fs::statat(folder.as_fd(), child, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if found.st_dev != stat.st_dev {
                continue;
            }
            let is_folder = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
            if !is_folder && found.st_nlink > 1 && !linked.insert(found.st_ino) {
                continue;
            }
            if linked.len() > LINKED {
                return None;
            }
            total = total.plus(own(&found)?);
            if is_folder {
                rest.push((folder.clone(), child.to_owned()));
            }
        }
    }
    Some(total)
}

fn own(stat: &rustix::fs::Stat) -> Option<DiskUsage> {
    let blocks = u64::try_from(stat.st_blocks).ok()?;
    Some(DiskUsage { bytes: blocks.saturating_mul(512), inodes: 1 })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn it_counts_as_du_does() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        std::fs::write(dir.path().join("a/big"), vec![1; 300_000]).unwrap();
        std::fs::hard_link(dir.path().join("a/big"), dir.path().join("a/b/again")).unwrap();
        std::fs::write(dir.path().join("a/b/c/small"), "x").unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("a/root")).unwrap();
        let sparse = std::fs::File::create(dir.path().join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        let du = std::process::Command::new("du").args(["-sx", "--block-size=1"]).arg(dir.path()).output().unwrap();
        let expected: u64 = String::from_utf8(du.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap();
        // Itself, a, a/b, a/b/c, one file of two names, small, a link and the sparse one.
        assert_eq!(measure(dir.path(), soon()), Some(DiskUsage { bytes: expected, inodes: 8 }));
        assert_eq!(measure(&dir.path().join("a/b/c/small"), soon()).unwrap().inodes, 1);
    }

    #[test]
    fn mounts_are_not_crossed_and_time_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().canonicalize().unwrap().join("t");
        std::fs::create_dir(&inner).unwrap();
        let before = measure(dir.path(), soon()).unwrap();
        crate::mounts::tmpfs(&inner, None, None).unwrap();
        std::fs::write(inner.join("big"), vec![1; 1 << 20]).unwrap();
        let (outer, own) = (measure(dir.path(), soon()), measure(&inner, soon()));
        crate::mounts::unmount_below(&inner).unwrap();
        assert!(outer.unwrap().bytes <= before.bytes);
        assert!(own.unwrap().bytes >= 1 << 20);
        assert_eq!(measure(dir.path(), Instant::now()), None);
        assert_eq!(measure(&dir.path().join("none"), soon()), None);
    }

    #[test]
    fn a_chain_of_folders_is_measured_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut at = rustix::fs::open(dir.path(), FOLDER, Mode::empty()).unwrap();
        for _ in 0..2000 {
            rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o755)).unwrap();
            at = rustix::fs::openat(&at, "d", FOLDER, Mode::empty()).unwrap();
        }
        assert!(measure(dir.path(), soon()).is_some());
        crate::remove::contents(dir.path(), &[]).unwrap();
    }
}
