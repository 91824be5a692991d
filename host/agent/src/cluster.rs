//! The agent in a cluster: the connection, what of it the loops get, and what the node says of itself.
//!
//! The API server may be away when the agent starts, and for as long as it likes: the loops get stand-ins that wait for
//! the connection, and the folder's pods run meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use longshore_apiserver::{Connection, NodeApi, NodePods, NodeReviews, Pace, Rate, ServingNames, Settings};
use longshore_core::cluster::node::NodeDescription;
use longshore_core::node::NodeFacts;
use longshore_core::ports::archive::ObjectArchive;
use longshore_core::ports::cluster::{ApiPods, ClusterApi};
use longshore_core::ports::reviews::Reviews;
use longshore_core::ports::runtime::RuntimeInfo;
use longshore_core::ports::sources::PodSource;
use longshore_core::quantity;
use longshore_reconcile::cluster::{Cluster, ClusterOptions};
use longshore_reconcile::node::{ApiPorts, AskForNode, StatusOf};
use longshore_reconcile::views::Views;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::late::{LateObjects, LateReviews, LateSource};

/// How often the machine's addresses are looked at.
const ADDRESS_LOOK: Duration = Duration::from_secs(10);

/// Waits between two tries to get a connection at all, when credentials cannot be used.
const RETRY: Duration = Duration::from_secs(10);

/// The declared feature of nodes that resize `spec.resources` of pods that run (KEP-5419).
const POD_LEVEL_RESIZE: &str = "InPlacePodLevelResourcesVerticalScaling";
/// The declared feature of nodes on which all containers of a pod can begin anew (KEP-5532).
const RESTART_ALL_CONTAINERS: &str = "RestartAllContainersOnContainerExits";
/// The declared feature of nodes that speak WebSocket to the API server themselves (KEP-4006).
const WEB_SOCKETS: &str = "ExtendWebSocketsToKubelet";
/// That of nodes that resize init containers as well, which are not sidecars (KEP-1287).
const INIT_CONTAINERS_RESIZE: &str = "InPlacePodVerticalScalingInitContainers";

/// A certificate and its key, as PEM.
type Pem = (String, String);

/// What the loops and the node's server get of the API server before it is reached.
pub(crate) struct Joining {
    pods: watch::Sender<Option<Arc<NodePods>>>,
    objects: Arc<LateObjects>,
    reviews: watch::Sender<Option<Arc<NodeReviews>>>,
    serving: watch::Sender<Option<Pem>>,
    node: watch::Sender<Option<Arc<NodeApi>>>,
    archive: Option<Arc<dyn ObjectArchive>>,
    views: Arc<Views>,
}

impl Joining {
    /// No connection yet. The archive keeps what is read of the API server for times without it.
    pub(crate) fn new(views: Arc<Views>, archive: Option<Arc<dyn ObjectArchive>>) -> Self {
        Joining {
            pods: watch::Sender::new(None),
            objects: Arc::new(LateObjects::new(archive.clone())),
            node: watch::Sender::new(None),
            reviews: watch::Sender::new(None),
            serving: watch::Sender::new(None),
            archive,
            views,
        }
    }

    /// The API server as a source of pods.
    pub(crate) fn source(&self) -> Arc<dyn PodSource> {
        Arc::new(LateSource { pods: self.pods.subscribe(), node: self.views.node_word() })
    }

    /// What pods' workers ask of the API server.
    pub(crate) fn ports(&self) -> ApiPorts {
        let (api, pods) = (self.node.subscribe(), self.pods.subscribe());
        let node: AskForNode = Arc::new(move || {
            let api = api.borrow().clone();
            async move { api?.node().await.ok().flatten() }.boxed()
        });
        let status: StatusOf = Arc::new(move |uid| pods.borrow().as_ref()?.pod(uid)?.status.clone());
        ApiPorts { objects: self.objects.clone(), status, node }
    }

    /// Who callers of the node's server are and what they may do. To be called by the loops' runtime.
    pub(crate) fn reviews(&self) -> Arc<dyn Reviews> {
        Arc::new(LateReviews { api: self.reviews.subscribe(), loops: Handle::current() })
    }

    /// The certificate of the node's server that the API server signed, once there is one.
    pub(crate) fn serving(&self) -> watch::Receiver<Option<Pem>> {
        self.serving.subscribe()
    }

