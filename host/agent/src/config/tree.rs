//! YAML as a tree in which every value knows its line: what strict reading of a configuration file starts from.
//!
//! Knows nothing of any field; [`super::kubelet`] does.

use longshore_core::document::{Node, Value};
use serde_saphyr::{DuplicateKeyPolicy, Options};

/// The largest configuration file that is read, in bytes.
pub(crate) const SIZE_LIMIT: usize = 1 << 20;

/// Whether a value says nothing: Kubernetes' tools write such values for fields that are not set (`0s`, `""`, `{}`).
pub(crate) fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null | Value::Int(0) => true,
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Seq(items) => items.is_empty(),
        Value::Map(entries) => entries.iter().all(|entry| is_unset(&entry.node.value)),
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => false,
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
        let advice = [" at line ", ", set DuplicateKey", "; use from_str"];
        let message = advice.into_iter().fold(message.as_str(), |text, word| text.split(word).next().unwrap_or(text));
        let message = message.lines().next().unwrap_or_default();
        SyntaxError { line, message: message.trim_end_matches([':', ',']).to_owned() }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn values_know_their_lines() {
        let node = parse("a: 1\nb:\n  c: [x, null]\n  d: 1.5\n").unwrap();
        let Value::Map(entries) = node.value else { panic!("a mapping") };
        assert_eq!((entries[0].key.as_str(), entries[0].at.line, &entries[0].node.value), ("a", 1, &Value::Int(1)));
        let Value::Map(inner) = &entries[1].node.value else { panic!("a mapping") };
        assert_eq!((inner[1].key.as_str(), inner[1].at.line, &inner[1].node.value), ("d", 4, &Value::Float(1.5)));
        let Value::Seq(items) = &inner[0].node.value else { panic!("a list") };
        assert_eq!(items[1].value, Value::Null);
        assert_eq!(items[0].at.line, 3);
    }

    #[test]
    fn duplicate_keys_and_bad_syntax_name_their_line() {
        assert_eq!(parse("a: 1\na: 2\n").unwrap_err().line, Some(2));
        assert!(parse("a: [1\nb: 2\n").unwrap_err().line.is_some());
        let several = parse("a: 1\n---\nb: 2\n").unwrap_err();
        assert_eq!(several.message, "multiple YAML documents detected");
    }

    #[test]
    fn what_tools_write_for_unset_fields_says_nothing() {
        let node = parse("{a: 0s, b: {c: 0, d: ''}, e: []}").unwrap();
        assert!(is_unset(&node.value));
        assert!(!is_unset(&parse("a: false").unwrap().value));
    }
}
