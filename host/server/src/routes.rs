//! Which path is answered by whom, after it was decided who may. It must not know how anything is found out.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::response::Response;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Method, StatusCode};
use k8s_openapi::List;
use k8s_openapi::api::core::v1;
use longshore_core::pod::Source;
use longshore_core::status;
use longshore_core::view::PodView;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::access::{Access, Refusal};
use crate::config::{Parts, ServerConfig};
use crate::listen::{Held, Peer};
use crate::namespaces::Namespaces;
use crate::query::{self, Query, decode};
use crate::{health, logs, metrics, node_logs, run, streams, zpages};

/// A request's body may be this long; none of ours needs more.
const BODY: usize = 1 << 20;

/// Which of the ports a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// Everything, for those who may.
    Guarded,
    /// What can be read, for everybody.
    ReadOnly,
    /// Health, for everybody.
    Health,
}

/// What the answers are made of.
pub(crate) struct Api {
    pub(crate) config: ServerConfig,
    pub(crate) parts: Parts,
    pub(crate) namespaces: Namespaces,
    pub(crate) processes: metrics::Processes,
    log_readers: Arc<Semaphore>,
    /// Places for the commands of `/run`.
    pub(crate) runs: Arc<Semaphore>,
    pub(crate) forwards: Semaphore,
    pub(crate) health: health::Tallies,
    access: Access,
    started: jiff::Timestamp,
}

impl Api {
    pub(crate) fn new(config: ServerConfig, parts: Parts, access: Access) -> Api {
        let (namespaces, processes, health) = Default::default();
        let log_readers = Arc::new(Semaphore::new(config.log_readers.max(1)));
        let runs = Arc::new(Semaphore::new(run::AT_A_TIME));
        let forwards = Semaphore::new(config.forwards_in_all.max(1));
        let started = jiff::Timestamp::now();
        Api { config, parts, namespaces, processes, log_readers, runs, forwards, health, access, started }
    }

    /// A place among those who read logs, each of whom has a connection to Docker or a process; or what to say when there
    /// is none.
    pub(crate) fn place_to_read(&self) -> Result<OwnedSemaphorePermit, String> {
        let most = self.config.log_readers;
        let words = |_| format!("{most} logs are read on this node already, try again later");
        self.log_readers.clone().try_acquire_owned().map_err(words)
    }

