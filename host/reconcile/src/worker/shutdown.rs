//! A pod ends because the machine goes down, and runs again once it stays up.

use jiff::Timestamp;
use longshore_core::record::{Evicted, Terminal};
use longshore_core::shutdown;

use super::Worker;

impl Worker {
    /// Ends the pod with no more grace than that. One that has ended already stays what it is.
    pub(super) fn shut_down(&mut self, grace_seconds: i64) {
        if self.record.terminal.is_some() {
            // Asked again, with less time.
            self.record.ends_within(grace_seconds, Timestamp::now());
            return;
        }
        self.record.evicted = Some(Evicted { grace_seconds, disruption: true });
        self.conclude(Terminal {
            phase: "Failed".to_owned(),
            reason: Some(shutdown::REASON.to_owned()),
            message: Some(shutdown::MESSAGE.to_owned()),
        });
    }

    /// Has a pod run again that ended, or was not let in, for that alone.
    pub(super) fn bring_back(&mut self) {
        if self.pod.deletion.is_some() || !shutdown::comes_back(&self.pod.source, &self.record) {
            return;
        }
        tracing::info!(pod = %self.pod.id, "the machine stays up: the pod runs again");
        self.record.begin_anew();
        self.shared.stays(&self.pod.id.uid);
        self.checked = None;
        self.files = None;
        self.refresh = true;
    }
}
