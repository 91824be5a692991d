//! The node's own servers: HTTPS for the API server and its users, `/healthz`, the read-only port.
//!
//! Here the room `longshore-server` gets its settings and its parts; it serves whether or not the API server can be
//! reached, and then lets nobody in that it does not know yet. All of it is done by threads of its own: the loops' are
//! none of a stranger's business. What crosses to the loops is what they published, and questions to the API server
//! (see [`LateReviews`](crate::late::LateReviews)); Docker is asked from here, by a connection for each request.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use longshore_core::cgroup;
use longshore_core::node::{CgroupDriver, NodeFacts};
use longshore_core::ports::runtime::ContainerRuntime;
use longshore_core::ports::stats::Stats;
use longshore_core::view::PodView;
use longshore_docker::Docker;
use longshore_reconcile::published::Published;
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
    let settings = settings(config, facts, joining);
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
        metrics: Arc::new(move || metrics::page(&node, &pods)),
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

fn settings(config: &Config, facts: &NodeFacts, joining: Option<&Joining>) -> ServerConfig {
    let server = &config.server;
    let limit = descriptors::raise();
    let certificates = match (&server.tls_files, joining) {
        (Some((certificate, key)), _) => Certificates::Files { certificate: certificate.clone(), key: key.clone() },
        (None, Some(joining)) if config.joining.server_tls_bootstrap => Certificates::Watched(joining.serving()),
        _ => Certificates::SelfSigned { folder: config.joining.cert_dir.clone() },
    };
    let usual = ServerConfig::new(&facts.name, certificates);
    ServerConfig {
        address: server.enabled.then(|| SocketAddr::new(server.address, server.port)),
        read_only: server.read_only_port.map(|port| SocketAddr::new(server.address, port)),
        healthz: server.healthz_port.map(|port| SocketAddr::new(server.healthz_address, port)),
        addresses: facts.ips.clone(),
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
        streaming_idle: server.streaming_idle_timeout,
        connections: descriptors::connections(limit, usual.connections),
        connections_per_client: descriptors::connections(limit, usual.connections_per_client),
        log_readers: descriptors::share(limit, usual.log_readers),
        forwards: descriptors::share(limit, usual.forwards),
        forwards_in_all: descriptors::share(limit, usual.forwards_in_all),
        ..usual
    }
}
