//! From the daemon's inspects to observations, by dockershim's rules
//! (`pkg/kubelet/dockershim/docker_container.go`, `ContainerStatus`). It must not judge what it sees.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;
use longshore_core::container::{Resources, SandboxNetwork};
use longshore_core::labels;
use longshore_core::observed::{Container, ContainerState, Exit, Observation, Sandbox, SandboxState};
use longshore_core::ports::runtime::RuntimeError;

use crate::connection::{CALL, encode, filters};
use crate::docker::Docker;
use crate::fault::Fault;
use crate::{names, wire};

/// The exit code of SIGKILL.
const KILLED: i32 = 137;
/// So long after a container's end the daemon may still tell that there was no memory, and so long each look waits for it.
const RECENT: Duration = Duration::from_secs(3);
const MEMORY_EVENT: Duration = Duration::from_secs(2);
/// How long one container may keep those waiting who look at many: the daemon does not answer for one whose shim hangs.
const LOOK: Duration = Duration::from_secs(20);

impl Docker {
    /// A fresh look at one thing of ours.
    pub(crate) async fn look(&self, id: &str) -> Result<Option<Observation>, RuntimeError> {
        self.look_within(CALL, id).await
    }

    async fn look_within(&self, limit: Duration, id: &str) -> Result<Option<Observation>, RuntimeError> {
        if !names::is_container(id) {
            return Ok(None);
        }
        let inspect: wire::Inspect = match self.connection().ask(limit, &format!("/containers/{id}/json")).await {
            Ok(inspect) => inspect,
            Err(fault) if fault.is_absent() => {
                self.known().forget(id);
                return Ok(None);
            }
            Err(fault) => return Err(fault.during("inspect container")),
        };
        if inspect.id.is_none() || inspect.config.is_none() {
            // Not to be taken for "not ours": who looks would think that it is gone.
            return Err(Fault::Nonsense("an inspect without an ID".to_owned()).during("inspect container"));
        }
        if !is_ours(&inspect, self.root_id()) {
            return Ok(None);
        }
        let image_id = match inspect.image.as_deref() {
            Some(image) if !is_sandbox(&inspect) => self.image_id(image).await?,
            _ => String::new(),
        };
        let mut look = observation(inspect, self.root_id(), image_id);
        if let Some(Observation::Container(container)) = &mut look {
            match &mut container.state {
                ContainerState::Running { pid, .. } => container.user = crate::user::of(*pid, &container.id),
                ContainerState::Exited(exit) if self.was_out_of_memory(id, exit, container.resources).await => {
                    exit.reason = Exit::OUT_OF_MEMORY.to_owned();
                }
                _ => {}
            }
        }
        if let Some(look) = &look {
            self.known().add(look.id());
        }
        Ok(look)
    }

    /// Whether a container ended for want of memory although the daemon's word for that is missing: it is told of the kill
    /// and of the end by two ways, and one as old as 20.10 drops the kill when the end comes first. Waited for only where the
    /// end looks like it.
    async fn was_out_of_memory(&self, id: &str, exit: &Exit, resources: Option<Resources>) -> bool {
        let is_limited = resources.is_some_and(|resources| resources.memory > 0);
        let is_likely = exit.code == KILLED && is_limited && !self.known().is_stopped(id);
        let since = Timestamp::now().duration_since(exit.finished_at).unsigned_abs();
        let wait = if is_likely && since < RECENT { MEMORY_EVENT } else { Duration::ZERO };
        self.known().is_out_of_memory(id, wait).await
    }

    /// All of ours, or of one of our pods: one list, and an inspect of each that is not known to be unchanged.
    pub(crate) async fn look_at_all(&self, pod: Option<&str>) -> Result<Vec<Observation>, RuntimeError> {
        let mut wanted = vec![format!("{}={}", labels::ROOT, self.root_id())];
        wanted.extend(pod.map(|uid| format!("{}={uid}", labels::POD_UID)));
        let path = format!("/containers/json?all=true&filters={}", filters(&[("label", &wanted)]));
        let listed: Vec<wire::Summary> =
            self.connection().ask_list(CALL, &path).await.map_err(|fault| fault.during("list containers"))?;
        if pod.is_none() {
            let ids: HashSet<String> = listed.iter().filter_map(|summary| summary.id.clone()).collect();
            self.known().keep_listed(&ids);
        }
        stream::iter(listed)
            .map(|summary| self.look_at_listed(summary, pod.is_none()))
            .buffer_unordered(self.inspects())
            .try_filter_map(|look| async move { Ok(look) })
            .try_collect()
            .await
    }

