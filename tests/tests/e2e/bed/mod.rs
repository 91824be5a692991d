//! A folder of manifests, a root folder, an agent on them, and the end of all that they made, also when a test fails.

pub(crate) mod callers;
pub(crate) mod cluster;
pub(crate) mod daemon;
pub(crate) mod docker;
pub(crate) mod etcd;
pub(crate) mod far;
pub(crate) mod front;
pub(crate) mod gate;
pub(crate) mod http;
pub(crate) mod inside;
pub(crate) mod kubectl;
pub(crate) mod node;
mod once;
pub(crate) mod pods;
pub(crate) mod ports;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod registry;
pub(crate) mod signer;
mod skip;
mod turn;
pub(crate) mod watch;

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use docker::Docker;
use serde_json::{Value, json};
pub(crate) use skip::skip;
use turn::Turn;
use watch::Watch;

/// The node's name, and so the end of all pods' names.
pub(crate) const NODE: &str = "n1";

/// How long most things may take: far longer than they do, for machines that are slow or busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(40);

/// A time limit, longer on slow machines.
pub(crate) fn limit(base: Duration) -> Duration {
    let slowness = std::env::var("LONGSHORE_TEST_SLOWNESS").ok().and_then(|text| text.parse().ok());
    base * slowness.unwrap_or(1)
}

/// Waits until `look` finds something.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit(LIMIT);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {:?}", limit(LIMIT));
        thread::sleep(Duration::from_millis(20));
    }
}

/// See the module.
pub(crate) struct Bed {
    pub(crate) docker: Docker,
    pub(crate) folder: PathBuf,
    pub(crate) watch: Watch,
    /// The agent's command: `run`, or none.
    pub(crate) verb: Option<&'static str>,
    /// What the agent is told beside its folders.
    pub(crate) flags: Vec<String>,
    /// Variables of its environment.
    pub(crate) env: Vec<(String, String)>,
    agent: Option<Child>,
    /// Dropped last.
    _temporary: tempfile::TempDir,
    _turn: Option<Turn>,
}

/// The binary under test.
pub(crate) fn binary() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug/longshore");
    let path = std::env::var_os("LONGSHORE_BIN").map_or_else(default, PathBuf::from);
    assert!(path.exists(), "{} is not there: cargo build -p longshore-agent, or set LONGSHORE_BIN", path.display());
    path
}

impl Bed {
    /// A bed without an agent yet; `None` when there is no Docker.
    pub(crate) fn new() -> Option<Bed> {
        Self::made(Some(Turn::take()))
    }

    /// Another one for the same test.
    pub(crate) fn beside(&self) -> Bed {
        Self::made(None).expect("there was a Docker")
    }

