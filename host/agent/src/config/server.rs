//! The node's own servers: where they listen, with which certificate, and who may use them.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use longshore_core::document::Node;
use serde::Serialize;

use super::draft::{Findings, FlagNotes};
use super::joining::given;
use super::layer::layer;
use super::reader::Reader;
use super::{duration, tls, tree, values};

/// Flags of the servers.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct ServerFlags {
    /// Serve HTTPS [default: true in a cluster, or with --port]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) enable_server: Option<String>,
    /// Address that the node's servers listen on [default: 0.0.0.0]
    #[arg(long, value_name = "IP")]
    pub(crate) address: Option<String>,
    /// Port of the HTTPS server [default: 10250]
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<String>,
    /// Port of the read-only server, without TLS or authentication; 0 disables it [default: 0]
    #[arg(long, value_name = "PORT")]
    pub(crate) read_only_port: Option<String>,
    /// Port of /healthz, without TLS; 0 disables it [default: 10248]
    #[arg(long, value_name = "PORT")]
    pub(crate) healthz_port: Option<String>,
    /// Address that /healthz listens on [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    pub(crate) healthz_bind_address: Option<String>,
    /// CA certificates (PEM) that client certificates are verified against
    #[arg(long, value_name = "FILE")]
    pub(crate) client_ca_file: Option<PathBuf>,
    /// Accept requests without credentials, as system:anonymous [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) anonymous_auth: Option<String>,
    /// Authenticate bearer tokens through the API server (TokenReview) [default: true in a cluster]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) authentication_token_webhook: Option<String>,
    /// How long the API server's answers about tokens are cached [default: 2m]
    #[arg(long, value_name = "DURATION")]
    pub(crate) authentication_token_webhook_cache_ttl: Option<String>,
    /// How requests are authorized: Webhook asks the API server, AlwaysAllow allows authenticated users everything [default: Webhook]
    #[arg(long, value_name = "MODE")]
    pub(crate) authorization_mode: Option<String>,
    /// How long allowed authorizations are cached [default: 5m]
    #[arg(long, value_name = "DURATION")]
    pub(crate) authorization_webhook_cache_authorized_ttl: Option<String>,
    /// How long denied authorizations are cached [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) authorization_webhook_cache_unauthorized_ttl: Option<String>,
    /// Certificate of the HTTPS server [default: from the API server, or made and self-signed]
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert_file: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_private_key_file: Option<PathBuf>,
    /// TLS 1.2 cipher suites, by their Go names, separated by commas
    #[arg(long, value_name = "NAMES")]
    pub(crate) tls_cipher_suites: Vec<String>,
    /// VersionTLS12 or VersionTLS13 [default: VersionTLS12]
    #[arg(long, value_name = "VERSION")]
    pub(crate) tls_min_version: Option<String>,
    /// Serve exec, attach, port-forward, logs and the debugging endpoints [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) enable_debugging_handlers: Option<String>,
    /// How long an exec, attach or port-forward may stay silent, 0 for as long as it likes [default: 4h]
    #[arg(long, value_name = "DURATION")]
    pub(crate) streaming_connection_idle_timeout: Option<String>,
}

/// How long a stream may stay silent where nothing is said.
const STREAMING_IDLE: Duration = Duration::from_secs(4 * 3600);

layer! {
    /// What one place says of the servers.
    ServerLayer {
        enabled: bool,
        address: IpAddr,
        port: u16,
        read_only_port: u16,
        healthz_port: u16,
        healthz_address: IpAddr,
        client_ca_file: PathBuf,
        anonymous: bool,
        token_webhook: bool,
        token_cache: Duration,
        authorization: Authorization,
        authorized_cache: Duration,
        unauthorized_cache: Duration,
        tls_cert_file: PathBuf,
        tls_key_file: PathBuf,
        cipher_suites: Vec<&'static str>,
        tls_min_version: tls::Version,
        debugging_handlers: bool,
        system_log_handler: bool,
        system_log_query: bool,
        profiling_handler: bool,
        debug_flags_handler: bool,
        streaming_idle_timeout: Duration,
    }
    tables {}
}

/// Who may do what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Authorization {
    /// The API server is asked.
    #[default]
    Webhook,
    /// Everyone who got in may do all.
    AlwaysAllow,
}

