//! Which protocol a request asks for, and the answer 101 (k8s.io/streaming `pkg/httpstream/httpstream.go` `Handshake`,
//! `spdy/upgrade.go`, `wsstream/conn.go`; the sets of k8s.io/cri-streaming `pkg/streaming`). Picks the first of the
//! client's protocols that we speak, as these do; over WebSockets the newest wins, wherever it stands, as in the kubelet's server.

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const WS_PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");
const WS_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const WS_VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");
const WS_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// What is to be streamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// exec and attach.
    RemoteCommand,
    /// Port forwarding.
    PortForward,
}

/// The protocol that both sides speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// SPDY/3.1 streams; version 1 to 4 of `channel.k8s.io`, or `portforward.k8s.io`.
    Spdy {
        /// The subprotocol's version.
        version: u8,
    },
    /// WebSocket channels.
    Channels {
        /// Messages are base64 texts.
        base64: bool,
        /// 1 (before v4), 4 or 5.
        version: u8,
    },
    /// SPDY/3.1 inside binary WebSocket messages.
    Tunnel,
}

/// Why a request cannot be upgraded; the text is the body for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NegotiationError {
    /// Neither SPDY/3.1 nor WebSocket is asked for.
    #[error("Upgrade request required")]
    NoUpgrade,
    /// `X-Stream-Protocol-Version` says nothing.
    #[error("unable to upgrade: header X-Stream-Protocol-Version contains no valid protocols")]
    NoProtocols,
    /// No protocol in common.
    #[error(
        "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
        .client.join(" "),
        .server.join(" ")
    )]
    NoCommonProtocol {
        /// What the client offered.
        client: Vec<String>,
        /// What we speak.
        server: Vec<&'static str>,
        /// The client asked over SPDY, and is told what it could ask for.
        spdy: bool,
    },
    /// The WebSocket handshake lacks its key or has a wrong version.
    #[error("unable to upgrade: not a WebSocket handshake of version 13")]
    BadWebSocket,
}

impl NegotiationError {
    /// The HTTP status of the refusal.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::NoUpgrade => 500,
            Self::NoCommonProtocol { .. } => 403,
            Self::NoProtocols | Self::BadWebSocket => 400,
        }
    }

    /// Headers that the refusal carries.
    #[must_use]
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        match self {
            Self::NoCommonProtocol { server, spdy: true, .. } => {
                for protocol in server {
                    headers.append(ACCEPTED, HeaderValue::from_static(protocol));
                }
            }
            Self::BadWebSocket => {
                headers.insert(WS_VERSION, HeaderValue::from_static("13"));
            }
            _ => {}
        }
        headers
    }
}

/// What was agreed on.
#[derive(Debug, Clone)]
pub struct Agreement {
    protocol: Protocol,
    headers: HeaderMap,
}

impl Agreement {
    /// The protocol to serve on the upgraded connection.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The headers of the answer 101 Switching Protocols.
    #[must_use]
    pub fn headers(&self) -> HeaderMap {
        self.headers.clone()
    }
}

/// Whether a request asks for a WebSocket.
#[must_use]
pub fn is_websocket(headers: &HeaderMap) -> bool {
    upgrades(headers) && list(headers, &UPGRADE).iter().any(|name| name.eq_ignore_ascii_case("websocket"))
}

/// Picks the protocol of a request.
///
/// # Errors
/// What to refuse the request with.
pub fn negotiate(service: Service, headers: &HeaderMap) -> Result<Agreement, NegotiationError> {
    if is_websocket(headers) { websocket(service, headers) } else { spdy(service, headers) }
}

fn spdy(service: Service, headers: &HeaderMap) -> Result<Agreement, NegotiationError> {
    let server = match service {
        Service::RemoteCommand => {
            &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"][..]
        }
        Service::PortForward => &["portforward.k8s.io"],
    };
    let asked = list(headers, &UPGRADE).iter().any(|name| name.to_ascii_lowercase().contains("spdy/3.1"));
    if !asked || !upgrades(headers) {
        return Err(NegotiationError::NoUpgrade);
    }
    let mut answer = HeaderMap::new();
    let version = if headers.contains_key(&STREAM_PROTOCOL) {
        let client = list(headers, &STREAM_PROTOCOL);
        if client.is_empty() {
            return Err(NegotiationError::NoProtocols);
        }
        let Some(chosen) = client.iter().find_map(|name| server.iter().find(|known| *known == name)) else {
            return Err(NegotiationError::NoCommonProtocol { client, server: server.to_vec(), spdy: true });
        };
        answer.insert(STREAM_PROTOCOL, HeaderValue::from_static(chosen));
        version(chosen)
    } else {
        // Clients from before the negotiation, whom the kubelet refuses by now.
        1
    };
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    Ok(Agreement { protocol: Protocol::Spdy { version }, headers: answer })
}

