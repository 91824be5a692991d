//! Limits of storage, which nothing enforces by itself: a pod that exceeds one is evicted.
//!
//! As `localStorageEviction` in `pkg/kubelet/eviction/eviction_manager.go`; what is too much is decided in
//! [`longshore_core::evict`]. A pod is measured in the background, and the seldomer the longer that takes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use longshore_core::evict::{self, PodUse};
use longshore_core::pod::Source;
use longshore_core::priority;

use crate::inbox::{Done, Evict};
use crate::roster::Member;
use crate::usage;
use crate::worker::Worker;

/// How often usage is looked at, at most.
const PERIOD: Duration = Duration::from_secs(10);
/// Of the time, measuring takes no more than this part of one pod's.
const SHARE: u32 = 20;
/// How long measuring may take.
const LIMIT: Duration = Duration::from_secs(300);

impl Worker {
    /// Sees that the pod is measured when that is due, if it has limits.
    pub(crate) fn watch_limits(&mut self) {
        let watched = evict::watched(&self.pod, &self.facts);
        let ends = self.record.terminal.is_some() || self.pod.deletion.is_some();
        // Nobody would make it anew (`evictPod` has no critical pod evicted). On a node that runs alone all pods are
        // critical, and limits that none of them has to keep to would be none.
        let in_cluster = self.pod.source == Source::Api || self.shared.ports.api.is_some();
        let spared = in_cluster && priority::is_critical(&self.pod);
        if watched == evict::Watched::default() || ends || spared || !self.shared.may_evict(&self.pod) {
            self.limits = None;
            return;
        }
        let now = Instant::now();
        if self.limits.is_some_and(|due| now < due) {
            return;
        }
        if self.files.is_none() {
            self.limits = Some(now + PERIOD);
            return;
        }
        // Until it comes back with what it found.
        self.limits = Some(now + 2 * LIMIT);
        let member = Member::new(&self.pod, &self.observed, &self.record, self.files.as_ref());
        let (shared, inbox) = (self.shared.clone(), self.inbox.clone());
        tokio::spawn(async move {
            let (mut used, mut dedicated) = (PodUse::default(), false);
            let measuring = async {
                let (ports, mut layers) = (&shared.ports, None);
                if watched.storage {
                    match ports.runtime.writable_layers(Some(&member.pod.id.uid)).await {
                        Ok(found) => layers = Some(found),
                        Err(error) => tracing::debug!(pod = %member.pod.id, "its layers cannot be measured: {error}"),
                    }
                    dedicated = evict::has_own_image_disk(&usage::of_node(&shared).await);
                }
                usage::add_disk(ports.files.as_ref(), &member, layers.as_ref(), &mut used).await;
            };
            if tokio::time::timeout(LIMIT, measuring).await.is_err() {
                tracing::debug!(pod = %member.pod.id, "not all that it has on the disk was counted in time");
            }
            let exceeded = evict::exceeded(&member.pod, &used, dedicated);
            inbox.put(|wakes| wakes.done.push(Done::Measured { took: now.elapsed(), exceeded }));
        });
    }

    /// The pod was measured.
    pub(crate) fn measured(&mut self, took: Duration, exceeded: Option<String>) {
        self.limits = Some(Instant::now() + PERIOD.max(took * SHARE));
        let Some(message) = exceeded.filter(|_| self.pod.deletion.is_none()) else { return };
        self.evict(Evict {
            reason: evict::REASON,
            message,
            annotations: BTreeMap::new(),
            grace_seconds: evict::IMMEDIATE_GRACE,
            disruption: false,
        });
    }
}
