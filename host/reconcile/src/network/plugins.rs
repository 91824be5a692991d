//! CNI plugins: whether they are ready, whether what they attached still is, and what they attached for sandboxes that
//! are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use longshore_core::container::SandboxNetwork;
use longshore_core::event::EventType;
use longshore_core::network;
use longshore_core::observed::{Observation, Sandbox};
use longshore_core::ports::events::EventSink;
use longshore_core::ports::network::PluginError;
use tokio::sync::watch;

use super::leave::{self, Leaving};
use super::{LEFTOVERS, Network, State};
use crate::node::Ports;

/// How often plugins are asked whether they are ready: when they are, and when they are not.
const LOOKS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(1));
/// How often it is looked whether a network of ours that pods still run on can go.
const LEAVES: Duration = Duration::from_secs(10);
/// Pods wait so long for the word on a network of ours that may be in the way: less than a sandbox waits.
const GRACE: Duration = Duration::from_secs(5);
/// How often attachments are checked.
const CHECKS: Duration = Duration::from_secs(1800);
/// So long after the start sandboxes may be attached of which nothing is known yet.
const UNKNOWN: Duration = Duration::from_secs(300);
/// How often plugins may drop what belongs to nobody.
const COLLECTIONS: Duration = Duration::from_secs(3600);

impl Network {
    /// Follows the plugins' configuration and readiness, for ever; beside it, what is left of a network of ours goes: Docker
    /// may take its time with that.
    pub(super) async fn follow_plugins(&self, ports: &Ports) {
        let former = watch::Sender::new(State::Unsettled);
        tokio::join!(self.leave_former(ports, &former), self.ask_plugins(ports, former.subscribe()));
    }

    /// Removes what is left of a network of ours, until all of it is gone. `former` is whether pods can be made beside it.
    async fn leave_former(&self, ports: &Ports, former: &watch::Sender<State>) {
        let (mut word, mut said) = (ports.views.node_word(), None);
        // While the Node is away, what it had counts; none before it was ever known.
        let named = || match self.named_cidrs(ports) {
            Some(named) => Some(network::cidrs(&named).unwrap_or_default()),
            None => Some(self.pod_cidrs()).filter(|known| !known.is_empty()),
        };
        let free = || State::Ready(SandboxNetwork::Detached);
        loop {
            word.mark_unchanged();
            let cidrs = named();
            match self.leave(ports, cidrs.as_deref()).await {
                Ok(Leaving::Done) => {
                    former.send_replace(free());
                    return;
                }
                Ok(Leaving::Waits(Some(why))) => {
                    former.send_replace(State::Failed(why));
                }
                Ok(Leaving::Waits(None)) if cidrs.is_some() => {
                    former.send_replace(free());
                }
                // Whether it is in the way is not known without the node's addresses.
                Ok(Leaving::Waits(None)) => {}
                Ok(Leaving::Filtered(problem)) => {
                    former.send_replace(free());
                    leave::warn(&problem, &mut said);
                }
                Err(error) => leave::warn(&error.to_string(), &mut said),
            }
            let moved = async { while word.changed().await.is_ok() && named() == cidrs {} };
            tokio::select! {
                () = tokio::time::sleep(LEAVES) => {}
                () = moved => {}
            }
        }
    }