    /// Gets the connection and keeps the node in its cluster until `stop`.
    pub(crate) async fn run(&self, config: &Config, cluster: ClusterParts, stop: CancellationToken) {
        // Cancel safe: what was asked for (a certificate) is found again at the next start.
        let Some(connection) = stop.run_until_cancelled(open(config, &cluster.facts.name)).await else { return };
        let node = cluster.facts.name.as_str();
        let api = Arc::new(connection.node_api(node));
        self.node.send_replace(Some(api.clone()));
        let pods = Arc::new(connection.pods(node));
        self.pods.send_replace(Some(pods.clone()));
        self.objects.arrive(Arc::new(connection.objects(self.archive.clone())));
        self.reviews.send_replace(Some(Arc::new(connection.reviews(node))));
        let signed = self.hand_on(connection.serving());
        let addresses = Addresses::new(config, &cluster.description);
        let asked = addresses.names.subscribe();
        let joining = &config.joining;
        let loops = Cluster {
            api,
            own_node: Arc::new(connection.own_node(node)),
            pods,
            runtime: cluster.runtime,
            views: self.views.clone(),
            events: cluster.events,
            health: cluster.health,
            description: cluster.description,
            addresses: addresses.ips.subscribe(),
            options: ClusterOptions {
                register: joining.register_node,
                update: joining.status_update_frequency,
                report: joining.status_report_frequency,
                lease: Duration::from_secs(u64::from(joining.lease_seconds)),
            },
        };
        let kept = async {
            tokio::select! {
                () = connection.keep(asked, stop.clone()) => {}
                () = signed => {}
            }
        };
        let followed = stop.run_until_cancelled(addresses.follow());
        tokio::join!(longshore_reconcile::cluster::run(loops, stop.clone()), kept, followed);
    }

