//! Networks and CNI plugins in memory: they give addresses, and fail when they are told to.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use longshore_core::container::SandboxNetwork;
use longshore_core::network::attachment::Attachment;
use longshore_core::network::rules::PacketFilter;
use longshore_core::network::{BridgeNetwork, OwnNetwork};
use longshore_core::ports::network::{BridgeNetworks, NetworkPlugins, PluginError};
use longshore_core::ports::runtime::RuntimeError;

#[derive(Debug, Default)]
struct World {
    networks: Vec<BridgeNetwork>,
    /// Whether they are never listed.
    unlisted: bool,
    filtered: PacketFilter,
    /// Why the packet filter cannot be told.
    unfiltered: Option<String>,
    /// The operator's rule that ours were moved behind.
    behind: Option<String>,
    /// Why what is bridged cannot be filtered.
    unbridged: Option<String>,
    /// How often it was to be.
    bridged: usize,
    /// Whether that never ends.
    bridging: bool,
    /// Why pods cannot reach themselves.
    one_way: Option<String>,
    /// The networks whose pods were to.
    hairpins: Vec<SandboxNetwork>,
    /// Whether the kubelet's chains were made.
    has_chains: bool,
    /// What is attached, with its addresses; none while an attachment is under way or went wrong.
    attached: BTreeMap<String, Option<Vec<IpAddr>>>,
    serial: u8,
    not_ready: Option<String>,
    /// How many more attachments fail.
    failures: usize,
    calls: Vec<String>,
}

/// A runtime's networks, and plugins.
#[derive(Debug, Default)]
pub struct FakeNetwork(Mutex<World>);

impl FakeNetwork {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a network there.
    pub fn add(&self, network: BridgeNetwork) {
        self.world().networks.push(network);
    }

    /// Takes all networks of that name away.
    pub fn remove(&self, name: &str) {
        self.world().networks.retain(|network| network.name != name);
    }

    /// The networks' names.
    pub fn names(&self) -> Vec<String> {
        self.world().networks.iter().map(|network| network.name.clone()).collect()
    }

    /// Makes the list of networks never come.
    pub fn never_lists(&self) {
        self.world().unlisted = true;
    }

    /// What the packet filter was last told.
    pub fn filtered(&self) -> PacketFilter {
        self.world().filtered.clone()
    }

    /// Makes the packet filter fail, or work.
    pub fn set_unfiltered(&self, problem: Option<&str>) {
        self.world().unfiltered = problem.map(str::to_owned);
    }

    /// Has the packet filter's rules moved behind that one, each time.
    pub fn set_behind(&self, rule: &str) {
        self.world().behind = Some(rule.to_owned());
    }

    /// Makes the filtering of what is bridged never end.
    pub fn never_bridges(&self) {
        self.world().bridging = true;
    }

    /// Makes it fail to filter what is bridged, or work.
    pub fn set_unbridged(&self, problem: Option<&str>) {
        self.world().unbridged = problem.map(str::to_owned);
    }

    /// How often what is bridged was to be filtered.
    pub fn bridged(&self) -> usize {
        self.world().bridged
    }

    /// Makes it fail to have pods reach themselves.
    pub fn set_one_way(&self, problem: &str) {
        self.world().one_way = Some(problem.to_owned());
    }

    /// The networks whose pods were to reach themselves, in order.
    pub fn hairpins(&self) -> Vec<SandboxNetwork> {
        self.world().hairpins.clone()
    }

    /// Whether the packet filter has the kubelet's chains.
    pub fn has_chains(&self) -> bool {
        self.world().has_chains
    }

    /// Makes the plugins say that they are not ready, or that they are.
    pub fn set_not_ready(&self, problem: Option<&str>) {
        self.world().not_ready = problem.map(str::to_owned);
    }

    /// Lets the next attachments fail.
    pub fn fail(&self, times: usize) {
        self.world().failures = times;
    }

    /// What was done, in order: `attach <id>`, `detach <id>`.
    pub fn calls(&self) -> Vec<String> {
        self.world().calls.clone()
    }

    /// Puts an attachment there, as one of a former run.
    pub fn attach_before(&self, id: &str) {
        self.world().attached.insert(id.to_owned(), Some(Vec::new()));
    }
}

#[async_trait]
impl BridgeNetworks for FakeNetwork {
    async fn networks(&self) -> Result<Vec<BridgeNetwork>, RuntimeError> {
        let unlisted = self.world().unlisted;
        if unlisted { std::future::pending().await } else { Ok(self.world().networks.clone()) }
    }

    async fn create_network(&self, network: &OwnNetwork, masquerades: bool) -> Result<(), RuntimeError> {
        let OwnNetwork { name, subnets, mtu } = network.clone();
        let id = format!("id-of-{name}");
        self.add(BridgeNetwork { id, name, subnets, ours: true, masquerades, mtu, ..Default::default() });
        Ok(())
    }

    async fn mtu(&self, _: IpAddr) -> Option<u32> {
        Some(1400)
    }

    async fn remove_network(&self, id: &str) -> Result<(), RuntimeError> {
        self.world().networks.retain(|network| network.id != id);
        Ok(())
    }

    async fn filter_packets(&self, filter: &PacketFilter) -> Result<Option<String>, String> {
        let mut world = self.world();
        match world.unfiltered.clone() {
            Some(problem) => Err(problem),
            None => {
                world.filtered = filter.clone();
                Ok(world.behind.clone())
            }
        }
    }

    async fn filter_bridged(&self) -> Result<(), String> {
        let (never, answer) = {
            let mut world = self.world();
            world.bridged += 1;
            (world.bridging, world.unbridged.clone().map_or(Ok(()), Err))
        };
        if never { std::future::pending().await } else { answer }
    }

    async fn make_chains(&self) -> Result<(), String> {
        self.world().has_chains = true;
        Ok(())
    }

    async fn hairpin(&self, network: &SandboxNetwork) -> Result<(), String> {
        let mut world = self.world();
        world.hairpins.push(network.clone());
        world.one_way.clone().map_or(Ok(()), Err)
    }
}

#[async_trait]
impl NetworkPlugins for FakeNetwork {
    async fn ready(&self) -> Result<(), PluginError> {
        match &self.world().not_ready {
            Some(message) => Err(PluginError::NotReady { message: message.clone() }),
            None => Ok(()),
        }
    }

    async fn attach(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, PluginError> {
        let mut world = self.world();
        let id = attachment.sandbox_id.clone();
        world.calls.push(format!("attach {id}"));
        if world.failures > 0 {
            world.failures -= 1;
            let message = "it was told to fail".to_owned();
            return Err(PluginError::Failed { plugin: "fake".to_owned(), command: "ADD", message });
        }
        world.serial += 1;
        let ips = vec![IpAddr::from([10, 88, 0, world.serial])];
        world.attached.insert(id, Some(ips.clone()));
        Ok(ips)
    }

    fn addresses(&self, sandbox_id: &str) -> Option<Vec<IpAddr>> {
        self.world().attached.get(sandbox_id).cloned().flatten()
    }

    async fn detach(&self, sandbox_id: &str, _: Option<u32>) -> Result<(), PluginError> {
        let mut world = self.world();
        if world.attached.remove(sandbox_id).is_some() {
            world.calls.push(format!("detach {sandbox_id}"));
        }
        Ok(())
    }

    fn attached(&self) -> Vec<String> {
        self.world().attached.keys().cloned().collect()
    }

    async fn check(&self, _: &str, _: u32) -> Result<(), PluginError> {
        Ok(())
    }

    async fn collect(&self) -> Result<(), PluginError> {
        Ok(())
    }
}
