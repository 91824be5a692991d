//! One HTTP/2 connection: it may idle for a while, before its first request and after its last, and no longer. A client
//! that answers pings and asks nothing would else keep its place for ever. It must not know what is served.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::Service as _;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::{Bounds, HEAD};

/// Requests at a time on one connection.
const STREAMS: u32 = 100;
/// Streams that a client may reset before they are looked at.
const RESETS: usize = 20;
/// What waits to be sent, for each stream.
const UNSENT: usize = 64 << 10;
/// What a client may send ahead, on a stream and in all: bodies are a few bytes, and a stranger's waits for who it is.
const UNREAD: u32 = 64 << 10;

/// Serves a connection until one of both sides ends it.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    bounds: &Bounds,
    router: Router,
) {
    let (running, seen) = watch::channel(0);
    let running = Arc::new(running);
    let inner = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (counted, answer) = (Counted::new(&running), inner.call(request));
        async move { answer.await.map(|response| hold(response, counted)) }
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD as u32)
        .max_pending_accept_reset_streams(Some(RESETS))
        .max_send_buf_size(UNSENT)
        .initial_connection_window_size(UNREAD)
        .initial_stream_window_size(UNREAD)
        .keep_alive_interval(Some(bounds.header))
        .keep_alive_timeout(bounds.handshake);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut limits = (bounds.header, bounds.idle);
    // Told to go first: a request that is on its way is answered, and others come on another connection.
    for farewell in [false, true] {
        tokio::select! {
            done = &mut connection => {
                if let Err(error) = done {
                    tracing::debug!(%error, "an HTTP/2 connection broke");
                }
                return;
            }
            () = idle(seen.clone(), limits) => {}
        }
        if !farewell {
            connection.as_mut().graceful_shutdown();
            limits = (bounds.handshake, bounds.handshake);
        }
    }
}

/// Returns when nothing was asked for so long: before the first request, and after one.
async fn idle(mut running: watch::Receiver<usize>, (first, later): (Duration, Duration)) {
    let mut limit = first;
    loop {
        let busy = *running.borrow_and_update() > 0;
        let change = async { running.changed().await.is_ok() };
        let changed = match busy {
            true => change.await,
            false => matches!(tokio::time::timeout(limit, change).await, Ok(true)),
        };
        if !changed {
            return;
        }
        limit = later;
    }
}

/// A request that runs.
struct Counted(Arc<watch::Sender<usize>>);

impl Counted {
    fn new(running: &Arc<watch::Sender<usize>>) -> Counted {
        running.send_modify(|count| *count += 1);
        Counted(running.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// An answer's body counts until it is sent. That of a refusal does not: it is short, and who never takes it is not to
/// stay for it.
fn hold(response: Response<Body>, counted: Counted) -> Response<Held> {
    let counted = response.status().is_success().then_some(counted);
    response.map(|body| Held { body, _counted: counted })
}

struct Held {
    body: Body,
    _counted: Option<Counted>,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
