//! The root folder itself: one agent at a time, and an ID that tells its containers from others'.
//!
//! Owns `<root>/lock` and `<root>/id`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use longshore_core::ports::files::FilesError;
use rustix::fs::{FlockOperation, OFlags};

use crate::layout::{At, refuse};
use crate::write;

/// Holds the root folder as long as it lives. The kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct RootLock {
    _file: File,
    path: PathBuf,
}

impl RootLock {
    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Why the root folder cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent runs on it.
    #[error(
        "two agents on one root dir: {} is in use by the longshore with process ID {}; stop that one, or give this one another --root-dir",
        .root.display(),
        .holder.as_deref().unwrap_or("(unknown)")
    )]
    Held {
        /// The root folder.
        root: PathBuf,
        /// Process ID of the other agent, as it wrote it.
        holder: Option<String>,
    },
    /// It cannot be made or locked.
    #[error(transparent)]
    Files(#[from] FilesError),
}

/// How long the agent before may take to be gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// Takes the root folder for this process; makes it when it is not there.
pub fn lock_root(root: &Path) -> Result<RootLock, LockError> {
    write::folders(root, 0o750)?;
    let path = root.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(&path)
        .at(&path)?;
    let begun = Instant::now();
    let locked = loop {
        let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        // One that was killed a moment ago holds it until the kernel has taken it down.
        if locked != Err(rustix::io::Errno::WOULDBLOCK) || begun.elapsed() > PATIENCE {
            break locked;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    match locked {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let read = (&file).take(32).read_to_string(&mut text);
            let holder = read.ok().map(|_| text.trim().to_owned()).filter(|text| !text.is_empty());
            return Err(LockError::Held { root: root.to_owned(), holder });
        }
        Err(errno) => return Err(refuse(&path, format!("cannot be locked: {errno}")).into()),
    }
    // Only a word to others. In place, so that there is room for it on a full disk as well: an agent must start there.
    let holder = format!("{}\n", std::process::id());
    let written = file.rewind().and_then(|()| file.write_all(holder.as_bytes()));
    if let Err(error) = written.and_then(|()| file.set_len(holder.len() as u64)) {
        tracing::warn!("{}: the process ID cannot be noted: {error}", path.display());
    }
    Ok(RootLock { _file: file, path })
}

/// The root folder's ID: 32 hexadecimal digits, made once. It is what the label `dev.longshore.root` holds.
pub fn root_id(root: &Path) -> Result<String, FilesError> {
    let path = root.join("id");
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let id = text.trim();
            if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Ok(id.to_owned());
            }
            return Err(refuse(
                &path,
                "is damaged: it must hold 32 hexadecimal digits, the value of the label dev.longshore.root of this \
                 node's containers; write that back, or remove the file and those containers",
            ));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).at(&path),
    }
    write::folders(root, 0o750)?;
    let mut bytes = [0; 16];
    File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes)).at(Path::new("/dev/urandom"))?;
    let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    write::replace(&path, format!("{id}\n").as_bytes(), 0o600)?;
    Ok(id)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_second_agent_is_refused_and_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/root");
        let first = lock_root(&root).unwrap();
        let message = lock_root(&root).unwrap_err().to_string();
        assert!(message.contains("two agents on one root dir"), "{message}");
        assert!(message.contains(&std::process::id().to_string()), "{message}");
        drop(first);
        lock_root(&root).unwrap();
    }

    #[test]
    fn the_id_is_made_once_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let id = root_id(dir.path()).unwrap();
        assert_eq!(id.len(), 32);
        assert_eq!(root_id(dir.path()).unwrap(), id);
        assert_eq!(std::fs::metadata(dir.path().join("id")).unwrap().mode() & 0o777, 0o600);
        std::fs::write(dir.path().join("id"), "").unwrap();
        assert!(root_id(dir.path()).unwrap_err().to_string().contains("is damaged"));
    }
}
