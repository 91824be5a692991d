//! The ports, played: the API server's word, a pod, numbers, streams, and logs of several kinds.

use std::collections::HashMap;
use std::future::{pending, ready};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use longshore_core::pod::{PodId, Source};
use longshore_core::ports::cluster::ApiError;
use longshore_core::ports::pods::PodViews;
use longshore_core::ports::reviews::{NodeAccess, Reviews, User};
use longshore_core::ports::runtime::{LogChunk, LogOptions, RuntimeError};
use longshore_core::ports::stats::{FileSystem, NodeUsage, PodQuery, PodUsage, Stats, Usage};
use longshore_core::ports::streams::{Attached, AttachedControl, ContainerStreams, StreamedExec, Wants};
use longshore_core::probe::Sample;
use longshore_core::view::{PodView, ProbeTally, ProbeView};
use longshore_server::LogReader;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

/// What the played API server says.
#[derive(Default)]
pub(crate) struct Judge {
    pub(crate) tokens: Mutex<HashMap<String, User>>,
    /// User and subresource.
    pub(crate) rights: Mutex<Vec<(String, String)>>,
    pub(crate) down: Mutex<bool>,
    pub(crate) asked: AtomicUsize,
}

#[async_trait]
impl Reviews for Judge {
    async fn authenticate(&self, token: &str) -> Result<Option<User>, ApiError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if *self.down.lock().unwrap() {
            return Err(ApiError::Unreachable { message: "down".to_owned() });
        }
        Ok(self.tokens.lock().unwrap().get(token).cloned())
    }

    async fn authorize(&self, user: &User, access: &NodeAccess) -> Result<Result<(), String>, ApiError> {
        if *self.down.lock().unwrap() {
            return Err(ApiError::Unreachable { message: "down".to_owned() });
        }
        let right = (user.name.clone(), access.subresource.to_owned());
        let may = self.rights.lock().unwrap().contains(&right);
        Ok(if may { Ok(()) } else { Err(String::new()) })
    }
}

/// One that failed twice, and took 30 ms when it succeeded.
fn probe() -> ProbeView {
    let mut tally = ProbeTally::default();
    tally.add(Sample::Success, Duration::from_millis(30));
    tally.add(Sample::Failure, Duration::from_secs(1));
    tally.add(Sample::Failure, Duration::from_secs(1));
    ProbeView {
        container: "c".to_owned(),
        kind: "liveness".to_owned(),
        plugin: "tcp".to_owned(),
        config: "{}".to_owned(),
        period_ms: 10_000,
        timeout_ms: 1000,
        failure_threshold: 3,
        success_threshold: 1,
        last: None,
        in_a_row: 2,
        tally,
    }
}

/// One pod, and what is wrong with the loops.
#[derive(Default)]
pub(crate) struct Pods {
    pub(crate) sick: Mutex<Option<String>>,
    /// Pods besides that one.
    pub(crate) others: Mutex<Vec<Arc<PodView>>>,
}

/// A pod with an address of its own and one container, which runs.
pub(crate) fn other(name: &str, container_id: &str) -> Arc<PodView> {
    let object = serde_json::json!({
        "metadata": {"name": name, "namespace": "n", "uid": name},
        "spec": {"containers": [{"name": "c"}]},
        "status": {"containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
            "containerID": format!("docker://{container_id}"), "state": {"running": {}}}]}
    });
    published(name, name, object)
}

fn view() -> Arc<PodView> {
    let logs = ["silent", "broken", "endless"].map(|name| {
        let id = format!("docker://{name}");
        serde_json::json!({"name": name, "image": "i", "imageID": "", "ready": true, "restartCount": 0,
            "containerID": id, "state": {"running": {}}})
    });
    let mut object = serde_json::json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"hostNetwork": true, "containers": [{"name": "c"}, {"name": "w"}, {"name": "silent"}, {"name": "broken"},
            {"name": "endless"}]},
        "status": {"containerStatuses": [
            {"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "containerID": "docker://id-c",
             "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
             "lastState": {"terminated": {"exitCode": 1, "containerID": "docker://id-before"}}},
            {"name": "w", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
             "state": {"waiting": {"reason": "CreateContainerConfigError"}}}
        ]}
    });
    object["status"]["containerStatuses"].as_array_mut().unwrap().extend(logs);
    published("p", "u", object)
}

fn published(name: &str, uid: &str, object: serde_json::Value) -> Arc<PodView> {
    Arc::new(PodView {
        id: PodId { namespace: "n".to_owned(), name: name.to_owned(), uid: uid.to_owned() },
        source: Source::Api,
        object: serde_json::from_value(object).unwrap(),
        sandbox: Some(format!("sandbox-{name}")),
        steps: Vec::new(),
        probes: vec![probe()],
        standing: Default::default(),
    })
}

impl PodViews for Pods {
    fn pods(&self) -> Vec<Arc<PodView>> {
        [view()].into_iter().chain(self.others.lock().unwrap().clone()).collect()
    }

    fn pod(&self, uid: &str) -> Option<Arc<PodView>> {
        (uid == "u").then(view)
    }

