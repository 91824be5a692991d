//! Docker's own networks: the default one, or one of ours with the addresses that the node has for pods.

use std::time::{Duration, Instant};

use longshore_core::cidr::Cidr;
use longshore_core::container::SandboxNetwork;
use longshore_core::event::EventType;
use longshore_core::network::rules::{PacketFilter, unmasqueraded};
use longshore_core::network::{Choice, Decision, OwnNetwork, Situation, Used, decide};
use longshore_core::observed::{Observation, SandboxState};
use longshore_core::ports::events::EventSink;
use longshore_core::ports::runtime::RuntimeError;

use super::leave::{self, Leaving};
use super::{Network, State};
use crate::node::Ports;

/// How often the runtime's networks and the packet filter are looked at, and how soon again after a failure.
const RUNTIME_LOOKS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(5));

/// How often it is looked whether the packet filter sees what is bridged: others may turn that off.
const BRIDGE_LOOKS: Duration = Duration::from_secs(20);

/// What was said already.
#[derive(Default)]
struct Said {
    /// That the node has no network of its own for pods.
    missing: bool,
    /// Why the packet filter could not be told.
    filter: Option<String>,
    /// Which rule of the operator's our rules were moved behind.
    behind: Option<String>,
    /// Why pods do not reach themselves.
    hairpin: Option<String>,
    /// That nothing is left of networks of ours, which are not used.
    left: bool,
    /// Why something of them may be left.
    leaving: Option<String>,
    /// Why the runtime did not answer.
    runtime: Option<String>,
}

