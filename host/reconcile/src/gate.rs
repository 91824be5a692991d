//! Asks all that must be asked before a pod may be started ([`longshore_core::gate`] says what that is): plugins, the
//! folder's objects, other agents. Also for who only says what would be done; nothing here acts, or remembers.

use std::sync::Arc;

use longshore_core::gate::{self, Hold};
use longshore_core::node::NodeFacts;
use longshore_core::observed::ObservedPod;
use longshore_core::pod::Pod;
use longshore_core::ports::objects::ObjectStore;
use longshore_core::ports::probes::ProbePlugins;
use longshore_core::ports::runtime::ForeignContainer;
use longshore_core::probe::ProbeSpec;

/// Whom to ask.
pub struct Gate<'a> {
    /// The probe plugins; `None` where they are not to be had, and take whatever it is.
    pub plugins: Option<&'a dyn ProbePlugins>,
    /// Where the objects of the pod's source are.
    pub objects: &'a dyn ObjectStore,
    /// Whether there is an API server.
    pub in_cluster: bool,
}

/// Whether a pod's spec can be carried out here.
#[derive(Debug, Default)]
pub struct Checked {
    /// Its probes; `None` when they make no sense.
    pub probes: Option<Vec<ProbeSpec>>,
    /// Why it may not be started.
    pub hold: Option<Hold>,
    /// Whether that is for what it refers to and may not.
    pub missing: bool,
}

impl Gate<'_> {
    /// Asks, until something is in the way. `foreign` are the containers of other agents; it is asked last, and only for
    /// pods of which there is nothing yet.
    pub async fn check(
        &self,
        pod: &Pod,
        observed: &ObservedPod,
        node: &NodeFacts,
        foreign: impl Future<Output = Result<Arc<Vec<ForeignContainer>>, String>>,
    ) -> Checked {
        let (probes, hold) = match gate::probes(pod) {
            Ok(probes) => (Some(probes), None),
            Err(hold) => (None, Some(hold)),
        };
        let mut checked = Checked { probes, hold, missing: false };
        if checked.hold.is_none() {
            checked.hold = self.refused(checked.probes.as_deref().unwrap_or_default()).await;
        }
        if checked.hold.is_none() {
            checked.hold = gate::unsupported(pod, node, self.in_cluster);
        }
        if checked.hold.is_none() {
            checked.hold = self.missing(pod, observed).await;
            checked.missing = checked.hold.is_some();
        }
        if checked.hold.is_none() && observed.containers.is_empty() && observed.sandboxes.is_empty() {
            checked.hold = match foreign.await {
                Ok(others) => gate::foreign(pod, observed, &others),
                Err(error) => Some(gate::unknown(&error)),
            };
        }
        checked
    }

    /// What a plugin says against a probe.
    async fn refused(&self, probes: &[ProbeSpec]) -> Option<Hold> {
        for spec in probes {
            if let Err(error) = self.plugins?.validate(&spec.plugin, &spec.config).await {
                return Some(gate::refused(spec, &error));
            }
        }
        None
    }

    /// What a pod of another source refers to that only the API server could have.
    pub async fn missing(&self, pod: &Pod, observed: &ObservedPod) -> Option<Hold> {
        for (kind, name) in gate::of_the_folder(pod, observed, self.in_cluster) {
            // A folder that cannot be read says nothing; the volumes will wait for it.
            if self.objects.holds(kind, &pod.id.namespace, &name).await == Ok(false) {
                return Some(gate::not_in_the_folder(pod, kind, &name));
            }
        }
        None
    }
}
