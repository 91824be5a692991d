//! The way to the daemon: endpoint, negotiated version, time limits. It must not know what is asked.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use bollard::errors::Error;
use bollard::{BollardRequest, ClientVersion};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode, Uri};
use longshore_core::ports::runtime::RuntimeError;
use serde::de::DeserializeOwned;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OnceCell;

use crate::entries::Entries;
use crate::fault::Fault;
use crate::lines::{Duplex, Lines};
use crate::wire;

/// Time limit of ordinary calls: the kubelet's `--runtime-request-timeout`.
pub(crate) const CALL: Duration = Duration::from_secs(120);
/// Time limit of questions about the daemon itself.
pub(crate) const ASK: Duration = Duration::from_secs(10);
/// An answer that is not a stream may be this long.
const ANSWER_LIMIT: usize = 64 << 20;
/// A list of containers: a few KiB each, but some MiB of one with very long arguments or labels.
const LIST_LIMIT: usize = 2 << 30;
/// The oldest API that has what we need: Docker 20.10.
const OLDEST: (usize, usize) = (1, 41);
/// The newest API that bollard's types were generated from.
const NEWEST: (usize, usize) = (1, 53);

/// Where the daemon listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Unix(PathBuf),
    Tcp(String),
}

impl Endpoint {
    /// Reads `unix:///path`, a bare absolute path, or `tcp://host:port`.
    pub(crate) fn parse(text: &str) -> Result<Endpoint, String> {
        if let Some(path) = text.strip_prefix("unix://").or_else(|| text.starts_with('/').then_some(text)) {
            if !path.starts_with('/') {
                return Err(format!("{text:?} names no absolute path, as in unix:///var/run/docker.sock"));
            }
            return Ok(Endpoint::Unix(PathBuf::from(path)));
        }
        if let Some(host) = text.strip_prefix("tcp://").or_else(|| text.strip_prefix("http://")) {
            let host = host.trim_end_matches('/');
            return match host.rsplit_once(':') {
                Some((name, port)) if !name.is_empty() && port.parse::<u16>().is_ok() => {
                    Ok(Endpoint::Tcp(host.to_owned()))
                }
                _ => Err(format!("{text:?} names no host and port, as in tcp://127.0.0.1:2375")),
            };
        }
        Err(format!("{text:?} is neither unix:///path nor tcp://host:port"))
    }

    async fn connect(self) -> io::Result<Box<dyn Duplex>> {
        match self {
            Endpoint::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Endpoint::Tcp(address) => {
                let stream = tokio::time::timeout(ASK, TcpStream::connect(address)).await??;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
        }
    }
}

/// What was agreed with a daemon; holds until it is replaced by another version of itself.
pub(crate) struct Session {
    /// bollard, speaking the agreed version.
    pub(crate) client: bollard::Docker,
    /// Version of the daemon.
    pub(crate) daemon: String,
    /// The agreed API version.
    pub(crate) api: (usize, usize),
    /// Its default log driver, once it was asked.
    pub(crate) log_driver: OnceCell<String>,
}

/// The way to one daemon, which may come and go.
pub(crate) struct Connection {
    /// As the operator wrote it, for messages.
    pub(crate) name: String,
    endpoint: Endpoint,
    lines: Lines,
    session: RwLock<Option<Arc<Session>>>,
    /// Held while a version is agreed, so that a crowd of callers asks once; when that failed last, and how.
    negotiation: tokio::sync::Mutex<Option<(Instant, Fault)>>,
}

impl Connection {
    pub(crate) fn new(name: &str) -> Result<Connection, RuntimeError> {
        let endpoint = Endpoint::parse(name)
            .map_err(|message| RuntimeError::Unreachable { endpoint: name.to_owned(), message })?;
        Ok(Connection {
            name: name.to_owned(),
            endpoint,
            lines: Lines::default(),
            session: RwLock::new(None),
            negotiation: tokio::sync::Mutex::new(None),
        })
    }

