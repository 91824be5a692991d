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

use super::leave::Leaving;
use super::{LEFTOVERS, Network, State};
use crate::node::Ports;

/// How often plugins are asked whether they are ready: when they are, and when they are not.
const LOOKS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(1));
/// How often it is looked whether a network of ours that pods still run on can go.
const LEAVES: Duration = Duration::from_secs(10);
/// How often attachments are checked.
const CHECKS: Duration = Duration::from_secs(1800);
/// So long after the start sandboxes may be attached of which nothing is known yet.
const UNKNOWN: Duration = Duration::from_secs(300);
/// How often plugins may drop what belongs to nobody.
const COLLECTIONS: Duration = Duration::from_secs(3600);

impl Network {
    /// Follows the plugins' configuration and readiness, for ever.
    pub(super) async fn follow_plugins(&self, ports: &Ports) {
        // What is left of a network of ours is looked at then; never again once it is gone.
        let mut leave = Some(Instant::now());
        let mut cidrs = None;
        let mut refusal: Option<String> = None;
        loop {
            let now = self.named_cidrs(ports).map(|named| network::cidrs(&named).unwrap_or_default());
            let has_changed = cidrs != now;
            cidrs = now;
            if let Some(at) = leave
                && (has_changed || Instant::now() >= at)
            {
                match self.leave(ports, cidrs.as_deref()).await {
                    Ok(Leaving::Done) => (leave, refusal) = (None, None),
                    Ok(Leaving::Waits(why)) => (leave, refusal) = (Some(Instant::now() + LEAVES), why),
                    // It is asked again with the next look.
                    Err(error) => tracing::debug!("a former network of ours cannot be looked for: {error}"),
                }
            }
            let (state, wait) = match ports.plugins.ready().await {
                Ok(()) if refusal.is_some() => (State::Failed(refusal.clone().unwrap_or_default()), LOOKS.1),
                Ok(()) => (State::Ready(SandboxNetwork::Detached), LOOKS.0),
                Err(error) => (State::Failed(error.to_string()), LOOKS.1),
            };
            self.settle(ports, state);
            // Cancel safe: a doubt that is not seen here is kept for the next wait.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.doubt.notified() => {}
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
