//! The environment of a container, and `$(VAR)` in what refers to it.
//!
//! As `pkg/kubelet/kubelet_pods.go` (makeEnvironmentVariables) and `third_party/forked/golang/expansion`. Objects come
//! in as values; nothing here looks one up elsewhere.

mod file;

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1;

use crate::downward;
use crate::node::NodeFacts;
use crate::pod::{ContainerOf, Pod};
use crate::volume::{Objects, secret_data};

pub use file::{EnvFile, EnvFiles, env_files};

/// What a container's environment is made from, beside its spec.
#[derive(Clone, Copy, Debug)]
pub struct EnvironmentContext<'a> {
    /// The node.
    pub node: &'a NodeFacts,
    /// ConfigMaps and Secrets of the pod's namespace.
    pub objects: &'a Objects,
    /// Addresses of the pod, the primary one first.
    pub pod_ips: &'a [IpAddr],
    /// Addresses of the node that the pod is told, the primary one first.
    pub host_ips: &'a [IpAddr],
    /// Variables for services; a container's own win over them.
    pub services: &'a BTreeMap<String, String>,
    /// The files that [`env_files`] names, of the volumes that there are.
    pub files: &'a EnvFiles,
}

/// Why an environment cannot be made: the container waits with `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EnvironmentError {
    /// What is wrong, in the kubelet's words, and in which field.
    pub message: String,
}

/// The environment in the order of `envFrom`, then `env`, then services; a name that comes again takes the place of
/// the former one, so names are unique.
pub fn build(
    pod: &Pod,
    container: ContainerOf<'_>,
    ctx: &EnvironmentContext<'_>,
) -> Result<Vec<(String, String)>, EnvironmentError> {
    let spec = container.spec;
    let mut variables = Variables::default();
    for source in spec.env_from.iter().flatten() {
        from_object(source, ctx, &mut variables).map_err(|message| EnvironmentError {
            message: format!("{message} (envFrom of container {:?})", spec.name),
        })?;
    }
    for variable in spec.env.iter().flatten() {
        let place = |message: String| EnvironmentError {
            message: format!("{message} (env {:?} of container {:?})", variable.name, spec.name),
        };
        let literal = variable.value.as_deref().unwrap_or_default();
        let value = if !literal.is_empty() {
            Some(expand(literal, |name| variables.get(name).or_else(|| ctx.services.get(name)).cloned()))
        } else if let Some(source) = &variable.value_from {
            from_source(pod, spec, source, ctx).map_err(place)?
        } else {
            Some(String::new())
        };
        if let Some(value) = value {
            variables.set(variable.name.clone(), value).map_err(place)?;
        }
    }
    for (name, value) in ctx.services {
        if variables.get(name).is_none() {
            variables.entries.push((name.clone(), value.clone()));
        }
    }
    Ok(variables.entries)
}

/// Variables in order, by unique name.
#[derive(Default)]
struct Variables {
    entries: Vec<(String, String)>,
    places: BTreeMap<String, usize>,
}

impl Variables {
    fn get(&self, name: &str) -> Option<&String> {
        self.places.get(name).map(|place| &self.entries[*place].1)
    }

    /// A NUL would end the value, or the whole environment, inside the kernel.
    fn set(&mut self, name: String, value: String) -> Result<(), String> {
        if value.contains('\0') || name.contains('\0') {
            return Err(format!("variable {name:?} holds a NUL byte"));
        }
        if let Some(place) = self.places.get(&name) {
            self.entries[*place].1 = value;
        } else {
            self.places.insert(name.clone(), self.entries.len());
            self.entries.push((name, value));
        }
        Ok(())
    }
}

fn from_object(
    source: &v1::EnvFromSource,
    ctx: &EnvironmentContext<'_>,
    variables: &mut Variables,
) -> Result<(), String> {
    let prefix = source.prefix.as_deref().unwrap_or_default();
    if let Some(reference) = &source.config_map_ref {
        match ctx.objects.config_maps.get(&reference.name) {
            Some(found) => {
                for (key, value) in found.data.iter().flatten() {
                    variables.set(format!("{prefix}{key}"), value.clone())?;
                }
            }
            None if reference.optional == Some(true) => {}
            None => return Err(format!("configmap {:?} not found", reference.name)),
        }
    } else if let Some(reference) = &source.secret_ref {
        match ctx.objects.secrets.get(&reference.name) {
            Some(found) => {
                for (key, value) in secret_data(found) {
                    variables.set(format!("{prefix}{key}"), String::from_utf8_lossy(value).into_owned())?;
                }
            }
            None if reference.optional == Some(true) => {}
            None => return Err(format!("secret {:?} not found", reference.name)),
        }
    }
    Ok(())
}

