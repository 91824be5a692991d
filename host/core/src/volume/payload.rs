//! The files of payload volumes: from ConfigMaps, Secrets and the downward API.
//!
//! As `pkg/volume/{configmap,secret,downwardapi}` and the path rules of `pkg/volume/util/atomic_writer.go`. Every
//! error is text for the user; the volume's name is added by the caller.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1;

use super::{Objects, PayloadFile};
use crate::downward;
use crate::node::NodeFacts;
use crate::pod::Pod;

/// Files by relative path.
pub(super) type Files = BTreeMap<String, PayloadFile>;

/// A Secret's values by key. `stringData`, which only objects that never saw an API server still have, wins.
pub(crate) fn secret_data(secret: &v1::Secret) -> BTreeMap<&str, &[u8]> {
    let data = secret.data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice()));
    let text = secret.string_data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_bytes()));
    data.chain(text).collect()
}

/// A reference to an object from a volume.
pub(super) struct Wanted<'a> {
    pub(super) name: &'a str,
    pub(super) items: Option<&'a [v1::KeyToPath]>,
    pub(super) optional: Option<bool>,
    pub(super) default_mode: u32,
}

/// Mode bits, 0644 where absent.
pub(super) fn mode(bits: Option<i32>) -> u32 {
    bits.and_then(|bits| u32::try_from(bits).ok()).unwrap_or(0o644) & 0o7777
}

pub(super) fn config_map(wanted: &Wanted<'_>, objects: &Objects) -> Result<Files, String> {
    let Some(found) = objects.config_maps.get(wanted.name) else {
        return missing("configmap", wanted);
    };
    let text = found.data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_bytes()));
    let binary = found.binary_data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice()));
    // `data` wins where a key stands in both, as in the kubelet's look-up.
    select(&binary.chain(text).collect(), wanted, "config")
}

pub(super) fn secret(wanted: &Wanted<'_>, objects: &Objects) -> Result<Files, String> {
    match objects.secrets.get(wanted.name) {
        Some(found) => select(&secret_data(found), wanted, "secret"),
        None => missing("secret", wanted),
    }
}

fn missing(kind: &str, wanted: &Wanted<'_>) -> Result<Files, String> {
    if wanted.optional == Some(true) { Ok(Files::new()) } else { Err(format!("{kind} {:?} not found", wanted.name)) }
}

fn select(data: &BTreeMap<&str, &[u8]>, wanted: &Wanted<'_>, kind: &str) -> Result<Files, String> {
    let Some(items) = wanted.items.filter(|items| !items.is_empty()) else {
        let file = |content: &[u8]| PayloadFile { data: content.to_vec(), mode: wanted.default_mode };
        return Ok(data.iter().map(|(key, content)| ((*key).to_owned(), file(content))).collect());
    };
    let mut files = Files::new();
    for item in items {
        let Some(content) = data.get(item.key.as_str()) else {
            if wanted.optional == Some(true) {
                continue;
            }
            return Err(format!("references non-existent {kind} key: {}", item.key));
        };
        let mode = if item.mode.is_some() { mode(item.mode) } else { wanted.default_mode };
        files.insert(item.path.clone(), PayloadFile { data: content.to_vec(), mode });
    }
    Ok(files)
}

pub(super) fn downward_api(
    pod: &Pod,
    node: &NodeFacts,
    pod_ips: &[IpAddr],
    items: &[v1::DownwardAPIVolumeFile],
    default_mode: u32,
) -> Result<Files, String> {
    let mut files = Files::new();
    for item in items {
        let value = if let Some(reference) = &item.field_ref {
            downward::field(pod, node, pod_ips, &node.ips, &reference.field_path)
        } else if let Some(reference) = &item.resource_field_ref {
            downward::resource(pod, node, None, reference)
        } else {
            Err("neither fieldRef nor resourceFieldRef is given".to_owned())
        };
        let value = value.map_err(|message| format!("downwardAPI file {:?}: {message}", item.path))?;
        let mode = if item.mode.is_some() { mode(item.mode) } else { default_mode };
        files.insert(item.path.clone(), PayloadFile { data: value.into_bytes(), mode });
    }
    Ok(files)
}

/// Refuses paths that would lead out of the volume, into the writer's own `..` entries, or through another file.
pub(super) fn check(files: &Files) -> Result<(), String> {
    for path in files.keys() {
        check_path(path).map_err(|message| format!("invalid path {path:?}: {message}"))?;
        for (at, _) in path.match_indices('/') {
            if files.contains_key(&path[..at]) {
                return Err(format!("conflicting paths: {:?} is a file and the folder of {path:?}", &path[..at]));
            }
        }
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("must not be empty");
    }
    if path.starts_with('/') {
        return Err("must be relative");
    }
    if path.len() > 4096 {
        return Err("must be at most 4096 bytes long");
    }
    if path.contains('\0') {
        return Err("must not hold a NUL byte");
    }
    for (index, part) in path.split('/').enumerate() {
        match part {
            ".." => return Err("must not contain '..'"),
            "" | "." => return Err("must not contain empty parts or '.'"),
            _ if index == 0 && part.starts_with("..") => return Err("must not start with '..'"),
            _ if part.len() > 255 => return Err("must not contain parts of more than 255 bytes"),
            _ => {}
        }
    }
    Ok(())
}
