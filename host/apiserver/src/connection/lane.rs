//! The way to one API server: TCP, proxy, TLS, headers. It must not choose between servers nor watch files.

use std::time::Duration;

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::Config;
use kube::client::{Body, ConfigExt};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Layer, Service, ServiceExt};

/// TCP, proxy and TLS must be ready within this.
const CONNECT: Duration = Duration::from_secs(10);
/// A silent peer is asked so early, so often, so many times: it is known dead after half a minute.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(5), 4);
/// What was sent must be acknowledged within this.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// Idle connections are closed after this.
const IDLE: Duration = Duration::from_secs(90);

/// Sends requests to one server.
pub(crate) type LaneService = BoxCloneSyncService<Request<Body>, Response<Incoming>, BoxError>;

/// An API server and how to send to it.
#[derive(Clone)]
pub(crate) struct Lane {
    /// Its address, for messages.
    pub(crate) address: String,
    pub(crate) service: LaneService,
}

/// Sets up the way to `server`. May run an exec plugin, hence may block.
pub(crate) fn lane(config: &Config, server: &Uri) -> Result<Lane, kube::Error> {
    let mut config = config.clone();
    config.cluster_url = server.clone();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(KEEPALIVE.0));
    tcp.set_keepalive_interval(Some(KEEPALIVE.1));
    tcp.set_keepalive_retries(Some(KEEPALIVE.2));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let service = match &config.proxy_url {
        Some(proxy) => over(&config, Tunnel::new(proxy.clone(), tcp))?,
        None => over(&config, tcp)?,
    };
    Ok(Lane { address: server.to_string().trim_end_matches('/').to_owned(), service })
}

fn over<C>(config: &Config, connector: C) -> Result<LaneService, kube::Error>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response:
        hyper_util::client::legacy::connect::Connection + hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: Into<BoxError> + std::error::Error + Send + Sync + 'static,
{
    // It offers HTTP/1.1 only: each watch has a connection of its own, so a hundred of them do not stand in a queue for
    // the streams that one HTTP/2 connection has. TCP's own keepalive finds dead peers.
    let tls = config.rustls_https_connector_with_connector(connector)?;
    let timed = tower::service_fn(move |uri: Uri| {
        let tls = tls.clone();
        Box::pin(async move {
            match tokio::time::timeout(CONNECT, tls.oneshot(uri)).await {
                Ok(connected) => connected,
                Err(_) => Err(BoxError::from(std::io::Error::from(std::io::ErrorKind::TimedOut))),
            }
        })
    });
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .build::<_, Body>(timed)
        .map_err(BoxError::from);
    let client = config.extra_headers_layer()?.layer(client);
    let base = config.base_uri_layer();
    Ok(match config.auth_layer()? {
        Some(auth) => BoxCloneSyncService::new(base.layer(auth.layer(client))),
        None => BoxCloneSyncService::new(base.layer(client)),
    })
}

/// Whether a request was never sent, so that another server may be asked whatever it was.
pub(crate) fn was_not_sent(error: &BoxError) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error.as_ref());
    while let Some(cause) = next {
        if let Some(error) = cause.downcast_ref::<hyper_util::client::legacy::Error>() {
            return error.is_connect();
        }
        next = cause.source();
    }
    false
}