impl Network {
    /// Follows the Node and the runtime's networks, for ever.
    pub(super) async fn follow_bridges(&self, ports: &Ports, root_id: &str) {
        let started = Instant::now();
        let mut known_since = None;
        let mut done: Option<(Option<Vec<String>>, bool)> = None;
        let mut again = started;
        let mut said = Said::default();
        let mut word = ports.views.node_word();
        loop {
            word.mark_unchanged();
            let cidrs = self.named_cidrs(ports);
            if cidrs.is_some() && known_since.is_none() {
                known_since = Some(Instant::now());
            }
            let wait_ends = known_since.unwrap_or(started) + self.options.wait;
            let waited = !self.options.in_cluster || Instant::now() >= wait_ends;
            let now = (cidrs, waited);
            if done.as_ref() != Some(&now) || Instant::now() >= again {
                match self.settle_on(ports, root_id, now.0.as_deref(), waited, &mut said).await {
                    Ok(state) => {
                        self.hairpin(ports, &state, &mut said).await;
                        let is_ours = matches!(state, State::Ready(SandboxNetwork::Named(_)));
                        let is_others = matches!(state, State::Ready(_)) && !is_ours;
                        let failed = matches!(state, State::Failed(_)) || said.filter.is_some();
                        self.settle(ports, state);
                        if is_others && !said.left {
                            let none: &[Cidr] = &[];
                            let left = self.leave(ports, Some(none)).await;
                            if let Ok(Leaving::Filtered(problem)) = &left {
                                leave::warn(problem, &mut said.leaving);
                            }
                            said.left = matches!(left, Ok(Leaving::Done));
                        } else if is_ours {
                            said.left = false;
                        }
                        said.runtime = None;
                        again = Instant::now() + if failed { RUNTIME_LOOKS.1 } else { RUNTIME_LOOKS.0 };
                    }
                    // Where pods go now stays right; without a choice they wait, as for all else of the runtime.
                    Err(error) => {
                        let error = error.to_string();
                        if said.runtime.as_ref() != Some(&error) {
                            tracing::warn!("the pods' network cannot be looked at: {error}; trying again");
                            said.runtime = Some(error);
                        }
                        again = Instant::now() + RUNTIME_LOOKS.1;
                    }
                }
                done = Some(now);
            }
            let next = if waited { again } else { again.min(wait_ends) };
            // Cancel safe: a word or a doubt that is not seen here is kept for the next turn.
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                Ok(()) = word.changed() => {}
                () = self.doubt.notified() => again = Instant::now(),
            }
        }
    }

    /// Has what goes between pods of this node pass the packet filter, where there are Services; for ever, with each word of the
    /// Node and every so often. By itself: no pod waits for a kernel's module that does not come.
    pub(super) async fn keep_bridged_filtered(&self, ports: &Ports) {
        if !self.options.in_cluster {
            return;
        }
        let (mut said, mut word) = (None, ports.views.node_word());
        loop {
            word.mark_unchanged();
            filter_bridged(ports, &mut said).await;
            tokio::select! {
                () = tokio::time::sleep(BRIDGE_LOOKS) => {}
                Ok(()) = word.changed() => {}
            }
        }
    }

    /// Decides, and does what that needs.
    async fn settle_on(
        &self,
        ports: &Ports,
        root_id: &str,
        pod_cidrs: Option<&[String]>,
        waited: bool,
        said: &mut Said,
    ) -> Result<State, RuntimeError> {
        if !self.options.in_cluster && self.options.pod_cidrs.is_empty() {
            return Ok(State::Ready(SandboxNetwork::Default));
        }
        let networks = ports.bridges.networks().await?;
        let ours: Vec<String> = networks.iter().filter(|one| one.ours).map(|one| one.name.clone()).collect();
        let situation = |used| Situation { root_id, pod_cidrs, waited, networks: &networks, used };
        // Only where one of ours may have to go is it of interest which are used.
        let mut decision = decide(&situation(&[]));
        if !decision.remove.is_empty() {
            let used: Vec<String> = used(ports, &ours).await?.into_iter().map(|(name, _)| name).collect();
            decision = decide(&situation(&used));
        }
        let Decision { choice, remove } = decision;
        for id in &remove {
            ports.bridges.remove_network(id).await?;
            tracing::info!(id, "removed the pods' former network, which nothing uses any more");
        }
        Ok(match choice {
            Choice::Wait => State::Unsettled,
            Choice::Refuse(why) => State::Failed(why),
            Choice::Use(SandboxNetwork::Named(name)) => {
                if let Some(known) = networks.iter().find(|one| one.name == name && one.ours) {
                    self.filter(ports, &known.subnets, known.masquerades, said).await;
                }
                State::Ready(SandboxNetwork::Named(name))
            }
            Choice::Use(network) => {
                if pod_cidrs.is_some() && !std::mem::replace(&mut said.missing, true) {
                    let message = "the node has no podCIDR (do the cluster's controllers allocate any?): new pods are on \
                                   Docker's default bridge, and their addresses mean something on this node only; when a \
                                   podCIDR comes, new pods move to a network of its addresses";
                    ports.events.record_node(EventType::Warning, "PodCIDRMissing", message);
                }
                State::Ready(network)
            }
            Choice::Create(own) => self.create(ports, own, said).await,
        })
    }

    async fn create(&self, ports: &Ports, own: OwnNetwork, said: &mut Said) -> State {
        let address = (ports.look)().await.ips.first().copied();
        let mtu = match address {
            Some(address) => ports.bridges.mtu(address).await,
            None => None,
        };
        let own = own.carried_by(mtu);
        let filtered = self.filter(ports, &own.subnets, false, said).await;
        match ports.bridges.create_network(&own, !filtered).await {
            Ok(()) => {
                let subnets: Vec<String> = own.subnets.iter().map(ToString::to_string).collect();
                let message = format!(
                    "new pods are on the Docker network {} with the node's addresses {}; pods that run stay where they are",
                    own.name,
                    subnets.join(" and ")
                );
                ports.events.record_node(EventType::Normal, "PodNetworkCreated", &message);
                State::Ready(SandboxNetwork::Named(own.name))
            }
            Err(error) => State::Failed(format!(
                "the Docker network for the node's podCIDRs cannot be made: {error}; free those addresses on this machine, \
                 or give the Node others"
            )),
        }
    }

    /// Whether the packet filter could be told of our network. If not, that is told of the node, and tried again soon.
    async fn filter(&self, ports: &Ports, subnets: &[Cidr], runtime_masquerades: bool, said: &mut Said) -> bool {
        let unmasqueraded = self.options.unmasqueraded.clone();
        let filter = PacketFilter { subnets: subnets.to_vec(), unmasqueraded, runtime_masquerades };
        let outcome = ports.bridges.filter_packets(&filter).await;
        if let Ok(Some(rule)) = &outcome
            && said.behind.as_ref() != Some(rule)
        {
            ports.events.record_node(EventType::Warning, "PacketFilterOrder", &moved_behind(rule, &filter));
            said.behind = Some(rule.clone());
        }
        let error = outcome.err();
        match &error {
            Some(error) if said.filter.as_ref() != Some(error) => {
                let message = format!(
                    "the packet filter could not be updated for the pods' network: {error}; until it is, pods of other nodes see \
                     this node's address in place of a pod's, or cannot reach it; trying again"
                );
                ports.events.record_node(EventType::Warning, "PacketFilterFailed", &message);
            }
            None if said.filter.is_some() => {
                let message = "the packet filter has what the pods' network needs";
                ports.events.record_node(EventType::Normal, "PacketFilterReady", message);
            }
            _ => {}
        }
        said.filter = error;
        said.filter.is_none()
    }

    /// Has the pods of the network reach themselves, those that ran before as well. If they cannot, that is told of the node;
    /// it is tried again with the next look.
    async fn hairpin(&self, ports: &Ports, state: &State, said: &mut Said) {
        let State::Ready(network) = state else { return };
        if !self.has_hairpin() {
            return;
        }
        let error = ports.bridges.hairpin(network).await.err();
        if let Some(error) = error.as_ref().filter(|error| said.hairpin.as_ref() != Some(*error)) {
            let message = format!(
                "pods cannot be made to reach themselves: {error}; a Service that leads back to the pod that asks it does not \
                 answer; trying again (hairpinMode: none in the configuration where no pod needs that)"
            );
            ports.events.record_node(EventType::Warning, "HairpinFailed", &message);
        }
        said.hairpin = error;
    }
}

