//! The node's own servers: HTTPS for the API server and its users, `/healthz`, the read-only port.
//!
//! Here the room `longshore-server` gets its settings and its parts; it serves whether or not the API server can be
//! reached, and then lets nobody in that it does not know yet. All of it is done by threads of its own: the loops' are
//! none of a stranger's business. What crosses to the loops is what they published, and questions to the API server
//! (see [`LateReviews`](crate::late::LateReviews)); Docker is asked from here, by a connection for each request.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use longshore_core::cgroup;
use longshore_core::node::{CgroupDriver, NodeFacts};
use longshore_core::ports::probes::KUBERNETES_VERSION;
use longshore_core::ports::runtime::ContainerRuntime;
use longshore_core::ports::stats::Stats;
use longshore_core::view::PodView;
use longshore_docker::Docker;
use longshore_reconcile::published::Published;
use longshore_reconcile::views::Views;
use longshore_server::{AnonymousAccess, Authorization, Certificates, Parts, Server, ServerConfig};
use tokio_util::sync::CancellationToken;

use crate::cluster::Joining;
use crate::config::{self, Config};
use crate::threads::Threads;
use crate::{descriptors, logging, metrics};

/// The node's server on its threads.
pub(crate) struct Serving {
    threads: Threads,
    server: Server,
}

impl Serving {
    /// Serves until the stop.
    ///
    /// # Errors
    /// When it ends otherwise, by a mistake of ours.
    pub(crate) async fn serve(self, stop: CancellationToken) -> anyhow::Result<()> {
        self.threads.run(self.server.serve(stop)).await.context("the node's server")
    }
}

/// Binds the node's addresses; `None` where nothing is to be served.
///
/// # Errors
/// When certificates cannot be read, or cannot be used, or the system gives no threads.
pub(crate) async fn bind(
    config: &Config,
    facts: &NodeFacts,
    docker: &Docker,
    published: Published,
    stats: Arc<dyn Stats>,
    joining: Option<&Joining>,
) -> anyhow::Result<Option<Serving>> {
    let settings = settings(config, &facts.name, &facts.ips, joining);
    if settings.address.is_none() && settings.read_only.is_none() && settings.healthz.is_none() {
        return Ok(None);
    }
    let logs = docker.clone();
    let driver = facts.cgroup_driver;
    let cgroup = move |view: &PodView| {
        let spec = view.object.spec.as_ref();
        spec.map_or_else(String::new, |spec| cgroup::path(&view.id.uid, spec, driver))
    };
    let shown = Arc::new(config.clone());
    let flags = shown.clone();
    let (node, pods) = (facts.name.clone(), published.clone());
    let given = config.joining.kubelet_version.clone();
    let parts = Parts {
        views: Arc::new(published),
        logs: Arc::new(move |id, options| logs.logs(id, options)),
        streams: Arc::new(docker.clone()),
        stats,
        reviews: joining.map(Joining::reviews),
        cgroup: Arc::new(cgroup),
        configz: Arc::new(move || {
            let mut told = shown.configz();
            // Docker's, which the configuration does not have.
            told["cgroupDriver"] = match driver {
                CgroupDriver::Systemd => "systemd".into(),
                CgroupDriver::Cgroupfs => "cgroupfs".into(),
            };
            told
        }),
        flags: Arc::new(move || flags.flagz()),
        metrics: Arc::new(move || metrics::page(&node, &version(&pods.views, given.as_deref()), &pods)),
        verbosity: Arc::new(logging::set_verbosity),
    };
    if settings.address.is_some() && settings.client_ca_file.is_none() && joining.is_some() {
        tracing::warn!(
            "no client certificate counts: kubectl logs, exec, attach and port-forward are refused with 401 until \
             --client-ca-file names the CA of the API server's --kubelet-client-certificate (kubeadm: \
             /etc/kubernetes/pki/ca.crt)"
        );
    }
    let threads = Threads::start("server").context("threads for the node's server")?;
    // There, for a listener wakes the threads that it was bound by.
    let server = threads.run(Server::bind(settings, parts)).await??;
    Ok(Some(Serving { threads, server }))
}

