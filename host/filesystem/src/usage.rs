//! How much a folder's files take on the disk.
//!
//! Owns the count: blocks as `du` counts them, hard links once, no other file system, no longer than it may take. Containers
//! nest folders as deep as they like, and move them meanwhile: what was counted stands, whatever is not reached.

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Instant;

use longshore_core::ports::files::{DiskUsage, Measured};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// So many folders stay open from the top on, and so many from the lowest up. Those between are closed, and found again from
/// below.
const OPEN: usize = 16;
/// Folders that are closed.
const CLOSED: usize = 1 << 20;
/// Files with several links that are remembered.
const LINKED: usize = 1 << 20;
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What a folder or file takes, as far as that can be counted before `deadline`; `None` when it is not there.
pub(crate) fn measure(path: &Path, deadline: Instant) -> Option<Measured> {
    let top = match rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT | Errno::NOTDIR) => return None,
        Err(_) => return Some(Measured::default()),
    };
    let Ok(stat) = rustix::fs::fstat(&top) else { return Some(Measured::default()) };
    let mut walk = Walk {
        device: stat.st_dev,
        count: Measured { usage: own(&stat), whole: true },
        linked: HashSet::new(),
        open: Vec::new(),
        closed: Vec::new(),
    };
    if is_folder(&stat) {
        walk.enter(open(top.as_fd(), c".", stat.st_dev));
        while !walk.open.is_empty() {
            if Instant::now() >= deadline {
                walk.count.whole = false;
                break;
            }
            walk.step();
        }
    }
    Some(walk.count)
}

/// A folder that is being read, and how far it was.
struct Folder {
    dir: Dir,
    inode: u64,
    read: i64,
}

struct Walk {
    device: u64,
    count: Measured,
    linked: HashSet<u64>,
    /// From the top to the folder that is read next, without those that are closed, which belong after the first [`OPEN`].
    open: Vec<Folder>,
    /// Their inodes, and how far they were read.
    closed: Vec<(u64, i64)>,
}

impl Walk {
    /// Counts the next entry of the lowest folder, or leaves it.
    fn step(&mut self) {
        let Some(folder) = self.open.last_mut() else { return };
        match folder.dir.read() {
            Some(Ok(entry)) => {
                folder.read = entry.offset();
                self.entry(entry.file_name());
            }
            Some(Err(_)) => {
                self.count.whole = false;
                self.leave();
            }
            None => self.leave(),
        }
    }

    fn entry(&mut self, name: &CStr) {
        if name == c"." || name == c".." {
            return;
        }
        let Some(Ok(parent)) = self.open.last().map(|folder| folder.dir.fd()) else { return };
        let found = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if found.st_dev == self.device => found,
            Ok(_) | Err(Errno::NOENT) => return,
            Err(_) => {
                self.count.whole = false;
                return;
            }
        };
        let folder = is_folder(&found).then(|| open(parent, name, self.device));
        if folder.is_some() || self.is_first(&found) {
            self.count.usage = self.count.usage.plus(own(&found));
        }
        if let Some(folder) = folder {
            self.enter(folder);
        }
    }

    /// Whether a file is not counted yet under another name.
    fn is_first(&mut self, file: &Stat) -> bool {
        if file.st_nlink <= 1 {
            return true;
        }
        if self.linked.len() < LINKED {
            return self.linked.insert(file.st_ino);
        }
        if !self.linked.contains(&file.st_ino) {
            // Too many to be remembered: of this one each name counts its part.
            let part = u128::from(own(file).bytes) / u128::from(file.st_nlink);
            let bytes = u64::try_from(part).unwrap_or(u64::MAX);
            self.count.usage = self.count.usage.plus(DiskUsage { bytes, inodes: 0 });
            self.count.whole = false;
        }
        false
    }

    /// Reads a folder next, if it could be opened.
    fn enter(&mut self, folder: rustix::io::Result<Option<Folder>>) {
        match folder {
            Ok(Some(folder)) if self.closed.len() < CLOSED => self.open.push(folder),
            Ok(None) => return,
            Ok(Some(_)) | Err(_) => {
                self.count.whole = false;
                return;
            }
        }
        if self.open.len() > 2 * OPEN {
            let folder = self.open.remove(OPEN);
            self.closed.push((folder.inode, folder.read));
        }
    }

    /// Goes on with the folder above the lowest. One that was closed and is not above any more is given up, with what was to
    /// be read there, and so are the other closed ones.
    fn leave(&mut self) {
        let Some(left) = self.open.pop() else { return };
        if self.open.len() != OPEN {
            return;
        }
        let Some((inode, read)) = self.closed.pop() else { return };
        match self.above(&left, inode, read) {
            Some(folder) => self.open.push(folder),
            None => {
                self.count.whole = false;
                self.closed.clear();
            }
        }
    }

    fn above(&self, left: &Folder, inode: u64, read: i64) -> Option<Folder> {
        let mut folder = open(left.dir.fd().ok()?, c"..", self.device).ok()?.filter(|folder| folder.inode == inode)?;
        folder.dir.seek(read).ok()?;
        folder.read = read;
        Some(folder)
    }
}

