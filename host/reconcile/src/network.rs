//! The pods' network: which one new sandboxes are on, and whether it is ready. Follows the Node and what there is in the
//! runtime, or the plugins; takes off the network what is gone.
//!
//! Decisions are core's ([`longshore_core::network`]). Sandboxes that run are never moved.

mod bridge;
mod chains;
mod leave;
mod plugins;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use longshore_core::cidr::Cidr;
use longshore_core::container::SandboxNetwork;
use longshore_core::event::EventType;
use longshore_core::network::{self, not_ready};
use longshore_core::observed::{Observation, Sandbox};
use longshore_core::ports::events::EventSink;
use longshore_core::ports::network::NetworkPlugins;
use tokio::sync::{Notify, watch};

use crate::node::Ports;

/// How the pods' network is set up.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// Whether CNI plugins make it.
    pub plugins: bool,
    /// Whether the node is one of a cluster, whose Node says what networks it has for pods.
    pub in_cluster: bool,
    /// The networks for pods of a node that is alone, as texts.
    pub pod_cidrs: Vec<String>,
    /// Where pods' addresses are not masqueraded, if it was said (`--non-masquerade-cidr`).
    pub unmasqueraded: Vec<Cidr>,
    /// Whether a pod of a cluster is to reach itself through its own Services.
    pub hairpin: bool,
    /// Whether the kubelet's chains of the packet filter are made in a cluster.
    pub util_chains: bool,
    /// How long pods wait for the node's networks after it was registered, or after the start when its cluster is away.
    pub wait: Duration,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        NetworkOptions {
            plugins: false,
            in_cluster: false,
            pod_cidrs: Vec::new(),
            unmasqueraded: Vec::new(),
            hairpin: true,
            util_chains: true,
            wait: Duration::from_secs(10),
        }
    }
}

/// A sandbox waits so long for the network to be settled: a little longer than the Node is waited for.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often it is looked for attachments of sandboxes that are gone.
const LEFTOVERS: Duration = Duration::from_secs(60);

/// Whether sandboxes can be made, and for which network.
#[derive(Clone, Debug, PartialEq)]
enum State {
    /// Not known yet.
    Unsettled,
    /// They can.
    Ready(SandboxNetwork),
    /// They cannot.
    Failed(String),
}

/// The pods' network, as the workers see it.
pub(crate) struct Network {
    options: NetworkOptions,
    state: watch::Sender<State>,
    /// Counts how often it became ready again.
    recoveries: watch::Sender<u64>,
    /// Told when the network may not be as it is known.
    doubt: Notify,
    /// The node's networks for pods, as last known.
    pod_cidrs: Mutex<Vec<Cidr>>,
}

impl Network {
    pub(crate) fn new(options: NetworkOptions) -> Self {
        Network {
            options,
            state: watch::Sender::new(State::Unsettled),
            recoveries: watch::Sender::new(0),
            doubt: Notify::new(),
            pod_cidrs: Mutex::default(),
        }
    }

    /// The network for a new sandbox; the error says why there can be none now.
    pub(crate) async fn for_sandbox(&self) -> Result<SandboxNetwork, String> {
        let mut state = self.state.subscribe();
        let settled = tokio::time::timeout(PATIENCE, state.wait_for(|state| *state != State::Unsettled)).await;
        match settled {
            Ok(Ok(state)) => match &*state {
                State::Ready(network) => Ok(network.clone()),
                State::Failed(problem) => Err(problem.clone()),
                State::Unsettled => Err("it is not known yet".to_owned()),
            },
            // The runtime does not answer to what the network depends on.
            Ok(Err(_)) | Err(_) => {
                Err("it is not known yet: the container runtime does not tell its networks".to_owned())
            }
        }
    }

    /// Whether pods are to reach themselves through their own Services: only a cluster has any.
    pub(crate) fn has_hairpin(&self) -> bool {
        self.options.in_cluster && self.options.hairpin
    }

    /// A sandbox could not be started: its network may have been removed.
    pub(crate) fn doubted(&self) {
        self.doubt.notify_one();
    }

    /// The node's networks for pods, as far as known.
    pub(crate) fn pod_cidrs(&self) -> Vec<Cidr> {
        self.pod_cidrs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes when sandboxes can be made that could not be before.
    pub(crate) fn recoveries(&self) -> watch::Receiver<u64> {
        self.recoveries.subscribe()
    }

    /// The networks that pods of this node may have, as texts; `None` when that is not known, and then what was last known
    /// stays for the plugins.
    fn named_cidrs(&self, ports: &Ports) -> Option<Vec<String>> {
        let named = match self.options.in_cluster {
            false => Some(self.options.pod_cidrs.clone()),
            true => ports.views.node().map(|node| network::pod_cidrs(&node)),
        };
        if let Some(named) = &named {
            let known = network::cidrs(named).unwrap_or_default();
            *self.pod_cidrs.lock().unwrap_or_else(PoisonError::into_inner) = known;
        }
        named
    }

    /// Publishes the state, and what the node's condition says of it.
    fn settle(&self, ports: &Ports, state: State) {
        let problem = match &state {
            State::Failed(problem) => Some(problem.clone()),
            _ => None,
        };
        let before = self.state.send_replace(state.clone());
        let had_failed = matches!(before, State::Failed(_));
        match &problem {
            Some(problem) if before != state => {
                ports.events.record_node(EventType::Warning, "NetworkNotReady", &not_ready(problem));
            }
            None if had_failed => {
                ports.events.record_node(EventType::Normal, "NetworkReady", "The pods' network is ready again");
                self.recoveries.send_modify(|count| *count += 1);
            }
            _ => {}
        }
        ports.health.other("network", problem.map(|problem| not_ready(&problem)));
    }

    /// Keeps the network up to date, for ever.
    pub(crate) async fn run(&self, ports: &Ports, root_id: &str) {
        let made = async {
            match self.options.plugins {
                true => self.follow_plugins(ports).await,
                false => {
                    tokio::join!(self.follow_bridges(ports, root_id), self.keep_bridged_filtered(ports));
                }
            }
        };
        // Attachments that an agent with plugins left are taken back by one without.
        tokio::join!(made, self.take_back_leftovers(ports), self.keep_chains(ports));
    }
}

/// Adds to what the runtime says of sandboxes the addresses that plugins gave them.
pub fn complete(plugins: &dyn NetworkPlugins, seen: &mut Observation) {
    if let Observation::Sandbox(sandbox) = seen
        && is_attachable(sandbox)
    {
        sandbox.ips = plugins.addresses(&sandbox.id).unwrap_or_default();
    }
}

fn is_attachable(sandbox: &Sandbox) -> bool {
    sandbox.network == SandboxNetwork::Detached && sandbox.is_running()
}

/// The same for a list.
pub fn complete_all(plugins: &dyn NetworkPlugins, list: &mut [Observation]) {
    list.iter_mut().for_each(|seen| complete(plugins, seen));
}
