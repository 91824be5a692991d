//! What is remembered of the daemon between calls: which IDs are ours, looks that still hold, digests of images.
//!
//! A look is kept only while an event stream is up that would tell of its end; what the stream says, or that it broke,
//! drops it. Memory is bounded by what exists in the daemon. It must not ask the daemon anything.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use longshore_core::observed::Observation;
use tokio::sync::Notify;
use tokio::time::timeout;

/// So many images' digests are remembered.
const IMAGES: usize = 1000;

#[derive(Default)]
struct Inner {
    /// IDs that a look has shown to be ours, for which our root's label alone is not enough.
    ours: HashSet<String>,
    /// Looks by ID, with the state's word that the list gave then.
    looks: HashMap<String, (String, Observation)>,
    /// The kubelet's `imageID` by image ID.
    images: HashMap<String, String>,
    /// IDs in which the kernel killed for want of memory, as an event told.
    out_of_memory: HashSet<String>,
    /// IDs that we stop or have stopped.
    stopped: HashSet<String>,
    /// How many event streams are up.
    streams: usize,
    /// Counts what may have made a look stale.
    epoch: u64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Known {
    inner: Mutex<Inner>,
    /// Told of each addition to `out_of_memory`.
    memory: Notify,
}

impl Known {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether an ID is known to be ours. `false` means that it has to be looked at.
    pub(crate) fn is_ours(&self, id: &str) -> bool {
        self.inner().ours.contains(id)
    }

    pub(crate) fn add(&self, id: &str) {
        self.inner().ours.insert(id.to_owned());
    }

    pub(crate) fn forget(&self, id: &str) {
        let mut inner = self.inner();
        inner.ours.remove(id);
        inner.looks.remove(id);
        inner.out_of_memory.remove(id);
        inner.stopped.remove(id);
        inner.epoch += 1;
    }

    /// Takes a complete list of what may be ours, by its label; all else is forgotten.
    pub(crate) fn keep_listed(&self, ids: &HashSet<String>) {
        let mut inner = self.inner();
        inner.looks.retain(|id, _| ids.contains(id));
        inner.out_of_memory.retain(|id| ids.contains(id));
        inner.stopped.retain(|id| ids.contains(id));
        inner.ours.retain(|id| ids.contains(id));
    }

    /// A look that still holds.
    pub(crate) fn look(&self, id: &str, state: &str) -> Option<Observation> {
        let inner = self.inner();
        inner.looks.get(id).filter(|(known, _)| known == state).map(|(_, look)| look.clone())
    }

    /// To be handed to [`Known::keep`]: a look that was begun before something happened is not kept.
    pub(crate) fn epoch(&self) -> u64 {
        self.inner().epoch
    }

    pub(crate) fn keep(&self, epoch: u64, state: String, look: &Observation) {
        let mut inner = self.inner();
        if inner.streams > 0 && inner.epoch == epoch {
            inner.looks.insert(look.id().to_owned(), (state, look.clone()));
        }
    }

    /// Something happened to it.
    pub(crate) fn stale(&self, id: &str) {
        let mut inner = self.inner();
        inner.looks.remove(id);
        inner.epoch += 1;
    }

    /// It runs anew: what was told of its last end is not true of the next.
    pub(crate) fn started(&self, id: &str) {
        let mut inner = self.inner();
        inner.out_of_memory.remove(id);
        inner.stopped.remove(id);
    }

    /// We are about to stop it.
    pub(crate) fn stopping(&self, id: &str) {
        self.inner().stopped.insert(id.to_owned());
    }

    pub(crate) fn is_stopped(&self, id: &str) -> bool {
        self.inner().stopped.contains(id)
    }

    /// The kernel killed in it for want of memory.
    pub(crate) fn add_out_of_memory(&self, id: &str) {
        self.inner().out_of_memory.insert(id.to_owned());
        self.memory.notify_waiters();
    }

    /// Whether an event told that the kernel killed in it for want of memory; waits so long for that where a stream is up.
    pub(crate) async fn is_out_of_memory(&self, id: &str, wait: Duration) -> bool {
        let told = async {
            loop {
                let next = self.memory.notified();
                {
                    let inner = self.inner();
                    if inner.out_of_memory.contains(id) || inner.streams == 0 {
                        return;
                    }
                }
                next.await;
            }
        };
        let _ = timeout(wait, told).await;
        self.inner().out_of_memory.contains(id)
    }

    /// An event stream is up.
    pub(crate) fn stream_up(&self) {
        self.inner().streams += 1;
    }

    /// An event stream broke: nothing is known to hold any more.
    pub(crate) fn stream_down(&self) {
        let mut inner = self.inner();
        inner.streams = inner.streams.saturating_sub(1);
        inner.looks.clear();
        inner.epoch += 1;
    }

    /// Something happened, and nobody knows to which.
    pub(crate) fn all_stale(&self) {
        let mut inner = self.inner();
        inner.looks.clear();
        inner.epoch += 1;
    }

    pub(crate) fn image(&self, id: &str) -> Option<String> {
        self.inner().images.get(id).cloned()
    }

    pub(crate) fn add_image(&self, id: &str, image_id: &str) {
        let mut inner = self.inner();
        if inner.images.len() >= IMAGES {
            inner.images.clear();
        }
        inner.images.insert(id.to_owned(), image_id.to_owned());
    }

    /// An image came in: one that had no digest may have one now.
    pub(crate) fn forget_images(&self) {
        self.inner().images.clear();
    }
}