/// Opens a folder; `None` when it is gone, or something else by now.
fn open(parent: BorrowedFd<'_>, name: &CStr, device: u64) -> rustix::io::Result<Option<Folder>> {
    let folder = match rustix::fs::openat(parent, name, FOLDER, Mode::empty()) {
        Ok(folder) => folder,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error),
    };
    let stat = rustix::fs::fstat(&folder)?;
    if stat.st_dev != device {
        return Ok(None);
    }
    Ok(Some(Folder { dir: Dir::new(folder)?, inode: stat.st_ino, read: 0 }))
}

fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn own(stat: &Stat) -> DiskUsage {
    let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
    DiskUsage { bytes: blocks.saturating_mul(512), inodes: 1 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    /// All of it.
    fn whole(path: &Path) -> DiskUsage {
        let found = measure(path, soon()).unwrap();
        assert!(found.whole, "{found:?}");
        found.usage
    }

    /// Nests so many folders, each with so many empty ones beside the next.
    fn nest(top: &Path, deep: usize, beside: usize) {
        let mut at = rustix::fs::open(top, FOLDER, Mode::empty()).unwrap();
        for _ in 0..deep {
            for n in 0..beside {
                rustix::fs::mkdirat(&at, n.to_string(), Mode::from_raw_mode(0o755)).unwrap();
            }
            rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o755)).unwrap();
            at = rustix::fs::openat(&at, "d", FOLDER, Mode::empty()).unwrap();
        }
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
        assert_eq!(whole(dir.path()), DiskUsage { bytes: expected, inodes: 8 });
        assert_eq!(whole(&dir.path().join("a/b/c/small")).inodes, 1);
    }

    #[test]
    fn mounts_are_not_crossed_and_time_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().canonicalize().unwrap().join("t");
        std::fs::create_dir(&inner).unwrap();
        let before = whole(dir.path());
        crate::mounts::tmpfs(&inner, None, None).unwrap();
        std::fs::write(inner.join("big"), vec![1; 1 << 20]).unwrap();
        let (outer, own) = (whole(dir.path()), whole(&inner));
        crate::mounts::unmount_below(&inner).unwrap();
        assert!(outer.bytes <= before.bytes);
        assert!(own.bytes >= 1 << 20);
        let late = measure(dir.path(), Instant::now()).unwrap();
        assert_eq!((late.whole, late.usage.inodes), (false, 1), "what was counted by then");
        assert_eq!(measure(&dir.path().join("none"), soon()), None);
    }

    #[test]
    fn deep_trees_are_measured_whole() {
        for (deep, beside) in [(2000, 0), (300, 9)] {
            let dir = tempfile::tempdir().unwrap();
            nest(dir.path(), deep, beside);
            let inodes = u64::try_from(1 + deep * (1 + beside)).unwrap();
            assert_eq!(whole(dir.path()).inodes, inodes, "{deep}");
            crate::remove::contents(dir.path(), &[]).unwrap();
        }
    }

    /// A folder that was closed is moved away from above those that are read.
    #[test]
    fn what_is_moved_meanwhile_leaves_the_count_of_the_rest() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let deep = 2 * OPEN + 8;
        nest(dir.path(), deep, 1);
        let top = rustix::fs::open(dir.path(), FOLDER, Mode::empty()).unwrap();
        let device = rustix::fs::fstat(&top).unwrap().st_dev;
        let mut walk = Walk {
            device,
            count: Measured { usage: DiskUsage::default(), whole: true },
            linked: HashSet::new(),
            open: Vec::new(),
            closed: Vec::new(),
        };
        walk.enter(open(top.as_fd(), c".", device));
        while walk.open.len() + walk.closed.len() <= deep {
            walk.step();
        }
        assert_eq!(walk.open.len(), 2 * OPEN);
        let path: std::path::PathBuf = dir.path().join(["d"; OPEN + 4].join("/"));
        std::fs::rename(path, outside.path().join("d")).unwrap();
        while !walk.open.is_empty() {
            walk.step();
        }
        // All were seen on the way down, but for what is beside those that were closed and could not be found again.
        let all = u64::try_from(2 * deep).unwrap();
        assert!(!walk.count.whole);
        assert!((all - 8..=all).contains(&walk.count.usage.inodes), "{:?}", walk.count);
    }
}
