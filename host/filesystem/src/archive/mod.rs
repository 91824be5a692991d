//! The state archive: objects and tokens of the API server, kept for times without it.
//!
//! Owns `<root>/state` and, for secrets of a node without a key, a folder on a tmpfs. A secret reaches a disk sealed or
//! not at all. It must not know what the objects mean, nor decide when one may be used.

mod key;
mod seal;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use longshore_core::ports::archive::{ArchiveKey, ObjectArchive};
use longshore_core::ports::files::FilesError;

pub use key::{STATE_KEY_CREDENTIAL, StateKey, StateKeyError};

use crate::layout::{At, refuse};
use crate::write::{self, Durability};
use seal::Seal;

/// The largest object; the API server's are at most 1.5 MiB (etcd's limit of a request).
const OBJECT_LIMIT: usize = 4 << 20;
/// All files together, in each folder; the oldest go first.
const TOTAL_LIMIT: u64 = 256 << 20;
/// How many files, in each folder.
const COUNT_LIMIT: usize = 20_000;
/// Bytes that wait to be written; what comes beyond is left out, and kept when it changes next.
const WAITING_LIMIT: usize = 64 << 20;
/// What could not be written (a full disk) is tried again after this, then after twice as long, up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Where the archive lies.
#[derive(Debug)]
pub struct ArchiveOptions {
    /// The root folder; objects lie in `state` below it.
    pub root: PathBuf,
    /// Folder for secrets of a node without a key: `/run/longshore/<root ID>`. Used only when it is on a tmpfs.
    pub volatile: PathBuf,
    /// The key, where there is one.
    pub key: Option<StateKey>,
}

/// The archive. What was handed over is on the disk at the latest when it has been dropped.
#[derive(Debug)]
pub struct StateArchive {
    shared: Arc<Shared>,
    writer: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: PathBuf,
    /// `None` when there is no tmpfs to put secrets on.
    volatile: Option<PathBuf>,
    seal: Option<Seal>,
    waiting: Mutex<Waiting>,
    wake: Condvar,
    /// Files that were complained about, once each.
    reported: Mutex<BTreeSet<PathBuf>>,
}

#[derive(Debug, Default)]
struct Waiting {
    changes: BTreeMap<ArchiveKey, Change>,
    /// What could not be written; never of a key that is in `changes`.
    failed: BTreeMap<ArchiveKey, Change>,
    /// Bytes of both.
    bytes: usize,
    /// What the writer has in hand: readers must not see the file from before.
    busy: Option<(ArchiveKey, Change)>,
    closed: bool,
}

#[derive(Clone, Debug)]
enum Change {
    Put { bytes: Arc<Vec<u8>>, secret: bool },
    Remove,
}

impl Change {
    fn size(&self) -> usize {
        match self {
            Change::Put { bytes, .. } => bytes.len(),
            Change::Remove => 0,
        }
    }
}

impl Waiting {
    /// What waits under that key, which does so no longer.
    fn take(&mut self, key: &ArchiveKey) {
        let before = self.changes.remove(key).or_else(|| self.failed.remove(key));
        self.bytes -= before.map_or(0, |change| change.size());
    }

    /// Keeps a change that could not be made for another try, unless a newer one has come.
    fn put_back(&mut self, key: ArchiveKey, change: Change) {
        if !self.changes.contains_key(&key) && self.bytes + change.size() <= WAITING_LIMIT {
            self.bytes += change.size();
            self.failed.insert(key, change);
        }
    }
}

impl StateArchive {
    /// Opens the archive and makes its folders. Says in the log how secrets are kept.
    pub fn open(options: ArchiveOptions) -> Result<StateArchive, FilesError> {
        let state = options.root.join("state");
        write::folders(&state, 0o700)?;
        let seal = match &options.key {
            Some(key) => Some(Seal::new(key).map_err(|error| refuse(&state, error.to_string()))?),
            None => None,
        };
        let volatile = match (&seal, volatile_folder(&options.volatile)) {
            (_, Ok(folder)) => Some(folder),
            (Some(_), Err(_)) => None,
            (None, Err(reason)) => {
                tracing::warn!(
                    "{reason}: without a state key and without a tmpfs, Secrets are kept nowhere, and pods that use \
                     one cannot start while the API server is away; give a key with --state-key-file"
                );
                None
            }
        };
        let shared = Arc::new(Shared {
            state,
            volatile,
            seal,
            waiting: Mutex::default(),
            wake: Condvar::new(),
            reported: Mutex::default(),
        });
        let writer = shared.clone();
        let writer = std::thread::Builder::new().name("state-archive".to_owned()).spawn(move || writer.write_all());
        let writer = Some(writer.at(&shared.state)?);
        Ok(StateArchive { shared, writer })
    }
}

