//! Making, starting, stopping and removing, with the names that are taken and the slots that bound it. It must not
//! touch what our agent did not make.

use std::pin::pin;
use std::time::Duration;

use bollard::models::{ContainerCreateBody, ContainerUpdateBody};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptionsBuilder, RemoveContainerOptionsBuilder,
    StopContainerOptionsBuilder,
};
use longshore_core::container::{ContainerConfig, Resources, SandboxConfig};
use longshore_core::labels;
use longshore_core::ports::runtime::RuntimeError;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout};

use crate::connection::CALL;
use crate::create::{self, Dialect};
use crate::docker::Docker;
use crate::fault::Fault;
use crate::info::RECURSIVE;
use crate::{names, observe, wire};

/// What a stop may take beyond the grace period: the kill and its bookkeeping.
const AFTER_GRACE: Duration = Duration::from_secs(30);
/// How often a name that is taken is seen to: once by removing what has it, then by other names.
const NAMES: u32 = 3;
/// How long a stop counts as work that Docker is busy with: a process that ends when it is asked has ended by then. Many
/// at once disturb each other, so that all of them take longer than by turns.
const STOP_TURN: Duration = Duration::from_millis(200);
/// How long any other call does: what takes longer waits for something else than the machine.
const TURN: Duration = Duration::from_secs(10);
/// A stop begins without a turn after this part of its grace period, and after the longest at the latest: whoever is to
/// end must be told in time.
const STOP_WAITS: u32 = 10;
const STOP_WAITS_MOST: Duration = Duration::from_secs(1);
/// Between two tries to stop over a connection that breaks.
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

impl Docker {
    pub(crate) async fn make_sandbox(&self, config: &SandboxConfig) -> Result<String, RuntimeError> {
        let name = labels::sandbox_name(&config.pod, config.attempt);
        let body = create::sandbox(config, self.pause_image(), self.dialect().await?);
        self.make("create sandbox", &name, body, true).await
    }

    pub(crate) async fn make_container(&self, config: &ContainerConfig) -> Result<String, RuntimeError> {
        let name = labels::container_name(&config.pod, &config.name, config.attempt);
        let body = create::container(config, self.dialect().await?);
        self.make("create container", &name, body, false).await
    }

    async fn dialect(&self) -> Result<Dialect, RuntimeError> {
        let session = self.connection().session().await.map_err(|fault| fault.during("ask for the version"))?;
        Ok(Dialect {
            recursive_read_only: session.api >= RECURSIVE,
            makes_sources: session.api >= (1, 42),
            logs: self.log_driver().await?,
        })
    }

    /// One call when all is well. A missing pause image is brought in and a name that is taken is seen to, once each.
    async fn make(
        &self,
        operation: &'static str,
        name: &str,
        body: ContainerCreateBody,
        is_sandbox: bool,
    ) -> Result<String, RuntimeError> {
        let mut name = name.to_owned();
        let (mut may_bring, mut names_left) = (is_sandbox, NAMES);
        loop {
            let fault = match self.create(&name, &body).await {
                Ok(id) => {
                    self.known().add(&id);
                    return Ok(id);
                }
                Err(fault) => fault,
            };
            match &fault {
                Fault::Answer { status: 404, message } if may_bring && says_no_image(message) => {
                    may_bring = false;
                    self.bring_pause_image().await?;
                }
                Fault::Answer { status: 404, message } if says_no_image(message) => {
                    let what = format!("image {}", body.image.as_deref().unwrap_or_default());
                    return Err(RuntimeError::NotFound { what });
                }
                Fault::Answer { status: 409, message } if names_left > 0 && names::says_name_is_taken(message) => {
                    let is_first = names_left == NAMES;
                    names_left -= 1;
                    if !(is_first && self.clear_name(&name).await?) {
                        let other = names::randomized(&name);
                        tracing::warn!(%name, %other, "the name is taken by something else, another one is used");
                        name = other;
                    }
                }
                _ => return Err(fault.during(operation)),
            }
        }
    }

