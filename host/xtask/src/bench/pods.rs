//! `bench pods`, `bench idle` and `bench adopt`: what needs pods on a real Docker. Must not print.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    agent::Agent,
    alone::{self, Cost, Pair},
    machine,
    table::Row,
};
use crate::{demo::pods::Shown, docker, http::Client, process, say};

/// Where a benchmark finds its things.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    /// The release binary.
    pub binary: PathBuf,
    /// A folder to work in.
    pub folder: PathBuf,
    /// Docker's socket.
    pub docker: PathBuf,
}

const LIMIT: Duration = Duration::from_secs(300);
/// Between two looks at what is waited for: short beside what is measured meanwhile.
const LOOK: Duration = Duration::from_millis(10);

/// At least so many pods are Ready.
pub(super) fn all_ready(count: usize) -> impl Fn(&[Shown]) -> bool {
    move |pods| pods.iter().filter(|pod| pod.ready).count() >= count
}

/// What one round of the agent costs.
#[derive(Clone, Copy, Debug)]
struct Round {
    up: f64,
    up_cpu: f64,
    agent_cpu: f64,
    down: f64,
}

/// Created → Ready and deleted → gone for each of `counts`, against Docker alone; the best of `rounds`.
///
/// # Errors
/// When the agent or Docker fails.
pub(super) fn start_and_stop(setting: &Setting, counts: &[usize], rounds: usize) -> Result<Vec<Row>> {
    let pair = sample(setting)?;
    let mut rows = Vec::new();
    for &count in counts {
        // A single pod is over in a blink: more rounds for the same certainty.
        let rounds = if count <= 2 { rounds * 5 } else { rounds };
        let (mut ups, mut downs) = (Vec::new(), Vec::new());
        let mut ours = Vec::new();
        let agent = Agent::start(&setting.binary, &setting.folder.join(format!("pods-{count}")), &setting.docker)?;
        // By turns, so that what disturbs the machine disturbs both alike.
        for round in 0..rounds {
            for in_flight in [1, 2, 4, 8].into_iter().filter(|it| *it <= count) {
                let (up, down) = alone::round(&setting.docker, &pair, count, in_flight, |_| Ok(()))?;
                ups.push(up);
                downs.push(down);
            }
            ours.push(round_of_agent(&agent, &format!("r{round}"), count)?);
        }
        agent.kill();
        docker::remove_containers(&setting.docker, "")?;
        let up = best(&ups).context("no round")?;
        let down = best(&downs).context("no round")?;
        let least = |of: fn(&Round) -> f64| ours.iter().map(of).fold(f64::INFINITY, f64::min);
        // CPU counts in hundredths of a second: the mean of all rounds is finer than the least of them.
        let mean = |of: fn(&Round) -> f64| ours.iter().map(of).sum::<f64>() / ours.len() as f64;
        let same: Vec<&Cost> = ups.iter().filter(|it| it.in_flight == up.in_flight).collect();
        let alone_cpu = same.iter().map(|it| it.cpu).sum::<f64>() / same.len() as f64;
        let pods = count as f64;
        let in_flight = up.in_flight;
        rows.push(Row::ratio(
            format!("{count} created → Ready, s ({in_flight} in flight alone)"),
            least(|it| it.up),
            up.wall,
            1.10,
        ));
        rows.push(Row::ratio(
            format!("{count} created → Ready, machine CPU s a pod"),
            mean(|it| it.up_cpu) / pods,
            alone_cpu / pods,
            1.10,
        ));
        rows.push(Row::absolute(
            format!("{count} created → Ready, agent's CPU ms a pod"),
            mean(|it| it.agent_cpu) * 1000.0 / pods,
            10.0,
        ));
        rows.push(Row::ratio(
            format!("{count} deleted → gone, s ({} in flight alone)", down.in_flight),
            least(|it| it.down),
            down.wall,
            1.20,
        ));
    }
    Ok(rows)
}

/// Makes one pod with the agent, reads how it did, and kills the agent: the pod's files stay for its copies.
fn sample(setting: &Setting) -> Result<Pair> {
    let agent = Agent::start(&setting.binary, &setting.folder.join("sample"), &setting.docker)?;
    agent.write_pods("sample", 1, false)?;
    let pods = agent.wait("the sample pod Ready", LIMIT, all_ready(1))?;
    let name = pods.first().context("the sample pod is gone")?.name.clone();
    let pair = Pair::inspect(&setting.docker, &name)?;
    agent.kill();
    Ok(pair)
}

fn round_of_agent(agent: &Agent, prefix: &str, count: usize) -> Result<Round> {
    let pid = agent.pid();
    let (cpu, mine) = (machine::busy()?, machine::process_cpu(pid)?);
    let started = Instant::now();
    agent.write_pods(prefix, count, false)?;
    agent.wait("pods Ready", LIMIT, all_ready(count))?;
    let up = started.elapsed().as_secs_f64();
    let (up_cpu, agent_cpu) = (machine::busy()? - cpu, machine::process_cpu(pid)? - mine);
    let started = Instant::now();
    agent.clear()?;
    Ok(Round { up, up_cpu, agent_cpu, down: started.elapsed().as_secs_f64() })
}