    /// The session in force, agreed upon now when there is none. Whoever waited while another tried that in vain does not
    /// try it anew: behind a daemon that hangs each would take its time in turn.
    pub(crate) async fn session(&self) -> Result<Arc<Session>, Fault> {
        if let Some(session) = self.known_session() {
            return Ok(session);
        }
        let began = Instant::now();
        let mut failed = self.negotiation.lock().await;
        if let Some(session) = self.known_session() {
            return Ok(session);
        }
        if let Some((at, fault)) = &*failed
            && *at >= began
        {
            return Err(fault.clone());
        }
        let session = match self.negotiate().await {
            Ok(session) => Arc::new(session),
            Err(fault) => {
                *failed = Some((Instant::now(), fault.clone()));
                return Err(fault);
            }
        };
        let (major, minor) = session.api;
        tracing::info!(endpoint = %self.name, daemon = %session.daemon, api = %format_args!("{major}.{minor}"), "connected to Docker");
        *self.session.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(session.clone());
        Ok(session)
    }

    fn known_session(&self) -> Option<Arc<Session>> {
        self.session.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Whether the daemon is on this machine, as far as its endpoint tells.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.endpoint, Endpoint::Unix(_))
    }

    /// Agrees upon a version anew at the next call: the daemon may be another one by now.
    pub(crate) fn forget_session(&self) {
        *self.session.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
    }

    async fn negotiate(&self) -> Result<Session, Fault> {
        let version: wire::Version = within(ASK, self.read(self.get("/version"))).await?;
        let parse = |text: &str| -> Option<(usize, usize)> {
            let (major, minor) = text.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        };
        let daemon = version.version.unwrap_or_default();
        let Some(offered) = version.api_version.as_deref().and_then(parse) else {
            return Err(Fault::Nonsense(format!("what answers at {} is not a Docker daemon", self.name)));
        };
        if offered < OLDEST {
            let (major, minor) = offered;
            let message =
                format!("Docker {daemon} speaks API {major}.{minor}; upgrade it to Docker 20.10 (API 1.41) or later");
            return Err(Fault::Answer { status: 400, message });
        }
        let api = offered.min(NEWEST);
        if let Some(least) = version.min_api_version.as_deref().and_then(parse).filter(|least| *least > api) {
            let message = format!(
                "Docker {daemon} wants API {}.{} at least; upgrade longshore, which speaks {}.{}",
                least.0, least.1, api.0, api.1
            );
            return Err(Fault::Answer { status: 400, message });
        }
        let (endpoint, lines) = (self.endpoint.clone(), self.lines.clone());
        let transport =
            move |request: BollardRequest| -> Pin<Box<dyn Future<Output = Result<Response<Incoming>, Error>> + Send>> {
                let (endpoint, lines) = (endpoint.clone(), lines.clone());
                Box::pin(async move { exchange(endpoint, &lines, request).await })
            };
        // bollard's own limit would cut long stops and pulls short; each call here has a limit of its own.
        let client = bollard::Docker::connect_with_custom_transport(
            transport,
            Some("http://docker"),
            Duration::from_secs(365 * 24 * 3600).as_secs(),
            &ClientVersion { major_version: api.0, minor_version: api.1 },
        )
        .map_err(|error| Fault::from_bollard(error, &self.name))?;
        Ok(Session { client, daemon, api, log_driver: OnceCell::new() })
    }

    /// Makes a call through bollard. When the daemon says that it does not speak the agreed version (it was
    /// replaced), a new one is agreed upon and the call is made again. The limit is for all of that, as it is below.
    pub(crate) async fn call<T, F>(&self, limit: Duration, make: impl Fn(bollard::Docker) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let once = || async {
            let session = self.session().await?;
            make(session.client.clone()).await.map_err(|error| Fault::from_bollard(error, &self.name))
        };
        within(limit, self.in_its_version(once)).await
    }