/// The value from `valueFrom`; `None` when it is optional and absent, and then the variable is not set at all.
fn from_source(
    pod: &Pod,
    container: &v1::Container,
    source: &v1::EnvVarSource,
    ctx: &EnvironmentContext<'_>,
) -> Result<Option<String>, String> {
    if let Some(reference) = &source.field_ref {
        return downward::field(pod, ctx.node, ctx.pod_ips, ctx.host_ips, &reference.field_path).map(Some);
    }
    if let Some(reference) = &source.resource_field_ref {
        return downward::resource(pod, ctx.node, Some(container), reference).map(Some);
    }
    let namespace = &pod.id.namespace;
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let Some(found) = ctx.objects.config_maps.get(&reference.name) else {
            return if optional { Ok(None) } else { Err(format!("configmap {:?} not found", reference.name)) };
        };
        return match found.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", reference.key, reference.name)),
        };
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional == Some(true);
        let Some(found) = ctx.objects.secrets.get(&reference.name) else {
            return if optional { Ok(None) } else { Err(format!("secret {:?} not found", reference.name)) };
        };
        return match secret_data(found).get(reference.key.as_str()) {
            Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in Secret {namespace}/{}", reference.key, reference.name)),
        };
    }
    if let Some(reference) = &source.file_key_ref {
        let (volume, path) = (&reference.volume_name, &reference.path);
        let Some(content) = ctx.files.get(&(volume.clone(), path.clone())) else {
            return Err(format!("cannot find the volume {volume:?} referenced by FileKeyRef"));
        };
        let found = content.as_ref().map_err(String::clone).and_then(|content| file::value(content, &reference.key));
        let found = found.map_err(|message| format!("couldn't parse env file: {message}"))?;
        return match reference.optional {
            _ if !found.is_empty() => Ok(Some(found)),
            Some(true) => Ok(None),
            _ => {
                let place = format!("{volume}/{path}");
                Err(format!("environment variable key {:?} not found in file {place:?}", reference.key))
            }
        };
    }
    Ok(Some(String::new()))
}

/// Replaces `$(NAME)` by what `lookup` gives; a name that it does not know stays as it is written. `$$` is a dollar,
/// so `$$(NAME)` is `$(NAME)`; a dollar before anything else is a dollar.
pub fn expand(text: &str, mut lookup: impl FnMut(&str) -> Option<String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(escaped) = after.strip_prefix('$') {
            expanded.push('$');
            rest = escaped;
        } else if let Some((name, behind)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => expanded.push_str(&value),
                None => expanded.push_str(&format!("$({name})")),
            }
            rest = behind;
        } else {
            expanded.push('$');
            rest = after;
        }
    }
    expanded.push_str(rest);
    expanded
}

/// Expands each word of a command with a container's environment, as [`build`] gives it.
pub fn expand_words(words: &[String], env: &[(String, String)]) -> Vec<String> {
    let values: BTreeMap<&str, &str> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    words.iter().map(|word| expand(word, |name| values.get(name).map(|value| (*value).to_owned()))).collect()
}

/// The values that stand in the spec itself, as written; those that come from elsewhere are empty.
pub fn static_env(container: &v1::Container) -> BTreeMap<String, String> {
    let variables = container.env.iter().flatten();
    variables.map(|variable| (variable.name.clone(), variable.value.clone().unwrap_or_default())).collect()
}

/// Expands an exec probe's command from the static environment alone
/// (`pkg/kubelet/container/helpers.go`, ExpandContainerCommandOnlyStatic).
pub fn expand_command(container: &v1::Container, command: &[String]) -> Vec<String> {
    let env = static_env(container);
    command.iter().map(|word| expand(word, |name| env.get(name).cloned())).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
