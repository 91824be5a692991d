//! Delays after failures: doubling, capped, forgotten after a long success.
//!
//! As `k8s.io/client-go/util/flowcontrol/backoff.go`, used by `pkg/kubelet/kuberuntime`. No clock in here.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// How long to wait after how many failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Delay after the first failure.
    pub initial: SignedDuration,
    /// The longest delay.
    pub cap: SignedDuration,
}

impl Policy {
    /// Restarts of containers: 10 s doubling up to `cap` (5 minutes unless configured).
    pub const CRASH_LOOP: Policy =
        Policy { initial: SignedDuration::from_secs(10), cap: SignedDuration::from_secs(300) };
    /// Image pulls: 10 s doubling up to 5 minutes.
    pub const IMAGE_PULL: Policy = Policy::CRASH_LOOP;
    /// Anything else that failed while a pod was synced (sandbox, volumes, creating a container).
    pub const SYNC: Policy = Policy { initial: SignedDuration::from_secs(1), cap: SignedDuration::from_secs(60) };

    /// The delay after `failures` failures in a row; zero for none. Never falls with more failures, never
    /// exceeds the cap.
    pub fn delay(&self, failures: u32) -> SignedDuration {
        if failures == 0 {
            return SignedDuration::ZERO;
        }
        let factor = 1i32.checked_shl((failures - 1).min(30)).unwrap_or(i32::MAX);
        self.initial.checked_mul(factor).map_or(self.cap, |delay| delay.min(self.cap))
    }
}

/// Key of what failed of a pod as a whole ([`crate::record::PodRecord::backoffs`]).
pub const POD: &str = "pod";
/// Key of what keeps a pod from being started at all.
pub const GATE: &str = "gate";
/// Key of a resize that failed.
pub const RESIZE: &str = "resize";
const IMAGE: &str = "image/";
const CREATE: &str = "create/";

/// Key of an image that could not be had.
pub fn image(reference: &str) -> String {
    format!("{IMAGE}{reference}")
}

/// Key of what failed of a container before it ran.
pub fn create(container: &str) -> String {
    format!("{CREATE}{container}")
}

/// The image that a key is about.
pub fn image_of(key: &str) -> Option<&str> {
    key.strip_prefix(IMAGE)
}

/// The container that a key is about.
pub fn container_of(key: &str) -> Option<&str> {
    key.strip_prefix(CREATE)
}

/// The state of one thing that may fail again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// Failures in a row.
    pub failures: u32,
    /// When the last one happened.
    pub last: Timestamp,
    /// The status reason that it is shown with, e.g. `ErrImagePull`.
    pub reason: String,
    /// What went wrong, for status and `why`.
    pub message: String,
}

impl Backoff {
    /// When the next try may be made. A `last` in the future (the clock stepped back) counts as now.
    pub fn until(&self, policy: Policy, now: Timestamp) -> Timestamp {
        let last = self.last.min(now);
        last.checked_add(policy.delay(self.failures)).unwrap_or(Timestamp::MAX)
    }

    /// Whether the next try must still wait.
    pub fn is_waiting(&self, policy: Policy, now: Timestamp) -> bool {
        self.until(policy, now) > now
    }

    /// The state after one more failure at `now`.
    pub fn after(previous: Option<&Backoff>, now: Timestamp, reason: &str, message: &str) -> Backoff {
        let failures = previous.map_or(0, |previous| previous.failures).saturating_add(1);
        Backoff { failures, last: now, reason: reason.to_owned(), message: message.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn delays_are_bounded_and_monotone(failures in 0u32..10_000, initial in 1i64..60, cap in 60i64..3_000) {
            let policy =
                Policy { initial: SignedDuration::from_secs(initial), cap: SignedDuration::from_secs(cap) };
            prop_assert!(policy.delay(failures) <= policy.delay(failures + 1));
            prop_assert!(policy.delay(failures) <= policy.cap);
        }

        #[test]
        fn a_clock_that_stepped_back_never_lengthens_the_wait(failures in 1u32..40, step in 0i64..1_000_000) {
            let now = Timestamp::from_second(2_000_000_000).expect("a valid time");
            let last = now.checked_add(SignedDuration::from_secs(step)).expect("a valid time");
            let backoff = Backoff { failures, last, reason: String::new(), message: String::new() };
            prop_assert!(backoff.until(Policy::CRASH_LOOP, now) <= now + Policy::CRASH_LOOP.cap);
        }
    }

    #[test]
    fn the_kubelets_sequence() {
        let seconds: Vec<i64> = (1..=7).map(|n| Policy::CRASH_LOOP.delay(n).as_secs()).collect();
        assert_eq!(seconds, [10, 20, 40, 80, 160, 300, 300]);
    }
}