    /// Gives the server's certificates on to who waits for them since before there was a connection.
    async fn hand_on(&self, mut signed: watch::Receiver<Option<Pem>>) {
        loop {
            let now = signed.borrow_and_update().clone();
            self.serving.send_replace(now);
            if signed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// The node's addresses, and the names that its server's certificate is for: both follow the machine.
struct Addresses {
    ips: watch::Sender<Vec<IpAddr>>,
    names: watch::Sender<ServingNames>,
    /// `--node-ip`; empty where nobody said.
    node_ips: Vec<IpAddr>,
    /// Of the node.
    name: String,
}

impl Addresses {
    fn new(config: &Config, description: &NodeDescription) -> Self {
        let given = crate::network::named(&config.node_ips);
        // As the kubelet: what is not the machine's (yet) is not told, and what the Node has stays.
        let missing = given.iter().find(|ip| !crate::network::is_here(**ip));
        if let Some(missing) = missing {
            tracing::warn!(
                "--node-ip {missing} is not an address of this machine: the Node gets no address until it is"
            );
        }
        let ips = if missing.is_some() { Vec::new() } else { description.ips.clone() };
        let names =
            ServingNames { dns: BTreeSet::from([description.hostname.clone()]), ips: ips.iter().copied().collect() };
        Addresses {
            ips: watch::Sender::new(ips),
            names: watch::Sender::new(names),
            node_ips: config.node_ips.clone(),
            name: description.name.clone(),
        }
    }

    /// Looks at the machine's addresses for ever. Those that somebody named are waited for, and then stay.
    async fn follow(&self) {
        let given = crate::network::named(&self.node_ips);
        loop {
            tokio::time::sleep(ADDRESS_LOOK).await;
            if given.is_empty() {
                let (name, node_ips) = (self.name.clone(), self.node_ips.clone());
                let look = move || crate::network::usable_address(&name, &node_ips);
                let found = tokio::task::spawn_blocking(look).await.unwrap_or_default();
                self.take(found.into_iter().collect());
            } else if given.iter().all(|ip| crate::network::is_here(*ip)) {
                self.take(given.clone());
            }
        }
    }

    /// A machine whose network is down for a moment keeps the addresses that it had.
    fn take(&self, now: Vec<IpAddr>) {
        if now.is_empty() || *self.ips.borrow() == now {
            return;
        }
        tracing::info!(addresses = ?now, "the node's addresses have changed");
        self.names.send_modify(|names| names.ips = now.iter().copied().collect());
        self.ips.send_replace(now);
    }
}

/// What the cluster's loops are made from, besides the connection.
pub(crate) struct ClusterParts {
    pub(crate) facts: NodeFacts,
    pub(crate) description: NodeDescription,
    pub(crate) runtime: Arc<dyn longshore_core::ports::runtime::ContainerRuntime>,
    pub(crate) events: Arc<longshore_reconcile::events::EventRing>,
    pub(crate) health: Arc<longshore_reconcile::health::Health>,
}

/// A connection, however long that takes: credentials that cannot be used may be mended under way.
async fn open(config: &Config, node: &str) -> Connection {
    let joining = &config.joining;
    let mut said = String::new();
    loop {
        let settings = Settings {
            kubeconfig: joining.kubeconfig.clone(),
            api_servers: joining.api_servers.clone(),
            bootstrap_kubeconfig: joining.bootstrap_kubeconfig.clone(),
            cert_dir: joining.cert_dir.clone(),
            node_name: node.to_owned(),
            rotate_certificates: joining.rotate_certificates,
            rotate_server_certificates: joining.server_tls_bootstrap,
            random: Arc::new(random),
            pace: pace(joining),
        };
        match Connection::open(settings).await {
            Ok(connection) => return connection,
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::new(error));
                if error != said {
                    tracing::error!("the node cannot join its cluster: {error}; trying again every {RETRY:?}");
                    said = error;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// A number from 0 to 1, to spread renewals over the nodes of a cluster.
fn random() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    // Every state of the standard library's hasher has keys of its own.
    let bits = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// What the node says of itself.
pub(crate) fn describe(config: &Config, facts: &NodeFacts, info: &RuntimeInfo) -> NodeDescription {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let machine_id = read("/etc/machine-id");
    let system_uuid = match read("/sys/class/dmi/id/product_uuid") {
        uuid if uuid.is_empty() => machine_id.clone(),
        uuid => uuid,
    };
    let os_release = read("/etc/os-release");
    let pretty = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let uname = rustix::system::uname();
    let (capacity, allocatable) = resources(config, facts, info);
    let description = NodeDescription {
        name: facts.name.clone(),
        hostname: facts.name.clone(),
        labels: facts.labels.clone(),
        taints: config.joining.taints.clone(),
        provider_id: config.joining.provider_id.clone(),
        external_cloud: config.joining.external_cloud,
        given_ips: crate::network::named(&config.node_ips),
        asks_for_ip: !config.node_ips.is_empty(),
        ips: facts.ips.clone(),
        capacity,
        allocatable,
        machine_id,
        system_uuid,
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        kernel_version: uname.release().to_string_lossy().into_owned(),
        os_image: pretty.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned()),
        architecture: facts.labels.get("kubernetes.io/arch").cloned().unwrap_or_default(),
        swap: swap(&read("/proc/meminfo")),
        in_user_namespace: is_namespaced(&read("/proc/self/uid_map")),
        port: if config.server.enabled { config.server.port.into() } else { 0 },
        declared_features: declared_features(config),
        max_images: config.joining.status_max_images,
        kubelet_version: config.joining.kubelet_version.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..NodeDescription::default()
    };
    description.on(info)
}

/// How fast the API server is asked.
fn pace(joining: &crate::config::Joining) -> Pace {
    let requests = Rate { per_second: joining.api_qps, burst: joining.api_burst };
    Pace::new(requests, Rate { per_second: joining.event_qps, burst: joining.event_burst })
}

/// What pods may rely on here and not everywhere (KEP-5328), in order.
fn declared_features(config: &Config) -> Vec<String> {
    let web_sockets = config.server.enabled.then_some(WEB_SOCKETS);
    let always = [POD_LEVEL_RESIZE, INIT_CONTAINERS_RESIZE, RESTART_ALL_CONTAINERS];
    web_sockets.into_iter().chain(always).map(str::to_owned).collect()
}

type Resources = BTreeMap<String, String>;

/// What the machine has, and what of it pods may use.
fn resources(config: &Config, facts: &NodeFacts, info: &RuntimeInfo) -> (Resources, Resources) {
    let kib = |bytes: i64| format!("{}Ki", bytes / 1024);
    let mut capacity = Resources::from([
        ("cpu".to_owned(), info.cpus.to_string()),
        ("memory".to_owned(), kib(facts.memory_capacity)),
        ("pods".to_owned(), facts.max_pods.to_string()),
    ]);
    let milli = facts.allocatable_milli_cpu;
    let cpu = if milli % 1000 == 0 { (milli / 1000).to_string() } else { format!("{milli}m") };
    let mut allocatable = Resources::from([
        ("cpu".to_owned(), cpu),
        ("memory".to_owned(), kib(facts.allocatable_memory)),
        ("pods".to_owned(), facts.max_pods.to_string()),
    ]);
    if let Some(ours) = facts.allocatable_ephemeral_storage {
        let all = crate::facts::disk_capacity(&config.root_dir).unwrap_or(ours);
        capacity.insert("ephemeral-storage".to_owned(), kib(all));
        allocatable.insert("ephemeral-storage".to_owned(), ours.to_string());
    }
    for (name, bytes) in &facts.huge_pages {
        // As the kubelet: all that there are, and pods may use them all.
        capacity.insert((*name).to_owned(), quantity::of_bytes(*bytes).0);
        allocatable.insert((*name).to_owned(), quantity::of_bytes(*bytes).0);
    }
    (capacity, allocatable)
}

fn swap(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("SwapTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// Whether that is not the map of the machine's own user namespace (`user_namespaces(7)`).
fn is_namespaced(uid_map: &str) -> bool {
    !uid_map.is_empty() && !uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_addresses_but_not_into_nothing() {
        let (config, _) = Config::build(&Default::default(), Default::default(), &Default::default());
        let ip = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
        let description =
            NodeDescription { hostname: "n".to_owned(), ips: ip("10.0.0.1"), ..NodeDescription::default() };
        let addresses = Addresses::new(&config, &description);
        let mut told = addresses.ips.subscribe();
        addresses.take(ip("10.0.0.1"));
        addresses.take(Vec::new());
        assert!(!told.has_changed().unwrap());
        addresses.take(ip("10.0.0.2"));
        assert_eq!(*told.borrow_and_update(), ip("10.0.0.2"));
        let names = addresses.names.borrow();
        assert!(names.ips.contains(&"10.0.0.2".parse().unwrap()) && names.ips.len() == 1 && names.dns.contains("n"));
    }

    #[test]
    fn an_address_that_was_named_is_told_once_the_machine_has_it() {
        let (config, _) = Config::build(&Default::default(), Default::default(), &Default::default());
        let told = |text: &str| {
            let ips = vec![text.parse::<IpAddr>().unwrap()];
            let config = Config { node_ips: ips.clone(), ..config.clone() };
            let description = NodeDescription { hostname: "n".to_owned(), ips, ..NodeDescription::default() };
            let addresses = Addresses::new(&config, &description);
            let names = addresses.names.borrow().ips.len();
            (addresses.ips.borrow().len(), names)
        };
        assert_eq!(told("127.0.0.1"), (1, 1));
        // One of a documentation network, which no machine has.
        assert_eq!(told("192.0.2.7"), (0, 0));
    }

    #[test]
    fn disk_is_a_resource_where_it_is_accounted() {
        let has = |local_storage| {
            let (mut config, _) = Config::build(&Default::default(), Default::default(), &Default::default());
            config.resources.local_storage = local_storage;
            let facts = crate::facts::estimate(&config, "n".to_owned()).unwrap();
            let info = RuntimeInfo {
                version: String::new(),
                api_version: String::new(),
                cgroup_driver: facts.cgroup_driver,
                cgroup_v2: facts.cgroup_v2,
                apparmor: false,
                selinux: false,
                runtimes: Vec::new(),
                recursive_read_only: false,
                min_oom_score_adj: 0,
                cpus: 1,
                memory: 0,
                data_root: None,
            };
            let (capacity, allocatable) = resources(&config, &facts, &info);
            [capacity, allocatable].map(|list| list.contains_key("ephemeral-storage"))
        };
        assert_eq!((has(true), has(false)), ([true; 2], [false; 2]));
    }

    #[test]
    fn swap_is_read() {
        assert_eq!(swap("MemTotal: 1 kB\nSwapTotal:       2048 kB\n"), 2 << 20);
        assert_eq!(swap("MemTotal: 1 kB\n"), 0);
    }

    #[test]
    fn user_namespaces_are_told() {
        let told = ["         0          0 4294967295\n", "0 100000 65536\n", "0 0 1\n1 100000 65535\n", ""]
            .map(is_namespaced);
        assert_eq!(told, [false, true, true, false]);
    }

    #[test]
    fn numbers_are_between_0_and_1() {
        let numbers: Vec<f64> = (0..100).map(|_| random()).collect();
        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
        assert!(numbers.iter().any(|number| *number != numbers[0]));
    }
}
