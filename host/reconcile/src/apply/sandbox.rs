//! Making and starting a pod's sandbox.

use std::sync::Arc;
use std::time::Duration;

use longshore_core::action::{Planned, Track};
use longshore_core::container::SandboxNetwork;
use longshore_core::event::EventType;
use longshore_core::network::attachment::{self, Attachment};
use longshore_core::observed::{Observation, Sandbox, SandboxState};
use longshore_core::pod::PodId;
use longshore_core::ports::events::EventSink;
use longshore_core::ports::network::{BridgeNetworks, NetworkPlugins, PluginError};
use longshore_core::ports::runtime::{ContainerRuntime, RuntimeError};
use longshore_core::{cgroup, dns, network, sandbox_config};
use serde_json::{Map, Value};

use super::{Step, act};
use crate::network::complete;
use crate::worker::Worker;

/// Starts the sandbox and makes a container at the same time. Says whether the sandbox runs, and whether the container
/// was made.
pub(super) async fn start_beside(worker: &mut Worker, start: &Planned, creation: &Track) -> (bool, bool) {
    let Some(id) = worker.observed.sandbox().map(|sandbox| sandbox.id.clone()) else { return (false, false) };
    let started = match Start::of(worker, &id) {
        Ok(start) => tokio::spawn(start.run()),
        Err(message) => return (matches!(sandbox_failed(worker, &message), Step::Done), false),
    };
    let mut made = true;
    for planned in creation {
        if !matches!(act(worker, planned).await, Step::Done) {
            made = false;
            break;
        }
    }
    let seen = match started.await {
        Ok(seen) => seen,
        Err(_) => Err(NotStarted::Failed("start sandbox: its task failed".to_owned())),
    };
    tracing::debug!(pod = %worker.pod.id, "{}: {}", start.action, start.why);
    (matches!(sandbox_started(worker, &id, seen).await, Step::Done), made)
}

pub(super) async fn create_sandbox(worker: &mut Worker, attempt: u32) -> Step {
    let mut config = match sandbox_config::build(&worker.pod, &worker.facts, attempt) {
        Ok(config) => config,
        Err(error) => return sandbox_failed(worker, &error.to_string()),
    };
    config.runtime = match worker.runtime().await {
        Ok(runtime) => runtime,
        Err(message) => return sandbox_failed(worker, &message),
    };
    if config.network != SandboxNetwork::Host {
        config.network = match worker.shared.network.for_sandbox().await {
            Ok(network) => network,
            Err(problem) => return network_failed(worker, &problem),
        };
    }
    if attempt > 0 {
        worker.event(
            None,
            EventType::Normal,
            "SandboxChanged",
            "Pod sandbox changed, it will be killed and re-created.",
        );
    }
    tell_of_names(worker);
    let is_runtimes = matches!(config.network, SandboxNetwork::Default | SandboxNetwork::Named(_));
    if is_runtimes && attachment::limits_bandwidth(&worker.pod) {
        let message = "the pod's annotations that limit its bandwidth have no effect on Docker's network: it takes a CNI \
                       plugin for that (--network-plugin=cni, and bandwidth in the network's list)";
        worker.event(None, EventType::Warning, "BandwidthIgnored", message);
    }
    leave_former_cgroups(worker).await;
    match worker.shared.ports.runtime.create_sandbox(&config).await {
        Ok(id) => {
            worker.observed.update(Observation::Sandbox(Sandbox {
                id,
                pod: worker.pod.id.clone(),
                attempt,
                hash: worker.pod.sandbox_hash.clone(),
                qos: Some(cgroup::qos(worker.pod.spec())),
                created_at: jiff::Timestamp::now(),
                state: SandboxState::Created,
                network: config.network,
                ips: Vec::new(),
                pid: None,
            }));
            Step::Done
        }
        Err(error) => sandbox_failed(worker, &error.to_string()),
    }
}

