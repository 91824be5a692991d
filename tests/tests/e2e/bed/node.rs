//! A node of the cluster for one test: a `longshore` that joins by a bootstrap token, a namespace of its own, and the end
//! of both, also when the test fails. Must not decide what pods do.

use std::{fs, ops::Deref, ops::DerefMut, time::Duration};

use serde_json::{Value, json};

use super::{
    Bed,
    cluster::{Cluster, until},
    front::{Front, server_of},
    gate::Gate,
    pods::{condition, is_ready, uid, with},
    ports::free_port,
};

/// See the module. What the agent itself is like, its [`Bed`] knows.
pub(crate) struct Node {
    pub(crate) cluster: Cluster,
    /// The node's name, and the namespace's.
    pub(crate) name: String,
    pub(crate) port: u16,
    /// Between the node and the API server, where it was asked for.
    pub(crate) gate: Option<Gate>,
    front: Option<Front>,
    bed: Bed,
}

impl Deref for Node {
    type Target = Bed;

    fn deref(&self) -> &Bed {
        &self.bed
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Bed {
        &mut self.bed
    }
}

/// A node's way to the API server.
#[derive(Clone, Copy)]
enum Way {
    Straight,
    Gate,
    Front,
}

impl Node {
    /// A node that is Ready; `None` when there is no cluster or no Docker.
    pub(crate) fn start() -> Option<Node> {
        Self::start_with(&[], false)
    }

    /// One whose API server can be shut off.
    pub(crate) fn start_gated() -> Option<Node> {
        Self::start_with(&[], true)
    }

    /// One whose API server misbehaves as its [`Front`] is told.
    pub(crate) fn start_fronted() -> Option<Node> {
        let mut node = Self::new_fronted()?;
        node.bed.begin();
        node.wait_node_ready();
        Some(node)
    }

    /// The same, and its agent does not run yet.
    pub(crate) fn new_fronted() -> Option<Node> {
        Self::made(&[], Way::Front)
    }

    /// One that is told more.
    pub(crate) fn start_with(flags: &[&str], gated: bool) -> Option<Node> {
        let mut node = Self::new(flags, gated)?;
        node.bed.begin();
        node.wait_node_ready();
        Some(node)
    }

    /// One whose agent does not run yet.
    pub(crate) fn new(flags: &[&str], gated: bool) -> Option<Node> {
        Self::made(flags, if gated { Way::Gate } else { Way::Straight })
    }

    fn made(flags: &[&str], way: Way) -> Option<Node> {
        let cluster = Cluster::find()?;
        let mut bed = Bed::new()?;
        let name = bed.folder.file_name().unwrap().to_string_lossy().to_ascii_lowercase();
        let port = free_port();
        let config: Value = serde_json::from_slice(&fs::read(&cluster.bootstrap).unwrap()).unwrap();
        let gate = matches!(way, Way::Gate).then(|| Gate::before(server_of(&config)));
        let front = matches!(way, Way::Front).then(|| Front::before(server_of(&config), &cluster.folder));
        let address = gate.as_ref().map(|gate| gate.address).or(front.as_ref().map(|front| front.address));
        let mut bootstrap = cluster.bootstrap.clone();
        if let Some(address) = address {
            let mut config = config;
            config["clusters"][0]["cluster"]["server"] = json!(format!("https://{address}"));
            bootstrap = bed.folder.join("bootstrap.kubeconfig");
            fs::write(&bootstrap, config.to_string()).unwrap();
        }
        bed.flags = vec![
            format!("--bootstrap-kubeconfig={}", bootstrap.display()),
            format!("--kubeconfig={}", bed.folder.join("kubeconfig").display()),
            format!("--cert-dir={}", bed.folder.join("pki").display()),
            "--rotate-server-certificates=true".to_owned(),
            format!("--client-ca-file={}", cluster.folder.join("pki/ca.crt").display()),
            format!("--hostname-override={name}"),
            format!("--port={port}"),
            "--cluster-dns=10.96.0.10".to_owned(),
            "--cluster-domain=cluster.local".to_owned(),
            // How full the disk is that this is tried on says nothing: neither pods nor images go for it.
            "--eviction-hard=memory.available<100Mi".to_owned(),
            "--image-gc-high-threshold=100".to_owned(),
        ];
        if !cluster.address.starts_with("127.") {
            bed.flags.push(format!("--node-ip={}", cluster.address));
        }
        bed.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        cluster.create("/api/v1/namespaces", &namespace);
        let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
        cluster.wait(&account, "there", |account| !account.is_null());
        Some(Node { cluster, name, port, gate, front, bed })
    }

