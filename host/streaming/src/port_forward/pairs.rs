//! Pairs of SPDY streams, data and error, that make one forward (cri-streaming `portforward/httpstream.go`).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Forward, ForwardEnd};
use crate::mux::{Shared, Stream};
use crate::spdy::{Headers, Incoming};

/// Pairs streams by their request.
#[derive(Debug)]
pub(crate) struct Pairs {
    shared: Arc<Shared>,
    incoming: Incoming,
    timeout: Duration,
    halves: HashMap<String, Half>,
    /// When halves expire, the oldest first, with their stream: a request's name may come again.
    expiries: VecDeque<(Instant, String, u32)>,
}

/// The first stream of a pair.
#[derive(Debug)]
struct Half {
    stream: Stream,
    is_error: bool,
}

impl Pairs {
    pub(crate) fn new(shared: Arc<Shared>, incoming: Incoming, timeout: Duration) -> Self {
        Self { shared, incoming, timeout, halves: HashMap::new(), expiries: VecDeque::new() }
    }

    pub(crate) async fn next(&mut self) -> Option<Forward> {
        loop {
            self.forget_paired();
            let expiry = self.expiries.front().map(|(at, ..)| *at);
            let new = tokio::select! {
                new = self.incoming.next() => new?,
                () = async {
                    match expiry {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                } => {
                    self.expire();
                    continue;
                }
            };
            let (port, is_error) = match request(new.headers()) {
                Ok(request) => request,
                Err(error) => {
                    tracing::debug!(%error, "refused a stream for port forwarding");
                    new.refuse();
                    continue;
                }
            };
            // Old clients name no request: their streams are numbered in turn, the error first.
            let name = match new.headers().get("requestID").filter(|name| !name.is_empty()) {
                Some(name) => name.to_owned(),
                None => if is_error { new.id() } else { new.id().saturating_sub(2) }.to_string(),
            };
            match self.halves.remove(&name) {
                Some(half) if half.is_error == is_error => {
                    let kind = if is_error { "error" } else { "data" };
                    self.fail(
                        &half,
                        &format!("error processing stream for request {name}: {kind} stream already assigned"),
                    );
                    new.refuse();
                    self.halves.insert(name, half);
                }
                Some(half) => {
                    let stream = new.accept();
                    let (data, error) = if is_error { (half.stream, stream) } else { (stream, half.stream) };
                    let end = ForwardEnd { error, data: data.id(), _running: None };
                    return Some(Forward { port, data, end });
                }
                None => {
                    let stream = new.accept();
                    self.expiries.push_back((Instant::now() + self.timeout, name.clone(), stream.id()));
                    self.halves.insert(name, Half { stream, is_error });
                }
            }
        }
    }

    fn forget_paired(&mut self) {
        while let Some((_, name, id)) = self.expiries.front() {
            if self.halves.get(name).is_some_and(|half| half.stream.id() == *id) {
                break;
            }
            self.expiries.pop_front();
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        while self.expiries.front().is_some_and(|(at, ..)| *at <= now) {
            let Some((_, name, id)) = self.expiries.pop_front() else { return };
            if self.halves.get(&name).is_some_and(|half| half.stream.id() == id)
                && let Some(half) = self.halves.remove(&name)
            {
                tracing::debug!(request = name, "timed out waiting for streams");
                self.fail(&half, &format!("(request={name}) timed out waiting for streams"));
            }
        }
    }

    fn fail(&self, half: &Half, message: &str) {
        if half.is_error {
            self.shared.force(half.stream.id(), message.as_bytes());
        }
    }
}

/// The port, and whether this is the error stream.
fn request(headers: &Headers) -> Result<(u16, bool), String> {
    let port = headers.get("port").filter(|port| !port.is_empty()).ok_or(r#""port" header is required"#)?;
    let number = port.parse::<u16>().map_err(|error| format!("unable to parse {port:?} as a port: {error}"))?;
    if number == 0 {
        return Err(format!("port {port:?} must be > 0"));
    }
    match headers.get("streamType").unwrap_or_default() {
        "" => Err(r#""streamType" header is required"#.to_owned()),
        "error" => Ok((number, true)),
        "data" => Ok((number, false)),
        other => Err(format!("invalid stream type {other:?}")),
    }
}
