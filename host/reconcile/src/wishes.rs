//! The resizes that pods of this node wait for: who has one, and whom to wake when there may be room.
//!
//! Which are granted is decided in core ([`longshore_core::resize::decide`]), and carried out by each pod's own worker.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longshore_core::resize::Wish;

use crate::inbox::Inbox;

/// One pod's wish, and where its worker hears.
struct Waiting {
    wish: Wish,
    inbox: Arc<Inbox>,
}

/// All wishes, by the pods' UIDs.
#[derive(Default)]
pub(crate) struct Wishes {
    waiting: Mutex<BTreeMap<String, Waiting>>,
    open: AtomicBool,
}

impl Wishes {
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<String, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether wishes may be granted.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Says whether wishes may be granted; wakes all when they first may.
    pub(crate) fn open(&self, open: bool) {
        if !self.open.swap(open, Ordering::AcqRel) && open {
            self.wake();
        }
    }

    /// Adds a pod's wish, or changes it.
    pub(crate) fn put(&self, wish: Wish, inbox: &Arc<Inbox>) {
        let uid = wish.wanted.id.uid.clone();
        self.waiting().insert(uid, Waiting { wish, inbox: inbox.clone() });
    }

    /// Takes a pod's wish back.
    pub(crate) fn remove(&self, uid: &str) {
        self.waiting().remove(uid);
    }

    /// All wishes as they are.
    pub(crate) fn all(&self) -> Vec<Wish> {
        self.waiting().values().map(|waiting| waiting.wish.clone()).collect()
    }

    /// There may be room: every pod that waits looks again.
    pub(crate) fn wake(&self) {
        for waiting in self.waiting().values() {
            waiting.inbox.put(|_| {});
        }
    }
}
