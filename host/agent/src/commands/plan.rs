//! `longshore plan`: what the agent would do right now, action by action and why. Looks; touches nothing.
//!
//! Works without a running agent: it reads the folder, the records and Docker's list itself. What only a running
//! agent knows (stops and pulls under way, probes' verdicts) is asked of nobody, so its plan may be a moment ahead.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use longshore_core::admit;
use longshore_core::backoff::Policy;
use longshore_core::desired::{self, Desired};
use longshore_core::node::NodeFacts;
use longshore_core::observed::by_pod;
use longshore_core::observed::{Observation, ObservedPod};
use longshore_core::plan::{self as core_plan, Busy, Plan, Situation};
use longshore_core::pod::{Deletion, Pod, Source};
use longshore_core::ports::files::FileStore;
use longshore_core::ports::runtime::ContainerRuntime;
use longshore_core::ports::sources::SourceProblem;
use longshore_core::record::{PodRecord, StoredPod};
use longshore_core::support;
use longshore_docker::{Docker, DockerOptions};
use longshore_filesystem::{CgroupOptions, Files, read_once};
use longshore_reconcile::network::complete_all;
use longshore_reconcile::orphan::{from_observed, from_stored};

use super::out;
use crate::cli::PlanArgs;
use crate::client::Client;
use crate::config::Config;
use crate::socket::api::Info;
use crate::{facts, pod_network};

/// All that a plan for the node is made from.
struct World {
    desired: Desired,
    stored: HashMap<String, StoredPod>,
    observed: HashMap<String, ObservedPod>,
    facts: NodeFacts,
    crash_loop: Policy,
    now: Timestamp,
}

/// Prints the plan for a folder: `dir`, what the flags name, what the agent uses, or what it used when it last ran.
pub(crate) async fn plan(config: &Config, arguments: &PlanArgs) -> anyhow::Result<()> {
    let running: Option<Info> = Client::new(&config.root_dir).get("/v1/info").await.ok();
    let agent = running.or_else(|| Info::load(&config.root_dir));
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
    let (world, warnings) = look(&config, folder, node, &endpoint).await?;
    for warning in warnings {
        out::complain(&warning);
    }
    out::print(&text(&world))?;
    Ok(())
}

async fn look(config: &Config, folder: PathBuf, node: String, endpoint: &str) -> anyhow::Result<(World, Vec<String>)> {
    let mut warnings = Vec::new();
    let reading = {
        let node = node.clone();
        tokio::task::spawn_blocking(move || read_once(&folder, &node)).await?
    };
    let reading = reading.context("nothing would be done: an unreadable folder is never taken for an empty one")?;
    let words = BTreeMap::from([(Source::File, Some(reading.snapshot))]);
    let desired = desired::merge(&words);
    for SourceProblem { place, message, warning } in &desired.problems {
        warnings.push(format!("{}: {place}: {message}", if *warning { "warning" } else { "error" }));
    }
    let facts = facts::estimate(config, node)?;
    let mut stored = HashMap::new();
    let mut observed = HashMap::new();
    // A root folder without an ID was never used: nothing of ours can exist, and nothing is made to find out.
    if config.root_dir.join("id").exists() {
        let root = config.root_dir.clone();
        let id = longshore_filesystem::root_id(&root)?;
        if root.join("pods").exists() {
            let cgroups = CgroupOptions::detect(facts.cgroup_driver);
            let logs = (config.pod_logs_dir.clone(), config.container_logs_dir.clone());
            let (records, errors) = Files::new(root, logs.0, logs.1, cgroups)?.load_all().await;
            warnings.extend(errors.iter().map(|error| format!("error: a stored pod cannot be read: {error}")));
            stored.extend(records.into_iter().filter_map(|pod| Some((pod.object.metadata.uid.clone()?, pod))));
        }
        let docker = Docker::connect(endpoint, id.clone(), DockerOptions::default())?;
        let mut list: Vec<Observation> =
            docker.list().await.context("what runs cannot be told, so neither what to do")?;
        complete_all(&pod_network::plugins(config, &id)?, &mut list);
        observed = by_pod(list);
    }
    let crash_loop = crash_loop(config);
    Ok((World { desired, stored, observed, facts, crash_loop, now: Timestamp::now() }, warnings))
}

