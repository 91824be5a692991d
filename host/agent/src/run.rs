//! `longshore run`: what is started, in which order, and how it ends.
//!
//! Order: root folder (one agent at a time) → socket → Docker's first answer → facts → ports → loops. Docker may be
//! absent: the agent stays up, says so wherever it is asked, and tries again. Stopping the agent stops no pod.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use jiff::Timestamp;
use longshore_core::cluster::node::host_ips;
use longshore_core::cluster::node_status::Pressure;
use longshore_core::credentials::{access::OwnedCredentials, parse_image};
use longshore_core::event::EventType;
use longshore_core::node::{NodeFacts, Surroundings};
use longshore_core::pod::Source;
use longshore_core::ports::archive::ObjectArchive;
use longshore_core::ports::events::EventSink;
use longshore_core::ports::exec::ContainerExec;
use longshore_core::ports::objects::ObjectStore;
use longshore_core::ports::runtime::{ContainerRuntime, RuntimeError, RuntimeInfo};
use longshore_core::ports::sources::PodSource;
use longshore_docker::{Docker, DockerOptions, ExecProviders, LogBounds};
use longshore_filesystem::{
    ArchiveOptions, CgroupOptions, Files, MANIFESTS_IDENTITY, ManifestFolder, Memory, StateArchive, StateKey,
    lock_root, root_id,
};
use longshore_logind::Logind;
use longshore_reconcile::events::EventRing;
use longshore_reconcile::health::Health;
use longshore_reconcile::kernel;
use longshore_reconcile::node::{self, Look, NodeCredentials, Options, Ports};
use longshore_reconcile::orphan::{self, from_stored};
use longshore_reconcile::published::Published;
use longshore_reconcile::shutdown::{self, Control};
use longshore_reconcile::views::Views;
use longshore_stats::{KernelMessages, MachineStats, StatsOptions};
use longshore_wasm::ProbeHost;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cluster::{self, ClusterParts, Joining};
use crate::commands::crash_loop;
use crate::config::Config;
use crate::socket::api::{AgentState, Api, DockerInfo, Info};
use crate::supervisor::Supervisor;
use crate::{facts, memory, notify, plugins, pod_network, pressure, serving, socket};

/// Waits between two looks for a Docker that does not answer: at first, and at most.
const DOCKER_WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How often it is looked whether Docker still answers.
const DOCKER_LOOK: Duration = Duration::from_secs(10);

/// How long it may take to answer before it is said that it does not; one that is busy with sixty pods takes seconds.
const DOCKER_ANSWER: Duration = Duration::from_secs(20);

