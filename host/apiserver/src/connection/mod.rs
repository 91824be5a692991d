//! The connection to the API server: one client for everybody that always uses the current credentials and the server
//! that answers; its status and version; and the care for our certificates. What is asked is others' work.

mod failure;
mod lane;
mod switch;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use longshore_core::ports::archive::ObjectArchive;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use failure::ConnectionError;
pub(crate) use failure::mend;
pub use switch::ConnectionStatus;
pub(crate) use switch::Switch;

use crate::bootstrap::{self, BootstrapError};
use crate::certificates::{Care, ServingNames, Store};
use crate::credentials::{CredentialsError, Sources};
use crate::requests::{Requests, Way};
use crate::{ApiObjects, NodeApi, NodePods, NodeReviews, Pace, WatchedNode};

/// The version is asked for anew after this, as servers are upgraded.
const VERSION_AGE: Duration = Duration::from_secs(600);

/// A source of random numbers, 0 ≤ x < 1.
pub type Random = Arc<dyn Fn() -> f64 + Send + Sync>;

/// How to reach the API server and who we are there.
#[derive(Clone)]
pub struct Settings {
    /// `--kubeconfig`; after a bootstrap it is written there.
    pub kubeconfig: Option<PathBuf>,
    /// `--api-servers`: used in place of the kubeconfig's server, in their order.
    pub api_servers: Vec<String>,
    /// `--bootstrap-kubeconfig`: used when the kubeconfig is absent or its certificate has ended.
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// `--cert-dir`: where certificates that we asked for are kept.
    pub cert_dir: PathBuf,
    /// The node's name.
    pub node_name: String,
    /// `rotateCertificates`: renews the client certificate before it ends.
    pub rotate_certificates: bool,
    /// `serverTLSBootstrap`: has the API server sign the certificate of our own server.
    pub rotate_server_certificates: bool,
    /// Spreads the times of renewal.
    pub random: Random,
    /// How fast the API server is asked, certificates and its version aside.
    pub pace: Pace,
}

impl fmt::Debug for Settings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Settings")
            .field("kubeconfig", &self.kubeconfig)
            .field("api_servers", &self.api_servers)
            .field("bootstrap_kubeconfig", &self.bootstrap_kubeconfig)
            .field("cert_dir", &self.cert_dir)
            .field("node_name", &self.node_name)
            .finish_non_exhaustive()
    }
}

/// Why there is no connection, and will be none until somebody changes something.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// What says who we are cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The first certificate cannot be got.
    #[error("cannot get a first client certificate")]
    Bootstrap(#[from] BootstrapError),
}

/// The API server's version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerVersion {
    /// `1`.
    pub major: u32,
    /// Such as `36`.
    pub minor: u32,
    /// Such as `v1.36.3`.
    pub git_version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VersionAnswer {
    major: String,
    minor: String,
    #[serde(default)]
    git_version: String,
}

/// Clouds write `33+`.
fn number(text: &str) -> Option<u32> {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

struct Parts {
    settings: Settings,
    switch: Switch,
    client: kube::Client,
    /// The client at our pace.
    way: Way,
    version: Mutex<Option<(Instant, usize, ServerVersion)>>,
    serving: watch::Sender<Option<(String, String)>>,
}

/// The connection to the API server. Clones are cheap and share everything.
#[derive(Clone)]
pub struct Connection {
    parts: Arc<Parts>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Connection").field("settings", &self.parts.settings).finish_non_exhaustive()
    }
}

/// The common name of a node's certificates.
pub(crate) fn common_name(node: &str) -> String {
    format!("system:node:{node}")
}

impl Connection {
    /// Reads who we are; where nothing says so or it has ended, and there is a bootstrap kubeconfig, gets a certificate
    /// first and waits for that as long as it takes (drop the future to stop). An API server that does not answer is no
    /// error: [`Connection::status`] tells of it.
    pub async fn open(settings: Settings) -> Result<Self, JoinError> {
        let store = Store::new(&settings.cert_dir, "kubelet-client");
        bootstrap::ensure(&settings, &store).await?;
        let sources = Sources {
            kubeconfig: settings.kubeconfig.clone(),
            api_servers: settings.api_servers.clone(),
            rotated: settings.rotate_certificates.then(|| store.current()),
            common_name: common_name(&settings.node_name),
        };
        let switch = Switch::new(sources).await?;
        let client = switch.client();
        let way = Way::new(client.clone(), settings.pace.clone());
        let serving = watch::Sender::new(None);
        Ok(Self { parts: Arc::new(Parts { settings, switch, client, way, version: Mutex::default(), serving }) })
    }

    /// The client for every request. It follows changed files and failed servers by itself.
    pub fn client(&self) -> kube::Client {
        self.parts.client.clone()
    }

    fn way(&self) -> Way {
        self.parts.way.clone()
    }

    /// The node's side of the API.
    pub fn node_api(&self, node: &str) -> NodeApi {
        NodeApi::new(self.way(), node)
    }

    /// The pods of the node; begins to watch them.
    pub fn pods(&self, node: &str) -> NodePods {
        NodePods::start(self.way(), node)
    }

    /// The Node itself; begins to watch it.
    pub fn own_node(&self, node: &str) -> WatchedNode {
        WatchedNode::start(self.way(), node)
    }

    /// What pods refer to; begins to watch what is held.
    pub fn objects(&self, archive: Option<Arc<dyn ObjectArchive>>) -> ApiObjects {
        ApiObjects::start(self.way(), archive)
    }

    /// Asks who callers of our server are and what they may do.
    pub fn reviews(&self, node: &str) -> NodeReviews {
        NodeReviews::new(self.way(), node)
    }

    /// How it stands with the API server, and every change of that.
    pub fn status(&self) -> watch::Receiver<ConnectionStatus> {
        self.parts.switch.status()
    }

    /// The certificate of our own server that the API server signed, once there is one: chain and key as PEM.
    pub fn serving(&self) -> watch::Receiver<Option<(String, String)>> {
        self.parts.serving.subscribe()
    }

    /// The version of the API server: remembered, and asked for anew after a failure, a change of server or ten minutes.
    pub async fn server_version(&self) -> Result<ServerVersion, ConnectionError> {
        let epoch = self.parts.switch.epoch();
        let known = self.parts.version.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, of, version)) = known
            && of == epoch
            && at.elapsed() < VERSION_AGE
        {
            return Ok(version);
        }
        let server = self.status().borrow().server.clone();
        let answer = Requests::new(self.client()).get::<VersionAnswer>("/version").await;
        let answer = answer.map_err(|error| ConnectionError { server: server.clone(), what: error.to_string() })?;
        let (Some(major), Some(minor)) = (number(&answer.major), number(&answer.minor)) else {
            let what =
                format!("its version {:?}.{:?} cannot be parsed; is it an API server?", answer.major, answer.minor);
            return Err(ConnectionError { server, what });
        };
        let version = ServerVersion { major, minor, git_version: answer.git_version };
        *self.parts.version.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), epoch, version.clone()));
        Ok(version)
    }

    /// Renews our certificates in time until `stop`: the client's where it rotates, the server's for the names that
    /// `names` says. Ends at once where neither is wanted.
    pub async fn keep(&self, names: watch::Receiver<ServingNames>, stop: CancellationToken) {
        let care = Care::new(&self.parts.settings, &self.parts.switch, self.client());
        stop.run_until_cancelled(async {
            tokio::join!(care.keep_client(), care.keep_serving(names, &self.parts.serving));
        })
        .await;
    }
}