    /// With `others`, what fails for this one alone is no error.
    async fn look_at_listed(&self, summary: wire::Summary, others: bool) -> Result<Option<Observation>, RuntimeError> {
        let (Some(id), state) = (summary.id, summary.state.unwrap_or_default()) else { return Ok(None) };
        if let Some(look) = self.known().look(&id, &state) {
            return Ok(Some(look));
        }
        let epoch = self.known().epoch();
        let look = match self.look_within(LOOK, &id).await {
            Err(error @ (RuntimeError::Failed { .. } | RuntimeError::Timeout { .. })) if others => {
                let labels = summary.labels.as_ref().and_then(|labels| labels::parse(labels, self.root_id()));
                let Some(pod) = labels.map(|parsed| parsed.pod) else { return Err(error) };
                tracing::debug!(%pod, id, "one container cannot be looked at: {error}");
                return Ok(Some(Observation::Unseen { id, pod }));
            }
            look => look?,
        };
        if let Some(look) = &look {
            self.known().keep(epoch, state, look);
        }
        Ok(look)
    }

    /// The kubelet's `imageID` of an image: `docker-pullable://repo@sha256:…`, or `docker://sha256:…` when it came
    /// from no registry or is gone.
    async fn image_id(&self, image: &str) -> Result<String, RuntimeError> {
        if let Some(known) = self.known().image(image) {
            return Ok(known);
        }
        let path = format!("/images/{}/json", encode(image));
        let found: Result<wire::Image, _> = self.connection().ask(CALL, &path).await;
        let digest = match found {
            Ok(found) => found.repo_digests.unwrap_or_default().into_iter().next(),
            // Removed by force under its container.
            Err(fault) if fault.status().is_some() => None,
            Err(fault) => return Err(fault.during("inspect image")),
        };
        let image_id = match digest {
            Some(digest) => format!("docker-pullable://{digest}"),
            None => format!("docker://{image}"),
        };
        self.known().add_image(image, &image_id);
        Ok(image_id)
    }
}

/// Whether the agent of `root` made what was inspected. Its label alone does not say so: what is run from an image that
/// somebody committed of one of ours has it too. But it is not made as ours are: a container joins its sandbox's network, and
/// a sandbox has an IPC namespace that others may join, or the node's.
pub(crate) fn is_ours(inspect: &wire::Inspect, root: &str) -> bool {
    if label(inspect, labels::ROOT) != Some(root) {
        return false;
    }
    let Some(host) = &inspect.host_config else { return false };
    if is_sandbox(inspect) {
        return matches!(host.ipc_mode.as_deref(), Some("shareable" | "host"));
    }
    let joined = host.network_mode.as_deref().and_then(|mode| mode.strip_prefix("container:"));
    joined.is_some() && joined == label(inspect, labels::SANDBOX_ID)
}

fn is_sandbox(inspect: &wire::Inspect) -> bool {
    label(inspect, labels::TYPE) == Some("podsandbox")
}

fn label<'a>(inspect: &'a wire::Inspect, key: &str) -> Option<&'a str> {
    inspect.config.as_ref()?.labels.as_ref()?.get(key).map(String::as_str)
}

