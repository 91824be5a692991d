//! The fields of a pod's spec that are not its containers' or volumes'.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1;

use super::{Errors, affinity, containers, names, resources, security, volumes};

/// `pkg/apis/core/validation`: at most that many name servers, search domains, and characters of the latter.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;

pub(super) fn check(spec: &v1::PodSpec, errors: &mut Errors) {
    let volumes = volumes::check(spec, errors);
    containers::check(spec, &volumes, errors);
    let policy = spec.restart_policy.as_deref().unwrap_or_default();
    errors.one_of("spec.restartPolicy", policy, &["Always", "OnFailure", "Never"]);
    if let Some(seconds) = spec.active_deadline_seconds.filter(|seconds| !(1..=i64::from(i32::MAX)).contains(seconds)) {
        errors.invalid("spec.activeDeadlineSeconds", seconds, "must be between 1 and 2147483647, inclusive");
    }
    dns(spec, errors);
    security::check_pod(spec, errors);
    host_names(spec, errors);
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let path = format!("spec.hostAliases[{index}]");
        errors.form(format!("{path}.ip"), &alias.ip, names::address);
        for (number, name) in alias.hostnames.iter().flatten().enumerate() {
            errors.required_form(format!("{path}.hostnames[{number}]"), name, names::dns_subdomain);
        }
    }
    // One without a name names no Secret, and is left out.
    let secrets = spec.image_pull_secrets.iter().flatten().enumerate();
    for (index, secret) in secrets.filter(|(_, secret)| !secret.name.is_empty()) {
        errors.form(format!("spec.imagePullSecrets[{index}].name"), &secret.name, names::dns_subdomain);
    }
    for (key, value) in spec.node_selector.iter().flatten() {
        errors.form(format!("spec.nodeSelector[{key}]"), key, names::qualified_name);
        errors.form(format!("spec.nodeSelector[{key}]"), value, names::label_value);
    }
    affinity::check(spec, errors);
    for (index, toleration) in spec.tolerations.iter().flatten().enumerate() {
        tolerance(toleration, &format!("spec.tolerations[{index}]"), errors);
    }
    resources::check_pod(spec, errors);
    for (name, quantity) in spec.overhead.iter().flatten() {
        resources::check_entry(name, quantity, "spec.overhead", errors);
    }
    for (path, name) in [
        ("spec.runtimeClassName", &spec.runtime_class_name),
        ("spec.priorityClassName", &spec.priority_class_name),
        ("spec.serviceAccountName", &spec.service_account_name),
        ("spec.nodeName", &spec.node_name),
    ] {
        if let Some(name) = name.as_deref().filter(|name| !name.is_empty()) {
            errors.form(path, name, names::dns_subdomain);
        }
    }
    // A pod of a manifest has its node from the start, and nobody clears its gates.
    let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    if gated && spec.node_name.as_deref().is_some_and(|name| !name.is_empty()) {
        errors.forbidden("spec.schedulingGates", "must be empty for a pod that has a node: remove them");
    }
    if let Some(os) = &spec.os {
        errors.one_of("spec.os.name", &os.name, &["linux", "windows"]);
    }
}

fn host_names(spec: &v1::PodSpec, errors: &mut Errors) {
    for (path, name) in [("spec.hostname", &spec.hostname), ("spec.subdomain", &spec.subdomain)] {
        if let Some(name) = name.as_deref().filter(|name| !name.is_empty()) {
            errors.form(path, name, names::dns_label);
        }
    }
    let Some(name) = spec.hostname_override.as_deref() else { return };
    errors.form("spec.hostnameOverride", name, names::dns_subdomain);
    if name.len() > 64 {
        errors.invalid("spec.hostnameOverride", name, names::too_long(64));
    }
    if spec.set_hostname_as_fqdn == Some(true) {
        errors.forbidden("spec.hostnameOverride", "may not be set together with setHostnameAsFQDN");
    }
    if spec.host_network == Some(true) {
        errors.forbidden("spec.hostnameOverride", "may not be set together with hostNetwork");
    }
}

fn dns(spec: &v1::PodSpec, errors: &mut Errors) {
    let policy = spec.dns_policy.as_deref().unwrap_or_default();
    errors.one_of("spec.dnsPolicy", policy, &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    let servers = spec.dns_config.as_ref().and_then(|config| config.nameservers.as_ref()).map_or(0, Vec::len);
    if policy == "None" && servers == 0 {
        errors.required(
            "spec.dnsConfig.nameservers",
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        );
    }
    let Some(config) = &spec.dns_config else { return };
    if servers > MAX_NAMESERVERS {
        let detail = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        errors.invalid("spec.dnsConfig.nameservers", servers, detail);
    }
    for (index, server) in config.nameservers.iter().flatten().enumerate() {
        errors.form(format!("spec.dnsConfig.nameservers[{index}]"), server, names::address);
    }
    let searches = config.searches.as_deref().unwrap_or_default();
    if searches.len() > MAX_SEARCHES {
        let detail = format!("must not have more than {MAX_SEARCHES} search paths");
        errors.invalid("spec.dnsConfig.searches", searches.len(), detail);
    }
    if searches.join(" ").len() > MAX_SEARCH_CHARACTERS {
        let detail =
            format!("must not have more than {MAX_SEARCH_CHARACTERS} characters (including spaces) in the search list");
        errors.invalid("spec.dnsConfig.searches", searches.len(), detail);
    }
    for (index, search) in searches.iter().enumerate() {
        // The root is a domain, too.
        if search != "."
            && let Some(detail) = names::search_domain(search.strip_suffix('.').unwrap_or(search))
        {
            errors.invalid(format!("spec.dnsConfig.searches[{index}]"), search, detail);
        }
    }
    for (index, option) in config.options.iter().flatten().enumerate() {
        let line = |text: &Option<String>| text.as_deref().unwrap_or_default().contains(char::is_whitespace);
        if option.name.as_deref().unwrap_or_default().is_empty() {
            errors.required(format!("spec.dnsConfig.options[{index}]"), "must not be empty");
        } else if line(&option.name) || line(&option.value) {
            errors.invalid(
                format!("spec.dnsConfig.options[{index}]"),
                option.name.as_deref().unwrap_or_default(),
                "must not contain white space",
            );
        }
    }
}

fn tolerance(toleration: &v1::Toleration, path: &str, errors: &mut Errors) {
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let operator = filled(&toleration.operator).unwrap_or_else(|| "Equal".to_owned());
    errors.one_of(format!("{path}.operator"), &operator, &["Equal", "Exists", "Lt", "Gt"]);
    match filled(&toleration.key) {
        Some(key) => errors.form(format!("{path}.key"), &key, names::qualified_name),
        None if operator != "Exists" => {
            errors.invalid(
                format!("{path}.operator"),
                &operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        None => {}
    }
    if operator == "Exists" && filled(&toleration.value).is_some() {
        errors.invalid(format!("{path}.operator"), &operator, "value must be empty when `operator` is 'Exists'");
    }
    let effect = filled(&toleration.effect);
    if let Some(effect) = &effect {
        errors.one_of(format!("{path}.effect"), effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
    }
    if toleration.toleration_seconds.is_some() && effect.as_deref() != Some("NoExecute") {
        errors.invalid(
            format!("{path}.effect"),
            effect.as_deref().unwrap_or_default(),
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        );
    }
}

/// Names seen so far, for [`Errors::unique`].
pub(super) type Seen<'a> = BTreeSet<&'a str>;
