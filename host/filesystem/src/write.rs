//! Folders with exact modes, and files that are replaced in one step or rewritten in place.
//!
//! Owns the order of write, flush and rename. It must not know what the files mean.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use longshore_core::ports::files::FilesError;
use rustix::fs::OFlags;

use crate::layout::{At, refuse};

/// Makes a folder with that mode whatever the umask; one that is there keeps its mode.
pub(crate) fn folder(path: &Path, mode: u32) -> Result<(), FilesError> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => std::fs::set_permissions(path, Permissions::from_mode(mode)).at(path),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let found = std::fs::symlink_metadata(path).at(path)?;
            if found.is_dir() { Ok(()) } else { Err(refuse(path, "is in the way: a folder is needed here")) }
        }
        Err(error) => Err(error).at(path),
    }
}

/// Makes a folder and those above it that are missing.
pub(crate) fn folders(path: &Path, mode: u32) -> Result<(), FilesError> {
    if std::fs::metadata(path).is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        folders(parent, mode)?;
    }
    folder(path, mode)
}

/// How much of a replacement is on the disk when it returns. Other processes see one whole file in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// After a power cut the new file is there.
    New,
    /// After a power cut the old file is there, or the new one.
    Whole,
    /// After a power cut the file may be empty, until [`flush`].
    Later,
}

/// Puts content at a path in one step that survives a power cut: readers see the old file or the new one.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FilesError> {
    replace_as(path, content, mode, Durability::New)
}

/// Makes a file that was replaced [`Durability::Later`] survive a power cut. One that is gone needs nothing.
pub(crate) fn flush(path: &Path) -> std::io::Result<()> {
    let flushed = File::open(path).and_then(|file| file.sync_data()).and_then(|()| match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    });
    match flushed {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// As [`replace`]; each flush costs some milliseconds, and everybody on that disk waits for it.
pub(crate) fn replace_as(path: &Path, content: &[u8], mode: u32, durability: Durability) -> Result<(), FilesError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(refuse(path, "is not the path of a file"));
    };
    let temporary = parent.join(format!(".{}.new", name.to_string_lossy()));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&temporary)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        if durability != Durability::Later {
            file.sync_data()?;
        }
        std::fs::rename(&temporary, path)?;
        if durability == Durability::New { File::open(parent)?.sync_all() } else { Ok(()) }
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.at(path)
}

/// Gives a file that content without replacing it, for containers have it mounted; nothing is done where it has it
/// already. One write makes the new text whole for readers, then the rest of a longer old text goes.
pub(crate) fn rewrite(path: &Path, content: &[u8], mode: u32) -> Result<(), FilesError> {
    match has(path, content) {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).at(path),
    }
    (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(mode)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.set_len(content.len() as u64)
    })()
    .at(path)
}

/// Whether a file has that content. No more is read than that: containers make theirs as large as they like.
fn has(path: &Path, content: &[u8]) -> std::io::Result<bool> {
    let length = content.len() as u64;
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path)?;
    if file.metadata()?.len() != length {
        return Ok(false);
    }
    let mut found = Vec::new();
    file.take(length).read_to_end(&mut found)?;
    Ok(found == content)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::time::SystemTime;

    #[test]
    fn replaced_files_have_content_and_mode_and_leave_no_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        replace(&path, b"one", 0o600).unwrap();
        replace(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_rewritten_file_stays_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc-hosts");
        rewrite(&path, b"a longer text", 0o644).unwrap();
        let before = std::fs::metadata(&path).unwrap().ino();
        rewrite(&path, b"short", 0o644).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), before);
        assert_eq!(std::fs::read(&path).unwrap(), b"short");
        File::options().write(true).open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        rewrite(&path, b"short", 0o644).unwrap();
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(modified, SystemTime::UNIX_EPOCH, "nothing was written");
    }

    /// As large as a container makes its `/etc/hosts`: more than there is memory for.
    #[test]
    fn a_rewritten_file_is_read_no_further_than_its_new_content_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc-hosts");
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        rewrite(&path, b"hosts", 0o644).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"hosts");
    }

    #[test]
    fn links_in_the_way_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::write(&outside, "x").unwrap();
        std::os::unix::fs::symlink(&outside, dir.path().join("hosts")).unwrap();
        assert!(rewrite(&dir.path().join("hosts"), b"y", 0o644).is_err());
        assert_eq!(std::fs::read(&outside).unwrap(), b"x");
    }
}
