//! `longshore plan`: what the agent would do right now, action by action and why, and what holds pods up. Looks; touches
//! nothing.
//!
//! Works without a running agent: it reads the folder, the records and Docker's list itself, and asks what an agent would
//! ask before it starts a pod. A running agent is asked for what only it knows: what goes on in the background, what it
//! waits for, whether the machine goes down. What it learns a moment later (a probe's verdict) its plan does not know.

mod pods;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use longshore_core::backoff::Policy;
use longshore_core::cluster::node_status::Pressure;
use longshore_core::desired::{self, Desired};
use longshore_core::node::NodeFacts;
use longshore_core::observed::by_pod;
use longshore_core::observed::{Observation, ObservedPod};
use longshore_core::pod::{Pod, Source};
use longshore_core::ports::files::FileStore;
use longshore_core::ports::objects::ObjectStore;
use longshore_core::ports::probes::ProbePlugins;
use longshore_core::ports::runtime::ContainerRuntime;
use longshore_core::ports::sources::SourceProblem;
use longshore_core::record::StoredPod;
use longshore_core::view::PodView;
use longshore_core::{admit, shutdown, volume};
use longshore_docker::{Docker, DockerOptions};
use longshore_filesystem::{CgroupOptions, Files, Memory, read_as_at_start};
use longshore_reconcile::gate::Gate;
use longshore_reconcile::network::complete_all;
use longshore_reconcile::objects;
use longshore_reconcile::orphan::from_stored;

use super::out;
use crate::cli::PlanArgs;
use crate::client::{Client, is_forbidden};
use crate::config::Config;
use crate::socket::api::Info;
use crate::{facts, plugins, pod_network};

/// All that a plan for the node is made from.
struct World {
    desired: Desired,
    stored: HashMap<String, StoredPod>,
    observed: HashMap<String, ObservedPod>,
    /// The pods as the running agent has them; none without one.
    views: HashMap<String, PodView>,
    /// Why pods that no agent speaks for would not be started, by UID.
    holds: HashMap<String, String>,
    /// Why their volumes could not be made.
    unmounted: HashMap<String, String>,
    facts: NodeFacts,
    crash_loop: Policy,
    /// What the running agent says of the node.
    going_down: bool,
    drained: bool,
    pressure: Pressure,
    in_cluster: bool,
    now: Timestamp,
}

/// Where a plan looks.
struct Places {
    folder: PathBuf,
    /// Whether that is the agent's own folder, which the pods came from that ran before.
    is_agents: bool,
    node: String,
    endpoint: String,
}

/// Prints the plan for a folder: `dir`, what the flags name, what the agent uses, or what it used when it last ran.
pub(crate) async fn plan(config: &Config, arguments: &PlanArgs) -> anyhow::Result<()> {
    let client = Client::new(&config.root_dir);
    let running = match client.get::<Info>("/v1/info").await {
        Ok(info) => Some(info),
        // There may be one, whose folder and pods are others than the flags say.
        Err(error) if is_forbidden(&error) => return Err(error),
        Err(_) => None,
    };
    let views = match &running {
        Some(_) => super::views(&client).await.context("the running agent does not tell its pods")?,
        None => Vec::new(),
    };
    let agent = running.clone().or_else(|| Info::load(&config.root_dir));
    let flags = &arguments.daemon;
    let agents = |asked: bool| agent.as_ref().filter(|_| !asked);
    let folder = match &arguments.dir {
        Some(dir) => dir.clone(),
        None => agents(flags.config.is_some() || flags.pod_manifest_path.is_some())
            .map_or_else(|| config.manifests.clone(), |agent| agent.manifests.clone()),
    };
    let node = match agents(flags.hostname_override.is_some()).and_then(|agent| agent.node.clone()) {
        Some(node) => node,
        None => facts::node_name(config)?,
    };
    let endpoint = agents(flags.docker_endpoint.is_some())
        .map_or_else(|| config.docker_endpoint.clone(), |agent| agent.docker.endpoint.clone());
    let mut config = config.clone();
    if let Some(cache) = agents(flags.network.cni_cache_dir.is_some()).and_then(|agent| agent.cni_cache_dir.clone()) {
        config.network.cni_cache_dir = cache;
    }
    let absolute = std::path::absolute(&folder).unwrap_or_else(|_| folder.clone());
    let is_agents = *agent.as_ref().map_or(&config.manifests, |agent| &agent.manifests) == absolute;
    let in_cluster = config.joining.in_cluster() || agent.as_ref().is_some_and(|agent| agent.in_cluster);
    let (mut world, warnings) = look(&config, Places { folder, is_agents, node, endpoint }, views, in_cluster).await?;
    for warning in warnings {
        out::complain(&warning);
    }
    if let Some(running) = running {
        (world.going_down, world.drained, world.pressure) = (running.going_down, running.drained, running.pressure);
    } else {
        world.comes_up();
    }
    out::print(&pods::text(&world))?;
    Ok(())
}