/// The node's servers, complete.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Server {
    /// Whether there is an HTTPS server.
    pub(crate) enabled: bool,
    /// Where HTTPS and the read-only port listen.
    pub(crate) address: IpAddr,
    /// Port of HTTPS.
    pub(crate) port: u16,
    /// Port of what anybody may read; `None` for none.
    pub(crate) read_only_port: Option<u16>,
    /// Port of /healthz; `None` for none.
    pub(crate) healthz_port: Option<u16>,
    /// Where /healthz listens.
    pub(crate) healthz_address: IpAddr,
    /// Certificates of those who sign client certificates; `None`: no client certificate counts.
    pub(crate) client_ca_file: Option<PathBuf>,
    /// Whether who shows nothing gets in as `system:anonymous`.
    pub(crate) anonymous: bool,
    /// Whether the API server is asked whose a bearer token is.
    pub(crate) token_webhook: bool,
    /// How long its answer counts.
    pub(crate) token_cache: Duration,
    /// Who may do what.
    pub(crate) authorization: Authorization,
    /// How long a yes counts.
    pub(crate) authorized_cache: Duration,
    /// How long a no counts.
    pub(crate) unauthorized_cache: Duration,
    /// Certificate and key; both or neither.
    pub(crate) tls_files: Option<(PathBuf, PathBuf)>,
    /// Cipher suites of TLS 1.2 and 1.3 by Go's names, all of which rustls has; empty for its own choice.
    pub(crate) cipher_suites: Vec<&'static str>,
    /// The oldest TLS that is spoken.
    pub(crate) tls_min_version: tls::Version,
    /// Whether exec, attach, port-forward, logs and the debugging routes are served.
    pub(crate) debugging_handlers: bool,
    /// Whether /logs is served.
    pub(crate) system_log_handler: bool,
    /// Whether /logs answers queries (NodeLogQuery).
    pub(crate) system_log_query: bool,
    /// Whether /debug/pprof is served.
    pub(crate) profiling_handler: bool,
    /// Whether /debug/flags/v is served.
    pub(crate) debug_flags_handler: bool,
    /// How long a stream may stay silent; zero for as long as it likes.
    pub(crate) streaming_idle_timeout: Duration,
}

impl ServerLayer {
    pub(super) fn from_flags(flags: &ServerFlags, note: &mut FlagNotes<'_>) -> ServerLayer {
        let port = |text: &str| values::port(values::whole(text)?);
        let time = |text: &str| duration::parse(text);
        ServerLayer {
            enabled: note.read("--enable-server", &flags.enable_server, values::boolean),
            address: note.read("--address", &flags.address, values::address),
            port: note.read("--port", &flags.port, |text| match port(text)? {
                0 => Err("expected a port from 1 to 65535; --enable-server=false turns the server off".to_owned()),
                port => Ok(port),
            }),
            read_only_port: note.read("--read-only-port", &flags.read_only_port, port),
            healthz_port: note.read("--healthz-port", &flags.healthz_port, port),
            healthz_address: note.read("--healthz-bind-address", &flags.healthz_bind_address, values::address),
            client_ca_file: given(&flags.client_ca_file),
            anonymous: note.read("--anonymous-auth", &flags.anonymous_auth, values::boolean),
            token_webhook: note.read(
                "--authentication-token-webhook",
                &flags.authentication_token_webhook,
                values::boolean,
            ),
            token_cache: note.read(
                "--authentication-token-webhook-cache-ttl",
                &flags.authentication_token_webhook_cache_ttl,
                time,
            ),
            authorization: note.read("--authorization-mode", &flags.authorization_mode, authorization),
            authorized_cache: note.read(
                "--authorization-webhook-cache-authorized-ttl",
                &flags.authorization_webhook_cache_authorized_ttl,
                time,
            ),
            unauthorized_cache: note.read(
                "--authorization-webhook-cache-unauthorized-ttl",
                &flags.authorization_webhook_cache_unauthorized_ttl,
                time,
            ),
            tls_cert_file: given(&flags.tls_cert_file),
            tls_key_file: given(&flags.tls_private_key_file),
            cipher_suites: note.all("--tls-cipher-suites", &flags.tls_cipher_suites, |text| {
                values::list(text).map(tls::cipher).collect()
            }),
            tls_min_version: note.read("--tls-min-version", &flags.tls_min_version, tls::version),
            debugging_handlers: note.read(
                "--enable-debugging-handlers",
                &flags.enable_debugging_handlers,
                values::boolean,
            ),
            streaming_idle_timeout: note.read(
                "--streaming-connection-idle-timeout",
                &flags.streaming_connection_idle_timeout,
                time,
            ),
            ..ServerLayer::default()
        }
    }

