//! An agent on ports in memory, and waiting for conditions on it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::backoff::Policy;
use longshore_core::node::Surroundings;
use longshore_core::pod::{Pod, Source};
use longshore_core::ports::files::FileStore;
use longshore_core::ports::sources::PodSource;
use longshore_reconcile::events::EventRing;
use longshore_reconcile::health::Health;
use longshore_reconcile::network::NetworkOptions;
use longshore_reconcile::node::{self, ApiPorts, Options, Ports};
use longshore_reconcile::shutdown::Control;
use longshore_reconcile::views::Views;
use longshore_tests::files::FakeFiles;
use longshore_tests::machine::FakeMachine;
use longshore_tests::network::FakeNetwork;
use longshore_tests::objects::FakeObjects;
use longshore_tests::probes::FakeProbes;
use longshore_tests::runtime::FakeRuntime;
use longshore_tests::source::FakeSource;
use longshore_tests::stats::FakeStats;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Bed {
    pub(crate) runtime: Arc<FakeRuntime>,
    pub(crate) files: Arc<FakeFiles>,
    pub(crate) probes: Arc<FakeProbes>,
    pub(crate) source: Arc<FakeSource>,
    /// The API server, which counts for one with [`Bed::of_two`].
    pub(crate) of_api: Arc<FakeSource>,
    pub(crate) events: Arc<EventRing>,
    pub(crate) views: Arc<Views>,
    pub(crate) health: Arc<Health>,
    pub(crate) stats: Arc<FakeStats>,
    pub(crate) machine: Arc<FakeMachine>,
    pub(crate) shutdown: Arc<Control>,
    /// What the pods of the manifest folder may refer to.
    pub(crate) objects: Arc<FakeObjects>,
    api: Option<ApiPorts>,
    pub(crate) network: Arc<FakeNetwork>,
    /// What the node sees of itself.
    pub(crate) surroundings: Arc<Mutex<Surroundings>>,
    options: Options,
    of: Source,
    two: bool,
    stop: CancellationToken,
    agent: JoinHandle<()>,
}

/// What outlives an agent: what it runs on, and what it is told.
struct Ground {
    runtime: Arc<FakeRuntime>,
    files: Arc<FakeFiles>,
    probes: Arc<FakeProbes>,
    machine: Arc<FakeMachine>,
    api: Option<ApiPorts>,
    network: Arc<FakeNetwork>,
    options: Options,
    /// As what the source speaks.
    of: Source,
    /// Whether the API server speaks beside it.
    two: bool,
}

impl Default for Ground {
    fn default() -> Self {
        let runtime = Arc::new(FakeRuntime::default());
        runtime.has_image("app");
        let crash_loop =
            Policy { initial: jiff::SignedDuration::from_millis(50), cap: jiff::SignedDuration::from_millis(400) };
        let options = Options { crash_loop, resync: Duration::from_secs(2), ..Options::default() };
        let (files, probes, machine, network) = Default::default();
        Ground { runtime, files, probes, machine, api: None, network, options, of: Source::File, two: false }
    }
}

impl Bed {
    pub(crate) fn new() -> Self {
        Self::on(Ground::default())
    }

    /// One whose node belongs to a cluster.
    pub(crate) fn in_cluster(api: ApiPorts) -> Self {
        Self::on(Ground { api: Some(api), ..Ground::default() })
    }

    /// One whose pods come from a folder and from its cluster.
    pub(crate) fn of_two(api: ApiPorts) -> Self {
        Self::on(Ground { api: Some(api), two: true, ..Ground::default() })
    }

    /// One with other options, whose source is the API server.
    pub(crate) fn with(change: impl FnOnce(&mut Options)) -> Self {
        let mut ground = Ground { of: Source::Api, ..Ground::default() };
        change(&mut ground.options);
        Self::on(ground)
    }

    /// One whose pods' network is set up in that way.
    pub(crate) fn with_network(network: Arc<FakeNetwork>, set_up: NetworkOptions) -> Self {
        let mut ground = Ground { network, ..Ground::default() };
        ground.options.network = set_up;
        Self::on(ground)
    }

