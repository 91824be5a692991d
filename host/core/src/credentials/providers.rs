//! Exec credential providers: what a CredentialProviderConfig says, and which of them an image is for.
//!
//! As `pkg/credentialprovider/plugin/config.go`: strict, and every problem of a file is told. Reading the files and
//! running the programs is others' work ([`super::exec`] has the words that are exchanged with them).

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;

use crate::duration;

/// Versions of the API that providers speak.
pub const API_VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

/// Versions of the configuration.
const CONFIG_VERSIONS: [&str; 3] =
    ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"];

/// One provider.
#[derive(Clone, PartialEq, Eq)]
pub struct Provider {
    /// Its name, which is that of its program.
    pub name: String,
    /// Images that it is asked about: `host[:port][/path]`, with globs in the parts of the host.
    pub match_images: Vec<String>,
    /// How long an answer that does not say so itself is kept.
    pub default_cache: Duration,
    /// One of [`API_VERSIONS`].
    pub api_version: String,
    /// Arguments of the program.
    pub args: Vec<String>,
    /// Variables of the program's environment, beside the agent's own.
    pub env: Vec<(String, String)>,
    /// What it gets of the pod's ServiceAccount; `None` for nothing.
    pub token: Option<TokenAttributes>,
}

impl std::fmt::Debug for Provider {
    /// Without the variables' values, which may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Provider").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a provider gets of the pod's ServiceAccount (KEP-4412).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenAttributes {
    /// Who the token is for.
    pub audience: String,
    /// Whether an answer is good for that token alone, and not for the whole ServiceAccount.
    pub per_token: bool,
    /// Whether pods without a ServiceAccount are not asked for.
    pub required: bool,
    /// Annotations that the ServiceAccount must have for the provider to be asked; it gets them.
    pub required_annotations: Vec<String>,
    /// Annotations that it gets where there are any.
    pub optional_annotations: Vec<String>,
}