fn best(costs: &[Cost]) -> Option<Cost> {
    costs.iter().copied().min_by(|a, b| a.wall.total_cmp(&b.wall))
}

/// The agent's CPU and memory with `count` pods that run, `seconds` long; the machine's likewise with and without it.
///
/// # Errors
/// When the agent or Docker fails.
pub(super) fn idle(setting: &Setting, count: usize, seconds: u64) -> Result<Vec<Row>> {
    let agent = Agent::start(&setting.binary, &setting.folder.join("idle"), &setting.docker)?;
    agent.write_pods("idle", count, false)?;
    agent.wait("pods Ready", LIMIT, all_ready(count))?;
    settle()?;
    let (cpu, machine_cpu) = (machine::process_cpu(agent.pid())?, machine::busy()?);
    nap(seconds)?;
    let span = seconds as f64;
    let own = (machine::process_cpu(agent.pid())? - cpu) / span;
    let with = (machine::busy()? - machine_cpu) / span;
    let rss = machine::resident(agent.pid())?;
    agent.kill();
    settle()?;
    let before = machine::busy()?;
    nap(seconds)?;
    let without = (machine::busy()? - before) / span;
    docker::remove_containers(&setting.docker, "")?;
    Ok(vec![
        Row::absolute(format!("{count} idle pods, agent's cores"), own, 0.004),
        Row::absolute(format!("{count} idle pods, agent's RSS MiB"), rss, 40.0),
        Row::plain(format!("{count} idle pods, machine's cores with the agent"), with, Some(without)),
    ])
}

/// Kills the agent over `count` pods, starts it again, and times until it says that all are Ready.
///
/// # Errors
/// When the agent or Docker fails, or anything was restarted.
pub(super) fn adopt(setting: &Setting, count: usize, rounds: usize) -> Result<Vec<Row>> {
    let folder = setting.folder.join("adopt");
    let mut agent = Agent::start(&setting.binary, &folder, &setting.docker)?;
    // In portions, so that the making is not what is tried here.
    agent.write_pods("adopt", count, false)?;
    agent.wait("pods Ready", LIMIT, all_ready(count))?;
    let before = started_at(&setting.docker)?;
    let (mut walls, mut cpus) = (Vec::new(), Vec::new());
    for _ in 0..rounds.max(1) {
        agent.kill();
        let started = Instant::now();
        agent = Agent::start(&setting.binary, &folder, &setting.docker)?;
        agent.wait("pods adopted", LIMIT, all_ready(count))?;
        walls.push(started.elapsed().as_secs_f64());
        cpus.push(machine::process_cpu(agent.pid())?);
    }
    let after = started_at(&setting.docker)?;
    let restarted = before.iter().filter(|(id, time)| after.get(*id) != Some(time)).count();
    agent.kill();
    docker::remove_containers(&setting.docker, "")?;
    let least = |of: &[f64]| of.iter().copied().fold(f64::INFINITY, f64::min);
    Ok(vec![
        Row::absolute(format!("{count} pods adopted after kill -9, s"), least(&walls), 0.4),
        Row::absolute(format!("{count} pods adopted, agent's CPU s"), least(&cpus), 1.0),
        Row::absolute(format!("{count} pods adopted, containers restarted or made anew"), restarted as f64, 0.0),
    ])
}

/// When each container was started, by id.
fn started_at(docker: &Path) -> Result<BTreeMap<String, String>> {
    let mut client = Client::new(docker, Duration::from_secs(30));
    let list = client.get("/containers/json")?;
    let mut times = BTreeMap::new();
    for one in list.as_array().into_iter().flatten() {
        let id = one["Id"].as_str().unwrap_or_default();
        let inspect = client.get(&format!("/containers/{id}/json"))?;
        times.insert(id.to_owned(), inspect["State"]["StartedAt"].to_string());
    }
    Ok(times)
}

/// Waits until Docker and the agent have done what a start leaves behind.
fn settle() -> Result<()> {
    nap(5)
}

/// Sleeps, unless we are interrupted.
///
/// # Errors
/// Then.
pub(super) fn nap(seconds: u64) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        process::check_interrupted()?;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Looks until something is so; `otherwise` is what is wrong when that takes longer than `limit`.
///
/// # Errors
/// Then, when looking fails, and when we are interrupted.
pub(super) fn until(otherwise: &str, limit: Duration, mut good: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit;
    while !good()? {
        anyhow::ensure!(Instant::now() < end, "{otherwise} after {} s", limit.as_secs());
        process::check_interrupted()?;
        thread::sleep(LOOK);
    }
    Ok(())
}

/// Empties the folder of a benchmark, mounts below it included.
///
/// # Errors
/// When something cannot be removed.
pub(super) fn empty(folder: &Path) -> Result<()> {
    if folder.exists() {
        crate::demo::engine::clean(folder)?;
    }
    fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    say!("benchmark on {}", machine::describe());
    Ok(())
}