fn websocket(service: Service, headers: &HeaderMap) -> Result<Agreement, NegotiationError> {
    let server = match service {
        Service::RemoteCommand => &[
            "",
            "channel.k8s.io",
            "base64.channel.k8s.io",
            "v4.channel.k8s.io",
            "v4.base64.channel.k8s.io",
            "base64.v4.channel.k8s.io",
            "v5.channel.k8s.io",
        ][..],
        Service::PortForward => &[
            "",
            "v4.channel.k8s.io",
            "v4.base64.channel.k8s.io",
            "base64.v4.channel.k8s.io",
            "portforward.k8s.io",
            "SPDY/3.1+portforward.k8s.io",
        ],
    };
    let key = headers.get(&WS_KEY).filter(|key| key.len() == 24).ok_or(NegotiationError::BadWebSocket)?;
    if headers.get(&WS_VERSION).is_none_or(|version| version != "13") {
        return Err(NegotiationError::BadWebSocket);
    }
    let mut client = list(headers, &WS_PROTOCOL);
    if client.is_empty() {
        client.push(String::new());
    }
    let newest = match service {
        Service::RemoteCommand => "v5.channel.k8s.io",
        Service::PortForward => "SPDY/3.1+portforward.k8s.io",
    };
    let mut offered = client.iter().filter(|name| *name == newest).chain(&client);
    let Some(chosen) = offered.find_map(|name| server.iter().find(|known| *known == name)) else {
        return Err(NegotiationError::NoCommonProtocol { client, server: server.to_vec(), spdy: false });
    };
    let protocol = if chosen.starts_with("SPDY/") {
        Protocol::Tunnel
    } else {
        Protocol::Channels { base64: chosen.contains("base64"), version: version(chosen) }
    };
    let mut answer = HeaderMap::new();
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    answer.insert(WS_ACCEPT, accept.map_err(|_| NegotiationError::BadWebSocket)?);
    if !chosen.is_empty() {
        answer.insert(WS_PROTOCOL, HeaderValue::from_static(chosen));
    }
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    Ok(Agreement { protocol, headers: answer })
}

fn version(protocol: &str) -> u8 {
    (1..=5).rev().find(|version| protocol.contains(&format!("v{version}."))).unwrap_or(1)
}

fn upgrades(headers: &HeaderMap) -> bool {
    list(headers, &CONNECTION).iter().any(|value| value.to_ascii_lowercase().contains("upgrade"))
}