    /// Reads a field of this group; false when it is of another.
    pub(super) fn field(&mut self, reader: &mut Reader<'_>, key: &str, node: &Node) -> bool {
        match key {
            "address" => self.address = reader.text(key, node, |text| values::address(&text)),
            "authentication" => self.authentication(reader, node),
            "authorization" => self.authorization(reader, node),
            "enableDebugFlagsHandler" => self.debug_flags_handler = reader.boolean(key, node),
            "enableDebuggingHandlers" => self.debugging_handlers = reader.boolean(key, node),
            "enableProfilingHandler" => self.profiling_handler = reader.boolean(key, node),
            "enableServer" => self.enabled = reader.boolean(key, node),
            "enableSystemLogHandler" => self.system_log_handler = reader.boolean(key, node),
            "enableSystemLogQuery" => self.system_log_query = reader.boolean(key, node),
            "healthzBindAddress" => self.healthz_address = reader.text(key, node, |text| values::address(&text)),
            "healthzPort" => self.healthz_port = reader.whole(key, node, values::port),
            "port" => self.port = reader.whole(key, node, values::port),
            "readOnlyPort" => self.read_only_port = reader.whole(key, node, values::port),
            "streamingConnectionIdleTimeout" => {
                // Files are defaulted, flags are not (`SetDefaults_KubeletConfiguration`).
                let given = |time: Duration| Ok(if time.is_zero() { STREAMING_IDLE } else { time });
                self.streaming_idle_timeout = reader.duration(key, node, given);
            }
            "tlsCertFile" => self.tls_cert_file = reader.path(key, node),
            "tlsCipherSuites" => self.cipher_suites = reader.texts(key, node, tls::cipher),
            "tlsMinVersion" => self.tls_min_version = reader.text(key, node, |text| tls::version(&text)),
            "tlsPrivateKeyFile" => self.tls_key_file = reader.path(key, node),
            _ => return false,
        }
        true
    }

    fn authentication(&mut self, reader: &mut Reader<'_>, node: &Node) {
        for entry in reader.map("authentication", node) {
            let group = format!("authentication.{}", entry.key);
            if !matches!(entry.key.as_str(), "anonymous" | "webhook" | "x509") {
                reader.unknown(&group, &entry.key, entry.at.line, &["anonymous", "webhook", "x509"]);
                continue;
            }
            for inner in reader.map(&group, &entry.node) {
                let (field, node) = (format!("{group}.{}", inner.key), &inner.node);
                if tree::is_unset(&node.value) {
                    continue;
                }
                match (entry.key.as_str(), inner.key.as_str()) {
                    ("anonymous", "enabled") => self.anonymous = reader.boolean(&field, node),
                    ("webhook", "enabled") => self.token_webhook = reader.boolean(&field, node),
                    ("webhook", "cacheTTL") => self.token_cache = reader.duration(&field, node, Ok),
                    ("x509", "clientCAFile") => self.client_ca_file = reader.path(&field, node),
                    (_, other) => {
                        reader.unknown(&field, other, inner.at.line, &["enabled", "cacheTTL", "clientCAFile"])
                    }
                }
            }
        }
    }

    fn authorization(&mut self, reader: &mut Reader<'_>, node: &Node) {
        for entry in reader.map("authorization", node) {
            let field = format!("authorization.{}", entry.key);
            if tree::is_unset(&entry.node.value) {
                continue;
            }
            match entry.key.as_str() {
                "mode" => self.authorization = reader.text(&field, &entry.node, |text| authorization(&text)),
                "webhook" => {
                    for inner in reader.map(&field, &entry.node) {
                        let (field, node) = (format!("{field}.{}", inner.key), &inner.node);
                        if tree::is_unset(&node.value) {
                            continue;
                        }
                        match inner.key.as_str() {
                            "cacheAuthorizedTTL" => self.authorized_cache = reader.duration(&field, node, Ok),
                            "cacheUnauthorizedTTL" => self.unauthorized_cache = reader.duration(&field, node, Ok),
                            other => {
                                let known = ["cacheAuthorizedTTL", "cacheUnauthorizedTTL"];
                                reader.unknown(&field, other, inner.at.line, &known);
                            }
                        }
                    }
                }
                other => reader.unknown(&field, other, entry.at.line, &["mode", "webhook"]),
            }
        }
    }

