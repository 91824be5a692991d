//! The order in which new pods are admitted: of two that have no room beside each other it must not be chance which one runs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// How long a pod waits for those before it, whose plugins may be slow to say what they can do.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who is yet to be admitted.
#[derive(Default)]
pub(crate) struct Order {
    last: AtomicU64,
    waiting: watch::Sender<BTreeSet<u64>>,
}

/// A place in the order, given up when it is dropped.
pub(crate) struct Place {
    order: Arc<Order>,
    number: u64,
}

impl Order {
    /// The place after all others.
    pub(crate) fn place(self: &Arc<Self>) -> Place {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        self.waiting.send_if_modified(|waiting| waiting.insert(number));
        Place { order: self.clone(), number }
    }
}

impl Place {
    /// Waits until nobody is before it, or for long enough. Cancel safe.
    pub(crate) async fn comes_first(&self) {
        let mut waiting = self.order.waiting.subscribe();
        // The sender lives as long as the place; what is left is that it took too long.
        let _ = timeout(PATIENCE, waiting.wait_for(|waiting| waiting.first() == Some(&self.number))).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.order.waiting.send_if_modified(|waiting| waiting.remove(&self.number));
    }
}