/// What an inspect says of a thing of ours; `None` when it is not ours or has no ID.
pub(crate) fn observation(inspect: wire::Inspect, root: &str, image_id: String) -> Option<Observation> {
    let parsed = labels::parse(inspect.config.as_ref()?.labels.as_ref()?, root)?;
    let id = inspect.id?;
    let state = inspect.state.unwrap_or_default();
    let created_at = inspect.created.as_deref().and_then(time).unwrap_or(Timestamp::UNIX_EPOCH);
    if parsed.is_sandbox {
        let running = state.running.unwrap_or_default();
        return Some(Observation::Sandbox(Sandbox {
            id,
            pod: parsed.pod,
            attempt: parsed.attempt,
            hash: parsed.hash,
            qos: parsed.qos,
            created_at,
            state: match container_state(&state, created_at) {
                ContainerState::Running { .. } => SandboxState::Running,
                ContainerState::Exited(_) => SandboxState::Exited,
                ContainerState::Created => SandboxState::Created,
            },
            network: sandbox_network(inspect.host_config.unwrap_or_default().network_mode.as_deref()),
            ips: if running { addresses(inspect.network_settings.unwrap_or_default()) } else { Vec::new() },
            pid: pid(&state),
        }));
    }
    Some(Observation::Container(Container {
        id,
        pod: parsed.pod,
        name: parsed.container,
        kind: parsed.kind,
        attempt: parsed.attempt,
        hash: parsed.hash,
        sandbox_id: parsed.sandbox_id,
        image: parsed.image,
        image_id,
        volume_images: parsed.images,
        recursive_read_only: parsed.recursive,
        created_at,
        state: container_state(&state, created_at),
        runtime_log: inspect.log_path.filter(|path| !path.is_empty()),
        termination_message_file: parsed.termination_file,
        grace_seconds: parsed.grace_seconds,
        resources: inspect.host_config.map(|host| Resources {
            cpu_shares: host.cpu_shares.unwrap_or_default(),
            cpu_quota: host.cpu_quota.unwrap_or_default(),
            cpu_period: host.cpu_period.unwrap_or_default(),
            memory: host.memory.unwrap_or_default(),
        }),
        user: None,
    }))
}

fn container_state(state: &wire::State, created_at: Timestamp) -> ContainerState {
    let started_at = state.started_at.as_deref().and_then(time);
    if state.running.unwrap_or_default() {
        let pid = pid(state).unwrap_or_default();
        return ContainerState::Running { started_at: started_at.unwrap_or(created_at), pid };
    }
    let finished_at = state.finished_at.as_deref().and_then(time);
    let code = state.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or_default();
    let message = state.error.clone().unwrap_or_default();
    let (reason, code) = match finished_at {
        Some(_) if state.oom_killed.unwrap_or_default() => (Exit::OUT_OF_MEMORY, code),
        Some(_) if code == 0 => ("Completed", 0),
        Some(_) => ("Error", code),
        // Docker leaves what it could not start as `created`, with an exit code.
        None if code != 0 => ("ContainerCannotRun", code),
        // Its removal failed half-way; it will never run.
        None if state.dead.unwrap_or_default() => ("ContainerStatusUnknown", 137),
        None => return ContainerState::Created,
    };
    ContainerState::Exited(Exit {
        code,
        reason: reason.to_owned(),
        message: crate::fault::shorten(&message),
        // One that never ran, as the kubelet's shims for Docker have it: it has no time but that.
        started_at: started_at.or_else(|| finished_at.is_none().then_some(created_at)),
        finished_at: finished_at.unwrap_or(created_at),
    })
}

fn pid(state: &wire::State) -> Option<u32> {
    let pid = state.pid.and_then(|pid| u32::try_from(pid).ok())?;
    (pid != 0 && state.running.unwrap_or_default()).then_some(pid)
}

/// The daemon's word for the network that a sandbox was made for.
fn sandbox_network(mode: Option<&str>) -> SandboxNetwork {
    match mode.unwrap_or_default() {
        "host" => SandboxNetwork::Host,
        "none" => SandboxNetwork::Detached,
        "" | "default" | "bridge" => SandboxNetwork::Default,
        name => SandboxNetwork::Named(name.to_owned()),
    }
}

/// IPv4 first, then global IPv6.
fn addresses(settings: wire::NetworkSettings) -> Vec<IpAddr> {
    let networks: Vec<wire::Network> = settings.networks.unwrap_or_default().into_values().flatten().collect();
    let parse = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<IpAddr>().ok());
    let v4 = networks.iter().filter_map(|network| parse(&network.ip_address));
    let v6 = networks.iter().filter_map(|network| parse(&network.global_ipv6_address));
    v4.chain(v6).collect()
}

/// A time of Docker's; its zero (`0001-01-01T00:00:00Z`) and what is no time are `None`.
fn time(text: &str) -> Option<Timestamp> {
    const ZERO: i64 = -62_135_596_800;
    text.parse::<Timestamp>().ok().filter(|time| time.as_second() > ZERO)
}

#[cfg(test)]
#[path = "observe/tests.rs"]
mod tests;