/// Runs the agent until it is told to end.
pub(crate) async fn run(config: Config, key: Option<StateKey>) -> anyhow::Result<()> {
    let root = config.root_dir.clone();
    let _lock = lock_root(&root)?;
    warn_about_mode(&root);
    let id = root_id(&root)?;
    let node = facts::node_name(&config)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node,
        root = %root.display(),
        manifests = %config.manifests.display(),
        docker = config.docker_endpoint,
        cluster = config.joining.in_cluster(),
        "longshore starts"
    );
    let docker = Docker::connect(&config.docker_endpoint, id.clone(), docker_options(&config))?;
    let views = Arc::new(Views::default());
    let events = EventRing::new();
    let info = first_info(&config, node);
    info.store(&root);
    let state = AgentState::new(info);
    let health = Arc::new(Health::default());
    let shutdown = Arc::new(Control::new(Some(Arc::new(Logind::default()))));
    let mut tasks = Supervisor::new();

    // Messages count from now on: whoever is answered on the socket knows that they are listened to.
    let kernel = KernelMessages::open();
    let listener = socket::bind(&root).with_context(|| format!("the socket {}", socket::path(&root).display()))?;
    let logs = docker.clone();
    let api = Arc::new(Api {
        views: views.clone(),
        events: events.clone(),
        logs: Box::new(move |id, options| logs.logs(id, options)),
        flags: config.given_flags.clone(),
        state: state.clone(),
        shutdown: shutdown.clone(),
        health: health.clone(),
    });
    let (folder, stop) = (root.clone(), tasks.stop_token());
    tasks.spawn("the local socket", async move {
        socket::serve(listener, folder, api, stop).await;
        Ok(())
    });
    let (stop, watched) = (tasks.stop_token(), health.clone());
    tasks.spawn("the watchdog", async move {
        notify::watchdog(&watched, stop).await;
        Ok(())
    });
    let stop = tasks.stop_token();
    tasks.spawn("memory", async move {
        // Cancel safe: nothing is under way while it sleeps.
        while stop.run_until_cancelled(tokio::time::sleep(MEMORY_LOOK)).await.is_some() {
            memory::give_back();
        }
        Ok(())
    });
    let (stop, told) = (tasks.stop_token(), events.clone());
    tasks.spawn("the kernel's messages", async move {
        // A machine that does not let them be read runs pods all the same.
        match kernel {
            Ok(log) => kernel::watch(&log, &*told, &stop).await,
            Err(error) => {
                tracing::warn!("the kernel's log cannot be read, OOM kills are not reported: {error}")
            }
        }
        stop.cancelled().await;
        Ok(())
    });
    notify::ready("waiting for Docker");
    let stop = tasks.stop_token();
    let world = World { config, key, id, docker, views, events, health, state, shutdown };
    tasks.spawn("the node", async move { world.run(stop).await });
    tasks.supervise(notify::stopping).await
}

/// How often memory that a burst of pods took is given back.
const MEMORY_LOOK: Duration = Duration::from_secs(30);

/// Below it is what may be kept in memory only.
const VOLATILE: &str = "/run/longshore";

/// What the node's task is made from.
struct World {
    config: Config,
    key: Option<StateKey>,
    id: String,
    docker: Docker,
    views: Arc<Views>,
    events: Arc<EventRing>,
    health: Arc<Health>,
    state: Arc<AgentState>,
    shutdown: Arc<Control>,
}

impl World {
    /// The node's facts, once Docker answers. Its name is looked up for them, and its files may lie on a slow disk.
    async fn facts(&self) -> anyhow::Result<(RuntimeInfo, NodeFacts)> {
        let info = self.first_answer().await;
        let (config, of, id) = (self.config.clone(), info.clone(), self.id.clone());
        let facts = tokio::task::spawn_blocking(move || facts::gather_at_start(&config, &of, &id)).await??;
        Ok((info, facts))
    }