impl Drop for StateArchive {
    fn drop(&mut self) {
        lock(&self.shared.waiting).closed = true;
        self.shared.wake.notify_all();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has nothing left to say.
            let _ = writer.join();
        }
    }
}

#[async_trait]
impl ObjectArchive for StateArchive {
    fn put(&self, key: &ArchiveKey, bytes: Vec<u8>, secret: bool) {
        if bytes.len() > OBJECT_LIMIT {
            self.shared.report(Path::new(&key.name), format_args!("{} bytes are too many to keep", bytes.len()));
            return;
        }
        self.shared.hand_over(key, Change::Put { bytes: Arc::new(bytes), secret });
    }

    fn remove(&self, key: &ArchiveKey) {
        self.shared.hand_over(key, Change::Remove);
    }

    async fn get(&self, key: &ArchiveKey) -> Option<Vec<u8>> {
        let (shared, key) = (self.shared.clone(), key.clone());
        tokio::task::spawn_blocking(move || shared.read(&key)).await.ok().flatten()
    }

    fn keeps_secrets(&self) -> bool {
        self.shared.seal.is_some()
    }
}

impl Shared {
    fn hand_over(&self, key: &ArchiveKey, change: Change) {
        let mut waiting = lock(&self.waiting);
        waiting.take(key);
        if waiting.bytes + change.size() > WAITING_LIMIT {
            drop(waiting);
            self.report(&self.state, format_args!("the disk is too slow; some objects are not kept"));
            return;
        }
        waiting.bytes += change.size();
        waiting.changes.insert(key.clone(), change);
        drop(waiting);
        self.wake.notify_one();
    }

    /// The writer's thread.
    fn write_all(&self) {
        let mut indexes = BTreeMap::new();
        for folder in self.volatile.iter().chain([&self.state]) {
            indexes.insert(folder.clone(), Index::of(folder));
        }
        let (mut pause, mut again) = (AGAIN.0, None);
        while let Some((key, change)) = self.next(&mut again) {
            match self.apply(&key, &change, &mut indexes) {
                Ok(()) if pause != AGAIN.0 && lock(&self.waiting).failed.is_empty() => {
                    pause = AGAIN.0;
                    // The next time is worth a word as well.
                    lock(&self.reported).remove(&self.state);
                    tracing::info!("state archive: what could not be kept before is kept now");
                }
                Ok(()) => {}
                Err(error) => {
                    self.report(&self.state, format_args!("{error}; it is tried again"));
                    lock(&self.waiting).put_back(key, change);
                    if again.is_none() {
                        again = Some(Instant::now() + pause);
                        pause = (pause * 2).min(AGAIN.1);
                    }
                }
            }
        }
    }

