//! A document as written: values with the places that they stand at.
//!
//! YAML and JSON both end up in here, manifests and configuration files alike, so that whatever is found wrong later
//! can name a line. Must not know what any field means.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

/// Line and column, both from 1; 0 where unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct At {
    /// Line.
    pub line: u64,
    /// Column.
    pub column: u64,
}

/// A value and where it stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Where it stands.
    pub at: At,
    /// What it is.
    pub value: Value,
}

/// What a document can hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// A number that is not whole, or too large; finite.
    Float(f64),
    /// Text.
    String(String),
    /// A list.
    Seq(Vec<Node>),
    /// A map, in the order of the document; no key comes twice.
    Map(Vec<Entry>),
}

/// One key of a map with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub at: At,
    /// The value.
    pub node: Node,
}

impl Node {
    /// The value of that key, if this is a map that has it and it is not null.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.node).filter(|node| node.value != Value::Null)
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|entry| entry.key == key)
    }

    /// The text, if this is a string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Where the field of that path (`spec.containers[0].image`, `metadata.labels[a.b/c]`) stands, or the nearest
    /// thing around it.
    pub fn find(&self, path: &str) -> At {
        let mut node = self;
        let mut at = self.at;
        for segment in segments(path) {
            let next = match &node.value {
                Value::Map(_) => node.entry(segment).map(|entry| (entry.at, &entry.node)),
                Value::Seq(items) => {
                    segment.parse().ok().and_then(|index: usize| items.get(index)).map(|item| (item.at, item))
                }
                _ => None,
            };
            let Some((found, inner)) = next else { break };
            at = found;
            node = inner;
        }
        at
    }

    /// What kind of value it is, in words.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::String(_) => "a string",
            Value::Seq(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    /// What it is, in words, for "found …".
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Bool(value) => format!("the boolean {value}"),
            Value::Int(value) => format!("the number {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::String(text) => format!("the string {}", quoted(text)),
            Value::Null | Value::Seq(_) | Value::Map(_) => self.kind().to_owned(),
        }
    }

    /// JSON with sorted keys, without nulls and without white space: equal for equal documents, however written.
    pub fn canonical_json(&self, out: &mut String) {
        match &self.value {
            Value::Null => out.push_str("null"),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Value::Int(value) => out.push_str(&value.to_string()),
            Value::Float(value) => out.push_str(&number(*value)),
            Value::String(text) => push_string(text, out),
            Value::Seq(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    item.canonical_json(out);
                }
                out.push(']');
            }
            Value::Map(entries) => {
                let mut sorted: Vec<&Entry> = entries.iter().filter(|entry| entry.node.value != Value::Null).collect();
                sorted.sort_by(|a, b| a.key.cmp(&b.key));
                out.push('{');
                for (index, entry) in sorted.into_iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    push_string(&entry.key, out);
                    out.push(':');
                    entry.node.canonical_json(out);
                }
                out.push('}');
            }
        }
    }
}

fn push_string(text: &str, out: &mut String) {
    // Escapes of serde_json are fixed by its documentation; nothing else of it is relied on here.
    out.push_str(&serde_json::to_string(text).unwrap_or_default());
}

/// A float as text: without a fraction when it has none, so that `1.0` and `1` are the same.
pub fn number(value: f64) -> String {
    format!("{value}")
}

/// At most the first 60 characters, in quotes.
pub fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

/// The parts of a path: `a.b[0][x.y]` → a, b, 0, x.y.
fn segments(path: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let end = inner.find(']').unwrap_or(inner.len());
            parts.push(&inner[..end]);
            rest = inner.get(end + 1..).unwrap_or("");
        } else {
            rest = rest.strip_prefix('.').unwrap_or(rest);
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            if end > 0 {
                parts.push(&rest[..end]);
            }
            rest = &rest[end..];
        }
    }
    parts
}

impl From<Location> for At {
    fn from(location: Location) -> Self {
        At { line: location.line(), column: location.column() }
    }
}

/// A document in whose maps a key may come more than once: all of its entries are there.
#[derive(Clone, Debug, PartialEq)]
pub struct Repeating(pub Node);

impl<'de> Deserialize<'de> for Repeating {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::<Read<true>>::deserialize(deserializer).map(|read| Repeating(read.into()))
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::<Read<false>>::deserialize(deserializer).map(Node::from)
    }
}

/// A value on its way into a document whose keys may `REPEAT`.
struct Read<const REPEAT: bool>(Value);

impl<const REPEAT: bool> From<Spanned<Read<REPEAT>>> for Node {
    fn from(spanned: Spanned<Read<REPEAT>>) -> Self {
        Node { at: spanned.referenced.into(), value: spanned.value.0 }
    }
}

impl<'de, const REPEAT: bool> Deserialize<'de> for Read<REPEAT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor::<REPEAT>).map(Read)
    }
}

struct ValueVisitor<const REPEAT: bool>;

impl<'de, const REPEAT: bool> Visitor<'de> for ValueVisitor<REPEAT> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        if value.is_finite() {
            Ok(Value::Float(value))
        } else {
            Err(E::custom("expected a finite number; quote it if it is meant to be a string"))
        }
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Read<REPEAT>>>()? {
            items.push(item.into());
        }
        Ok(Value::Seq(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some(key) = map.next_key::<Node>()? {
            let at = key.at;
            let key = match key.value {
                Value::String(text) => text,
                Value::Int(value) => value.to_string(),
                Value::Float(value) => number(value),
                Value::Bool(value) => value.to_string(),
                Value::Null | Value::Seq(_) | Value::Map(_) => {
                    return Err(de::Error::custom("expected a string as key of a map"));
                }
            };
            if !REPEAT && !seen.insert(key.clone()) {
                return Err(de::Error::custom(format!("duplicate key {}", quoted(&key))));
            }
            entries.push(Entry { key, at, node: map.next_value::<Spanned<Read<REPEAT>>>()?.into() });
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart() {
        assert_eq!(segments("spec.containers[0].ports[12]"), ["spec", "containers", "0", "ports", "12"]);
        assert_eq!(segments("metadata.labels[a.b/c]"), ["metadata", "labels", "a.b/c"]);
        assert_eq!(segments("[0]["), ["0", ""]);
        assert!(segments("").is_empty());
    }
}
