//! What a Node is told to say of itself: labels, taints, its cloud, its version; and addresses of API servers.
//!
//! The rules are the kubelet's; each refusal names what may be used instead.

use k8s_openapi::api::core::v1::Taint;
use longshore_core::document::Node;

use super::layer::Table;
use super::reader::Reader;
use super::values;
use crate::names::nearest;

/// Labels below `kubernetes.io` and `k8s.io` that a node may give itself (`pkg/apis/well_known_labels.go` of k8s.io/kubelet).
const OWN_LABELS: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// Prefixes, with those below them, whose labels a node may give itself.
const OWN_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// What `--node-labels` says.
pub(super) fn labels(text: &str) -> Result<Table<String, String>, String> {
    let mut problems = Vec::new();
    let mut table = Table { whole: true, ..Table::default() };
    for pair in values::list(text) {
        // As the kubelet's ConfigurationMap: a key alone has an empty value.
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match label(key.trim(), value.trim()) {
            Ok((key, value)) => {
                table.entries.insert(key, value);
            }
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(table) } else { Err(problems.join("; ")) }
}

fn label(key: &str, value: &str) -> Result<(String, String), String> {
    if let Some((prefix, _)) = key.split_once('/') {
        let below = |domain: &str| prefix == domain || prefix.ends_with(&format!(".{domain}"));
        let reserved = below("kubernetes.io") || below("k8s.io");
        if reserved && !OWN_LABELS.contains(&key) && !OWN_PREFIXES.iter().any(|own| below(own)) {
            let hint = nearest(key, OWN_LABELS).map_or(String::new(), |near| format!("; did you mean {near}?"));
            return Err(format!(
                "a node may not give itself the label {key:?}: below kubernetes.io and k8s.io only {} and labels \
                 with a prefix that is or ends in {} are allowed{hint}",
                OWN_LABELS.join(", "),
                OWN_PREFIXES.join(" or "),
            ));
        }
    }
    values::qualified_name(key)?;
    values::label_value(value)?;
    Ok((key.to_owned(), value.to_owned()))
}

/// What `--register-with-taints` says.
pub(super) fn taints(text: &str) -> Result<Vec<Taint>, String> {
    values::list(text).map(taint).collect()
}

fn taint(text: &str) -> Result<Taint, String> {
    let expected = || format!("expected a taint like \"dedicated=db:NoSchedule\", got {text:?}");
    let (pair, effect) = text.rsplit_once(':').ok_or_else(expected)?;
    let (key, value) = pair.split_once('=').map_or((pair, None), |(key, value)| (key, Some(value)));
    checked_taint(key, value, effect).map_err(|problem| format!("{}: {problem}", expected()))
}

fn checked_taint(key: &str, value: Option<&str>, effect: &str) -> Result<Taint, String> {
    const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
    values::qualified_name(key)?;
    values::label_value(value.unwrap_or_default())?;
    if !EFFECTS.contains(&effect) {
        let hint = nearest(effect, EFFECTS).map_or(String::new(), |near| format!("; did you mean {near}?"));
        return Err(format!("{effect:?} is not a taint effect; known: {}{hint}", EFFECTS.join(", ")));
    }
    let value = value.filter(|value| !value.is_empty()).map(str::to_owned);
    Ok(Taint { key: key.to_owned(), value, effect: effect.to_owned(), time_added: None })
}

/// The field `registerWithTaints`.
pub(super) fn read_taints(reader: &mut Reader<'_>, field: &str, node: &Node) -> Option<Vec<Taint>> {
    let mut taints = Vec::new();
    for (n, item) in reader.items(field, node).iter().enumerate() {
        let field = format!("{field}[{n}]");
        let (mut key, mut value, mut effect) = (None, None, None);
        for entry in reader.map(&field, item) {
            let inner = format!("{field}.{}", entry.key);
            match entry.key.as_str() {
                "key" => key = reader.text(&inner, &entry.node, Ok),
                "value" => value = reader.text(&inner, &entry.node, Ok),
                "effect" => effect = reader.text(&inner, &entry.node, Ok),
                "timeAdded" => reader.wrong(&inner, &entry.node, "nothing: the API server writes it"),
                other => reader.unknown(&inner, other, entry.at.line, &["key", "value", "effect"]),
            }
        }
        let place = reader.place(item.at.line, &field);
        let taint =
            checked_taint(key.as_deref().unwrap_or_default(), value.as_deref(), effect.as_deref().unwrap_or_default());
        taints.extend(reader.findings.note(&place, taint));
    }
    Some(taints)
}

/// Names that were clouds inside the kubelet, with what does their work now.
const CLOUDS: [(&str, &str); 9] = [
    ("aws", "cloud-provider-aws (aws-cloud-controller-manager)"),
    ("azure", "cloud-provider-azure (azure-cloud-controller-manager)"),
    ("cloudstack", "cloudstack-cloud-controller-manager"),
    ("gce", "cloud-provider-gcp (gcp-cloud-controller-manager)"),
    ("openstack", "cloud-provider-openstack (openstack-cloud-controller-manager)"),
    ("ovirt", "the cloud controller manager of its vendor"),
    ("photon", "cloud-provider-vsphere (vsphere-cloud-controller-manager)"),
    ("vsphere", "cloud-provider-vsphere (vsphere-cloud-controller-manager)"),
    ("mesos", "no controller: this cloud has no successor"),
];

/// What `--cloud-provider` says: whether a controller outside completes the node.
pub(super) fn external_cloud(text: &str) -> Result<bool, String> {
    match text {
        "" => Ok(false),
        "external" => Ok(true),
        name => match CLOUDS.iter().find(|(cloud, _)| *cloud == name) {
            Some((_, controller)) => Err(format!(
                "{name:?} is not part of the node agent any more (of the kubelet since 1.31): run {controller} in the \
                 cluster and set --cloud-provider=external"
            )),
            None => Err(format!("expected \"external\" or nothing, got {name:?}")),
        },
    }
}

/// A version as Kubernetes writes it: `v1.36.0`, and what may come after.
pub(super) fn kubelet_version(text: &str) -> Result<String, String> {
    let expected = || format!("expected a version like v1.36.0, got {text:?}");
    let numbers = text.strip_prefix('v').ok_or_else(expected)?;
    let end = numbers.find(['-', '+']).unwrap_or(numbers.len());
    let parts: Vec<&str> = numbers[..end].split('.').collect();
    let is_number = |part: &&str| !part.is_empty() && part.len() < 6 && part.bytes().all(|byte| byte.is_ascii_digit());
    let rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.');
    match parts.len() == 3 && parts.iter().all(is_number) && numbers[end..].chars().all(rest) && text.len() <= 128 {
        true => Ok(text.to_owned()),
        false => Err(expected()),
    }
}

/// What `--api-servers` says: URLs; without a scheme it is https.
pub(super) fn api_servers(text: &str) -> Result<Vec<String>, String> {
    values::list(text).map(api_server).collect()
}

fn api_server(text: &str) -> Result<String, String> {
    let url = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let host = rest.map(|rest| rest.split('/').next().unwrap_or_default()).unwrap_or_default();
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']' | '_');
    let port_is_fine = match host.rsplit_once(':') {
        Some((before, port)) if !host.ends_with(']') => {
            // An IPv6 address has to stand in brackets.
            port.parse::<u16>().is_ok_and(|port| port > 0) && (!before.contains(':') || before.ends_with(']'))
        }
        _ => true,
    };
    match !host.is_empty() && host.chars().all(fine) && port_is_fine && !url.contains(['?', '#', ' ']) {
        true => Ok(url.trim_end_matches('/').to_owned()),
        false => Err(format!("expected an address like https://10.0.0.1:6443, got {text:?}")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_a_node_may_give_itself() {
        let fine =
            "tier=web,node.kubernetes.io/x=y,a.node.kubernetes.io/x=,kubernetes.io/arch=amd64,bare,example.com/a=b";
        let table = labels(fine).unwrap();
        assert_eq!(table.entries.len(), 6);
        assert_eq!(table.entries["bare"], "");
        for refused in ["kubernetes.io/role=x", "node-role.kubernetes.io/control-plane=", "a.k8s.io/b=c", "k8s.io/x=y"]
        {
            assert!(labels(refused).unwrap_err().contains("may not give itself"), "{refused}");
        }
        for wrong in ["-a=b", "a=b c", "/x=y", "UP.com/x=y", "a=-"] {
            assert!(labels(wrong).is_err(), "{wrong}");
        }
        let both = labels("k8s.io/x=y,tier=web,k8s.io/z=y").unwrap_err();
        assert!(both.contains("k8s.io/x") && both.contains("k8s.io/z"), "{both}");
    }

    #[test]
    fn taints_as_the_kubelet_writes_them() {
        let taints = taints("a=b:NoSchedule,c:NoExecute,d=:PreferNoSchedule").unwrap();
        let short = |taint: &Taint| (taint.key.clone(), taint.value.clone(), taint.effect.clone());
        assert_eq!(short(&taints[0]), ("a".into(), Some("b".into()), "NoSchedule".into()));
        assert_eq!((taints[1].value.as_deref(), taints[2].value.as_deref()), (None, None));
        assert!(taint("a=b:NoSchedul").unwrap_err().contains("did you mean NoSchedule?"));
        for wrong in ["a", "a=b", ":NoSchedule", "a=b c:NoSchedule"] {
            assert!(taint(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn clouds_that_were_inside_name_what_replaces_them() {
        assert_eq!((external_cloud(""), external_cloud("external")), (Ok(false), Ok(true)));
        assert!(external_cloud("aws").unwrap_err().contains("aws-cloud-controller-manager"));
        assert!(external_cloud("mycloud").is_err());
    }

    #[test]
    fn addresses_of_api_servers() {
        let cases = [
            ("10.0.0.1", "https://10.0.0.1"),
            ("http://host:8080/", "http://host:8080"),
            ("[fd00::1]:6443", "https://[fd00::1]:6443"),
            ("https://lb.example.org/k8s", "https://lb.example.org/k8s"),
        ];
        for (text, url) in cases {
            assert_eq!(api_server(text).as_deref(), Ok(url), "{text}");
        }
        for wrong in ["", "ftp://x", "https://", "host:0", "host:99999", "fd00::1", "a b", "https://u:p@host"] {
            assert!(api_server(wrong).is_err(), "{wrong}");
        }
        assert_eq!(api_servers("a:1,b:2").unwrap().len(), 2);
    }

    #[test]
    fn versions() {
        for fine in ["v1.36.0", "v1.37.1+longshore.0.1.0", "v1.20.7-rc.1"] {
            assert!(kubelet_version(fine).is_ok(), "{fine}");
        }
        for wrong in ["1.36.0", "v1.36", "v1.x.0", "v1.36.0 beta"] {
            assert!(kubelet_version(wrong).is_err(), "{wrong}");
        }
    }
}
