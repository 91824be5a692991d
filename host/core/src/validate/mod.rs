//! What the API server would refuse in a pod, ConfigMap or Secret, as far as it would hurt here.
//!
//! As `pkg/apis/core/validation/validation.go`, in its words, of objects with defaults applied. All problems are
//! reported together. What passes is safe to turn into names and paths on the node. Must not know what this node
//! can do ([`crate::admit`], [`crate::support`]).

mod affinity;
mod annotations;
mod containers;
mod names;
mod pod;
mod probes;
mod resources;
mod security;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub(crate) use names::{ip, qualified_name};
pub use volumes::volume_sources;

/// The API server takes no larger set of annotations.
const MAX_ANNOTATIONS_BYTES: usize = 256 << 10;
/// The API server takes no larger ConfigMap or Secret.
const MAX_DATA_BYTES: usize = 1 << 20;

/// A field with a value that it must not have, or should not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The field: `spec.containers[0].ports[1].hostPort`.
    pub path: String,
    /// What is wrong with it, in Kubernetes' words.
    pub message: String,
    /// Whether the object is taken all the same: the API server refuses it, and here it runs and means less than is written.
    pub warning: bool,
}

impl FieldError {
    /// An error of that field.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        FieldError { path: path.into(), message: message.into(), warning: false }
    }

    /// A warning of that field.
    pub fn warning(path: impl Into<String>, message: impl Into<String>) -> Self {
        FieldError { warning: true, ..Self::new(path, message) }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// All that is wrong with a pod, warnings among it.
pub fn validate(pod: &v1::Pod) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.metadata(&pod.metadata);
    match &pod.spec {
        None => errors.required("spec.containers", ""),
        Some(spec) => {
            pod::check(spec, &mut errors);
            let annotations = pod.metadata.annotations.iter();
            annotations.for_each(|all| errors.warnings(|errors| annotations::check(all, spec, errors)));
        }
    }
    errors.0
}

/// All that is wrong with a ConfigMap.
pub fn validate_config_map(object: &v1::ConfigMap) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.metadata(&object.metadata);
    let texts = object.data.iter().flatten().map(|(key, text)| ("data", key, text.len()));
    let blobs = object.binary_data.iter().flatten().map(|(key, bytes)| ("binaryData", key, bytes.0.len()));
    errors.keys(texts.chain(blobs));
    errors.0
}

/// All that is wrong with a Secret, its `stringData` already in `data`.
pub fn validate_secret(object: &v1::Secret) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.metadata(&object.metadata);
    errors.keys(object.data.iter().flatten().map(|(key, bytes)| ("data", key, bytes.0.len())));
    let has = |key: &str| object.data.as_ref().is_some_and(|data| data.contains_key(key));
    let needed: &[&str] = match object.type_.as_deref() {
        Some("kubernetes.io/dockercfg") => &[".dockercfg"],
        Some("kubernetes.io/dockerconfigjson") => &[".dockerconfigjson"],
        Some("kubernetes.io/tls") => &["tls.crt", "tls.key"],
        Some("kubernetes.io/ssh-auth") => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed.iter().filter(|key| !has(key)) {
        errors.required(format!("data[{key}]"), "");
    }
    for key in needed.iter().filter(|key| key.starts_with(".docker") && has(key)) {
        let bytes = object.data.as_ref().and_then(|data| data.get(*key)).map(|bytes| bytes.0.as_slice());
        if serde_json::from_slice::<serde_json::Value>(bytes.unwrap_or_default()).is_err() {
            // The content is secret: it is not repeated.
            errors.push(
                format!("data[{key}]"),
                "Invalid value: \"<secret contents redacted>\": expected JSON".to_owned(),
            );
        }
    }
    errors.0
}

/// Collects errors, in the order of the fields.
#[derive(Default)]
struct Errors(Vec<FieldError>);

impl Errors {
    fn push(&mut self, path: impl Into<String>, message: String) {
        self.0.push(FieldError::new(path, message));
    }

    /// What the check finds are warnings.
    fn warnings(&mut self, check: impl FnOnce(&mut Errors)) {
        let before = self.0.len();
        check(self);
        self.0.iter_mut().skip(before).for_each(|error| error.warning = true);
    }

