//! From the bytes of a manifest to pods: reading, checking, and what the kubelet adds to a pod of its own.
//!
//! As `pkg/kubelet/config/{common,file,http}.go`, and beyond it: several documents in a file, lists, and the
//! ConfigMaps and Secrets that pods use. Every problem names a line and a field. Must not do I/O: the bytes
//! come in as an argument.

mod api;
mod json;
mod pod;
mod references;
mod text;
mod typed;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1;

use crate::pod::{Pod, Source};
use crate::ports::sources::SourceProblem;
use crate::validate::{self, FieldError};

pub use self::api::from_api;
use crate::document::{At, Node, Value};
use serde::de::DeserializeOwned;

/// Problems told of one manifest; more are counted.
const MAX_PROBLEMS: usize = 50;

/// Bytes of a problem's message.
const MAX_MESSAGE: usize = 1024;

/// Whose manifest it is and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The source that read it.
    pub source: Source,
    /// Name of this node: part of the pods' names and UIDs.
    pub node_name: String,
    /// Absolute path of the file, or the URL.
    pub place: String,
}

/// What a manifest holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// Documents that hold anything; none is not the same as an empty list.
    pub documents: usize,
    /// Pods without errors, defaults applied.
    pub pods: Vec<Pod>,
    /// ConfigMaps without errors.
    pub config_maps: Vec<v1::ConfigMap>,
    /// Secrets without errors; `stringData` is moved into `data`.
    pub secrets: Vec<v1::Secret>,
    /// All that is wrong, in the order of the manifest. What has an error is in none of the lists above.
    pub problems: Vec<SourceProblem>,
}

impl Parsed {
    /// Whether anything is wrong that is more than a warning.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| !problem.warning)
    }
}

/// Reads a manifest. Never fails as a whole: whatever is wrong is among the problems.
pub fn parse(bytes: &[u8], origin: &Origin) -> Parsed {
    let mut reader =
        Reader { origin, parsed: Parsed::default(), left_out: 0, left_out_errors: false, seen: BTreeSet::new() };
    match text::documents(bytes) {
        Ok(documents) => {
            reader.parsed.documents = documents.len();
            documents.iter().for_each(|document| reader.document(document));
        }
        Err(error) => reader.problem(error.at, error.message, false),
    }
    reader.finish()
}

struct Reader<'a> {
    origin: &'a Origin,
    parsed: Parsed,
    left_out: usize,
    /// Whether one of these is more than a warning.
    left_out_errors: bool,
    /// Kind, namespace and name of what was read.
    seen: BTreeSet<(&'static str, String, String)>,
}

/// An object of a document: the document itself, or an item of a list in it.
struct Item<'a> {
    node: &'a Node,
    /// Path of the object in its document with the dot after it, empty for the document itself.
    prefix: String,
    kind: &'a str,
}

