//! Which registry an image's name means, and which credentials of a pod's pull secrets are for it.
//!
//! Pure: it reads names and Secrets that are handed in. Files of the node (`~/.docker/config.json`) and credential
//! helpers are the adapter's. The rules are those of `pkg/credentialprovider/{config,keyring}.go` and of
//! `pkg/kubelet/images/image_manager.go`.

use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1;
use serde::Deserialize;

use crate::ports::runtime::RegistryCredentials;
use access::{ObjectId, OwnedCredentials};

pub mod access;
pub mod exec;
pub mod providers;
mod reference;

/// The key under which Docker keeps the credentials of Docker Hub.
const DOCKER_HUB: &str = "index.docker.io";

/// An image's name, taken apart and normalised (`nginx` is `docker.io/library/nginx:latest`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    /// Host of the registry, with its port where one was given; `docker.io` for Docker Hub.
    pub registry: String,
    /// Name in the registry, e.g. `library/nginx`.
    pub repository: String,
    /// Tag; `latest` where the name has neither tag nor digest.
    pub tag: Option<String>,
    /// Digest, e.g. `sha256:…`.
    pub digest: Option<String>,
}

impl ImageName {
    /// Registry and repository, without tag and digest: what credentials are looked up by.
    pub fn place(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

/// Takes an image's name apart. The error is the kubelet's message for the waiting reason `InvalidImageName`.
pub fn parse_image(reference: &str) -> Result<ImageName, String> {
    let refuse = |why: String| {
        format!("Failed to apply default image tag \"{reference}\": couldn't parse image name \"{reference}\": {why}")
    };
    let parsed = reference::parse(reference).map_err(|error| refuse(error.to_string()))?;
    // A bare image ID parses as a repository; Docker refuses it in a name, for it could mean either.
    if parsed.tag.as_ref().is_none_or(|tag| tag == "latest") && is_id(reference) {
        return Err(refuse("invalid repository name, cannot specify 64-byte hexadecimal strings".to_owned()));
    }
    let tag = match (parsed.tag, &parsed.digest) {
        (None, None) => Some("latest".to_owned()),
        (tag, _) => tag,
    };
    Ok(ImageName { registry: parsed.registry, repository: parsed.repository, tag, digest: parsed.digest })
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The credentials that a pod's pull secrets hold for an image, in the order in which they are to be tried: the
/// most specific entry first, then in the order of the secrets. Secrets of other types, and what cannot be read in
/// them, are passed over, as the kubelet does.
pub fn for_image(reference: &str, secrets: &[Arc<v1::Secret>]) -> Vec<OwnedCredentials> {
    let Ok(image) = parse_image(reference) else { return Vec::new() };
    pick(&image, secrets.iter().flat_map(|secret| entries_of(secret)).collect())
}

/// The credentials that the `auths` of a Docker configuration hold for an image, the most specific entry first. What
/// cannot be read in one entry spoils that entry only.
pub fn for_auths(image: &ImageName, auths: serde_json::Map<String, serde_json::Value>) -> Vec<RegistryCredentials> {
    let entries = entries(auths).map(|(key, credentials)| Entry { key, owned: OwnedCredentials::of_node(credentials) });
    pick(image, entries.collect()).into_iter().map(|found| found.credentials).collect()
}

/// The credentials of a keyring's entries for an image, the most specific first.
fn pick(image: &ImageName, mut entries: Vec<Entry>) -> Vec<OwnedCredentials> {
    // A stable sort: of equal keys the earlier source comes first. Descending order puts the longer of two keys
    // first where one begins with the other.
    entries.sort_by(|a, b| b.key.cmp(&a.key));
    let place = image.place();
    let mut found: Vec<OwnedCredentials> = Vec::new();
    let mut take = |wanted: &dyn Fn(&Entry) -> bool| {
        for entry in entries.iter().filter(|entry| wanted(entry)) {
            if !found.iter().any(|other| other.credentials == entry.owned.credentials) {
                found.push(entry.owned.clone());
            }
        }
    };
    take(&|entry| matches(&entry.key, &place));
    if image.registry == "docker.io" {
        take(&|entry| entry.key == DOCKER_HUB);
    }
    found
}

/// One registry's entry of a secret.
struct Entry {
    /// Host, port and path without scheme, `/v1/` and `/v2/`; the host may hold globs.
    key: String,
    owned: OwnedCredentials,
}

/// An entry of `auths`, in a Secret or in Docker's `config.json`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AuthEntry {
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// Base64 of `user:password`; wins over the two.
    pub auth: Option<String>,
    /// A token that was got from an identity provider.
    pub identitytoken: Option<String>,
}

impl AuthEntry {
    /// The credentials in it, `None` when it is empty or cannot be read.
    pub fn credentials(&self) -> Option<RegistryCredentials> {
        if let Some(token) = self.identitytoken.as_ref().filter(|token| !token.is_empty()) {
            return Some(RegistryCredentials::IdentityToken(token.clone()));
        }
        if let Some(auth) = self.auth.as_ref().filter(|auth| !auth.is_empty()) {
            let text = String::from_utf8(base64(auth)?).ok()?;
            let (username, password) = text.split_once(':')?;
            // Docker pads the password with NULs in old files.
            let password = password.trim_end_matches('\0');
            return Some(RegistryCredentials::Basic { username: username.to_owned(), password: password.to_owned() });
        }
        let username = self.username.clone().filter(|name| !name.is_empty())?;
        Some(RegistryCredentials::Basic { username, password: self.password.clone().unwrap_or_default() })
    }
}

/// Base64 as found in `auth`: standard alphabet, with or without padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut padded: String = text.split_whitespace().collect();
    padded.truncate(padded.trim_end_matches('=').len());
    while !padded.len().is_multiple_of(4) {
        padded.push('=');
    }
    serde_json::from_value::<ByteString>(serde_json::Value::String(padded)).ok().map(|bytes| bytes.0)
}

/// The entries of one secret. JSON that is broken in one entry spoils that entry only.
fn entries_of(secret: &v1::Secret) -> Vec<Entry> {
    let data = |key: &str| secret.data.as_ref()?.get(key).map(|bytes| bytes.0.clone()).or_else(|| text(secret, key));
    let auths = match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => data(".dockerconfigjson")
            .and_then(|json| serde_json::from_slice::<serde_json::Value>(&json).ok())
            .and_then(|mut json| json.get_mut("auths").map(serde_json::Value::take)),
        Some("kubernetes.io/dockercfg") => data(".dockercfg").and_then(|json| serde_json::from_slice(&json).ok()),
        _ => None,
    };
    let Some(serde_json::Value::Object(auths)) = auths else { return Vec::new() };
    let meta = &secret.metadata;
    let of = |text: &Option<String>| text.clone().unwrap_or_default();
    let id = ObjectId { namespace: of(&meta.namespace), name: of(&meta.name), uid: of(&meta.uid) };
    let owned = |credentials| OwnedCredentials::of_secret(credentials, id.clone());
    entries(auths).map(|(key, credentials)| Entry { key, owned: owned(credentials) }).collect()
}

