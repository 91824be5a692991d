//! The node's rounds: the whole runtime is looked at now and then, and folders of pods that are gone are removed.
//!
//! A container or a mount may hang, so neither keeps the node from anything else; what they find is its own to judge.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, OptionFuture};
use longshore_core::observed::{ObservedPod, by_pod};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::network::complete_all;
use crate::node::Shared;

/// What a look found.
pub(crate) struct Found {
    /// All of ours in the runtime, by the pods' UIDs.
    pub(crate) pods: HashMap<String, ObservedPod>,
    /// UIDs of the pods that have folders.
    pub(crate) folders: Vec<String>,
}

/// What a round came to.
pub(crate) enum Round {
    /// What was found, without the pods that ended meanwhile.
    Looked(Found),
    /// The folders that were to be removed are gone, or cannot be removed.
    Tidied,
}

/// Rounds, one at a time of each kind.
pub(crate) struct Rounds {
    due: Interval,
    look: Option<BoxFuture<'static, Option<Found>>>,
    /// Pods that ended since the look began.
    ended: HashSet<String>,
    tidying: Option<BoxFuture<'static, ()>>,
    tidied: HashSet<String>,
}

impl Rounds {
    /// The first is due when `period` has passed.
    pub(crate) fn every(period: Duration) -> Rounds {
        let mut due = interval(period);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        due.reset();
        Rounds { due, look: None, ended: HashSet::new(), tidying: None, tidied: HashSet::new() }
    }

    /// What the next one comes to. Cancel safe: what is under way goes on at the next call.
    pub(crate) async fn next(&mut self, shared: &Arc<Shared>) -> Round {
        loop {
            tokio::select! {
                _ = self.due.tick(), if self.look.is_none() => {
                    self.ended.clear();
                    self.look = Some(look(shared.clone()).boxed());
                }
                Some(looked) = OptionFuture::from(self.look.as_mut()) => {
                    self.look = None;
                    if let Some(mut found) = looked {
                        found.pods.retain(|uid, _| !self.ended.contains(uid));
                        return Round::Looked(found);
                    }
                }
                Some(()) = OptionFuture::from(self.tidying.as_mut()) => {
                    self.tidying = None;
                    self.tidied.clear();
                    return Round::Tidied;
                }
            }
        }
    }

    /// A pod's worker has ended: what a look finds of it from now on may be from before.
    pub(crate) fn ended(&mut self, uid: &str) {
        self.ended.insert(uid.to_owned());
    }

    /// Removes the folders of pods, unless some are being removed already. No such pod may be started until then.
    pub(crate) fn tidy(&mut self, shared: &Arc<Shared>, gone: Vec<String>) {
        if gone.is_empty() || self.tidying.is_some() {
            return;
        }
        self.tidied = gone.iter().cloned().collect();
        self.tidying = Some(remove(shared.clone(), gone).boxed());
    }

    /// Whether the folder of that pod is being removed.
    pub(crate) fn is_tidying(&self, uid: &str) -> bool {
        self.tidied.contains(uid)
    }
}

async fn look(shared: Arc<Shared>) -> Option<Found> {
    shared.look().await;
    shared.meet_runtime_again();
    match shared.ports.runtime.list().await {
        Ok(mut list) => {
            complete_all(&*shared.ports.plugins, &mut list);
            Some(Found { pods: by_pod(list), folders: shared.ports.files.pod_folders().await })
        }
        Err(error) => {
            tracing::debug!("the runtime cannot be looked at: {error}");
            None
        }
    }
}

async fn remove(shared: Arc<Shared>, gone: Vec<String>) {
    for uid in gone {
        match shared.ports.files.forget(&uid).await {
            Ok(()) => tracing::info!(uid, "removed the folder of a pod that is gone"),
            Err(error) => tracing::warn!(uid, "the folder of a pod that is gone cannot be removed: {error}"),
        }
    }
}