    /// Asks for JSON at a path (with query) below the version.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, limit: Duration, path: &str) -> Result<T, Fault> {
        let once = || async { self.read(self.get(&self.versioned(path).await?)).await };
        within(limit, self.in_its_version(once)).await
    }

    /// Asks for a list at a path (with query) below the version, of which no more is kept than what is read of its entries.
    pub(crate) async fn ask_list<T: DeserializeOwned>(&self, limit: Duration, path: &str) -> Result<Vec<T>, Fault> {
        let once = || async { self.read_list(self.get(&self.versioned(path).await?)).await };
        within(limit, self.in_its_version(once)).await
    }

    /// Asks `once`, and once more where the daemon has come back as one that speaks another version.
    async fn in_its_version<T, A: Future<Output = Result<T, Fault>>>(&self, once: impl Fn() -> A) -> Result<T, Fault> {
        match once().await {
            Err(fault) if speaks_otherwise(&fault) => {
                self.forget_session();
                once().await
            }
            other => other,
        }
    }

    /// Opens a stream at a path (with query) below the version; the limit is for the head of the answer.
    pub(crate) async fn open(&self, limit: Duration, path: &str) -> Result<Incoming, Fault> {
        let whole = async {
            let request = self.get(&self.versioned(path).await?);
            self.receive(request).await.map(Response::into_body)
        };
        within(limit, whole).await
    }

    /// Posts to a path (with query) below the version and takes the connection over; the limit is for the head of the
    /// answer.
    pub(crate) async fn hijack(&self, limit: Duration, path: &str, body: Bytes) -> Result<Upgraded, Fault> {
        let whole = async {
            let path = self.versioned(path).await?;
            let request = Request::builder()
                .method(Method::POST)
                .uri(&path)
                .header(CONNECTION, "Upgrade")
                .header(UPGRADE, "tcp")
                .header(CONTENT_TYPE, "application/json")
                .body(bollard::body_full(body))
                .map_err(|error| Fault::Nonsense(format!("{path} cannot be asked for: {error}")))?;
            let response = self.exchange(request).await.map_err(|error| Fault::from_bollard(error, &self.name))?;
            let status = response.status();
            if status == StatusCode::SWITCHING_PROTOCOLS {
                return hyper::upgrade::on(response).await.map_err(|error| Fault::broken(&error, &self.name));
            }
            let body = Limited::new(response.into_body(), 1 << 20).collect().await;
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            Err(Fault::answer(status.as_u16(), &String::from_utf8_lossy(&body)))
        };
        within(limit, whole).await
    }

    /// Posts nothing to a path (with query) below the version.
    pub(crate) async fn post(&self, limit: Duration, path: &str) -> Result<(), Fault> {
        let whole = async {
            let path = self.versioned(path).await?;
            let request = Request::builder()
                .method(Method::POST)
                .uri(&path)
                .body(bollard::body_full(Bytes::new()))
                .map_err(|error| Fault::Nonsense(format!("{path} cannot be asked for: {error}")));
            self.receive(request).await.map(|_| ())
        };
        within(limit, whole).await
    }

    /// Whether the daemon answers at all.
    pub(crate) async fn ping(&self, limit: Duration) -> Result<(), Fault> {
        within(limit, self.receive(self.get("/_ping"))).await.map(|_| ())
    }

    async fn versioned(&self, path: &str) -> Result<String, Fault> {
        let (major, minor) = self.session().await?.api;
        Ok(format!("/v{major}.{minor}{path}"))
    }

    fn get(&self, path: &str) -> Result<BollardRequest, Fault> {
        Request::builder()
            .method(Method::GET)
            .uri(path)
            .body(bollard::body_full(Bytes::new()))
            .map_err(|error| Fault::Nonsense(format!("{path} cannot be asked for: {error}")))
    }

    async fn read<T: DeserializeOwned>(&self, request: Result<BollardRequest, Fault>) -> Result<T, Fault> {
        let body = Limited::new(self.receive(request).await?.into_body(), ANSWER_LIMIT);
        let bytes = body.collect().await.map_err(|error| Fault::broken(&*error, &self.name))?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|error| Fault::Nonsense(error.to_string()))
    }

    async fn read_list<T: DeserializeOwned>(&self, request: Result<BollardRequest, Fault>) -> Result<Vec<T>, Fault> {
        let mut body = Limited::new(self.receive(request).await?.into_body(), LIST_LIMIT);
        let (mut entries, mut found) = (Entries::new(), Vec::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Fault::broken(&*error, &self.name))?;
            entries.feed(&frame.into_data().unwrap_or_default(), &mut found)?;
        }
        entries.finish().map(|()| found)
    }

    async fn exchange(&self, request: BollardRequest) -> Result<Response<Incoming>, Error> {
        exchange(self.endpoint.clone(), &self.lines, request).await
    }

    async fn receive(&self, request: Result<BollardRequest, Fault>) -> Result<Response<Incoming>, Fault> {
        let response = self.exchange(request?).await.map_err(|error| Fault::from_bollard(error, &self.name))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        // A broken body does not hide the status.
        let body =
            Limited::new(response.into_body(), 1 << 20).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        Err(Fault::answer(status.as_u16(), &String::from_utf8_lossy(&body)))
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(Fault::late(limit)))
}

