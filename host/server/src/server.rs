//! The server as a whole: binds its addresses, and serves until told to stop.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::access::Access;
use crate::config::{Certificates, Parts, ServerConfig};
use crate::listen::{self, Bounds};
use crate::routes::{self, Api, Group};
use crate::tls::Tls;

/// Why the server cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An address cannot be listened on.
    #[error("{address} cannot be listened on; is another kubelet running?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What went wrong.
        source: std::io::Error,
    },
    /// A file of certificates cannot be read or written.
    #[error("{path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// Certificates that cannot be used.
    #[error("{message}")]
    Certificate {
        /// What is wrong.
        message: String,
    },
    /// A cipher suite that is not known or not safe.
    #[error("there is no cipher suite {name:?}; known are {known}")]
    CipherSuite {
        /// Its name.
        name: String,
        /// All names.
        known: String,
    },
    /// A version of TLS that is not known.
    #[error("there is no TLS version {name:?}; known are VersionTLS12 and VersionTLS13")]
    TlsVersion {
        /// Its name.
        name: String,
    },
}

/// The node's server, bound to its addresses.
pub struct Server {
    config: ServerConfig,
    api: Arc<Api>,
    tls: Option<Arc<Tls>>,
    https: Option<TcpListener>,
    read_only: Option<TcpListener>,
    healthz: Option<TcpListener>,
}

async fn listen(address: Option<SocketAddr>) -> Result<Option<TcpListener>, ServerError> {
    let Some(address) = address else { return Ok(None) };
    let bound = TcpListener::bind(address).await;
    bound.map(Some).map_err(|source| ServerError::Listen { address, source })
}

fn address(listener: Option<&TcpListener>) -> Option<SocketAddr> {
    listener.and_then(|listener| listener.local_addr().ok())
}

impl Server {
    /// Reads the certificates and binds the addresses; nothing is answered yet.
    pub async fn bind(config: ServerConfig, parts: Parts) -> Result<Server, ServerError> {
        let tls = match config.address {
            Some(_) => Some(Arc::new(Tls::new(&config)?)),
            None => None,
        };
        let access = Access::new(&config, parts.reviews.clone());
        Ok(Server {
            https: listen(config.address).await?,
            read_only: listen(config.read_only).await?,
            healthz: listen(config.healthz).await?,
            api: Arc::new(Api::new(config.clone(), parts, access)),
            tls,
            config,
        })
    }

    /// Where HTTPS is served.
    pub fn https_address(&self) -> Option<SocketAddr> {
        address(self.https.as_ref())
    }

    /// Where the read-only port is served.
    pub fn read_only_address(&self) -> Option<SocketAddr> {
        address(self.read_only.as_ref())
    }

    /// Where health is served.
    pub fn healthz_address(&self) -> Option<SocketAddr> {
        address(self.healthz.as_ref())
    }

    /// Serves until the stop; requests under way get two seconds then.
    pub async fn serve(self, stop: CancellationToken) {
        let serve = |listener: Option<TcpListener>, tls: Option<Arc<Tls>>, group: Group| {
            // Each has bounds of its own: a flood of one port leaves the others alone.
            let (bounds, stop) = (Bounds::new(&self.config), stop.clone());
            let router = routes::router(self.api.clone(), group);
            async move {
                if let Some(listener) = listener {
                    listen::serve(listener, tls, bounds, router, stop).await;
                }
            }
        };
        let https = serve(self.https, self.tls.clone(), Group::Guarded);
        let read_only = serve(self.read_only, None, Group::ReadOnly);
        let healthz = serve(self.healthz, None, Group::Health);
        let reload = reload(&self.config, self.tls.clone(), stop.clone());
        tokio::join!(https, read_only, healthz, reload);
    }
}

/// Follows the files and the watched certificate.
async fn reload(config: &ServerConfig, tls: Option<Arc<Tls>>, stop: CancellationToken) {
    let Some(tls) = tls else { return };
    let mut watched = match &config.certificates {
        Certificates::Watched(watched) => Some(watched.clone()),
        _ => None,
    };
    loop {
        let changed = async {
            if let Some(watched) = &mut watched
                && watched.changed().await.is_ok()
            {
                return;
            }
            std::future::pending().await
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(config.reload) => {}
            () = changed => {}
        }
        let tls = tls.clone();
        // Files may be on a slow disk.
        let _ = tokio::task::spawn_blocking(move || tls.reload()).await;
    }
}
