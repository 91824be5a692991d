//! What a pod that did not come from the API server may not refer to.
//!
//! As `podutil.HasAPIObjectReference` (gate PreventStaticPodAPIReferences), but for ConfigMaps and Secrets, which may
//! lie beside the pod, and for volumes and devices that keep a pod Pending ([`crate::support`]).

use k8s_openapi::api::core::v1;

use crate::pod::{Pod, Source};
use crate::validate::{self, FieldError};
use crate::{support, volume};

/// What keeps the pod Pending on whatever node without an API server; said early, for it is seen in the manifest alone.
pub(super) fn waits(pod: &Pod) -> Vec<FieldError> {
    let mut warnings = Vec::new();
    if pod.source == Source::Api {
        return warnings;
    }
    let mut warn = |path: String, why: &str| {
        warnings.push(FieldError::warning(path, format!("the pod will stay Pending: {why}")));
    };
    let used: Vec<&str> = volume::used(pod).map(|volume| volume.name.as_str()).collect();
    let volumes = pod.spec().volumes.iter().flatten().enumerate();
    for (index, volume) in volumes.filter(|(_, volume)| used.contains(&volume.name.as_str())) {
        for source in validate::volume_sources(volume) {
            if let Some(advice) = support::no_volume(source, false) {
                warn(format!("spec.volumes[{index}].{source}"), advice);
            }
        }
    }
    if pod.spec().resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        warn("spec.resourceClaims".to_owned(), support::NO_CLAIMS);
    }
    warnings
}

/// What is wrong with the references of a pod of that source.
pub(super) fn forbidden(pod: &v1::Pod, source: &Source) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (Some(spec), false) = (&pod.spec, *source == Source::Api) else { return errors };
    let mut refuse = |path: String, what: &str| {
        errors.push(FieldError::new(path, format!("Forbidden: static pods may not reference {what}")));
    };
    let named = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
    if named(&spec.service_account_name) {
        refuse("spec.serviceAccountName".to_owned(), "serviceaccounts");
    } else if named(&spec.service_account) {
        refuse("spec.serviceAccount".to_owned(), "serviceaccounts");
    }
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        for (number, source) in sources.enumerate() {
            let path = |field: &str| format!("spec.volumes[{index}].projected.sources[{number}].{field}");
            if source.service_account_token.is_some() {
                refuse(path("serviceAccountToken"), "serviceaccounts");
            }
            if source.cluster_trust_bundle.is_some() {
                refuse(path("clusterTrustBundle"), "clustertrustbundles");
            }
            if source.pod_certificate.is_some() {
                refuse(path("podCertificate"), "podcertificates");
            }
        }
    }
    if spec.ephemeral_containers.as_ref().is_some_and(|containers| !containers.is_empty()) {
        let message = "Forbidden: static pods support no ephemeral containers";
        errors.push(FieldError::new("spec.ephemeralContainers", message));
    }
    errors
}
