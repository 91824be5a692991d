//! How a node may join: a bootstrap token and its kubeconfig, the roles that let it have a client certificate, and the
//! approval of serving certificates, which nothing in Kubernetes gives by itself. Must not start nodes.

use std::{
    fs::File,
    io::{BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    keys::{self, Credential},
    kubectl::Kubectl,
    plane::Plane,
};
use crate::{process, say};

/// The group of those that come with our token.
const GROUP: &str = "system:bootstrappers:longshore";
/// Who signs what a node shows to the API server when that calls.
const SERVING: &str = "kubernetes.io/kubelet-serving";

/// While there is no API server, each try costs a process.
const PAUSE: Duration = Duration::from_secs(1);

/// Lets nodes join, and gives the kubeconfig that they come with.
///
/// # Errors
/// When the API server refuses an object.
pub(crate) fn open(plane: &Plane, folder: &Path) -> Result<PathBuf> {
    let (id, secret) = token()?;
    let authority = plane.authority().pem();
    let info = keys::kubeconfig(&plane.server(), &authority, Credential::None)?;
    plane.kubectl().apply(&[
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
            "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
            "stringData": {
                "token-id": id, "token-secret": secret, "usage-bootstrap-authentication": "true",
                "usage-bootstrap-signing": "true", "auth-extra-groups": GROUP,
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cluster-info", "namespace": "kube-public"},
            "data": {"kubeconfig": info.to_string()},
        }),
        binding("node-bootstrapper", "system:node-bootstrapper", GROUP),
        binding("approve-node", "system:certificates.k8s.io:certificatesigningrequests:nodeclient", GROUP),
        binding("renew-node", "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", "system:nodes"),
    ])?;
    let path = folder.join("bootstrap.kubeconfig");
    let config = keys::kubeconfig(&plane.server(), &authority, Credential::Token(&format!("{id}.{secret}")))?;
    keys::write(&path, &config.to_string())?;
    Ok(path)
}

fn binding(name: &str, role: &str, group: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": format!("longshore:{name}")},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}],
    })
}

/// `([a-z0-9]{6}, [a-z0-9]{16})`
fn token() -> Result<(String, String)> {
    let mut bytes = [0; 22];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("/dev/urandom")?;
    let sign = |byte: &u8| char::from(b"abcdefghijklmnopqrstuvwxyz012345"[usize::from(byte % 32)]);
    Ok((bytes[..6].iter().map(sign).collect(), bytes[6..].iter().map(sign).collect()))
}

/// Approves what nodes ask for themselves, until this is dropped.
#[derive(Debug)]
pub(crate) struct Approver {
    kubectl: Kubectl,
    watch: Option<Child>,
    since: Instant,
}

impl Approver {
    /// Begins to watch.
    ///
    /// # Errors
    /// When kubectl cannot be started.
    pub(crate) fn start(kubectl: &Kubectl) -> Result<Self> {
        let mut approver = Self { kubectl: kubectl.clone(), watch: None, since: Instant::now() };
        approver.begin()?;
        Ok(approver)
    }

    /// Watches again when the watch ended, as it does with the API server.
    ///
    /// # Errors
    /// When kubectl cannot be started.
    pub(crate) fn tend(&mut self) -> Result<()> {
        if let Some(watch) = &mut self.watch
            && (self.since.elapsed() < PAUSE || watch.try_wait()?.is_none())
        {
            return Ok(());
        }
        self.begin()
    }

    fn begin(&mut self) -> Result<()> {
        use std::os::unix::process::CommandExt as _;
        let mut command: Command = self.kubectl.command(&["get", "csr", "--watch", "-o", "json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut watch = command.spawn().context("kubectl get csr --watch")?;
        let output = watch.stdout.take().context("kubectl's output")?;
        self.watch = Some(watch);
        self.since = Instant::now();
        let kubectl = self.kubectl.clone();
        // Ends with kubectl, whose output it reads.
        thread::Builder::new().name("approver".to_owned()).spawn(move || {
            let requests = serde_json::Deserializer::from_reader(BufReader::new(output)).into_iter::<Value>();
            for request in requests.map_while(std::result::Result::ok).filter(is_fair) {
                let name = request["metadata"]["name"].as_str().unwrap_or_default();
                if let Err(error) = kubectl.run(&["certificate", "approve", name])
                    && !process::interrupted()
                {
                    say!("{name} is not approved: {error:#}");
                }
            }
        })?;
        Ok(())
    }
}

impl Drop for Approver {
    fn drop(&mut self) {
        if let Some(watch) = &mut self.watch {
            let _ = watch.kill();
            let _ = watch.wait();
        }
    }
}

/// A serving certificate that a node asks for, undecided so far. Which names it holds, the API server has checked.
fn is_fair(request: &Value) -> bool {
    let groups = request["spec"]["groups"].as_array();
    let node = groups.is_some_and(|groups| groups.iter().any(|group| group == "system:nodes"));
    let undecided = request["status"]["conditions"].as_array().is_none_or(Vec::is_empty);
    request["spec"]["signerName"] == SERVING && node && undecided
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_nodes_own_undecided_request_is_approved() {
        let fair = json!({"spec": {"signerName": SERVING, "groups": ["system:nodes"]}, "status": {}});
        assert!(is_fair(&fair));
        let decided = json!({"spec": fair["spec"], "status": {"conditions": [{"type": "Approved"}]}});
        let stranger = json!({"spec": {"signerName": SERVING, "groups": ["system:authenticated"]}, "status": {}});
        let client = json!({"spec": {"signerName": "kubernetes.io/kube-apiserver-client", "groups": ["system:nodes"]}});
        assert!(![decided, stranger, client].iter().any(is_fair));
    }

    #[test]
    fn a_token_has_the_form_that_the_api_server_takes() {
        let (id, secret) = token().unwrap_or_default();
        assert_eq!((id.len(), secret.len()), (6, 16));
        assert!(id.chars().chain(secret.chars()).all(|sign| sign.is_ascii_lowercase() || sign.is_ascii_digit()));
    }
}
