//! One request to the API server: paths, bodies, time limits, and what its answers mean as [`ApiError`].
//!
//! Everything this room asks goes through here, over a [`kube::Client`] whose addresses and credentials are somebody
//! else's. No retries and no caches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use kube::Client;
use kube::client::Body;
use longshore_core::ports::cluster::ApiError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::pace::Pace;

/// Time limit of a request.
const LIMIT: Duration = Duration::from_secs(10);
/// Time limit of a page of a list, which may be large.
const LIST_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of an answer.
const MAX_ANSWER: usize = 128 << 20;
/// Bytes of an error's text that are read.
const MAX_ERROR: usize = 64 << 10;
/// Bytes of one event of a watch. An object has at most 1.5 MiB in etcd; JSON with base64 is no three times of it.
const MAX_EVENT: usize = 16 << 20;
/// Requests under way at once, watches apart.
const CONCURRENT: usize = 32;
/// How long to wait where a busy API server does not say.
const BUSY: Duration = Duration::from_secs(1);
/// Longest wait that a busy API server may ask for.
const MAX_BUSY: Duration = Duration::from_secs(300);

/// A strategic merge patch.
pub(crate) const STRATEGIC: &str = "application/strategic-merge-patch+json";
/// A plain object.
pub(crate) const JSON: &str = "application/json";

/// The way to the API server, and how fast it may be gone. A client alone has no limit.
#[derive(Clone)]
pub struct Way {
    client: Client,
    pace: Pace,
    /// The server's version as one who went this way was told last; 0 before.
    server: Arc<AtomicU64>,
}

impl Way {
    pub(crate) fn new(client: Client, pace: Pace) -> Way {
        Way { client, pace, server: Arc::default() }
    }
}

impl From<Client> for Way {
    fn from(client: Client) -> Way {
        Way::new(client, Pace::default())
    }
}

/// Asks the API server. Clones share the bound on requests under way.
#[derive(Clone)]
pub(crate) struct Requests {
    client: Client,
    pace: Pace,
    permits: Arc<Semaphore>,
    server: Arc<AtomicU64>,
    /// The version of the server that refused to begin a watch with a list.
    no_watch_list: Arc<AtomicU64>,
}

impl Requests {
    pub(crate) fn new(way: impl Into<Way>) -> Self {
        let Way { client, pace, server } = way.into();
        let no_watch_list = Arc::new(AtomicU64::new(u64::MAX));
        Self { client, pace, permits: Arc::new(Semaphore::new(CONCURRENT)), server, no_watch_list }
    }

    /// Whether a watch may begin with a list, as far as is known.
    pub(crate) fn offers_watch_list(&self) -> bool {
        self.no_watch_list.load(Ordering::Relaxed) != self.server.load(Ordering::Relaxed)
    }

