//! YAML as a tree in which every value knows its line: what strict reading of a configuration file starts from.
//!
//! Knows nothing of any field; [`super::kubelet`] does.

use std::collections::{BTreeMap, BTreeSet};

use longshore_core::document::{Node, Repeating, Value};
use serde::Deserialize as _;
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

/// The document of a file.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// What it holds; no key of a map comes twice.
    pub(crate) node: Node,
    /// What the kubelet makes of it without refusing it, with the line where known.
    pub(crate) remarks: Vec<(Option<u64>, String)>,
}

/// Reads the first YAML (or JSON) document of a text. As for the kubelet's v1beta1 (`pkg/kubelet/kubeletconfig/util/codec`) the
/// last of several equal keys counts, and what follows the document is not looked at.
pub(crate) fn parse(text: &str) -> Result<Parsed, SyntaxError> {
    let mut options = Options::default();
    options.legacy_octal_numbers = true;
    options.with_snippet = false;
    options.duplicate_keys = DuplicateKeyPolicy::PassThrough;
    let mut first = None;
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        first = Some(Repeating::deserialize(deserializer)?);
        Ok(())
    });
    let mut remarks = Vec::new();
    match (first, read) {
        (Some(Repeating(mut node)), read) => {
            keep_last(&mut node, &mut remarks);
            if let Err(error) = read {
                remarks.push((
                    line(&error),
                    "only the first document of the file is read, not what follows it".to_owned(),
                ));
            }
            Ok(Parsed { node, remarks })
        }
        (None, Err(error)) => Err(told(&error)),
        (None, Ok(())) => Err(SyntaxError { line: None, message: "holds no document".to_owned() }),
    }
}

/// Leaves the last of a map's entries of the same key, at every level.
fn keep_last(node: &mut Node, remarks: &mut Vec<(Option<u64>, String)>) {
    match &mut node.value {
        Value::Map(entries) => {
            let mut last: BTreeMap<String, usize> = BTreeMap::new();
            for (index, entry) in entries.iter().enumerate() {
                last.insert(entry.key.clone(), index);
            }
            let all = std::mem::take(entries).into_iter().enumerate();
            let mut repeated = BTreeSet::new();
            for (index, entry) in all {
                if last.get(&entry.key) != Some(&index) {
                    repeated.insert(entry.key);
                    continue;
                }
                if repeated.contains(&entry.key) {
                    remarks.push((
                        Some(entry.at.line),
                        format!("{} stands there more than once; the last one counts", entry.key),
                    ));
                }
                entries.push(entry);
            }
            entries.iter_mut().for_each(|entry| keep_last(&mut entry.node, remarks));
        }
        Value::Seq(items) => items.iter_mut().for_each(|item| keep_last(item, remarks)),
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::String(_) => {}
    }
}

fn line(error: &serde_saphyr::Error) -> Option<u64> {
    error.location().map(|location| location.line()).filter(|line| *line > 0)
}

fn told(error: &serde_saphyr::Error) -> SyntaxError {
    let message = error.to_string();
    // The place is told apart from the message, in one way for all problems.
    let message = message.split(" at line ").next().unwrap_or_default();
    let message = message.lines().next().unwrap_or_default();
    SyntaxError { line: line(error), message: message.trim_end_matches([':', ',']).to_owned() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn values_know_their_lines() {
        let node = parse("a: 1\nb:\n  c: [x, null]\n  d: 1.5\n").unwrap().node;
        let Value::Map(entries) = node.value else { panic!("a mapping") };
        assert_eq!((entries[0].key.as_str(), entries[0].at.line, &entries[0].node.value), ("a", 1, &Value::Int(1)));
        let Value::Map(inner) = &entries[1].node.value else { panic!("a mapping") };
        assert_eq!((inner[1].key.as_str(), inner[1].at.line, &inner[1].node.value), ("d", 4, &Value::Float(1.5)));
        let Value::Seq(items) = &inner[0].node.value else { panic!("a list") };
        assert_eq!(items[1].value, Value::Null);
        assert_eq!(items[0].at.line, 3);
    }

    #[test]
    fn bad_syntax_names_its_line() {
        assert!(parse("a: [1\nb: 2\n").unwrap_err().line.is_some());
    }

    #[test]
    fn the_last_of_equal_keys_and_the_first_document_count() {
        let read = parse("a: 1\nb: {c: 1, c: 2}\na: {d: 1}\na: 3\n").unwrap();
        let mut kept = String::new();
        read.node.canonical_json(&mut kept);
        assert_eq!(kept, r#"{"a":3,"b":{"c":2}}"#);
        let said = "stands there more than once; the last one counts";
        assert_eq!(read.remarks, [(Some(4), format!("a {said}")), (Some(2), format!("c {said}"))]);
        for more in ["---\nb: 2\n", "---\nb: [\n", "---\n"] {
            let read = parse(&format!("---\na: 1\n{more}")).unwrap();
            let Value::Map(entries) = read.node.value else { panic!("a mapping") };
            assert_eq!((entries.len(), entries[0].key.as_str()), (1, "a"), "{more:?}");
            assert!(read.remarks.iter().all(|(_, remark)| remark.starts_with("only the first document")), "{more:?}");
        }
        assert_eq!(parse("a: 1\n---\nb: 2\n").unwrap().remarks.len(), 1);
    }

    #[test]
    fn what_tools_write_for_unset_fields_says_nothing() {
        let node = parse("{a: 0s, b: {c: 0, d: ''}, e: []}").unwrap().node;
        assert!(is_unset(&node.value));
        assert!(!is_unset(&parse("a: false").unwrap().node.value));
    }
}
