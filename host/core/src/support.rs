//! What a pod asks for that cannot be done here: it stays Pending, with an event and a reason, and no container of
//! it is started. Rejecting it would make its owner replace it in a hot loop.
//!
//! Must not decide what the kubelet would reject ([`crate::admit`]) nor what may work on a later try.

use k8s_openapi::api::core::v1;

use crate::node::NodeFacts;
use crate::pod::{Pod, Source};
use crate::{quantity, resources, volume};

/// Something that cannot be done here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// Reason of the event that tells of it.
    pub event: &'static str,
    /// `waiting.reason` of the pod's containers.
    pub reason: &'static str,
    /// What is asked for, why it cannot be had, and what to do.
    pub message: String,
}

const FAILED_MOUNT: &str = "FailedMount";
const FAILED_SANDBOX: &str = "FailedCreatePodSandBox";
const FAILED_CLAIMS: &str = "FailedPrepareDynamicResources";

/// Of `spec.resourceClaims`.
pub(crate) const NO_CLAIMS: &str =
    "resourceClaims (dynamic resource allocation) are not supported on this node; remove them";

/// What cannot be done for the pod, all of it in one message; the first one gives the event. In a cluster extended resources
/// may be others' to advertise on the Node, and the scheduler's to see to.
pub fn unsupported(pod: &Pod, node: &NodeFacts, in_cluster: bool) -> Option<Unsupported> {
    let mut found: Vec<(&'static str, String)> = Vec::new();
    volumes(pod, node, &mut found);
    sandbox(pod, node, &mut found);
    for container in pod.containers() {
        of_container(container.spec, &mut found);
        if !in_cluster {
            devices(container.spec, &mut found);
        }
    }
    let event = found.first()?.0;
    let message = found.into_iter().map(|(_, message)| message).collect::<Vec<_>>().join("; ");
    Some(Unsupported { event, reason: "ContainerCreating", message })
}

fn volumes(pod: &Pod, node: &NodeFacts, found: &mut Vec<(&'static str, String)>) {
    for volume in volume::used(pod) {
        let mut refuse = |message: String| {
            found.push((FAILED_MOUNT, format!("MountVolume.SetUp failed for volume {:?} : {message}", volume.name)));
        };
        let in_cluster = pod.source == Source::Api;
        for source in crate::validate::volume_sources(volume) {
            if let Some(advice) = no_volume(source, in_cluster) {
                refuse(format!("{source}: {advice}"));
            }
        }
        let medium = volume.empty_dir.as_ref().and_then(|source| source.medium.as_deref()).unwrap_or_default();
        if medium.starts_with("HugePages") && node.huge_pages.is_empty() {
            refuse(format!("emptyDir: medium {medium} is not supported; use Memory or leave it out"));
        }
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        for source in sources.filter(|_| !in_cluster) {
            if source.service_account_token.is_some() {
                refuse("serviceAccountToken: there is no API server to issue a token; remove the source".to_owned());
            }
            if source.cluster_trust_bundle.is_some() || source.pod_certificate.is_some() {
                refuse(
                    "clusterTrustBundle and podCertificate are not supported; use a configMap or a secret".to_owned(),
                );
            }
        }
    }
}

/// Why no volume can be made from that source, and what to do.
pub(crate) fn no_volume(source: &str, in_cluster: bool) -> Option<&'static str> {
    Some(match source {
        "emptyDir" | "hostPath" | "configMap" | "secret" | "downwardAPI" | "projected" | "image" | "nfs" => {
            return None;
        }
        "persistentVolumeClaim" | "ephemeral" if in_cluster => return None,
        "persistentVolumeClaim" | "ephemeral" => "claims are not bound on this node; use hostPath or emptyDir",
        "csi" => "no CSI driver can be registered on this node; use hostPath or emptyDir",
        "iscsi" | "fc" | "cephfs" | "glusterfs" | "rbd" => {
            "network volumes are not supported; mount it on the node and use hostPath"
        }
        "gitRepo" => "gitRepo volumes are not supported; clone with an init container into an emptyDir",
        _ => "this kind of volume is not supported; use hostPath or emptyDir",
    })
}

fn sandbox(pod: &Pod, node: &NodeFacts, found: &mut Vec<(&'static str, String)>) {
    let spec = pod.spec();
    let mut refuse = |event, message: String| found.push((event, message));
    if spec.host_users == Some(false) && spec.host_network != Some(true) {
        let message = "hostUsers: false needs a user namespace for the pod, which Docker cannot make; remove the field";
        refuse(FAILED_SANDBOX, message.to_owned());
    }
    // In a cluster a class has a handler, which is looked up when the sandbox is made.
    let class = spec.runtime_class_name.as_deref().filter(|class| !class.is_empty() && pod.source != Source::Api);
    if let Some(class) = class
        && !node.runtimes.iter().any(|runtime| runtime == class)
    {
        let known = if node.runtimes.is_empty() { "none".to_owned() } else { node.runtimes.join(", ") };
        let message = format!(
            "no runtime for {class:?} is configured: Docker knows {known}; add it to `runtimes` in /etc/docker/daemon.json or change runtimeClassName"
        );
        refuse(FAILED_SANDBOX, message);
    }
    if spec.security_context.as_ref().is_some_and(|security| security.windows_options.is_some()) {
        refuse(FAILED_SANDBOX, "windowsOptions are for Windows nodes, this one runs Linux; remove them".to_owned());
    }
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        refuse(FAILED_CLAIMS, NO_CLAIMS.to_owned());
    }
}

fn devices(container: &v1::Container, found: &mut Vec<(&'static str, String)>) {
    let asked = container.resources.iter().flat_map(|resources| resources.limits.iter().flatten());
    let amount = |quantity| quantity::value(quantity).is_some_and(|amount| amount > 0);
    for (name, _) in asked.filter(|(name, quantity)| resources::is_extended(name) && amount(quantity)) {
        let message = format!(
            "container {}: nothing on this node gives {name}: device plugins are not supported; remove it from resources, \
             and mount what the container needs with a hostPath",
            container.name
        );
        found.push((FAILED_SANDBOX, message));
    }
}

fn of_container(container: &v1::Container, found: &mut Vec<(&'static str, String)>) {
    let name = &container.name;
    let mut refuse = |event, message: String| found.push((event, format!("container {name}: {message}")));
    if container.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()) {
        refuse(
            FAILED_MOUNT,
            "volumeDevices (raw block volumes) are not supported; use a hostPath of type BlockDevice".to_owned(),
        );
    }
    if container.security_context.as_ref().is_some_and(|security| security.windows_options.is_some()) {
        refuse(FAILED_SANDBOX, "windowsOptions are for Windows nodes, this one runs Linux; remove them".to_owned());
    }
    let probes = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (field, probe) in probes {
        let Some(probe) = probe else { continue };
        if probe.http_get.as_ref().and_then(|http| http.protocol.as_deref()).is_some_and(|p| p != "HTTP1") {
            refuse(FAILED_SANDBOX, format!("httpGet.protocol of the {field} is not supported; remove it"));
        }
        if probe.grpc.as_ref().and_then(|grpc| grpc.mode.as_deref()).is_some_and(|mode| mode != "Plaintext") {
            refuse(FAILED_SANDBOX, format!("grpc.mode of the {field} is not supported; remove it"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::testing::{node, pod};

    fn message(spec: &str) -> String {
        message_in(spec, false)
    }

    fn message_in(spec: &str, in_cluster: bool) -> String {
        match unsupported(&pod(spec), &node(), in_cluster) {
            Some(found) => format!("{} {} {}", found.event, found.reason, found.message),
            None => "supported".to_owned(),
        }
    }

    #[test]
    fn a_plain_pod_is_supported() {
        let spec = "{containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /v, recursiveReadOnly: IfPossible, readOnly: true}]}], volumes: [{name: v, emptyDir: {medium: Memory}}], runtimeClassName: runc}";
        assert_eq!(message(spec), "supported");
    }

    #[test]
    fn resources_are_for_admission_to_judge_but_for_devices_of_a_node_that_is_alone() {
        let limits =
            "{containers: [{name: c, image: i, resources: {limits: {hugepages-2Mi: 2Mi, nvidia.com/gpu: '1'}}}]}";
        assert_eq!(message_in(limits, true), "supported");
        assert!(message(limits).contains("container c: nothing on this node gives nvidia.com/gpu"));
        assert_eq!(message(&limits.replace("'1'", "'0'")), "supported");
    }

    #[test]
    fn what_cannot_be_done_is_told_with_what_to_do() {
        let specs = [
            "{containers: [{name: c, image: i}], volumes: [{name: v, persistentVolumeClaim: {claimName: x}}]}",
            "{containers: [{name: c, image: i}], volumes: [{name: v, csi: {driver: x}}, {name: w, iscsi: {targetPortal: s, iqn: x, lun: 0}}]}",
            "{containers: [{name: c, image: i}], volumes: [{name: v, image: {reference: x}}, {name: w, cinder: {volumeID: x}}]}",
            "{containers: [{name: c, image: i}], volumes: [{name: v, emptyDir: {medium: HugePages-2Mi}}]}",
            "{containers: [{name: c, image: i}], hostUsers: false}",
            "{containers: [{name: c, image: i}], runtimeClassName: gvisor}",
            "{containers: [{name: c, image: i}], resourceClaims: [{name: x}]}",
            "{containers: [{name: c, image: i, volumeDevices: [{name: v, devicePath: /dev/x}]}]}",
            "{containers: [{name: c, image: i, securityContext: {windowsOptions: {}}}]}",
        ];
        // A volume that nobody mounts is nobody's trouble.
        assert_eq!(message(specs[0]), "supported");
        let mounting = "image: i, volumeMounts: [{name: v, mountPath: /v}, {name: w, mountPath: /w}]}], volumes";
        let messages = specs.iter().map(|spec| message(&spec.replace("image: i}], volumes", mounting)));
        let messages: Vec<String> = messages.collect();
        insta::assert_snapshot!(messages.join("\n"));
    }
}