/// The version that the Node shows; before it has one, that of the Kubernetes which is imitated.
fn version(views: &Views, given: Option<&str>) -> String {
    let shown = views.node().and_then(|node| Some(node.status.as_ref()?.node_info.as_ref()?.kubelet_version.clone()));
    shown.filter(|shown| !shown.is_empty()).or_else(|| given.map(str::to_owned)).unwrap_or_else(|| {
        let ours = env!("CARGO_PKG_VERSION");
        format!("v{KUBERNETES_VERSION}.0+longshore.{ours}")
    })
}

/// The room's settings on a node of that name with these addresses.
fn settings(config: &Config, name: &str, ips: &[IpAddr], joining: Option<&Joining>) -> ServerConfig {
    let server = &config.server;
    let limit = descriptors::raise();
    let certificates = match (&server.tls_files, joining) {
        (Some((certificate, key)), _) => Certificates::Files { certificate: certificate.clone(), key: key.clone() },
        (None, Some(joining)) if config.joining.server_tls_bootstrap => Certificates::Watched(joining.serving()),
        _ => Certificates::SelfSigned { folder: config.joining.cert_dir.clone() },
    };
    let usual = ServerConfig::new(name, certificates);
    ServerConfig {
        address: server.enabled.then(|| SocketAddr::new(server.address, server.port)),
        read_only: server.read_only_port.map(|port| SocketAddr::new(server.address, port)),
        healthz: server.healthz_port.map(|port| SocketAddr::new(server.healthz_address, port)),
        addresses: ips.to_vec(),
        client_ca_file: server.client_ca_file.clone(),
        tls_cipher_suites: server.cipher_suites.iter().map(|name| (*name).to_owned()).collect(),
        tls_min_version: server.tls_min_version.name().to_owned(),
        token_webhook: server.token_webhook,
        token_cache: server.token_cache,
        anonymous: if server.anonymous { AnonymousAccess::Allowed } else { AnonymousAccess::Refused },
        authorization: match server.authorization {
            config::Authorization::Webhook => Authorization::Webhook,
            config::Authorization::AlwaysAllow => Authorization::AlwaysAllow,
        },
        authorized_cache: server.authorized_cache,
        unauthorized_cache: server.unauthorized_cache,
        debugging_handlers: server.debugging_handlers,
        profiling_handler: server.profiling_handler,
        debug_flags_handler: server.debug_flags_handler,
        system_log_handler: server.system_log_handler,
        system_log_query: server.system_log_query,
        streaming_idle: match server.streaming_idle_timeout {
            Duration::ZERO => Duration::MAX,
            limit => limit,
        },
        connections: descriptors::connections(limit, usual.connections),
        connections_per_client: descriptors::connections(limit, usual.connections_per_client),
        log_readers: descriptors::share(limit, usual.log_readers),
        forwards: descriptors::share(limit, usual.forwards),
        forwards_in_all: descriptors::share(limit, usual.forwards_in_all),
        ..usual
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::PathBuf;

    use longshore_reconcile::views::Views;

    use super::*;
    use crate::config::{ConfigPath, Surroundings};

    const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

    /// What flags, one after the other, and the fields of a file make.
    fn read(flags: &str, file: &str) -> ServerConfig {
        let line = std::iter::once("longshore").chain(flags.split_whitespace());
        let cli = <crate::cli::Cli as clap::Parser>::try_parse_from(line).unwrap();
        let path = ConfigPath::File(PathBuf::from("/kubelet.yaml"), format!("{HEAD}{file}"));
        let (config, findings) = Config::build(&cli.daemon, path, &Surroundings::default());
        assert_eq!(findings.problems, [], "{flags} {file}");
        let joining = config.joining.in_cluster().then(|| Joining::new(Arc::new(Views::default()), None));
        settings(&config, "n1", &["10.0.0.1".parse().unwrap()], joining.as_ref())
    }

    #[test]
    fn who_gets_in_and_who_decides() {
        use longshore_server::AnonymousAccess::{Allowed, Refused};
        use longshore_server::Authorization::{AlwaysAllow, Webhook};
        let file = "authentication: {anonymous: {enabled: true}, webhook: {enabled: false, cacheTTL: 4s}}\n\
                    authorization: {mode: AlwaysAllow, webhook: {cacheAuthorizedTTL: 5s, cacheUnauthorizedTTL: 6s}}\n";
        let unset = "authentication: {anonymous: {}, webhook: {cacheTTL: 0s}}\n\
                     authorization: {mode: '', webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}}\n";
        let zero = "--kubeconfig=/k --authentication-token-webhook-cache-ttl=0 \
                    --authorization-webhook-cache-authorized-ttl=0 --authorization-webhook-cache-unauthorized-ttl=0";
        let flags = "--kubeconfig=/k --anonymous-auth=false --authentication-token-webhook --authorization-mode=Webhook \
                     --authentication-token-webhook-cache-ttl=7s --authorization-webhook-cache-authorized-ttl=8s \
                     --authorization-webhook-cache-unauthorized-ttl=9s";
        let usual = [120, 300, 30];
        for (flags, file, who, seconds) in [
            ("--kubeconfig=/k", "", (Refused, Webhook, true), usual),
            ("--kubeconfig=/k", unset, (Refused, Webhook, true), usual),
            ("--kubeconfig=/k", file, (Allowed, AlwaysAllow, false), [4, 5, 6]),
            (flags, file, (Refused, Webhook, true), [7, 8, 9]),
            (zero, file, (Allowed, AlwaysAllow, false), [0, 0, 0]),
            ("--kubeconfig=/k --anonymous-auth", "", (Allowed, Webhook, true), usual),
            ("--kubeconfig=/k --authorization-mode=AlwaysAllow", "", (Refused, AlwaysAllow, true), usual),
            ("--kubeconfig=/k --authentication-token-webhook=false", "", (Refused, Webhook, false), usual),
            // Alone there is nobody to ask about a token.
            ("--port=1 --authentication-token-webhook", "", (Refused, Webhook, false), usual),
        ] {
            let got = read(flags, file);
            assert_eq!((got.anonymous, got.authorization, got.token_webhook), who, "{flags} {file}");
            let times = [got.token_cache, got.authorized_cache, got.unauthorized_cache];
            assert_eq!(times.map(|time| time.as_secs()), seconds, "{flags} {file}");
        }
    }

    #[test]
    fn which_certificates_and_which_tls() {
        let file = "tlsCertFile: /c\ntlsPrivateKeyFile: /p\ntlsMinVersion: VersionTLS13\n\
                    tlsCipherSuites: [TLS_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]\n\
                    authentication: {x509: {clientCAFile: /ca}}\n";
        let flags = "--kubeconfig=/k --tls-cert-file=/d --tls-private-key-file=/q --tls-min-version=VersionTLS12 \
                     --tls-cipher-suites=TLS_AES_128_GCM_SHA256,TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305 --client-ca-file=/cb \
                     --rotate-server-certificates";
        let full = "TLS_AES_128_GCM_SHA256 TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256";
        for (flags, file, wanted) in [
            ("--kubeconfig=/k --cert-dir=/pki", "", ("own in /pki", "", "VersionTLS12", "")),
            ("--kubeconfig=/k --rotate-server-certificates", "", ("signed", "", "VersionTLS12", "")),
            ("--kubeconfig=/k", "serverTLSBootstrap: true\n", ("signed", "", "VersionTLS12", "")),
            // Alone there is nobody who signs.
            ("--port=1 --cert-dir=/pki", "serverTLSBootstrap: true\n", ("own in /pki", "", "VersionTLS12", "")),
            ("--kubeconfig=/k", file, ("/c /p", "/ca", "VersionTLS13", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256")),
            (flags, file, ("/d /q", "/cb", "VersionTLS12", full)),
            (
                "--kubeconfig=/k --cert-dir=/pki",
                "tlsMinVersion: VersionTLS10\n",
                ("own in /pki", "", "VersionTLS12", ""),
            ),
        ] {
            let got = read(flags, file);
            let certificates = match &got.certificates {
                Certificates::Files { certificate, key } => format!("{} {}", certificate.display(), key.display()),
                Certificates::Watched(_) => "signed".to_owned(),
                Certificates::SelfSigned { folder } => format!("own in {}", folder.display()),
            };
            let client_ca = got.client_ca_file.map(|path| path.display().to_string()).unwrap_or_default();
            let suites = got.tls_cipher_suites.join(" ");
            let told = (certificates.as_str(), client_ca.as_str(), got.tls_min_version.as_str(), suites.as_str());
            assert_eq!(told, wanted, "{flags} {file}");
        }
    }

    #[test]
    fn where_and_what_is_served() {
        let file = "address: 10.0.0.9\nport: 1\nreadOnlyPort: 2\nhealthzPort: 3\nhealthzBindAddress: 10.0.0.8\n";
        let flags = "--kubeconfig=/k --address=10.0.0.7 --port=4 --read-only-port=5 --healthz-port=6 \
                     --healthz-bind-address=10.0.0.6";
        let local = "127.0.0.1:10248";
        for (flags, file, wanted) in [
            ("", "", ["", "", local]),
            ("--kubeconfig=/k", "", ["0.0.0.0:10250", "", local]),
            ("--kubeconfig=/k", file, ["10.0.0.9:1", "10.0.0.9:2", "10.0.0.8:3"]),
            (flags, file, ["10.0.0.7:4", "10.0.0.7:5", "10.0.0.6:6"]),
            ("--kubeconfig=/k --enable-server=false --healthz-port=0 --read-only-port=0", file, ["", "", ""]),
        ] {
            let got = read(flags, file);
            let told = [got.address, got.read_only, got.healthz];
            let told = told.map(|address| address.map(|address| address.to_string()).unwrap_or_default());
            assert_eq!(told, wanted, "{flags} {file}");
            assert_eq!((got.node_name.as_str(), got.addresses.len()), ("n1", 1));
        }
        let file = "enableDebuggingHandlers: false\nenableProfilingHandler: false\nenableDebugFlagsHandler: false\n\
                    enableSystemLogHandler: false\nstreamingConnectionIdleTimeout: 7s\n";
        for (flags, file, wanted, idle) in [
            ("", "", [true, true, true, true, false], 4 * 3600),
            ("", file, [false, false, false, false, false], 7),
            ("", "enableSystemLogQuery: true\n", [true, true, true, true, true], 4 * 3600),
            ("--enable-debugging-handlers", file, [true, false, false, false, false], 7),
            ("--enable-debugging-handlers=false", "", [false, true, true, true, false], 4 * 3600),
            ("--streaming-connection-idle-timeout=8s", file, [false, false, false, false, false], 8),
            // The kubelet defaults a file's zero, and takes a flag's for no limit.
            ("--streaming-connection-idle-timeout=0", file, [false, false, false, false, false], u64::MAX),
            ("", "streamingConnectionIdleTimeout: 0s\n", [true, true, true, true, false], 4 * 3600),
        ] {
            let got = read(flags, file);
            let told = [got.debugging_handlers, got.profiling_handler, got.debug_flags_handler, got.system_log_handler];
            assert_eq!((&told[..], got.system_log_query), (&wanted[..4], wanted[4]), "{flags} {file}");
            assert_eq!(got.streaming_idle.as_secs(), idle, "{flags} {file}");
        }
    }
}
