//! `cargo xtask cluster`: etcd, API server, controllers, scheduler and a node on a Docker, for a person to play with or
//! for a command to be run against; and the end of all that. Must not know what the command does.

pub(crate) mod clients;
pub(crate) mod forward;
mod guide;
mod join;
pub(crate) mod keys;
mod kubectl;
pub(crate) mod kubernetes;
mod node;
mod plane;

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use self::node::{Node, Settings};
pub(crate) use self::{
    join::{Approver, open as open_to_nodes},
    kubectl::Kubectl,
    kubernetes::{CERTIFICATE, Kubernetes},
    plane::Plane,
};
use crate::{
    demo::engine,
    docker, images,
    place::{self, Place},
    process::{self, Running},
    say,
    world::{self, World},
};

/// The version when none is asked for.
pub(crate) const KUBERNETES: &str = "1.36";
/// The oldest and the newest that nodes may join.
pub(crate) const OLDEST: &str = "1.33";
/// See [`OLDEST`].
pub(crate) const NEWEST: &str = "1.37";
/// The start of the names of our folders.
pub(crate) const PREFIX: &str = "longshore-cluster-";

/// `cargo xtask cluster`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Cluster {
    /// Which Kubernetes: a minor version from 1.33 to 1.37, or a whole one.
    #[arg(long, default_value = KUBERNETES)]
    kubernetes: String,
    /// Which Docker: `running` (yours; started when there is none), or a private one: `system`, `29` or
    /// `29-nftables`.
    #[arg(long, default_value = "running")]
    docker: String,
    /// Only the control plane: start `longshore` yourself.
    #[arg(long)]
    no_node: bool,
    /// Time limit for the command, seconds.
    #[arg(long, default_value_t = 3600)]
    limit: u64,
    /// Where whoever started us in a world looks for the files.
    #[arg(long, hide = true)]
    folder: Option<PathBuf>,
    /// Run this with the cluster in its environment, and end with its exit code, rather than wait for Ctrl-C.
    #[arg(last = true)]
    command: Vec<String>,
}

impl Cluster {
    /// One that runs a command beside a node, and ends with it.
    pub(crate) fn for_command(kubernetes: &str, docker: &str, limit: u64, command: Vec<String>) -> Self {
        let (kubernetes, docker) = (kubernetes.to_owned(), docker.to_owned());
        Self { kubernetes, docker, no_node: false, limit, folder: None, command }
    }
}

/// Runs it; the command's exit code, if there is one.
///
/// # Errors
/// When set-up fails, or a part of the cluster ends and cannot be started again.
pub(crate) fn run(place: &Place, args: &Cluster) -> Result<ExitCode> {
    if !place::is_root() {
        bail!("a node runs pods, which needs root: `sudo -E env \"PATH=$PATH\" cargo xtask cluster`");
    }
    if args.docker != "running" {
        // Said at once, not after minutes of compiling.
        world::require()?;
    }
    let kubernetes = Kubernetes::find(place, &args.kubernetes)?;
    let binary = match args.no_node {
        true => None,
        false => Some(binary(place)?),
    };
    if args.docker == "running" { here(place, args, &kubernetes, binary) } else { apart(place, args) }
}

/// The newest agent that was built; it is built when there is none.
fn binary(place: &Place) -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("LONGSHORE_BIN").map(PathBuf::from).filter(|path| path.is_file()) {
        return Ok(given);
    }
    let built = ["release", "debug"].map(|profile| place.target.join(profile).join("longshore"));
    let age = |path: &PathBuf| path.metadata().and_then(|meta| meta.modified()).ok();
    if let Some(newest) = built.iter().filter(|path| age(path).is_some()).max_by_key(|path| age(path)) {
        return Ok(newest.clone());
    }
    crate::demo::build(place, false)?;
    Ok(built[0].clone())
}