/// Whether the daemon refuses the agreed version of its API.
pub(crate) fn speaks_otherwise(fault: &Fault) -> bool {
    matches!(fault, Fault::Answer { status: 400, message } if message.starts_with("client version "))
}

async fn exchange(endpoint: Endpoint, lines: &Lines, mut request: BollardRequest) -> Result<Response<Incoming>, Error> {
    complete(&mut request)?;
    lines.exchange(|| endpoint.connect(), request).await
}

/// What every request has, whoever wrote it.
fn complete(request: &mut BollardRequest) -> Result<(), Error> {
    let origin = request.uri().path_and_query().map_or("/", |path| path.as_str()).parse::<Uri>()?;
    *request.uri_mut() = origin;
    request.headers_mut().insert(HOST, HeaderValue::from_static("docker"));
    // bollard writes standard base64 where Docker reads the URL-safe alphabet.
    let auth = HeaderName::from_static("x-registry-auth");
    if let Some(value) = request.headers().get(&auth).and_then(|value| value.to_str().ok())
        && let Ok(value) = HeaderValue::from_str(&value.replace('+', "-").replace('/', "_"))
    {
        request.headers_mut().insert(auth, value);
    }
    Ok(())
}

/// A value for a query.
pub(crate) fn encode(text: &str) -> String {
    use std::fmt::Write;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(char::from(byte)),
            _ => {
                // Writing to a String cannot fail.
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

/// Filters as the API takes them in a query.
pub(crate) fn filters(pairs: &[(&str, &[String])]) -> String {
    let object: serde_json::Map<String, serde_json::Value> =
        pairs.iter().map(|(key, values)| ((*key).to_owned(), serde_json::json!(values))).collect();
    encode(&serde_json::Value::Object(object).to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let unix = Endpoint::Unix("/run/d.sock".into());
        assert_eq!(Endpoint::parse("unix:///run/d.sock").unwrap(), unix);
        assert_eq!(Endpoint::parse("/run/d.sock").unwrap(), unix);
        assert_eq!(Endpoint::parse("tcp://h:2375/").unwrap(), Endpoint::Tcp("h:2375".to_owned()));
        for bad in ["", "unix://", "unix://d.sock", "tcp://h", "tcp://:1", "npipe://x", "ssh://h"] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn filters_are_encoded() {
        assert_eq!(filters(&[("label", &["a=b".to_owned()])]), "%7B%22label%22%3A%5B%22a%3Db%22%5D%7D");
    }
}
