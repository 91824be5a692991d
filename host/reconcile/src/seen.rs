//! The node, its runtime and other agents' containers as they were last looked at. It must not judge what it sees.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use longshore_core::node::NodeFacts;
use longshore_core::ports::runtime::{ForeignContainer, RuntimeError};

use crate::node::Shared;

/// How long a look at the node's addresses and names may take; what it would tell stays as it was.
const LOOK: Duration = Duration::from_secs(2);
/// How old a list of other agents' containers may be.
const FOREIGN_AGE: Duration = Duration::from_secs(5);

/// Other agents' containers, or why the runtime did not say.
pub(crate) type Foreign = Result<Arc<Vec<ForeignContainer>>, String>;

/// See the module.
pub(crate) struct Seen {
    facts: Mutex<Arc<NodeFacts>>,
    foreign: tokio::sync::Mutex<Option<(Instant, Foreign)>>,
    /// Whether the runtime was away since it last said what it is.
    unmet: AtomicBool,
    /// Held while it is asked.
    meeting: tokio::sync::Mutex<()>,
}

impl Seen {
    pub(crate) fn new(facts: NodeFacts) -> Self {
        let facts = Mutex::new(Arc::new(facts));
        Seen {
            facts,
            foreign: tokio::sync::Mutex::default(),
            unmet: AtomicBool::new(false),
            meeting: tokio::sync::Mutex::default(),
        }
    }
}

impl Shared {
    /// The node as it was when it was last looked at.
    pub(crate) fn facts(&self) -> Arc<NodeFacts> {
        self.seen.facts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The node as it is now.
    pub(crate) async fn look(&self) -> Arc<NodeFacts> {
        // Cancel safe: a look that is dropped changes nothing.
        let now = tokio::time::timeout(LOOK, (self.ports.look)()).await.unwrap_or_default();
        let mut facts = self.seen.facts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(changed) = facts.in_surroundings(now) {
            if changed.ips != facts.ips {
                tracing::info!(addresses = ?changed.ips, "the node's addresses have changed");
            }
            *facts = Arc::new(changed);
        }
        facts.clone()
    }

    /// Has the runtime asked what it is: after it was away it may be another one. It may take a minute to say.
    pub(crate) fn meet_runtime(self: &Arc<Self>) {
        self.seen.unmet.store(true, Ordering::Relaxed);
        self.meet_runtime_again();
    }

    /// The same, if it has not answered since it was away, and is not being asked.
    pub(crate) fn meet_runtime_again(self: &Arc<Self>) {
        let shared = self.clone();
        tokio::spawn(async move {
            let Ok(_alone) = shared.seen.meeting.try_lock() else { return };
            while shared.seen.unmet.swap(false, Ordering::Relaxed) {
                if let Err(error) = shared.met_runtime().await {
                    tracing::debug!("the runtime does not say what it is: {error}");
                    shared.seen.unmet.store(true, Ordering::Relaxed);
                    return;
                }
            }
        });
    }

    async fn met_runtime(&self) -> Result<(), RuntimeError> {
        let info = self.ports.runtime.info().await?;
        let mut facts = self.seen.facts.lock().unwrap_or_else(PoisonError::into_inner);
        let now = NodeFacts {
            runtimes: info.runtimes.clone(),
            recursive_read_only: info.recursive_read_only,
            ..(**facts).clone()
        };
        if now != **facts {
            *facts = Arc::new(now);
        }
        drop(facts);
        self.ports.views.set_runtime(info);
        Ok(())
    }

    /// Other agents' containers, as of a few seconds ago at most.
    ///
    /// # Errors
    /// Why the runtime did not say, as long: many pods may ask, and it may take its time for that.
    pub(crate) async fn foreign(&self) -> Foreign {
        let mut known = self.seen.foreign.lock().await;
        if let Some((_, list)) = known.as_ref().filter(|(at, _)| at.elapsed() < FOREIGN_AGE) {
            return list.clone();
        }
        let list = self.ports.runtime.foreign().await.map(Arc::new).map_err(|error| error.to_string());
        *known = Some((Instant::now(), list.clone()));
        list
    }
}
