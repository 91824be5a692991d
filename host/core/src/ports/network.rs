//! What makes the pods' network: Docker's own networks, or CNI plugins.

use std::net::IpAddr;

use async_trait::async_trait;

use super::runtime::RuntimeError;
use crate::container::SandboxNetwork;
use crate::network::attachment::Attachment;
use crate::network::rules::PacketFilter;
use crate::network::{BridgeNetwork, OwnNetwork};

/// The container runtime's own networks. Every call ends within a time limit of its own.
#[async_trait]
pub trait BridgeNetworks: Send + Sync {
    /// All networks that have addresses.
    async fn networks(&self) -> Result<Vec<BridgeNetwork>, RuntimeError>;

    /// Makes a network of ours. Its containers reach each other, and others reach them, by their own addresses, but for
    /// what leaves the cluster; `masquerade` says that the runtime is to see to the latter, since nobody else can.
    async fn create_network(&self, network: &OwnNetwork, masquerade: bool) -> Result<(), RuntimeError>;

    /// The largest packet of the machine's device that has that address; `None` where that is not known.
    async fn mtu(&self, address: IpAddr) -> Option<u32>;

    /// Removes a network of ours; one that is gone is fine, one in use is an error.
    async fn remove_network(&self, id: &str) -> Result<(), RuntimeError>;

    /// Brings the rules of the node's packet filter up to date for our own network: no others of ours are there afterwards.
    /// What fails keeps nothing else from being done. The error is for people. Else the operator's rules, if any, that ours were
    /// moved behind since this was last done, and that drop packets which they let through before.
    async fn filter_packets(&self, filter: &PacketFilter) -> Result<Option<String>, String>;

    /// Has what goes between containers of one network pass the packet filter, too, as Services of their pods need it; nothing
    /// where they are on another machine. The error is for people.
    async fn filter_bridged(&self) -> Result<(), String>;

    /// Makes the packet filter's chains that the kubelet makes for others, where they are not; they stay for ever. The error
    /// is for people.
    async fn make_chains(&self) -> Result<(), String>;

    /// Has every container that is on that network now get back what the packet filter leads from it to itself, as a
    /// Service's own pods need it. Nothing is to be done for a network that is not the runtime's. The error is for people.
    async fn hairpin(&self, network: &SandboxNetwork) -> Result<(), String>;
}

/// Why a CNI plugin, or what it needs, failed. All are worth another try, after a while.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PluginError {
    /// There is no configuration that could be used, or the plugins say that they are not ready. The operator's.
    #[error("{message}")]
    NotReady {
        /// In the kubelet's words where it has some.
        message: String,
    },
    /// A plugin failed, or is not there.
    #[error("plugin {plugin} failed ({command}): {message}")]
    Failed {
        /// Its type in the configuration.
        plugin: String,
        /// `ADD`, `DEL`, …
        command: &'static str,
        /// What it said.
        message: String,
    },
    /// What is kept on the disk of attachments cannot be read or written.
    #[error("{path}: {message}")]
    Disk {
        /// The file or folder.
        path: String,
        /// What went wrong.
        message: String,
    },
}

/// CNI plugins. What they were told, and said, is kept on disk from before the first call until they took it back: that
/// is the list of what must be taken back after anything. Only what this agent attached is ever touched. Calls for one
/// sandbox are made one after the other; every call of a plugin has a time limit.
#[async_trait]
pub trait NetworkPlugins: Send + Sync {
    /// Whether pods can be attached: there is a configuration, and its plugins say that they are ready, where they can.
    async fn ready(&self) -> Result<(), PluginError>;

    /// Attaches a sandbox that runs; its addresses, the primary one first. What failed half-way is taken back. One that is on a
    /// network although nothing is kept of that stays on it.
    async fn attach(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, PluginError>;

    /// The addresses of a sandbox that is attached; `None` for one that is not, or not to the end.
    fn addresses(&self, sandbox_id: &str) -> Option<Vec<IpAddr>>;

    /// Takes a sandbox off the network; `pid` is its process while it runs. One that is not attached is fine.
    async fn detach(&self, sandbox_id: &str, pid: Option<u32>) -> Result<(), PluginError>;

    /// Sandboxes that are attached, or were begun to be.
    fn attached(&self) -> Vec<String>;

    /// Whether a sandbox is still attached as it was; always so where plugins cannot say.
    async fn check(&self, sandbox_id: &str, pid: u32) -> Result<(), PluginError>;

    /// Lets plugins drop whatever belongs to no sandbox that is attached, where they can.
    async fn collect(&self) -> Result<(), PluginError>;
}