    /// The next change to make; `None` when the archive is closed and all that can be has been done. What failed before
    /// comes `again` at that time.
    fn next(&self, again: &mut Option<Instant>) -> Option<(ArchiveKey, Change)> {
        let mut waiting = lock(&self.waiting);
        waiting.busy = None;
        loop {
            if waiting.failed.is_empty() {
                *again = None;
            }
            if again.is_some_and(|at| Instant::now() >= at) {
                *again = None;
                let failed = std::mem::take(&mut waiting.failed);
                waiting.changes.extend(failed);
            }
            if let Some((key, change)) = waiting.changes.pop_first() {
                waiting.bytes -= change.size();
                waiting.busy = Some((key.clone(), change.clone()));
                return Some((key, change));
            }
            if waiting.closed {
                return None;
            }
            waiting = match *again {
                Some(at) => {
                    let left = at.saturating_duration_since(Instant::now());
                    let woken = self.wake.wait_timeout(waiting, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn apply(
        &self,
        key: &ArchiveKey,
        change: &Change,
        indexes: &mut BTreeMap<PathBuf, Index>,
    ) -> Result<(), FilesError> {
        let name = seal::file_name(key);
        let (folder, file) = match change {
            Change::Remove => (None, Vec::new()),
            Change::Put { bytes, secret: false } => (Some(&self.state), seal::clear(key, bytes)),
            Change::Put { bytes, secret: true } => match &self.seal {
                Some(seal) => {
                    let sealed = seal.seal(key, bytes);
                    (Some(&self.state), sealed.map_err(|error| refuse(&self.state.join(&name), error.to_string()))?)
                }
                None => (self.volatile.as_ref(), seal::clear(key, bytes)),
            },
        };
        // One object has one file: a key may have come or gone since the last time.
        for (other, index) in indexes.iter_mut().filter(|(other, _)| Some(*other) != folder) {
            index.remove(&other.join(&name))?;
        }
        let Some(folder) = folder else { return Ok(()) };
        let path = folder.join(name);
        if !self.holds_already(key, change, &file, &path) {
            write::replace_as(&path, &file, 0o600, Durability::Whole)?;
            lock(&self.reported).remove(&path);
        }
        if let Some(index) = indexes.get_mut(folder) {
            index.note(path, file.len() as u64)?;
        }
        Ok(())
    }

    fn read(&self, key: &ArchiveKey) -> Option<Vec<u8>> {
        let waiting = lock(&self.waiting);
        let busy = waiting.busy.as_ref().filter(|(busy, _)| busy == key).map(|(_, change)| change);
        match waiting.changes.get(key).or(busy).or_else(|| waiting.failed.get(key)) {
            Some(Change::Put { bytes, .. }) => return Some(bytes.to_vec()),
            Some(Change::Remove) => return None,
            None => {}
        }
        drop(waiting);
        let name = seal::file_name(key);
        [Some(&self.state), self.volatile.as_ref()].into_iter().flatten().find_map(|folder| {
            let path = folder.join(&name);
            match read_file(&path) {
                Ok(file) => match seal::open(self.seal.as_ref(), key, &file) {
                    Ok(bytes) => Some(bytes),
                    Err(problem) => {
                        let ArchiveKey { kind, namespace, name } = key;
                        let what = format_args!("{kind} {namespace}/{name} cannot be used: {problem}");
                        self.report(&path, what);
                        None
                    }
                },
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => {
                    self.report(&path, format_args!("{error}"));
                    None
                }
            }
        })
    }

    /// Whether the file holds that already, and in the same way (sealed or not): a list at every start brings all objects
    /// anew, and a flush of each costs the disk.
    fn holds_already(&self, key: &ArchiveKey, change: &Change, file: &[u8], path: &Path) -> bool {
        let (Change::Put { bytes, .. }, Ok(kept)) = (change, read_file(path)) else { return false };
        let same_way = kept.get(..seal::HEAD) == file.get(..seal::HEAD);
        same_way && seal::open(self.seal.as_ref(), key, &kept).is_ok_and(|kept| kept == **bytes)
    }

    /// Warns once for each place; the file is left as it is.
    fn report(&self, place: &Path, what: std::fmt::Arguments<'_>) {
        let mut reported = lock(&self.reported);
        if reported.len() < 1000 && reported.insert(place.to_owned()) {
            tracing::warn!("state archive: {}: {what}", place.display());
        }
    }
}

fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut bytes = Vec::new();
    file.take(OBJECT_LIMIT as u64 + 1024).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Makes the folder for secrets without a key, where it is on a tmpfs.
fn volatile_folder(path: &Path) -> Result<PathBuf, String> {
    use std::os::unix::fs::MetadataExt;
    const TMPFS: rustix::fs::FsWord = 0x0102_1994;
    const RAMFS: rustix::fs::FsWord = 0x8584_58f6;
    write::folders(path, 0o700).map_err(|error| error.to_string())?;
    let found = std::fs::symlink_metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    // Whoever made it before could read what is put there.
    if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o077 != 0 {
        return Err(format!("{} must belong to the agent's user and be closed to others (mode 0700)", path.display()));
    }
    let kind = rustix::fs::statfs(path).map_err(|error| format!("{}: {error}", path.display()))?.f_type;
    match [TMPFS, RAMFS].contains(&kind) {
        true => Ok(path.to_owned()),
        false => Err(format!("{} is on a disk", path.display())),
    }
}

/// What lies in a folder, so that it can be bounded.
#[derive(Debug, Default)]
struct Index {
    files: BTreeMap<PathBuf, (u64, SystemTime)>,
    bytes: u64,
}

impl Index {
    fn of(folder: &Path) -> Index {
        let mut index = Index::default();
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if let Ok(found) = entry.metadata()
                && found.is_file()
            {
                index.bytes += found.len();
                let written = found.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                index.files.insert(entry.path(), (found.len(), written));
            }
        }
        index
    }

    fn remove(&mut self, path: &Path) -> Result<(), FilesError> {
        let Some((size, _)) = self.files.remove(path) else { return Ok(()) };
        self.bytes -= size;
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at(path),
            _ => Ok(()),
        }
    }

    /// Notes a file that was written, and removes the oldest ones where there are too many.
    fn note(&mut self, path: PathBuf, size: u64) -> Result<(), FilesError> {
        let before = self.files.insert(path, (size, SystemTime::now())).map_or(0, |(size, _)| size);
        self.bytes = self.bytes - before + size;
        while self.files.len() > COUNT_LIMIT || self.bytes > TOTAL_LIMIT {
            let oldest = self.files.iter().min_by_key(|(_, (_, written))| *written).map(|(path, _)| path.clone());
            let Some(oldest) = oldest else { break };
            self.remove(&oldest)?;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
