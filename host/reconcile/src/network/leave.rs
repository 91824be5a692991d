//! Networks of ours where new pods go to another one: what is left of them, which would draw its addresses to this node for
//! ever.

use longshore_core::cidr::Cidr;
use longshore_core::network::rules::PacketFilter;
use longshore_core::network::{Leftovers, leave};
use longshore_core::ports::runtime::RuntimeError;

use super::Network;
use super::bridge::used;
use crate::node::Ports;

/// What is said of a former network that cannot be left now; once for each reason.
pub(super) fn warn(problem: &str, said: &mut Option<String>) {
    if said.as_deref() != Some(problem) {
        tracing::warn!("something of the pods' former network may be left: {problem}; trying again");
        *said = Some(problem.to_owned());
    }
}

/// How far it is.
#[derive(Debug)]
pub(super) enum Leaving {
    /// Nothing of ours is left.
    Done,
    /// Something is; why no pod can be on another network until it is gone, if so.
    Waits(Option<String>),
    /// The networks are gone, and the packet filter could not be told; why.
    Filtered(String),
}

impl Network {
    /// Removes the networks of ours that nothing is on, and after the last of them what the packet filter was told.
    /// `pod_cidrs` are the node's, if known.
    pub(super) async fn leave(&self, ports: &Ports, pod_cidrs: Option<&[Cidr]>) -> Result<Leaving, RuntimeError> {
        let networks = ports.bridges.networks().await?;
        let ours: Vec<String> = networks.iter().filter(|one| one.ours).map(|one| one.name.clone()).collect();
        let used = if ours.is_empty() { Vec::new() } else { used(ports, &ours).await? };
        let Leftovers { remove, refusal } = leave(pod_cidrs, &networks, &used);
        for id in &remove {
            ports.bridges.remove_network(id).await?;
            tracing::info!(id, "removed the pods' former network, which nothing uses any more");
        }
        if remove.len() < ours.len() {
            return Ok(Leaving::Waits(refusal));
        }
        match ports.bridges.filter_packets(&PacketFilter::default()).await {
            Ok(_) => Ok(Leaving::Done),
            Err(error) => Ok(Leaving::Filtered(error)),
        }
    }
}