    fn required(&mut self, path: impl Into<String>, detail: &str) {
        let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        self.push(path, format!("Required value{detail}"));
    }

    fn invalid(&mut self, path: impl Into<String>, value: impl fmt::Debug, detail: impl fmt::Display) {
        let mut value = format!("{value:?}");
        if value.chars().count() > 100 {
            value = value.chars().take(100).chain("…".chars()).collect();
        }
        self.push(path, format!("Invalid value: {value}: {detail}"));
    }

    fn duplicate(&mut self, path: impl Into<String>, value: impl fmt::Debug) {
        self.push(path, format!("Duplicate value: {value:?}"));
    }

    fn forbidden(&mut self, path: impl Into<String>, detail: impl fmt::Display) {
        self.push(path, format!("Forbidden: {detail}"));
    }

    fn not_found(&mut self, path: impl Into<String>, value: impl fmt::Debug) {
        self.push(path, format!("Not found: {value:?}"));
    }

    /// One of a fixed set of words.
    fn one_of(&mut self, path: impl Into<String>, value: &str, words: &[&str]) {
        if !words.contains(&value) {
            let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
            self.push(path, format!("Unsupported value: {value:?}: supported values: {}", words.join(", ")));
        }
    }

    /// A value that has a form, checked by one of [`names`].
    fn form(&mut self, path: impl Into<String>, value: &str, form: fn(&str) -> Option<String>) {
        if let Some(detail) = form(value) {
            self.invalid(path, value, detail);
        }
    }

    /// A value that must be there and have a form.
    fn required_form(&mut self, path: impl Into<String>, value: &str, form: fn(&str) -> Option<String>) {
        if value.is_empty() { self.required(path, "") } else { self.form(path, value, form) }
    }

    fn non_negative(&mut self, path: impl Into<String>, value: Option<i64>) {
        if let Some(value) = value.filter(|value| *value < 0) {
            self.invalid(path, value, "must be greater than or equal to 0");
        }
    }

    /// Whether the value is the first of its kind; an error if it is not.
    fn unique<'a>(&mut self, path: impl Into<String>, value: &'a str, seen: &mut BTreeSet<&'a str>) {
        if !seen.insert(value) {
            self.duplicate(path, value);
        }
    }

    fn metadata(&mut self, metadata: &ObjectMeta) {
        let name = metadata.name.as_deref().unwrap_or_default();
        if name.is_empty() {
            self.required("metadata.name", "name or generateName is required");
        } else {
            self.form("metadata.name", name, names::dns_subdomain);
        }
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        self.required_form("metadata.namespace", namespace, names::dns_label);
        if let Some(uid) = metadata.uid.as_deref().filter(|uid| !uid.is_empty()) {
            self.form("metadata.uid", uid, names::uid);
        }
        for (key, value) in metadata.labels.iter().flatten() {
            self.form(format!("metadata.labels[{key}]"), key, names::qualified_name);
            self.form(format!("metadata.labels[{key}]"), value, names::label_value);
        }
        self.annotations(metadata.annotations.as_ref());
    }

    fn annotations(&mut self, annotations: Option<&BTreeMap<String, String>>) {
        let mut size = 0;
        for (key, value) in annotations.into_iter().flatten() {
            // Their keys may have capitals.
            self.form(format!("metadata.annotations[{key}]"), &key.to_lowercase(), names::qualified_name);
            size += key.len() + value.len();
        }
        if size > MAX_ANNOTATIONS_BYTES {
            self.push("metadata.annotations", format!("Too long: may not be more than {MAX_ANNOTATIONS_BYTES} bytes"));
        }
    }

    fn keys<'a>(&mut self, entries: impl Iterator<Item = (&'static str, &'a String, usize)>) {
        let mut size = 0;
        let mut seen = BTreeSet::new();
        for (field, key, bytes) in entries {
            let path = format!("{field}[{key}]");
            self.form(path.clone(), key, names::config_key);
            if !seen.insert(key) {
                self.invalid(path, key, "duplicate of key present in data");
            }
            size += bytes;
        }
        if size > MAX_DATA_BYTES {
            self.push("data", format!("Too long: may not be more than {MAX_DATA_BYTES} bytes"));
        }
    }
}

#[cfg(test)]
mod tests;