    /// The path of the Node object.
    pub(crate) fn path(&self) -> String {
        format!("/api/v1/nodes/{}", self.name)
    }

    /// The Node object.
    pub(crate) fn object(&self) -> Value {
        self.cluster.get(&self.path()).unwrap_or(Value::Null)
    }

    /// Waits until the Node object is as `good` has it.
    pub(crate) fn wait_node(&self, what: &str, good: impl FnMut(&Value) -> bool) -> Value {
        self.told(|| self.cluster.wait(&self.path(), what, good))
    }

    pub(crate) fn wait_node_ready(&self) -> Value {
        let tainted = |node: &Value| {
            let taints = node["spec"]["taints"].as_array();
            taints.is_some_and(|taints| taints.iter().any(|taint| taint["key"] == "node.kubernetes.io/not-ready"))
        };
        self.wait_node("Ready, and without the taint", |node| condition(node, "Ready") && !tainted(node))
    }

    /// Waits until the API server reaches the node's server: its certificate may be signed a little after it is Ready.
    pub(crate) fn wait_server(&self) {
        let path = format!("{}/proxy/healthz", self.path());
        // What does not come through is an error of the API server's, after which a call is made again.
        let answer = self.told(|| self.cluster.call("GET", &path, "application/json", None));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// Between the node and the API server, where it was asked for.
    pub(crate) fn front(&self) -> &Front {
        self.front.as_ref().unwrap()
    }

    /// Since when it is Ready: another time is that of a node that was not, for a while.
    pub(crate) fn ready_since(&self) -> String {
        let object = self.object();
        assert!(condition(&object, "Ready"), "{:#}", object["status"]["conditions"]);
        let mut all = object["status"]["conditions"].as_array().unwrap().iter();
        let ready = all.find(|one| one["type"] == "Ready").unwrap();
        ready["lastTransitionTime"].as_str().unwrap().to_owned()
    }

    /// The path of a kind of objects in this test's namespace: `pods`, `apps/deployments`, `batch/jobs`.
    pub(crate) fn all(&self, kind: &str) -> String {
        match kind.rsplit_once('/') {
            Some((group, kind)) => format!("/apis/{group}/v1/namespaces/{}/{kind}", self.name),
            None => format!("/api/v1/namespaces/{}/{kind}", self.name),
        }
    }

    /// The path of one of them.
    pub(crate) fn one(&self, kind: &str, name: &str) -> String {
        format!("{}/{name}", self.all(kind))
    }

    /// Creates a pod that is bound to this node, past the scheduler.
    pub(crate) fn bind(&self, pod: &Value) -> Value {
        let bound = with(pod.clone(), json!({"spec": {"nodeName": self.name}}));
        self.cluster.create(&self.all("pods"), &bound)
    }

    /// What a template's spec needs for the scheduler to choose this node.
    pub(crate) fn selector(&self) -> Value {
        json!({"nodeSelector": {"kubernetes.io/hostname": self.name}})
    }

    /// Waits until a pod is as `good` has it; it is null while it is not there.
    pub(crate) fn wait_api(&self, pod: &str, what: &str, good: impl FnMut(&Value) -> bool) -> Value {
        self.told(|| self.cluster.wait(&self.one("pods", pod), what, good))
    }

    pub(crate) fn wait_api_ready(&self, pod: &str) -> Value {
        self.wait_api(pod, "Ready", is_ready)
    }

    /// Waits until the API has no such pod, and Docker nothing of it.
    pub(crate) fn wait_api_gone(&self, pod: &Value) {
        let name = pod["metadata"]["name"].as_str().unwrap();
        self.wait_api(name, "gone", |found| found["metadata"]["uid"] != pod["metadata"]["uid"]);
        self.told(|| until("nothing of the pod in Docker", || self.in_docker(pod).is_empty().then_some(())));
    }

    /// All containers of a pod in Docker, its sandbox included.
    pub(crate) fn in_docker(&self, pod: &Value) -> Vec<Value> {
        let all = self.containers_of_node().into_iter();
        all.filter(|one| one["Labels"]["io.kubernetes.pod.uid"] == uid(pod)).collect()
    }

    /// All containers of this node in Docker.
    pub(crate) fn containers_of_node(&self) -> Vec<Value> {
        self.docker.list(&format!("dev.longshore.root={}", self.root_id()))
    }

    /// The ID of the container `app` of a pod, while it runs in Docker. A pod that the API does not have is named alone.
    pub(crate) fn running(&self, pod: &Value) -> Option<String> {
        let of_pod = |labels: &Value| {
            labels["io.kubernetes.pod.name"] == pod["metadata"]["name"]
                && (uid(pod).is_empty() || labels["io.kubernetes.pod.uid"] == uid(pod))
                && labels["io.kubernetes.container.name"] == "app"
        };
        let mut all = self.containers_of_node().into_iter();
        let found = all.find(|one| of_pod(&one["Labels"]) && one["State"] == "running")?;
        found["Id"].as_str().map(str::to_owned)
    }

    /// Runs a shell script in a pod's container, by Docker, and gives its exit code and what it prints.
    pub(crate) fn sh(&self, pod: &str, script: &str) -> (i64, String) {
        let pod = self.cluster.get(&self.one("pods", pod)).expect("the pod is there");
        self.docker.exec(&super::pods::id(&pod, "app"), &["sh", "-c", script])
    }

    /// What this node asked of the API server, as its audit log has it: verb, path and code.
    pub(crate) fn asked(&self) -> Vec<(String, String, u64)> {
        let log = fs::read_to_string(self.cluster.folder.join("audit.log")).unwrap();
        let user = format!("system:node:{}", self.name);
        let all = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let ours = all.filter(|request| request["user"]["username"] == user.as_str());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let read = |request: Value| {
            let code = request["responseStatus"]["code"].as_u64().unwrap_or_default();
            (text(&request["verb"]), text(&request["requestURI"]), code)
        };
        ours.map(read).collect()
    }

    /// The events of an object of this namespace.
    pub(crate) fn events_of(&self, name: &str) -> Vec<Value> {
        let all = self.cluster.list(&self.all("events"));
        all.into_iter().filter(|event| event["involvedObject"]["name"] == name).collect()
    }

    /// Waits for an event of an object whose message holds `part`.
    pub(crate) fn wait_api_event(&self, name: &str, reason: &str, part: &str) -> Value {
        self.told(|| {
            until(&format!("event {reason} of {name} with {part:?}"), || {
                let fits = |event: &Value| event["reason"] == reason && event["message"].to_string().contains(part);
                self.events_of(name).into_iter().find(fits)
            })
        })
    }

    /// The events of the node itself in the API, of that reason.
    pub(crate) fn node_events(&self, reason: &str) -> Vec<Value> {
        let all = self.cluster.list("/api/v1/namespaces/default/events");
        let ours = |event: &Value| event["involvedObject"]["name"] == self.name.as_str() && event["reason"] == reason;
        all.into_iter().filter(ours).collect()
    }

    /// Waits for one.
    pub(crate) fn wait_node_event(&self, reason: &str) -> Value {
        self.told(|| until(&format!("event {reason} of the node"), || self.node_events(reason).pop()))
    }

    /// Runs `check`; when it fails, what the agent and the cluster have to say of it is shown.
    pub(crate) fn told<T>(&self, check: impl FnOnce() -> T) -> T {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).unwrap_or_else(|panic| {
            eprintln!("--- the log of {}:\n{}", self.name, self.log());
            let events: Vec<String> = self
                .cluster
                .list(&self.all("events"))
                .iter()
                .map(|event| format!("{} {} {}", event["involvedObject"]["name"], event["reason"], event["message"]))
                .collect();
            eprintln!("--- events of {}:\n{}", self.name, events.join("\n"));
            std::panic::resume_unwind(panic)
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let cleaned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.bed.kill();
            for kind in ["apps/deployments", "apps/statefulsets", "apps/daemonsets", "batch/jobs"] {
                self.cluster.delete(&self.all(kind), None);
            }
            self.cluster.delete(&format!("/api/v1/namespaces/{}", self.name), None);
            self.cluster.delete(&self.path(), None);
            for pod in self.cluster.list(&format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", self.name)) {
                let (namespace, name) = (&pod["metadata"]["namespace"], &pod["metadata"]["name"]);
                let (namespace, name) = (namespace.as_str().unwrap(), name.as_str().unwrap());
                self.cluster.delete(&format!("/api/v1/namespaces/{namespace}/pods/{name}"), Some(0));
            }
        }));
        if cleaned.is_err() {
            eprintln!("not all of {} could be removed from the cluster", self.name);
        }
    }
}

/// A moment that is short for a person, and long for what must not happen.
pub(crate) const MOMENT: Duration = Duration::from_secs(3);
