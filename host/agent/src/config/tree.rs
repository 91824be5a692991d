//! YAML as a tree in which every value knows its line: what strict reading of a configuration file starts from.
//!
//! Knows nothing of any field; [`super::kubelet`] does.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Options, Spanned};

/// The largest configuration file that is read, in bytes.
pub(crate) const SIZE_LIMIT: usize = 1 << 20;

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    /// The value.
    pub(crate) value: Value,
    /// Line, from 1; 0 where unknown.
    pub(crate) line: u64,
}

/// A YAML value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number that is not whole, or too large.
    Float(f64),
    /// Text.
    String(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the file.
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// The key.
    pub(crate) key: String,
    /// The key's line.
    pub(crate) line: u64,
    /// The value.
    pub(crate) node: Node,
}

impl Value {
    /// Whether it says nothing: Kubernetes' tools write such values for fields that are not set (`0s`, `""`, `{}`).
    pub(crate) fn is_unset(&self) -> bool {
        match self {
            Value::Null | Value::Int(0) => true,
            Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
            Value::List(items) => items.is_empty(),
            Value::Map(entries) => entries.iter().all(|entry| entry.node.value.is_unset()),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => false,
        }
    }

    /// What it is, for messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            Value::String(text) => format!("{text:?}"),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// Why a file is no YAML.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct SyntaxError {
    /// Line, where known.
    pub(crate) line: Option<u64>,
    /// What is wrong.
    pub(crate) message: String,
}

/// Reads one YAML (or JSON) document.
pub(crate) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let mut options = Options::default();
    options.legacy_octal_numbers = true;
    options.with_snippet = false;
    options.duplicate_keys = DuplicateKeyPolicy::Error;
    serde_saphyr::from_str_with_options::<Node>(text, options).map_err(|error| {
        let line = error.location().map(|location| location.line()).filter(|line| *line > 0);
        let message = error.to_string();
        // The place is told apart from the message, in one way for all problems.
        let short = message.split(" at line ").next().and_then(|message| message.split(", set DuplicateKey").next());
        let message = short.unwrap_or(&message).lines().next().unwrap_or_default();
        SyntaxError { line, message: message.trim_end_matches([':', ',']).to_owned() }
    })
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Node { value: spanned.value, line: spanned.referenced.line() })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let node = access.next_value()?;
            entries.push(Entry { key: key.value, line: key.referenced.line(), node });
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn values_know_their_lines() {
        let node = parse("a: 1\nb:\n  c: [x, null]\n  d: 1.5\n").unwrap();
        let Value::Map(entries) = node.value else { panic!("a mapping") };
        assert_eq!((entries[0].key.as_str(), entries[0].line, &entries[0].node.value), ("a", 1, &Value::Int(1)));
        let Value::Map(inner) = &entries[1].node.value else { panic!("a mapping") };
        assert_eq!((inner[1].key.as_str(), inner[1].line, &inner[1].node.value), ("d", 4, &Value::Float(1.5)));
        let Value::List(items) = &inner[0].node.value else { panic!("a list") };
        assert_eq!(items[1].value, Value::Null);
        assert_eq!(items[0].line, 3);
    }

    #[test]
    fn duplicate_keys_and_bad_syntax_name_their_line() {
        assert_eq!(parse("a: 1\na: 2\n").unwrap_err().line, Some(2));
        assert!(parse("a: [1\nb: 2\n").unwrap_err().line.is_some());
    }

    #[test]
    fn what_tools_write_for_unset_fields_says_nothing() {
        let node = parse("{a: 0s, b: {c: 0, d: ''}, e: []}").unwrap();
        assert!(node.value.is_unset());
        assert!(!parse("a: false").unwrap().value.is_unset());
    }
}
