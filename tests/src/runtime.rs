//! A container runtime in memory: what is started runs until it is stopped or told to end.

mod images;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use jiff::Timestamp;
use longshore_core::cgroup::Qos;
use longshore_core::cluster::node_status::NodeImage;
use longshore_core::container::{ContainerConfig, Mount, Resources, SandboxConfig, SandboxNetwork};
use longshore_core::labels;
use longshore_core::node::CgroupDriver;
use longshore_core::observed::{Container, ContainerState, Exit, Observation, Sandbox, SandboxState};
use longshore_core::ports::exec::{ContainerExec, ExecError, ExecOutput, ExecRequest};
use longshore_core::ports::runtime::{
    ContainerRuntime, ForeignContainer, Image, ImageFiles, LogChunk, LogOptions, PullError, PullProgress,
    RegistryCredentials, RuntimeChange, RuntimeError, RuntimeEvent, RuntimeInfo, StoredImage,
};
use tokio::sync::broadcast;

use self::images::{image, image_of};

/// A call of the runtime, by the port's name of it.
pub type Call = &'static str;

#[derive(Debug, Default)]
struct World {
    things: BTreeMap<String, Observation>,
    images: BTreeSet<String>,
    layers: BTreeMap<String, u64>,
    /// Images are not mounted by the runtime, as by old ones.
    mounts_no_images: bool,
    /// What the containers that were made mount, as they were asked for, by container ID.
    mounts: BTreeMap<String, Vec<Mount>>,
    pullable: BTreeSet<String>,
    serial: u32,
    calls: HashMap<Call, usize>,
    /// Passwords of images that need one.
    passwords: BTreeMap<String, String>,
    /// How many more times a call fails.
    failures: HashMap<Call, usize>,
    foreign: Vec<ForeignContainer>,
    /// Containers that were told to stop: UID of the pod, and the grace period.
    stops: Vec<(String, Duration)>,
    /// Commands in containers and ends of them, in order.
    story: Vec<String>,
    /// Names of containers that do not end before they are killed.
    deaf: BTreeSet<String>,
    /// IDs of those that cannot be looked at.
    sick: BTreeSet<String>,
    /// What commands say that run in a container, by its name; success unless told.
    exits: BTreeMap<String, i32>,
    /// What it says that it is, once it was told.
    info: Option<RuntimeInfo>,
}

/// The runtime.
#[derive(Debug)]
pub struct FakeRuntime {
    world: Mutex<World>,
    events: broadcast::Sender<RuntimeEvent>,
    /// Events are dropped in place of being sent, as a stream that broke would.
    pub deaf: std::sync::atomic::AtomicBool,
    /// Whether it leaves who asks for the list of images without an answer.
    pub hides_images: std::sync::atomic::AtomicBool,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        FakeRuntime {
            world: Mutex::default(),
            events: broadcast::channel(4096).0,
            deaf: false.into(),
            hides_images: false.into(),
        }
    }
}

/// What a runtime of that version says that has those runtimes.
#[must_use]
pub fn info(version: &str, runtimes: &[&str]) -> RuntimeInfo {
    RuntimeInfo {
        version: version.to_owned(),
        api_version: "1.41".to_owned(),
        cgroup_driver: CgroupDriver::Cgroupfs,
        cgroup_v2: true,
        apparmor: false,
        selinux: false,
        runtimes: runtimes.iter().map(|&name| name.to_owned()).collect(),
        recursive_read_only: false,
        min_oom_score_adj: -1000,
        cpus: 4,
        memory: 8 << 30,
        data_root: None,
    }
}

impl FakeRuntime {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a container mounts.
    pub fn mounts(&self, id: &str) -> Vec<Mount> {
        self.world().mounts.get(id).cloned().unwrap_or_default()
    }

    /// Lets a call fail the next `times`.
    pub fn fail(&self, call: Call, times: usize) {
        self.world().failures.insert(call, times);
    }

    /// How often a call was made.
    pub fn calls(&self, call: Call) -> usize {
        self.world().calls.get(call).copied().unwrap_or(0)
    }

    /// Running containers that were told to stop, in order: the pod's UID, and seconds of grace.
    pub fn stops(&self) -> Vec<(String, u64)> {
        self.world().stops.iter().map(|(uid, grace)| (uid.clone(), grace.as_secs())).collect()
    }

