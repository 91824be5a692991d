//! The handle by which others have all pods end: the machine's power, and whoever asks on the local socket.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longshore_core::ports::shutdown::MachineEnd;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, oneshot};

/// Requests that may wait.
const WAITING: usize = 16;

/// What is told while pods end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Told {
    /// These end now.
    Group {
        /// The lowest priority of the group.
        priority: i32,
        /// Seconds that it is waited for at most.
        seconds: i64,
        /// The pods, as `namespace/name`.
        pods: Vec<String>,
    },
    /// One of them has ended.
    Ended {
        /// The pod.
        pod: String,
        /// How long it took.
        milliseconds: u64,
    },
    /// These have not, in their time; the next group ends.
    Late {
        /// The pods.
        pods: Vec<String>,
    },
    /// It was called off: pods may begin again.
    CalledOff,
    /// The last word.
    Done(Outcome),
}

/// How it went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How many pods ended.
    pub ended: usize,
    /// Those that did not, as `namespace/name`.
    pub left: Vec<String>,
}

/// Why a request is not heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// The loops are not there yet, or not any more.
    #[error("the agent does not run pods yet: it waits for Docker; nothing of theirs can be ended before that")]
    NotReady,
    /// Too many wait.
    #[error("too many requests to end or resume pods wait already")]
    Full,
}

pub(super) enum Request {
    Drain { limit: Option<Duration>, told: oneshot::Sender<broadcast::Receiver<Told>> },
    Resume { done: oneshot::Sender<bool> },
}

/// See the module.
pub struct Control {
    machine: Option<Arc<dyn MachineEnd>>,
    sender: mpsc::Sender<Request>,
    requests: Mutex<Option<mpsc::Receiver<Request>>>,
    heard: AtomicBool,
    drained: AtomicBool,
}

impl Default for Control {
    /// A machine that never says that it goes down.
    fn default() -> Self {
        Control::new(None)
    }
}

impl Control {
    /// The control of that machine; `None` for one that does not say when it goes down.
    pub fn new(machine: Option<Arc<dyn MachineEnd>>) -> Self {
        let (sender, requests) = mpsc::channel(WAITING);
        let requests = Mutex::new(Some(requests));
        Control { machine, sender, requests, heard: AtomicBool::new(false), drained: AtomicBool::new(false) }
    }

    /// Has all pods end, within `limit` if there is one. What this gives is told as it goes; it goes on whether or not
    /// anybody listens, and ends with [`Told::Done`] or [`Told::CalledOff`].
    pub async fn drain(&self, limit: Option<Duration>) -> Result<broadcast::Receiver<Told>, Busy> {
        let (told, answer) = oneshot::channel();
        self.ask(Request::Drain { limit, told })?;
        answer.await.map_err(|_| Busy::NotReady)
    }

    /// Takes drains back: pods may begin again, and static ones that ended do. False where the machine itself goes down.
    pub async fn resume(&self) -> Result<bool, Busy> {
        let (done, answer) = oneshot::channel();
        self.ask(Request::Resume { done })?;
        answer.await.map_err(|_| Busy::NotReady)
    }

    /// Whether no pod begins because somebody asked for that, and not because the machine goes down.
    pub fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Acquire)
    }

    pub(super) fn set_drained(&self, drained: bool) {
        self.drained.store(drained, Ordering::Release);
    }

    fn ask(&self, request: Request) -> Result<(), Busy> {
        if !self.heard.load(Ordering::Acquire) {
            return Err(Busy::NotReady);
        }
        self.sender.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Busy::Full,
            mpsc::error::TrySendError::Closed(_) => Busy::NotReady,
        })
    }

    pub(super) fn machine(&self) -> Option<Arc<dyn MachineEnd>> {
        self.machine.clone()
    }

    /// What is asked for; once.
    pub(super) fn requests(&self) -> Option<mpsc::Receiver<Request>> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.heard.store(requests.is_some(), Ordering::Release);
        requests
    }
}
