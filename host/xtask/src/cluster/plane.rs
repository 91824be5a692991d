//! A control plane: etcd, API server, controllers and scheduler as processes of ours, watched over and started again
//! when they end, until this is dropped. Must not know of nodes.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    keys::{self, Authority, Credential, Pair},
    kubectl::Kubectl,
    kubernetes::Kubernetes,
};
use crate::{process, process::Running, say};

/// Addresses of Services.
const SERVICES: &str = "10.96.0.0/16";
/// The first of them, which the API server takes for itself.
const FIRST_SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
/// Addresses of pods, a /24 for each node.
const PODS: &str = "10.244.0.0/16";

/// The part that serves tests.
const PROXY: &str = "kubectl-proxy";

/// How long a cold start may take on a busy machine.
const START: Duration = Duration::from_secs(120);

/// A part that ends within this did not really start.
const SOON: Duration = Duration::from_secs(3);
/// How often that may happen to it in a row.
const MOST: u32 = 5;

/// Which requests are counted: those of nodes, once they are answered.
const AUDIT: &str = r#"{"apiVersion":"audit.k8s.io/v1","kind":"Policy","omitStages":["RequestReceived"],"rules":[
{"level":"Metadata","userGroups":["system:nodes","system:bootstrappers"]},{"level":"None"}]}"#;

/// A process of the control plane.
#[derive(Debug)]
struct Part {
    name: &'static str,
    running: Running,
    since: Instant,
    /// How often it ended soon after its start, since it last did not.
    soon: u32,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Plane {
    kubernetes: Kubernetes,
    folder: PathBuf,
    logs: PathBuf,
    authority: Authority,
    front: Authority,
    etcd: Pair,
    address: IpAddr,
    ports: Ports,
    parts: Vec<Part>,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    api: u16,
    etcd: u16,
    peers: u16,
}

impl Plane {
    /// Starts one that listens on `address`, with its state in `folder` and its logs in `logs`, and waits until the API
    /// server is ready.
    ///
    /// # Errors
    /// When a part ends or is not ready in time; the end of its log is in the message.
    pub(crate) fn start(kubernetes: &Kubernetes, folder: &Path, logs: &Path, address: IpAddr) -> Result<Self> {
        for name in ["pki", "etcd"] {
            fs::create_dir_all(folder.join(name)).with_context(|| format!("{}", folder.display()))?;
        }
        let pki = folder.join("pki");
        let authority = Authority::new(&pki, "ca")?;
        let front = Authority::new(&pki, "front-proxy-ca")?;
        let stores = Authority::new(&pki, "etcd-ca")?;
        let loopback = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let etcd = stores.issue("etcd", "etcd", None, &loopback)?;
        front.issue("front-proxy-client", "front-proxy-client", None, &[])?;
        let to_nodes = Some("system:masters");
        authority.issue("apiserver-kubelet-client", "kube-apiserver-kubelet-client", to_nodes, &[])?;
        keys::service_accounts(&pki)?;
        keys::write(&folder.join("audit-policy.json"), AUDIT)?;
        let ports = Ports { api: free_port(address)?, etcd: free_port(LOOPBACK)?, peers: free_port(LOOPBACK)? };
        let mut plane = Self {
            kubernetes: kubernetes.clone(),
            folder: folder.to_owned(),
            logs: logs.to_owned(),
            authority,
            front,
            etcd,
            address,
            ports,
            parts: Vec::new(),
        };
        let server = plane.server();
        for (file, user, group) in [
            ("admin", "kubernetes-admin", Some("system:masters")),
            ("controller-manager", "system:kube-controller-manager", None),
            ("scheduler", "system:kube-scheduler", None),
        ] {
            let pair = plane.authority.issue(file, user, group, &[])?;
            let config = keys::kubeconfig(&server, &plane.authority.pem(), Credential::Pair(&pair))?;
            keys::write(&plane.folder.join(format!("{file}.kubeconfig")), &config.to_string())?;
        }
        for name in ["etcd", "kube-apiserver"] {
            plane.begin(name, 0)?;
        }
        plane.wait("the API server", &["get", "--raw=/readyz"])?;
        // These would only end and begin again while there is no API server.
        for name in ["kube-controller-manager", "kube-scheduler", PROXY] {
            plane.begin(name, 0)?;
        }
        // Without it no pod can be created.
        let account = &["get", "serviceaccount", "default", "--output=name"];
        plane.wait("the first ServiceAccount", account)?;
        Ok(plane)
    }

    /// Where the API server listens.
    pub(crate) fn server(&self) -> String {
        format!("https://{}", self.address())
    }

    /// The same as an address.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.ports.api)
    }

