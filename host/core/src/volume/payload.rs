//! The files of payload volumes: from ConfigMaps, Secrets and the downward API.
//!
//! As `pkg/volume/{configmap,secret,downwardapi}` and the path rules of `pkg/volume/util/atomic_writer.go`. Every
//! error is text for the user; the volume's name is added by the caller.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1;

use super::{Issued, Objects, PayloadFile};
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
    select(&binary.chain(text).collect(), wanted, "configmap references non-existent config key")
}

pub(super) fn secret(wanted: &Wanted<'_>, objects: &Objects) -> Result<Files, String> {
    match objects.secrets.get(wanted.name) {
        Some(found) => select(&secret_data(found), wanted, "references non-existent secret key"),
        None => missing("secret", wanted),
    }
}

fn missing(kind: &str, wanted: &Wanted<'_>) -> Result<Files, String> {
    if wanted.optional == Some(true) { Ok(Files::new()) } else { Err(format!("{kind} {:?} not found", wanted.name)) }
}

/// The keys that are wanted, or all; `lacking` is what the kubelet says of one that there is not.
fn select(data: &BTreeMap<&str, &[u8]>, wanted: &Wanted<'_>, lacking: &str) -> Result<Files, String> {
    let Some(items) = wanted.items.filter(|items| !items.is_empty()) else {
        let file = |content: &[u8]| PayloadFile { data: content.to_vec(), mode: wanted.default_mode, user: None };
        return Ok(data.iter().map(|(key, content)| ((*key).to_owned(), file(content))).collect());
    };
    let mut files = Files::new();
    for item in items {
        let Some(content) = data.get(item.key.as_str()) else {
            if wanted.optional == Some(true) {
                continue;
            }
            return Err(format!("{lacking}: {}", item.key));
        };
        let mode = if item.mode.is_some() { mode(item.mode) } else { wanted.default_mode };
        files.insert(item.path.clone(), PayloadFile { data: content.to_vec(), mode, user: None });
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
        files.insert(item.path.clone(), PayloadFile { data: value.into_bytes(), mode, user: None });
    }
    Ok(files)
}

/// Who the files that the API server issued are for: their mode is 0600 then, and 0640 by the group's doing
/// (`pkg/volume/projected/projected.go`, `pkg/volume/util.FsUserFrom`).
fn private_mode(pod: &Pod, default_mode: u32) -> (u32, Option<u32>) {
    let context = pod.spec().security_context.as_ref();
    let of_pod = context.and_then(|context| context.run_as_user);
    let mut users = pod
        .containers()
        .map(|container| container.spec.security_context.as_ref().and_then(|context| context.run_as_user).or(of_pod));
    let first = users.next().flatten();
    let user = first.filter(|user| users.all(|other| other == Some(*user)));
    let user = user.and_then(|user| u32::try_from(user).ok());
    let grouped = context.is_some_and(|context| context.fs_group.is_some());
    (if user.is_some() || grouped { 0o600 } else { default_mode }, user)
}

/// What the API server issued for one source of a projected volume; `None` for a source of another kind.
pub(super) fn issued(
    pod: &Pod,
    objects: &Objects,
    volume: &str,
    index: usize,
    source: &v1::VolumeProjection,
    default_mode: u32,
) -> Option<Result<Files, String>> {
    if source.service_account_token.is_none()
        && source.cluster_trust_bundle.is_none()
        && source.pod_certificate.is_none()
    {
        return None;
    }
    let (mode, user) = private_mode(pod, default_mode);
    let file = |text: &str| PayloadFile { data: text.as_bytes().to_vec(), mode, user };
    let mut files = Files::new();
    match objects.issued.get(&(volume.to_owned(), index)) {
        None => return Some(Err("there is no API server to issue it".to_owned())),
        Some(Err(message)) => return Some(Err(message.clone())),
        Some(Ok(Issued::Token(token))) => {
            let path = source.service_account_token.as_ref().map(|source| source.path.clone()).unwrap_or_default();
            files.insert(path, file(&token.token));
        }
        Some(Ok(Issued::TrustBundles(found))) => {
            let bundle = source.cluster_trust_bundle.as_ref();
            let optional = bundle.is_some_and(|bundle| bundle.optional == Some(true));
            let Some(text) = found.as_deref().or(optional.then_some("")) else {
                // As `pkg/kubelet/clustertrustbundle`.
                return Some(Err(match bundle.and_then(|bundle| bundle.name.as_deref()) {
                    Some(name) => format!(
                        "while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io {name:?} not found"
                    ),
                    None => "combination of signerName and labelSelector matched zero ClusterTrustBundles".to_owned(),
                }));
            };
            files.insert(bundle.map(|bundle| bundle.path.clone()).unwrap_or_default(), file(text));
        }
        Some(Ok(Issued::Certificate(certificate))) => {
            let source = source.pod_certificate.as_ref();
            let mut put = |path: Option<&String>, text: &str| {
                if let Some(path) = path.filter(|path| !path.is_empty()) {
                    files.insert(path.clone(), file(text));
                }
            };
            let bundle = format!("{}{}", certificate.key, certificate.chain);
            put(source.and_then(|source| source.credential_bundle_path.as_ref()), &bundle);
            put(source.and_then(|source| source.key_path.as_ref()), &certificate.key);
            put(source.and_then(|source| source.certificate_chain_path.as_ref()), &certificate.chain);
        }
    }
    Some(Ok(files))
}

/// The files with clean paths (`a//./b` is `a/b`, as `pkg/volume/util/atomic_writer.go` has it). Refuses those that would lead out of the volume, into the writer's own `..` entries, or through another file.
pub(super) fn checked(files: Files) -> Result<Files, String> {
    let clean = |path: &str| -> String {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        format!("{}{}", if path.starts_with('/') { "/" } else { "" }, parts.join("/"))
    };
    let files: Files = files.into_iter().map(|(path, file)| (clean(&path), file)).collect();
    for path in files.keys() {
        check_path(path).map_err(|message| format!("invalid path {path:?}: {message}"))?;
        for (at, _) in path.match_indices('/') {
            if files.contains_key(&path[..at]) {
                return Err(format!("conflicting paths: {:?} is a file and the folder of {path:?}", &path[..at]));
            }
        }
    }
    Ok(files)
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
            _ if index == 0 && part.starts_with("..") => return Err("must not start with '..'"),
            _ if part.len() > 255 => return Err("must not contain parts of more than 255 bytes"),
            _ => {}
        }
    }
    Ok(())
}
