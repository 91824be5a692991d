//! What clients of exec, attach and port-forward send.

use http::{HeaderMap, HeaderName, HeaderValue};
use longshore_streaming::fuzz;
use longshore_streaming::negotiate::{self, Service};

pub(crate) use fuzz::{command, forward, headers, sizes, spdy, tunnel, websocket};

/// The headers of a request that wants to be upgraded, one on a line.
pub(crate) fn upgrade(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(100) {
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':').unwrap_or(line.len()));
        let value = HeaderValue::from_bytes(value.strip_prefix(b":").unwrap_or(value));
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), value) {
            headers.append(name, value);
        }
    }
    for service in [Service::RemoteCommand, Service::PortForward] {
        match negotiate::negotiate(service, &headers) {
            Ok(agreed) => assert!(!agreed.headers().is_empty()),
            Err(error) => assert!((400..=500).contains(&error.status()), "{error}"),
        }
    }
}