    /// The newest pod of that name, or the one with that UID: an old one may still be ending.
    pub(crate) fn pod(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<Arc<PodView>, NoPod> {
        let started = |view: &Arc<PodView>| {
            let status = view.object.status.as_ref();
            let start = status.and_then(|status| status.start_time.as_ref()).map(|time| time.0);
            (view.object.metadata.deletion_timestamp.is_none(), start)
        };
        let mut named = self.parts.views.pods();
        named.retain(|view| view.id.namespace == namespace && view.id.name == name);
        if named.is_empty() {
            return Err(NoPod::OfThatName);
        }
        named.retain(|view| uid.is_none_or(|uid| view.id.uid == uid));
        named.into_iter().max_by_key(started).ok_or(NoPod::WithThatUid)
    }

    /// The same for who wants to run a command: a static pod goes by any UID then, for the one that the API server has is
    /// its mirror's.
    pub(crate) fn pod_to_run_in(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<Arc<PodView>, NoPod> {
        match self.pod(namespace, name, uid) {
            Err(NoPod::WithThatUid) => {
                self.pod(namespace, name, None).ok().filter(|pod| pod.source != Source::Api).ok_or(NoPod::WithThatUid)
            }
            found => found,
        }
    }
}

/// Why there is no such pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPod {
    OfThatName,
    WithThatUid,
}

/// The router of one port.
pub(crate) fn router(api: Arc<Api>, group: Group) -> Router {
    Router::new().fallback(entry).layer(Extension(group)).with_state(api)
}

async fn entry(
    State(api): State<Arc<Api>>,
    Extension(group): Extension<Group>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Response {
    // Decoded once, so that what was allowed and what is answered are the same.
    let path = decode(request.uri().path(), false);
    if group == Group::Guarded {
        let certificate = peer.certificate.map(|shown| shown.user());
        let admitted = api.access.admit(certificate, request.headers(), request.method(), &path).await;
        match admitted {
            Ok(_) => {}
            Err(Refusal::Unauthorized) => return text(StatusCode::UNAUTHORIZED, "Unauthorized"),
            Err(Refusal::Forbidden(message)) => return text(StatusCode::FORBIDDEN, message),
            Err(Refusal::Failed(message)) => return text(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
    answer(&api, group, &path, peer.held, request).await
}

/// What is a plain handler in the kubelet answers to every method; what go-restful serves there, to those of its routes,
/// and HEAD is none of them. Those who may not know of a path do not learn whether there is one.
async fn answer(api: &Arc<Api>, group: Group, path: &str, held: Held, request: Request) -> Response {
    let Some(query) = Query::parse(request.uri().query().unwrap_or_default()) else {
        return text(StatusCode::BAD_REQUEST, format!("the query has more than {} parameters", query::LIMIT));
    };
    let trimmed = path.strip_prefix('/').unwrap_or(path);
    let mut segments: Vec<&str> = trimmed.split('/').collect();
    if segments.len() > 1 && segments.last() == Some(&"") && segments.first() != Some(&"logs") {
        segments.pop();
        // What go-restful serves has it either way, a plain handler only its own path.
        if let ["healthz" | "metrics" | "configz" | "flagz" | "statusz", ..] | ["debug", "flags", "v"] = segments[..] {
            return missing();
        }
    }
    let method = request.method().clone();
    let (gets, posts) = (method == Method::GET, method == Method::POST);
    match segments.as_slice() {
        ["healthz"] => return health::answer(api, None, &query).unwrap_or_else(missing),
        ["healthz", one] => return health::answer(api, Some(one), &query).unwrap_or_else(missing),
        _ if group == Group::Health => return missing(),
        ["pods"] if gets => return pods(api),
        ["pods"] => return not_allowed("GET"),
        ["metrics"] => return prometheus((api.parts.metrics)()),
        ["metrics", "resource"] => return prometheus(metrics::resource(api).await),
        ["metrics", "cadvisor"] => return prometheus(metrics::cadvisor(api).await),
        ["metrics", "probes"] => return prometheus(metrics::probes(api)),
        ["metrics", "slis"] if method == Method::DELETE => {
            api.health.reset();
            return text(StatusCode::OK, "metrics reset\n");
        }
        ["metrics", "slis"] => return prometheus(metrics::slis(api)),
        ["stats", "summary"] if gets || posts => {
            let only: Vec<&str> = query.all("only_cpu_and_memory").collect();
            return json(StatusCode::OK, &metrics::summary(api, only == ["true"]).await);
        }
        ["stats", "summary"] => return not_allowed("GET, POST"),
        ["stats" | "pods", ..] => return no_route(),
        _ => {}
    }
    if group == Group::ReadOnly || !api.config.debugging_handlers {
        return match segments.as_slice() {
            ["run" | "exec" | "attach" | "portForward" | "containerLogs" | "runningpods" | "logs", ..]
            | ["debug", "pprof", ..] => error(StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled."),
            _ => missing(),
        };
    }
    debugging(api, &segments, held, &query, request, &method).await
}

/// The routes of `enableDebuggingHandlers`.
async fn debugging(
    api: &Arc<Api>,
    segments: &[&str],
    held: Held,
    query: &Query,
    request: Request,
    method: &Method,
) -> Response {
    let (gets, posts) = (method == Method::GET, method == Method::POST);
    match segments {
        ["configz"] => unsniffed(json(StatusCode::OK, &serde_json::json!({"kubeletconfig": (api.parts.configz)()}))),
        ["flagz"] => zpages::flagz(&(api.parts.flags)(), request.headers()),
        ["statusz"] => zpages::statusz(api.started, request.headers()),
        ["runningpods"] if gets => running_pods(api),
        ["runningpods"] => not_allowed("GET"),
        ["containerLogs", namespace, pod, container] if gets => {
            logs::answer(api, namespace, pod, container, query).await
        }
        ["containerLogs", _, _, _] => not_allowed("GET"),
        ["logs", ..] if !api.config.system_log_handler => {
            error(StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled.")
        }
        ["logs", rest @ ..] if gets => node_logs::answer(api, rest, query, request.uri(), request.headers()).await,
        ["logs", ..] => not_allowed("GET"),
        ["run", _, _, _] | ["run", _, _, _, _] if !posts => not_allowed("POST"),
        ["run", namespace, pod, container] => run::run(api, (namespace, pod, None), container, query).await,
        ["run", namespace, pod, uid, container] => run::run(api, (namespace, pod, Some(uid)), container, query).await,
        ["exec" | "attach", _, _, _] | ["exec" | "attach", _, _, _, _] if !gets && !posts => not_allowed("GET, POST"),
        ["portForward", _, _] | ["portForward", _, _, _] if !gets && !posts => not_allowed("GET, POST"),
        ["exec", namespace, pod, container] => {
            streams::exec(api, held, (namespace, pod, None), container, query, request).await
        }
        ["exec", namespace, pod, uid, container] => {
            streams::exec(api, held, (namespace, pod, Some(uid)), container, query, request).await
        }
        ["attach", namespace, pod, container] => {
            streams::attach(api, held, (namespace, pod, None), container, query, request).await
        }
        ["attach", namespace, pod, uid, container] => {
            streams::attach(api, held, (namespace, pod, Some(uid)), container, query, request).await
        }
        ["portForward", namespace, pod] => {
            streams::port_forward(api, held, (namespace, pod, None), query, request).await
        }
        ["portForward", namespace, pod, uid] => {
            streams::port_forward(api, held, (namespace, pod, Some(uid)), query, request).await
        }
        ["checkpoint", namespace, pod, container] if posts => run::checkpoint(api, namespace, pod, container, query),
        ["checkpoint", _, _, _] => not_allowed("POST"),
        ["debug", "flags", "v"] if !api.config.debug_flags_handler => {
            error(StatusCode::METHOD_NOT_ALLOWED, "flags endpoint is disabled.")
        }
        ["debug", "flags", "v"] if method == Method::PUT => verbosity(api, request).await,
        ["debug", "flags", "v"] => error(StatusCode::NOT_ACCEPTABLE, "unsupported http method"),
        ["debug", "pprof", ..] if !api.config.profiling_handler => {
            error(StatusCode::METHOD_NOT_ALLOWED, "profiling endpoint is disabled.")
        }
        ["debug", "pprof", ..] if gets => error(
            StatusCode::NOT_IMPLEMENTED,
            "longshore is not a Go program and has no pprof profiles; use perf(1) on its process",
        ),
        ["debug", "pprof", ..] => not_allowed("GET"),
        ["run" | "exec" | "attach" | "portForward" | "containerLogs" | "checkpoint" | "runningpods", ..] => no_route(),
        _ => missing(),
    }
}

fn pods(api: &Api) -> Response {
    let items = api.parts.views.pods().iter().map(|view| view.object.clone()).collect();
    let list: List<v1::Pod> = List { items, ..List::default() };
    json(StatusCode::OK, &list)
}

/// Pods with a container that runs, with what names them and their containers only.
fn running_pods(api: &Api) -> Response {
    let views = api.parts.views.pods();
    let items = views.iter().filter_map(|view| {
        let mut containers = Vec::new();
        for status in statuses(&view.object) {
            if status.state.as_ref().is_some_and(|state| state.running.is_some()) {
                let image = Some(status.image.clone());
                containers.push(v1::Container { name: status.name.clone(), image, ..v1::Container::default() });
            }
        }
        let mut pod = v1::Pod::default();
        pod.metadata.name = Some(view.id.name.clone());
        pod.metadata.namespace = Some(view.id.namespace.clone());
        pod.metadata.uid = Some(view.id.uid.clone());
        let spec = v1::PodSpec { containers, ..v1::PodSpec::default() };
        pod.spec = (!spec.containers.is_empty()).then_some(spec);
        pod.spec.is_some().then_some(pod)
    });
    let list: List<v1::Pod> = List { items: items.collect(), ..List::default() };
    json(StatusCode::OK, &list)
}

/// The statuses of all containers of a pod.
pub(crate) fn statuses(pod: &v1::Pod) -> impl Iterator<Item = &v1::ContainerStatus> {
    pod.status.iter().flat_map(status::of_containers)
}

/// Whether the spec names such a container.
pub(crate) fn has_container(pod: &v1::Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|container| container.name == name)
        || spec.ephemeral_containers.iter().flatten().any(|container| container.name == name)
}

/// An ID without `docker://`.
pub(crate) fn bare(id: &str) -> &str {
    id.split_once("://").map_or(id, |(_, id)| id)
}

/// The ID of the container of that name, if it runs, be it said to wait while its postStart hook does.
pub(crate) fn running<'a>(view: &'a PodView, container: &str) -> Option<&'a str> {
    let status = statuses(&view.object).find(|status| status.name == container)?;
    let id = bare(status.container_id.as_deref()?);
    let state = status.state.as_ref()?;
    let hooked = state.terminated.is_none() && view.standing.busy.post_start.contains(id);
    (state.running.is_some() || hooked).then_some(id)
}

async fn verbosity(api: &Api, request: Request) -> Response {
    let limit = std::time::Duration::from_secs(10);
    let body = match tokio::time::timeout(limit, axum::body::to_bytes(request.into_body(), BODY)).await {
        Ok(Ok(body)) => body,
        Ok(Err(why)) => return error(StatusCode::BAD_REQUEST, &format!("error reading request body: {why}")),
        Err(_) => return error(StatusCode::BAD_REQUEST, "error reading request body: it does not come"),
    };
    let wanted = String::from_utf8_lossy(&body);
    match (api.parts.verbosity)(wanted.trim()) {
        Ok(()) => error(StatusCode::OK, &format!("successfully set klog.logging.verbosity to {}", wanted.trim())),
        Err(why) => {
            let words = format!("failed set klog.logging.verbosity {}: {why}", wanted.trim());
            error(StatusCode::BAD_REQUEST, &words)
        }
    }
}

pub(crate) fn text(code: StatusCode, body: impl Into<String>) -> Response {
    respond(code, "text/plain; charset=utf-8", Body::from(body.into()))
}

/// A line of text as Go's `http.Error` sends it.
pub(crate) fn error(code: StatusCode, line: &str) -> Response {
    unsniffed(text(code, format!("{line}\n")))
}

/// No browser is to guess that it is something else.
pub(crate) fn unsniffed(mut response: Response) -> Response {
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

pub(crate) fn json<T: Serialize>(code: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => respond(code, "application/json", Body::from(bytes)),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

pub(crate) fn respond(code: StatusCode, content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn prometheus(page: String) -> Response {
    respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", Body::from(page))
}

pub(crate) fn missing() -> Response {
    error(StatusCode::NOT_FOUND, "404 page not found")
}

/// What go-restful says of a path that begins as one of its own.
fn no_route() -> Response {
    text(StatusCode::NOT_FOUND, "404: Page Not Found")
}

fn not_allowed(allowed: &'static str) -> Response {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}