impl Reader<'_> {
    fn problem(&mut self, at: At, mut message: String, warning: bool) {
        if self.parsed.problems.len() >= MAX_PROBLEMS {
            self.left_out += 1;
            self.left_out_errors |= !warning;
            return;
        }
        // What was found is said in it, however long that is.
        if message.len() > MAX_MESSAGE {
            message.truncate(message.floor_char_boundary(MAX_MESSAGE));
            message.push('…');
        }
        let place = match (at.line, at.column) {
            (0, _) => self.origin.place.clone(),
            (line, 0) => format!("{}:{line}", self.origin.place),
            (line, column) => format!("{}:{line}:{column}", self.origin.place),
        };
        self.parsed.problems.push(SourceProblem { place, message, warning });
    }

    fn finish(mut self) -> Parsed {
        if self.left_out > 0 {
            let message = format!("{} more problems are not shown", self.left_out);
            let warning = !self.left_out_errors;
            self.parsed.problems.push(SourceProblem { place: self.origin.place.clone(), message, warning });
        }
        self.parsed
    }

    fn document(&mut self, document: &Node) {
        if !matches!(document.value, Value::Map(_)) {
            let message = format!("expected an object with apiVersion and kind, found {}", document.describe());
            return self.problem(document.at, message, false);
        }
        let Some(kind) = self.kind(document, "") else { return };
        let item_kind = match kind {
            "List" => "",
            "PodList" => "Pod",
            "ConfigMapList" => "ConfigMap",
            "SecretList" => "Secret",
            _ => return self.object(&Item { node: document, prefix: String::new(), kind }),
        };
        let items = match document.get("items").map(|items| (&items.value, items)) {
            Some((Value::Seq(items), _)) => items,
            Some((_, other)) => {
                return self.problem(other.at, format!("items: expected a list, found {}", other.describe()), false);
            }
            None => return,
        };
        for (index, node) in items.iter().enumerate() {
            let prefix = format!("items[{index}].");
            if !matches!(node.value, Value::Map(_)) {
                let message = format!("items[{index}]: expected an object, found {}", node.describe());
                self.problem(node.at, message, false);
                continue;
            }
            // Items of a typed list need not repeat their kind.
            let kind = if item_kind.is_empty() || node.get("kind").is_some() {
                self.kind(node, &prefix)
            } else {
                Some(item_kind)
            };
            if let Some(kind) = kind {
                self.object(&Item { node, prefix, kind });
            }
        }
    }

    /// The kind of an object of v1, or nothing after saying why not.
    fn kind<'a>(&mut self, node: &'a Node, prefix: &str) -> Option<&'a str> {
        let kind = match node.get("kind") {
            None => {
                self.problem(node.at, format!("{prefix}kind: Required value: expected {}", kinds()), false);
                return None;
            }
            Some(kind) => match kind.as_str() {
                Some(text) => text,
                None => {
                    let message = format!("{prefix}kind: expected a string, found {}", kind.describe());
                    self.problem(node.find("kind"), message, false);
                    return None;
                }
            },
        };
        match node.get("apiVersion").map(|version| (version.as_str(), version)) {
            Some((Some("v1"), _)) => Some(kind),
            None => {
                let message = format!("{prefix}apiVersion: Required value: expected \"v1\"");
                self.problem(node.at, message, false);
                None
            }
            Some((_, version)) => {
                let message = format!(
                    "{prefix}apiVersion: {} {} is not read here: expected {} of apiVersion \"v1\"",
                    version.as_str().unwrap_or_default(),
                    kind,
                    kinds()
                );
                self.problem(node.find("apiVersion"), message, false);
                None
            }
        }
    }

    fn object(&mut self, item: &Item<'_>) {
        match item.kind {
            "Pod" => self.pod(item),
            "ConfigMap" => self.config_map(item),
            "Secret" => self.secret(item),
            other => {
                let message = format!("{}kind: {other} is not read here: expected {}", item.prefix, kinds());
                self.problem(item.node.find("kind"), message, false);
            }
        }
    }

    /// The typed object, after telling of fields that it does not have; nothing if it does not fit.
    fn typed<T: DeserializeOwned>(&mut self, item: &Item<'_>, node: &Node) -> Option<T> {
        let (object, unknown) = typed::read::<T>(node, item.kind == "Secret");
        for field in unknown {
            let hint = field.near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
            let message = format!("{}: unknown field{hint}", self.subject(item, &field.path));
            self.problem(field.at, message, true);
        }
        match object {
            Ok(object) => Some(object),
            Err(error) => {
                let message = format!("{}: {}", self.subject(item, &error.path), error.message);
                self.problem(error.at, message, false);
                None
            }
        }
    }

    /// `Pod web: spec.containers[0].image`.
    fn subject(&self, item: &Item<'_>, path: &str) -> String {
        let name = item.node.get("metadata").and_then(|metadata| metadata.get("name")).and_then(Node::as_str);
        let name = name.map(|name| name.chars().take(63).collect::<String>());
        match name {
            Some(name) => format!("{} {name}: {}{path}", item.kind, item.prefix),
            None => format!("{}: {}{path}", item.kind, item.prefix),
        }
    }

    fn field_errors(&mut self, item: &Item<'_>, errors: Vec<FieldError>) {
        let mut placed: Vec<(At, FieldError)> =
            errors.into_iter().map(|error| (item.node.find(&error.path), error)).collect();
        placed.sort_by_key(|(at, _)| (at.line, at.column));
        for (at, error) in placed {
            let message = format!("{}: {}", self.subject(item, &error.path), error.message);
            self.problem(at, message, error.warning);
        }
    }

    /// Whether no object of that kind and name was in this manifest before.
    fn is_new(&mut self, item: &Item<'_>, kind: &'static str, namespace: &str, name: &str) -> bool {
        let new = self.seen.insert((kind, namespace.to_owned(), name.to_owned()));
        if !new {
            let message = format!(
                "{}: Duplicate value: {name:?}: this manifest has another {kind} of that name in namespace {namespace}",
                self.subject(item, "metadata.name")
            );
            self.problem(item.node.find("metadata.name"), message, false);
        }
        new
    }

    fn pod(&mut self, item: &Item<'_>) {
        let spec = pod::without_status(item.node);
        let Some(written) = self.typed::<v1::Pod>(item, &spec) else { return };
        match pod::build(&spec, written, self.origin) {
            Ok((pod, warnings)) => {
                self.field_errors(item, warnings);
                if self.is_new(item, "Pod", &pod.id.namespace, &pod.id.name) {
                    self.parsed.pods.push(pod);
                }
            }
            Err(errors) => self.field_errors(item, errors),
        }
    }

    fn config_map(&mut self, item: &Item<'_>) {
        let Some(mut object) = self.typed::<v1::ConfigMap>(item, item.node) else { return };
        let namespace = object.metadata.namespace.get_or_insert_with(|| "default".to_owned()).clone();
        let errors = validate::validate_config_map(&object);
        if !errors.is_empty() {
            return self.field_errors(item, errors);
        }
        let name = object.metadata.name.clone().unwrap_or_default();
        if self.is_new(item, "ConfigMap", &namespace, &name) {
            self.parsed.config_maps.push(object);
        }
    }

    fn secret(&mut self, item: &Item<'_>) {
        let Some(mut object) = self.typed::<v1::Secret>(item, item.node) else { return };
        let namespace = object.metadata.namespace.get_or_insert_with(|| "default".to_owned()).clone();
        for (key, text) in object.string_data.take().into_iter().flatten() {
            let bytes = k8s_openapi::ByteString(text.into_bytes());
            object.data.get_or_insert_default().insert(key, bytes);
        }
        object.type_.get_or_insert_with(|| "Opaque".to_owned());
        let errors = validate::validate_secret(&object);
        if !errors.is_empty() {
            return self.field_errors(item, errors);
        }
        let name = object.metadata.name.clone().unwrap_or_default();
        if self.is_new(item, "Secret", &namespace, &name) {
            self.parsed.secrets.push(object);
        }
    }
}

fn kinds() -> &'static str {
    "Pod, ConfigMap, Secret, or a List of them"
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
