//! Sends each request with the credentials that the files hold now, to the server that answers. It must not know what
//! requests mean, and begins no task.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use jiff::Timestamp;
use kube::client::Body;
use tokio::sync::watch;
use tower::{BoxError, Service, ServiceExt};

use super::failure::{ConnectionError, explain, identity_problem, unauthorized};
use super::lane::{Lane, lane, was_not_sent};
use crate::credentials::{CertificateDates, CredentialsError, Identity, Sources, Stamp};

/// Until an answer begins. Longer than what callers wait, as watches and long lists begin late on a busy server.
const HEAD: Duration = Duration::from_secs(60);
/// For setting up, as an exec plugin may be asked.
const SET_UP: Duration = Duration::from_secs(60);
/// A plugin is asked again for a refusal at most this often.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Servers that are kept; more are no help.
const SERVERS: usize = 16;

/// How it stands with the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionStatus {
    /// The address that is asked now.
    pub server: String,
    /// What is wrong, with what to do; `None` when the last request was answered.
    pub problem: Option<String>,
    /// Our client certificate, where we have one.
    pub certificate: Option<CertificateDates>,
}

/// What is in use.
struct Inner {
    lanes: Vec<Lane>,
    current: AtomicUsize,
    identity: Identity,
    ca: String,
    stamp: Stamp,
    made: Instant,
    stale: AtomicBool,
}

impl Inner {
    fn certificate(&self) -> Option<CertificateDates> {
        match &self.identity {
            Identity::Certificate { dates, .. } => Some(dates.clone()),
            _ => None,
        }
    }
}

struct Shared {
    sources: Sources,
    inner: Mutex<Arc<Inner>>,
    /// One sets up at a time; the files that could not be used last.
    making: tokio::sync::Mutex<Option<Stamp>>,
    status: watch::Sender<ConnectionStatus>,
    /// Counted up whenever the server may be another than before.
    epoch: AtomicUsize,
}

/// Who gives up on a request within this says nothing about the server.
const PATIENCE: Duration = Duration::from_secs(8);

/// Moves all on to the next server when a caller has waited for long and gives up, as its time limit is its own.
struct Waiting<'a> {
    switch: &'a Switch,
    inner: &'a Inner,
    index: usize,
    since: Instant,
    over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.over || self.since.elapsed() < PATIENCE {
            return;
        }
        let server = self.inner.lanes[self.index].address.clone();
        let told = ConnectionError { server, what: format!("no answer within {} s", self.since.elapsed().as_secs()) };
        self.switch.failed(self.inner, self.index, &told);
        self.switch.tell(&told.server, Some(told.to_string()));
    }
}

/// Sends requests. Clones share everything.
#[derive(Clone)]
pub(crate) struct Switch {
    shared: Arc<Shared>,
}

fn plain<T>(result: Result<T, std::sync::PoisonError<T>>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}

async fn make(sources: &Sources) -> Result<Inner, CredentialsError> {
    let material = sources.read().await?;
    let identity = material.identity.clone();
    let path = sources.kubeconfig.clone().unwrap_or_default();
    let (config, servers) = (material.config, material.servers);
    let make = move || servers.iter().take(SERVERS).map(|server| lane(&config, server)).collect::<Result<Vec<_>, _>>();
    let lanes = match &identity {
        Identity::Exec { command } => {
            let hangs = || CredentialsError::ExecHangs { command: command.clone(), limit: SET_UP };
            let made = tokio::time::timeout(SET_UP, tokio::task::spawn_blocking(make)).await;
            made.map_err(|_| hangs())?.map_err(|_| hangs())?
        }
        _ => make(),
    };
    let lanes = lanes.map_err(|error| {
        let (message, mut next) = (error.to_string(), std::error::Error::source(&error));
        let mut message = message;
        while let Some(cause) = next {
            let words = cause.to_string();
            if !message.contains(&words) {
                message = format!("{message}: {words}");
            }
            next = cause.source();
        }
        CredentialsError::Tls { path, message }
    })?;
    Ok(Inner {
        lanes,
        current: AtomicUsize::new(0),
        identity,
        ca: material.ca,
        stamp: material.stamp,
        made: Instant::now(),
        stale: AtomicBool::new(false),
    })
}

impl Switch {
    pub(crate) async fn new(sources: Sources) -> Result<Self, CredentialsError> {
        let inner = make(&sources).await?;
        let problem = identity_problem(&inner.identity, Timestamp::now());
        if let Some(problem) = &problem {
            tracing::warn!(%problem, "credentials for the API server");
        }
        let server = inner.lanes.first().map(|lane| lane.address.clone()).unwrap_or_default();
        let status = watch::Sender::new(ConnectionStatus { server, problem, certificate: inner.certificate() });
        Ok(Self {
            shared: Arc::new(Shared {
                sources,
                inner: Mutex::new(Arc::new(inner)),
                making: tokio::sync::Mutex::new(None),
                status,
                epoch: AtomicUsize::new(0),
            }),
        })
    }

    pub(crate) fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    pub(crate) fn status(&self) -> watch::Receiver<ConnectionStatus> {
        self.shared.status.subscribe()
    }

    pub(crate) fn identity(&self) -> Identity {
        plain(self.shared.inner.lock()).identity.clone()
    }

    /// Looks at the files, as every request does.
    pub(crate) async fn refresh(&self) {
        self.current().await;
    }

