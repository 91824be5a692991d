//! Hearing of changes to the folder: inotify on the folder itself.
//!
//! Owns the watcher. It says only that something changed; what did is found by looking.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::folder::{self, Identity};

/// A watch on a folder; it ends when dropped.
pub(super) struct Watch {
    _watcher: RecommendedWatcher,
    identity: Identity,
    lost: Arc<AtomicBool>,
}

impl Watch {
    /// Watches a folder and wakes `wake` on changes. Blocks.
    pub(super) fn new(folder: &Path, wake: Arc<Notify>) -> Result<Watch, String> {
        let lost = Arc::new(AtomicBool::new(false));
        let (gone, root): (_, PathBuf) = (lost.clone(), folder.to_owned());
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let (matters, ends) = match &event {
                // Our own reading opens files: only what may have changed them counts.
                Ok(event) => {
                    let matters =
                        !matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
                    (matters, event.paths.contains(&root) && !matches!(event.kind, EventKind::Access(_)))
                }
                // Events were lost.
                Err(_) => (true, false),
            };
            if ends {
                gone.store(true, Ordering::Release);
            }
            if matters {
                wake.notify_one();
            }
        })
        .map_err(|error| error.to_string())?;
        watcher.watch(folder, RecursiveMode::NonRecursive).map_err(|error| error.to_string())?;
        let identity = folder::identity(folder).map_err(|error| error.to_string())?;
        Ok(Watch { _watcher: watcher, identity, lost })
    }

    /// Whether it still watches that folder, and not one that was there before.
    pub(super) fn holds(&self, identity: Identity) -> bool {
        self.identity == identity && !self.lost.load(Ordering::Acquire)
    }
}