    /// The group, complete, with the kubelet's defaults; those that its flags alone have (`applyLegacyDefaults`: anybody
    /// may do anything) are not taken over.
    pub(super) fn finish(self, in_cluster: bool, findings: &mut Findings) -> Server {
        let tls_files = match (self.tls_cert_file, self.tls_key_file) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                findings.problem("tlsCertFile", "works only together with tlsPrivateKeyFile: give both or neither");
                None
            }
        };
        if self.system_log_query == Some(true) && self.system_log_handler == Some(false) {
            findings.problem("enableSystemLogQuery", "needs enableSystemLogHandler: true");
        }
        // Alone nobody asks for it, and there is nobody to tell who may: only who names the port gets the server.
        let wanted = in_cluster || self.port.is_some() || self.enabled == Some(true);
        let enabled = wanted && self.enabled != Some(false);
        let authorization = self.authorization.unwrap_or_default();
        let anonymous = self.anonymous.unwrap_or(false);
        if enabled && authorization == Authorization::AlwaysAllow && anonymous {
            let message = "anonymous access with the authorization mode AlwaysAllow lets everybody who reaches the port \
                           run commands as root on this node; set --anonymous-auth=false or --authorization-mode=Webhook";
            findings.warnings.push(message.to_owned());
        }
        if enabled && authorization == Authorization::Webhook && !in_cluster {
            let message = "the node's server runs without an API server that could say who may use it, so it refuses \
                           everybody: name one with --kubeconfig, or set --authorization-mode=AlwaysAllow and \
                           --client-ca-file";
            findings.warnings.push(message.to_owned());
        }
        let (suites, missing) = tls::offered(self.cipher_suites.unwrap_or_default());
        if !missing.is_empty() {
            let message =
                format!("tlsCipherSuites: {} are not offered, for they are not safe any more", missing.join(", "));
            findings.warnings.push(message);
        }
        if suites.is_empty() && !missing.is_empty() {
            findings
                .problem("tlsCipherSuites", format!("none of them can be used; there are {}", tls::names().join(", ")));
        }
        let min_version = self.tls_min_version.unwrap_or_default();
        if min_version < tls::Version::Tls12 {
            findings.warnings.push("tlsMinVersion: TLS older than 1.2 is not supported; using 1.2".to_owned());
        }
        let time = |value: Option<Duration>, seconds| value.unwrap_or(Duration::from_secs(seconds));
        Server {
            enabled,
            address: self.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            port: self.port.unwrap_or(10250),
            read_only_port: self.read_only_port.filter(|port| *port != 0),
            healthz_port: Some(self.healthz_port.unwrap_or(10248)).filter(|port| *port != 0),
            healthz_address: self.healthz_address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            client_ca_file: self.client_ca_file,
            anonymous,
            token_webhook: self.token_webhook.unwrap_or(true) && in_cluster,
            token_cache: time(self.token_cache, 120),
            authorization,
            authorized_cache: time(self.authorized_cache, 300),
            unauthorized_cache: time(self.unauthorized_cache, 30),
            tls_files,
            cipher_suites: suites,
            tls_min_version: min_version.max(tls::Version::Tls12),
            debugging_handlers: self.debugging_handlers.unwrap_or(true),
            system_log_handler: self.system_log_handler.unwrap_or(true),
            system_log_query: self.system_log_query.unwrap_or(false),
            profiling_handler: self.profiling_handler.unwrap_or(true),
            debug_flags_handler: self.debug_flags_handler.unwrap_or(true),
            streaming_idle_timeout: self.streaming_idle_timeout.unwrap_or(STREAMING_IDLE),
        }
    }
}

fn authorization(text: &str) -> Result<Authorization, String> {
    match text {
        "Webhook" => Ok(Authorization::Webhook),
        "AlwaysAllow" => Ok(Authorization::AlwaysAllow),
        _ => Err(format!("expected Webhook or AlwaysAllow, got {text:?}")),
    }
}
