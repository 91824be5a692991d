//! The downward API: what a pod may be told about itself, its node and its resources.
//!
//! As `pkg/fieldpath/fieldpath.go`, `pkg/kubelet/kubelet_pods.go` (podFieldSelectorRuntimeValue) and
//! `pkg/api/v1/resource/helpers.go`. Serves environment variables and volumes alike; it must not know which.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1;

use crate::node::NodeFacts;
use crate::pod::Pod;
use crate::quantity;
use crate::resources;

/// The value of a `fieldRef`'s path, e.g. `metadata.labels['app']`. `pod_ips` and `host_ips` have the primary
/// address first and are empty where not known yet, which gives an empty value. The error is the user's to mend.
pub fn field(
    pod: &Pod,
    node: &NodeFacts,
    pod_ips: &[IpAddr],
    host_ips: &[IpAddr],
    path: &str,
) -> Result<String, String> {
    if let Some((map, key)) = subscript(path) {
        return match map {
            "metadata.labels" => Ok(pod.labels().get(key).cloned().unwrap_or_default()),
            "metadata.annotations" => Ok(pod.annotations().get(key).cloned().unwrap_or_default()),
            _ => Err(format!("fieldPath {path:?} does not support a subscript")),
        };
    }
    let spec = pod.spec();
    let pod_ips = pod_addresses(pod, node, pod_ips);
    let primary = |ips: &[IpAddr]| ips.first().map(IpAddr::to_string).unwrap_or_default();
    let all = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    Ok(match path {
        "metadata.name" => pod.id.name.clone(),
        "metadata.namespace" => pod.id.namespace.clone(),
        "metadata.uid" => pod.id.uid.clone(),
        "metadata.labels" => format_map(pod.labels()),
        "metadata.annotations" => format_map(pod.annotations()),
        "spec.nodeName" | "spec.host" => {
            spec.node_name.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| node.name.clone())
        }
        "spec.serviceAccountName" => {
            spec.service_account_name.clone().or_else(|| spec.service_account.clone()).unwrap_or_default()
        }
        "status.hostIP" => primary(host_ips),
        "status.hostIPs" => all(host_ips),
        "status.podIP" => primary(&pod_ips),
        "status.podIPs" => all(&pod_ips),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// A pod's addresses as the API shows them: the first of each family, the node's primary family first; the node's
/// own where the pod is on its network.
pub fn pod_addresses(pod: &Pod, node: &NodeFacts, pod_ips: &[IpAddr]) -> Vec<IpAddr> {
    let known = if pod.host_network() && pod_ips.is_empty() { &node.ips } else { pod_ips };
    let v6_first = node.ips.first().is_some_and(IpAddr::is_ipv6);
    let first_of = |v6: bool| known.iter().find(|ip| ip.is_ipv6() == v6).copied();
    [first_of(v6_first), first_of(!v6_first)].into_iter().flatten().collect()
}

/// Splits `metadata.labels['app']` into its map and its key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, key) = path.strip_suffix("']")?.split_once("['")?;
    (!map.is_empty()).then_some((map, key))
}

/// Lines `key="value"`, by key, without a line end after the last one.
fn format_map(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map.iter().map(|(key, value)| format!("{key}={}", quote(value))).collect();
    lines.join("\n")
}

/// Quotes as Go's `strconv.Quote`, which the kubelet's `%q` is; readers of the file parse that notation.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() || (c.is_whitespace() && c != ' ') => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The value of a `resourceFieldRef`, divided by its divisor and rounded up. `container` is whose field it is where
/// the selector names none. A limit that is not set is the pod's, else what the node can give. The error is the
/// user's to mend.
pub fn resource(
    pod: &Pod,
    node: &NodeFacts,
    container: Option<&v1::Container>,
    selector: &v1::ResourceFieldSelector,
) -> Result<String, String> {
    let container = match selector.container_name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => {
            pod.container(name).map(|found| found.spec).ok_or_else(|| format!("container {name} not found"))?
        }
        None => container.ok_or_else(|| format!("resource {} needs a containerName", selector.resource))?,
    };
    let (list, name) = selector.resource.split_once('.').unwrap_or(("", &selector.resource));
    let known = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    let amount = match list {
        "limits" if known => limit(pod, node, container, name),
        "requests" if known => resources::request(container, name).unwrap_or(0),
        _ => return Err(format!("unsupported container resource: {}", selector.resource)),
    };
    let divisor = match selector.divisor.as_ref() {
        None => None,
        Some(divisor) => {
            let parsed = if name == "cpu" { quantity::milli(divisor) } else { quantity::value(divisor) };
            Some(parsed.ok_or_else(|| format!("divisor {:?} is not a quantity", divisor.0))?)
        }
    };
    let one = if name == "cpu" { 1000 } else { 1 };
    let divisor = divisor.filter(|divisor| *divisor > 0).unwrap_or(one);
    let rounded_up = amount / divisor + i64::from(amount % divisor > 0);
    Ok(rounded_up.to_string())
}

/// A limit in thousandths of a core or in bytes, filled in from the pod's and the node's where it is not set.
fn limit(pod: &Pod, node: &NodeFacts, container: &v1::Container, name: &str) -> i64 {
    let set = resources::limit(container, name).or_else(|| resources::pod_level_limit(pod.spec(), name));
    set.unwrap_or(match name {
        "cpu" => node.allocatable_milli_cpu,
        "memory" => node.allocatable_memory,
        "ephemeral-storage" => node.allocatable_ephemeral_storage.unwrap_or(0),
        _ => 0,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
