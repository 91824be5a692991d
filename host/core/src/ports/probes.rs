//! Probe plugins: the port through which a probe is checked, whatever kind it is.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;

/// The Kubernetes version whose probes and hooks are imitated, and that their User-Agent names.
pub const KUBERNETES_VERSION: &str = "1.37";

/// What a probe looks at. The host fixes it; a plugin can neither choose nor change it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeTarget {
    /// UID of the pod.
    pub pod_uid: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// ID of the running container.
    pub container_id: String,
    /// Address of the pod, when it has one.
    pub pod_ip: Option<IpAddr>,
    /// The container's ports by name, for probes that name one.
    pub ports: Vec<(String, u16)>,
}

/// One call of a probe plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeCall {
    /// Name of the plugin: `exec`, `tcp`, `http`, `grpc` or one that a third party brought.
    pub plugin: String,
    /// The probe's configuration as JSON; for the built-in plugins the shape of v1's `exec`, `tcpSocket`,
    /// `httpGet` and `grpc` (`{"command": […]}`, `{"port": 80}`, …), with `host`, where v1 has it, included.
    pub config: String,
    /// What is probed.
    pub target: ProbeTarget,
    /// The probe's timeout. Waiting for a free place in the host is not charged to it.
    pub budget: Duration,
}

/// What a probe call ended with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// The container is healthy.
    Success {
        /// What the plugin said, at most 10 KiB.
        message: String,
    },
    /// The container is healthy, and there is something to tell the user: the event `ProbeWarning`.
    Warning {
        /// What the plugin said, at most 10 KiB.
        message: String,
    },
    /// The container is not healthy; a timeout while waiting for the target is this, too.
    Failure {
        /// What the plugin said, at most 10 KiB.
        message: String,
    },
    /// The probe could not be made (the runtime failed, say). It is retried, then dropped: never "unhealthy".
    Error {
        /// What went wrong.
        message: String,
    },
    /// The plugin itself failed: a trap, too much CPU or memory, a hang, a bad answer. Never "unhealthy".
    Fault {
        /// What the plugin did.
        message: String,
    },
}

/// What a plugin answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeAnswer {
    /// What the call ended with.
    pub outcome: ProbeOutcome,
    /// More about the check by name, for people and dashboards: at most 16, 64 bytes of a name and 1 KiB of a value.
    pub attrs: Vec<(String, String)>,
    /// After an [`ProbeOutcome::Error`]: the plugin asks not to be called again before. Otherwise trying again at once may help.
    pub again: Option<Duration>,
}

impl From<ProbeOutcome> for ProbeAnswer {
    fn from(outcome: ProbeOutcome) -> Self {
        ProbeAnswer { outcome, attrs: Vec::new(), again: None }
    }
}

/// Why a probe may not be used as it is configured: the user's to mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeConfigError {
    /// No plugin has that name.
    #[error("no probe plugin is called {plugin:?}; there are: {}", .known.join(", "))]
    UnknownPlugin {
        /// The name that was asked for.
        plugin: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// The plugin refused the configuration.
    #[error("probe plugin {plugin:?} refuses its configuration: {message}")]
    Refused {
        /// Name of the plugin.
        plugin: String,
        /// What the plugin said.
        message: String,
    },
    /// The plugin failed while it looked at the configuration: the plugin's author's to mend.
    #[error("probe plugin {plugin:?} failed while it looked at its configuration: {message}")]
    Fault {
        /// Name of the plugin.
        plugin: String,
        /// What the plugin did.
        message: String,
    },
}

/// The probe plugins of this node.
#[async_trait]
pub trait ProbePlugins: Send + Sync {
    /// Asks a plugin whether it can work with a configuration (JSON). Called once for each version of a pod's spec, and
    /// again while the pod is held back.
    async fn validate(&self, plugin: &str, config: &str) -> Result<(), ProbeConfigError>;

    /// Makes one check. Ends within the budget and a little more, whatever the plugin does.
    async fn check(&self, call: ProbeCall) -> ProbeAnswer;
}