/// Keys and credentials of `auths`.
fn entries(auths: serde_json::Map<String, serde_json::Value>) -> impl Iterator<Item = (String, RegistryCredentials)> {
    auths.into_iter().filter_map(|(place, value)| {
        let entry: AuthEntry = serde_json::from_value(value).ok()?;
        Some((registry_key(&place), entry.credentials()?))
    })
}

fn text(secret: &v1::Secret, key: &str) -> Option<Vec<u8>> {
    secret.string_data.as_ref()?.get(key).map(|text| text.clone().into_bytes())
}

/// The key of an entry: `https://index.docker.io/v1/` is `index.docker.io`, `foo.io/bar` stays as it is.
pub fn registry_key(place: &str) -> String {
    let place = place.strip_prefix("https://").or_else(|| place.strip_prefix("http://")).unwrap_or(place);
    let (host, path) = match place.split_once('/') {
        Some((host, path)) => (host, format!("/{path}")),
        None => (place, String::new()),
    };
    let path = match path.strip_prefix("/v1/").or_else(|| path.strip_prefix("/v2/")) {
        Some(rest) => format!("/{rest}"),
        None => path,
    };
    if path.is_empty() || path == "/" { host.to_owned() } else { format!("{host}{path}") }
}

/// Whether an entry's key is for an image (`registry/repository`): equal ports, as many parts in the host, each part
/// matching as a glob, and a path that the image's path begins with.
fn matches(key: &str, place: &str) -> bool {
    let split = |text: &str| -> (String, Option<String>, String) {
        let (host, path) = text.split_once('/').unwrap_or((text, ""));
        match host.rsplit_once(':') {
            Some((host, port)) => (host.to_owned(), Some(port.to_owned()), path.to_owned()),
            None => (host.to_owned(), None, path.to_owned()),
        }
    };
    let (key_host, key_port, key_path) = split(key);
    let (host, port, path) = split(place);
    if key_port != port || !path.starts_with(&key_path) {
        return false;
    }
    let (key_parts, parts): (Vec<&str>, Vec<&str>) = (key_host.split('.').collect(), host.split('.').collect());
    key_parts.len() == parts.len()
        && key_parts.iter().zip(&parts).all(|(key, part)| glob(key.as_bytes(), part.as_bytes()))
}

/// `*` and `?` as in Go's `path/filepath.Match`; linear, for a pattern comes from a user.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(b'?') => {
                p += 1;
                t += 1;
            }
            Some(byte) if *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                p = at + 1;
                t = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
#[path = "credentials/tests.rs"]
mod tests;
