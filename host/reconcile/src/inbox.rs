//! What wakes a pod's worker, merged while the worker is busy: bounded by what the pod has, never by time.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use longshore_core::observed::ObservedPod;
use longshore_core::pod::{Deletion, Pod};
use longshore_core::ports::runtime::{Image, RuntimeChange};
use longshore_core::probe::{ProbeKind, Sample};
use tokio::sync::Notify;

use crate::pull::NotPulled;

/// What happened since the worker last looked.
#[derive(Debug, Default)]
pub(crate) struct Wakes {
    /// The pod as its source has it now.
    pub(crate) desired: Option<Pod>,
    /// The pod is to end.
    pub(crate) deletion: Option<Deletion>,
    /// The pod is to end for the node's sake, or for what it took itself.
    pub(crate) evict: Option<Evict>,
    /// The machine goes down, or all pods are asked to end: so many seconds at most.
    pub(crate) shut_down: Option<i64>,
    /// It stays up: a pod that ended for that, and that nobody makes anew, runs again.
    pub(crate) bring_back: bool,
    /// The disk is needed: dead containers of a pod that ended go as well.
    pub(crate) empty: bool,
    /// Things in the runtime that changed, by ID.
    pub(crate) changed: BTreeMap<String, RuntimeChange>,
    /// Events may have been lost, or the runtime is back: look at everything, and try again what failed.
    pub(crate) resync: bool,
    /// What a look at the whole runtime found of the pod.
    pub(crate) seen: Option<ObservedPod>,
    /// ConfigMaps or Secrets may have changed.
    pub(crate) objects: bool,
    /// What probes decided, by container ID and kind.
    pub(crate) verdicts: BTreeMap<(String, ProbeKind), Verdict>,
    /// Background work that ended.
    pub(crate) done: Vec<Done>,
}

/// An order to end a pod for others: it fails, and never runs again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Evict {
    /// `status.reason`, and the event's: `Evicted` or `Preempting`.
    pub(crate) reason: &'static str,
    /// `status.message`, and the event's.
    pub(crate) message: String,
    /// The event's.
    pub(crate) annotations: BTreeMap<String, String>,
    /// Seconds that its containers get to end, in place of the pod's own if those are more.
    pub(crate) grace_seconds: i64,
    /// Whether it is the node's need and not the pod's doing, which `DisruptionTarget` says.
    pub(crate) disruption: bool,
}

/// What a probe decided of a container.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    /// Name of the container.
    pub(crate) container: String,
    /// The decision.
    pub(crate) sample: Sample,
    /// Grace period of the probe, when it ends the container.
    pub(crate) grace_seconds: Option<i64>,
}

/// Background work that ended.
#[derive(Debug)]
pub(crate) enum Done {
    /// A container was stopped, or could not be.
    Stop { id: String, error: Option<String> },
    /// A postStart hook ended.
    PostStart { id: String, container: String, error: Option<String> },
    /// An image was pulled, or could not be.
    Pull { fetched: Fetched, result: Result<Image, NotPulled> },
    /// What the pod takes on the disk was measured, for so long; and why it is evicted for it, if so.
    Measured { took: Duration, exceeded: Option<String> },
    /// The image of a volume was unpacked, or could not be.
    Unpack { fetched: Fetched, error: Option<String> },
}

/// An image that is fetched for a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fetched {
    /// Name of the container.
    pub(crate) container: String,
    /// The image, as the pod names it.
    pub(crate) image: String,
    /// The volume that it is for; `None` for the container's own.
    pub(crate) volume: Option<String>,
}

impl Fetched {
    pub(crate) fn new(container: &str, image: &str, volume: Option<&str>) -> Self {
        let (container, image) = (container.to_owned(), image.to_owned());
        Fetched { container, image, volume: volume.map(str::to_owned) }
    }

    /// Whom events are about: the container, or, for a volume, the pod.
    pub(crate) fn about(&self) -> Option<&str> {
        self.volume.is_none().then_some(self.container.as_str())
    }
}

/// Why something could not be done, as status and events show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The waiting reason.
    pub(crate) reason: &'static str,
    /// What went wrong.
    pub(crate) message: String,
}

/// A worker's mailbox.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    wakes: Mutex<Wakes>,
    notify: Notify,
}

impl Inbox {
    /// Adds something and wakes the worker.
    pub(crate) fn put(&self, change: impl FnOnce(&mut Wakes)) {
        change(&mut self.wakes.lock().unwrap_or_else(PoisonError::into_inner));
        self.notify.notify_one();
    }

    /// Takes what has come so far.
    pub(crate) fn take(&self) -> Wakes {
        std::mem::take(&mut self.wakes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until something was put in. Cancel safe: a permit that was not used stays.
    pub(crate) async fn woken(&self) {
        self.notify.notified().await;
    }
}