/// The delays of restarts as configured.
pub(crate) fn crash_loop(config: &Config) -> Policy {
    let cap = SignedDuration::try_from(config.max_restart_delay).unwrap_or(Policy::CRASH_LOOP.cap);
    Policy { initial: Policy::CRASH_LOOP.initial.min(cap), cap }
}

fn text(world: &World) -> String {
    let mut text = String::new();
    let mut actions = 0;
    let mut quiet = 0;
    for pod in pods(world) {
        let lines = pod_text(world, &pod, &mut actions);
        if lines.is_empty() {
            quiet += 1;
        } else {
            text.push_str(&lines);
        }
    }
    let pods = |count: usize| if count == 1 { "1 pod".to_owned() } else { format!("{count} pods") };
    match (actions, quiet) {
        (0, quiet) => text.push_str(&format!("nothing to do; {} as wanted\n", pods(quiet))),
        (1, quiet) => text.push_str(&format!("1 action; {} as wanted\n", pods(quiet))),
        (actions, quiet) => text.push_str(&format!("{actions} actions; {} as wanted\n", pods(quiet))),
    }
    text
}

/// All pods that concern the node, in order of their names: the wanted ones, and those that must end.
fn pods(world: &World) -> Vec<Pod> {
    let mut pods: BTreeMap<String, Pod> = world.desired.pods.clone();
    for (uid, stored) in world.stored.iter().filter(|(uid, _)| !world.desired.pods.contains_key(*uid)) {
        if let Some(mut pod) = from_stored(stored) {
            // What other sources want is not asked here: until they speak, an agent takes it that they want what they did.
            if stored.source == Source::File {
                let ends = Deletion { requested_at: world.now, grace_seconds: pod.grace_seconds() };
                pod.deletion.get_or_insert(ends);
            }
            pods.insert(uid.clone(), pod);
        }
    }
    for (uid, observed) in &world.observed {
        if !pods.contains_key(uid)
            && let Some(pod) = from_observed(observed, world.now)
        {
            pods.insert(uid.clone(), pod);
        }
    }
    let mut pods: Vec<Pod> = pods.into_values().collect();
    // A pod that ends makes room for one of its name.
    pods.sort_by(|a, b| {
        let key = |pod: &Pod| (pod.id.namespace.clone(), pod.id.name.clone(), pod.deletion.is_none());
        key(a).cmp(&key(b)).then_with(|| a.id.uid.cmp(&b.id.uid))
    });
    pods
}

/// What would be done for one pod; empty when it is as it should be.
fn pod_text(world: &World, pod: &Pod, actions: &mut usize) -> String {
    let nothing = ObservedPod::default();
    let observed = world.observed.get(&pod.id.uid).unwrap_or(&nothing);
    let record = world.stored.get(&pod.id.uid).map(|stored| stored.record.clone()).unwrap_or_default();
    let given = record.allocated.as_ref().map(|given| given.apply(&pod.object));
    let pod = &Pod { object: given.unwrap_or_else(|| pod.object.clone()), ..pod.clone() };
    let title = format!("pod {} ({})\n", pod.id, pod.id.uid);
    let waits_for = world
        .stored
        .values()
        .filter_map(from_stored)
        .find(|old| {
            let same = old.id.namespace == pod.id.namespace && old.id.name == pod.id.name;
            same && old.id.uid != pod.id.uid && !world.desired.pods.contains_key(&old.id.uid)
        })
        .filter(|_| pod.deletion.is_none());
    if let Some(old) = waits_for {
        return format!("{title}  waits: the former pod of that name ({}) ends first\n", old.id.uid);
    }
    let is_new = observed.sandboxes.is_empty() && observed.containers.is_empty() && record.start_time.is_none();
    if is_new && pod.deletion.is_none() {
        let active: Vec<&Pod> =
            world.desired.pods.values().filter(|other| world.stored.contains_key(&other.id.uid)).collect();
        if let Err(rejection) = admit::admit(pod, &active, &world.facts, None) {
            return format!("{title}  reject: the pod would be Failed ({rejection})\n");
        }
    }
    let unsupported = support::unsupported(pod, &world.facts).filter(|_| pod.deletion.is_none());
    let made = plan_of(world, pod, observed, &record, unsupported.as_ref().map(|found| found.message.as_str()));
    let mut lines = String::new();
    for planned in made.actions() {
        *actions += 1;
        lines.push_str(&format!("  {}: {}\n", planned.action, planned.why));
    }
    // A wait that says nothing is only the state that its container shows meanwhile.
    for (container, wait) in made.waits.iter().filter(|(_, wait)| !wait.message.is_empty() || wait.until.is_some()) {
        let who = if container.is_empty() { "the pod".to_owned() } else { format!("container {container}") };
        let until = wait.until.map_or(String::new(), |until| format!(", until {until}"));
        let message = if wait.message.is_empty() { String::new() } else { format!(": {}", wait.message) };
        lines.push_str(&format!("  {who} waits: {}{message}{until}\n", wait.reason));
    }
    if lines.is_empty() { lines } else { title + &lines }
}

