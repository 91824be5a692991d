//! Sysctls that a pod may set (`pkg/kubelet/sysctl/{safe_sysctls,allowlist}.go`).

use k8s_openapi::api::core::v1;

use super::{Rejection, reject};
use crate::node::NodeFacts;
use crate::pod::Pod;

/// Namespaced, and harmless to the node and to other pods.
const SAFE: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_notsent_lowat",
];

/// Which namespace of a pod a sysctl belongs to.
#[derive(PartialEq)]
enum Namespace {
    Ipc,
    Net,
    None,
}

fn namespace_of(name: &str) -> Namespace {
    let ipc = ["kernel.msg", "kernel.shm", "fs.mqueue."];
    if name == "kernel.sem" || ipc.iter().any(|prefix| name.starts_with(prefix)) {
        Namespace::Ipc
    } else if name.starts_with("net.") {
        Namespace::Net
    } else {
        Namespace::None
    }
}

/// A sysctl's name with dots: `net/ipv4/conf/eth0.1/x` keeps the dots of its parts as slashes.
pub(crate) fn normal(name: &str) -> String {
    let Some(first) = name.find(['.', '/']) else { return name.to_owned() };
    if name.as_bytes()[first] == b'.' {
        return name.to_owned();
    }
    name.chars()
        .map(|c| match c {
            '/' => '.',
            '.' => '/',
            other => other,
        })
        .collect()
}

/// One that pods may set besides the safe ones, or a prefix of some that ends in `*`, with dots. What no namespace of a pod is
/// known to have would be the node's (`NewAllowlist`).
pub fn allowable(pattern: &str) -> Result<String, String> {
    let pattern = normal(pattern);
    let name = pattern.strip_suffix('*').unwrap_or(&pattern);
    match namespace_of(name) {
        Namespace::None => Err(format!("the sysctls {name:?} are not known to be namespaced")),
        Namespace::Ipc | Namespace::Net => Ok(pattern),
    }
}

pub(super) fn check(pod: &Pod, node: &NodeFacts) -> Result<(), Rejection> {
    let spec = pod.spec();
    let sysctls = spec.security_context.iter().flat_map(|security| security.sysctls.iter().flatten());
    for sysctl in sysctls {
        let name = normal(&sysctl.name);
        let allowed = SAFE.contains(&name.as_str())
            || node.allowed_unsafe_sysctls.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(&normal(prefix)),
                None => name == normal(pattern),
            });
        if !allowed {
            return reject("SysctlForbidden", format!("forbidden sysctl: {:?} not allowlisted", sysctl.name));
        }
        if let Some(field) = of_the_node(&name, spec) {
            let host = if field == "hostNetwork" { "net" } else { "ipc" };
            let message = format!("forbidden sysctl: {:?} not allowed with host {host} enabled", sysctl.name);
            return reject("SysctlForbidden", message);
        }
    }
    Ok(())
}

/// The field that makes a sysctl, in whatever notation, the node's and not the pod's to set.
pub(crate) fn of_the_node(name: &str, spec: &v1::PodSpec) -> Option<&'static str> {
    match namespace_of(&normal(name)) {
        Namespace::Net if spec.host_network == Some(true) => Some("hostNetwork"),
        Namespace::Ipc if spec.host_ipc == Some(true) => Some("hostIPC"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_slashes_are_the_same_sysctl() {
        assert_eq!(normal("net/ipv4/conf/eth0.1/forwarding"), "net.ipv4.conf.eth0/1.forwarding");
        assert_eq!(normal("net.ipv4.conf.eth0/1.forwarding"), "net.ipv4.conf.eth0/1.forwarding");
        assert_eq!(normal("kernel"), "kernel");
        let spec = v1::PodSpec { host_network: Some(true), ..Default::default() };
        assert_eq!(of_the_node("net/ipv4/tcp_rmem", &spec), Some("hostNetwork"));
    }

    #[test]
    fn what_is_the_nodes_is_no_pods_to_set() {
        for pattern in ["net.*", "net.core.somaxconn", "kernel.shm*", "kernel.msg*", "kernel.sem", "fs.mqueue.*"] {
            assert_eq!(allowable(pattern), Ok(pattern.to_owned()));
        }
        assert_eq!(allowable("net/ipv4/conf/eth0.1/*"), Ok("net.ipv4.conf.eth0/1.*".to_owned()));
        for (pattern, name) in
            [("vm.*", "vm."), ("vm/swappiness", "vm.swappiness"), ("net*", "net"), ("kernel.*", "kernel.")]
        {
            assert_eq!(allowable(pattern), Err(format!("the sysctls {name:?} are not known to be namespaced")));
        }
    }
}
