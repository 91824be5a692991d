//! The emulated machine as a node of a real cluster: etcd and Kubernetes run here, and reach into the machine by an ssh
//! tunnel, so that its network stays shut; closing the tunnel takes the API server away from it. Must not decide what is
//! tried with it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::machine::{Machine, SHORT};
use crate::{
    cluster::{self, Approver, Kubectl, Kubernetes, Plane},
    place::Place,
    process::{self, Running},
};

/// The node's name.
pub(super) const NODE: &str = "vm";

/// What takes seconds on a machine takes a minute in this one, when others want its cores, too.
pub(super) const LONG: Duration = Duration::from_secs(300);

/// systemd's drop-ins of the agent; ours takes the place of all.
const DROP_INS: &str = "/etc/systemd/system/longshore.service.d";
/// The key that secrets are sealed with.
pub(super) const STATE_KEY: &str = "--state-key-file=/etc/longshore/state-key";

/// See the module. What is first ends first.
pub(super) struct Joined<'a> {
    tunnel: Option<Running>,
    _approver: Approver,
    kubectl: Kubectl,
    plane: Plane,
    place: &'a Place,
    pub(super) machine: &'a Machine,
    _folder: TempDir,
}

impl<'a> Joined<'a> {
    /// Starts a control plane, and the machine's agent as its node, with these flags more than it needs.
    ///
    /// # Errors
    /// When the node does not become Ready.
    pub(super) fn start(
        place: &'a Place,
        kubernetes: &Kubernetes,
        machine: &'a Machine,
        flags: &[&str],
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("longshore-vm-").tempdir().context("a temporary folder")?;
        let logs = place.work().join("logs/vm-cluster");
        let _ = fs::remove_dir_all(&logs);
        let plane = Plane::start(kubernetes, folder.path(), &logs, IpAddr::V4(Ipv4Addr::LOCALHOST))?;
        let bootstrap = cluster::open_to_nodes(&plane, folder.path())?;
        let kubectl = plane.kubectl();
        let approver = Approver::start(&kubectl)?;
        let mut joined = Self { tunnel: None, _approver: approver, kubectl, plane, place, machine, _folder: folder };
        machine.run("systemctl disable --now longshore; mkdir -p /etc/longshore", LONG)?;
        joined.send(&bootstrap, "/etc/longshore/bootstrap.kubeconfig")?;
        joined.send(&joined.plane.authority().certificate(), "/etc/longshore/ca.crt")?;
        machine
            .run("head -c 32 /dev/urandom > /etc/longshore/state-key && rm -rf /etc/kubernetes/manifests/*", SHORT)?;
        joined.open()?;
        joined.run_with(flags)?;
        joined.wait_ready()?;
        Ok(joined)
    }

    fn send(&self, from: &Path, to: &str) -> Result<()> {
        let text = fs::read_to_string(from).with_context(|| format!("{}", from.display()))?;
        self.machine.run(&format!("cat > {to} <<'END'\n{text}\nEND"), SHORT).map(drop)
    }

