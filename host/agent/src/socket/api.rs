//! What the local socket speaks: the values that its routes answer with, and where they come from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::cluster::node_status::Pressure;
use longshore_core::ports::runtime::{LogChunk, LogOptions, RuntimeError};
use longshore_core::ports::sources::SourceProblem;
use longshore_reconcile::events::EventRing;
use longshore_reconcile::health::Health;
use longshore_reconcile::shutdown::Control;
use longshore_reconcile::views::Views;
use serde::{Deserialize, Serialize};

/// A log, piece by piece.
pub(crate) type LogStream = BoxStream<'static, Result<LogChunk, RuntimeError>>;

/// Opens the log of the container with that ID.
pub(crate) type OpenLog = Box<dyn Fn(&str, LogOptions) -> LogStream + Send + Sync>;

/// What the routes read and ask.
pub(crate) struct Api {
    /// The pods.
    pub(crate) views: Arc<Views>,
    /// The events.
    pub(crate) events: Arc<EventRing>,
    /// Containers' logs.
    pub(crate) logs: OpenLog,
    /// The flags that the agent was started with, by name.
    pub(crate) flags: BTreeMap<String, String>,
    /// The agent itself.
    pub(crate) state: Arc<AgentState>,
    /// Whether all pods are to end.
    pub(crate) shutdown: Arc<Control>,
    /// Whether pods can be run.
    pub(crate) health: Arc<Health>,
}

/// What the agent knows of itself; written by its start-up, read by `/v1/info` and `/v1/problems`.
#[derive(Debug)]
pub(crate) struct AgentState(Mutex<Info>);

impl AgentState {
    /// A state to begin with.
    pub(crate) fn new(info: Info) -> Arc<Self> {
        Arc::new(AgentState(Mutex::new(info)))
    }

    /// A copy of it.
    pub(crate) fn info(&self) -> Info {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes it.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Info)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What is said of a node on which somebody had all pods end.
pub(crate) const DRAINED: &str = "this node is drained: no pod starts until the agent is restarted or `longshore \
                                  drain-node --local --cancel` is run";

/// `GET /v1/info`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Info {
    /// Version of the agent.
    pub(crate) version: String,
    /// Its process ID.
    pub(crate) pid: u32,
    /// When it was started.
    pub(crate) started_at: Timestamp,
    /// Its root folder.
    pub(crate) root_dir: PathBuf,
    /// Its manifest folder.
    pub(crate) manifests: PathBuf,
    /// Name of the node, once it is known.
    pub(crate) node: Option<String>,
    /// Where CNI plugins' results are kept; older agents do not say.
    #[serde(default)]
    pub(crate) cni_cache_dir: Option<PathBuf>,
    /// Whether it is a node of a cluster.
    #[serde(default)]
    pub(crate) in_cluster: bool,
    /// Whether the machine goes down, or all pods are asked to end as if it did.
    #[serde(default)]
    pub(crate) going_down: bool,
    /// Whether that is only because somebody asked for it.
    #[serde(default)]
    pub(crate) drained: bool,
    /// What is waited for before all pods are known; `None` once they are.
    #[serde(default)]
    pub(crate) waits: Option<String>,
    /// What the node runs short of.
    #[serde(default)]
    pub(crate) pressure: Pressure,
    /// The container runtime.
    pub(crate) docker: DockerInfo,
}

/// Where the agent leaves what it knows of itself, for commands that work while it does not run.
const LAST_RUN: &str = "last-run.json";

impl Info {
    /// Leaves it in the root folder; what cannot be written there only makes `longshore plan` ask for more flags.
    pub(crate) fn store(&self, root: &Path) {
        let fresh = root.join(format!(".{LAST_RUN}.new"));
        let text = serde_json::to_vec_pretty(self).expect("these are texts and numbers");
        let written = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, root.join(LAST_RUN)));
        if let Err(error) = written {
            tracing::warn!("{} cannot be written: {error}", root.join(LAST_RUN).display());
        }
    }

    /// What the last agent left there.
    pub(crate) fn load(root: &Path) -> Option<Info> {
        serde_json::from_slice(&std::fs::read(root.join(LAST_RUN)).ok()?).ok()
    }
}

/// The container runtime, as the agent last saw it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DockerInfo {
    /// Where it listens.
    pub(crate) endpoint: String,
    /// Its version, once it answered.
    pub(crate) version: Option<String>,
    /// The version of its API in use.
    pub(crate) api_version: Option<String>,
    /// Why it cannot be used, while it cannot.
    pub(crate) error: Option<String>,
}

/// `GET /v1/problems`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProblemList {
    /// What is wrong with the sources and the node.
    pub(crate) items: Vec<SourceProblem>,
}

/// `POST /v1/resume`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Resumed {
    /// Whether pods may begin again; not while the machine itself goes down.
    pub(crate) resumed: bool,
}

/// One line of `GET /v1/pods?watch=1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct WatchEvent {
    /// `ADDED`, `MODIFIED`, `DELETED`; `BOOKMARK` after the pods that were there at first.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The pod.
    pub(crate) object: v1::Pod,
}
