//! A real daemon, an adapter with a root of its own on it, and the end of all that was made.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bollard::query_parameters::{
    CreateImageOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
};
use futures::StreamExt;
use longshore_core::container::{ContainerConfig, HostNamespaces, Resources, SandboxConfig, SandboxNetwork};
use longshore_core::labels;
use longshore_core::observed::{Container, ContainerState, Observation, Sandbox};
use longshore_core::pod::{ContainerKind, PodId};
use longshore_core::ports::runtime::ContainerRuntime;
use longshore_docker::{Docker, DockerOptions};

pub(crate) const IMAGE: &str = "longshore.dev/busybox:1";

static COUNT: AtomicU32 = AtomicU32::new(0);

pub(crate) struct World {
    pub(crate) docker: Docker,
    pub(crate) raw: bollard::Docker,
    pub(crate) root: String,
    pub(crate) pod: PodId,
}

pub(crate) fn endpoint() -> String {
    std::env::var("DOCKER_HOST")
        .ok()
        .filter(|host| !host.is_empty())
        .unwrap_or("unix:///var/run/docker.sock".to_owned())
}

/// A raw client that speaks what every daemon of ours speaks.
fn raw() -> Option<bollard::Docker> {
    let version = bollard::ClientVersion { major_version: 1, minor_version: 41 };
    bollard::Docker::connect_with_unix(&endpoint(), 60, &version).ok()
}

impl World {
    /// `None`, and a line that says so, when there is no daemon.
    pub(crate) async fn new() -> Option<World> {
        World::with(DockerOptions::default()).await
    }

    pub(crate) async fn with(options: DockerOptions) -> Option<World> {
        let raw = match raw() {
            Some(raw) if raw.ping().await.is_ok() => raw,
            _ if std::env::var_os("LONGSHORE_REQUIRE_DOCKER").is_some() => {
                panic!("no Docker answers at {}, and LONGSHORE_REQUIRE_DOCKER is set", endpoint())
            }
            _ => {
                eprintln!("SKIPPED: no Docker answers at {}; start one or set DOCKER_HOST", endpoint());
                return None;
            }
        };
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = format!("docker-test-{}-{count}", std::process::id());
        busybox(&raw).await;
        let docker = Docker::connect(&endpoint(), root.clone(), options).unwrap();
        let pod = PodId { namespace: "docker-test".to_owned(), name: "p".to_owned(), uid: root.clone() };
        Some(World { docker, raw, root, pod })
    }

