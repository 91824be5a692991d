//! A host with a scripted container runtime, and short ways to ask it.

use std::future::Future;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use longshore_core::ports::exec::{ContainerExec, ExecError, ExecOutput, ExecRequest};
use longshore_core::ports::probes::{ProbeCall, ProbeOutcome, ProbePlugins as _, ProbeTarget};
use longshore_wasm::ProbeHost;
use tracing::subscriber::with_default;

/// What the scripted runtime does.
#[derive(Clone, Debug)]
pub(crate) enum Script {
    Exit(i32, Vec<u8>),
    Timeout,
    Fail,
    Hang,
}

pub(crate) struct Runtime {
    pub(crate) script: Mutex<Script>,
    pub(crate) asked: Mutex<Vec<ExecRequest>>,
}

#[async_trait]
impl ContainerExec for Runtime {
    async fn exec(&self, request: ExecRequest) -> Result<ExecOutput, ExecError> {
        let script = self.script.lock().unwrap().clone();
        let timeout = request.timeout;
        self.asked.lock().unwrap().push(request);
        match script {
            Script::Exit(code, output) => Ok(ExecOutput { exit_code: Some(code), output }),
            Script::Timeout => {
                tokio::time::sleep(timeout).await;
                Ok(ExecOutput { exit_code: None, output: Vec::new() })
            }
            Script::Fail => Err(ExecError::Runtime { message: "no such container".to_owned() }),
            Script::Hang => std::future::pending().await,
        }
    }
}

pub(crate) struct World {
    pub(crate) host: Arc<ProbeHost>,
    pub(crate) runtime: Arc<Runtime>,
}

/// A host whose compiled plugins are shared by all tests, and kept for the next run.
pub(crate) fn world() -> World {
    world_in(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled"))
}

/// A host with this cache.
pub(crate) fn world_in(cache: &Path) -> World {
    let runtime = Arc::new(Runtime { script: Mutex::new(Script::Exit(0, b"ok".to_vec())), asked: Mutex::default() });
    let host = Arc::new(ProbeHost::new(Arc::clone(&runtime) as _, cache).unwrap());
    World { host, runtime }
}

pub(crate) fn call(plugin: &str, config: &str, budget: Duration) -> ProbeCall {
    ProbeCall {
        plugin: plugin.to_owned(),
        config: config.to_owned(),
        target: ProbeTarget {
            pod_uid: "uid".to_owned(),
            namespace: "default".to_owned(),
            pod: "web-0".to_owned(),
            container: "web".to_owned(),
            container_id: "c0ffee".to_owned(),
            pod_ip: Some("127.0.0.1".parse().unwrap()),
            ports: vec![],
        },
        budget,
    }
}

impl World {
    pub(crate) async fn check(&self, plugin: &str, config: &str) -> ProbeOutcome {
        self.host.check(call(plugin, config, Duration::from_secs(5))).await.outcome
    }

    /// Checks with a budget, and says how long it took.
    pub(crate) async fn timed(&self, plugin: &str, config: &str, budget: Duration) -> (ProbeOutcome, Duration) {
        let began = Instant::now();
        let outcome = self.host.check(call(plugin, config, budget)).await.outcome;
        (outcome, began.elapsed())
    }
}

pub(crate) fn success(message: &str) -> ProbeOutcome {
    ProbeOutcome::Success { message: message.to_owned() }
}

pub(crate) fn failure(message: &str) -> ProbeOutcome {
    ProbeOutcome::Failure { message: message.to_owned() }
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs something on this thread, and hands out what it logged.
pub(crate) fn log_of(run: impl Future<Output = ()>) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let written = Written::default();
    let writer = written.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .with_max_level(tracing::Level::INFO)
        .finish();
    with_default(subscriber, || runtime.block_on(run));
    let bytes = written.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}