fn list(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(|part| part.trim().to_owned())
        .filter(|part| !part.is_empty())
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn spdy_takes_the_clients_first() {
        let asked = headers(&[
            ("Connection", "Upgrade"),
            ("Upgrade", "SPDY/3.1"),
            ("X-Stream-Protocol-Version", "v9.channel.k8s.io"),
            ("X-Stream-Protocol-Version", "v3.channel.k8s.io, v4.channel.k8s.io"),
        ]);
        let agreed = negotiate(Service::RemoteCommand, &asked).unwrap();
        assert_eq!(agreed.protocol(), Protocol::Spdy { version: 3 });
        assert_eq!(agreed.headers()["X-Stream-Protocol-Version"], "v3.channel.k8s.io");
        let refused = negotiate(Service::PortForward, &asked).unwrap_err();
        assert_eq!((refused.status(), refused.headers().len()), (403, 1));
        let lists = "client supports [v9.channel.k8s.io v3.channel.k8s.io v4.channel.k8s.io], server accepts [portforward.k8s.io]";
        assert!(refused.to_string().ends_with(lists), "{refused}");
        assert_eq!(negotiate(Service::RemoteCommand, &headers(&[])).unwrap_err().status(), 500);
    }

    #[test]
    fn websocket_answers_the_key() {
        let ask = |protocol| {
            headers(&[
                ("connection", "keep-alive, Upgrade"),
                ("upgrade", "WebSocket"),
                ("sec-websocket-version", "13"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ("sec-websocket-protocol", protocol),
            ])
        };
        let agreed = negotiate(Service::RemoteCommand, &ask("v5.channel.k8s.io,v4.channel.k8s.io")).unwrap();
        assert_eq!(agreed.protocol(), Protocol::Channels { base64: false, version: 5 });
        assert_eq!(agreed.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let agreed = negotiate(Service::RemoteCommand, &ask("")).unwrap();
        assert_eq!(agreed.protocol(), Protocol::Channels { base64: false, version: 1 });
        assert!(!agreed.headers().contains_key("sec-websocket-protocol"));
        let agreed = negotiate(Service::RemoteCommand, &ask("base64.channel.k8s.io")).unwrap();
        assert_eq!(agreed.protocol(), Protocol::Channels { base64: true, version: 1 });
        let agreed = negotiate(Service::PortForward, &ask("SPDY/3.1+portforward.k8s.io")).unwrap();
        assert_eq!(agreed.protocol(), Protocol::Tunnel);
        assert_eq!(negotiate(Service::PortForward, &ask("chat")).unwrap_err().status(), 403);
    }
    #[test]
    fn every_name_is_its_protocol() {
        let socket = |protocol: &'static str| {
            [
                ("connection", "Upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-version", "13"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ("sec-websocket-protocol", protocol),
            ]
        };
        let channels = |base64, version| Protocol::Channels { base64, version };
        use Service::{PortForward, RemoteCommand};
        for (service, name, protocol) in [
            (RemoteCommand, "channel.k8s.io", channels(false, 1)),
            (RemoteCommand, "base64.channel.k8s.io", channels(true, 1)),
            (RemoteCommand, "v4.channel.k8s.io", channels(false, 4)),
            (RemoteCommand, "v4.base64.channel.k8s.io", channels(true, 4)),
            (RemoteCommand, "base64.v4.channel.k8s.io", channels(true, 4)),
            (RemoteCommand, "v5.channel.k8s.io", channels(false, 5)),
            (PortForward, "v4.channel.k8s.io", channels(false, 4)),
            (PortForward, "v4.base64.channel.k8s.io", channels(true, 4)),
            (PortForward, "base64.v4.channel.k8s.io", channels(true, 4)),
            (PortForward, "portforward.k8s.io", channels(false, 1)),
            (PortForward, "SPDY/3.1+portforward.k8s.io", Protocol::Tunnel),
        ] {
            let agreed = negotiate(service, &headers(&socket(name))).unwrap();
            assert_eq!(agreed.protocol(), protocol, "{name}");
            assert_eq!(agreed.headers()["sec-websocket-protocol"], name);
        }
        for (service, names, wins) in [
            (RemoteCommand, "v4.channel.k8s.io, v5.channel.k8s.io", "v5.channel.k8s.io"),
            (RemoteCommand, "channel.k8s.io, v4.channel.k8s.io", "channel.k8s.io"),
            (PortForward, "v4.channel.k8s.io, SPDY/3.1+portforward.k8s.io", "SPDY/3.1+portforward.k8s.io"),
        ] {
            let agreed = negotiate(service, &headers(&socket(names))).unwrap();
            assert_eq!(agreed.headers()["sec-websocket-protocol"], wins, "{names}");
        }
        // A name of the other service's, and what is no handshake.
        let refused = negotiate(PortForward, &headers(&socket("channel.k8s.io"))).unwrap_err();
        assert_eq!((refused.status(), refused.headers().len()), (403, 0));
        for (at, value) in [(2, "8"), (3, "short")] {
            let mut asked = socket("v4.channel.k8s.io");
            asked[at].1 = value;
            let refused = negotiate(RemoteCommand, &headers(&asked)).unwrap_err();
            assert_eq!((&refused, refused.status()), (&NegotiationError::BadWebSocket, 400));
            assert_eq!(refused.headers()["sec-websocket-version"], "13");
        }
        let plain = headers(&[("connection", "keep-alive"), ("upgrade", "websocket")]);
        assert_eq!(negotiate(RemoteCommand, &plain).unwrap_err(), NegotiationError::NoUpgrade);
    }
}
