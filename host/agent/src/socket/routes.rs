//! The routes of the local socket. Each reads what is published, or asks for all pods to end, and answers with JSON; errors
//! are v1.Status.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::List;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, Status};
use longshore_core::ports::runtime::LogOptions;
use longshore_core::ports::sources::SourceProblem;
use longshore_core::status;
use longshore_core::view::PodView;
use longshore_reconcile::health::Shutdown;
use longshore_reconcile::shutdown::Busy;
use serde::Serialize;

use super::api::{Api, DRAINED, DockerInfo, Info, ProblemList, Resumed};
use super::{drain, watch};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Why a request gets no answer.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("only GET is served here, and POST for /v1/drain and /v1/resume")]
    Method,
    #[error(
        "there is no {path:?} here; there are: /v1/pods, /v1/views, /v1/events, /v1/problems, /v1/logs, /v1/info, /v1/flags"
    )]
    Route { path: String },
    #[error("pod {namespace}/{name} not found")]
    NoPod { namespace: String, name: String },
    #[error("{0}")]
    BadRequest(String),
    #[error(transparent)]
    Busy(#[from] Busy),
}

impl Refusal {
    fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Refusal::Method => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            Refusal::Route { .. } | Refusal::NoPod { .. } => (StatusCode::NOT_FOUND, "NotFound"),
            Refusal::BadRequest(_) => (StatusCode::BAD_REQUEST, "BadRequest"),
            Refusal::Busy(_) => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
        }
    }
}

/// Answers one request; never fails.
pub(super) async fn answer(api: Arc<Api>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let result = match *request.method() {
        Method::GET => route(&api, request.uri().path(), &query).await,
        Method::POST => order(&api, request.uri().path(), &query).await,
        _ => Err(Refusal::Method),
    };
    Ok(result.unwrap_or_else(|refusal| {
        let (code, reason) = refusal.status();
        let status = Status {
            status: Some("Failure".to_owned()),
            code: Some(i32::from(code.as_u16())),
            reason: Some(reason.to_owned()),
            message: Some(refusal.to_string()),
            ..Status::default()
        };
        json(code, &status)
    }))
}

async fn route(api: &Api, path: &str, query: &Query) -> Result<Response<Body>, Refusal> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match segments.as_slice() {
        ["v1", "pods"] if query.is_set("watch") => {
            let lines = watch::stream(api.views.clone(), query.get("namespace"));
            Ok(stream("application/json", lines.map(Ok)))
        }
        ["v1", "pods"] => Ok(json(StatusCode::OK, &pod_list(api, query.get("namespace")))),
        ["v1", "views"] => Ok(json(StatusCode::OK, &api.views.pods())),
        ["v1", "views", namespace, name] => Ok(json(StatusCode::OK, &*find(api, namespace, name)?)),
        ["v1", "events"] => Ok(json(StatusCode::OK, &api.events.events(query.get("uid").as_deref()))),
        ["v1", "problems"] => Ok(json(StatusCode::OK, &problems(api))),
        ["v1", "info"] => Ok(json(StatusCode::OK, &info(api))),
        ["v1", "flags"] => Ok(json(StatusCode::OK, &api.flags)),
        ["v1", "logs", namespace, pod, container] => logs(api, namespace, pod, container, query).await,
        _ => Err(Refusal::Route { path: path.to_owned() }),
    }
}

/// What is asked for, rather than looked at.
async fn order(api: &Api, path: &str, query: &Query) -> Result<Response<Body>, Refusal> {
    match path {
        "/v1/drain" => {
            let limit = query.read("limit", "seconds", |text| text.parse().ok())?;
            let told = api.shutdown.drain(limit.map(Duration::from_secs)).await?;
            Ok(stream("application/json", drain::lines(told).map(Ok)))
        }
        "/v1/resume" => Ok(json(StatusCode::OK, &Resumed { resumed: api.shutdown.resume().await? })),
        _ => Err(Refusal::Method),
    }
}

fn pod_list(api: &Api, namespace: Option<String>) -> List<v1::Pod> {
    let version = api.views.subscribe().borrow().to_string();
    let pods = api.views.pods();
    let inside = |view: &&Arc<PodView>| namespace.as_ref().is_none_or(|own| view.id.namespace == *own);
    List {
        items: pods.iter().filter(inside).map(|view| view.object.clone()).collect(),
        metadata: ListMeta { resource_version: Some(version), ..ListMeta::default() },
    }
}

fn info(api: &Api) -> Info {
    let going_down = api.health.shutdown() == Shutdown::GoesDown;
    let info = api.state.info();
    let waits = (!api.health.is_synced()).then(|| waits(&info.docker));
    let drained = api.shutdown.is_drained();
    Info { going_down, drained, waits, pressure: api.health.pressure(), ..info }
}

/// What is waited for before all pods are known.
fn waits(docker: &DockerInfo) -> String {
    match (&docker.error, &docker.version) {
        (Some(error), _) => format!("it waits for Docker: {error}"),
        (None, None) => "it waits for Docker's first answer".to_owned(),
        (None, Some(_)) => "not every pod source has been read yet".to_owned(),
    }
}

fn problems(api: &Api) -> ProblemList {
    let docker = api.state.info().docker;
    let unusable = docker.error.map(|message| SourceProblem { place: docker.endpoint, message, warning: false });
    let drained = SourceProblem { place: "drain-node".to_owned(), message: DRAINED.to_owned(), warning: true };
    let drained = api.shutdown.is_drained().then_some(drained);
    // Two readers of one source may both tell of a thing.
    let mut items: Vec<SourceProblem> = Vec::new();
    for problem in unusable.into_iter().chain(drained).chain(api.views.problems()) {
        if !items.contains(&problem) {
            items.push(problem);
        }
    }
    ProblemList { items }
}