/// What our rules were moved behind, and how pods are reached all the same.
fn moved_behind(rule: &str, filter: &PacketFilter) -> String {
    let commands = filter.subnets.iter().map(|subnet| {
        let program = if subnet.is_ipv4() { "iptables" } else { "ip6tables" };
        let is_kind = |word: &&str| matches!(word.strip_prefix(program), Some("" | "-nft" | "-legacy"));
        let named = rule.split_whitespace().find(is_kind);
        let cluster = unmasqueraded(subnet, &filter.unmasqueraded).network();
        let from = if cluster.prefix == 0 { String::new() } else { format!("-s {cluster} ") };
        format!("{} -I DOCKER-USER {from}-d {} -j ACCEPT", named.unwrap_or(program), subnet.network())
    });
    let commands: Vec<String> = commands.collect();
    format!(
        "a rule of the packet filter now counts before ours, and may drop what goes to pods: {rule}; to let through what other \
         nodes' pods send: {}",
        commands.join("; ")
    )
}

/// Has what goes between pods of this node pass the packet filter. If it cannot, that is told of the node; `said` is what was
/// told last.
async fn filter_bridged(ports: &Ports, said: &mut Option<String>) {
    let error = ports.bridges.filter_bridged().await.err();
    match &error {
        Some(error) if said.as_ref() != Some(error) => {
            let message = format!(
                "what goes between pods of this node cannot be made to pass the packet filter: {error}; with kube-proxy a \
                 Service does not answer to a pod that is on the same node as the Service's; if it stays so: modprobe \
                 br_netfilter, and sysctl -w net.bridge.bridge-nf-call-iptables=1"
            );
            ports.events.record_node(EventType::Warning, "BridgeFilterFailed", &message);
        }
        None if said.is_some() => {
            let message = "what goes between pods of this node passes the packet filter";
            ports.events.record_node(EventType::Normal, "BridgeFilterReady", message);
        }
        _ => {}
    }
    *said = error;
}

/// The networks of ours that sandboxes are on which run, or were made and are about to, each with the pod.
pub(super) async fn used(ports: &Ports, ours: &[String]) -> Result<Vec<Used>, RuntimeError> {
    let list = ports.runtime.list().await?;
    let named = list.iter().filter_map(|seen| match seen {
        Observation::Sandbox(sandbox) if sandbox.state != SandboxState::Exited => match &sandbox.network {
            SandboxNetwork::Named(name) if ours.contains(name) => {
                Some((name.clone(), Some(format!("{}/{}", sandbox.pod.namespace, sandbox.pod.name))))
            }
            _ => None,
        },
        _ => None,
    });
    let mut used: Vec<Used> = named.collect();
    // One that cannot be looked at may be on any of them.
    if list.iter().any(Observation::is_unseen) {
        used.extend(ours.iter().map(|name| (name.clone(), None)));
    }
    Ok(used)
}