    pub(crate) fn labels(&self, kind: &str, container: &str, attempt: u32) -> BTreeMap<String, String> {
        [
            (labels::ROOT, self.root.as_str()),
            (labels::TYPE, kind),
            (labels::ATTEMPT, &attempt.to_string()),
            (labels::HASH, "h"),
            (labels::HASH_VERSION, labels::CURRENT_HASH_VERSION),
            (labels::POD_NAME, &self.pod.name),
            (labels::POD_NAMESPACE, &self.pod.namespace),
            (labels::POD_UID, &self.pod.uid),
            (labels::CONTAINER_NAME, container),
            (labels::IMAGE, IMAGE),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
    }

    pub(crate) fn sandbox(&self, attempt: u32) -> SandboxConfig {
        SandboxConfig {
            pod: self.pod.clone(),
            attempt,
            hash: "h".to_owned(),
            hostname: "p".to_owned(),
            labels: self.labels("podsandbox", "POD", attempt),
            cgroup_parent: None,
            host: HostNamespaces::default(),
            network: SandboxNetwork::Default,
            share_process_namespace: false,
            ports: Vec::new(),
            sysctls: BTreeMap::new(),
            security_options: vec!["no-new-privileges".to_owned()],
            user: None,
            groups: Vec::new(),
            oom_score_adj: 0,
            runtime: None,
        }
    }

    pub(crate) fn container(&self, sandbox: &str, name: &str, command: &[&str]) -> ContainerConfig {
        let mut labels = self.labels("container", name, 0);
        labels.insert(labels::SANDBOX_ID.to_owned(), sandbox.to_owned());
        ContainerConfig {
            pod: self.pod.clone(),
            sandbox_id: sandbox.to_owned(),
            name: name.to_owned(),
            kind: ContainerKind::App,
            attempt: 0,
            image: IMAGE.to_owned(),
            command: Some(command.iter().map(|word| (*word).to_owned()).collect()),
            args: None,
            env: Vec::new(),
            working_dir: None,
            mounts: Vec::new(),
            resources: Resources::default(),
            oom_score_adj: 0,
            cgroup_parent: None,
            user: None,
            groups: Vec::new(),
            privileged: false,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            read_only_rootfs: false,
            security_options: Vec::new(),
            unmasked_proc: false,
            stdin: false,
            stdin_once: false,
            tty: false,
            host: HostNamespaces::default(),
            share_process_namespace: false,
            processes_of: None,
            labels,
            stop_signal: None,
            runtime: None,
        }
    }

    /// A sandbox that runs.
    pub(crate) async fn running_sandbox(&self) -> String {
        let id = self.docker.create_sandbox(&self.sandbox(0)).await.unwrap();
        self.docker.start(&id).await.unwrap();
        id
    }

    /// A container that was started, in a sandbox.
    pub(crate) async fn run(&self, sandbox: &str, name: &str, command: &[&str]) -> String {
        let id = self.docker.create_container(&self.container(sandbox, name, command)).await.unwrap();
        self.docker.start(&id).await.unwrap();
        id
    }

    pub(crate) async fn see_sandbox(&self, id: &str) -> Sandbox {
        match self.docker.inspect(id).await.unwrap() {
            Some(Observation::Sandbox(sandbox)) => sandbox,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn see(&self, id: &str) -> Container {
        match self.docker.inspect(id).await.unwrap() {
            Some(Observation::Container(container)) => container,
            other => panic!("{other:?}"),
        }
    }

    /// The end of a container that is about to end by itself: code and reason.
    pub(crate) async fn end(&self, id: &str) -> (i32, String) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let ContainerState::Exited(exit) = self.see(id).await.state {
                return (exit.code, exit.reason);
            }
            assert!(Instant::now() < end, "{id} does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let root = self.root.clone();
        // A runtime of its own: this one may be shutting down.
        let clean = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let Some(raw) = raw() else { return };
                for label in [format!("{}={root}", labels::ROOT), format!("longshore-test={root}")] {
                    let filters = std::collections::HashMap::from([("label".to_owned(), vec![label])]);
                    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
                    for found in raw.list_containers(Some(options)).await.unwrap_or_default() {
                        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
                        let _ = raw.remove_container(&found.id.unwrap(), Some(options)).await;
                    }
                }
            });
        });
        let _ = clean.join();
    }
}

/// Imports a static busybox as an image, once.
async fn busybox(raw: &bollard::Docker) {
    static ONCE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _alone = ONCE.lock().await;
    if raw.inspect_image(IMAGE).await.is_ok() {
        return;
    }
    let program = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let bytes = std::fs::read(program.expect("a static busybox: apt-get install busybox-static")).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o755);
    tar.append_data(&mut header, "bin/busybox", bytes.as_slice()).unwrap();
    for name in [
        "sh", "sleep", "echo", "cat", "true", "false", "tail", "kill", "id", "ls", "head", "yes", "wget", "httpd",
        "nc", "mkdir", "touch", "grep", "date", "test", "hostname", "ps", "seq", "env", "stat", "mount", "printf",
        "rm", "chmod", "dd", "ip",
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, format!("bin/{name}"), "busybox").unwrap();
    }
    for folder in ["tmp", "etc", "dev", "proc", "sys"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o777);
        tar.append_data(&mut header, folder, std::io::empty()).unwrap();
    }
    let body = bollard::body_full(tar.into_inner().unwrap().into());
    let (repo, tag) = IMAGE.split_once(':').unwrap();
    let options = CreateImageOptionsBuilder::default().from_src("-").repo(repo).tag(tag).build();
    let mut messages = raw.create_image(Some(options), Some(body), None).boxed();
    while let Some(message) = messages.next().await {
        message.unwrap();
    }
}
