//! Accepting connections within bounds: in all, per client, and in time. It must not know what is served.

mod http2;
mod writes;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::Service as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::ServerConfig;
use crate::tls::{Shown, Tls};
use writes::Writes;

/// Bytes of a request's head.
const HEAD: usize = 64 << 10;
/// What is read of a connection at a time.
const AHEAD: usize = 16 << 10;
/// Headers of a request.
const HEADERS: usize = 100;
/// A peer that says nothing is asked after so long, again so often, and given up after so many questions: what Go's
/// listeners do (`net.KeepAliveConfig`). A stream of one whose machine is gone would else keep all that it holds.
const ALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(15), 9);
/// After an accept that failed, e.g. for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// So long requests may go on after the stop.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a connection's requests know of it.
#[derive(Clone)]
pub(crate) struct Peer {
    /// The certificates that it showed.
    pub(crate) certificate: Option<Arc<Shown>>,
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

impl Held {
    /// Does a stream's work until it is done or the server ends.
    pub(crate) fn spawn(self, work: impl Future<Output = ()> + Send + 'static) {
        let tasks = self.tasks.clone();
        tasks.spawn(async move {
            // The whole of it: a block that names one field takes that alone, and the place would be free at once.
            let held = self;
            tokio::select! {
                () = held.end.cancelled() => {}
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
    idle: Duration,
    paused: Duration,
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
            idle: config.idle_limit,
            paused: config.streaming_idle,
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

/// Has the kernel ask a silent peer whether it is there.
fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    let (idle, interval, count) = ALIVE;
    sockopt::set_tcp_keepidle(stream, idle)?;
    sockopt::set_tcp_keepintvl(stream, interval)?;
    sockopt::set_tcp_keepcnt(stream, count)?;
    Ok(sockopt::set_socket_keepalive(stream, true)?)
}

async fn connection(stream: TcpStream, tls: Option<Arc<Tls>>, bounds: &Bounds, router: Router, held: Held) {
    // Without it small pieces of interactive streams wait for each other.
    let _ = stream.set_nodelay(true);
    if let Err(error) = keep_alive(&stream) {
        tracing::debug!(%error, "a connection that dies is not noticed");
    }
    let Some(tls) = tls else {
        return http1(stream, bounds, router.layer(Extension(Peer { certificate: None, held }))).await;
    };
    // A TLS session by itself asks for 4 KiB at a time.
    let stream = BufReader::with_capacity(AHEAD, stream);
    let acceptor = tokio_rustls::TlsAcceptor::from(tls.current().server.clone());
    let stream = match tokio::time::timeout(bounds.handshake, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return,
    };
    let session = stream.get_ref().1;
    let http2 = session.alpn_protocol() == Some(b"h2");
    let chain = session.peer_certificates().filter(|chain| !chain.is_empty());
    let certificate = chain.map(|chain| Arc::new(Shown::new(tls.clone(), chain)));
    let router = router.layer(Extension(Peer { certificate, held }));
    if !http2 {
        return http1(stream, bounds, router).await;
    }
    http2::serve(stream, bounds, router).await;
}

async fn http1(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, bounds: &Bounds, router: Router) {
    let (limit, limits) = watch::channel(Some(bounds.header));
    let stream = Writes::new(stream, limits);
    let (inner, header, paused) = (TowerToHyperService::new(router), bounds.header, bounds.paused);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (limit, answer) = (limit.clone(), inner.call(request));
        async move {
            let response = answer.await;
            limit.send_replace(match response.as_ref().map(|response| response.status()) {
                // What comes then has limits of its own.
                Ok(StatusCode::SWITCHING_PROTOCOLS) => None,
                // A log may be read in a pager. Who is refused is not to stay for that.
                Ok(status) if status.is_success() => Some(paused),
                _ => Some(header),
            });
            response
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(bounds.header).max_headers(HEADERS).max_buf_size(HEAD);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.with_upgrades().await {
        tracing::debug!(%error, "a connection broke");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_peer_is_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        assert!(!sockopt::socket_keepalive(&far).unwrap());
        keep_alive(&far).unwrap();
        assert!(sockopt::socket_keepalive(&far).unwrap());
        let read = (sockopt::tcp_keepidle(&far).unwrap(), sockopt::tcp_keepintvl(&far).unwrap());
        assert_eq!((read.0, read.1, sockopt::tcp_keepcnt(&far).unwrap()), ALIVE);
    }
}
