//! From a pod to the sandbox that the runtime is asked to make.
//!
//! As `pkg/kubelet/kuberuntime/kuberuntime_sandbox.go` and `pkg/kubelet/dockershim/docker_sandbox.go`. Whether the pod may run
//! here at all is decided before ([`crate::support`], admission).

use std::collections::BTreeMap;

use crate::admit::sysctls;
use crate::container::{HostNamespaces, PortMapping, SandboxConfig, SandboxNetwork};
use crate::container_config::ConfigError;
use crate::node::NodeFacts;
use crate::pod::{ContainerKind, Pod, Source};
use crate::{cgroup, dns, labels, resources, security};

/// The sandbox for a pod that had `attempt` sandboxes before, on the default network or the node's. Errors are the user's to mend; the event is
/// `FailedCreatePodSandBox`.
pub fn build(pod: &Pod, node: &NodeFacts, attempt: u32) -> Result<SandboxConfig, ConfigError> {
    let context = pod.spec().security_context.as_ref();
    let sysctls = context.and_then(|context| context.sysctls.as_ref()).into_iter().flatten();
    Ok(SandboxConfig {
        pod: pod.id.clone(),
        attempt,
        hash: pod.sandbox_hash.clone(),
        hostname: if pod.host_network() { dns::hostname(pod, node).0 } else { dns::kernel_hostname(pod, node)? },
        labels: labels::for_sandbox(pod, &node.root_id, attempt),
        cgroup_parent: Some(cgroup::parent(pod, node)),
        host: host_namespaces(pod),
        network: if pod.host_network() { SandboxNetwork::Host } else { SandboxNetwork::Default },
        share_process_namespace: shares_processes(pod),
        ports: ports(pod)?,
        sysctls: sysctls
            .map(|sysctl| (sysctls::normal(&sysctl.name), sysctl.value.clone()))
            .collect::<BTreeMap<_, _>>(),
        security_options: security::sandbox_options(pod),
        user: security::sandbox_user(pod),
        groups: security::groups(pod),
        oom_score_adj: resources::sandbox_oom_score_adj(node),
        runtime: runtime(pod, node)?,
    })
}

/// The namespaces that a pod shares with the node.
pub fn host_namespaces(pod: &Pod) -> HostNamespaces {
    let spec = pod.spec();
    HostNamespaces {
        network: pod.host_network(),
        pid: spec.host_pid.unwrap_or(false),
        ipc: spec.host_ipc.unwrap_or(false),
    }
}

/// Whether a pod's containers see each other's processes; the node's PID namespace goes before.
pub fn shares_processes(pod: &Pod) -> bool {
    pod.spec().share_process_namespace.unwrap_or(false) && !host_namespaces(pod).pid
}

/// The daemon's runtime for a pod: of one that no API server knows, its class's name is a runtime's; the handler of a
/// cluster's class is looked up apart ([`runtime_of`]).
pub fn runtime(pod: &Pod, node: &NodeFacts) -> Result<Option<String>, ConfigError> {
    if pod.source == Source::Api {
        return Ok(None);
    }
    runtime_of(pod.spec().runtime_class_name.as_deref().unwrap_or_default(), node)
}

/// The daemon's runtime for a handler; `docker` and `runc` are always there, as the default one.
pub fn runtime_of(handler: &str, node: &NodeFacts) -> Result<Option<String>, ConfigError> {
    if handler.is_empty() || node.runtimes.iter().any(|runtime| runtime == handler) {
        return Ok(Some(handler.to_owned()).filter(|name| !name.is_empty()));
    }
    if matches!(handler, "docker" | "runc") {
        return Ok(None);
    }
    Err(ConfigError::new(format!("RuntimeHandler {handler:?} not supported")))
}

/// Ports of the node for app containers and sidecars. On the node's network every port is one anyway.
pub fn ports(pod: &Pod) -> Result<Vec<PortMapping>, ConfigError> {
    if pod.host_network() {
        return Ok(Vec::new());
    }
    let mut mappings: Vec<PortMapping> = Vec::new();
    for container in pod.containers().filter(|container| container.kind != ContainerKind::Init) {
        for port in container.spec.ports.iter().flatten() {
            let Some(host_port) = port.host_port.filter(|port| *port != 0) else { continue };
            let number = |number: i32, field: &str| {
                u16::try_from(number).ok().filter(|number| *number > 0).ok_or_else(|| {
                    ConfigError::new(format!(
                        "{field} of container {:?}: {number} is not in 1 … 65535",
                        container.spec.name
                    ))
                })
            };
            let host_ip = match port.host_ip.as_deref().filter(|ip| !ip.is_empty()) {
                None => None,
                Some(text) => Some(crate::validate::ip(text).ok_or_else(|| {
                    ConfigError::new(format!(
                        "hostIP of container {:?}: {text:?} is not an address",
                        container.spec.name
                    ))
                })?),
            };
            let mapping = PortMapping {
                host_port: number(host_port, "hostPort")?,
                container_port: number(port.container_port, "containerPort")?,
                protocol: port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase(),
                host_ip,
            };
            if !mappings.contains(&mapping) {
                mappings.push(mapping);
            }
        }
    }
    Ok(mappings)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
