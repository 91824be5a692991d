//! Unpacking an archive that strangers wrote, into a folder that nobody else writes in.
//!
//! Every name is opened in an open folder without following links, so that no entry leads out of the folder or through a
//! link that an earlier one made. Devices are left out. It stops before the disk is full, however long the archive is, and an
//! archive without its end is an error.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use longshore_core::ports::files::FilesError;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use tar::{EntryType, Header};
use tokio::sync::mpsc;

use crate::layout::{At, refuse};

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const FRESH: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Parts of a path: more than anybody's, fewer than would take long.
const PARTS: usize = 256;
/// Bytes that are written, and entries that are made, between two looks at what the disk has left.
const LOOK_BYTES: u64 = 16 << 20;
const LOOK_ENTRIES: u64 = 1024;
/// What is left to others of the disk: a twentieth of it, or so many bytes where that is less; of its inodes a twentieth.
const LEFT: u64 = 1 << 30;
const SHARE: u64 = 20;
/// An archive ends with two blocks of zeros.
const END: usize = 1024;
const BUFFER: usize = 256 << 10;

/// A piece of an archive.
pub(crate) enum Piece {
    /// Bytes of it.
    Data(Bytes),
    /// It is over; without this it broke off.
    End,
    /// It broke off, and why.
    Failed(String),
}

/// An archive that comes in pieces, read on a thread of its own.
pub(crate) struct Pieces {
    from: mpsc::Receiver<Piece>,
    current: Bytes,
    over: bool,
    /// Zeros at the end of what was read.
    zeros: usize,
}

impl Pieces {
    pub(crate) fn new(from: mpsc::Receiver<Piece>) -> Self {
        Pieces { from, current: Bytes::new(), over: false, zeros: 0 }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            if self.over {
                return Ok(0);
            }
            match self.from.blocking_recv() {
                Some(Piece::Data(data)) => self.current = data,
                Some(Piece::End) => self.over = true,
                Some(Piece::Failed(message)) => return Err(io::Error::other(message)),
                None => return Err(io::Error::other("it was given up")),
            }
        }
        let count = buffer.len().min(self.current.len());
        let piece = self.current.split_to(count);
        buffer[..count].copy_from_slice(&piece);
        let zeros = piece.iter().rev().take_while(|byte| **byte == 0).count();
        self.zeros = if zeros == count { self.zeros.saturating_add(count) } else { zeros };
        Ok(count)
    }
}

/// Unpacks an archive into an empty folder; then takes away what of `added` is there and empty, or a link.
pub(crate) fn unpack(folder: &Path, pieces: Pieces, added: &[&str]) -> Result<(), FilesError> {
    let top = rustix::fs::openat(CWD, folder, FOLDER, Mode::empty()).at(folder)?;
    let mut tree = Tree { place: folder.to_owned(), top, last: None, since: (0, 0) };
    tree.look_at_disk()?;
    let broken = |error: &io::Error| refuse(folder, format!("the image's files cannot be unpacked: {error}"));
    let mut archive = tar::Archive::new(pieces);
    for entry in archive.entries().map_err(|error| broken(&error))? {
        let mut entry = entry.map_err(|error| broken(&error))?;
        let path = PathBuf::from(OsString::from_vec(entry.path_bytes().into_owned()));
        let link = entry.link_name_bytes().map(|link| link.into_owned());
        let header = entry.header().clone();
        let made = tree.make(&path, &header, link.as_deref(), &mut entry);
        made.map_err(|error| {
            refuse(folder, format!("the image's files cannot be unpacked: {}: {error}", path.display()))
        })?;
    }
    let mut pieces = archive.into_inner();
    io::copy(&mut pieces, &mut io::sink()).map_err(|error| broken(&error))?;
    if pieces.zeros < END {
        return Err(broken(&io::Error::other("the archive broke off")));
    }
    tree.last = None;
    added.iter().try_for_each(|path| tree.take_away(path))
}

struct Tree {
    place: PathBuf,
    top: OwnedFd,
    /// The folder that the last entry was in: mostly the next one's, too.
    last: Option<(Vec<OsString>, OwnedFd)>,
    /// Bytes and entries since the last look at the disk.
    since: (u64, u64),
}

