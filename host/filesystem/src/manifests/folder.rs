//! What is in the manifest folder right now: names, stamps, bytes.
//!
//! Owns the reading, which blocks; whoever calls it does so on a thread that may hang. It must not judge what it finds.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, StatxFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Largest manifest (`maxConfigLength` in `pkg/kubelet/config`), in bytes.
pub(super) const LARGEST: u64 = 10 << 20;

/// Why a folder could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
    /// There is none.
    #[error("{0}")]
    Absent(std::io::Error),
    /// It cannot be told what is there.
    #[error("{0}")]
    Other(String),
}

impl From<std::io::Error> for Unread {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::NotFound => Unread::Absent(error),
            _ => Unread::Other(error.to_string()),
        }
    }
}

/// Which folder it is, whatever its path: a disk that is unmounted uncovers another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    device: (u32, u32),
    inode: u64,
    /// Where the file system knows it: inode numbers are used again.
    born: Option<(i64, u32)>,
}

impl Identity {
    /// Whether it can be the same folder after a restart of the node, which gives devices other numbers.
    pub(super) fn survives_as(&self, other: &Identity) -> bool {
        (self.inode, self.born) == (other.inode, other.born)
    }
}

/// Changes whenever a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)] // Types differ between architectures.
    fn of(stat: &Stat) -> Stamp {
        Stamp {
            file: (stat.st_dev as u64, stat.st_ino as u64),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        }
    }

    /// When the content last changed, in nanoseconds since the epoch.
    pub(super) fn modified(&self) -> i128 {
        i128::from(self.modified.0) * 1_000_000_000 + i128::from(self.modified.1)
    }
}

/// An entry of the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A file, as it was when the folder was read.
    File(Stamp),
    /// A link: what is behind it is another disk's perhaps, and is looked at by itself.
    Link,
    /// Nothing that can be a manifest.
    Other(&'static str),
}

/// The folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listing {
    /// Which one it is.
    pub(super) identity: Identity,
    /// The folder that the names are in: the path, or its parent when the path is a file.
    pub(super) folder: PathBuf,
    /// Entries by name, without dotfiles and folders.
    pub(super) entries: BTreeMap<OsString, Entry>,
}

/// Reads a folder; a path that is a file is a folder with that file alone.
pub(super) fn list(path: &Path) -> std::io::Result<Listing> {
    let found = std::fs::metadata(path)?;
    if found.is_dir() {
        return list_folder(path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::Error::other("is neither a folder nor a file"));
    };
    if !found.is_file() {
        return Err(std::io::Error::other("is neither a folder nor a file"));
    }
    Ok(Listing {
        identity: identity(parent)?,
        folder: parent.to_owned(),
        entries: [(name.to_owned(), Entry::Link)].into(),
    })
}

fn list_folder(path: &Path) -> std::io::Result<Listing> {
    // One open folder for both: between two opens a disk could be mounted.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let identity = identity_of(&folder, c"")?;
    let mut entries = BTreeMap::new();
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes().starts_with(b".") {
            continue;
        }
        let stat = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW);
        if let Some(found) = judge(entry.file_type(), stat) {
            entries.insert(std::ffi::OsStr::from_bytes(name.to_bytes()).to_owned(), found);
        }
    }
    Ok(Listing { identity, folder: path.to_owned(), entries })
}

/// What an entry is that is of that kind by the listing; none for folders, and for what has gone meanwhile. One that a disk does
/// not let be looked at is not gone: it is read as what a link leads to is, and what is wrong shows then.
fn judge(listed: FileType, stat: Result<Stat, Errno>) -> Option<Entry> {
    let stat = match stat {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return None,
        Err(_) => return (listed != FileType::Directory).then_some(Entry::Link),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => None,
        FileType::RegularFile => Some(Entry::File(Stamp::of(&stat))),
        FileType::Symlink => Some(Entry::Link),
        FileType::Socket => Some(Entry::Other("a socket")),
        FileType::Fifo => Some(Entry::Other("a pipe")),
        _ => Some(Entry::Other("a device")),
    }
}

/// Which folder is at a path.
pub(super) fn identity(path: &Path) -> std::io::Result<Identity> {
    identity_of(CWD, path)
}

fn identity_of(folder: impl std::os::fd::AsFd, path: impl rustix::path::Arg) -> std::io::Result<Identity> {
    let flags = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = rustix::fs::statx(folder, path, AtFlags::EMPTY_PATH, flags)?;
    let knows = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    Ok(Identity {
        device: (stat.stx_dev_major, stat.stx_dev_minor),
        inode: stat.stx_ino,
        born: knows.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec)),
    })
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// It is what it was when it had that stamp.
    Unchanged,
    /// It is a folder, behind a link: no manifest, as a folder itself is none.
    Folder,
    /// Its bytes.
    Bytes(Stamp, Vec<u8>),
    /// What is wrong with it.
    Unreadable(String),
}

/// Reads a file, unless its stamp is `known`.
pub(super) fn read(path: &Path, known: Option<Stamp>) -> Content {
    match try_read(path, known) {
        Ok(content) => content,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.is_symlink() => {
            Content::Unreadable("is a link that leads nowhere".to_owned())
        }
        Err(error) => Content::Unreadable(format!("cannot be read: {error}")),
    }
}

fn try_read(path: &Path, known: Option<Stamp>) -> std::io::Result<Content> {
    // Not to wait for the other end of a pipe.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {
            return Ok(Content::Unreadable("is a socket, which cannot be a manifest".to_owned()));
        }
        Err(error) => return Err(error),
    };
    let stat = rustix::fs::fstat(&file)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Ok(Content::Folder),
        _ => return Ok(Content::Unreadable("is not a file, so it cannot be a manifest".to_owned())),
    }
    let stamp = Stamp::of(&stat);
    if known == Some(stamp) {
        return Ok(Content::Unchanged);
    }
    let too_large = || {
        let size = stamp.size;
        Content::Unreadable(format!("has {size} bytes; a manifest may have at most {LARGEST} (10 MiB): split it"))
    };
    if stamp.size > LARGEST {
        return Ok(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(stamp.size).unwrap_or(0));
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Ok(too_large());
    }
    Ok(Content::Bytes(stamp, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_disk_does_not_let_be_looked_at_is_not_gone() {
        assert_eq!(judge(FileType::RegularFile, Err(Errno::IO)), Some(Entry::Link));
        assert_eq!(judge(FileType::Unknown, Err(Errno::STALE)), Some(Entry::Link));
        assert_eq!(judge(FileType::Directory, Err(Errno::STALE)), None);
        assert_eq!(judge(FileType::RegularFile, Err(Errno::NOENT)), None);
    }
}
