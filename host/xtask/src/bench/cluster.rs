//! `bench cluster`: pods of the API server on a node of a real cluster, against Docker alone while a hollow node walks as
//! many pods of the API server to Ready, and the node's requests, as the audit log has them. Must not print.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    alone::{self, Pair},
    machine,
    pods::{all_ready, nap, until},
    table::Row,
    watch::Watch,
};
use crate::{
    demo::pods::{Shown, shown},
    http::Client,
    images,
};

const LIMIT: Duration = Duration::from_secs(300);
const PODS: &str = "/api/v1/namespaces/bench/pods";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
/// The node that only says that its pods run.
const HOLLOW: &str = "hollow";
/// The node that `xtask cluster` starts.
const NODE: &str = "node-1";

/// The cluster that we run in.
struct Setting {
    api: PathBuf,
    docker: PathBuf,
    audit: PathBuf,
    agent: i32,
}

/// One turn of something: seconds.
#[derive(Clone, Copy, Debug)]
struct Turn {
    up: f64,
    down: f64,
    agent_cpu: f64,
    /// Requests of the node, from the creation to the end.
    requests: usize,
}

/// Created → Ready and deleted → gone for each of `counts`, the best of `rounds`; then `idle` seconds of nothing.
///
/// # Errors
/// When the cluster, the agent or Docker fails.
pub(super) fn run(counts: &[usize], rounds: usize, idle: u64) -> Result<Vec<Row>> {
    let folder = PathBuf::from(env::var_os("LONGSHORE_TEST_CLUSTER").context("LONGSHORE_TEST_CLUSTER")?);
    let pid = fs::read_to_string(folder.join("longshore.pid")).context("the node's process")?;
    let host = env::var("DOCKER_HOST").context("DOCKER_HOST")?;
    let setting = Setting {
        api: env::var_os("LONGSHORE_TEST_API_SOCKET").context("LONGSHORE_TEST_API_SOCKET")?.into(),
        docker: host.trim_start_matches("unix://").into(),
        audit: folder.join("audit.log"),
        agent: pid.trim().parse().context("the node's process")?,
    };
    let mut client = Client::new(&setting.api, LIMIT);
    for (path, object) in [
        ("/api/v1/namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bench"}})),
        ("/api/v1/nodes", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": HOLLOW}})),
    ] {
        client.expect("POST", path, Some(&object))?;
    }
    let account = "/api/v1/namespaces/bench/serviceaccounts/default";
    until("the namespace has no ServiceAccount", Duration::from_secs(30), || Ok(client.get(account).is_ok()))?;
    // A watch that begins with a list is nothing that every etcd has.
    let version = client.get(PODS)?["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    let watch = Watch::open(&setting.api, &format!("{PODS}?watch=1&resourceVersion={version}"), true)?;
    let pair = sample(&setting, &mut client)?;
    let mut rows = Vec::new();
    for &count in counts {
        // A single pod is over in a blink: more rounds for the same certainty.
        let rounds = if count <= 2 { rounds * 5 } else { rounds };
        let (mut bare, mut floor, mut ours) = (Vec::new(), Vec::new(), Vec::new());
        let in_flight = if count <= 2 { 1 } else { 4 };
        // By turns, so that what disturbs the machine disturbs all alike.
        for round in 0..rounds {
            let (up, down) = alone::round(&setting.docker, &pair, count, in_flight, |_| Ok(()))?;
            bare.push((up.wall, down.wall));
            floor.push(hollow(&setting, &mut client, &watch, &pair, (&format!("h{round}"), count, in_flight))?);
            ours.push(turn(&setting, &mut client, &watch, &format!("r{round}"), count)?);
        }
        if count == counts.iter().copied().max().unwrap_or_default() {
            rows.push(resident(&setting, &mut client, &watch, count)?);
        }
        rows.extend(figures(count, &bare, &floor, &ours));
    }
    nap(5)?;
    let before = requests(&setting.audit)?;
    nap(idle)?;
    let spent = (requests(&setting.audit)? - before) as f64 * 60.0 / idle as f64;
    rows.push(Row::absolute("idle node, requests a minute".to_owned(), spent, 6.2));
    Ok(rows)
}

