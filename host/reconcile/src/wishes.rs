//! The resizes that pods of this node wait for: who has one, and whom to wake when there may be room.
//!
//! Which are granted is decided in core ([`longshore_core::resize::decide`]), and carried out by each pod's own worker.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use longshore_core::resize::Wish;

use crate::roster::Roster;

/// All wishes, by the pods' UIDs.
#[derive(Default)]
pub(crate) struct Wishes {
    waiting: Mutex<BTreeMap<String, Wish>>,
    open: AtomicBool,
}

impl Wishes {
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<String, Wish>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether wishes may be granted.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Says whether wishes may be granted; wakes all when they first may.
    pub(crate) fn open(&self, open: bool, roster: &Roster) {
        if !self.open.swap(open, Ordering::AcqRel) && open {
            self.wake(roster);
        }
    }

    /// Adds a pod's wish, or changes it.
    pub(crate) fn put(&self, wish: Wish) {
        self.waiting().insert(wish.wanted.id.uid.clone(), wish);
    }

    /// Takes a pod's wish back.
    pub(crate) fn remove(&self, uid: &str) {
        self.waiting().remove(uid);
    }

    /// All wishes as they are.
    pub(crate) fn all(&self) -> Vec<Wish> {
        self.waiting().values().cloned().collect()
    }

    /// There may be room: every pod that waits looks again.
    pub(crate) fn wake(&self, roster: &Roster) {
        let waiting: Vec<String> = self.waiting().keys().cloned().collect();
        for uid in waiting {
            roster.put(&uid, |_| {});
        }
    }
}