    /// The cluster's authority.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Its administrator's kubeconfig.
    pub(crate) fn admin(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// A Unix socket that speaks HTTP, in the name of its administrator, without TLS: for tests.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("api.sock")
    }

    /// kubectl for its administrator.
    pub(crate) fn kubectl(&self) -> Kubectl {
        Kubectl { program: self.kubernetes.program("kubectl"), kubeconfig: self.admin() }
    }

    /// Starts again what ended, which tests make happen, and says so.
    ///
    /// # Errors
    /// When a part cannot be started, or ends again and again.
    pub(crate) fn tend(&mut self) -> Result<()> {
        let mut ended = Vec::new();
        for part in &mut self.parts {
            let late = part.since.elapsed() > SOON;
            // One that ended at once gets a pause: it may wait for another one that is just coming up.
            if (late || part.soon == 0)
                && let Some(status) = part.running.try_wait()?
            {
                ended.push((part.name, status, if late { 0 } else { part.soon + 1 }));
            }
        }
        for (name, status, soon) in ended {
            process::check_interrupted()?;
            if soon > MOST {
                bail!("{name} ends again and again ({status}): see {}", self.logs.display());
            }
            say!("{name} ended ({status}); started again");
            self.parts.retain(|part| part.name != name);
            self.begin(name, soon)?;
        }
        Ok(())
    }

    fn begin(&mut self, name: &'static str, soon: u32) -> Result<()> {
        let mut command = match name {
            "etcd" => self.etcd(),
            "kube-apiserver" => self.api_server()?,
            "kube-controller-manager" => self.controllers(),
            PROXY => self.proxy(),
            _ => self.scheduler(),
        };
        let (out, err) = process::log_pair(&self.logs.join(format!("{name}.log")))?;
        command.current_dir(&self.folder).stdout(out).stderr(err);
        let running = Running::start(name, &mut command)?;
        fs::write(self.folder.join(format!("{name}.pid")), running.pid().to_string())?;
        self.parts.push(Part { name, running, since: Instant::now(), soon });
        Ok(())
    }