/// Takes away the cgroups of sandboxes that were made for another class of the pod: they are where nobody looks any more.
async fn leave_former_cgroups(worker: &Worker) {
    let now = cgroup::pod_cgroup(&worker.pod, &worker.facts);
    for qos in worker.observed.sandboxes.iter().filter_map(|former| former.qos).filter(|qos| *qos != now.qos) {
        let former = cgroup::PodCgroup { qos, ..now.clone() };
        if let Err(error) = worker.shared.ports.files.remove_cgroup(&former).await {
            tracing::warn!(pod = %worker.pod.id, "the cgroup of its former QoS class was not removed: {error}");
        }
    }
}

/// What of the names that the pod asks for it does not get. On a node that is alone nobody expects a cluster's DNS.
pub(super) fn tell_of_names(worker: &Worker) {
    let facts = &worker.facts;
    let missing = dns::falls_back_to_default(&worker.pod, facts).filter(|_| worker.shared.ports.api.is_some());
    if let Some(missing) = missing {
        worker.shared.ports.events.record_node(EventType::Warning, "MissingClusterDNS", missing);
        let message = format!("pod: \"{}\". {missing}", worker.pod.id.in_messages());
        worker.event(None, EventType::Warning, "MissingClusterDNS", &message);
    }
    for message in dns::left_out(&worker.pod, facts) {
        worker.event(None, EventType::Warning, "DNSConfigForming", &message);
    }
}

fn sandbox_failed(worker: &mut Worker, message: &str) -> Step {
    let text = format!("Failed to create pod sandbox: {message}");
    worker.event(None, EventType::Warning, "FailedCreatePodSandBox", &text);
    worker.failed("pod", "ContainerCreating", &text);
    Step::Waits
}

/// The pods' network takes no pods: in the kubelet's words.
fn network_failed(worker: &mut Worker, problem: &str) -> Step {
    let text = format!("network is not ready: {}", network::not_ready(problem));
    worker.event(None, EventType::Warning, "NetworkNotReady", &text);
    worker.failed("pod", "ContainerCreating", &text);
    Step::Waits
}

/// So long a pod's start waits until the pod reaches itself.
const HAIRPIN: Duration = Duration::from_secs(5);

/// All that starting a sandbox needs, so that it can go on beside other work.
struct Start {
    runtime: Arc<dyn ContainerRuntime>,
    plugins: Arc<dyn NetworkPlugins>,
    /// Where the pod is to reach itself on one of the runtime's networks.
    hairpin: Option<Arc<dyn BridgeNetworks>>,
    id: String,
    pod: PodId,
    /// For plugins, by capability.
    capabilities: Map<String, Value>,
    /// Sandboxes that the pod had before and that do not run.
    former: Vec<String>,
}

impl Start {
    fn of(worker: &Worker, id: &str) -> Result<Start, String> {
        let shared = &worker.shared;
        let former =
            worker.observed.sandboxes.iter().filter(|seen| seen.id != id && seen.state == SandboxState::Exited);
        let mut seen = worker.observed.sandboxes.iter();
        // Only plugins read what may be wrong in there.
        let capabilities = match seen.any(|seen| seen.id == id && seen.network == SandboxNetwork::Detached) {
            true => capabilities(worker)?,
            false => Map::new(),
        };
        Ok(Start {
            runtime: shared.ports.runtime.clone(),
            plugins: shared.ports.plugins.clone(),
            hairpin: shared.network.has_hairpin().then(|| shared.ports.bridges.clone()),
            id: id.to_owned(),
            pod: worker.pod.id.clone(),
            capabilities,
            former: former.map(|seen| seen.id.clone()).collect(),
        })
    }

    /// Starts the sandbox, and has it attached where plugins make the network.
    async fn run(self) -> Result<Option<Observation>, NotStarted> {
        self.runtime.start(&self.id).await?;
        let seen = self.runtime.inspect(&self.id).await?;
        let Some(mut seen) = seen else { return Ok(None) };
        complete(&*self.plugins, &mut seen);
        if let (Some(bridges), Observation::Sandbox(sandbox)) = (&self.hairpin, &seen) {
            let turned = tokio::time::timeout(HAIRPIN, bridges.hairpin(&sandbox.network)).await;
            if let Err(error) = turned.unwrap_or_else(|_| Err("the container runtime does not answer".to_owned())) {
                // The network's own looks try again, and tell of it.
                tracing::debug!(pod = %self.pod, "it does not reach itself yet: {error}");
            }
        }
        if let Observation::Sandbox(sandbox) = &mut seen
            && let Some(pid) = sandbox.pid.filter(|_| sandbox.is_running() && !sandbox.is_up())
        {
            // Whatever still leads the pod's ports to a sandbox of its that is dead goes first.
            for former in &self.former {
                if let Err(error) = self.plugins.detach(former, None).await {
                    tracing::warn!(pod = %self.pod, sandbox = former, "a dead sandbox is still on the network: {error}");
                }
            }
            let attachment = Attachment {
                pod: self.pod.clone(),
                sandbox_id: self.id.clone(),
                pid,
                capabilities: self.capabilities.clone(),
            };
            sandbox.ips = self.plugins.attach(&attachment).await.map_err(|error| self.not_set_up(&error))?;
        }
        Ok(Some(seen))
    }

