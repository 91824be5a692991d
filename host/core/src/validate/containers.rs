//! A pod's containers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;

use super::pod::Seen;
use super::{Errors, names, probes, resources, security, volumes};
use crate::pod::{ContainerKind, init_kind};

/// `ContainerRestartRule`s of one container (KEP-5307).
const MAX_RESTART_RULES: usize = 20;
/// Exit codes of one rule.
const MAX_EXIT_CODES: usize = 255;

/// Volumes of the pod by name.
type Volumes<'a> = BTreeMap<&'a str, &'a v1::Volume>;

/// A container with its place and part.
struct Place<'a> {
    container: &'a v1::Container,
    path: String,
    kind: ContainerKind,
}

pub(super) fn check(spec: &v1::PodSpec, volumes: &Volumes<'_>, errors: &mut Errors) {
    if spec.containers.is_empty() {
        errors.required("spec.containers", "");
    }
    let mut names = Seen::new();
    let init = spec.init_containers.iter().flatten().enumerate().map(|(index, container)| Place {
        container,
        path: format!("spec.initContainers[{index}]"),
        kind: init_kind(container),
    });
    let app = spec.containers.iter().enumerate().map(|(index, container)| Place {
        container,
        path: format!("spec.containers[{index}]"),
        kind: ContainerKind::App,
    });
    // Those of containers that run at once. On the node's own network nothing is mapped, and whether a sidecar listens
    // on the port of an app container is for them to know.
    let mut shared = Vec::new();
    for place in init.chain(app) {
        check_container(&place, spec, volumes, errors);
        errors.unique(format!("{}.name", place.path), &place.container.name, &mut names);
        let together = match place.kind {
            ContainerKind::Init => false,
            ContainerKind::App => true,
            _ => spec.host_network != Some(true),
        };
        let mut own = Vec::new();
        check_ports(&place, spec, if together { &mut shared } else { &mut own }, errors);
    }
}

fn check_container(place: &Place<'_>, spec: &v1::PodSpec, volumes: &Volumes<'_>, errors: &mut Errors) {
    let Place { container, path, kind } = place;
    errors.required_form(format!("{path}.name"), &container.name, names::dns_label);
    let image = container.image.as_deref().unwrap_or_default();
    if image.is_empty() {
        errors.required(format!("{path}.image"), "");
    } else if image.trim() != image {
        errors.invalid(format!("{path}.image"), image, "must not have leading or trailing whitespace");
    }
    let policy = container.image_pull_policy.as_deref().unwrap_or_default();
    errors.one_of(format!("{path}.imagePullPolicy"), policy, &["Always", "IfNotPresent", "Never"]);
    let policy = container.termination_message_policy.as_deref().unwrap_or_default();
    errors.one_of(format!("{path}.terminationMessagePolicy"), policy, &["FallbackToLogsOnError", "File"]);
    check_env(container, path, volumes, errors);
    check_mounts(container, path, volumes, errors);
    if let Some(resources) = &container.resources {
        resources::check(resources, &format!("{path}.resources"), errors);
        let known = |name: &str| spec.resource_claims.iter().flatten().any(|claim| claim.name == name);
        let claims = resources.claims.iter().flatten().enumerate();
        for (index, claim) in claims.filter(|(_, claim)| !known(&claim.name)) {
            let path = format!("{path}.resources.claims[{index}]");
            errors.warnings(|errors| errors.not_found(path, &claim.name));
        }
    }
    if let Some(security) = &container.security_context {
        security::check_container(security, spec, &format!("{path}.securityContext"), errors);
    }
    check_restart(place, errors);
    // A pod of a manifest is not resized: a wrong policy does nothing.
    errors.warnings(|errors| check_resize(place, spec, errors));
    if *kind == ContainerKind::Init {
        let set = [
            ("lifecycle", container.lifecycle.is_some()),
            ("livenessProbe", container.liveness_probe.is_some()),
            ("readinessProbe", container.readiness_probe.is_some()),
            ("startupProbe", container.startup_probe.is_some()),
        ];
        for (field, _) in set.iter().filter(|(_, set)| *set) {
            let detail = "may not be set for init containers without restartPolicy=Always";
            errors.forbidden(format!("{path}.{field}"), detail);
        }
    } else {
        probes::check(container, path, errors);
        if let Some(lifecycle) = &container.lifecycle {
            let grace = spec.termination_grace_period_seconds.unwrap_or(30);
            probes::check_lifecycle(lifecycle, &format!("{path}.lifecycle"), grace, errors);
        }
    }
    if let Some(signal) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_deref()) {
        let path = format!("{path}.lifecycle.stopSignal");
        if spec.os.is_none() {
            errors.forbidden(path.clone(), "may not be set for containers with empty `spec.os.name`");
        }
        if !is_signal(signal) {
            errors.invalid(path, signal, "must be the name of a signal, e.g. SIGUSR1 or SIGRTMIN+3");
        }
    }
}