    async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        // Compiling the probe plugins takes a moment at the first start; Docker need not wait for it, nor it for Docker.
        let exec: Arc<dyn ContainerExec> = Arc::new(self.docker.clone());
        let root = self.config.root_dir.clone();
        let probes = tokio::spawn(async move { plugins::load(&root, exec).await });
        // Cancel safe: an answer of Docker that is dropped changes nothing, nor does a look at the machine.
        let (info, facts) = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            found = self.health.turning(self.facts()) => found?,
        };
        for (reason, message) in facts::shortcomings(&self.config, &facts, &info) {
            self.events.record_node(EventType::Warning, reason, &message);
        }
        let probes = self.health.turning(probes).await??;
        let status = format!("running pods of {} on Docker {}", self.config.manifests.display(), info.version);
        notify::status(&status);
        let joining = self.config.joining.in_cluster().then(|| Joining::new(self.views.clone(), self.archive()));
        let stats = self.stats(&info);
        let ports = self.ports(&facts, Arc::new(probes), stats.clone(), joining.as_ref());
        // Cancel safe: what is made so far ends with it.
        let ports = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            ports = self.health.turning(ports) => ports?,
        };
        let parts = ClusterParts {
            description: cluster::describe(&self.config, &facts, &info),
            facts: facts.clone(),
            runtime: ports.runtime.clone(),
            events: ports.events.clone(),
            health: ports.health.clone(),
        };
        let config = self.config.clone();
        // These futures are large: boxed, or copies of them would fill a thread's stack in a debug build.
        let in_cluster = async {
            match &joining {
                Some(joining) => Box::pin(joining.run(&config, parts, stop.clone())).await,
                None => stop.cancelled().await,
            }
        };
        let published = Published { views: self.views.clone(), health: self.health.clone() };
        let server = serving::bind(&self.config, &facts, &self.docker, published, stats, joining.as_ref()).await?;
        let served = async {
            match server {
                Some(server) => server.serve(stop.clone()).await,
                None => {
                    stop.cancelled().await;
                    Ok(())
                }
            }
        };
        let options = Options {
            max_parallel_pulls: self.config.max_parallel_pulls,
            pull_qps: self.config.pull_qps,
            pull_burst: self.config.pull_burst,
            verification: self.config.verification.clone(),
            crash_loop: crash_loop(&self.config),
            eviction: pressure::eviction(&self.config, &facts),
            images: pressure::images(&self.config),
            pods_limits: Some(pressure::pods_limits(&self.config, &facts)?),
            network: pod_network::options(&self.config, joining.is_some()),
            shutdown: shutdown::Options { steps: self.config.resources.shutdown.clone(), ..Default::default() },
            ..Options::default()
        };
        let docker = DockerWatch {
            docker: self.docker.clone(),
            state: self.state.clone(),
            health: self.health.clone(),
            runtime: self.views.runtime(),
            status,
        };
        self.health.runtime(Ok(()));
        // Cancel safe: a look at Docker that is dropped changes nothing.
        let loops = async {
            tokio::join!(Box::pin(node::run(ports, facts, options, stop.clone())), in_cluster);
            Ok(())
        };
        tokio::select! {
            ended = async { tokio::try_join!(Box::pin(loops), served) } => ended.map(|_| ()),
            () = docker.run() => anyhow::bail!("the watch on Docker ended"),
        }
    }

    /// Docker's first answer, however long it takes.
    async fn first_answer(&self) -> RuntimeInfo {
        let (mut wait, longest) = DOCKER_WAITS;
        let mut said = String::new();
        loop {
            match self.docker.info().await {
                Ok(info) => {
                    tracing::info!(version = info.version, api = info.api_version, "Docker answers");
                    let endpoint = self.config.docker_endpoint.clone();
                    let (version, api_version) = (Some(info.version.clone()), Some(info.api_version.clone()));
                    let docker = DockerInfo { endpoint, version, api_version, error: None };
                    self.state.update(|state| state.docker = docker);
                    return info;
                }
                Err(error) => {
                    let error = error.to_string();
                    if error != said {
                        tracing::error!("{error}; no pod can be started until it answers, trying again");
                        notify::status(&format!("waiting for Docker: {error}"));
                        self.state.update(|state| state.docker.error = Some(error.clone()));
                        said = error;
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(longest);
                }
            }
        }
    }

    fn stats(&self, info: &RuntimeInfo) -> Arc<MachineStats> {
        Arc::new(MachineStats::new(StatsOptions {
            root_dir: self.config.root_dir.clone(),
            images_dir: info.data_root.clone(),
            driver: info.cgroup_driver,
            v2: info.cgroup_v2,
        }))
    }

    /// Where what is read of the API server is kept for times without it. Pods run without it, too.
    fn archive(&self) -> Option<Arc<dyn ObjectArchive>> {
        let root = self.config.root_dir.clone();
        let volatile = Path::new(VOLATILE).join(&self.id);
        match StateArchive::open(ArchiveOptions { root, volatile, key: self.key.clone() }) {
            Ok(archive) => Some(Arc::new(archive)),
            Err(error) => {
                tracing::error!("{error}; nothing is kept for when the API server is away");
                None
            }
        }
    }

    async fn ports(
        &self,
        facts: &NodeFacts,
        probes: Arc<ProbeHost>,
        stats: Arc<MachineStats>,
        joining: Option<&Joining>,
    ) -> anyhow::Result<Ports> {
        let config = &self.config;
        let mut cgroups = CgroupOptions::new(facts.cgroup_driver, facts.cgroup_v2);
        cgroups.enabled = true;
        let files = Files::new(
            config.root_dir.clone(),
            config.pod_logs_dir.clone(),
            config.container_logs_dir.clone(),
            cgroups,
        )?;
        // What ran before this start: a manifest that was broken or a disk that is not mounted meanwhile ends none of it.
        let stored = orphan::stored(&files, &self.views).await;
        let former = |source: Source| {
            let of_source = stored.iter().filter(|stored| stored.source == source).filter_map(from_stored);
            of_source.filter(|pod| pod.deletion.is_none()).collect()
        };
        let memory = Memory {
            former: former(Source::File),
            optional: config.manifests_optional,
            file: config.root_dir.join(MANIFESTS_IDENTITY),
        };
        let check = config.file_check_frequency;
        let folder = Arc::new(ManifestFolder::with_memory(&config.manifests, &facts.name, check, memory));
        let mut sources: Vec<Arc<dyn PodSource>> = vec![folder.clone()];
        if let Some(url) = plugins::manifest_url(config, &probes, &facts.name, former(Source::Http), &self.views)? {
            sources.push(url);
        }
        sources.extend(joining.map(Joining::source));
        let api = joining.map(Joining::ports);
        let accounts: Arc<dyn ObjectStore> = match &api {
            Some(api) => api.objects.clone(),
            None => folder.clone(),
        };
        Ok(Ports {
            runtime: Arc::new(self.docker.clone()),
            pulls: Arc::new(files.clone()),
            files: Arc::new(files),
            objects: folder,
            api,
            look: look(config, &facts.name, &self.views),
            stats,
            probes,
            credentials: node_credentials(config, accounts),
            sources,
            events: self.events.clone(),
            views: self.views.clone(),
            health: self.health.clone(),
            bridges: Arc::new(self.docker.clone()),
            plugins: Arc::new(pod_network::plugins(config, &self.id)?),
            shutdown: self.shutdown.clone(),
        })
    }
}