fn plan_of(world: &World, pod: &Pod, observed: &ObservedPod, record: &PodRecord, blocked: Option<&str>) -> Plan {
    core_plan::plan(&Situation {
        pod,
        observed,
        record,
        unhealthy: &BTreeMap::new(),
        busy: &Busy::default(),
        blocked,
        crash_loop: world.crash_loop,
        node: &world.facts,
        cgroup: None,
        now: world.now,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use longshore_core::manifest::{self, Origin};
    use longshore_core::ports::sources::SourceSnapshot;

    use super::*;
    use crate::config::{ConfigPath, DaemonFlags, Surroundings};
    use crate::print::samples::now;

    fn pods_of(yaml: &str) -> Vec<Pod> {
        let origin = Origin { source: Source::File, node_name: "node1".to_owned(), place: "/m/web.yaml".to_owned() };
        manifest::parse(yaml.as_bytes(), &origin).pods
    }

    fn world(wanted: Vec<Pod>, stored: &[&Pod]) -> World {
        let (config, _) = Config::build(&DaemonFlags::default(), ConfigPath::None, &Surroundings::default());
        let config = Config { root_dir: "/".into(), ..config };
        let snapshot = SourceSnapshot { pods: wanted, problems: Vec::new() };
        let stored = stored.iter().map(|pod| {
            let record = PodRecord { start_time: Some(now()), ..PodRecord::default() };
            let stored = StoredPod {
                source: pod.source.clone(),
                object: (*pod.object).clone(),
                hashes: pod.hashes.clone(),
                sandbox_hash: pod.sandbox_hash.clone(),
                record,
            };
            (pod.id.uid.clone(), stored)
        });
        World {
            desired: desired::merge(&BTreeMap::from([(Source::File, Some(snapshot))])),
            stored: stored.collect(),
            observed: HashMap::new(),
            facts: facts::estimate(&config, "node1".to_owned()).unwrap(),
            crash_loop: crash_loop(&config),
            now: now(),
        }
    }

    const WEB: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, uid: one}
spec: {containers: [{name: main, image: nginx}]}
";

    #[test]
    fn a_new_pod_step_by_step() {
        insta::assert_snapshot!(text(&world(pods_of(WEB), &[])));
    }

    #[test]
    fn a_changed_pod_waits_for_the_former_one() {
        let old = pods_of(&WEB.replace("uid: one", "uid: zero"));
        insta::assert_snapshot!(text(&world(pods_of(WEB), &[&old[0]])));
    }

    #[test]
    fn what_the_node_cannot_do_or_refuses() {
        let claim = WEB.replace("spec: {", "spec: {volumes: [{name: v, persistentVolumeClaim: {claimName: c}}], ");
        let foreign = "
apiVersion: v1
kind: Pod
metadata: {name: win, uid: two}
spec: {os: {name: windows}, containers: [{name: main, image: nginx}]}
";
        let all = pods_of(&claim).into_iter().chain(pods_of(foreign)).collect();
        insta::assert_snapshot!(text(&world(all, &[])));
    }
}