fn is_signal(name: &str) -> bool {
    let number = |text: &str| text.parse::<u8>().is_ok_and(|number| number <= 15);
    let Some(name) = name.strip_prefix("SIG") else { return false };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return rest.is_empty() || rest.strip_prefix('+').is_some_and(number);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return rest.is_empty() || rest.strip_prefix('-').is_some_and(number);
    }
    let names = [
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
        "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
        "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
    ];
    names.contains(&name)
}

fn check_restart(place: &Place<'_>, errors: &mut Errors) {
    let Place { container, path, .. } = place;
    if let Some(policy) = &container.restart_policy {
        errors.one_of(format!("{path}.restartPolicy"), policy, &["Always", "OnFailure", "Never"]);
    }
    let rules = container.restart_policy_rules.as_deref().unwrap_or_default();
    if !rules.is_empty() && container.restart_policy.is_none() {
        errors.required(format!("{path}.restartPolicy"), "must specify restartPolicy when restart rules are used");
    }
    if rules.len() > MAX_RESTART_RULES {
        errors.push(
            format!("{path}.restartPolicyRules"),
            format!("Too many: {}: must have at most {MAX_RESTART_RULES} items", rules.len()),
        );
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = format!("{path}.restartPolicyRules[{index}]");
        errors.one_of(format!("{path}.action"), &rule.action, &["Restart", "RestartAllContainers"]);
        let Some(codes) = &rule.exit_codes else {
            errors.required(format!("{path}.exitCodes"), "must be specified");
            continue;
        };
        errors.one_of(format!("{path}.exitCodes.operator"), &codes.operator, &["In", "NotIn"]);
        let count = codes.values.as_ref().map_or(0, Vec::len);
        if count > MAX_EXIT_CODES {
            errors.push(
                format!("{path}.exitCodes.values"),
                format!("Too many: {count}: must have at most {MAX_EXIT_CODES} items"),
            );
        }
    }
}

fn check_resize(place: &Place<'_>, spec: &v1::PodSpec, errors: &mut Errors) {
    let mut seen = Seen::new();
    for (index, policy) in place.container.resize_policy.iter().flatten().enumerate() {
        let path = format!("{}.resizePolicy[{index}]", place.path);
        errors.unique(path.clone(), &policy.resource_name, &mut seen);
        errors.one_of(format!("{path}.resourceName"), &policy.resource_name, &["cpu", "memory"]);
        let path = format!("{path}.restartPolicy");
        errors.one_of(path.clone(), &policy.restart_policy, &["NotRequired", "RestartContainer"]);
        if policy.restart_policy == "NotRequired" {
            continue;
        }
        if spec.restart_policy.as_deref() == Some("Never") {
            let detail = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.invalid(path, &policy.restart_policy, detail);
        } else if place.kind == ContainerKind::Init && policy.restart_policy == "RestartContainer" {
            let detail = "must not be set to 'RestartContainer' for non-sidecar initContainers";
            errors.invalid(path, &policy.restart_policy, detail);
        }
    }
}