    /// Asks the plugins whether they are ready, for ever.
    async fn ask_plugins(&self, ports: &Ports, mut former: watch::Receiver<State>) {
        let started = Instant::now();
        loop {
            // They are told of the node's networks, as last known.
            self.named_cidrs(ports);
            let ready = ports.plugins.ready().await;
            let beside = former.borrow_and_update().clone();
            let (state, wait) = match (ready, beside) {
                (Err(error), _) => (State::Failed(error.to_string()), LOOKS.1),
                // Docker does not answer, or the Node does not come: neither need be.
                (Ok(()), State::Unsettled) if started.elapsed() >= GRACE => {
                    (State::Ready(SandboxNetwork::Detached), LOOKS.0)
                }
                (Ok(()), beside @ State::Ready(_)) => (beside, LOOKS.0),
                (Ok(()), beside) => (beside, LOOKS.1),
            };
            self.settle(ports, state);
            // Cancel safe: a doubt that is not seen here is kept for the next wait.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.doubt.notified() => {}
                Ok(()) = former.changed() => {}
            }
        }
    }

    /// Takes back what was attached for sandboxes that do not run any more, for ever: their containers were removed by
    /// others, or the machine was restarted.
    pub(super) async fn take_back_leftovers(&self, ports: &Ports) {
        let mut checked: BTreeMap<String, Instant> = BTreeMap::new();
        let (started, mut collected) = (Instant::now(), None::<Instant>);
        let mut said: BTreeSet<String> = BTreeSet::new();
        loop {
            // In this order: what is attached from now on is a sandbox's that runs by now.
            let attached = ports.plugins.attached();
            if !attached.is_empty()
                && let Ok(list) = ports.runtime.list().await
                && !list.iter().any(Observation::is_unseen)
            {
                let running = running(&list);
                for id in attached.iter().filter(|id| !running.contains_key(id.as_str())) {
                    match ports.plugins.detach(id, None).await {
                        Ok(()) => tracing::info!(sandbox = id, "took a sandbox that is gone off the network"),
                        Err(error) if said.insert(id.clone()) => {
                            tracing::warn!(
                                sandbox = id,
                                "a sandbox that is gone is still on the network: {error}; trying again"
                            );
                        }
                        Err(_) => {}
                    }
                }
                said.retain(|id| attached.contains(id));
                checked.retain(|id, _| running.contains_key(id.as_str()));
                for sandbox in running.values().filter(|sandbox| attached.contains(&sandbox.id)) {
                    let due = checked.get(&sandbox.id).is_none_or(|at| at.elapsed() >= CHECKS);
                    if let Some(pid) = sandbox.pid.filter(|_| due) {
                        checked.insert(sandbox.id.clone(), Instant::now());
                        check(ports, sandbox, pid).await;
                    }
                }
            }
            let is_due = self.options.plugins && collected.is_none_or(|at| at.elapsed() >= COLLECTIONS);
            if is_due && (started.elapsed() >= UNKNOWN || all_are_known(ports).await) {
                match ports.plugins.collect().await {
                    Ok(()) => collected = Some(Instant::now()),
                    Err(PluginError::NotReady { .. }) => {}
                    Err(error) => {
                        tracing::warn!("CNI plugins could not drop what belongs to nobody: {error}");
                        collected = Some(Instant::now());
                    }
                }
            }
            tokio::time::sleep(LEFTOVERS).await;
        }
    }
}

/// Whether every sandbox that may be attached is known to be: else it would be dropped as nobody's.
async fn all_are_known(ports: &Ports) -> bool {
    let Ok(list) = ports.runtime.list().await else { return false };
    let known = ports.plugins.attached();
    !list.iter().any(Observation::is_unseen)
        && running(&list)
            .into_values()
            .all(|sandbox| sandbox.network != SandboxNetwork::Detached || known.contains(&sandbox.id))
}

fn running(list: &[Observation]) -> BTreeMap<&str, &Sandbox> {
    let sandboxes = list.iter().filter_map(|seen| match seen {
        Observation::Sandbox(sandbox) if sandbox.is_running() => Some(sandbox),
        _ => None,
    });
    sandboxes.map(|sandbox| (sandbox.id.as_str(), sandbox)).collect()
}

/// An attachment that is not as it was made is told, and left: what would mend it, a new sandbox, ends all of the pod.
async fn check(ports: &Ports, sandbox: &Sandbox, pid: u32) {
    if ports.plugins.addresses(&sandbox.id).is_none() {
        return;
    }
    if let Err(error) = ports.plugins.check(&sandbox.id, pid).await {
        let message = format!("the pod's network is not as it was made: {error}; delete the pod to have it made anew");
        ports.events.record(&sandbox.pod, None, EventType::Warning, "NetworkCheckFailed", &message);
    }
}
