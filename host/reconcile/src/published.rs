//! [`PodViews`]: what the loops have published, for rooms that know `core` alone. Nothing here decides or waits.

use std::sync::Arc;

use longshore_core::ports::pods::PodViews;
use longshore_core::view::PodView;

use crate::health::Health;
use crate::views::Views;

/// The published pods, and whether the loop that publishes them still turns.
#[derive(Clone, Debug)]
pub struct Published {
    /// The pods.
    pub views: Arc<Views>,
    /// The loop.
    pub health: Arc<Health>,
}

impl PodViews for Published {
    fn pods(&self) -> Vec<Arc<PodView>> {
        self.views.pods()
    }

    fn pod(&self, uid: &str) -> Option<Arc<PodView>> {
        self.views.pod(uid)
    }

    fn healthy(&self) -> Result<(), String> {
        match self.health.standstill() {
            None => Ok(()),
            Some(since) => Err(format!("the node's loop has stood still for {} s", since.as_secs())),
        }
    }
}