/// A port of the node: protocol, address, number.
type HostPort = (String, String, i32);

fn check_ports(place: &Place<'_>, spec: &v1::PodSpec, host_ports: &mut Vec<HostPort>, errors: &mut Errors) {
    let mut port_names = Seen::new();
    for (index, port) in place.container.ports.iter().flatten().enumerate() {
        let path = format!("{}.ports[{index}]", place.path);
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            errors.form(format!("{path}.name"), name, names::port_name);
            errors.unique(format!("{path}.name"), name, &mut port_names);
        }
        if port.container_port == 0 {
            errors.required(format!("{path}.containerPort"), "");
        } else if let Some(detail) = names::port_number(port.container_port) {
            errors.invalid(format!("{path}.containerPort"), port.container_port, detail);
        }
        let protocol = port.protocol.as_deref().unwrap_or_default();
        errors.one_of(format!("{path}.protocol"), protocol, &["SCTP", "TCP", "UDP"]);
        let ip = port.host_ip.as_deref().unwrap_or_default();
        if !ip.is_empty() {
            errors.form(format!("{path}.hostIP"), ip, names::address);
        }
        let Some(host_port) = port.host_port.filter(|port| *port != 0) else { continue };
        let path = format!("{path}.hostPort");
        let host_network = spec.host_network == Some(true);
        // On the node's network it is the container's port, which was told of above.
        if let Some(detail) = names::port_number(host_port)
            && !(host_network && host_port == port.container_port)
        {
            errors.invalid(path.clone(), host_port, detail);
        }
        if host_network && place.kind == ContainerKind::App && host_port != port.container_port {
            errors.invalid(path.clone(), host_port, "must match `containerPort` when `hostNetwork` is true");
        }
        let taken = (protocol.to_owned(), ip.to_owned(), host_port);
        if host_ports.contains(&taken) {
            errors.duplicate(path, host_port);
        }
        host_ports.push(taken);
    }
}

fn check_env(container: &v1::Container, path: &str, pod_volumes: &Volumes<'_>, errors: &mut Errors) {
    for (index, env) in container.env.iter().flatten().enumerate() {
        let path = format!("{path}.env[{index}]");
        errors.required_form(format!("{path}.name"), &env.name, names::env_name);
        let Some(from) = &env.value_from else { continue };
        let path = format!("{path}.valueFrom");
        if env.value.as_ref().is_some_and(|value| !value.is_empty()) {
            errors.invalid(path.clone(), "", "may not be specified when `value` is not empty");
        }
        let mut given = 0;
        if let Some(field) = &from.field_ref {
            given += 1;
            volumes::check_field(field, volumes::ENV_FIELDS, &format!("{path}.fieldRef"), errors);
        }
        if let Some(resource) = &from.resource_field_ref {
            given += 1;
            volumes::check_resource(resource, &format!("{path}.resourceFieldRef"), errors);
        }
        if let Some(key) = &from.config_map_key_ref {
            given += 1;
            errors.required_form(format!("{path}.configMapKeyRef.name"), &key.name, names::dns_subdomain);
            errors.required_form(format!("{path}.configMapKeyRef.key"), &key.key, names::config_key);
        }
        if let Some(key) = &from.secret_key_ref {
            given += 1;
            errors.required_form(format!("{path}.secretKeyRef.name"), &key.name, names::dns_subdomain);
            errors.required_form(format!("{path}.secretKeyRef.key"), &key.key, names::config_key);
        }
        if let Some(file) = &from.file_key_ref {
            given += 1;
            let place = format!("{path}.fileKeyRef.volumeName");
            errors.required_form(place.clone(), &file.volume_name, names::dns_label);
            match pod_volumes.get(file.volume_name.as_str()) {
                None => errors.not_found(place, &file.volume_name),
                Some(volume) if volume.empty_dir.is_none() => {
                    errors.invalid(place, &file.volume_name, "referenced volume must be of type emptyDir");
                }
                Some(_) => {}
            }
            errors.required_form(format!("{path}.fileKeyRef.path"), &file.path, names::no_backsteps);
            errors.required_form(format!("{path}.fileKeyRef.key"), &file.key, names::env_name);
        }
        if given == 0 {
            let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
            errors.invalid(path, "", detail);
        } else if given > 1 {
            errors.invalid(path, "", "may not have more than one field specified at a time");
        }
    }
    for (index, from) in container.env_from.iter().flatten().enumerate() {
        let path = format!("{path}.envFrom[{index}]");
        errors.form(format!("{path}.prefix"), from.prefix.as_deref().unwrap_or_default(), names::env_name);
        match (&from.config_map_ref, &from.secret_ref) {
            (Some(reference), None) => {
                errors.required_form(format!("{path}.configMapRef.name"), &reference.name, names::dns_subdomain);
            }
            (None, Some(reference)) => {
                errors.required_form(format!("{path}.secretRef.name"), &reference.name, names::dns_subdomain);
            }
            (Some(_), Some(_)) => errors.invalid(path, "", "may not have more than one field specified at a time"),
            (None, None) => errors.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"),
        }
    }
}