fn figures(count: usize, bare: &[(f64, f64)], floor: &[f64], ours: &[Turn]) -> Vec<Row> {
    let least = |of: &mut dyn Iterator<Item = f64>| of.fold(f64::INFINITY, f64::min);
    let mean = |of: fn(&Turn) -> f64| ours.iter().map(of).sum::<f64>() / ours.len() as f64 / count as f64;
    let up = least(&mut ours.iter().map(|turn| turn.up));
    let down = least(&mut ours.iter().map(|turn| turn.down));
    let floor = least(&mut floor.iter().copied());
    let bare_up = least(&mut bare.iter().map(|it| it.0));
    let bare_down = least(&mut bare.iter().map(|it| it.1));
    let gone = match count {
        1 => Row::absolute("1 deleted → gone, s".to_owned(), down, 0.4),
        _ => Row::ratio(format!("{count} deleted → gone, s (of Docker alone)"), down, bare_down, 1.20),
    };
    vec![
        Row::ratio(format!("{count} created → Ready, s (of Docker alone beside a hollow node)"), up, floor, 1.10),
        Row::ratio(format!("{count} created → Ready, s (of Docker alone)"), up, bare_up, 1.25),
        gone,
        Row::absolute(format!("{count} pods, agent's CPU ms a pod's life"), mean(|it| it.agent_cpu * 1000.0), 10.0),
        Row::absolute(format!("{count} pods, requests a pod's life"), mean(|it| it.requests as f64), 10.0),
    ]
}

