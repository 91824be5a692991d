//! Hashes that tell whether a container or a sandbox must be replaced when its pod changes in place.
//!
//! They are kept in labels for as long as a container lives, so their rules are for ever: any change to what goes
//! in or how it is written needs another [`crate::labels::CURRENT_HASH_VERSION`], and restarts nothing ([`fits`]).
//! They are taken from the pod as written, before defaults, so that a new default restarts nothing; what is absent,
//! null or empty is left out, so that a field that a newer API adds restarts nothing.
//!
//! | field of a container | in its hash | why |
//! |---|---|---|
//! | name, image, command, args, workingDir, env, envFrom | yes | fixed when a container is made |
//! | volumeMounts, volumeDevices, and the definition of each volume that they name | yes | mounts are fixed |
//! | securityContext, and the pod's: user, groups, SELinux, seccomp, AppArmor | yes | fixed |
//! | stdin, stdinOnce, tty, terminationMessagePath, lifecycle.stopSignal | yes | fixed |
//! | its part (init, sidecar, app) | yes | stands in a label |
//! | resources: cpu, memory, ephemeral-storage | no, unless resizePolicy says RestartContainer | changed in place |
//! | resources: all others | yes | fixed |
//! | probes, postStart, preStop, restartPolicyRules, imagePullPolicy, terminationMessagePolicy, resizePolicy | no | the agent's own work |
//! | ports | no | host ports are the sandbox's, the others say nothing to the runtime |
//!
//! Hosts, DNS, labels and annotations are in neither hash: they are files and labels of ours, and a file is written anew
//! under what runs ([`names`]). Nor is `enableServiceLinks`, which comes with the next start, as the Services do. Of a pod
//! from the API server, name and image are all that can change (`pkg/kubelet/container/helpers.go`, `HashContainer`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::pod::{ContainerKind, Source, init_kind};

/// Whether what was made with the one hash is as the other one wants it. What was made by other rules cannot be told
/// ([`crate::labels::parse`] gives no hash of it), and an upgrade may restart nothing: it fits, and a change in place
/// comes to it at its next start.
pub fn fits(seen: &str, wanted: &str) -> bool {
    seen.is_empty() || seen == wanted
}

/// The hash of every container, init containers included, by name; of the pod as written.
pub fn containers(pod: &v1::Pod, source: &Source) -> BTreeMap<String, String> {
    let Some(spec) = &pod.spec else { return BTreeMap::new() };
    let init = spec.init_containers.iter().flatten().map(|container| (init_kind(container), container));
    let app = spec.containers.iter().map(|container| (ContainerKind::App, container));
    init.chain(app)
        .map(|(kind, container)| {
            let content = match source {
                Source::Api => json!({"name": container.name, "image": container.image}),
                _ => container_content(spec, container, kind),
            };
            (container.name.clone(), digest(content))
        })
        .collect()
}

/// The hash of all that needs a new sandbox, and with it a new start of the whole pod; of the pod as written.
///
/// Namespaces shared with the node, process namespace sharing, user namespaces, host ports, host name, sysctls, the
/// pause process's user, groups and confinement, the runtime class, and whether anything is privileged.
pub fn sandbox(pod: &v1::Pod) -> String {
    let Some(spec) = &pod.spec else { return digest(Value::Null) };
    let is = |flag: Option<bool>| flag.filter(|flag| *flag);
    let all = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let host_network = spec.host_network.unwrap_or(false);
    let mut ports: Vec<Value> = all()
        .flat_map(|container| container.ports.iter().flatten())
        .filter(|port| !host_network && port.host_port.is_some_and(|port| port != 0))
        .map(|port| {
            json!([
                port.host_ip.as_deref().unwrap_or(""),
                port.host_port,
                port.container_port,
                port.protocol.as_deref().unwrap_or("TCP"),
            ])
        })
        .collect();
    ports.sort_by_key(Value::to_string);
    let privileged =
        all().any(|c| c.security_context.as_ref().and_then(|security| security.privileged).unwrap_or(false));
    let mut content = json!({
        "hostNetwork": is(spec.host_network),
        "hostPID": is(spec.host_pid),
        "hostIPC": is(spec.host_ipc),
        "hostUsers": spec.host_users.filter(|flag| !*flag),
        "shareProcessNamespace": is(spec.share_process_namespace),
        "ports": ports,
        "hostname": spec.hostname,
        "hostnameOverride": spec.hostname_override,
        "subdomain": spec.subdomain,
        "setHostnameAsFQDN": is(spec.set_hostname_as_fqdn),
        "runtimeClassName": spec.runtime_class_name,
        "privileged": is(Some(privileged)),
    });
    if let Some(security) = &spec.security_context {
        content["security"] = pod_security(security);
        content["sysctls"] = to_json(&security.sysctls);
    }
    digest(content)
}

