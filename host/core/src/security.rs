//! Security contexts: users, groups, capabilities and the runtime's security options.
//!
//! As `pkg/securitycontext/util.go`, `pkg/kubelet/kuberuntime/security_context{,_others}.go` and, for the runtime's
//! notation, `pkg/kubelet/dockershim/{security_context,helpers_linux,selinux_util}.go` of Kubernetes 1.20. A field of the
//! container wins over the pod's. Profiles come in as text; nothing here reads a file.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;

use crate::container_config::ConfigError;
use crate::node::NodeFacts;
use crate::pod::Pod;

/// Annotations for AppArmor that came before the fields, by container's name.
const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

fn context(container: &v1::Container) -> Option<&v1::SecurityContext> {
    container.security_context.as_ref()
}

fn pod_context(pod: &Pod) -> Option<&v1::PodSecurityContext> {
    pod.spec().security_context.as_ref()
}

/// A container's field, else the pod's.
macro_rules! effective {
    ($pod:expr, $container:expr, $field:ident) => {
        context($container)
            .and_then(|context| context.$field.as_ref())
            .or_else(|| pod_context($pod).and_then(|context| context.$field.as_ref()))
    };
}

/// Who a container's processes run as: `uid`, `uid:gid`, or what the image says where nothing is set. `image_user` is the
/// image's user, empty for root. With a group alone the image's user is kept.
pub fn user(pod: &Pod, container: &v1::Container, image_user: &str) -> Option<String> {
    let image = image_user.split(':').next().filter(|user| !user.is_empty()).unwrap_or("0");
    join(effective!(pod, container, run_as_user), effective!(pod, container, run_as_group), image)
}

/// Who the pause process runs as; the pause image's own user is root.
pub fn sandbox_user(pod: &Pod) -> Option<String> {
    let context = pod_context(pod)?;
    join(context.run_as_user.as_ref(), context.run_as_group.as_ref(), "0")
}

fn join(user: Option<&i64>, group: Option<&i64>, default_user: &str) -> Option<String> {
    match (user, group) {
        (None, None) => None,
        (Some(user), None) => Some(user.to_string()),
        (Some(user), Some(group)) => Some(format!("{user}:{group}")),
        (None, Some(group)) => Some(format!("{default_user}:{group}")),
    }
}

/// Supplemental groups of all containers: `fsGroup`, then `supplementalGroups`, each once.
pub fn groups(pod: &Pod) -> Vec<i64> {
    let Some(context) = pod_context(pod) else { return Vec::new() };
    let mut groups = Vec::new();
    for group in context.fs_group.iter().chain(context.supplemental_groups.iter().flatten()) {
        if !groups.contains(group) {
            groups.push(*group);
        }
    }
    groups
}

/// Holds `runAsNonRoot` against the user that the container would have, in the kubelet's words
/// (verifyRunAsNonRoot).
pub fn verify_non_root(pod: &Pod, container: &v1::Container, image_user: &str) -> Result<(), ConfigError> {
    if effective!(pod, container, run_as_non_root) != Some(&true) {
        return Ok(());
    }
    let place = format!("(pod: \"{}\", container: {})", pod.id.in_messages(), container.name);
    match effective!(pod, container, run_as_user) {
        Some(0) => return Err(ConfigError::new(format!("container's runAsUser breaks non-root policy {place}"))),
        Some(_) => return Ok(()),
        None => {}
    }
    let name = image_user.split(':').next().unwrap_or_default();
    match name.parse::<i64>() {
        _ if name.is_empty() => {}
        Ok(0) => {}
        Ok(_) => return Ok(()),
        Err(_) => {
            return Err(ConfigError::new(format!(
                "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root \
                 {place}"
            )));
        }
    }
    Err(ConfigError::new(format!("container has runAsNonRoot and image will run as root {place}")))
}

