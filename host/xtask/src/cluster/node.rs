//! A node of the cluster: `longshore` as a person would start it, and the end of all that it made. Must not touch
//! containers of anybody else.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{kubectl::Kubectl, plane};
use crate::{
    docker,
    http::Client,
    process::{self, Running},
    say,
};

/// What the node is called.
pub(crate) const NAME: &str = "node-1";

/// A first start compiles the plugins and asks for two certificates.
const READY: Duration = Duration::from_secs(120);

/// What a node is started with.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The agent.
    pub binary: PathBuf,
    /// Docker's socket.
    pub docker: PathBuf,
    /// The cluster's folder; the node's is below it.
    pub folder: PathBuf,
    /// Where its log goes.
    pub log: PathBuf,
    /// How it joins.
    pub bootstrap: PathBuf,
    /// The CA of those who may use its server: the API server.
    pub client_ca: PathBuf,
    /// Where the API server reaches it.
    pub address: IpAddr,
}

impl Settings {
    /// Its manifest folder.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.folder.join("manifests")
    }

    fn root(&self) -> PathBuf {
        root(&self.folder)
    }
}

fn root(folder: &Path) -> PathBuf {
    folder.join("node")
}

/// Where clients look for a node's server that do not ask its Node.
const PORT: u16 = 10250;

/// A node that runs.
#[derive(Debug)]
pub(crate) struct Node {
    settings: Settings,
    running: Running,
}

impl Node {
    /// Starts it; it is not Ready yet.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(crate) fn start(settings: &Settings) -> Result<Self> {
        let root = settings.root();
        for folder in [&root, &settings.manifests(), &settings.folder.join("logs")] {
            fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        }
        let (out, err) = process::log_pair(&settings.log)?;
        let mut command = Command::new(&settings.binary);
        let mut flag = |name: &str, value: &str| {
            command.arg(format!("--{name}={value}"));
        };
        let shown = |path: &Path| path.display().to_string();
        flag("bootstrap-kubeconfig", &shown(&settings.bootstrap));
        flag("kubeconfig", &shown(&root.join("kubeconfig")));
        flag("cert-dir", &shown(&root.join("pki")));
        flag("root-dir", &shown(&root));
        flag("config", &shown(&settings.manifests()));
        flag("docker-endpoint", &format!("unix://{}", settings.docker.display()));
        flag("pod-logs-dir", &shown(&settings.folder.join("logs/pods")));
        flag("container-logs-dir", &shown(&settings.folder.join("logs/containers")));
        // The API server speaks only to a node whose certificate it can check.
        flag("rotate-server-certificates", "true");
        flag("client-ca-file", &shown(&settings.client_ca));
        flag("hostname-override", NAME);
        flag("cluster-domain", "cluster.local");
        // How full the disk is that this is tried on says nothing: neither pods nor images go for it.
        flag("eviction-hard", "memory.available<100Mi");
        flag("image-gc-high-threshold", "100");
        flag("port", &plane::port(PORT)?.to_string());
        if !settings.address.is_loopback() {
            flag("node-ip", &settings.address.to_string());
        }
        let mut whole = Command::new(&settings.binary);
        whole.arg("run").args(command.get_args()).stdout(out).stderr(err);
        let running = Running::start("longshore", &mut whole)?;
        fs::write(settings.folder.join("longshore.pid"), running.pid().to_string())?;
        Ok(Self { settings: settings.clone(), running })
    }

    /// Waits until the cluster has it as Ready.
    ///
    /// # Errors
    /// When it ended, or is not within two minutes.
    pub(crate) fn wait_ready(&mut self, kubectl: &Kubectl) -> Result<()> {
        let deadline = Instant::now() + READY;
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        loop {
            self.check()?;
            match kubectl.run(&["get", "node", NAME, "-o", path]) {
                Ok(ready) if ready.trim() == "True" => return Ok(()),
                said if Instant::now() > deadline => {
                    let text = fs::read_to_string(&self.settings.log).unwrap_or_default();
                    let log = self.settings.log.display();
                    bail!("{NAME} is not Ready ({said:?}); {log} ends:\n{}", say::tail(&text, 20))
                }
                _ => thread::sleep(Duration::from_millis(300)),
            }
            process::check_interrupted()?;
        }
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When it ended; the end of its log is in the message.
    pub(crate) fn check(&mut self) -> Result<()> {
        let Some(status) = self.running.try_wait()? else { return Ok(()) };
        let text = fs::read_to_string(&self.settings.log).unwrap_or_default();
        bail!("longshore ended ({status}); {} ends:\n{}", self.settings.log.display(), say::tail(&text, 20))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.running.stop(Duration::from_secs(20));
        if let Err(error) = sweep(&self.settings.folder, &self.settings.docker) {
            say!("not all that {NAME} made could be removed: {error:#}");
        }
    }
}