    /// Commands that ran in containers, as `exec NAME`, and containers that were told to stop, as `stop NAME`, in
    /// order.
    pub fn story(&self) -> Vec<String> {
        self.world().story.clone()
    }

    /// Containers of that name end only when their grace period is over.
    pub fn is_deaf(&self, name: &str) {
        self.world().deaf.insert(name.to_owned());
    }

    /// Commands in containers of that name exit with that code.
    pub fn commands_exit(&self, name: &str, code: i32) {
        self.world().exits.insert(name.to_owned(), code);
    }

    /// Puts a container of another agent there.
    pub fn add_foreign(&self, foreign: ForeignContainer) {
        self.world().foreign.push(foreign);
    }

    /// Takes other agents' containers away.
    pub fn remove_foreign(&self) {
        self.world().foreign.clear();
    }

    /// Everything that exists.
    pub fn things(&self) -> Vec<Observation> {
        self.world().things.values().cloned().collect()
    }

    /// The newest container of that name of a pod.
    pub fn container(&self, uid: &str, name: &str) -> Option<Container> {
        let world = self.world();
        let containers = world.things.values().filter_map(|thing| match thing {
            Observation::Container(container) if container.pod.uid == uid && container.name == name => Some(container),
            _ => None,
        });
        containers.max_by_key(|container| container.attempt).cloned()
    }

    /// From now on it cannot be looked at, or can again.
    pub fn is_sick(&self, id: &str, sick: bool) {
        let ids = &mut self.world().sick;
        if sick {
            ids.insert(id.to_owned())
        } else {
            ids.remove(id)
        };
    }

    /// Ends a running container with that code.
    pub fn end(&self, id: &str, code: i32) {
        self.change(id, RuntimeChange::Died, |thing| match thing {
            Observation::Container(container) => {
                container.state = ContainerState::Exited(ended(&container.state, code))
            }
            Observation::Sandbox(sandbox) => sandbox.state = SandboxState::Exited,
            Observation::Unseen { .. } => {}
        });
    }

    /// Removes everything dead, as `docker container prune` does.
    pub fn prune(&self) {
        self.world().things.retain(|_, thing| match thing {
            Observation::Container(container) => container.is_running(),
            Observation::Sandbox(sandbox) => sandbox.is_running(),
            Observation::Unseen { .. } => true,
        });
        self.send(RuntimeEvent::Resync);
    }

    /// It was away, and is now as it says.
    pub fn comes_back_as(&self, info: RuntimeInfo) {
        self.world().info = Some(info);
        self.send(RuntimeEvent::Resync);
    }

    fn change(&self, id: &str, change: RuntimeChange, with: impl FnOnce(&mut Observation)) {
        let mut world = self.world();
        let Some(thing) = world.things.get_mut(id) else { return };
        with(thing);
        let pod = thing.pod().clone();
        drop(world);
        self.send(RuntimeEvent::Changed { pod, id: id.to_owned(), change });
    }

    fn send(&self, event: RuntimeEvent) {
        if !self.deaf.load(std::sync::atomic::Ordering::Relaxed) {
            let _ = self.events.send(event);
        }
    }

    fn called(&self, call: Call) -> Result<MutexGuard<'_, World>, RuntimeError> {
        let mut world = self.world();
        *world.calls.entry(call).or_default() += 1;
        match world.failures.get_mut(call).filter(|left| **left > 0) {
            Some(left) => {
                *left -= 1;
                Err(RuntimeError::Failed { operation: call, message: "it was told to fail".to_owned() })
            }
            None => Ok(world),
        }
    }
}

fn ended(state: &ContainerState, code: i32) -> Exit {
    let started_at = match state {
        ContainerState::Running { started_at, .. } => Some(*started_at),
        _ => None,
    };
    let reason = if code == 0 { "Completed" } else { "Error" };
    Exit { code, reason: reason.to_owned(), message: String::new(), started_at, finished_at: Timestamp::now() }
}

#[async_trait]
impl ContainerExec for FakeRuntime {
    async fn exec(&self, request: ExecRequest) -> Result<ExecOutput, ExecError> {
        let mut world = self.world();
        let name = match world.things.get(&request.container_id) {
            Some(Observation::Container(container)) => container.name.clone(),
            _ => String::new(),
        };
        world.story.push(format!("exec {name}"));
        let code = world.exits.get(&name).copied().unwrap_or(0);
        Ok(ExecOutput { exit_code: Some(code), output: Vec::new() })
    }
}