/// Notices when Docker goes and comes back, for whoever asks how things are; the loops notice by themselves.
struct DockerWatch {
    docker: Docker,
    state: Arc<AgentState>,
    health: Arc<Health>,
    /// What it is, once the loops have asked it again.
    runtime: watch::Receiver<Option<RuntimeInfo>>,
    status: String,
}

impl DockerWatch {
    async fn run(&self) {
        loop {
            tokio::time::sleep(DOCKER_LOOK).await;
            // The cheapest question there is: what exists of a pod that does not. A daemon that hangs takes it and is silent.
            let mut asked = pin!(self.docker.list_pod("none"));
            let answer = match tokio::time::timeout(DOCKER_ANSWER, &mut asked).await {
                Ok(answer) => answer,
                Err(_) => {
                    let seconds = DOCKER_ANSWER.as_secs();
                    self.tell(Some(RuntimeError::Timeout { operation: "list containers", seconds }));
                    asked.await
                }
            };
            self.tell(answer.err());
            if let Some(info) = self.runtime.borrow().clone()
                && self.state.info().docker.version.as_ref() != Some(&info.version)
            {
                tracing::info!(version = info.version, api = info.api_version, "Docker's version changed");
                self.state.update(|state| {
                    state.docker.version = Some(info.version);
                    state.docker.api_version = Some(info.api_version);
                });
            }
        }
    }