/// Removes what the node of a cluster's folder left: its containers and networks in Docker, mounts and cgroups.
///
/// # Errors
/// When Docker refuses, or a mount stays.
pub(crate) fn sweep(folder: &Path, docker: &Path) -> Result<()> {
    let root = root(folder);
    let id = fs::read_to_string(root.join("id")).unwrap_or_default();
    if !id.trim().is_empty() {
        let filters = format!("%7B%22label%22%3A%5B%22dev.longshore.root%3D{}%22%5D%7D", id.trim());
        docker::remove_containers(docker, &filters)?;
        let mut client = Client::new(docker, Duration::from_secs(30));
        let networks = client.get(&format!("/networks?filters={filters}"))?;
        for network in networks.as_array().into_iter().flatten().filter_map(|one| one["Id"].as_str()) {
            client.request("DELETE", &format!("/networks/{network}"), "", b"")?;
        }
        remove_rules(id.trim());
    }
    remove_cgroups(&root.join("pods"));
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mut points: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|point| Path::new(point).starts_with(folder))
        .collect();
    points.reverse();
    for point in points {
        let point = point.replace("\\040", " ");
        process::output("umount", Command::new("umount").arg(point), Duration::from_secs(20))?;
    }
    Ok(())
}

/// Removes the rules of the packet filter that the agent with that root ID made.
fn remove_rules(id: &str) {
    let mark = format!("longshore:{}:", id.get(..8).unwrap_or(id));
    for (table, chain) in [("nat", "POSTROUTING"), ("filter", "DOCKER-USER")] {
        let mut list = Command::new("iptables");
        let listed =
            process::output("iptables", list.args(["-w", "5", "-t", table, "-S", chain]), Duration::from_secs(10));
        let listed = listed.unwrap_or_default().replace('"', "");
        for rule in listed.lines().filter(|line| line.contains(&mark)).filter_map(|line| line.strip_prefix("-A ")) {
            let mut delete = Command::new("iptables");
            delete.args(["-w", "5", "-t", table, "-D"]).args(rule.split_whitespace());
            if let Err(error) = process::output("iptables", &mut delete, Duration::from_secs(10)) {
                say!("a rule of the packet filter stays: {error:#}");
            }
        }
    }
}

/// The empty cgroups of pods that have a folder in `pods`.
fn remove_cgroups(pods: &Path) {
    let uids: Vec<String> =
        fs::read_dir(pods).into_iter().flatten().flatten().map(|pod| pod.file_name().display().to_string()).collect();
    let mut folders: Vec<PathBuf> = vec!["/sys/fs/cgroup".into()];
    folders.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
    let mut next: Vec<PathBuf> =
        folders.iter().flat_map(|folder| [folder.join("kubepods"), folder.join("kubepods.slice")]).collect();
    while let Some(folder) = next.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
            let name = entry.file_name().display().to_string();
            if uids.iter().any(|uid| name.contains(uid) || name.contains(&uid.replace('-', "_"))) {
                let _ = fs::remove_dir(entry.path());
            } else {
                next.push(entry.path());
            }
        }
    }
}