/// On the machine's own network, with the Docker that answers at `DOCKER_HOST`.
fn here(place: &Place, args: &Cluster, kubernetes: &Kubernetes, binary: Option<PathBuf>) -> Result<ExitCode> {
    let began = Instant::now();
    remove_stale();
    let (_temporary, folder) = folder(args)?;
    let _lock = lock(&folder).with_context(|| format!("{} is another cluster's", folder.display()))?;
    let engine = engine::find_or_start(&folder)?;
    let address = docker0().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let logs = place.work().join("logs/cluster");
    let _ = fs::remove_dir_all(&logs);
    let mut plane = Plane::start(kubernetes, &folder, &logs, address)?;
    let kubectl = plane.kubectl();
    let bootstrap = open_to_nodes(&plane, &folder)?;
    let mut approver = Approver::start(&kubectl)?;
    say!("Kubernetes {} is ready at {} ({:.1} s)", kubernetes.version, plane.server(), began.elapsed().as_secs_f32());
    let mut node = None;
    if let Some(binary) = binary {
        images::import_all(&engine.socket, &images::roots(place)?)?;
        let log = logs.join("longshore.log");
        let docker = engine.socket.clone();
        let client_ca = plane.authority().certificate();
        let (folder, bootstrap) = (folder.clone(), bootstrap.clone());
        let settings = Settings { binary, docker, folder, log, bootstrap, client_ca, address };
        let node = node.insert(Node::start(&settings)?);
        node.wait_ready(&kubectl)?;
        say!("{} is Ready ({:.1} s)", node::NAME, began.elapsed().as_secs_f32());
    }
    let result = if args.command.is_empty() {
        if args.folder.is_none() {
            guide::print(&guide::Guide {
                kubectl: kubectl.program.clone(),
                kubeconfig: plane.admin(),
                bootstrap: Some((bootstrap, plane.authority().certificate())),
                address,
                docker: format!("unix://{}", engine.socket.display()),
                logs: logs.clone(),
                folder: folder.clone(),
                node: node.is_some(),
            });
        }
        fs::write(folder.join("ready"), plane.address().to_string())?;
        wait(&mut plane, &mut approver, node.as_mut(), None)
    } else {
        let mut command = Command::new(&args.command[0]);
        command
            .args(&args.command[1..])
            .env("KUBECONFIG", plane.admin())
            .env("DOCKER_HOST", format!("unix://{}", engine.socket.display()))
            .env("LONGSHORE_TEST_CLUSTER", &folder)
            .env("LONGSHORE_TEST_KUBERNETES", &kubernetes.version)
            .env("LONGSHORE_TEST_KUBECONFIG", plane.admin())
            .env("LONGSHORE_TEST_BOOTSTRAP_KUBECONFIG", &bootstrap)
            .env("LONGSHORE_TEST_API_SOCKET", plane.socket())
            .env("LONGSHORE_TEST_KUBECTL", &kubectl.program)
            .env("LONGSHORE_TEST_NODE_IP", address.to_string())
            .envs(clients::environment(place));
        let running = Running::start(&args.command[0], &mut command)?;
        wait(&mut plane, &mut approver, node.as_mut(), Some((running, Duration::from_secs(args.limit))))
    };
    if process::interrupted() {
        say!("ending the cluster");
    }
    // Its pods go with the node, not one by one through an API server that is going.
    drop(node);
    drop(approver);
    drop(plane);
    if engine.started {
        engine::stop(&folder)?;
    }
    result
}