/// Capabilities to add and to drop, in upper case without `CAP_`.
pub fn capabilities(container: &v1::Container) -> (Vec<String>, Vec<String>) {
    let Some(wanted) = context(container).and_then(|context| context.capabilities.as_ref()) else {
        return (Vec::new(), Vec::new());
    };
    let names = |list: &Option<Vec<String>>| {
        let mut names: Vec<String> = Vec::new();
        for name in list.iter().flatten() {
            let name = name.to_ascii_uppercase();
            let name = name.strip_prefix("CAP_").unwrap_or(&name).to_owned();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    };
    (names(&wanted.add), names(&wanted.drop))
}

/// Whether a container is privileged.
pub fn is_privileged(container: &v1::Container) -> bool {
    context(container).and_then(|context| context.privileged).unwrap_or(false)
}

/// Whether /proc is to be shown unmasked.
pub fn is_proc_unmasked(container: &v1::Container) -> bool {
    context(container).and_then(|context| context.proc_mount.as_deref()) == Some("Unmasked")
}

/// Whether the root filesystem is read-only.
pub fn is_rootfs_read_only(container: &v1::Container) -> bool {
    context(container).and_then(|context| context.read_only_root_filesystem).unwrap_or(false)
}

/// Names of all seccomp profiles that a pod's containers take from the node (`localhostProfile`), each once: relative
/// paths below the node's folder for them. A name that would lead out of it is left out, and so found missing later.
pub fn localhost_profiles(pod: &Pod) -> Vec<String> {
    let mut names = Vec::new();
    for container in pod.containers().chain(pod.ephemeral_containers()) {
        let profile = effective!(pod, container.spec, seccomp_profile).filter(|profile| profile.type_ == "Localhost");
        let name = profile.and_then(|profile| profile.localhost_profile.clone());
        let inside = |name: &String| !name.is_empty() && !name.starts_with('/') && name.split('/').all(|it| it != "..");
        names.extend(name.filter(inside).filter(|name| !names.contains(name)));
    }
    names
}

/// All security options of a container, in the runtime's notation. `seccomp_profiles` holds the content of those
/// that [`localhost_profiles`] names.
pub fn options(
    pod: &Pod,
    container: &v1::Container,
    node: &NodeFacts,
    seccomp_profiles: &BTreeMap<String, String>,
) -> Result<Vec<String>, ConfigError> {
    let mut options = Vec::new();
    if context(container).and_then(|context| context.allow_privilege_escalation) == Some(false) {
        options.push("no-new-privileges".to_owned());
    }
    options.extend(seccomp(pod, container, node, seccomp_profiles)?);
    if node.apparmor {
        options.extend(apparmor(pod, container)?);
    }
    options.extend(labels(effective!(pod, container, se_linux_options)));
    Ok(options)
}

/// All security options of a pod's sandbox. Its seccomp profile is always the runtime's own, which is the one that is
/// used where nothing is said (kubernetes#84623).
pub fn sandbox_options(pod: &Pod) -> Vec<String> {
    let mut options = vec!["no-new-privileges".to_owned()];
    options.extend(labels(pod_context(pod).and_then(|context| context.se_linux_options.as_ref())));
    options
}

fn seccomp(
    pod: &Pod,
    container: &v1::Container,
    node: &NodeFacts,
    profiles: &BTreeMap<String, String>,
) -> Result<Option<String>, ConfigError> {
    let unconfined = || Some("seccomp=unconfined".to_owned());
    let Some(profile) = effective!(pod, container, seccomp_profile) else {
        return Ok(if node.seccomp_default { None } else { unconfined() });
    };
    let place = format!("securityContext.seccompProfile of container {:?}", container.name);
    match profile.type_.as_str() {
        "RuntimeDefault" => Ok(None),
        "Unconfined" => Ok(unconfined()),
        "Localhost" => {
            let name = profile.localhost_profile.as_deref().unwrap_or_default();
            let text = profiles.get(name).ok_or_else(|| {
                ConfigError::of_runtime(format!(
                    "{place}: cannot load seccomp profile {name:?}: there must be a readable file of that name below {}",
                    node.seccomp_root
                ))
            })?;
            // The runtime takes the profile in one line.
            let parsed: serde_json::Value = serde_json::from_str(text).map_err(|error| {
                ConfigError::of_runtime(format!("{place}: seccomp profile {name:?} is not JSON: {error}"))
            })?;
            Ok(Some(format!("seccomp={parsed}")))
        }
        other => Err(ConfigError::new(format!(
            "{place}: unknown type {other:?}, expected RuntimeDefault, Unconfined or Localhost"
        ))),
    }
}

/// The container's field, then its annotation, then the pod's field (`pkg/security/apparmor/helpers.go`).
fn apparmor(pod: &Pod, container: &v1::Container) -> Result<Option<String>, ConfigError> {
    let name = &container.name;
    let annotation = pod.annotations().get(&format!("{APPARMOR_ANNOTATION}{name}"));
    let of_container = context(container).and_then(|context| context.app_armor_profile.as_ref());
    if let (None, Some(text)) = (of_container, annotation) {
        return match text.as_str() {
            "" | "runtime/default" => Ok(None),
            "unconfined" => Ok(Some("apparmor=unconfined".to_owned())),
            other => match other.strip_prefix("localhost/") {
                Some(profile) => Ok(Some(format!("apparmor={profile}"))),
                None => Err(ConfigError::new(format!(
                    "annotation {APPARMOR_ANNOTATION}{name}: unknown profile {other:?}, expected runtime/default, \
                     unconfined or localhost/<profile>"
                ))),
            },
        };
    }
    let of_pod = || pod_context(pod).and_then(|context| context.app_armor_profile.as_ref());
    let Some(profile) = of_container.or_else(of_pod) else { return Ok(None) };
    match (profile.type_.as_str(), profile.localhost_profile.as_deref()) {
        ("RuntimeDefault", _) => Ok(None),
        ("Unconfined", _) => Ok(Some("apparmor=unconfined".to_owned())),
        ("Localhost", Some(profile)) if !profile.is_empty() => Ok(Some(format!("apparmor={profile}"))),
        ("Localhost", _) => Err(ConfigError::new(format!(
            "securityContext.appArmorProfile of container {name:?}: type Localhost needs localhostProfile"
        ))),
        (other, _) => Err(ConfigError::new(format!(
            "securityContext.appArmorProfile of container {name:?}: unknown type {other:?}, expected RuntimeDefault, \
             Unconfined or Localhost"
        ))),
    }
}

/// SELinux options, `label=<part>:<value>`.
fn labels(options: Option<&v1::SELinuxOptions>) -> Vec<String> {
    let Some(options) = options else { return Vec::new() };
    let parts = [("user", &options.user), ("role", &options.role), ("type", &options.type_), ("level", &options.level)];
    let given = parts.into_iter().filter_map(|(part, value)| Some((part, value.as_deref()?)));
    given.filter(|(_, value)| !value.is_empty()).map(|(part, value)| format!("label={part}:{value}")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