    fn healthy(&self) -> Result<(), String> {
        self.sick.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

pub(crate) struct Numbers;

#[async_trait]
impl Stats for Numbers {
    async fn node(&self) -> NodeUsage {
        let usage = Usage { cpu_nanoseconds: Some(1_500_000_000), memory_working_set: Some(7), ..Usage::default() };
        let image_fs = Some(FileSystem { capacity: 6, ..FileSystem::default() });
        NodeUsage { usage, image_fs, processes: Some((4, 2)), ..NodeUsage::default() }
    }

    async fn pod(&self, query: &PodQuery) -> PodUsage {
        let usage = Usage {
            cpu_nanoseconds: Some(2_000_000_000),
            memory_working_set: Some(9),
            swap: Some(3),
            swap_limit: Some(11),
            ..Usage::default()
        };
        let containers = query.containers.iter().map(|(name, _)| (name.clone(), usage.clone())).collect();
        PodUsage { usage, containers, ..PodUsage::default() }
    }
}

/// Echoes stdin to stdout and ends with 3, having said something on stderr; `true` ends with 0 and reads nothing.
#[derive(Default)]
pub(crate) struct Echo {
    /// How often a process was asked for.
    pub(crate) asked: AtomicUsize,
}

struct Ended(i32);

#[async_trait]
impl AttachedControl for Ended {
    async fn resize(&self, _width: u16, _height: u16) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn exit_code(&self) -> Result<Option<i32>, RuntimeError> {
        Ok(Some(self.0))
    }
}

fn echo(wants: Wants, code: i32) -> Attached {
    let reads = wants.stdin && code != 0;
    let (near, far) = tokio::io::duplex(1024);
    let (read, write) = tokio::io::split(near);
    let (mut far_read, mut far_write) = tokio::io::split(far);
    tokio::spawn(async move {
        if reads {
            let _ = tokio::io::copy(&mut far_read, &mut far_write).await;
        } else if !wants.stdin {
            let _ = far_write.write_all(b"said").await;
        }
        let _ = far_write.shutdown().await;
    });
    Attached {
        stdin: if wants.stdin { Some(Box::new(write.compat_write())) } else { None },
        stdout: wants.stdout.then(|| Box::new(read.compat()) as longshore_core::ports::streams::Read),
        stderr: wants.stderr.then(|| Box::new(&b"err"[..]) as longshore_core::ports::streams::Read),
        control: Box::new(Ended(code)),
    }
}

/// Ends when all of its output was taken, of which there is a MiB more than `/run` answers.
fn chatter() -> Attached {
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let (ended, end) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        for _ in 0..17 {
            if far.write_all(&vec![b'x'; 1 << 20]).await.is_err() {
                return;
            }
        }
        let _ = ended.send(());
    });
    let control = Box::new(Taken(tokio::sync::Mutex::new(Some(end))));
    Attached { stdin: None, stdout: Some(Box::new(near.compat())), stderr: None, control }
}

struct Taken(tokio::sync::Mutex<Option<tokio::sync::oneshot::Receiver<()>>>);

#[async_trait]
impl AttachedControl for Taken {
    async fn resize(&self, _width: u16, _height: u16) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn exit_code(&self) -> Result<Option<i32>, RuntimeError> {
        let end = self.0.lock().await.take().unwrap();
        end.await.map_err(|_| RuntimeError::Failed { operation: "exec", message: "nobody read it".to_owned() })?;
        Ok(Some(0))
    }
}

#[async_trait]
impl ContainerStreams for Echo {
    async fn exec_streams(&self, exec: &StreamedExec) -> Result<Attached, RuntimeError> {
        assert_eq!(exec.container_id, "id-c");
        match exec.command.join(" ").as_str() {
            "chatter" => Ok(chatter()),
            "true" => Ok(echo(exec.wants, 0)),
            "hang" => pending().await,
            _ => Ok(echo(exec.wants, 3)),
        }
    }

    async fn attach(&self, _container_id: &str, wants: Wants) -> Result<Attached, RuntimeError> {
        Ok(echo(wants, 3))
    }

    async fn process_id(&self, id: &str) -> Result<u32, RuntimeError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if id == "hung" {
            pending::<()>().await;
        }
        Ok(std::process::id())
    }
}

/// The logs, and what tests see and do of them.
#[derive(Default)]
pub(crate) struct Logs {
    /// Has the silent container write once more.
    pub(crate) more: Notify,
    /// Pieces that were taken of the endless one's log.
    pub(crate) taken: AtomicUsize,
}

/// A piece of the endless log.
pub(crate) const PIECE: usize = 64 << 10;

pub(crate) fn logs(logs: Arc<Logs>) -> LogReader {
    Arc::new(move |id, options| log(logs.clone(), id, options))
}

fn log(logs: Arc<Logs>, id: &str, options: LogOptions) -> BoxStream<'static, Result<LogChunk, RuntimeError>> {
    let chunk = |stderr, data: Vec<u8>| Ok(LogChunk { stderr, data: data.into() });
    let open = stream::once(ready(chunk(false, Vec::new())));
    match id {
        "broken" => stream::once(ready(Err(RuntimeError::NotFound { what: "container broken".to_owned() })))
            .chain(stream::once(pending()))
            .boxed(),
        "silent" => {
            let more = stream::unfold(logs, |logs| async move {
                logs.more.notified().await;
                Some((Ok(LogChunk { stderr: false, data: "more".into() }), logs))
            });
            open.chain(stream::once(ready(chunk(false, b"some".to_vec())))).chain(more).boxed()
        }
        "endless" => open
            .chain(stream::repeat_with(move || {
                logs.taken.fetch_add(1, Ordering::SeqCst);
                chunk(false, vec![b'x'; PIECE])
            }))
            .boxed(),
        _ => {
            let first = format!("{id} tail={:?} follow={}\n", options.tail, options.follow);
            let lines = [chunk(false, first.into_bytes()), chunk(true, b"to stderr\n".to_vec())];
            open.chain(stream::iter(lines)).boxed()
        }
    }
}
