//! Accepting connections within bounds: in all, per client, and in time. It must not know what is served.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use longshore_core::ports::reviews::User;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::ServerConfig;
use crate::tls::Tls;

/// Bytes of a request's head.
const HEAD: usize = 64 << 10;
/// Headers of a request.
const HEADERS: usize = 100;
/// Requests at a time on one HTTP/2 connection.
const STREAMS: u32 = 100;
/// After an accept that failed, e.g. for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// So long requests may go on after the stop.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a connection's requests know of it.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// `Some(None)`: a certificate of no CA of ours.
    pub(crate) certificate: Option<Option<User>>,
    /// Its place among the connections.
    pub(crate) held: Held,
}

/// A connection's place, for streams that outlive its HTTP: they count on, and end when the server does.
#[derive(Clone)]
pub(crate) struct Held {
    _place: Arc<Place>,
    tasks: TaskTracker,
    end: CancellationToken,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Held")
    }
}

impl Held {
    /// Does a stream's work until it is done or the server ends.
    pub(crate) fn spawn(self, work: impl Future<Output = ()> + Send + 'static) {
        let tasks = self.tasks.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = self.end.cancelled() => {}
                () = work => {}
            }
        });
    }
}

/// How many connections there are.
pub(crate) struct Bounds {
    all: Arc<Semaphore>,
    per_client: usize,
    clients: Mutex<HashMap<IpAddr, usize>>,
    header: Duration,
    handshake: Duration,
}

/// A place for one connection.
pub(crate) struct Place {
    bounds: Arc<Bounds>,
    client: IpAddr,
    _of_all: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.bounds.clients.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(count) = clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

impl Bounds {
    pub(crate) fn new(config: &ServerConfig) -> Arc<Bounds> {
        Arc::new(Bounds {
            all: Arc::new(Semaphore::new(config.connections.max(1))),
            per_client: config.connections_per_client.max(1),
            clients: Mutex::new(HashMap::new()),
            header: config.header_limit,
            handshake: config.handshake_limit,
        })
    }

    fn place(self: &Arc<Bounds>, client: IpAddr) -> Option<Place> {
        let of_all = self.all.clone().try_acquire_owned().ok()?;
        let mut clients = self.clients.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let count = clients.entry(client).or_default();
        if *count >= self.per_client {
            return None;
        }
        *count += 1;
        Some(Place { bounds: self.clone(), client, _of_all: of_all })
    }
}

/// Serves until the stop. Without `tls` it is plain HTTP/1.1.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    bounds: Arc<Bounds>,
    router: Router,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    let hard = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Beyond the bounds a connection is closed at once: that costs less than anything that it could be told.
        let Some(place) = bounds.place(client_of(from)) else { continue };
        let (tls, bounds, router, hard) = (tls.clone(), bounds.clone(), router.clone(), hard.clone());
        let held = Held { _place: Arc::new(place), tasks: connections.clone(), end: hard.clone() };
        connections.spawn(async move {
            tokio::select! {
                () = hard.cancelled() => {}
                () = connection(stream, tls, &bounds, router, held) => {}
            }
        });
    }
    drop(listener);
    connections.close();
    let _ = tokio::time::timeout(FAREWELL, connections.wait()).await;
    hard.cancel();
    connections.wait().await;
}

/// A client of IPv6 has at least a /64.
fn client_of(from: SocketAddr) -> IpAddr {
    match from.ip().to_canonical() {
        IpAddr::V6(ip) => {
            let net = u128::from(ip) & !u128::from(u64::MAX);
            IpAddr::V6(if ip.is_loopback() { ip } else { net.into() })
        }
        v4 => v4,
    }
}

async fn connection(stream: TcpStream, tls: Option<Arc<Tls>>, bounds: &Bounds, router: Router, held: Held) {
    // Without it small pieces of interactive streams wait for each other.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return http1(stream, bounds, router.layer(Extension(Peer { certificate: None, held }))).await;
    };
    let acceptor = tokio_rustls::TlsAcceptor::from(tls.current().server.clone());
    let stream = match tokio::time::timeout(bounds.handshake, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return,
    };
    let session = stream.get_ref().1;
    let http2 = session.alpn_protocol() == Some(b"h2");
    let certificate = session.peer_certificates().filter(|chain| !chain.is_empty()).map(|chain| tls.client(chain));
    let router = router.layer(Extension(Peer { certificate, held }));
    if !http2 {
        return http1(stream, bounds, router).await;
    }
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD as u32)
        .max_pending_accept_reset_streams(Some(20))
        .max_send_buf_size(64 << 10)
        .keep_alive_interval(Some(bounds.header))
        .keep_alive_timeout(bounds.handshake);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await {
        tracing::debug!(%error, "an HTTP/2 connection broke");
    }
}

async fn http1(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, bounds: &Bounds, router: Router) {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(bounds.header).max_headers(HEADERS).max_buf_size(HEAD);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = connection.with_upgrades().await {
        tracing::debug!(%error, "a connection broke");
    }
}