impl World {
    /// What an agent does at its start before it plans: pods that ended for the machine's end alone run again, and those
    /// that were rejected are asked about again.
    fn comes_up(&mut self) {
        for stored in self.stored.values_mut().filter(|stored| stored.record.deletion.is_none()) {
            if shutdown::comes_back(&stored.source, &stored.record)
                || admit::is_asked_again(&stored.source, &stored.record)
            {
                stored.record.begin_anew();
            }
        }
    }

    /// Asks what an agent would ask of each pod that would be started and that none speaks for.
    async fn ask(&mut self, gate: &Gate<'_>, docker: Option<&Docker>) -> anyhow::Result<()> {
        let nothing = ObservedPod::default();
        let foreign = match docker {
            Some(docker) => Arc::new(docker.foreign().await.context("cannot list other agents' containers")?),
            None => Arc::default(),
        };
        let mut holds = Vec::new();
        for pod in self.desired.pods.values().filter(|pod| self.spoken_for(pod).is_none()) {
            let observed = self.observed.get(&pod.id.uid).unwrap_or(&nothing);
            let checked = gate.check(pod, observed, &self.facts, std::future::ready(Ok(foreign.clone()))).await;
            holds.extend(checked.hold.map(|hold| (pod.id.uid.clone(), hold.message)));
        }
        self.holds.extend(holds);
        for pod in self.desired.pods.values() {
            if let Some(message) = unmounted(pod, &self.facts, gate.objects).await {
                self.unmounted.insert(pod.id.uid.clone(), message);
            }
        }
        Ok(())
    }

    /// The running agent's pod, when it is of this very definition.
    fn spoken_for(&self, pod: &Pod) -> Option<&PodView> {
        self.views.get(&pod.id.uid).filter(|view| view.object.spec == pod.object.spec)
    }
}

/// Why a pod of the folder could not be prepared now, as far as the folder tells.
async fn unmounted(pod: &Pod, facts: &NodeFacts, folder: &dyn ObjectStore) -> Option<String> {
    let (found, unknown) = objects::look_up(pod, folder).await;
    if !unknown.is_empty() {
        return None;
    }
    volume::resolve(pod, facts, &found, &[]).err().map(|problem| problem.told)
}

