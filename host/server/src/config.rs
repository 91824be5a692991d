//! How the server is set up, and what it is given. It must not open anything.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use longshore_core::ports::pods::PodViews;
use longshore_core::ports::reviews::Reviews;
use longshore_core::ports::runtime::{LogChunk, LogOptions, RuntimeError};
use longshore_core::ports::stats::Stats;
use longshore_core::ports::streams::ContainerStreams;
use longshore_core::view::PodView;
use tokio::sync::watch;

/// Reads a container's log: `ContainerRuntime::logs`.
pub type LogReader = Arc<dyn Fn(&str, LogOptions) -> BoxStream<'static, Result<LogChunk, RuntimeError>> + Send + Sync>;

/// Where the serving certificate comes from.
#[derive(Clone, Debug)]
pub enum Certificates {
    /// PEM files, read again when they change (`tlsCertFile`, `tlsPrivateKeyFile`).
    Files {
        /// The chain.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// Chain and key in PEM from somebody who renews them; until there is one, a self-signed certificate serves.
    Watched(watch::Receiver<Option<(String, String)>>),
    /// Made at the first start and kept in the folder as `kubelet.crt` and `kubelet.key` (`certDirectory`).
    SelfSigned {
        /// The folder.
        folder: PathBuf,
    },
}

/// Whether callers without credentials become `system:anonymous`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnonymousAccess {
    /// They get 401.
    #[default]
    Refused,
    /// They are authorized as everybody else.
    Allowed,
}

/// Who decides what a caller may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authorization {
    /// The API server, by SubjectAccessReview.
    #[default]
    Webhook,
    /// Everybody who is authenticated may do everything. Only if the operator wrote it down.
    AlwaysAllow,
}

/// All knobs of the server, named after KubeletConfiguration.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where HTTPS is served; `None` serves none.
    pub address: Option<SocketAddr>,
    /// Where the read-only port is served, without TLS and without asking who it is; `None` by default.
    pub read_only: Option<SocketAddr>,
    /// Where health is served (127.0.0.1:10248).
    pub healthz: Option<SocketAddr>,
    /// Name of the Node.
    pub node_name: String,
    /// Names and addresses of a self-signed certificate, besides the node's name.
    pub addresses: Vec<IpAddr>,
    /// The serving certificate.
    pub certificates: Certificates,
    /// The CAs of client certificates in PEM, read again when it changes.
    pub client_ca_file: Option<PathBuf>,
    /// Cipher suites by IANA's names; empty for all good ones.
    pub tls_cipher_suites: Vec<String>,
    /// `VersionTLS12` or `VersionTLS13`; empty for the former.
    pub tls_min_version: String,
    /// Whether bearer tokens are reviewed by the API server.
    pub token_webhook: bool,
    /// How long a good token counts without asking again.
    pub token_cache: Duration,
    /// Callers without credentials.
    pub anonymous: AnonymousAccess,
    /// Who decides.
    pub authorization: Authorization,
    /// How long a permission counts.
    pub authorized_cache: Duration,
    /// How long a refusal counts.
    pub unauthorized_cache: Duration,
    /// `enableDebuggingHandlers`: exec, logs and the like.
    pub debugging_handlers: bool,
    /// `enableProfilingHandler`: /debug/pprof/.
    pub profiling_handler: bool,
    /// `enableDebugFlagsHandler`: /debug/flags/v.
    pub debug_flags_handler: bool,
    /// `enableSystemLogHandler`: /logs/.
    pub system_log_handler: bool,
    /// `enableSystemLogQuery`: /logs/?query=.
    pub system_log_query: bool,
    /// The folder of /logs/.
    pub log_folder: PathBuf,
    /// `streamingConnectionIdleTimeout`. An answer over HTTP/1.1 of which nothing is read for so long is given up.
    pub streaming_idle: Duration,
    /// Connections in all.
    pub connections: usize,
    /// Connections of one client address.
    pub connections_per_client: usize,
    /// Logs that are read at a time: a connection of HTTP/2 may ask for many.
    pub log_readers: usize,
    /// Connections into pods at a time, of one client's connection; more wait for their turn.
    pub forwards: usize,
    /// Connections into pods at a time, of all clients; more are refused.
    pub forwards_in_all: usize,
    /// A head of a request has to be complete in so long; idle connections of HTTP/1.1 end after it, those whose client
    /// reads nothing of a refusal, and those of HTTP/2 that never asked anything.
    pub header_limit: Duration,
    /// A connection of HTTP/2 ends so long after its last request.
    pub idle_limit: Duration,
    /// A TLS handshake has to be done in so long.
    pub handshake_limit: Duration,
    /// How long Docker may take for its part of the numbers of all pods.
    pub scrape_limit: Duration,
    /// How often files are looked at.
    pub reload: Duration,
}

impl ServerConfig {
    /// The kubelet's defaults for a node of that name: HTTPS on 10250, health on 127.0.0.1:10248, nobody anonymous.
    pub fn new(node_name: &str, certificates: Certificates) -> ServerConfig {
        ServerConfig {
            address: Some(SocketAddr::from(([0, 0, 0, 0], 10250))),
            read_only: None,
            healthz: Some(SocketAddr::from(([127, 0, 0, 1], 10248))),
            node_name: node_name.to_owned(),
            addresses: Vec::new(),
            certificates,
            client_ca_file: None,
            tls_cipher_suites: Vec::new(),
            tls_min_version: String::new(),
            token_webhook: true,
            token_cache: Duration::from_secs(120),
            anonymous: AnonymousAccess::Refused,
            authorization: Authorization::Webhook,
            authorized_cache: Duration::from_secs(300),
            unauthorized_cache: Duration::from_secs(30),
            debugging_handlers: true,
            profiling_handler: true,
            debug_flags_handler: true,
            system_log_handler: true,
            system_log_query: false,
            log_folder: PathBuf::from("/var/log"),
            streaming_idle: Duration::from_secs(4 * 3600),
            connections: 4096,
            connections_per_client: 1024,
            log_readers: 1024,
            forwards: 1024,
            forwards_in_all: 2048,
            header_limit: Duration::from_secs(32),
            // `IdleTimeout` of `pkg/kubelet/server/server.go`.
            idle_limit: Duration::from_secs(90),
            handshake_limit: Duration::from_secs(10),
            scrape_limit: Duration::from_secs(3),
            reload: Duration::from_secs(5),
        }
    }
}

/// Sets the log's verbosity from the text that was sent, or says what is wrong with it.
pub type SetVerbosity = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// What the server is given by others.
#[derive(Clone)]
pub struct Parts {
    /// The pods.
    pub views: Arc<dyn PodViews>,
    /// The containers' logs.
    pub logs: LogReader,
    /// Streams into containers.
    pub streams: Arc<dyn ContainerStreams>,
    /// Numbers.
    pub stats: Arc<dyn Stats>,
    /// The API server's reviews; `None` on a node that runs alone.
    pub reviews: Option<Arc<dyn Reviews>>,
    /// The cgroup of a pod, as `PodQuery::cgroup`.
    pub cgroup: Arc<dyn Fn(&PodView) -> String + Send + Sync>,
    /// KubeletConfiguration in force, as JSON.
    pub configz: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// The command line's flags: name and value.
    pub flags: Arc<dyn Fn() -> Vec<(String, String)> + Send + Sync>,
    /// The agent's own metrics, in Prometheus' text format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Sets the verbosity of the agent's log; an error text when it cannot be read.
    pub verbosity: SetVerbosity,
}