impl Provider {
    /// Whether it is asked about an image, given as registry and repository (`docker.io/library/nginx`).
    pub fn is_for(&self, place: &str) -> bool {
        self.match_images.iter().any(|pattern| super::matches(pattern, place))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Written {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    providers: Vec<WrittenProvider>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WrittenProvider {
    #[serde(default)]
    name: String,
    #[serde(default)]
    match_images: Vec<String>,
    default_cache_duration: Option<String>,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
    token_attributes: Option<WrittenToken>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WrittenToken {
    #[serde(default)]
    service_account_token_audience: String,
    #[serde(default)]
    cache_type: String,
    require_service_account: Option<bool>,
    #[serde(default)]
    required_service_account_annotation_keys: Vec<String>,
    #[serde(default)]
    optional_service_account_annotation_keys: Vec<String>,
}

/// What is wrong, by field.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, field: &str, message: impl std::fmt::Display) {
        self.0.push(format!("{field}: {message}"));
    }

    fn required(&mut self, field: &str, missing: bool) {
        if missing {
            self.add(field, "is required");
        }
    }

    fn one_of(&mut self, field: &str, value: &str, allowed: &[&str]) {
        if value.is_empty() {
            self.add(field, format!("is required: one of {}", allowed.join(", ")));
        } else if !allowed.contains(&value) {
            self.add(field, format!("expected one of {}, got {value:?}", allowed.join(", ")));
        }
    }
}

/// Reads one file, YAML or JSON. Fails with all that is wrong in it.
pub fn parse(text: &str) -> Result<Vec<Provider>, Vec<String>> {
    let written: Written = serde_saphyr::from_str(text).map_err(|error| vec![error.to_string()])?;
    let mut problems = Problems::default();
    problems.one_of("kind", &written.kind, &["CredentialProviderConfig"]);
    problems.one_of("apiVersion", &written.api_version, &CONFIG_VERSIONS);
    if written.providers.is_empty() {
        problems.add("providers", "at least one is required");
    }
    let providers: Vec<Provider> = written
        .providers
        .into_iter()
        .enumerate()
        .map(|(index, provider)| read(&format!("providers[{index}]"), provider, &mut problems))
        .collect();
    if let Some(name) = twice(providers.iter().map(|provider| provider.name.as_str())) {
        problems.add("providers", format!("two are named {name:?}"));
    }
    if problems.0.is_empty() { Ok(providers) } else { Err(problems.0) }
}

/// The providers of several files as one list. The error names one that two files have.
pub fn join(files: Vec<Vec<Provider>>) -> Result<Vec<Provider>, String> {
    let all: Vec<Provider> = files.into_iter().flatten().collect();
    match twice(all.iter().map(|provider| provider.name.as_str())) {
        Some(name) => Err(format!("duplicate provider name {name:?} found in configuration file(s)")),
        None => Ok(all),
    }
}

fn twice<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = BTreeSet::new();
    names.into_iter().find(|name| !seen.insert(*name))
}

fn read(field: &str, written: WrittenProvider, problems: &mut Problems) -> Provider {
    let at = |name: &str| format!("{field}.{name}");
    let name = written.name;
    problems.required(&at("name"), name.is_empty());
    if name.contains(['/', ' ']) || name == "." || name == ".." {
        problems.add(&at("name"), format!("{name:?} is not the name of a program: no '/', no spaces, no '.' or '..'"));
    }
    problems.one_of(&at("apiVersion"), &written.api_version, &API_VERSIONS);
    if written.match_images.is_empty() {
        problems.add(&at("matchImages"), "at least one is required");
    }
    for pattern in &written.match_images {
        if let Err(message) = check_pattern(pattern) {
            problems.add(&at("matchImages"), format!("{pattern:?}: {message}"));
        }
    }
    let default_cache = match written.default_cache_duration.as_deref().map(duration::parse) {
        Some(Ok(time)) => time,
        Some(Err(message)) => {
            problems.add(&at("defaultCacheDuration"), message);
            Duration::ZERO
        }
        None => {
            problems.required(&at("defaultCacheDuration"), true);
            Duration::ZERO
        }
    };
    let token =
        written.token_attributes.map(|token| read_token(&at("tokenAttributes"), token, &written.api_version, problems));
    Provider {
        name,
        match_images: written.match_images,
        default_cache,
        api_version: written.api_version,
        args: written.args,
        env: written.env.into_iter().map(|variable| (variable.name, variable.value)).collect(),
        token,
    }
}

fn read_token(field: &str, written: WrittenToken, api_version: &str, problems: &mut Problems) -> TokenAttributes {
    let at = |name: &str| format!("{field}.{name}");
    let audience = written.service_account_token_audience;
    problems.required(&at("serviceAccountTokenAudience"), audience.is_empty());
    problems.required(&at("requireServiceAccount"), written.require_service_account.is_none());
    problems.one_of(&at("cacheType"), &written.cache_type, &["ServiceAccount", "Token"]);
    if api_version != API_VERSIONS[0] {
        problems.add(field, format!("is only supported with apiVersion {}", API_VERSIONS[0]));
    }
    let (required, optional) =
        (written.required_service_account_annotation_keys, written.optional_service_account_annotation_keys);
    if written.require_service_account == Some(false) && !required.is_empty() {
        let message = "requireServiceAccount cannot be false when there are any";
        problems.add(&at("requiredServiceAccountAnnotationKeys"), message);
    }
    let lists =
        [("requiredServiceAccountAnnotationKeys", &required), ("optionalServiceAccountAnnotationKeys", &optional)];
    for (name, keys) in lists {
        for key in keys {
            if let Some(message) = crate::validate::qualified_name(&key.to_lowercase()) {
                problems.add(&at(name), format!("{key:?}: {message}"));
            }
        }
    }
    if let Some(key) = twice(required.iter().chain(&optional).map(String::as_str)) {
        problems.add(field, format!("annotation key {key:?} is named twice"));
    }
    TokenAttributes {
        audience,
        per_token: written.cache_type == "Token",
        required: written.require_service_account.unwrap_or(true),
        required_annotations: required,
        optional_annotations: optional,
    }
}

/// What Go's `url.Parse` would refuse after `https://`.
fn check_pattern(pattern: &str) -> Result<(), String> {
    if pattern.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if let Some(sign) = pattern.chars().find(|sign| sign.is_whitespace() || sign.is_control()) {
        return Err(format!("must not hold {sign:?}"));
    }
    let host = pattern.split('/').next().unwrap_or_default();
    match host.rsplit_once(':') {
        Some((_, port)) if !port.bytes().all(|byte| byte.is_ascii_digit()) && !port.ends_with(']') => {
            Err(format!("{port:?} is not a port"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
