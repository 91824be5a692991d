//! Pairs of SPDY streams, data and error, that make one forward (cri-streaming `portforward/httpstream.go`).

use std::collections::{BTreeMap, HashMap};
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
    /// The names of the halves, by when they expire.
    expiries: BTreeMap<Expiry, String>,
}

/// A half's time, and its stream.
type Expiry = (Instant, u32);

/// The first stream of a pair.
#[derive(Debug)]
struct Half {
    stream: Stream,
    is_error: bool,
    expiry: Expiry,
}

impl Pairs {
    pub(crate) fn new(shared: Arc<Shared>, incoming: Incoming, timeout: Duration) -> Self {
        Self { shared, incoming, timeout, halves: HashMap::new(), expiries: BTreeMap::new() }
    }

    pub(crate) async fn next(&mut self) -> Option<Forward> {
        loop {
            let expiry = self.expiries.first_key_value().map(|((at, _), _)| *at);
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
                    self.expiries.remove(&half.expiry);
                    let stream = new.accept();
                    let (data, error) = if is_error { (half.stream, stream) } else { (stream, half.stream) };
                    let end = ForwardEnd { error, data: data.id(), _running: None };
                    return Some(Forward { port, data, end });
                }
                None => {
                    let stream = new.accept();
                    let expiry = (Instant::now() + self.timeout, stream.id());
                    self.expiries.insert(expiry, name.clone());
                    self.halves.insert(name, Half { stream, is_error, expiry });
                }
            }
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        while let Some(first) = self.expiries.first_entry().filter(|first| first.key().0 <= now) {
            let name = first.remove();
            if let Some(half) = self.halves.remove(&name) {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::options::Options;
    use crate::spdy::Session;

    /// A SPDY frame that opens a stream; its headers are in a stored block of the session's zlib stream.
    fn open(id: u32, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut text = (headers.len() as u32).to_be_bytes().to_vec();
        for part in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.extend_from_slice(&(part.len() as u32).to_be_bytes());
            text.extend_from_slice(part.as_bytes());
        }
        let mut body = [&id.to_be_bytes()[..], &[0; 6]].concat();
        if id == 1 {
            body.extend_from_slice(&[0x78, 0x01]);
        }
        let length = text.len() as u16;
        body.push(0);
        body.extend([length.to_le_bytes(), (!length).to_le_bytes()].concat());
        body.extend(text);
        [&[0x80, 3, 0, 1][..], &(body.len() as u32).to_be_bytes(), &body].concat()
    }

    /// One half that waits for the other does not have the others' names kept.
    #[tokio::test]
    async fn what_is_paired_is_forgotten() {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let (session, incoming) = Session::serve(server, Options::default());
        let mut pairs = Pairs::new(session.shared().clone(), incoming, Duration::from_secs(30));
        client.write_all(&open(1, &[("streamtype", "error"), ("port", "80"), ("requestid", "alone")])).await.unwrap();
        for request in 1..10u32 {
            let name = request.to_string();
            for (id, kind) in [(4 * request, "error"), (4 * request + 2, "data")] {
                let headers = [("streamtype", kind), ("port", "80"), ("requestid", name.as_str())];
                client.write_all(&open(id + 1, &headers)).await.unwrap();
            }
            assert_eq!(pairs.next().await.unwrap().port, 80);
        }
        assert_eq!((pairs.halves.len(), pairs.expiries.len()), (1, 1));
    }
}
