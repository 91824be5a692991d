//! Who is here: what the node's own loops (eviction, collection) know of each pod, and how they reach its worker.
//!
//! Workers tell what they saw each time that they publish; nothing here decides, and nothing acts on a pod.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore_core::observed::ObservedPod;
use longshore_core::pod::Pod;
use longshore_core::ports::files::PodFiles;
use longshore_core::record::PodRecord;
use tokio::sync::watch;

use crate::inbox::{Inbox, Wakes};

/// A pod as its worker last saw it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Member {
    /// The pod.
    pub(crate) pod: Pod,
    /// Process ID of its sandbox while that runs.
    pub(crate) sandbox_process: Option<u32>,
    /// Its containers, dead ones included.
    pub(crate) containers: Vec<MemberContainer>,
    /// Where its volumes are, by name; empty before they are set up.
    pub(crate) volumes: BTreeMap<String, PathBuf>,
    /// What else of its own its containers may write to: what they have as `/etc/hosts`, `/etc/resolv.conf` and for
    /// termination messages.
    pub(crate) files: Vec<PathBuf>,
    /// Whether it has ended, or is about to.
    pub(crate) ended: bool,
    /// Whether nothing of an ended one takes memory any more, nor disk that it is to give back.
    pub(crate) over: bool,
}

/// A container of a [`Member`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MemberContainer {
    /// Its name in the pod's spec.
    pub(crate) name: String,
    /// Its ID in the runtime.
    pub(crate) id: String,
    /// Whether it runs.
    pub(crate) running: bool,
    /// The runtime's log of it.
    pub(crate) log: Option<PathBuf>,
}

impl Member {
    pub(crate) fn new(pod: &Pod, observed: &ObservedPod, record: &PodRecord, files: Option<&PodFiles>) -> Self {
        let containers: Vec<MemberContainer> = observed
            .containers
            .iter()
            .map(|seen| MemberContainer {
                name: seen.name.clone(),
                id: seen.id.clone(),
                running: seen.is_running(),
                log: seen.runtime_log.as_ref().map(PathBuf::from),
            })
            .collect();
        let ended = record.terminal.is_some();
        let kept = if record.emptied { containers.len() + observed.sandboxes.len() } else { 0 };
        Member {
            pod: pod.clone(),
            sandbox_process: observed.sandboxes.iter().find(|seen| seen.is_running()).and_then(|sandbox| sandbox.pid),
            volumes: files.map(|files| files.volumes.clone()).unwrap_or_default(),
            files: files
                .map(|files| vec![files.hosts.clone(), files.resolv_conf.clone(), files.messages.clone()])
                .unwrap_or_default(),
            over: ended && !observed.is_running() && record.released && kept == 0,
            containers,
            ended,
        }
    }

    /// Whether it holds what it has of the node: it goes on, was not told to end yet, or something of it still runs.
    pub(crate) fn holds(&self) -> bool {
        !self.ended || self.containers.iter().any(|container| container.running)
    }
}

struct Entry {
    inbox: Arc<Inbox>,
    member: Arc<Member>,
}

/// See the module.
pub(crate) struct Roster {
    entries: Mutex<HashMap<String, Entry>>,
    version: watch::Sender<u64>,
}

impl Default for Roster {
    fn default() -> Self {
        Roster { entries: Mutex::default(), version: watch::channel(0).0 }
    }
}

impl Roster {
    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker begins with that.
    pub(crate) fn register(&self, inbox: Arc<Inbox>, member: Member) {
        let uid = member.pod.id.uid.clone();
        self.entries().insert(uid, Entry { inbox, member: Arc::new(member) });
        self.version.send_modify(|version| *version += 1);
    }

    /// A worker ended.
    pub(crate) fn forget(&self, uid: &str) {
        self.entries().remove(uid);
        self.version.send_modify(|version| *version += 1);
    }

    /// What a worker saw.
    pub(crate) fn tell(&self, member: Member) {
        {
            let mut entries = self.entries();
            let Some(entry) = entries.get_mut(&member.pod.id.uid) else { return };
            if *entry.member == member {
                return;
            }
            entry.member = Arc::new(member);
        }
        self.version.send_modify(|version| *version += 1);
    }

    /// All pods that have workers.
    pub(crate) fn members(&self) -> Vec<Arc<Member>> {
        self.entries().values().map(|entry| entry.member.clone()).collect()
    }

    /// The pod of that UID.
    pub(crate) fn member(&self, uid: &str) -> Option<Arc<Member>> {
        self.entries().get(uid).map(|entry| entry.member.clone())
    }

    /// Puts something into a worker's inbox. False when there is no such worker any more.
    pub(crate) fn put(&self, uid: &str, change: impl FnOnce(&mut Wakes)) -> bool {
        let inbox = self.entries().get(uid).map(|entry| entry.inbox.clone());
        inbox.map(|inbox| inbox.put(change)).is_some()
    }

    /// Told whenever a worker tells something, comes or goes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Waits until something is true of what workers tell. False when it is not within `limit`.
    pub(crate) async fn until(&self, limit: Duration, is: impl Fn(&Roster) -> bool) -> bool {
        let mut version = self.version.subscribe();
        let looked = async {
            loop {
                version.borrow_and_update();
                if is(self) {
                    return;
                }
                // The sender lives as long as we do.
                if version.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(limit, looked).await.is_ok()
    }
}
