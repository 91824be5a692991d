//! The packet filter's chains that others of a cluster look for.

use std::time::Duration;

use super::Network;
use crate::node::Ports;

/// How often it is looked whether they are there: as the kubelet.
const LOOKS: Duration = Duration::from_secs(60);

impl Network {
    /// Keeps them there, for ever.
    pub(super) async fn keep_chains(&self, ports: &Ports) {
        if !self.options.in_cluster || !self.options.util_chains {
            return;
        }
        let mut said = None;
        loop {
            let error = ports.bridges.make_chains().await.err();
            if let Some(error) = error.as_ref().filter(|error| said.as_ref() != Some(*error)) {
                tracing::warn!(
                    "chains that the kubelet makes for others (KUBE-IPTABLES-HINT, KUBE-FIREWALL) cannot be made: {error}; \
                     trying again (makeIPTablesUtilChains: false in the configuration where nobody needs them)"
                );
            }
            said = error;
            tokio::time::sleep(LOOKS).await;
        }
    }
}
