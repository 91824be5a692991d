//! The manifest folder: a source of pods, and of the ConfigMaps and Secrets that lie beside them.
//!
//! Owns hearing of changes, reading, and the rules about what counts when something is wrong ([`state`]). What a manifest
//! says is parsed by core. As `pkg/kubelet/config/{file,file_linux}.go`, which reads one pod a file; beyond it, a bad file
//! keeps its pods, a lost folder keeps them all, and other objects may lie there.

mod choice;
mod folder;
mod memory;
mod objects;
mod state;
mod task;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use k8s_openapi::api::core::v1;
use longshore_core::manifest;
use longshore_core::pod::Source;
use longshore_core::ports::files::FilesError;
use longshore_core::ports::objects::{ObjectError, ObjectStore};
use longshore_core::ports::sources::{PodSource, SourceProblem, SourceSnapshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::layout::{At, refuse};
use folder::{Content, Unread};
pub use memory::{MANIFESTS_IDENTITY, Memory};
pub use objects::FolderObjects;
use state::State;
use task::Hear;
use watch::Watch;

/// A manifest folder that is watched; `path` may also be a single file. Watching ends when it is dropped.
pub struct ManifestFolder {
    path: PathBuf,
    words: tokio::sync::watch::Receiver<Word>,
    _stop: DropGuard,
}

/// The last word of the folder.
#[derive(Clone, Debug, Default)]
struct Word {
    /// `None` until the folder has been read once.
    snapshot: Option<Arc<SourceSnapshot>>,
    snapshot_version: u64,
    objects: Option<Arc<FolderObjects>>,
    objects_version: u64,
    /// What is wrong, also before the first snapshot.
    problems: Vec<SourceProblem>,
}

impl ManifestFolder {
    /// Watches a folder, and looks at it every `rescan` (the kubelet's `fileCheckFrequency`, 20 s) for what no event told:
    /// files behind links, and disks that were mounted over it. Starts a task: call it in a tokio runtime.
    pub fn new(path: &Path, node_name: &str, rescan: Duration) -> ManifestFolder {
        ManifestFolder::start(path, node_name, rescan, None, Arc::new(Watch::new))
    }

    /// As [`ManifestFolder::new`], with what is known from before the agent started: so a disk that is not mounted after
    /// a reboot, or a file that was broken meanwhile, ends no pod that ran.
    pub fn with_memory(path: &Path, node_name: &str, rescan: Duration, memory: Memory) -> ManifestFolder {
        ManifestFolder::start(path, node_name, rescan, Some(memory), Arc::new(Watch::new))
    }

    fn start(path: &Path, node_name: &str, rescan: Duration, memory: Option<Memory>, hear: Hear) -> ManifestFolder {
        // A pod's UID is made of this path: links in it are not resolved.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let (sender, words) = tokio::sync::watch::channel(Word::default());
        let stop = CancellationToken::new();
        let task = task::Task {
            path: path.clone(),
            node_name: node_name.to_owned(),
            rescan: rescan.max(Duration::from_millis(100)),
            memory,
            hear,
            words: sender,
            stop: stop.clone(),
        };
        tokio::spawn(task.run());
        ManifestFolder { path, words, _stop: stop.drop_guard() }
    }

    /// What is wrong now; also when nothing could be read yet, and there is no snapshot that would say so.
    pub fn problems(&self) -> Vec<SourceProblem> {
        self.words.borrow().problems.clone()
    }

    fn objects(&self, kind: &'static str, namespace: &str, name: &str) -> Result<Arc<FolderObjects>, ObjectError> {
        self.words.borrow().objects.clone().ok_or_else(|| ObjectError {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            message: format!("the manifest folder {} has not been read yet", self.path.display()),
        })
    }

    /// Items whenever `version` is another one; the first as soon as it is not 0.
    fn stream<T: Send + 'static>(
        &self,
        version: fn(&Word) -> u64,
        item: fn(&Word) -> Option<T>,
    ) -> BoxStream<'static, T> {
        let start = (self.words.clone(), 0_u64);
        let stream = futures::stream::unfold(start, move |(mut words, seen)| async move {
            // Cancel-safe: nothing is taken before the value is there.
            let word = words.wait_for(|word| version(word) != seen).await.ok()?.clone();
            Some((item(&word), (words, version(&word))))
        });
        stream.filter_map(std::future::ready).boxed()
    }
}

impl PodSource for ManifestFolder {
    fn source(&self) -> Source {
        Source::File
    }

    fn snapshots(&self) -> BoxStream<'static, SourceSnapshot> {
        self.stream(|word| word.snapshot_version, |word| word.snapshot.as_deref().cloned())
    }
}

#[async_trait]
impl ObjectStore for ManifestFolder {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<v1::ConfigMap>>, ObjectError> {
        self.objects("ConfigMap", namespace, name)?.config_map(namespace, name).await
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<v1::Secret>>, ObjectError> {
        self.objects("Secret", namespace, name)?.secret(namespace, name).await
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        self.stream(|word| word.objects_version, |_| Some(()))
    }
}

/// What is in a folder, or a file, right now.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Its pods and problems.
    pub snapshot: SourceSnapshot,
    /// Its ConfigMaps and Secrets.
    pub objects: FolderObjects,
}

/// Reads a manifest folder, or a single file, once. Blocks.
pub fn read_once(path: &Path, node_name: &str) -> Result<Reading, FilesError> {
    read_as_at_start(path, node_name, None)
}

/// The same, as an agent's first look at it, which keeps what ran before where the folder cannot say whether it still
/// wants that. Blocks.
pub fn read_as_at_start(path: &Path, node_name: &str, memory: Option<Memory>) -> Result<Reading, FilesError> {
    let path = std::path::absolute(path).at(path)?;
    let mut state = State::new(path.clone());
    if let Some(memory) = memory {
        let identity = memory.read();
        state.remember(memory, identity);
    }
    let look = match folder::list(&path).map_err(Unread::from) {
        Ok(listing) => state.listed(listing, task::now()),
        Err(reason) => {
            state.unreadable(&reason);
            if !state.spoke() {
                return Err(refuse(&path, format!("the manifest folder cannot be read: {reason}")));
            }
            Vec::new()
        }
    };
    for (name, place, known) in look {
        match folder::read(&place, known) {
            Content::Bytes(stamp, bytes) => {
                let parsed = manifest::parse(&bytes, &task::origin(&place, node_name));
                state.file_read(&name, stamp, parsed, task::now());
            }
            Content::Unreadable(reason) => state.file_unreadable(&name, reason),
            Content::Folder => state.file_ignored(&name),
            Content::Unchanged => {}
        }
    }
    let (snapshot, objects) = state.snapshot();
    Ok(Reading { snapshot, objects })
}

#[cfg(test)]
mod tests;
