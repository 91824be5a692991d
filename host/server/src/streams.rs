//! `/exec`, `/attach` and `/portForward`: between the client's streams and those of the pod
//! (`pkg/kubelet/server/server.go`; `k8s.io/cri-streaming/pkg/streaming`). It must not know the protocols of either side.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use futures::io::AsyncRead as FuturesRead;
use http::{HeaderMap, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use longshore_core::ports::runtime::RuntimeError;
use longshore_core::ports::streams::{Attached, StreamedExec, Wants};
use longshore_core::view::PodView;
use longshore_streaming::Options;
use longshore_streaming::negotiate::{self, NegotiationError, Protocol, Service};
use longshore_streaming::port_forward;
use longshore_streaming::remote_command::{self, Outcome, Requested};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio_util::compat::{FuturesAsyncReadCompatExt, FuturesAsyncWriteCompatExt};
use tokio_util::task::TaskTracker;

use crate::copy::copy;
use crate::listen::Held;
use crate::namespaces::{Namespace, Namespaces};
use crate::query::Query;
use crate::routes::{Api, NoPod, error, running, text};

/// What the client may still send to a pod that has closed its side.
const LINGER: Duration = Duration::from_secs(1);

/// What somebody wants with a container.
enum Verb {
    Exec(Vec<String>),
    Attach,
}

pub(crate) async fn exec(
    api: &Arc<Api>,
    held: Held,
    pod: (&str, &str, Option<&str>),
    container: &str,
    query: &Query,
    request: Request,
) -> Response {
    let command = query.all("command").map(str::to_owned).collect();
    remote_command(api, held, pod, container, query, request, Verb::Exec(command)).await
}

pub(crate) async fn attach(
    api: &Arc<Api>,
    held: Held,
    pod: (&str, &str, Option<&str>),
    container: &str,
    query: &Query,
    request: Request,
) -> Response {
    remote_command(api, held, pod, container, query, request, Verb::Attach).await
}

async fn remote_command(
    api: &Arc<Api>,
    held: Held,
    (namespace, name, uid): (&str, &str, Option<&str>),
    container: &str,
    query: &Query,
    mut request: Request,
    verb: Verb,
) -> Response {
    let tty = query.is_one("tty");
    let requested = Requested {
        stdin: query.is_one("input"),
        stdout: query.is_one("output"),
        stderr: query.is_one("error") && !tty,
        tty,
    };
    if let Err(error) = requested.check() {
        return text(StatusCode::BAD_REQUEST, error.to_string());
    }
    let found = match &verb {
        Verb::Exec(_) => api.pod_to_run_in(namespace, name, uid),
        Verb::Attach => api.pod(namespace, name, uid),
    };
    let found = match found {
        Err(NoPod::OfThatName) => return text(StatusCode::NOT_FOUND, "pod does not exist"),
        Err(NoPod::WithThatUid) => None,
        Ok(view) => running(&view, container).map(str::to_owned).map(|id| (view, id)),
    };
    let Some((view, id)) = found else {
        let words = match verb {
            Verb::Exec(_) => format!("container not found ({container:?})"),
            Verb::Attach => format!("container {container} not found in pod {name}_{namespace}"),
        };
        return text(StatusCode::INTERNAL_SERVER_ERROR, words);
    };
    if matches!(&verb, Verb::Exec(command) if command.is_empty()) {
        return text(StatusCode::BAD_REQUEST, "no command: give it as ?command=");
    }
    let agreed = match negotiate::negotiate(Service::RemoteCommand, request.headers()) {
        Ok(agreed) => agreed,
        Err(why) => return refuse(&why),
    };
    let (upgrade, limit) = (hyper::upgrade::on(&mut request), api.config.header_limit);
    let (response, protocol) = (switch(agreed.headers()), agreed.protocol());
    let options = Options { idle_timeout: api.config.streaming_idle, ..Options::default() };
    let api = api.clone();
    let (pod, container) = (view.id.to_string(), container.to_owned());
    held.spawn(async move {
        let io = match upgraded(upgrade, limit).await {
            Ok(io) => io,
            Err(error) => return tracing::debug!(%pod, %container, %error, "a stream did not begin"),
        };
        tracing::debug!(%pod, %container, ?protocol, "a stream begins");
        let mut command = match remote_command::serve(io, protocol, requested, options).await {
            Ok(command) => command,
            Err(error) => return tracing::debug!(%pod, %container, %error, "a stream did not begin"),
        };
        let gone = command.gone();
        // The end of an output tells the process's: one is attached also for a client that wants none.
        let stdout = requested.stdout || !requested.stderr;
        let wants = Wants { stdin: requested.stdin, stdout, stderr: requested.stderr, tty: requested.tty };
        let (attached, attaching) = match verb {
            Verb::Exec(words) => {
                let exec = StreamedExec { container_id: id, command: words, wants };
                (api.parts.streams.exec_streams(&exec).await, false)
            }
            Verb::Attach => (api.parts.streams.attach(&id, wants).await, true),
        };
        let outcome = match attached {
            Err(error) => Some(failed(attaching, &error)),
            Ok(attached) => {
                let client = Client {
                    stdin: command.stdin.take(),
                    stdout: command.stdout.take(),
                    stderr: command.stderr.take(),
                };
                let resize = command.resize.take();
                tokio::select! {
                    outcome = connect(client, resize, attached, attaching) => Some(outcome),
                    // All that is attached is dropped: the process's stdin ends.
                    () = gone.wait() => None,
                }
            }
        };
        if let Some(outcome) = outcome {
            // It fails when the client is gone: then nobody wants to know.
            let _ = command.finish.finish(outcome).await;
        }
    });
    response
}

fn failed(attaching: bool, error: &RuntimeError) -> Outcome {
    let what = if attaching { "error attaching to container" } else { "error executing command in container" };
    Outcome::Failed(format!("{what}: {error}"))
}

/// The client's ends.
struct Client {
    stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
    stdout: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    stderr: Option<Box<dyn AsyncWrite + Send + Unpin>>,
}

/// Copies until the process's output has ended, and tells how it ended.
async fn connect(
    client: Client,
    mut resize: Option<tokio::sync::mpsc::Receiver<remote_command::Size>>,
    attached: Attached,
    attaching: bool,
) -> Outcome {
    let Attached { stdin, stdout, stderr, control } = attached;
    let input = async {
        let (Some(from), Some(to)) = (client.stdin, stdin) else { return };
        let mut to = to.compat_write();
        // What goes wrong here is the end of one of both sides, which the output tells.
        let _ = copy(from, &mut to).await;
        let _ = to.shutdown().await;
    };
    let output = async {
        tokio::join!(pour(stdout, client.stdout), pour(stderr, client.stderr));
    };
    let resizing = async {
        while let Some(resize) = &mut resize {
            let Some(size) = resize.recv().await else { break };
            if let Err(error) = control.resize(size.width, size.height).await {
                tracing::debug!(%error, "a terminal was not resized");
            }
        }
        std::future::pending::<()>().await
    };
    let work = async {
        tokio::pin!(input, output);
        tokio::select! {
            () = &mut output => {}
            () = &mut input => output.await,
        }
    };
    tokio::select! {
        () = work => {}
        () = resizing => {}
    }
    match control.exit_code().await {
        _ if attaching => Outcome::Success,
        Ok(None | Some(0)) => Outcome::Success,
        Ok(Some(code)) => Outcome::ExitCode(code),
        Err(error) => failed(attaching, &error),
    }
}

/// Copies an output to its end. When the client does not want it any more, the rest is read and thrown away, so that
/// the process does not stand still.
async fn pour(from: Option<Box<dyn FuturesRead + Send + Unpin>>, to: Option<Box<dyn AsyncWrite + Send + Unpin>>) {
    let Some(from) = from else { return };
    let mut from = from.compat();
    if let Some(mut to) = to
        && copy(&mut from, &mut to).await.is_ok()
    {
        let _ = to.shutdown().await;
        return;
    }
    let _ = copy(from, &mut tokio::io::sink()).await;
}

pub(crate) async fn port_forward(
    api: &Arc<Api>,
    held: Held,
    (namespace, name, uid): (&str, &str, Option<&str>),
    query: &Query,
    mut request: Request,
) -> Response {
    // Of the protocols only the WebSocket channels name their ports beforehand.
    let asked: Vec<&str> = query.all("port").collect();
    let agreed = negotiate::negotiate(Service::PortForward, request.headers());
    let ports = match &agreed {
        Ok(agreed) if matches!(agreed.protocol(), Protocol::Channels { .. }) => {
            match port_forward::ports_of_query(&asked) {
                Ok(ports) => ports,
                Err(error) => return text(StatusCode::BAD_REQUEST, error),
            }
        }
        _ => Vec::new(),
    };
    let view = match api.pod(namespace, name, uid) {
        Err(NoPod::OfThatName) => return text(StatusCode::NOT_FOUND, "pod does not exist"),
        Err(NoPod::WithThatUid) => return text(StatusCode::NOT_FOUND, "pod not found"),
        Ok(view) => view,
    };
    let namespace = match network(api, &view).await {
        Ok(namespace) => namespace,
        Err(message) => return text(StatusCode::INTERNAL_SERVER_ERROR, message),
    };
    let agreed = match agreed {
        Ok(agreed) => agreed,
        Err(why) => return refuse(&why),
    };
    let protocol = agreed.protocol();
    let (upgrade, limit) = (hyper::upgrade::on(&mut request), api.config.header_limit);
    let response = switch(agreed.headers());
    let options = Options { idle_timeout: api.config.streaming_idle, ..Options::default() };
    let (pod, api) = (view.id.to_string(), api.clone());
    held.spawn(async move {
        let io = match upgraded(upgrade, limit).await {
            Ok(io) => io,
            Err(error) => return tracing::debug!(%pod, %error, "a port-forward did not begin"),
        };
        tracing::debug!(%pod, ?protocol, "a port-forward begins");
        let mut forwards = port_forward::serve(io, protocol, &ports, options);
        let (slots, gone) = (Arc::new(Semaphore::new(api.config.forwards.max(1))), forwards.gone());
        let (tasks, running) = (tokio_util::sync::CancellationToken::new(), TaskTracker::new());
        // Ends the connections into the pod when the client is gone, also when this task is dropped.
        let _end = tasks.clone().drop_guard();
        // While all slots are taken nothing else tells that the client is gone.
        while let Some(Ok(slot)) = tokio::select! {
            slot = slots.clone().acquire_owned() => Some(slot),
            () = gone.wait() => None,
        } && let Some(forward) = forwards.next().await
        {
            let (api, namespace, stop) = (api.clone(), namespace.clone(), tasks.clone());
            let (name, uid) = (view.id.name.clone(), view.id.uid.clone());
            running.spawn(async move {
                let _slot = slot;
                let (port, mut data, end) = forward.into_parts();
                tokio::select! {
                    () = stop.cancelled() => {}
                    result = one(&api, namespace.as_ref(), port, &mut data) => {
                        let said = |why: String| format!("error forwarding port {port} to pod {name}, uid {uid}: {why}");
                        // It fails when the client is gone, which ends everything anyway.
                        let _ = end.finish(result.map_err(said)).await;
                    }
                }
            });
        }
        forwards.close().await;
    });
    response
}

/// The network namespace of the pod's sandbox; `None` on the node's network. It is opened once for all connections: the process that
/// tells it may end and its number become another's, while the pod keeps its network.
async fn network(api: &Api, view: &PodView) -> Result<Option<Namespace>, String> {
    let process = async || api.parts.streams.process_id(view.sandbox.as_deref()?).await.ok();
    let ended = || format!("pod not found ({:?})", format!("{}_{}", view.id.name, view.id.namespace));
    // Its containers may all be between two runs. The node's ports are a pod's no more when it has ended.
    let before = process().await.ok_or_else(ended)?;
    let spec = view.object.spec.as_ref();
    if spec.and_then(|spec| spec.host_network).unwrap_or_default() {
        return Ok(None);
    }
    let opened = Namespaces::of(before);
    // If it is still that one, the namespace that was opened is that one's.
    process().await.filter(|now| *now == before).ok_or_else(ended)?;
    opened.map(Some).map_err(|error| format!("unable to do port forwarding: {error}"))
}

/// One connection, which has a place among those of all clients. Half-closes pass through both ways.
async fn one(
    api: &Api,
    namespace: Option<&Namespace>,
    port: u16,
    data: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<(), String> {
    let Ok(_place) = api.forwards.try_acquire() else {
        let most = api.config.forwards_in_all;
        return Err(format!("{most} connections into pods are open on this node already, try again later"));
    };
    let stream = api
        .namespaces
        .connect(namespace, port)
        .await
        .map_err(|error| format!("failed to connect to localhost:{port} inside the pod's network: {error}"))?;
    let (mut from_pod, mut to_pod) = stream.into_split();
    let (from_client, mut to_client) = tokio::io::split(data);
    let up = async {
        // A connection that breaks is the business of its two ends, which see it.
        let whole = copy(from_client, &mut to_pod).await;
        whole.is_ok() && to_pod.shutdown().await.is_ok()
    };
    let down = async {
        let _ = copy(&mut from_pod, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::pin!(up, down);
    tokio::select! {
        whole = &mut up => {
            if whole {
                down.await;
            }
        }
        // Over channels a client cannot end its side: one that the pod has left gets a moment, as containerd gives it.
        () = &mut down => {
            let _ = tokio::time::timeout(LINGER, up).await;
        }
    }
    Ok(())
}

/// The connection behind a request, once its client has the answer.
async fn upgraded(upgrade: OnUpgrade, limit: Duration) -> Result<TokioIo<Upgraded>, String> {
    match tokio::time::timeout(limit, upgrade).await {
        Ok(Ok(upgraded)) => Ok(TokioIo::new(upgraded)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the client does not take its answer within {} s", limit.as_secs())),
    }
}

fn switch(headers: HeaderMap) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().extend(headers);
    response
}

fn refuse(why: &NegotiationError) -> Response {
    let code = StatusCode::from_u16(why.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = error(code, &why.to_string());
    response.headers_mut().extend(why.headers());
    response
}