#[async_trait]
impl ContainerRuntime for FakeRuntime {
    async fn info(&self) -> Result<RuntimeInfo, RuntimeError> {
        Ok(self.called("info")?.info.clone().unwrap_or_else(|| info("0", &["runc"])))
    }

    async fn images(&self) -> Result<Vec<NodeImage>, RuntimeError> {
        if self.hides_images.load(std::sync::atomic::Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let named = |name: &String| NodeImage { names: vec![name.clone()], size: 1 << 20 };
        Ok(self.called("images")?.images.iter().map(named).collect())
    }

    async fn list(&self) -> Result<Vec<Observation>, RuntimeError> {
        let world = self.called("list")?;
        let look = |thing: &Observation| match world.sick.contains(thing.id()) {
            true => Observation::Unseen { id: thing.id().to_owned(), pod: thing.pod().clone() },
            false => thing.clone(),
        };
        Ok(world.things.values().map(look).collect())
    }

    async fn list_pod(&self, uid: &str) -> Result<Vec<Observation>, RuntimeError> {
        let world = self.called("list_pod")?;
        let things: Vec<_> = world.things.values().filter(|thing| thing.pod().uid == uid).cloned().collect();
        match things.iter().any(|thing| world.sick.contains(thing.id())) {
            true => Err(RuntimeError::Timeout { operation: "inspect container", seconds: 20 }),
            false => Ok(things),
        }
    }

    async fn inspect(&self, id: &str) -> Result<Option<Observation>, RuntimeError> {
        Ok(self.called("inspect")?.things.get(id).cloned())
    }

    async fn create_sandbox(&self, config: &SandboxConfig) -> Result<String, RuntimeError> {
        let mut world = self.called("create_sandbox")?;
        world.serial += 1;
        let id = format!("sandbox-{}", world.serial);
        let sandbox = Sandbox {
            id: id.clone(),
            pod: config.pod.clone(),
            attempt: config.attempt,
            hash: config.hash.clone(),
            qos: config.labels.get(labels::QOS).and_then(|name| Qos::of(name)),
            created_at: Timestamp::now(),
            state: SandboxState::Created,
            network: config.network.clone(),
            ips: Vec::new(),
            pid: None,
        };
        world.things.insert(id.clone(), Observation::Sandbox(sandbox));
        Ok(id)
    }

    async fn create_container(&self, config: &ContainerConfig) -> Result<String, RuntimeError> {
        let mut world = self.called("create_container")?;
        world.serial += 1;
        let id = format!("container-{}", world.serial);
        let parsed = labels::parse(&config.labels, "root");
        let container = Container {
            id: id.clone(),
            pod: config.pod.clone(),
            name: config.name.clone(),
            kind: config.kind,
            attempt: config.attempt,
            hash: parsed.as_ref().map(|parsed| parsed.hash.clone()).unwrap_or_default(),
            recursive_read_only: parsed.and_then(|parsed| parsed.recursive),
            sandbox_id: config.sandbox_id.clone(),
            image: config.image.clone(),
            image_id: config.image.clone(),
            created_at: Timestamp::now(),
            state: ContainerState::Created,
            runtime_log: None,
            volume_images: Vec::new(),
            termination_message_file: None,
            grace_seconds: Some(30),
            resources: Some(config.resources),
            user: None,
        };
        world.mounts.insert(id.clone(), config.mounts.clone());
        world.things.insert(id.clone(), Observation::Container(container));
        Ok(id)
    }

    async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        drop(self.called("start")?);
        let serial = self.world().serial;
        self.change(id, RuntimeChange::Started, |thing| match thing {
            Observation::Sandbox(sandbox) => {
                sandbox.state = SandboxState::Running;
                sandbox.pid = Some(1);
                if sandbox.network != SandboxNetwork::Detached {
                    sandbox.ips = vec![[172, 17, (serial / 250) as u8, (serial % 250) as u8].into()];
                }
            }
            Observation::Container(container) => {
                if container.state == ContainerState::Created {
                    container.state = ContainerState::Running { started_at: Timestamp::now(), pid: 1 };
                }
            }
            Observation::Unseen { .. } => {}
        });
        Ok(())
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let waits = {
            let mut world = self.called("stop")?;
            match world.things.get(id) {
                Some(Observation::Container(container)) if container.is_running() => {
                    let (uid, name) = (container.pod.uid.clone(), container.name.clone());
                    world.stops.push((uid, grace));
                    world.story.push(format!("stop {name}"));
                    world.deaf.contains(&name)
                }
                _ => false,
            }
        };
        if waits {
            tokio::time::sleep(grace).await;
        }
        self.change(id, RuntimeChange::Died, |thing| match thing {
            Observation::Sandbox(sandbox) => sandbox.state = SandboxState::Exited,
            Observation::Container(container) if container.is_running() => {
                container.state = ContainerState::Exited(ended(&container.state, 143));
            }
            Observation::Container(_) | Observation::Unseen { .. } => {}
        });
        Ok(())
    }

