//! Sub-paths of volumes, found without ever being led out of the volume, and held by a bind mount.
//!
//! Containers write in volumes while this runs, so a path that was checked is worth nothing a moment later. Every step
//! opens one name in an open folder without following links; links are followed by hand, inside the volume; and what
//! is bound is the open file itself, by `/proc/self/fd`. As `pkg/volume/util/subpath/subpath_linux.go`, which also
//! gives the bind mount's place: `<pod>/volume-subpaths/<volume>/<container>/<index>`.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use longshore_core::ports::files::{FilesError, SubPath};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::layout::{At, part, refuse};
use crate::{mounts, write};

/// What a pod's folder has them in.
pub(crate) const FOLDER: &str = "volume-subpaths";
/// As Linux' own limit (path_resolution(7)).
const LINKS: usize = 40;
/// Parts of a path; a container may nest folders as deeply as it likes.
const PARTS: usize = 1024;
const NAME: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens the sub-path of a volume. With `make` a missing one is made as folders with the volume's own mode, which is what its
/// users need (`SafeMakeDir`); setgid in it gives them the volume's group.
pub(crate) fn open(root: &Path, path: &str, make: bool) -> Result<OwnedFd, FilesError> {
    let place = root.join(path);
    if Path::new(path).is_absolute() || path.split('/').any(|part| part == "..") || path.contains('\0') {
        return Err(refuse(&place, "subPath must be a relative path and must not contain '..'"));
    }
    // The volume itself may be reached through links: those are the node's.
    let top = rustix::fs::openat(CWD, root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).at(root)?;
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&top).at(root)?.st_mode & 0o7777);
    let mut stack: Vec<OwnedFd> = vec![top];
    let mut rest: VecDeque<OsString> = parts(path.as_bytes()).collect();
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            if stack.len() == 1 {
                return Err(refuse(&place, "a link in the volume leads out of it"));
            }
            stack.pop();
            continue;
        }
        if stack.len() + rest.len() > PARTS {
            return Err(refuse(&place, "the path has too many parts"));
        }
        let Some(folder) = stack.last() else { break };
        let opened = match make {
            true => open_or_make(folder, &name, mode),
            false => rustix::fs::openat(folder, &name, NAME, Mode::empty()),
        }
        .at(&place)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&opened).at(&place)?.st_mode);
        if kind == FileType::Symlink {
            links += 1;
            if links > LINKS {
                return Err(refuse(&place, "too many links, or a loop of them"));
            }
            // An empty name reads the link that is open, not one that has taken its place.
            let target = rustix::fs::readlinkat(&opened, "", Vec::new()).at(&place)?;
            let mut target = target.to_bytes();
            if target.starts_with(b"/") {
                target = within(root, &stack[0], target).ok_or_else(|| {
                    refuse(&place, format!("{name:?} is a link to an absolute path, which is out of the volume"))
                })?;
                stack.truncate(1);
            }
            for part in parts(target).rev() {
                rest.push_front(part);
            }
            continue;
        }
        if kind != FileType::Directory && !rest.is_empty() {
            return Err(refuse(&place, format!("{name:?} is not a folder")));
        }
        stack.push(opened);
    }
    stack.pop().ok_or_else(|| refuse(&place, "leads nowhere"))
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = OsString> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.map(|part| OsStr::from_bytes(part).to_owned()).collect::<Vec<_>>().into_iter()
}

/// What an absolute path on the node says below the volume: a link in a host path may name its place on the node.
fn within<'a>(root: &Path, top: &OwnedFd, target: &'a [u8]) -> Option<&'a [u8]> {
    let target = Path::new(OsStr::from_bytes(target));
    let real = std::fs::read_link(format!("/proc/self/fd/{}", top.as_raw_fd())).ok();
    let rest = target.strip_prefix(root).ok().or_else(|| target.strip_prefix(real?).ok())?;
    Some(rest.as_os_str().as_bytes())
}

fn open_or_make(folder: &OwnedFd, name: &OsStr, mode: Mode) -> Result<OwnedFd, Errno> {
    let mut made = false;
    // Someone may remove what was just made, but not for ever.
    for _ in 0..16 {
        match rustix::fs::openat(folder, name, NAME, Mode::empty()) {
            Err(Errno::NOENT) => match rustix::fs::mkdirat(folder, name, mode) {
                Ok(()) => made = true,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            },
            Ok(opened) if made => {
                // By our umask some of it may be missing. fchmod refuses O_PATH; /proc names this very folder.
                if FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode) == FileType::Directory {
                    rustix::fs::chmod(format!("/proc/self/fd/{}", opened.as_raw_fd()), mode)?;
                }
                return Ok(opened);
            }
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Reads a file of a volume, of at most so many bytes.
pub(crate) fn read(root: &Path, path: &str, limit: usize) -> Result<Vec<u8>, FilesError> {
    let place = root.join(path);
    let opened = open(root, path, false)?;
    // A pipe would be waited for, and a device could be anything.
    if FileType::from_raw_mode(rustix::fs::fstat(&opened).at(&place)?.st_mode) != FileType::RegularFile {
        return Err(refuse(&place, "is not a file"));
    }
    let file = File::open(format!("/proc/self/fd/{}", opened.as_raw_fd())).at(&place)?;
    let mut content = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut content).at(&place)?;
    if content.len() > limit { Err(refuse(&place, format!("is larger than {limit} bytes"))) } else { Ok(content) }
}

/// Binds the sub-path to its place in the pod's folder; says where that is.
pub(crate) fn bind(pod: &Path, sub_path: &SubPath) -> Result<PathBuf, FilesError> {
    let source = open(&sub_path.root, &sub_path.path, true)?;
    let mut place = pod.join(FOLDER);
    write::folder(&place, 0o750)?;
    for (what, name) in [("volume name", &sub_path.volume), ("container name", &sub_path.container)] {
        let name = part(&place, what, name)?;
        place.push(name);
        write::folder(&place, 0o750)?;
    }
    place.push(sub_path.index.to_string());
    let wanted = rustix::fs::fstat(source.as_fd()).at(&place)?;
    if mounts::is_mount(&place)? {
        if let Ok(found) = rustix::fs::lstat(&place)
            && (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
        {
            return Ok(place);
        }
        // The volume's content was replaced since (a new set of a ConfigMap, say). Containers that run keep theirs.
        mounts::unmount(&place)?;
    }
    let folder = FileType::from_raw_mode(wanted.st_mode) == FileType::Directory;
    target(&place, folder)?;
    rustix::mount::mount_bind(format!("/proc/self/fd/{}", source.as_raw_fd()), &place)
        .map_err(|errno| refuse(&place, format!("cannot bind {:?} here: {errno}", sub_path.path)))?;
    Ok(place)
}

/// Something to mount on: a folder on a folder, a file on all else.
fn target(place: &Path, folder: bool) -> Result<(), FilesError> {
    match std::fs::symlink_metadata(place) {
        Ok(found) if found.is_dir() == folder && !found.is_symlink() => return Ok(()),
        Ok(found) if found.is_dir() => std::fs::remove_dir(place).at(place)?,
        Ok(_) => std::fs::remove_file(place).at(place)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).at(place),
    }
    if folder { write::folder(place, 0o750) } else { write::rewrite(place, b"", 0o640) }
}

#[cfg(test)]
#[path = "sub_path_tests.rs"]
mod tests;