    async fn create(&self, name: &str, body: &ContainerCreateBody) -> Result<String, Fault> {
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        let creation = self.connection().call(CALL, |docker| {
            let (options, body) = (options.clone(), body.clone());
            async move { docker.create_container(Some(options), body).await }
        });
        let made = self.in_turn(creation).await?;
        for warning in made.warnings {
            tracing::debug!(container = name, warning, "Docker warned");
        }
        if made.id.is_empty() { Err(Fault::Nonsense("a container without an ID".to_owned())) } else { Ok(made.id) }
    }

    /// Removes what has a name that we want, if it is ours and dead. Returns whether the name may be free now.
    async fn clear_name(&self, name: &str) -> Result<bool, RuntimeError> {
        let path = format!("/containers/{name}/json");
        let holder: wire::Inspect = match self.connection().ask(CALL, &path).await {
            Ok(holder) => holder,
            // Docker may hold a name for a container that is no more (moby#21266): only another name helps. It may
            // also have gone just now; then the other name does no harm.
            Err(fault) if fault.is_absent() => return Ok(false),
            Err(fault) => return Err(fault.during("inspect container")),
        };
        let is_ours = observe::is_ours(&holder, self.root_id());
        let runs = holder.state.and_then(|state| state.running).unwrap_or_default();
        let Some(id) = holder.id.filter(|_| is_ours && !runs) else { return Ok(false) };
        tracing::info!(container = name, id, "removing a dead container that has the name");
        self.remove_any(&id).await?;
        Ok(true)
    }

    pub(crate) async fn start_ours(&self, id: &str) -> Result<(), RuntimeError> {
        if !self.is_ours(id).await? {
            return Err(absent(id));
        }
        self.start_any(id).await.map_err(|fault| match fault {
            Fault::Answer { status: 404, message } if message.contains("No such container") => absent(id),
            fault => fault.during("start container"),
        })
    }

    pub(crate) async fn start_any(&self, id: &str) -> Result<(), Fault> {
        let start = self.connection().call(CALL, |docker| async move { docker.start_container(id, None).await });
        let started = self.in_turn(start).await;
        // Events tell the same, but later than a caller that looks right after this.
        self.known().stale(id);
        started
    }

    pub(crate) async fn stop_ours(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        if self.is_ours(id).await? { self.stop_any(id, grace).await } else { Ok(()) }
    }

    /// Asks, waits, kills. The wait holds no slot for longer than a turn, and waiting for that turn is not charged to the
    /// grace period. A connection that breaks meanwhile is made again for what is left of it; whatever happens, the kill
    /// comes at its end.
    pub(crate) async fn stop_any(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let begin = Instant::now();
        self.known().stopping(id);
        loop {
            let left = grace.saturating_sub(begin.elapsed()).as_secs_f64().ceil();
            if left < 1.0 {
                break;
            }
            let seconds = left.min(f64::from(i32::MAX)) as i32;
            let options = StopContainerOptionsBuilder::default().t(seconds).build();
            let limit = Duration::from_secs_f64(f64::from(seconds)) + AFTER_GRACE;
            let mut stopping = pin!(self.connection().call(limit, |docker| {
                let options = options.clone();
                async move { docker.stop_container(id, Some(options)).await }
            }));
            let at_once = {
                let waits = (grace / STOP_WAITS).min(STOP_WAITS_MOST);
                let _slot = timeout(waits, self.slot()).await;
                timeout(STOP_TURN, &mut stopping).await
            };
            let stopped = match at_once {
                Ok(stopped) => stopped,
                Err(_) => stopping.await,
            };
            self.known().stale(id);
            match stopped {
                Ok(()) => return Ok(()),
                Err(fault) if fault.is_absent() => return Ok(()),
                Err(Fault::Unreachable { .. }) => tokio::time::sleep(BETWEEN_TRIES).await,
                Err(fault) => {
                    tracing::warn!(id, %fault, "Docker could not stop the container, it is killed");
                    break;
                }
            }
        }
        self.kill_any(id).await
    }