    /// Restarts the agent with these flags more than it needs.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn run_with(&self, flags: &[&str]) -> Result<()> {
        let unit = format!(
            "[Service]\nExecStart=\nExecStart=/usr/local/bin/longshore run \
             --bootstrap-kubeconfig=/etc/longshore/bootstrap.kubeconfig --kubeconfig=/etc/longshore/kubeconfig \
             --rotate-server-certificates=true --client-ca-file=/etc/longshore/ca.crt --hostname-override={NODE} \
             --image-gc-high-threshold=100 {}\n",
            flags.join(" ")
        );
        let write =
            format!("rm -rf {DROP_INS}; mkdir {DROP_INS} && cat > {DROP_INS}/cluster.conf <<'END'\n{unit}END\n");
        self.machine.run(&write, SHORT)?;
        let restart = "systemctl daemon-reload && systemctl enable longshore && systemctl restart longshore";
        self.machine.run(restart, LONG).map(drop)
    }

    /// Lets the machine reach the API server, at the address that the kubeconfigs name.
    ///
    /// # Errors
    /// When ssh cannot be started, or the machine does not answer.
    pub(super) fn open(&mut self) -> Result<()> {
        let to = self.plane.address();
        let forward = ["-N".to_owned(), "-o".to_owned(), "ExitOnForwardFailure=yes".to_owned(), "-R".to_owned()];
        let mut command = self.machine.ssh_with(&[&forward[..], &[format!("{to}:{to}")]].concat());
        let (out, err) = process::log_pair(&self.place.fresh_log("vm-tunnel")?)?;
        command.stdout(out).stderr(err);
        self.tunnel = Some(Running::start("ssh -R", &mut command)?);
        let there = format!("bash -c 'exec 3<>/dev/tcp/127.0.0.1/{}'", to.port());
        self.machine.until(&there, SHORT).map(drop)
    }

    /// Takes the API server away.
    pub(super) fn shut(&mut self) {
        if let Some(mut tunnel) = self.tunnel.take() {
            tunnel.stop(Duration::from_secs(2));
        }
    }

    /// Creates pods that are bound to the node, and whatever else.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub(super) fn apply(&self, objects: &[Value]) -> Result<()> {
        self.kubectl.apply(objects)
    }

    /// Deletes a pod at once.
    ///
    /// # Errors
    /// When it stays.
    pub(super) fn delete(&self, pod: &str) -> Result<()> {
        self.kubectl.run(&["delete", "pod", pod, "--grace-period=1", "--timeout=50s"]).map(drop)
    }

    /// A node or pod as the API server has it.
    fn get(&self, kind: &str, name: &str) -> Result<Value> {
        let text = self.kubectl.run(&["get", kind, name, "-o", "json"])?;
        serde_json::from_str(&text).context("kubectl's answer")
    }

    /// Waits for an event of a pod whose message holds `part`.
    ///
    /// # Errors
    /// When none comes in time; those that came are in the message.
    pub(super) fn wait_event(&self, pod: &str, part: &str) -> Result<()> {
        let deadline = Instant::now() + LONG;
        loop {
            let selector = format!("--field-selector=involvedObject.name={pod}");
            let told = self.kubectl.run(&["get", "events", &selector, "-o", "jsonpath={.items[*].message}"])?;
            if told.contains(part) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("no event of {pod} says {part:?}, only {told}");
            }
            process::check_interrupted()?;
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Waits until an object is as `good` has it.
    ///
    /// # Errors
    /// When it is not in time; it is in the message as it was last.
    pub(super) fn wait(&self, kind: &str, name: &str, what: &str, good: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + LONG;
        loop {
            let found = self.get(kind, name);
            match &found {
                Ok(object) if good(object) => return found,
                _ if Instant::now() < deadline => {}
                Ok(object) => {
                    bail!("{kind} {name}: {what}: not within {} s; its status is {}", LONG.as_secs(), object["status"])
                }
                Err(_) => return found.context(format!("{kind} {name}: {what}")),
            }
            process::check_interrupted()?;
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Waits until the node is Ready, and says so anew.
    ///
    /// # Errors
    /// When it is not in time.
    pub(super) fn wait_ready(&self) -> Result<()> {
        let renewed = || {
            let lease = ["get", "lease", NODE, "--namespace=kube-node-lease", "-o", "jsonpath={.spec.renewTime}"];
            self.kubectl.run(&lease).unwrap_or_default()
        };
        let (before, deadline) = (renewed(), Instant::now() + LONG);
        while renewed() == before {
            if Instant::now() > deadline {
                bail!("the node's Lease is not renewed within {} s", LONG.as_secs());
            }
            process::check_interrupted()?;
            thread::sleep(Duration::from_millis(500));
        }
        self.wait("node", NODE, "Ready", |node| is_true(node, "Ready")).map(drop)
    }

    /// Waits until a pod runs and is ready; gives its container's ID.
    ///
    /// # Errors
    /// When it is not in time.
    pub(super) fn wait_pod(&self, name: &str) -> Result<String> {
        let pod = self.wait("pod", name, "Ready", |pod| is_true(pod, "Ready"))?;
        let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default();
        Ok(id.trim_start_matches("docker://").to_owned())
    }

    /// Runs a command in a container, by Docker.
    ///
    /// # Errors
    /// When it fails.
    pub(super) fn exec(&self, container: &str, command: &str) -> Result<String> {
        self.machine.run(&format!("docker exec {container} {command}"), SHORT)
    }
}

/// Whether a condition of a node or pod is `True`.
pub(super) fn is_true(object: &Value, kind: &str) -> bool {
    let all = object["status"]["conditions"].as_array().into_iter().flatten();
    all.into_iter().any(|condition| condition["type"] == kind && condition["status"] == "True")
}

/// What finds a pod's running container in Docker.
pub(super) fn running(pod: &str) -> String {
    format!(
        "docker ps -q --no-trunc --filter label=io.kubernetes.pod.name={pod} --filter label=io.kubernetes.container.name=app"
    )
}

/// A pod of one container, bound to the node, with these fields of the container and the spec.
pub(super) fn pod(name: &str, container: Value, spec: Value) -> Value {
    let mut app = json!({"name": "app", "image": "longshore.dev/busybox:1", "imagePullPolicy": "Never",
        "command": ["sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"]});
    let mut whole = json!({"nodeName": NODE, "terminationGracePeriodSeconds": 2});
    for (into, from) in [(&mut app, container), (&mut whole, spec)] {
        if let (Value::Object(into), Value::Object(from)) = (into, from) {
            into.extend(from);
        }
    }
    whole["containers"] = json!([app]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": whole})
}

/// A ConfigMap or Secret of one key.
pub(super) fn object(kind: &str, name: &str, field: &str, key: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "default"}, field: {key: value}})
}