    /// Remembers that a watch may not begin with a list, as long as the server's version stays.
    pub(crate) fn watch_list_refused(&self) {
        self.no_watch_list.store(self.server.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Takes in the server's version, for all who go the same way.
    pub(crate) fn told_version(&self, (major, minor): (u32, u32)) {
        self.server.store((u64::from(major) << 32) | u64::from(minor), Ordering::Relaxed);
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.call(Method::GET, path, None, LIMIT).await
    }

    /// A GET that answers `None` where there is no such object.
    pub(crate) async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, ApiError> {
        match self.get(path).await {
            Ok(found) => Ok(Some(found)),
            Err(ApiError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The newest version of the group `certificates.k8s.io` that has these, which come and go with feature gates;
    /// `None` where there is none.
    pub(crate) async fn certificates_version(&self, plural: &str) -> Result<Option<&'static str>, ApiError> {
        for version in ["v1", "v1beta1", "v1alpha1"] {
            let group: Option<Resources> = self.find(&format!("/apis/certificates.k8s.io/{version}")).await?;
            if group.is_some_and(|known| known.resources.iter().any(|one| one.name == plural)) {
                return Ok(Some(version));
            }
        }
        Ok(None)
    }

    /// A page of a list.
    pub(crate) async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.call(Method::GET, path, None, LIST_LIMIT).await
    }

    /// A request with a body of that content type.
    pub(crate) async fn send<T, B>(
        &self,
        method: Method,
        path: &str,
        content: &'static str,
        body: &B,
    ) -> Result<T, ApiError>
    where
        T: DeserializeOwned,
        B: serde::Serialize + ?Sized,
    {
        let body = serde_json::to_vec(body)
            .map_err(|error| ApiError::Refused { code: 400, message: format!("cannot be written as JSON: {error}") })?;
        self.call(method, path, Some((content, body)), LIMIT).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Vec<u8>)>,
        limit: Duration,
    ) -> Result<T, ApiError> {
        // Before its time begins to run: who waits for us does not wait for the server.
        self.pace.wait(&method, path).await;
        let request = request(method, path, body)?;
        let work = async {
            let _permit = self.permits.acquire().await.map_err(|_| unreachable("shutting down"))?;
            let response = self.client.send(request).await.map_err(|error| unreachable(&chain(&error)))?;
            let response = accepted(response, path).await?;
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            body.map(|body| body.to_bytes()).map_err(|error| unreachable(&format!("the answer broke off: {error}")))
        };
        let answer = timeout(limit, work)
            .await
            .map_err(|_| unreachable(&format!("no answer to a request for {} within {limit:?}", bare(path))))??;
        serde_json::from_slice(&answer).map_err(|error| ApiError::Refused {
            code: 502,
            message: format!("the answer for {} is not what it should be: {error}", bare(path)),
        })
    }

    /// Begins a watch. Only its beginning has a time limit.
    pub(crate) async fn watch(&self, path: &str) -> Result<Events, ApiError> {
        let request = request(Method::GET, path, None)?;
        let work = async {
            let response = self.client.send(request).await.map_err(|error| unreachable(&chain(&error)))?;
            accepted(response, path).await
        };
        let response = timeout(LIST_LIMIT, work)
            .await
            .map_err(|_| unreachable(&format!("no answer to a watch of {} within {LIST_LIMIT:?}", bare(path))))??;
        Ok(Events { body: response.into_body(), buffer: BytesMut::new(), searched: 0 })
    }
}

/// What a version of a group has.
#[derive(Deserialize)]
struct Resources {
    #[serde(default)]
    resources: Vec<ResourceName>,
}

#[derive(Deserialize)]
struct ResourceName {
    name: String,
}

/// The events of a watch, one JSON document a line.
pub(crate) struct Events {
    body: Body,
    buffer: BytesMut,
    searched: usize,
}

impl Events {
    /// The next line; `None` when the watch has ended. Cancel safe: what was read stays in the buffer.
    pub(crate) async fn next(&mut self) -> Result<Option<BytesMut>, ApiError> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + at);
                self.buffer.advance(1);
                self.searched = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_EVENT {
                return Err(ApiError::Refused { code: 502, message: "an event of a watch has no end".to_owned() });
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(unreachable(&format!("the watch broke off: {}", chain(&error)))),
                // A last line without an end is one that was cut.
                None => return Ok(None),
            }
        }
    }
}

fn request(method: Method, path: &str, body: Option<(&'static str, Vec<u8>)>) -> Result<Request<Body>, ApiError> {
    let builder = Request::builder()
        .method(method)
        .uri(path)
        .header(ACCEPT, JSON)
        // Bodies are read as they come: a compressed watch (offered from 1.37) would sit in a decoder.
        .header(ACCEPT_ENCODING, "identity")
        .header(USER_AGENT, user_agent());
    let built = match body {
        Some((content, body)) => builder.header(CONTENT_TYPE, content).body(Body::from(body)),
        None => builder.body(Body::empty()),
    };
    built.map_err(|error| ApiError::Refused { code: 400, message: format!("{path} is not a path to ask for: {error}") })
}

/// What we call ourselves.
pub(crate) fn user_agent() -> &'static str {
    concat!("longshore/", env!("CARGO_PKG_VERSION"))
}

/// The parts of a `metav1.Status` that matter.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    pub(crate) code: Option<u16>,
    pub(crate) reason: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) details: Option<StatusDetails>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct StatusDetails {
    pub(crate) retry_after_seconds: Option<u64>,
}