/// Until Ctrl-C, or the command's end, whose code it is then.
fn wait(
    plane: &mut Plane,
    approver: &mut Approver,
    mut node: Option<&mut Node>,
    mut command: Option<(Running, Duration)>,
) -> Result<ExitCode> {
    let began = Instant::now();
    loop {
        if let Some((running, limit)) = &mut command {
            if let Some(status) = running.try_wait()? {
                return Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
            }
            if began.elapsed() > *limit {
                bail!("the command did not end within {} s", limit.as_secs());
            }
        }
        if process::interrupted() {
            return Ok(if command.is_some() { ExitCode::from(130) } else { ExitCode::SUCCESS });
        }
        plane.tend()?;
        approver.tend()?;
        if let Some(node) = &mut node {
            node.check()?;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// In a world of its own with a private Docker; a person's kubectl is let in by a port.
fn apart(place: &Place, args: &Cluster) -> Result<ExitCode> {
    let world = World::prepare(place, docker::named(place, &args.docker)?)?;
    let temporary = tempfile::Builder::new().prefix(PREFIX).tempdir().context("a temporary folder")?;
    let folder = temporary.path().to_owned();
    let limit = Duration::from_secs(if args.command.is_empty() { 30 * 86_400 } else { args.limit + 300 });
    let mut inner = vec![world.program.display().to_string()];
    inner.extend(inside(&args.kubernetes, args.no_node, args.limit, &folder, &args.command));
    let mut command = world.command(place, &inner, limit);
    if let Ok(binary) = binary(place) {
        command.env("LONGSHORE_BIN", binary);
    }
    let mut running = Running::start("the cluster's world", &mut command)?;
    if args.command.is_empty() {
        let ready = folder.join("ready");
        while !ready.is_file() {
            if let Some(status) = running.try_wait()? {
                bail!("the cluster did not come up ({status})");
            }
            process::check_interrupted()?;
            thread::sleep(Duration::from_millis(50));
        }
        let target = fs::read_to_string(&ready)?.parse().context("the API server's address")?;
        let port = forward::into_network_of(running.pid(), target)?;
        let admin = fs::read_to_string(folder.join("admin.kubeconfig"))?;
        let kubeconfig = folder.join("kubeconfig");
        keys::write(&kubeconfig, &admin.replace(&target.to_string(), &format!("127.0.0.1:{port}")))?;
        guide::print(&guide::Guide {
            kubectl: Kubernetes::find(place, &args.kubernetes)?.program("kubectl"),
            kubeconfig,
            bootstrap: None,
            address: Ipv4Addr::LOCALHOST.into(),
            docker: format!("unix:///proc/{}/root/run/longshore-test/docker.sock", running.pid()),
            logs: place.work().join("logs/cluster"),
            folder,
            node: !args.no_node,
        });
    }
    while !process::interrupted() {
        if let Some(status) = running.try_wait()? {
            return Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
        }
        thread::sleep(Duration::from_millis(50));
    }
    running.stop(Duration::from_secs(60));
    Ok(if args.command.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(130) })
}

/// The arguments of an xtask that is to run a cluster in a world.
pub(crate) fn inside(kubernetes: &str, no_node: bool, limit: u64, folder: &Path, command: &[String]) -> Vec<String> {
    let mut arguments = vec!["cluster".to_owned(), format!("--kubernetes={kubernetes}"), format!("--limit={limit}")];
    arguments.push(format!("--folder={}", folder.display()));
    if no_node {
        arguments.push("--no-node".to_owned());
    }
    if !command.is_empty() {
        arguments.push("--".to_owned());
        arguments.extend_from_slice(command);
    }
    arguments
}

/// The folder of a cluster; the first is dropped last, and removes it.
fn folder(args: &Cluster) -> Result<(Option<TempDir>, PathBuf)> {
    if let Some(folder) = &args.folder {
        fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        return Ok((None, folder.clone()));
    }
    let temporary = tempfile::Builder::new().prefix(PREFIX).tempdir().context("a temporary folder")?;
    let folder = temporary.path().to_owned();
    Ok((Some(temporary), folder))
}

/// Held while a cluster has its folder, so that a later one knows which are left over.
fn lock(folder: &Path) -> Result<File> {
    let file = File::create(folder.join("lock"))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// Removes what clusters left that were killed without a chance to clean up.
fn remove_stale() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let folder = entry.path();
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if !ours || !folder.join("lock").is_file() || lock(&folder).is_err() {
            continue;
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|ending| ending == "pid")
                && let Ok(pid) = fs::read_to_string(&path).unwrap_or_default().parse::<i32>()
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
                && fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()))
                    .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&folder.display().to_string()))
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let host = std::env::var("DOCKER_HOST").unwrap_or_default();
        let docker = host.strip_prefix("unix://").unwrap_or("/var/run/docker.sock");
        match node::sweep(&folder, Path::new(docker)) {
            Ok(()) => _ = fs::remove_dir_all(&folder),
            Err(error) => say!("{} was left by a cluster and stays: {error:#}", folder.display()),
        }
    }
}

/// The address of Docker's bridge: the machine, its pods and nobody else reach it.
fn docker0() -> Option<IpAddr> {
    let arguments = ["-4", "-oneline", "address", "show", "docker0"];
    let text = process::output("ip", Command::new("ip").args(arguments), Duration::from_secs(10)).ok()?;
    // "3: docker0    inet 172.17.0.1/16 brd …"
    let address = text.split_whitespace().skip_while(|word| *word != "inet").nth(1)?;
    address.split('/').next()?.parse().ok()
}
