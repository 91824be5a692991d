//! Size limits of volumes on disk, which nothing enforces by itself: a pod that exceeds one is evicted.
//!
//! As `emptyDirLimitEviction` in `pkg/kubelet/eviction/eviction_manager.go`.

use std::time::{Duration, Instant};

use longshore_core::evict;
use longshore_core::volume::size_limits;

use crate::inbox::Evict;
use crate::worker::Worker;

/// How often usage is looked at.
pub(crate) const PERIOD: Duration = Duration::from_secs(10);

impl Worker {
    /// Ends the pod when one of its volumes holds more than it may.
    pub(crate) async fn watch_limits(&mut self) {
        if self.record.terminal.is_some() || self.pod.deletion.is_some() || !self.shared.may_evict(&self.pod) {
            self.limits = None;
            return;
        }
        let limits = size_limits(&self.pod);
        if limits.is_empty() {
            self.limits = None;
            return;
        }
        if self.limits.is_some_and(|looked| looked.elapsed() < PERIOD) {
            return;
        }
        self.limits = Some(Instant::now());
        let Some(files) = self.files.clone() else { return };
        for (volume, limit, text) in limits {
            let Some(path) = files.volumes.get(&volume) else { continue };
            let Some(used) = self.shared.ports.files.usage(path).await else { continue };
            if used.bytes > limit {
                let message = format!("Usage of EmptyDir volume {volume:?} exceeds the limit {text:?}. ");
                self.evict(Evict {
                    reason: evict::REASON,
                    message,
                    grace_seconds: evict::IMMEDIATE_GRACE,
                    disruption: false,
                });
                return;
            }
        }
    }
}