    /// What became of a look; `None` when it was answered.
    fn tell(&self, error: Option<RuntimeError>) {
        let error = error.map(|error| match error {
            RuntimeError::Timeout { seconds, .. } => {
                format!("Docker at {} did not answer within {seconds} s", self.state.info().docker.endpoint)
            }
            error => error.to_string(),
        });
        self.health.runtime(error.clone().map_or(Ok(()), Err));
        let before = self.state.info().docker.error;
        match (&before, &error) {
            (None, Some(error)) => {
                tracing::error!("{error}; what runs keeps running, and nothing is started or probed until it answers");
                notify::status(&format!("Docker does not answer: {error}"));
            }
            (Some(_), None) => {
                tracing::info!("Docker answers again");
                notify::status(&self.status);
            }
            _ => {}
        }
        if before != error {
            self.state.update(|state| state.docker.error = error);
        }
    }
}

/// The node's addresses and names as they are when somebody asks: its files may lie on a slow disk.
/// The addresses that an external cloud gave the Node go before the machine's.
fn look(config: &Config, name: &str, views: &Arc<Views>) -> Look {
    let (views, external) = (views.clone(), config.joining.external_cloud);
    let node = Arc::new((config.clone(), name.to_owned()));
    Arc::new(move || {
        let node = node.clone();
        let given = views.node().filter(|_| external).map(|node| host_ips(&node)).unwrap_or_default();
        let look = move || {
            let found = facts::surroundings(&node.0, &node.1);
            if given.is_empty() { found } else { Surroundings { ips: given, ..found } }
        };
        async move { tokio::task::spawn_blocking(look).await.unwrap_or_default() }.boxed()
    })
}

/// Credentials of the node's `config.json` and its helpers, which may take seconds, and then those of the providers.
fn node_credentials(config: &Config, accounts: Arc<dyn ObjectStore>) -> NodeCredentials {
    let folder = config.joining.credential_provider_bin_dir.clone().unwrap_or_default();
    let providers = ExecProviders::new(config.credential_providers.clone(), folder, accounts);
    let root = config.root_dir.clone();
    Arc::new(move |pull| {
        let (providers, root) = (providers.clone(), root.clone());
        async move {
            let Ok(name) = parse_image(&pull.image) else { return Vec::new() };
            let of_docker = tokio::task::spawn_blocking(move || {
                longshore_docker::config_credentials(&longshore_docker::config_files(Some(&root)), &name)
            });
            let of_docker = of_docker.await.unwrap_or_default();
            let mut found: Vec<_> = of_docker.into_iter().map(OwnedCredentials::of_node).collect();
            found.extend(providers.credentials(&pull.image, &pull.pod, &pull.service_account).await);
            found
        }
        .boxed()
    })
}

fn docker_options(config: &Config) -> DockerOptions {
    DockerOptions {
        pause_image: config.pod_infra_image.clone(),
        config_dir: Some(config.root_dir.clone()),
        cache: Some(config.root_dir.join("docker.json")),
        logs: LogBounds {
            max_size: u64::try_from(config.resources.log_max_size).unwrap_or_default(),
            max_files: config.resources.log_max_files,
        },
        ..DockerOptions::default()
    }
}

fn first_info(config: &Config, node: String) -> Info {
    Info {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started_at: Timestamp::now(),
        root_dir: config.root_dir.clone(),
        manifests: std::path::absolute(&config.manifests).unwrap_or_else(|_| config.manifests.clone()),
        node: Some(node),
        cni_cache_dir: std::path::absolute(&config.network.cni_cache_dir).ok(),
        in_cluster: config.joining.in_cluster(),
        going_down: false,
        drained: false,
        waits: None,
        pressure: Pressure::default(),
        docker: DockerInfo { endpoint: config.docker_endpoint.clone(), ..DockerInfo::default() },
    }
}

/// The root folder holds secrets of pods; one that others may write to is not safe.
fn warn_about_mode(root: &Path) {
    let mode = std::fs::metadata(root).map_or(0, |found| found.mode() & 0o777);
    if mode & 0o022 != 0 {
        tracing::warn!(
            "{} may be written to by others than its owner (mode {mode:03o}): chmod 0750 it",
            root.display()
        );
    }
}