    fn made(turn: Option<Turn>) -> Option<Bed> {
        let docker = Docker::find()?;
        // Short, and not on a folder that the machine shares: paths of sockets end at 107 bytes.
        let temporary = tempfile::Builder::new().prefix("ls-").rand_bytes(5).tempdir_in("/tmp").unwrap();
        let folder = temporary.path().to_owned();
        fs::create_dir(folder.join("m")).unwrap();
        let empty = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "nothing"}});
        fs::write(folder.join("m/nothing.json"), empty.to_string()).unwrap();
        Some(Bed {
            docker,
            folder,
            watch: Watch::default(),
            verb: Some("run"),
            flags: Vec::new(),
            env: Vec::new(),
            agent: None,
            _temporary: temporary,
            _turn: turn,
        })
    }

    /// A bed with an agent.
    pub(crate) fn start() -> Option<Bed> {
        let mut bed = Bed::new()?;
        bed.begin();
        Some(bed)
    }

    /// A bed with an agent that is told more.
    pub(crate) fn start_with(flags: &[&str]) -> Option<Bed> {
        let mut bed = Bed::new()?;
        bed.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        bed.begin();
        Some(bed)
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.folder.join("m")
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.join("r")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.root().join("longshore.sock")
    }

    /// The ID of the root folder: what the label of our containers holds.
    pub(crate) fn root_id(&self) -> String {
        fs::read_to_string(self.root().join("id")).unwrap_or_default().trim().to_owned()
    }

    /// The agent's command line.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command.args(self.verb).arg("--config").arg(self.manifests()).arg("--root-dir").arg(self.root());
        // A node of a cluster has a name of its own, and is registered.
        if !self.flags.iter().any(|flag| flag.starts_with("--hostname-override")) {
            command.arg("--register-node=false").arg(format!("--hostname-override={NODE}"));
        }
        if !self.flags.iter().any(|flag| flag.starts_with("--docker-endpoint")) {
            command.arg(format!("--docker-endpoint=unix://{}", self.docker.socket.display()));
        }
        if !self.flags.iter().any(|flag| flag.starts_with("--healthz-port")) {
            // Of the agents that run at once only one could have the usual port.
            command.arg("--healthz-port=0");
        }
        command.arg("--pod-logs-dir").arg(self.folder.join("l/pods"));
        command.arg("--container-logs-dir").arg(self.folder.join("l/containers"));
        command.args(&self.flags).envs(self.env.clone());
        command
    }

    /// Starts the agent, without waiting for anything.
    pub(crate) fn launch(&mut self) {
        assert!(self.agent.is_none());
        once::lay(&self.root());
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        self.agent = Some(command.spawn().unwrap());
    }

    /// Starts the agent and waits for its socket.
    pub(crate) fn begin(&mut self) {
        self.launch();
        self.attach();
    }

    /// Waits for the agent's socket and watches it.
    pub(crate) fn attach(&mut self) {
        let deadline = Instant::now() + limit(LIMIT);
        let wanted = self.agent.as_ref().map(Child::id);
        loop {
            let info = http::request(&self.socket(), "GET", "/v1/info", None);
            if info.is_ok_and(|info| info.json()["pid"].as_u64() == wanted.map(u64::from))
                && let Ok(watch) = Watch::open(&self.socket())
            {
                self.watch = watch;
                once::take(&self.root());
                return;
            }
            let ended = self.agent.as_mut().and_then(|agent| agent.try_wait().unwrap());
            let late = Instant::now() > deadline;
            assert!(ended.is_none() && !late, "longshore does not come up ({ended:?}):\n{}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.agent.as_ref().map_or(0, Child::id)
    }

    /// Ends the agent at once, as a crash does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }

    /// Ends the agent as an upgrade does; its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        let mut agent = self.agent.take()?;
        let pid = rustix::process::Pid::from_child(&agent);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let deadline = Instant::now() + limit(Duration::from_secs(20));
        loop {
            if let Some(status) = agent.try_wait().unwrap() {
                return status.code();
            }
            if Instant::now() > deadline {
                let _ = agent.kill();
                let _ = agent.wait();
                panic!("longshore does not end on SIGTERM:\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the agent wrote, its end.
    pub(crate) fn log(&self) -> String {
        let text = fs::read(self.folder.join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Writes a manifest in one step.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let partial = self.manifests().join(format!(".{name}.new"));
        fs::write(&partial, text).unwrap();
        fs::rename(partial, self.manifests().join(name)).unwrap();
    }

    /// Writes an object as `<name>.json`.
    pub(crate) fn apply(&self, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        self.write(&format!("{name}.json"), object.to_string());
    }

    /// Removes `<name>.json`.
    pub(crate) fn delete(&self, name: &str) {
        fs::remove_file(self.manifests().join(format!("{name}.json"))).unwrap();
    }

    /// The longshore of the test, with the root folder of this bed.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary());
        process::output(command.args(arguments).arg("--root-dir").arg(self.root()), b"")
    }

    /// What a command that must succeed prints.
    pub(crate) fn say(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "longshore {arguments:?}: {:?}\n{text}{error}", output.status);
        text
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        http::request(&self.socket(), "GET", path, None).map_or(Value::Null, |answer| answer.json())
    }

    /// The pod of a manifest as it is now: the newest of its name.
    pub(crate) fn pod(&self, name: &str) -> Option<Value> {
        newest(&self.watch.told(), name)
    }

    /// Waits until a pod is as `good` has it.
    pub(crate) fn wait(&self, name: &str, what: &str, good: impl FnMut(&Value) -> bool) -> Value {
        self.wait_for(name, what, LIMIT, good)
    }

    /// The same with a time limit of its own.
    pub(crate) fn wait_for(
        &self,
        name: &str,
        what: &str,
        base: Duration,
        mut good: impl FnMut(&Value) -> bool,
    ) -> Value {
        let found = self.watch.wait(limit(base), |told| newest(told, name).filter(&mut good));
        found.unwrap_or_else(|| panic!("pod {name}: {what}: not within {:?}\n{}", limit(base), self.tell(name)))
    }

    pub(crate) fn wait_ready(&self, name: &str) -> Value {
        self.wait(name, "ready", pods::is_ready)
    }

    /// Waits until no pod of that name is left, and nothing of it in Docker.
    pub(crate) fn wait_gone(&self, name: &str) {
        let gone = self.watch.wait(limit(LIMIT), |told| newest(told, name).is_none().then_some(()));
        assert!(gone.is_some(), "pod {name}: gone: not within {:?}\n{}", limit(LIMIT), self.tell(name));
        until("nothing left in Docker", || self.containers(name).is_empty().then_some(()));
    }

    /// All that helps to see why a pod is not as it should be.
    fn tell(&self, name: &str) -> String {
        let pod = self.pod(name).unwrap_or(Value::Null);
        let status = serde_json::to_string_pretty(&pod["status"]).unwrap();
        let why = self.cli(&["why", &format!("{name}-{NODE}")]);
        let problems = self.get("/v1/problems");
        let events: Vec<String> = self.events(name).iter().map(Value::to_string).collect();
        let ended = self.watch.told().ended;
        format!(
            "status: {status}\nwhy: {}{}\nproblems: {problems}\nevents:\n{}\nagent ended: {ended}; its log:\n{}",
            String::from_utf8_lossy(&why.stdout),
            String::from_utf8_lossy(&why.stderr),
            events.join("\n"),
            self.log()
        )
    }

    /// The events of a pod.
    pub(crate) fn events(&self, name: &str) -> Vec<Value> {
        let name = format!("{name}-{NODE}");
        let all = self.get("/v1/events").as_array().cloned().unwrap_or_default();
        all.into_iter().filter(|event| event["pod"]["name"] == name.as_str()).collect()
    }

    /// The node's own events of that reason.
    pub(crate) fn events_of_node(&self, reason: &str) -> Vec<Value> {
        let all = self.get("/v1/events").as_array().cloned().unwrap_or_default();
        all.into_iter().filter(|event| event["pod"].is_null() && event["reason"] == reason).collect()
    }

    /// Waits for an event of a pod whose message holds `part`.
    pub(crate) fn wait_event(&self, name: &str, reason: &str, part: &str) -> Value {
        until(&format!("pod {name}: event {reason} with {part:?}"), || {
            let fits = |event: &Value| event["reason"] == reason && event["message"].to_string().contains(part);
            self.events(name).into_iter().find(fits)
        })
    }

    /// All containers of a pod's name in Docker that are ours, sandboxes included.
    pub(crate) fn containers(&self, name: &str) -> Vec<Value> {
        let name = format!("{name}-{NODE}");
        let all = self.docker.list(&format!("dev.longshore.root={}", self.root_id()));
        all.into_iter().filter(|one| one["Labels"]["io.kubernetes.pod.name"] == name.as_str()).collect()
    }

    /// The pod's sandboxes in Docker.
    pub(crate) fn sandboxes(&self, name: &str) -> Vec<Value> {
        let all = self.containers(name).into_iter();
        all.filter(|one| one["Labels"]["io.kubernetes.docker.type"] == "podsandbox").collect()
    }

    /// What Docker says of a pod's container that runs or ran last.
    pub(crate) fn inspect(&self, name: &str, container: &str) -> Value {
        let pod = self.pod(name).unwrap_or_else(|| panic!("pod {name} is not there"));
        let id = pods::id(&pod, container);
        self.docker.inspect(&id).unwrap_or_else(|| panic!("container {container} of {name} ({id}) is not there"))
    }

    /// What Docker says of a pod's sandbox.
    pub(crate) fn sandbox(&self, name: &str) -> Value {
        let found = self.sandboxes(name);
        assert_eq!(found.len(), 1, "{found:?}");
        self.docker.inspect(found[0]["Id"].as_str().unwrap()).unwrap()
    }

    /// Runs a shell script in a pod's container and gives what it prints; it must succeed.
    pub(crate) fn exec(&self, name: &str, container: &str, script: &str) -> String {
        let (code, output) = self.try_exec(name, container, script);
        assert_eq!(code, 0, "{script}: {output}");
        output
    }

    /// The same, with the exit code.
    pub(crate) fn try_exec(&self, name: &str, container: &str, script: &str) -> (i64, String) {
        let pod = self.pod(name).unwrap_or_else(|| panic!("pod {name} is not there"));
        self.docker.exec(&pods::id(&pod, container), &["sh", "-c", script])
    }

    /// A pod's folder.
    pub(crate) fn pod_folder(&self, pod: &Value) -> PathBuf {
        self.root().join("pods").join(pods::uid(pod))
    }

    /// What is mounted below this bed.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        points.filter(|point| point.starts_with(&self.folder)).collect()
    }

    /// Where the agent keeps what may be in memory only.
    pub(crate) fn volatile(&self) -> PathBuf {
        Path::new("/run/longshore").join(self.root_id())
    }

    /// Takes away what is mounted below this bed.
    pub(crate) fn unmount(&self) {
        for mount in self.mounts().into_iter().rev() {
            let _ = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH);
        }
    }

    fn clean(&mut self) {
        self.kill();
        let id = self.root_id();
        // What the agent tries Docker's limits with would go at its next start, which there is not.
        let made = ["dev.longshore.root", "dev.longshore.trial"].map(|label| format!("{label}={id}"));
        for label in made.into_iter().chain([format!("longshore-test={}", self.folder.display())]) {
            let there = http::request(&self.docker.socket, "GET", "/_ping", None).is_ok();
            if label.ends_with('=') || !there {
                continue;
            }
            for found in self.docker.list(&label) {
                self.docker.remove(found["Id"].as_str().unwrap_or_default());
            }
            for network in self.docker.networks(&label) {
                self.docker.remove_network(network["Id"].as_str().unwrap_or_default());
            }
        }
        self.unmount();
        if !id.is_empty() {
            let _ = fs::remove_dir_all(self.volatile());
        }
        let uids = fs::read_dir(self.root().join("pods")).into_iter().flatten().flatten();
        let uids: Vec<String> = uids.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        for folder in cgroups() {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if uids.iter().any(|uid| name.contains(uid) || name.contains(&uid.replace('-', "_"))) {
                let _ = fs::remove_dir(&folder);
            }
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // A test that failed is failing already; this must not abort it.
        let cleaned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.clean()));
        if cleaned.is_err() {
            eprintln!("not all that {} made could be removed", self.folder.display());
        }
    }
}

/// The newest pod of that name: an old one may still be ending.
fn newest(told: &watch::Told, name: &str) -> Option<Value> {
    let name = format!("{name}-{NODE}");
    let pods = told.pods.values().filter(|pod| pod["metadata"]["name"] == name.as_str());
    pods.max_by_key(|pod| {
        let start = pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
        (pod["metadata"]["deletionTimestamp"].is_null(), start)
    })
    .cloned()
}

/// Every folder of pods' cgroups, the deepest first.
pub(crate) fn cgroups() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec!["/sys/fs/cgroup".into()];
    for entry in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        folders.push(entry.path());
    }
    folders.retain(|path| path.is_dir() && !path.is_symlink());
    let mut next: Vec<PathBuf> =
        folders.iter().flat_map(|folder| [folder.join("kubepods"), folder.join("kubepods.slice")]).collect();
    next.retain(|path| path.is_dir());
    while let Some(folder) = next.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                next.push(entry.path());
                found.push(entry.path());
            }
        }
    }
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    found
}