/// The hash of what a pod says of its resolv.conf: a change of that reaches what runs, one of the node's own does not.
pub fn names(pod: &v1::Pod) -> String {
    let spec = pod.spec.as_ref();
    digest(json!({
        "dnsPolicy": spec.and_then(|spec| spec.dns_policy.as_ref()),
        "dnsConfig": to_json(&spec.and_then(|spec| spec.dns_config.as_ref())),
    }))
}

/// The hash of a file's text.
pub fn text(text: &str) -> String {
    digest(Value::from(text))
}

fn container_content(spec: &v1::PodSpec, container: &v1::Container, kind: ContainerKind) -> Value {
    let stop_signal = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_deref());
    let mounts = container.volume_mounts.iter().flatten().map(|mount| &mount.name);
    let devices = container.volume_devices.iter().flatten().map(|device| &device.name);
    let used: Vec<&String> = mounts.chain(devices).collect();
    let volumes: Map<String, Value> = spec
        .volumes
        .iter()
        .flatten()
        .filter(|volume| used.contains(&&volume.name))
        .map(|volume| (volume.name.clone(), to_json(volume)))
        .collect();
    json!({
        "name": container.name,
        "kind": crate::labels::kind_word(kind),
        "image": container.image,
        "command": container.command,
        "args": container.args,
        "workingDir": container.working_dir,
        "env": to_json(&container.env),
        "envFrom": to_json(&container.env_from),
        "volumeMounts": to_json(&container.volume_mounts),
        "volumeDevices": to_json(&container.volume_devices),
        "volumes": volumes,
        "securityContext": to_json(&container.security_context),
        "podSecurityContext": spec.security_context.as_ref().map(pod_security),
        "stdin": container.stdin,
        "stdinOnce": container.stdin_once,
        "tty": container.tty,
        "terminationMessagePath": container.termination_message_path,
        "stopSignal": stop_signal,
        "resources": resources(container),
    })
}

/// The parts of a pod's security context that go to its containers and to the pause process alike.
fn pod_security(security: &v1::PodSecurityContext) -> Value {
    json!({
        "runAsUser": security.run_as_user,
        "runAsGroup": security.run_as_group,
        "runAsNonRoot": security.run_as_non_root,
        "fsGroup": security.fs_group,
        "supplementalGroups": security.supplemental_groups,
        "supplementalGroupsPolicy": security.supplemental_groups_policy,
        "seLinuxOptions": to_json(&security.se_linux_options),
        "seccompProfile": to_json(&security.seccomp_profile),
        "appArmorProfile": to_json(&security.app_armor_profile),
    })
}

/// Resources that cannot be changed while the container runs.
fn resources(container: &v1::Container) -> Value {
    let Some(resources) = &container.resources else { return Value::Null };
    let restarts = |name: &str| {
        container
            .resize_policy
            .iter()
            .flatten()
            .any(|policy| policy.resource_name == name && policy.restart_policy == "RestartContainer")
    };
    let kept = |list: &Option<BTreeMap<String, Quantity>>| -> Map<String, Value> {
        list.iter()
            .flatten()
            .filter(|(name, _)| !matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || restarts(name))
            .map(|(name, quantity)| (name.clone(), to_json(quantity)))
            .collect()
    };
    json!({
        "requests": kept(&resources.requests),
        "limits": kept(&resources.limits),
        "claims": to_json(&resources.claims),
    })
}

fn to_json<T: Serialize>(value: &T) -> Value {
    // Data types of the API always serialise; null stands for absent.
    serde_json::to_value(value).unwrap_or(Value::Null)
}

fn digest(content: Value) -> String {
    let mut text = String::new();
    if let Some(content) = pruned(content) {
        write(&content, &mut text);
    }
    hex(&Sha256::digest(text.as_bytes())[..8])
}

/// The value without nulls and empty strings, lists and maps; nothing when nothing is left. Elements of lists stay
/// as they are, even empty ones: their place means something.
fn pruned(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::Array(items) if items.is_empty() => None,
        Value::Array(items) => {
            let keep = |item: Value| match item {
                Value::Object(_) | Value::Array(_) => pruned(item).unwrap_or(Value::Null),
                other => other,
            };
            Some(Value::Array(items.into_iter().map(keep).collect()))
        }
        Value::Object(map) => {
            let map: Map<String, Value> =
                map.into_iter().filter_map(|(key, value)| Some((key, pruned(value)?))).collect();
            if map.is_empty() { None } else { Some(Value::Object(map)) }
        }
        other => Some(other),
    }
}

/// JSON with sorted keys and no white space.
fn write(value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            out.push('{');
            for (index, (key, value)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                out.push_str(&Value::String(key.clone()).to_string());
                out.push(':');
                write(value, out);
            }
            out.push('}');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

/// Bytes as lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