impl Tree {
    fn make(
        &mut self,
        path: &Path,
        header: &Header,
        link: Option<&[u8]>,
        content: &mut impl Read,
    ) -> Result<(), io::Error> {
        self.since.1 += 1;
        if self.since.1 >= LOOK_ENTRIES {
            self.look_at_disk().map_err(io::Error::other)?;
        }
        let mut parts = parts(path)?;
        let kind = header.entry_type();
        let Some(name) = parts.pop() else {
            // The folder itself.
            return if kind.is_dir() { self.finish(None, header) } else { Err(io::Error::other("has no name")) };
        };
        let parent = self.folder(&parts, true)?.try_clone()?;
        match kind {
            EntryType::Directory => {
                match rustix::fs::mkdirat(&parent, &name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                let made = rustix::fs::openat(&parent, &name, FOLDER, Mode::empty())?;
                self.finish(Some(&made), header)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let made = rustix::fs::openat(&parent, &name, FRESH, Mode::from_raw_mode(0o600))?;
                let mut file = File::from(made);
                self.copy(content, &mut file)?;
                self.finish(Some(&file), header)
            }
            EntryType::Symlink => {
                let target = link.ok_or_else(|| io::Error::other("is a link to nothing"))?;
                rustix::fs::symlinkat(OsStr::from_bytes(target), &parent, &name)?;
                let (user, group) = owner(header)?;
                Ok(rustix::fs::chownat(&parent, &name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?)
            }
            EntryType::Link => {
                let target = link.ok_or_else(|| io::Error::other("is a link to nothing"))?;
                let mut parts = self::parts(Path::new(OsStr::from_bytes(target)))?;
                let existing = parts.pop().ok_or_else(|| io::Error::other("is a link to nothing"))?;
                let folder = self.folder(&parts, false)?;
                Ok(rustix::fs::linkat(folder, &existing, &parent, &name, AtFlags::empty())?)
            }
            EntryType::Fifo => {
                rustix::fs::mknodat(&parent, &name, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
                let (user, group) = owner(header)?;
                rustix::fs::chownat(&parent, &name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
                Ok(rustix::fs::chmodat(&parent, &name, mode(header)?, AtFlags::empty())?)
            }
            // Devices could not be used on a mount without them.
            _ => Ok(()),
        }
    }

    /// Opens a folder of the tree, never through a link; with `make` one that is missing is made.
    fn folder(&mut self, parts: &[OsString], make: bool) -> Result<&OwnedFd, io::Error> {
        if self.last.as_ref().is_none_or(|(known, _)| known != parts) {
            let mut at = self.top.try_clone()?;
            for part in parts {
                at = match rustix::fs::openat(&at, part, FOLDER, Mode::empty()) {
                    Err(Errno::NOENT) if make => {
                        rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(0o755))?;
                        rustix::fs::openat(&at, part, FOLDER, Mode::empty())?
                    }
                    Err(Errno::LOOP | Errno::NOTDIR) => {
                        return Err(io::Error::other(format!("{part:?} is on its way and no folder")));
                    }
                    opened => opened?,
                };
            }
            self.last = Some((parts.to_vec(), at));
        }
        Ok(self.last.as_ref().map_or(&self.top, |(_, folder)| folder))
    }

    fn copy(&mut self, from: &mut impl Read, to: &mut File) -> Result<(), io::Error> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = from.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            to.write_all(&buffer[..count])?;
            self.since.0 += count as u64;
            if self.since.0 >= LOOK_BYTES {
                self.look_at_disk().map_err(io::Error::other)?;
            }
        }
    }

    /// Owner, mode and time, in this order: a change of owner takes setuid away.
    fn finish(&self, made: Option<&dyn AsFd>, header: &Header) -> Result<(), io::Error> {
        let made = made.map_or(self.top.as_fd(), AsFd::as_fd);
        let (user, group) = owner(header)?;
        rustix::fs::fchown(made, Some(user), Some(group))?;
        rustix::fs::fchmod(made, mode(header)?)?;
        let seconds = i64::try_from(header.mtime()?).unwrap_or_default();
        let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
        Ok(rustix::fs::futimens(made, &Timestamps { last_access: time, last_modification: time })?)
    }

    fn look_at_disk(&mut self) -> Result<(), FilesError> {
        self.since = (0, 0);
        let disk = rustix::fs::fstatvfs(&self.top).at(&self.place)?;
        let size = disk.f_blocks.saturating_mul(disk.f_frsize);
        let available = disk.f_bavail.saturating_mul(disk.f_frsize);
        let least = (size / SHARE).min(LEFT);
        if available < least || (disk.f_files > 0 && disk.f_favail < disk.f_files / SHARE) {
            let message = format!(
                "the disk is too full to unpack an image: {} MiB and {} inodes are left; free some, or use Docker 28 or later, \
                 which mounts images itself",
                available >> 20,
                disk.f_favail
            );
            return Err(refuse(&self.place, message));
        }
        Ok(())
    }

    /// Removes a link, an empty file or an empty folder; anything else stays.
    fn take_away(&mut self, path: &str) -> Result<(), FilesError> {
        let place = self.place.join(path);
        let Ok(mut parts) = parts(Path::new(path)) else { return Ok(()) };
        let Some(name) = parts.pop() else { return Ok(()) };
        let Ok(folder) = self.folder(&parts, false) else { return Ok(()) };
        let Ok(found) = rustix::fs::statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(()) };
        let removed = match rustix::fs::FileType::from_raw_mode(found.st_mode) {
            rustix::fs::FileType::Directory => rustix::fs::unlinkat(folder, &name, AtFlags::REMOVEDIR),
            rustix::fs::FileType::RegularFile if found.st_size > 0 => Ok(()),
            _ => rustix::fs::unlinkat(folder, &name, AtFlags::empty()),
        };
        match removed {
            Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno).at(&place),
        }
    }
}

/// The parts of a path below the folder.
fn parts(path: &Path) -> Result<Vec<OsString>, io::Error> {
    let mut parts = Vec::new();
    for part in path.as_os_str().as_bytes().split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(io::Error::other("leads out of the image")),
            part => parts.push(OsStr::from_bytes(part).to_owned()),
        }
    }
    if parts.len() > PARTS { Err(io::Error::other("has too many parts")) } else { Ok(parts) }
}

fn owner(header: &Header) -> Result<(Uid, Gid), io::Error> {
    let id =
        |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| io::Error::other("has no owner"));
    Ok((Uid::from_raw(id(header.uid()?)?), Gid::from_raw(id(header.gid()?)?)))
}

fn mode(header: &Header) -> Result<Mode, io::Error> {
    Ok(Mode::from_raw_mode(header.mode()? & 0o7777))
}