    /// Waits until kubectl succeeds with these arguments.
    fn wait(&mut self, what: &str, arguments: &[&str]) -> Result<()> {
        let deadline = Instant::now() + START;
        let kubectl = self.kubectl();
        loop {
            for part in &mut self.parts {
                if let Some(status) = part.running.try_wait()? {
                    let log = self.logs.join(format!("{}.log", part.name));
                    let text = fs::read_to_string(&log).unwrap_or_default();
                    bail!("{} ended ({status}); {} ends:\n{}", part.name, log.display(), say::tail(&text, 15));
                }
            }
            match kubectl.run(arguments) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    bail!("{what} is not there after {} s: {error:#}", START.as_secs())
                }
                Err(_) => thread::sleep(Duration::from_millis(200)),
            }
            process::check_interrupted()?;
        }
    }

    fn pki(&self, name: &str) -> PathBuf {
        self.folder.join("pki").join(name)
    }

    fn etcd(&self) -> Command {
        let mut command = Command::new(&self.kubernetes.etcd);
        let (clients, peers) =
            (format!("https://127.0.0.1:{}", self.ports.etcd), format!("http://127.0.0.1:{}", self.ports.peers));
        // Nothing here outlives a power cut.
        command.arg("--unsafe-no-fsync").args(["--log-level", "warn", "--name", "one"]);
        command.arg("--data-dir").arg(self.folder.join("etcd"));
        for (flag, value) in [
            ("--listen-client-urls", &clients),
            ("--advertise-client-urls", &clients),
            ("--listen-peer-urls", &peers),
            ("--initial-advertise-peer-urls", &peers),
        ] {
            command.arg(flag).arg(value);
        }
        command.arg("--initial-cluster").arg(format!("one={peers}")).arg("--client-cert-auth");
        command.arg("--trusted-ca-file").arg(self.pki("etcd-ca.crt"));
        command.arg("--cert-file").arg(&self.etcd.certificate).arg("--key-file").arg(&self.etcd.key);
        command
    }

    /// The API server's command, each time with another certificate.
    fn api_server(&self) -> Result<Command> {
        let names = keys::server_names(&[LOOPBACK, self.address, FIRST_SERVICE]);
        let serving = self.authority.issue("apiserver", "kube-apiserver", None, &names)?;
        let mut command = Command::new(self.kubernetes.program("kube-apiserver"));
        let mut flag = |name: &str, value: &Path| {
            command.arg(format!("--{name}={}", value.display()));
        };
        flag("etcd-cafile", &self.pki("etcd-ca.crt"));
        flag("etcd-certfile", &self.etcd.certificate);
        flag("etcd-keyfile", &self.etcd.key);
        flag("cert-dir", &self.folder.join("pki"));
        flag("tls-cert-file", &serving.certificate);
        flag("tls-private-key-file", &serving.key);
        flag("client-ca-file", &self.authority.certificate());
        flag("kubelet-client-certificate", &self.pki("apiserver-kubelet-client.crt"));
        flag("kubelet-client-key", &self.pki("apiserver-kubelet-client.key"));
        flag("kubelet-certificate-authority", &self.authority.certificate());
        flag("service-account-key-file", &self.pki("sa.pub"));
        flag("service-account-signing-key-file", &self.pki("sa.key"));
        flag("requestheader-client-ca-file", &self.front.certificate());
        flag("proxy-client-cert-file", &self.pki("front-proxy-client.crt"));
        flag("proxy-client-key-file", &self.pki("front-proxy-client.key"));
        flag("audit-policy-file", &self.folder.join("audit-policy.json"));
        flag("audit-log-path", &self.folder.join("audit.log"));
        command
            .arg(format!("--etcd-servers=https://127.0.0.1:{}", self.ports.etcd))
            .arg(format!("--secure-port={}", self.ports.api))
            .arg(format!("--bind-address={}", self.address))
            .arg(format!("--service-cluster-ip-range={SERVICES}"))
            .args([
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--enable-bootstrap-token-auth=true",
                "--allow-privileged=true",
                "--kubelet-preferred-address-types=InternalIP,Hostname",
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                "--requestheader-allowed-names=front-proxy-client",
                "--requestheader-username-headers=X-Remote-User",
                "--requestheader-group-headers=X-Remote-Group",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                "--audit-log-maxsize=100",
                "--audit-log-maxbackup=1",
                "--profiling=false",
            ]);
        // What volumes and variables can be made of, where the API has it.
        let mut gates = vec!["ClusterTrustBundle=true", "ClusterTrustBundleProjection=true"];
        let minor = self.kubernetes.minor();
        if minor >= 34 {
            gates.extend(["PodCertificateRequest=true", "EnvFiles=true"]);
        }
        match minor {
            ..35 => gates.push("ImageVolume=true"),
            35 => {}
            36.. => gates.push("ImageVolumeWithDigest=true"),
        }
        command.arg(format!("--feature-gates={}", gates.join(",")));
        command.arg("--runtime-config=certificates.k8s.io/v1beta1=true,certificates.k8s.io/v1alpha1=true");
        if self.address.is_loopback() {
            // It would refuse to be found there by pods.
            command.arg("--endpoint-reconciler-type=none");
        } else {
            command.arg(format!("--advertise-address={}", self.address));
        }
        Ok(command)
    }

    fn controllers(&self) -> Command {
        let mut command = Command::new(self.kubernetes.program("kube-controller-manager"));
        let mut flag = |name: &str, value: &Path| {
            command.arg(format!("--{name}={}", value.display()));
        };
        flag("kubeconfig", &self.folder.join("controller-manager.kubeconfig"));
        flag("cluster-signing-cert-file", &self.authority.certificate());
        flag("cluster-signing-key-file", &self.authority.key());
        flag("root-ca-file", &self.authority.certificate());
        flag("service-account-private-key-file", &self.pki("sa.key"));
        command.arg(format!("--cluster-cidr={PODS}")).arg(format!("--service-cluster-ip-range={SERVICES}")).args([
            "--allocate-node-cidrs=true",
            "--controllers=*,bootstrapsigner,tokencleaner",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--secure-port=0",
        ]);
        command
    }

    fn proxy(&self) -> Command {
        let socket = format!("--unix-socket={}", self.socket().display());
        // It takes only names of loopback by default, and a socket has none; the folder is for root alone.
        self.kubectl().command(&["proxy", &socket, "--accept-hosts=.*"])
    }

    fn scheduler(&self) -> Command {
        let mut command = Command::new(self.kubernetes.program("kube-scheduler"));
        command.arg(format!("--kubeconfig={}", self.folder.join("scheduler.kubeconfig").display()));
        command.args(["--leader-elect=false", "--secure-port=0"]);
        command
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        // The clients first, and etcd last: in the other order each waits for the next.
        while let Some(mut part) = self.parts.pop() {
            part.running.stop(Duration::from_secs(5));
        }
    }
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A port that nobody listens on at this moment.
///
/// # Errors
/// When there is none.
pub(crate) fn free_port(address: IpAddr) -> Result<u16> {
    let listener = TcpListener::bind((address, 0)).with_context(|| format!("a free port on {address}"))?;
    Ok(listener.local_addr()?.port())
}

/// That port for a server on all addresses, or another where somebody has it on one of them.
///
/// # Errors
/// When there is none.
pub(crate) fn port(usual: u16) -> Result<u16> {
    let all = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    TcpListener::bind((all, usual)).map(|_| usual).or_else(|_| free_port(all))
}