    /// Differs from an earlier answer once the server may be another.
    pub(crate) fn epoch(&self) -> usize {
        self.shared.epoch.load(Ordering::Relaxed)
    }

    fn tell(&self, server: &str, problem: Option<String>) {
        let changed = self.shared.status.send_if_modified(|status| {
            let same = status.server == server && status.problem == problem;
            status.server = server.to_owned();
            status.problem = problem.clone();
            !same
        });
        if changed {
            match problem {
                Some(problem) => tracing::warn!(server, %problem, "the API server"),
                None => tracing::info!(server, "the API server answers"),
            }
        }
    }

    /// What is to be used, made anew when files have changed. Files that cannot be used leave the former in force.
    async fn current(&self) -> Arc<Inner> {
        let inner = plain(self.shared.inner.lock()).clone();
        let now = inner.stamp.now();
        if now == inner.stamp && !inner.stale.load(Ordering::Relaxed) {
            return inner;
        }
        let mut failed = self.shared.making.lock().await;
        let inner = plain(self.shared.inner.lock()).clone();
        let now = inner.stamp.now();
        let stale = inner.stale.load(Ordering::Relaxed);
        if now == inner.stamp && !stale || failed.as_ref() == Some(&now) {
            return inner;
        }
        match make(&self.shared.sources).await {
            Ok(made) => {
                *failed = None;
                if let Some(at) = inner.lanes.get(inner.current.load(Ordering::Relaxed)) {
                    let same = made.lanes.iter().position(|lane| lane.address == at.address);
                    made.current.store(same.unwrap_or(0), Ordering::Relaxed);
                }
                let changed = inner.stamp.changed(&now);
                tracing::info!(%changed, "credentials for the API server were read again");
                let made = Arc::new(made);
                *plain(self.shared.inner.lock()) = made.clone();
                self.shared.epoch.fetch_add(1, Ordering::Relaxed);
                let certificate = made.certificate();
                self.shared.status.send_modify(|status| status.certificate = certificate);
                made
            }
            Err(error) => {
                let problem = ConnectionError { server: self.shared.sources.name(), what: chain(&error) };
                tracing::warn!(%problem, "new credentials cannot be used; the former stay in force");
                inner.stale.store(false, Ordering::Relaxed);
                *failed = Some(now);
                inner
            }
        }
    }

    async fn send(self, request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        let inner = self.current().await;
        let (parts, body) = request.into_parts();
        let idempotent = parts.method == Method::GET || parts.method == Method::HEAD;
        let mut body = Some(body);
        let mut problems: Vec<ConnectionError> = Vec::new();
        for attempt in 0..inner.lanes.len() {
            let index = inner.current.load(Ordering::Relaxed) % inner.lanes.len();
            let lane = &inner.lanes[index];
            let last = attempt + 1 == inner.lanes.len();
            let copy = match last {
                true => None,
                false => body.as_ref().and_then(Body::try_clone),
            };
            let Some(sent) = body.take() else { break };
            body = copy;
            let request = Request::from_parts(parts.clone(), sent);
            let mut waiting = Waiting { switch: &self, inner: &inner, index, since: Instant::now(), over: false };
            let answer = match tokio::time::timeout(HEAD, lane.service.clone().oneshot(request)).await {
                Ok(answer) => answer,
                Err(_) => Err(BoxError::from(std::io::Error::from(std::io::ErrorKind::TimedOut))),
            };
            waiting.over = true;
            let error = match answer {
                Ok(answer) => {
                    self.answered(&inner, lane, answer.status());
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let not_sent = was_not_sent(&error);
            let told = explain(&lane.address, error.as_ref(), &inner.identity, &inner.ca, Timestamp::now());
            self.failed(&inner, index, &told);
            problems.push(told);
            if !not_sent && !idempotent {
                break;
            }
        }
        let problem = match problems.as_slice() {
            [only] => only.clone(),
            _ => ConnectionError {
                server: "no API server answers".to_owned(),
                what: problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            },
        };
        let server = inner.lanes.get(inner.current.load(Ordering::Relaxed)).map(|lane| lane.address.as_str());
        self.tell(server.unwrap_or_default(), Some(problem.to_string()));
        Err(Box::new(problem))
    }

    /// Whoever finds a server failed first moves all on; the others see the new one already.
    fn failed(&self, inner: &Inner, index: usize, told: &ConnectionError) {
        self.shared.epoch.fetch_add(1, Ordering::Relaxed);
        let next = (index + 1) % inner.lanes.len();
        let moved = inner.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
        if inner.lanes.len() > 1 && moved.is_ok() {
            tracing::warn!(error = %told, next = inner.lanes[next].address, "another API server is asked");
        }
    }

    fn answered(&self, inner: &Inner, lane: &Lane, status: StatusCode) {
        if status != StatusCode::UNAUTHORIZED {
            return self.tell(&lane.address, None);
        }
        if matches!(inner.identity, Identity::Exec { .. }) && inner.made.elapsed() >= ASK_AGAIN {
            inner.stale.store(true, Ordering::Relaxed);
        }
        self.tell(&lane.address, Some(unauthorized(&inner.identity, Timestamp::now())));
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

impl Service<Request<Body>> for Switch {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Incoming>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.clone().send(request).boxed()
    }
}
