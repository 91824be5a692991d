//! Where a plugin that probes nothing may send requests, and whose certificates are believed there. It must not send any.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::RootCertStore;
use rustls::client::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Socket, tls};

/// The hosts that a plugin was granted. Each may be reached on every port, over http and https.
#[derive(Debug)]
pub(crate) struct Web {
    /// Names and addresses, without brackets, in lower case.
    hosts: Vec<String>,
    /// A file of certificates (PEM) that are believed in place of the system's.
    ca_file: Option<PathBuf>,
    /// The system's, once they were needed.
    system: OnceLock<Result<Arc<ClientConfig>, String>>,
}

impl Web {
    pub(crate) fn new(hosts: impl IntoIterator<Item = String>, ca_file: Option<PathBuf>) -> Self {
        let hosts = hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect();
        Self { hosts, ca_file, system: OnceLock::new() }
    }

    /// Whether a host (no brackets) was granted.
    pub(crate) fn allows(&self, host: &str) -> bool {
        self.hosts.iter().any(|granted| granted.eq_ignore_ascii_case(host))
    }

    /// Speaks TLS on a connection, and makes sure that its other end is `host`.
    pub(crate) async fn secure(&self, socket: Socket, host: &str) -> Result<TlsStream<Socket>, String> {
        let config = self.config()?;
        let server = ServerName::try_from(host.to_owned()).map_err(|_| format!("{host:?} is not a server name"))?;
        TlsConnector::from(config).connect(server, socket).await.map_err(|error| tls::text(&error))
    }

    fn config(&self) -> Result<Arc<ClientConfig>, String> {
        match &self.ca_file {
            // Read each time, some times a minute at most: certificates are replaced while we run.
            Some(file) => of_file(file),
            None => self.system.get_or_init(of_system).clone(),
        }
    }
}

fn of_file(file: &Path) -> Result<Arc<ClientConfig>, String> {
    let shown = file.display();
    let listed =
        CertificateDer::pem_file_iter(file).map_err(|error| format!("CA file {shown} cannot be read: {error}"))?;
    let mut roots = RootCertStore::empty();
    for certificate in listed {
        let certificate = certificate.map_err(|error| format!("CA file {shown} is not PEM: {error}"))?;
        roots
            .add(certificate)
            .map_err(|error| format!("CA file {shown} has a certificate that is not a CA's: {error}"))?;
    }
    if roots.is_empty() {
        return Err(format!("CA file {shown} holds no certificate (expected PEM)"));
    }
    with_roots(roots)
}

fn of_system() -> Result<Arc<ClientConfig>, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err("this machine has no CA certificates: install ca-certificates, or name a CA file".to_owned());
    }
    with_roots(roots)
}

fn with_roots(roots: RootCertStore) -> Result<Arc<ClientConfig>, String> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