    async fn update(&self, id: &str, resources: &Resources) -> Result<(), RuntimeError> {
        drop(self.called("update")?);
        self.change(id, RuntimeChange::Other, |thing| {
            if let Observation::Container(container) = thing {
                container.resources = Some(*resources);
            }
        });
        Ok(())
    }

    async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        self.called("remove")?.things.remove(id);
        Ok(())
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>, RuntimeError> {
        let world = self.called("image")?;
        Ok(world.images.contains(reference).then(|| image(reference)))
    }

    async fn stored_images(&self) -> Result<Vec<StoredImage>, RuntimeError> {
        let world = self.called("stored_images")?;
        let used: BTreeSet<&str> = world.things.values().filter_map(image_of).collect();
        let stored = |name: &String| StoredImage {
            id: image(name).id,
            names: vec![name.clone()],
            size: 1 << 20,
            in_use: used.contains(name.as_str()) || used.contains(image(name).id.as_str()),
            pinned: name.starts_with("pause"),
        };
        Ok(world.images.iter().map(stored).collect())
    }

    async fn remove_image(&self, image: &StoredImage) -> Result<(), RuntimeError> {
        let mut world = self.called("remove_image")?;
        let is_it = |used: &str| used == image.id || image.names.iter().any(|name| name == used);
        let used = world.things.values().filter_map(image_of).any(is_it);
        assert!(!used, "an image in use was to be removed");
        world.images.retain(|name| !image.names.contains(name));
        Ok(())
    }

    async fn writable_layers(&self, uid: Option<&str>) -> Result<BTreeMap<String, u64>, RuntimeError> {
        let world = self.called("writable_layers")?;
        let wanted =
            |id: &String| uid.is_none_or(|uid| world.things.get(id).is_some_and(|thing| thing.pod().uid == uid));
        Ok(world.layers.iter().filter(|(id, _)| wanted(id)).map(|(id, bytes)| (id.clone(), *bytes)).collect())
    }

    async fn pull(
        &self,
        reference: &str,
        credentials: Option<&RegistryCredentials>,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<Image, PullError> {
        let mut world = self.called("pull")?;
        progress(PullProgress { current: 1, total: 2 });
        let shown = credentials.map(|credentials| match credentials {
            RegistryCredentials::Basic { password, .. } => password,
            RegistryCredentials::IdentityToken(token) => token,
        });
        let opens = world.passwords.get(reference).is_none_or(|password| shown == Some(password));
        if !world.pullable.contains(reference) || !opens {
            return Err(PullError::Failed { message: format!("{reference} is not there") });
        }
        world.images.insert(reference.to_owned());
        Ok(image(reference))
    }

    async fn mounts_images(&self) -> Result<bool, RuntimeError> {
        Ok(!self.called("mounts_images")?.mounts_no_images)
    }

    async fn image_files(&self, id: &str) -> Result<ImageFiles, RuntimeError> {
        drop(self.called("image_files")?);
        let content = Bytes::from(id.to_owned());
        Ok(ImageFiles { archive: stream::iter([Ok(content)]).boxed(), added: &[] })
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        let events = self.events.subscribe();
        stream::unfold(events, |mut events| async move {
            loop {
                match events.recv().await {
                    Ok(event) => return Some((event, events)),
                    Err(broadcast::error::RecvError::Lagged(_)) => return Some((RuntimeEvent::Resync, events)),
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        })
        .boxed()
    }

    fn logs(&self, _: &str, _: LogOptions) -> BoxStream<'static, Result<LogChunk, RuntimeError>> {
        stream::iter([Ok(LogChunk { stderr: false, data: Bytes::from_static(b"log\n") })]).boxed()
    }

    async fn foreign(&self) -> Result<Vec<ForeignContainer>, RuntimeError> {
        Ok(self.called("foreign")?.foreign.clone())
    }
}