    /// On a machine that is half used.
    fn on(ground: Ground) -> Self {
        let Ground { runtime, files, probes, machine, api, network, options, of, two } = ground;
        let source = Arc::new(FakeSource::of(of.clone()));
        let of_api = Arc::new(FakeSource::of(Source::Api));
        let mut sources: Vec<Arc<dyn PodSource>> = vec![source.clone()];
        if two {
            sources.push(of_api.clone());
        }
        let (events, views): (_, Arc<Views>) = (EventRing::new(), Arc::default());
        let objects: Arc<FakeObjects> = Arc::default();
        let stop = CancellationToken::new();
        let (health, stats): (Arc<Health>, Arc<FakeStats>) = (Arc::default(), Arc::default());
        stats.all_left(500);
        let shutdown = Arc::new(Control::new(Some(machine.clone())));
        let surroundings: Arc<Mutex<Surroundings>> = Arc::default();
        let seen = surroundings.clone();
        let ports = Ports {
            runtime: runtime.clone(),
            files: files.clone(),
            pulls: files.clone(),
            objects: objects.clone(),
            api: api.clone(),
            look: Arc::new(move || {
                let now = seen.lock().unwrap().clone();
                Box::pin(async { now })
            }),
            stats: stats.clone(),
            probes: probes.clone(),
            credentials: Arc::new(|_| Box::pin(async { Vec::new() })),
            sources,
            events: events.clone(),
            views: views.clone(),
            health: health.clone(),
            bridges: network.clone(),
            plugins: network.clone(),
            shutdown: shutdown.clone(),
        };
        let agent = tokio::spawn(node::run(ports, longshore_tests::node(), options.clone(), stop.clone()));
        Bed {
            runtime,
            files,
            probes,
            source,
            of_api,
            events,
            views,
            health,
            stats,
            machine,
            shutdown,
            objects,
            api,
            network,
            surroundings,
            options,
            of,
            two,
            stop,
            agent,
        }
    }

    /// Ends the agent, as an upgrade would, and starts another one on the same runtime and disk.
    pub(crate) async fn restart(self) -> Self {
        self.restart_with(async || {}).await
    }

    /// The same, with pods' network set up in another way.
    pub(crate) async fn restart_on(mut self, set_up: NetworkOptions) -> Self {
        self.options.network = set_up;
        self.restart().await
    }

    /// The same, with something done between the two.
    pub(crate) async fn restart_with(self, between: impl AsyncFnOnce()) -> Self {
        let Bed { runtime, files, probes, machine, api, network, options, of, two, .. } = self;
        self.stop.cancel();
        self.agent.await.unwrap();
        between().await;
        Self::on(Ground { runtime, files, probes, machine, api, network, options, of, two })
    }

    /// Kills the agent in the middle of whatever it does.
    pub(crate) async fn kill(self) -> Self {
        let Bed { runtime, files, probes, machine, api, network, options, of, two, .. } = self;
        self.agent.abort();
        self.stop.cancel();
        let _ = self.agent.await;
        Self::on(Ground { runtime, files, probes, machine, api, network, options, of, two })
    }

    pub(crate) fn status(&self, uid: &str) -> Option<v1::PodStatus> {
        self.views.pod(uid)?.object.status.clone()
    }

    pub(crate) fn phase(&self, uid: &str) -> String {
        self.status(uid).and_then(|status| status.phase).unwrap_or_default()
    }

    pub(crate) fn is_ready(&self, uid: &str) -> bool {
        let conditions = self.status(uid).and_then(|status| status.conditions).unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    }

    pub(crate) fn waiting_reason(&self, uid: &str, container: &str) -> String {
        let statuses = self.status(uid).and_then(|status| status.container_statuses).unwrap_or_default();
        let state = statuses.into_iter().find(|status| status.name == container).and_then(|status| status.state);
        state.and_then(|state| state.waiting).and_then(|waiting| waiting.reason).unwrap_or_default()
    }

    pub(crate) fn restarts(&self, uid: &str, container: &str) -> i32 {
        let statuses = self.status(uid).and_then(|status| status.container_statuses).unwrap_or_default();
        statuses.iter().find(|status| status.name == container).map_or(-1, |status| status.restart_count)
    }

    pub(crate) fn has_event(&self, uid: &str, reason: &str) -> bool {
        self.events.events(Some(uid)).iter().any(|event| event.reason == reason)
    }

    pub(crate) fn has_message(&self, uid: &str, message: &str) -> bool {
        self.events.events(Some(uid)).iter().any(|event| event.message == message)
    }

    /// Waits until something is true.
    pub(crate) async fn until(&self, what: &str, is: impl Fn(&Bed) -> bool) {
        let looked = async {
            while !is(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, looked).await.is_err() {
            let pods: Vec<_> = self.views.pods().iter().map(|view| (view.id.to_string(), view.steps.clone())).collect();
            panic!(
                "not within {PATIENCE:?}: {what}\n{pods:#?}\n{:#?}\n{:#?}",
                self.runtime.things(),
                self.events.events(None)
            );
        }
    }

    pub(crate) async fn until_ready(&self, pods: &[Pod]) {
        self.until("all pods are ready", |bed| pods.iter().all(|pod| bed.is_ready(&pod.id.uid))).await;
    }
}

/// Makes a pod's record say of something that it failed so often that it is not tried again for a minute or more. Gives the name
/// behind the key's slash.
pub(crate) async fn backed_off(files: &FakeFiles, uid: &str, key: &str) -> String {
    let mut stored = files.stored(uid).unwrap();
    let backoff = stored.record.backoffs.get_mut(key).unwrap();
    (backoff.failures, backoff.last) = (100, Timestamp::now());
    files.save(uid, &stored).await.unwrap();
    key.rsplit('/').next().unwrap().to_owned()
}