fn pod(name: &str, node: &str) -> Value {
    let container = json!({
        "name": "app",
        "image": images::BUSYBOX,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"],
    });
    // A token costs a request of its own, and the hollow node has none either; nor does it tell that the cluster has no DNS.
    let spec = json!({
        "nodeName": node,
        "containers": [container],
        "automountServiceAccountToken": false,
        "dnsPolicy": "Default",
    });
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

fn create(client: &mut Client, prefix: &str, node: &str, count: usize) -> Result<()> {
    for at in 0..count {
        client.expect("POST", PODS, Some(&pod(&format!("{prefix}-{at}"), node)))?;
    }
    Ok(())
}

/// How Docker is asked to make such a pod. The sample stays: its copies mount its files.
fn sample(setting: &Setting, client: &mut Client) -> Result<Pair> {
    let path = "/api/v1/namespaces/default/pods";
    let until = Instant::now() + LIMIT;
    // Its ServiceAccount comes a moment after the namespace.
    while let Err(error) = client.expect("POST", path, Some(&pod("sample", NODE))) {
        anyhow::ensure!(Instant::now() < until, "{error:#}");
        nap(1)?;
    }
    while !shown(&client.get(&format!("{path}/sample"))?).ready {
        anyhow::ensure!(Instant::now() < until, "the sample pod does not become Ready");
        nap(1)?;
    }
    Pair::inspect(&setting.docker, "sample")
}

/// Deletes all pods, and waits until neither the API server nor Docker has anything of them.
fn remove(setting: &Setting, client: &mut Client, watch: &Watch) -> Result<()> {
    for pod in watch.wait("the pods", LIMIT, |_| true)? {
        client.expect("DELETE", &format!("{PODS}/{}", pod.name), None)?;
    }
    watch.wait("all pods gone", LIMIT, <[Shown]>::is_empty)?;
    let mut docker = Client::new(&setting.docker, LIMIT);
    let left = "/containers/json?all=1&filters=%7B%22label%22%3A%5B%22io.kubernetes.pod.namespace%3Dbench%22%5D%7D";
    until("Docker still has containers of pods that are gone", LIMIT, || {
        Ok(docker.get(left)?.as_array().is_none_or(Vec::is_empty))
    })
}

fn turn(setting: &Setting, client: &mut Client, watch: &Watch, prefix: &str, count: usize) -> Result<Turn> {
    let (cpu, asked) = (machine::process_cpu(setting.agent)?, requests(&setting.audit)?);
    let started = Instant::now();
    create(client, prefix, NODE, count)?;
    watch.wait("pods Ready", LIMIT, all_ready(count))?;
    let up = started.elapsed().as_secs_f64();
    let started = Instant::now();
    remove(setting, client, watch)?;
    let down = started.elapsed().as_secs_f64();
    let agent_cpu = machine::process_cpu(setting.agent)? - cpu;
    Ok(Turn { up, down, agent_cpu, requests: requests(&setting.audit)? - asked })
}

/// Seconds until the API server has `count` pods as Ready, each told so once Docker made its containers.
fn hollow(
    setting: &Setting,
    client: &mut Client,
    watch: &Watch,
    pair: &Pair,
    (prefix, count, in_flight): (&str, usize, usize),
) -> Result<f64> {
    let spare: Vec<Mutex<Client>> = (0..in_flight).map(|_| Mutex::new(Client::new(&setting.api, LIMIT))).collect();
    let turn = AtomicUsize::new(0);
    let started = Instant::now();
    create(client, prefix, HOLLOW, count)?;
    let told = |at: usize| {
        let one = &spare[turn.fetch_add(1, Ordering::Relaxed) % spare.len()];
        let mut one = one.lock().unwrap_or_else(PoisonError::into_inner);
        let path = format!("{PODS}/{prefix}-{at}/status");
        let answer = one.request("PATCH", &path, STRATEGIC, running().to_string().as_bytes())?;
        anyhow::ensure!(answer.status < 300, "PATCH {path}: {}", answer.status);
        Ok(())
    };
    // It ends with the containers stopped, long after the last pod was told to be Ready.
    let ended = std::thread::scope(|scope| {
        let work = scope.spawn(|| alone::round(&setting.docker, pair, count, in_flight, told));
        let seen = watch.wait("hollow pods Ready", LIMIT, all_ready(count)).map(|_| started.elapsed().as_secs_f64());
        work.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        seen
    })?;
    for at in 0..count {
        let now = json!({"gracePeriodSeconds": 0});
        client.expect("DELETE", &format!("{PODS}/{prefix}-{at}"), Some(&now))?;
    }
    watch.wait("hollow pods gone", LIMIT, <[Shown]>::is_empty)?;
    Ok(ended)
}

/// The least that a node says of a pod that runs.
fn running() -> Value {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
    let conditions = ["Initialized", "Ready", "ContainersReady", "PodScheduled"].map(condition);
    let container = json!({
        "name": "app", "ready": true, "started": true, "restartCount": 0, "image": images::BUSYBOX, "imageID": "",
        "containerID": "docker://0", "state": {"running": {"startedAt": now}},
    });
    json!({"status": {"phase": "Running", "conditions": conditions, "containerStatuses": [container], "startTime": now}})
}

fn resident(setting: &Setting, client: &mut Client, watch: &Watch, count: usize) -> Result<Row> {
    create(client, "rss", NODE, count)?;
    watch.wait("pods Ready", LIMIT, all_ready(count))?;
    nap(5)?;
    let row = Row::absolute(format!("{count} pods, agent's RSS MiB"), machine::resident(setting.agent)?, 40.0);
    remove(setting, client, watch)?;
    Ok(row)
}

/// How many requests the node has made so far: each once, a watch when it began.
fn requests(audit: &Path) -> Result<usize> {
    let text = fs::read_to_string(audit).with_context(|| format!("{}", audit.display()))?;
    let ours = text.lines().filter(|line| line.contains(&format!("\"username\":\"system:node:{NODE}\"")));
    let counted = ours.filter(|line| {
        let watch = line.contains("\"verb\":\"watch\"");
        line.contains(if watch { "\"stage\":\"ResponseStarted\"" } else { "\"stage\":\"ResponseComplete\"" })
    });
    Ok(counted.count())
}