    /// In the kubelet's words.
    fn not_set_up(&self, error: &PluginError) -> NotStarted {
        if let PluginError::NotReady { message } = error {
            return NotStarted::NoNetwork(message.clone());
        }
        let PodId { namespace, name, .. } = &self.pod;
        NotStarted::Failed(format!(
            "failed to set up sandbox container {:?} network for pod {name:?}: networkPlugin cni failed to set up pod \
             \"{name}_{namespace}\" network: {error}",
            self.id
        ))
    }
}

/// What plugins are told of the pod, by capability.
fn capabilities(worker: &Worker) -> Result<Map<String, Value>, String> {
    let ports = sandbox_config::ports(&worker.pod).map_err(|error| error.to_string())?;
    let cidrs = worker.shared.network.pod_cidrs();
    attachment::capabilities(&worker.pod, &ports, &cidrs).map_err(|error| error.to_string())
}

/// Why a sandbox is not up.
enum NotStarted {
    /// The pods' network takes no pods.
    NoNetwork(String),
    /// Something else.
    Failed(String),
}

impl From<RuntimeError> for NotStarted {
    fn from(error: RuntimeError) -> Self {
        NotStarted::Failed(error.to_string())
    }
}

/// Takes a sandbox off the network that plugins made. A failure is told, and tried again when the sandbox is gone
/// ([`crate::network`]): it does not keep the pod.
pub(super) async fn detach(worker: &mut Worker, id: &str) {
    let Some(sandbox) = worker.observed.sandboxes.iter().find(|sandbox| sandbox.id == id) else { return };
    if sandbox.network != SandboxNetwork::Detached {
        return;
    }
    let pid = sandbox.pid.filter(|_| sandbox.is_running());
    if let Err(error) = worker.shared.ports.plugins.detach(id, pid).await {
        let PodId { namespace, name, .. } = &worker.pod.id;
        let text = format!("networkPlugin cni failed to teardown pod \"{name}_{namespace}\" network: {error}");
        worker.event(None, EventType::Warning, "FailedKillPod", &text);
    }
}

pub(super) async fn start_sandbox(worker: &mut Worker) -> Step {
    let Some(id) = worker.observed.sandbox().map(|sandbox| sandbox.id.clone()) else { return Step::Waits };
    let seen = match Start::of(worker, &id) {
        Ok(start) => start.run().await,
        Err(message) => return sandbox_failed(worker, &message),
    };
    sandbox_started(worker, &id, seen).await
}

async fn sandbox_started(worker: &mut Worker, id: &str, seen: Result<Option<Observation>, NotStarted>) -> Step {
    match seen {
        Ok(Some(seen)) => worker.observed.update(seen),
        Ok(None) => {
            worker.observed.forget(id);
            return sandbox_failed(worker, "it went away while it was started");
        }
        Err(error) => {
            worker.shared.network.doubted();
            worker.look_at(id).await;
            return match error {
                NotStarted::NoNetwork(problem) => network_failed(worker, &problem),
                NotStarted::Failed(message) => sandbox_failed(worker, &message),
            };
        }
    }
    worker.record.backoffs.remove("pod");
    let hosts = dns::hosts_file(&worker.pod, &worker.facts, &worker.pod_ips());
    match worker.write_hosts(&hosts).await {
        Ok(()) => Step::Done,
        Err(error) => sandbox_failed(worker, &error.to_string()),
    }
}
