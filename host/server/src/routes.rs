//! Which path is answered by whom, after it was decided who may. It must not know how anything is found out.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::response::Response;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, StatusCode};
use k8s_openapi::List;
use k8s_openapi::api::core::v1;
use longshore_core::ports::streams::{StreamedExec, Wants};
use longshore_core::view::PodView;
use serde::Serialize;

use crate::access::{Access, Refusal};
use crate::config::{Parts, ServerConfig};
use crate::listen::{Held, Peer};
use crate::namespaces::Namespaces;
use crate::query::{Query, decode};
use crate::{health, logs, metrics, node_logs, streams};

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
    access: Access,
    started: jiff::Timestamp,
}

impl Api {
    pub(crate) fn new(config: ServerConfig, parts: Parts, access: Access) -> Api {
        Api { config, parts, namespaces: Namespaces::default(), access, started: jiff::Timestamp::now() }
    }

    /// The newest pod of that name: an old one may still be ending.
    pub(crate) fn pod(&self, namespace: &str, name: &str, uid: Option<&str>) -> Option<Arc<PodView>> {
        let named = |view: &Arc<PodView>| view.id.namespace == namespace && view.id.name == name;
        if let Some(uid) = uid {
            return self.parts.views.pod(uid).filter(named);
        }
        let started = |view: &Arc<PodView>| {
            let status = view.object.status.as_ref();
            let start = status.and_then(|status| status.start_time.as_ref()).map(|time| time.0);
            (view.object.metadata.deletion_timestamp.is_none(), start)
        };
        self.parts.views.pods().into_iter().filter(named).max_by_key(started)
    }
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
        let admitted = api.access.admit(peer.certificate, request.headers(), request.method(), &path).await;
        match admitted {
            Ok(_) => {}
            Err(Refusal::Unauthorized) => return text(StatusCode::UNAUTHORIZED, "Unauthorized"),
            Err(Refusal::Forbidden(message)) => return text(StatusCode::FORBIDDEN, message),
            Err(Refusal::Failed(message)) => return text(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
    answer(&api, group, &path, peer.held, request).await
}

async fn answer(api: &Arc<Api>, group: Group, path: &str, held: Held, request: Request) -> Response {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let trimmed = path.strip_prefix('/').unwrap_or(path);
    let mut segments: Vec<&str> = trimmed.split('/').collect();
    if segments.len() > 1 && segments.last() == Some(&"") && segments.first() != Some(&"logs") {
        segments.pop();
    }
    let method = request.method().clone();
    let reads = matches!(method, Method::GET | Method::HEAD);
    let debugging = api.config.debugging_handlers;
    match segments.as_slice() {
        ["healthz"] if reads => return health::answer(&*api.parts.views, None, &query).unwrap_or_else(missing),
        ["healthz", one] if reads => {
            return health::answer(&*api.parts.views, Some(one), &query).unwrap_or_else(missing);
        }
        _ if group == Group::Health => return missing(),
        ["pods"] if reads => return pods(api),
        ["metrics"] if reads => return prometheus((api.parts.metrics)()),
        ["metrics", "resource"] if reads => return prometheus(metrics::resource(api).await),
        ["metrics", "cadvisor"] if reads => return prometheus(metrics::cadvisor(api).await),
        ["metrics", "probes"] if reads => return prometheus(metrics::probes(api)),
        ["metrics", "slis"] if reads => return prometheus(metrics::slis(api)),
        ["stats", "summary"] if reads || method == Method::POST => {
            return json(StatusCode::OK, &metrics::summary(api, query.is_set("only_cpu_and_memory")).await);
        }
        _ if group == Group::ReadOnly => return missing(),
        ["healthz", ..] | ["pods"] | ["metrics"] | ["stats", "summary"] => return not_allowed("GET"),
        _ => {}
    }
    let debug = matches!(
        segments.first(),
        Some(&("run" | "exec" | "attach" | "portForward" | "containerLogs" | "runningpods" | "debug" | "logs"))
    );
    if debug && !debugging {
        return text(StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled.");
    }
    match segments.as_slice() {
        ["runningpods"] if reads => running_pods(api),
        ["configz"] if reads && debugging => {
            json(StatusCode::OK, &serde_json::json!({"kubeletconfig": (api.parts.configz)()}))
        }
        ["flagz"] if reads && debugging => flagz(api),
        ["statusz"] if reads && debugging => statusz(api),
        ["containerLogs", namespace, pod, container] if reads => {
            logs::answer(api, namespace, pod, container, &query).await
        }
        ["logs", rest @ ..] if reads && api.config.system_log_handler => node_logs::answer(api, rest, &query).await,
        ["logs", ..] if reads => text(StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled."),
        ["run", namespace, pod, container] => match method {
            Method::POST => run(api, (namespace, pod, None), container, &query).await,
            _ => not_allowed("POST"),
        },
        ["run", namespace, pod, uid, container] => match method {
            Method::POST => run(api, (namespace, pod, Some(uid)), container, &query).await,
            _ => not_allowed("POST"),
        },
        ["exec" | "attach" | "portForward", ..] if method != Method::GET && method != Method::POST => {
            not_allowed("GET, POST")
        }
        ["exec", namespace, pod, container] => {
            streams::exec(api, held, (namespace, pod, None), container, &query, request).await
        }
        ["exec", namespace, pod, uid, container] => {
            streams::exec(api, held, (namespace, pod, Some(uid)), container, &query, request).await
        }
        ["attach", namespace, pod, container] => {
            streams::attach(api, held, (namespace, pod, None), container, &query, request).await
        }
        ["attach", namespace, pod, uid, container] => {
            streams::attach(api, held, (namespace, pod, Some(uid)), container, &query, request).await
        }
        ["portForward", namespace, pod] => {
            streams::port_forward(api, held, (namespace, pod, None), &query, request).await
        }
        ["portForward", namespace, pod, uid] => {
            streams::port_forward(api, held, (namespace, pod, Some(uid)), &query, request).await
        }
        ["checkpoint", namespace, pod, container] if debugging => match method {
            Method::POST => checkpoint(api, namespace, pod, container, &query),
            _ => not_allowed("POST"),
        },
        ["debug", "flags", "v"] => match method {
            Method::PUT => verbosity(api, request).await,
            _ => not_allowed("PUT"),
        },
        ["debug", "pprof", ..] => text(
            StatusCode::NOT_IMPLEMENTED,
            "longshore is no Go program and has no pprof profiles; use perf(1) on its process\n",
        ),
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
    let status = pod.status.as_ref();
    let lists = status.map(|status| {
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
    });
    lists.into_iter().flatten().flatten().flatten()
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

/// The ID of the container of that name, if it runs.
pub(crate) fn running<'a>(view: &'a PodView, container: &str) -> Option<&'a str> {
    let status = statuses(&view.object).find(|status| status.name == container)?;
    status.state.as_ref()?.running.as_ref()?;
    status.container_id.as_deref().map(bare)
}

/// A command without stdin, its output as the body (`pkg/kubelet/server/server.go`, getRun).
async fn run(api: &Api, (namespace, pod, uid): (&str, &str, Option<&str>), container: &str, query: &Query) -> Response {
    use futures::AsyncReadExt;
    /// Output beyond this is cut off.
    const OUTPUT: u64 = 16 << 20;
    /// The command is let go after so long.
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(600);
    let Some(view) = api.pod(namespace, pod, uid) else {
        return text(StatusCode::NOT_FOUND, "pod does not exist");
    };
    let Some(id) = running(&view, container) else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, format!("container not found ({container:?})"));
    };
    let command: Vec<String> = match query.get("cmd") {
        Some(line) => line.split(' ').map(str::to_owned).collect(),
        None => query.all("command").map(str::to_owned).collect(),
    };
    if command.is_empty() {
        return text(StatusCode::BAD_REQUEST, "no command: give it as ?cmd=");
    }
    let wants = Wants { stdout: true, stderr: true, ..Wants::default() };
    let exec = StreamedExec { container_id: id.to_owned(), command, wants };
    let work = async {
        let mut it = api.parts.streams.exec_streams(&exec).await.map_err(|error| error.to_string())?;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let read = |stream: Option<longshore_core::ports::streams::Read>| stream.map(|stream| stream.take(OUTPUT));
        let (stdout, stderr) = (read(it.stdout.take()), read(it.stderr.take()));
        let first = async {
            match stdout {
                Some(mut stream) => stream.read_to_end(&mut out).await.map(|_| ()),
                None => Ok(()),
            }
        };
        let second = async {
            match stderr {
                Some(mut stream) => stream.read_to_end(&mut err).await.map(|_| ()),
                None => Ok(()),
            }
        };
        let (first, second) = futures::join!(first, second);
        first.and(second).map_err(|error| error.to_string())?;
        out.append(&mut err);
        match it.control.exit_code().await.map_err(|error| error.to_string())? {
            None | Some(0) => Ok(out),
            // The kubelet answers 500 with the error and hides the output; people want both.
            Some(code) => Err(format!("command terminated with exit code {code}: {}", String::from_utf8_lossy(&out))),
        }
    };
    match tokio::time::timeout(LIMIT, work).await {
        Ok(Ok(out)) => respond(StatusCode::OK, "text/plain; charset=utf-8", Body::from(out)),
        Ok(Err(message)) => text(StatusCode::INTERNAL_SERVER_ERROR, message),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the command did not end in time"),
    }
}

fn checkpoint(api: &Api, namespace: &str, pod: &str, container: &str, query: &Query) -> Response {
    let Some(view) = api.pod(namespace, pod, None) else {
        return text(StatusCode::NOT_FOUND, "pod does not exist\n");
    };
    if !has_container(&view.object, container) {
        return text(StatusCode::NOT_FOUND, format!("container {container} does not exist\n"));
    }
    if query.get("timeout").is_some_and(|value| value.parse::<i64>().is_err()) {
        return text(StatusCode::NOT_FOUND, "cannot parse value of timeout parameter\n");
    }
    text(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!("checkpointing of {namespace}/{pod}/{container} failed (Docker's checkpoints cannot leave the node)\n"),
    )
}

async fn verbosity(api: &Api, request: Request) -> Response {
    let limit = std::time::Duration::from_secs(10);
    let body = match tokio::time::timeout(limit, axum::body::to_bytes(request.into_body(), BODY)).await {
        Ok(Ok(body)) => body,
        _ => return text(StatusCode::BAD_REQUEST, "the body cannot be read"),
    };
    let wanted = String::from_utf8_lossy(&body);
    match (api.parts.verbosity)(wanted.trim()) {
        Ok(()) => text(StatusCode::OK, format!("successfully set klog.logging.verbosity to {}", wanted.trim())),
        Err(error) => text(StatusCode::BAD_REQUEST, format!("failed to set klog.logging.verbosity: {error}")),
    }
}

fn flagz(api: &Api) -> Response {
    let mut page = "\nkubelet flagz\nWarning: This endpoint is not meant to be machine parseable, has no formatting \
                    compatibility guarantees and is for debugging purposes only.\n\n"
        .to_owned();
    for (name, value) in &api.parts.flags {
        let _ = writeln!(page, "{name}={value}");
    }
    text(StatusCode::OK, page)
}

fn statusz(api: &Api) -> Response {
    let up = jiff::Timestamp::now().duration_since(api.started).as_secs().max(0);
    let page = format!(
        "\nkubelet statusz\nWarning: This endpoint is not meant to be machine parseable, has no formatting \
         compatibility guarantees and is for debugging purposes only.\n\nStarted: {}\nUp: {} hr {:02} min {:02} sec\n\
         Go version: none (longshore)\nBinary version: {}\nPaths: /configz /debug /healthz /metrics /flagz\n",
        api.started,
        up / 3600,
        up / 60 % 60,
        up % 60,
        env!("CARGO_PKG_VERSION")
    );
    text(StatusCode::OK, page)
}

pub(crate) fn text(code: StatusCode, body: impl Into<String>) -> Response {
    respond(code, "text/plain; charset=utf-8", Body::from(body.into()))
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

fn missing() -> Response {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn not_allowed(allowed: &'static str) -> Response {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}