/// The newest pod of that name: an old one may still be ending.
fn find(api: &Api, namespace: &str, name: &str) -> Result<Arc<PodView>, Refusal> {
    let pods = api.views.pods().into_iter();
    let named = pods.filter(|view| view.id.namespace == namespace && view.id.name == name);
    let started = |view: &Arc<PodView>| {
        let ending = view.object.metadata.deletion_timestamp.is_some();
        (!ending, view.object.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0))
    };
    let missing = || Refusal::NoPod { namespace: namespace.to_owned(), name: name.to_owned() };
    named.max_by_key(started).ok_or_else(missing)
}

async fn logs(
    api: &Api,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
) -> Result<Response<Body>, Refusal> {
    let view = match query.get("uid") {
        Some(uid) => api
            .views
            .pod(&uid)
            .ok_or_else(|| Refusal::NoPod { namespace: namespace.to_owned(), name: format!("{pod} with UID {uid}") })?,
        None => find(api, namespace, pod)?,
    };
    let id = container_id(&view, container, query.is_set("previous")).map_err(Refusal::BadRequest)?;
    let options = LogOptions {
        follow: query.is_set("follow"),
        tail: query.read("tail", "a number of lines", |text| text.parse().ok())?,
        since: query.read("since", "a time like 2026-01-01T12:00:00Z, or seconds", since)?,
        timestamps: query.is_set("timestamps"),
    };
    let chunks = (api.logs)(&id, options);
    let mut chunks = chunks.map(|chunk| chunk.map(|chunk| chunk.data).map_err(std::io::Error::other)).peekable();
    // A log that cannot be opened gets a proper answer; one that breaks later breaks the connection. The first piece says
    // that it is open: one that is followed may stay silent for long, and must not hold the answer up.
    if let Some(Err(error)) = std::pin::Pin::new(&mut chunks).peek().await {
        return Err(Refusal::BadRequest(format!("the log of container {container:?} cannot be read: {error}")));
    }
    let chunks = chunks.filter(|chunk| std::future::ready(!matches!(chunk, Ok(data) if data.is_empty())));
    Ok(stream("text/plain; charset=utf-8", chunks))
}

fn since(text: &str) -> Option<Timestamp> {
    let ago = || Timestamp::now().checked_sub(SignedDuration::from_secs(text.parse().ok()?)).ok();
    text.parse().ok().or_else(ago)
}

/// The container whose log is wanted, in the kubelet's words where there is none.
fn container_id(view: &PodView, container: &str, previous: bool) -> Result<String, String> {
    let status = view.object.status.clone().unwrap_or_default();
    let found = status::of_containers(&status).find(|status| status.name == container);
    let Some(found) = found else {
        let spec = view.object.spec.as_ref();
        let inits = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
        let names: Vec<&str> =
            spec.into_iter().flat_map(|spec| &spec.containers).chain(inits).map(|spec| spec.name.as_str()).collect();
        return Err(match names.contains(&container) {
            true => format!("container {container:?} in pod {:?} was not started yet", view.id.name),
            false => format!("pod {:?} has no container {container:?}; it has: {}", view.id.name, names.join(", ")),
        });
    };
    let last = found.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let last = last.and_then(|ended| ended.container_id.clone());
    let id = match previous {
        true => last.ok_or_else(|| format!("previous terminated container {container:?} not found"))?,
        // Between two runs the last one's log is what there is.
        false => found.container_id.clone().filter(|id| !id.is_empty()).or(last).ok_or_else(|| {
            let state = found.state.as_ref().and_then(|state| state.waiting.as_ref());
            let reason = state.and_then(|waiting| waiting.reason.as_deref()).unwrap_or("ContainerCreating");
            format!("container {container:?} in pod {:?} is waiting to start: {reason}", view.id.name)
        })?,
    };
    Ok(id.split_once("://").map_or(id.as_str(), |(_, id)| id).to_owned())
}

fn json<T: Serialize>(code: StatusCode, value: &T) -> Response<Body> {
    let mut text = serde_json::to_vec(value).expect("what is published is always JSON: its keys are text");
    text.push(b'\n');
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    respond(code, "application/json", body)
}

fn stream(
    content_type: &'static str,
    parts: impl futures::Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
) -> Response<Body> {
    let body = StreamBody::new(parts.map(|part| part.map(Frame::data))).boxed_unsync();
    respond(StatusCode::OK, content_type, body)
}

fn respond(code: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

/// A query: `a=1&b`.
struct Query(BTreeMap<String, String>);

impl Query {
    fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let split = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, "true"));
            (decode(key), decode(value))
        };
        Query(pairs.map(split).collect())
    }

    fn get(&self, key: &str) -> Option<String> {
        self.0.get(key).filter(|value| !value.is_empty()).cloned()
    }

    fn is_set(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|value| !matches!(value.as_str(), "" | "0" | "false"))
    }

    fn read<T>(&self, key: &str, expected: &str, read: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Refusal> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let value = read(&text).ok_or_else(|| Refusal::BadRequest(format!("{key}: expected {expected}, got {text:?}")));
        value.map(Some)
    }
}

/// Undoes percent-encoding; what is not properly encoded stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            (byte, _) => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn queries() {
        let query = Query::parse("watch&namespace=a%2Fb+c&tail=&follow=false&x=%zz");
        assert!(query.is_set("watch") && !query.is_set("follow") && !query.is_set("absent"));
        assert_eq!(query.get("namespace").as_deref(), Some("a/b c"));
        assert_eq!(query.get("tail"), None);
        assert_eq!(query.get("x").as_deref(), Some("%zz"));
    }
}