async fn accepted(response: Response<Body>, path: &str) -> Result<Response<Body>, ApiError> {
    let code = response.status();
    if code.is_success() {
        return Ok(response);
    }
    let after = retry_after(response.headers());
    let body = Limited::new(response.into_body(), MAX_ERROR).collect().await.map(|body| body.to_bytes());
    let body = body.unwrap_or_default();
    let status = serde_json::from_slice(&body).unwrap_or_else(|_| Status {
        message: Some(String::from_utf8_lossy(&body).trim().chars().take(300).collect()),
        ..Status::default()
    });
    Err(refusal(code.as_u16(), status, after, path))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// What a refusal means.
pub(crate) fn refusal(code: u16, status: Status, after: Option<Duration>, path: &str) -> ApiError {
    let after = after.or(status.details.and_then(|details| details.retry_after_seconds).map(Duration::from_secs));
    let after = after.map(|after| after.min(MAX_BUSY));
    let message = status.message.filter(|message| !message.is_empty()).unwrap_or_else(|| {
        let words = StatusCode::from_u16(code).ok().and_then(|code| code.canonical_reason()).unwrap_or("an error");
        format!("{words} for {}", bare(path))
    });
    match code {
        429 => ApiError::Busy { after: after.unwrap_or(BUSY) },
        503 | 500 | 504 if after.is_some() => ApiError::Busy { after: after.unwrap_or(BUSY) },
        404 => ApiError::NotFound { what: missing(&message, path) },
        409 => ApiError::Conflict { exists: status.reason.as_deref() == Some("AlreadyExists"), message },
        401 | 403 => ApiError::Forbidden { message },
        code => ApiError::Refused { code, message },
    }
}

/// `pods "x" not found` without its last words, as the error adds its own.
fn missing(message: &str, path: &str) -> String {
    match message.strip_suffix(" not found") {
        Some(what) => what.to_owned(),
        None => bare(path).to_owned(),
    }
}

fn bare(path: &str) -> &str {
    path.split_once('?').map_or(path, |(path, _)| path)
}

fn unreachable(message: &str) -> ApiError {
    ApiError::Unreachable { message: message.to_owned() }
}

/// An error with its causes, none told twice.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

/// A path with a query, percent-encoded.
pub(crate) fn with_query<'a>(path: &str, query: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut whole = path.to_owned();
    for (index, (key, value)) in query.into_iter().enumerate() {
        whole.push(if index == 0 { '?' } else { '&' });
        whole.push_str(key);
        whole.push('=');
        whole.push_str(&encoded(value));
    }
    whole
}

/// One segment of a path or value of a query, percent-encoded.
pub(crate) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cluster::server_version;
    use crate::fake::Fake;

    fn status(json: &str) -> Status {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn refusals_mean_what_kubernetes_means() {
        let busy = refusal(429, Status::default(), Some(Duration::from_secs(7)), "/x");
        assert_eq!(busy, ApiError::Busy { after: Duration::from_secs(7) });
        assert_eq!(refusal(429, Status::default(), None, "/x"), ApiError::Busy { after: BUSY });
        let told = status(r#"{"details":{"retryAfterSeconds":3},"message":"starting"}"#);
        assert_eq!(refusal(503, told, None, "/x"), ApiError::Busy { after: Duration::from_secs(3) });
        assert!(matches!(refusal(503, Status::default(), None, "/x"), ApiError::Refused { code: 503, .. }));
        let gone = status(r#"{"message":"pods \"a\" not found","reason":"NotFound"}"#);
        assert_eq!(refusal(404, gone, None, "/x").to_string(), "pods \"a\" does not exist");
        assert_eq!(refusal(404, Status::default(), None, "/api/v1/x?y=z").to_string(), "/api/v1/x does not exist");
        let exists = status(r#"{"message":"pods \"a\" already exists","reason":"AlreadyExists"}"#);
        assert!(matches!(refusal(409, exists, None, "/x"), ApiError::Conflict { exists: true, .. }));
        let changed = status(r#"{"message":"has been modified","reason":"Conflict"}"#);
        assert!(matches!(refusal(409, changed, None, "/x"), ApiError::Conflict { exists: false, .. }));
        assert!(matches!(refusal(401, Status::default(), None, "/x"), ApiError::Forbidden { .. }));
        assert!(matches!(refusal(410, Status::default(), None, "/x"), ApiError::Refused { code: 410, .. }));
    }

    #[tokio::test]
    async fn what_was_learnt_of_a_server_holds_until_its_version_changes() {
        let fake = Fake::start().await;
        let way = Way::from(fake.client.clone());
        let (node, pods) = (Requests::new(way.clone()), Requests::new(way));
        for (minor, offers) in [("33", true), ("33", false), ("34", true), ("34", false)] {
            fake.whole("/version", 200, &format!(r#"{{"major":"1","minor":"{minor}"}}"#));
            server_version(&node).await.unwrap();
            assert_eq!(pods.offers_watch_list(), offers, "{minor}");
            pods.watch_list_refused();
        }
    }

    #[test]
    fn queries_are_encoded() {
        let path = with_query("/api/v1/pods", [("fieldSelector", "spec.nodeName=a,b=c d"), ("watch", "1")]);
        assert_eq!(path, "/api/v1/pods?fieldSelector=spec.nodeName%3Da%2Cb%3Dc%20d&watch=1");
    }
}
