//! The server as a whole: binds its addresses, and serves until told to stop.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

use crate::access::Access;
use crate::config::{Certificates, Parts, ServerConfig};
use crate::listen::{self, Bounds};
use crate::routes::{self, Api, Group};
use crate::tls::Tls;

/// Why the server cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
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

/// Waits between two tries to listen on an address that is taken or not there yet.
const RETRY: Duration = Duration::from_secs(5);
/// Connections that wait to be accepted, as with `TcpListener::bind`.
const BACKLOG: u32 = 1024;

/// The node's server, bound to its addresses.
pub struct Server {
    config: ServerConfig,
    api: Arc<Api>,
    tls: Option<Arc<Tls>>,
    https: Port,
    read_only: Port,
    healthz: Port,
}

/// An address to listen on, where one is wanted, and the listener, once it could be had.
struct Port {
    what: &'static str,
    address: Option<SocketAddr>,
    listener: Option<TcpListener>,
}

impl Port {
    async fn bind(what: &'static str, address: Option<SocketAddr>) -> Port {
        let mut port = Port { what, address, listener: None };
        if let Err(error) = port.listen().await {
            port.say(&error);
        }
        port
    }

    async fn listen(&mut self) -> std::io::Result<()> {
        if let Some(address) = self.address {
            self.listener = Some(open(address).await?);
        }
        Ok(())
    }

    fn say(&self, error: &std::io::Error) {
        let address = self.address.map(|address| address.to_string()).unwrap_or_default();
        tracing::error!(
            "{} cannot be served on {address}: {error}; is another kubelet running? Trying again every {RETRY:?}",
            self.what
        );
    }

    fn address(&self) -> Option<SocketAddr> {
        self.listener.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// The listener, as soon as it can be had; never, where none is wanted.
    async fn listener(mut self) -> TcpListener {
        loop {
            if let Some(listener) = self.listener {
                return listener;
            }
            if self.address.is_none() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(RETRY).await;
            match self.listen().await {
                Ok(()) => tracing::info!("{} is served now", self.what),
                Err(error) => tracing::debug!(%error, "{} cannot be served yet", self.what),
            }
        }
    }
}

/// Listens on an address. All of IPv4 are all of IPv6 as well where there is IPv6: as Go's `net.Listen`, by which the kubelet's
/// `--address=0.0.0.0` is meant.
async fn open(address: SocketAddr) -> std::io::Result<TcpListener> {
    if address.ip() == Ipv4Addr::UNSPECIFIED
        && let Ok(listener) = on_both(address.port())
    {
        return Ok(listener);
    }
    TcpListener::bind(address).await
}

fn on_both(port: u16) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    sockopt::set_ipv6_v6only(&socket, false)?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
    socket.listen(BACKLOG)
}

impl Server {
    /// Reads the certificates and binds the addresses; nothing is answered yet. An address that cannot be had is no
    /// error, for the node's pods need it less than they need the node: it is named in the log, and tried again.
    pub async fn bind(config: ServerConfig, parts: Parts) -> Result<Server, ServerError> {
        let tls = match config.address {
            Some(_) => Some(Arc::new(Tls::new(&config)?)),
            None => None,
        };
        let access = Access::new(&config, parts.reviews.clone());
        Ok(Server {
            https: Port::bind("HTTPS", config.address).await,
            read_only: Port::bind("the read-only port", config.read_only).await,
            healthz: Port::bind("/healthz", config.healthz).await,
            api: Arc::new(Api::new(config.clone(), parts, access)),
            tls,
            config,
        })
    }

    /// Where HTTPS is served.
    pub fn https_address(&self) -> Option<SocketAddr> {
        self.https.address()
    }

    /// Where the read-only port is served.
    pub fn read_only_address(&self) -> Option<SocketAddr> {
        self.read_only.address()
    }

    /// Where health is served.
    pub fn healthz_address(&self) -> Option<SocketAddr> {
        self.healthz.address()
    }

    /// Serves until the stop; requests under way get two seconds then.
    pub async fn serve(self, stop: CancellationToken) {
        let serve = |port: Port, tls: Option<Arc<Tls>>, group: Group| {
            // Each has bounds of its own: a flood of one port leaves the others alone.
            let (bounds, stop) = (Bounds::new(&self.config), stop.clone());
            let router = routes::router(self.api.clone(), group);
            async move {
                // Cancel safe: a listener that was not handed out is closed.
                if let Some(listener) = stop.run_until_cancelled(port.listener()).await {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn all_addresses_are_those_of_ipv6_too() {
        let listener = open("0.0.0.0:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
        }
        let one = open("127.0.0.1:0".parse().unwrap()).await.unwrap();
        assert!(one.local_addr().unwrap().is_ipv4(), "one that is named is that one alone");
    }
}