async fn look(
    config: &Config,
    places: Places,
    views: Vec<PodView>,
    in_cluster: bool,
) -> anyhow::Result<(World, Vec<String>)> {
    let Places { folder, is_agents, node, endpoint } = places;
    let mut warnings = Vec::new();
    let facts = facts::estimate(config, node.clone())?;
    let mut stored = HashMap::new();
    let mut docker = None;
    // A root folder without an ID was never used: nothing of ours can exist, and nothing is made to find out.
    if config.root_dir.join("id").exists() {
        let root = config.root_dir.clone();
        let id = longshore_filesystem::root_id(&root)?;
        if root.join("pods").exists() {
            let cgroups = CgroupOptions::detect(facts.cgroup_driver);
            let logs = (config.pod_logs_dir.clone(), config.container_logs_dir.clone());
            let loaded = Files::new(root, logs.0, logs.1, cgroups)?.load_all().await;
            let records = loaded.context("cannot read what ran before, so nothing can be planned")?;
            let errors = records.damaged.iter().chain(&records.unread);
            warnings.extend(errors.map(|error| format!("error: a stored pod cannot be read: {error}")));
            stored.extend(records.pods.into_iter().filter_map(|pod| Some((pod.object.metadata.uid.clone()?, pod))));
        }
        docker = Some((Docker::connect(&endpoint, id.clone(), DockerOptions::default())?, id));
    }
    let memory = is_agents.then(|| memory(&config.root_dir, config.manifests_optional, &stored));
    let reading = tokio::task::spawn_blocking(move || read_as_at_start(&folder, &node, memory)).await?;
    let reading = reading.context("nothing would be done: an unreadable folder is never taken for an empty one")?;
    let words = BTreeMap::from([(Source::File, Some(reading.snapshot))]);
    let desired = desired::merge(&words);
    for SourceProblem { place, message, warning } in &desired.problems {
        warnings.push(format!("{}: {place}: {message}", if *warning { "warning" } else { "error" }));
    }
    let mut observed = HashMap::new();
    if let Some((docker, id)) = &docker {
        let mut list: Vec<Observation> =
            docker.list().await.context("cannot list running containers, so nothing can be planned")?;
        if let Some(unseen) = list.iter().find(|seen| seen.is_unseen()) {
            let (id, pod) = (unseen.id(), unseen.pod());
            anyhow::bail!(
                "container {id} of pod {pod} cannot be inspected, so nothing can be planned: does `docker inspect {id}` answer?"
            );
        }
        complete_all(&pod_network::plugins(config, id)?, &mut list);
        observed = by_pod(list);
    }
    let mut world = World {
        desired,
        stored,
        observed,
        views: views.into_iter().map(|view| (view.id.uid.clone(), view)).collect(),
        holds: HashMap::new(),
        unmounted: HashMap::new(),
        facts,
        crash_loop: crash_loop(config),
        going_down: false,
        drained: false,
        pressure: Pressure::default(),
        in_cluster,
        now: Timestamp::now(),
    };
    let asked = world.desired.pods.values().any(|pod| {
        world.spoken_for(pod).is_none() && longshore_core::gate::probes(pod).is_ok_and(|probes| !probes.is_empty())
    });
    let docker = docker.map(|(docker, _)| docker);
    let probes = match (asked, &docker) {
        (true, Some(docker)) => plugins::load_compiled(&config.root_dir, Arc::new(docker.clone())).await?,
        _ => None,
    };
    if asked && probes.is_none() {
        let message =
            "warning: probes' configurations are not checked: this longshore's plugins are compiled at its start";
        warnings.push(message.to_owned());
    }
    let plugins = probes.as_ref().map(|probes| probes as &dyn ProbePlugins);
    world.ask(&Gate { plugins, objects: &reading.objects, in_cluster }, docker.as_ref()).await?;
    Ok((world, warnings))
}

/// What an agent's first look at its folder begins with.
fn memory(root: &Path, optional: bool, stored: &HashMap<String, StoredPod>) -> Memory {
    let files = stored.values().filter(|stored| stored.source == Source::File).filter_map(from_stored);
    Memory {
        former: files.filter(|pod| pod.deletion.is_none()).collect(),
        optional,
        file: root.join(longshore_filesystem::MANIFESTS_IDENTITY),
    }
}

/// The delays of restarts as configured.
pub(crate) fn crash_loop(config: &Config) -> Policy {
    let cap = SignedDuration::try_from(config.max_restart_delay).unwrap_or(Policy::CRASH_LOOP.cap);
    Policy { initial: Policy::CRASH_LOOP.initial.min(cap), cap }
}