fn check_mounts(container: &v1::Container, path: &str, volumes: &Volumes<'_>, errors: &mut Errors) {
    let privileged = container.security_context.as_ref().and_then(|security| security.privileged) == Some(true);
    let mut targets = Seen::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        if mount.name.is_empty() {
            errors.required(format!("{path}.name"), "");
        } else if !volumes.contains_key(mount.name.as_str()) {
            errors.not_found(format!("{path}.name"), &mount.name);
        }
        if mount.mount_path.is_empty() {
            errors.required(format!("{path}.mountPath"), "");
        } else if !targets.insert(&mount.mount_path) {
            errors.invalid(format!("{path}.mountPath"), &mount.mount_path, "must be unique");
        }
        let sub_path = mount.sub_path.as_deref().unwrap_or_default();
        let expression = mount.sub_path_expr.as_deref().unwrap_or_default();
        errors.form(format!("{path}.subPath"), sub_path, names::local_path);
        errors.form(format!("{path}.subPathExpr"), expression, names::local_path);
        if !sub_path.is_empty() && !expression.is_empty() {
            errors.invalid(format!("{path}.subPathExpr"), expression, "subPathExpr and subPath are mutually exclusive");
        }
        if let Some(propagation) = mount.mount_propagation.as_deref() {
            let path = format!("{path}.mountPropagation");
            errors.one_of(path.clone(), propagation, &["Bidirectional", "HostToContainer", "None"]);
            if propagation == "Bidirectional" && !privileged {
                errors.forbidden(path, "Bidirectional mount propagation is available only to privileged containers");
            }
        }
        if let Some(recursive) = mount.recursive_read_only.as_deref() {
            let path = format!("{path}.recursiveReadOnly");
            errors.one_of(path.clone(), recursive, &["Disabled", "Enabled", "IfPossible"]);
            if recursive != "Disabled" && mount.read_only != Some(true) {
                errors.forbidden(path.clone(), "may only be specified when readOnly is true");
            }
            let propagation = mount.mount_propagation.as_deref().unwrap_or("None");
            if recursive != "Disabled" && propagation != "None" {
                let detail = "may only be specified when mountPropagation is None or not specified";
                errors.warnings(|errors| errors.forbidden(path, detail));
            }
        }
    }
    for (index, device) in container.volume_devices.iter().flatten().enumerate() {
        let path = format!("{path}.volumeDevices[{index}]");
        if !volumes.contains_key(device.name.as_str()) {
            errors.not_found(format!("{path}.name"), &device.name);
        }
        errors.required_form(format!("{path}.devicePath"), &device.device_path, names::no_backsteps);
    }
}
