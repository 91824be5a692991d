//! Typed values out of a YAML document; what is wrong is noted with file, line and field.
//!
//! Knows nothing of any field; [`super::kubelet`] and the groups of settings do.

use std::path::PathBuf;
use std::time::Duration;

use longshore_core::document::{Entry, Node, Value};

use super::draft::Findings;
use super::duration;
use super::layer::Table;
use super::values::PairCheck;
use crate::names::nearest;

/// Reads one file.
pub(super) struct Reader<'a> {
    /// The file's name, for messages.
    pub(super) file: &'a str,
    /// Where problems go.
    pub(super) findings: &'a mut Findings,
    /// Fields that have no effect here, with their lines.
    pub(super) unsupported: Vec<String>,
}

impl Reader<'_> {
    /// A place in this file, for messages.
    pub(super) fn place(&self, line: u64, field: &str) -> String {
        format!("{}:{line}: {field}", self.file)
    }

    /// Warns of a field that there is not.
    pub(super) fn unknown(&mut self, field: &str, key: &str, line: u64, known: &[&'static str]) {
        let hint = nearest(key, known.iter().copied()).map_or(String::new(), |near| format!("; did you mean {near}?"));
        let place = self.place(line, field);
        self.findings.warnings.push(format!("{place}: no such field in KubeletConfiguration{hint}"));
    }

    /// One warning for all fields without effect.
    pub(super) fn warn_unsupported(&mut self) {
        if !self.unsupported.is_empty() {
            let fields = self.unsupported.join(", ");
            let message = format!("{}: these fields have no effect in this version: {fields}", self.file);
            self.findings.warnings.push(message);
        }
    }

    /// A problem: a value of another kind.
    pub(super) fn wrong(&mut self, field: &str, node: &Node, expected: &str) {
        let message = format!("expected {expected}, got {}", node.describe());
        self.findings.problem(&self.place(node.at.line, field), message);
    }

    /// The entries of a mapping.
    pub(super) fn map<'n>(&mut self, field: &str, node: &'n Node) -> &'n [Entry] {
        match &node.value {
            Value::Map(entries) => entries,
            _ => {
                self.wrong(field, node, "a mapping");
                &[]
            }
        }
    }

    /// A text.
    pub(super) fn text<T>(
        &mut self,
        field: &str,
        node: &Node,
        check: impl FnOnce(String) -> Result<T, String>,
    ) -> Option<T> {
        match &node.value {
            Value::String(text) => {
                let place = self.place(node.at.line, field);
                self.findings.note(&place, check(text.clone()))
            }
            Value::Null => None,
            _ => {
                self.wrong(field, node, "text");
                None
            }
        }
    }

    /// A list of texts.
    pub(super) fn texts<T>(
        &mut self,
        field: &str,
        node: &Node,
        check: fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let Value::Seq(items) = &node.value else {
            self.wrong(field, node, "a list");
            return None;
        };
        let items = items.iter().enumerate();
        Some(items.filter_map(|(n, item)| self.text(&format!("{field}[{n}]"), item, |text| check(&text))).collect())
    }

    /// A whole number.
    pub(super) fn whole<T>(
        &mut self,
        field: &str,
        node: &Node,
        check: impl FnOnce(i64) -> Result<T, String>,
    ) -> Option<T> {
        match node.value {
            Value::Int(value) => {
                let place = self.place(node.at.line, field);
                // What does not fit is out of every range there is.
                let value = i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX });
                self.findings.note(&place, check(value))
            }
            Value::Null => None,
            _ => {
                self.wrong(field, node, "a whole number");
                None
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, field: &str, node: &Node) -> Option<bool> {
        match node.value {
            Value::Bool(value) => Some(value),
            _ => {
                self.wrong(field, node, "true or false");
                None
            }
        }
    }

    /// A duration as Go writes it.
    pub(super) fn duration(
        &mut self,
        field: &str,
        node: &Node,
        check: impl FnOnce(Duration) -> Result<Duration, String>,
    ) -> Option<Duration> {
        match &node.value {
            Value::String(text) => {
                let place = self.place(node.at.line, field);
                self.findings.note(&place, duration::parse(text).and_then(check))
            }
            _ => {
                self.wrong(field, node, "a duration like \"20s\"");
                None
            }
        }
    }

    /// A mapping of names to values, each read by `check`; numbers count as the text that they are.
    pub(super) fn table<K: Ord, V>(&mut self, field: &str, node: &Node, check: PairCheck<K, V>) -> Option<Table<K, V>> {
        let mut table = Table::default();
        for entry in self.map(field, node) {
            let field = format!("{field}.{}", entry.key);
            let text = match &entry.node.value {
                Value::String(text) => text.clone(),
                Value::Int(value) => value.to_string(),
                Value::Bool(value) => value.to_string(),
                _ => {
                    self.wrong(&field, &entry.node, "a text or a number");
                    continue;
                }
            };
            let place = self.place(entry.node.at.line, &field);
            if let Some((key, value)) = self.findings.note(&place, check(&entry.key, &text)) {
                table.entries.insert(key, value);
            }
        }
        Some(table)
    }

    /// The items of a list.
    pub(super) fn items<'n>(&mut self, field: &str, node: &'n Node) -> &'n [Node] {
        match &node.value {
            Value::Seq(items) => items,
            _ => {
                self.wrong(field, node, "a list");
                &[]
            }
        }
    }

    /// A path of a file or a folder.
    pub(super) fn path(&mut self, field: &str, node: &Node) -> Option<PathBuf> {
        self.text(field, node, |text| Ok(PathBuf::from(text)))
    }
}