    /// Kills and waits for the end, which Docker does by itself for SIGKILL.
    async fn kill_any(&self, id: &str) -> Result<(), RuntimeError> {
        let kill = || async {
            let options = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
            let killed = self
                .connection()
                .call(CALL, |docker| {
                    let options = options.clone();
                    async move { docker.kill_container(id, Some(options)).await }
                })
                .await;
            self.known().stale(id);
            match killed {
                // 409, and 500 in old ones: it does not run.
                Err(Fault::Answer { message, .. }) if message.contains("is not running") => Ok(()),
                Err(fault) if fault.is_absent() => Ok(()),
                other => other,
            }
        };
        let Err(first) = kill().await else { return Ok(()) };
        tracing::debug!(id, fault = %first, "killing a container failed, trying again");
        // A frozen process takes no signal before it is thawed.
        let _ = self.connection().call(CALL, |docker| async move { docker.unpause_container(id).await }).await;
        tokio::time::sleep(BETWEEN_TRIES).await;
        kill().await.map_err(|fault| fault.during("kill container"))
    }

    /// Swap is held to the memory limit, as when a container is made: Docker refuses a limit above the one for both. A quota
    /// of 0 becomes -1, Docker's word for none; what else is 0 Docker leaves as it is: memory has no such word.
    pub(crate) async fn update_ours(&self, id: &str, resources: &Resources) -> Result<(), RuntimeError> {
        if !self.is_ours(id).await? {
            return Err(absent(id));
        }
        let unless_zero = |value: i64| (value != 0).then_some(value);
        let body = ContainerUpdateBody {
            cpu_shares: unless_zero(resources.cpu_shares),
            cpu_quota: Some(if resources.cpu_quota > 0 { resources.cpu_quota } else { -1 }),
            cpu_period: unless_zero(resources.cpu_period),
            memory: unless_zero(resources.memory),
            memory_swap: unless_zero(resources.memory),
            ..Default::default()
        };
        let updated = self
            .connection()
            .call(CALL, |docker| {
                let body = body.clone();
                async move { docker.update_container(id, body).await }
            })
            .await;
        self.known().stale(id);
        match updated {
            Ok(()) => Ok(()),
            Err(fault) if fault.is_absent() => Err(absent(id)),
            Err(fault) => Err(fault.during("update container")),
        }
    }

    pub(crate) async fn remove_ours(&self, id: &str) -> Result<(), RuntimeError> {
        if self.is_ours(id).await? { self.remove_any(id).await } else { Ok(()) }
    }

    pub(crate) async fn remove_any(&self, id: &str) -> Result<(), RuntimeError> {
        let options = RemoveContainerOptionsBuilder::default().v(true).build();
        let removal = self.connection().call(CALL, |docker| {
            let options = options.clone();
            async move { docker.remove_container(id, Some(options)).await }
        });
        match self.in_turn(removal).await {
            Ok(()) => self.known().forget(id),
            Err(fault) if fault.is_absent() => self.known().forget(id),
            Err(Fault::Answer { status: 409, message }) if message.contains("already in progress") => {}
            Err(fault) => return Err(fault.during("remove container")),
        }
        Ok(())
    }

    /// Whether an ID is of a thing of ours. Asks the daemon only about what was not seen before.
    pub(crate) async fn is_ours(&self, id: &str) -> Result<bool, RuntimeError> {
        Ok(self.known().is_ours(id) || self.look(id).await?.is_some())
    }

    /// A heavy call, when it is its turn. One that hangs, over a dead network mount say, keeps nobody else from theirs.
    async fn in_turn<T>(&self, call: impl Future<Output = T>) -> T {
        let slot = self.slot().await;
        let mut call = pin!(call);
        match timeout(TURN, &mut call).await {
            Ok(done) => done,
            Err(_) => {
                drop(slot);
                call.await
            }
        }
    }

    async fn slot(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.heavy().acquire().await.ok()
    }
}

fn absent(id: &str) -> RuntimeError {
    RuntimeError::NotFound { what: format!("container {id}") }
}

/// Whether a 404 of a create is about the image, and not about the sandbox.
pub(crate) fn says_no_image(message: &str) -> bool {
    message.to_ascii_lowercase().contains("no such image")
}
