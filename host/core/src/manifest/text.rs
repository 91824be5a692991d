//! From bytes to documents: encoding, format, bounds.
//!
//! JSON where the text begins with `{`, as apimachinery's decoder has it, else YAML as Kubernetes reads it.

use serde_saphyr::{DuplicateKeyPolicy, Options};

use super::json;
use crate::document::{At, Node, Value};

/// The kubelet reads no larger file (`pkg/kubelet/config/common.go`, `maxConfigLength`).
pub(super) const MAX_BYTES: usize = 10 << 20;
/// Nesting that no object of the API comes near. Reading takes stack for each level, some 30 KiB without
/// optimisation.
const MAX_DEPTH: usize = 32;
/// Values in one file, those that aliases repeat included.
const MAX_NODES: usize = 500_000;
/// Values that aliases repeat.
const MAX_REPEATED: usize = 100_000;
/// Documents in one file.
const MAX_DOCUMENTS: usize = 10_000;

/// Why a text has no documents, and where.
#[derive(Debug)]
pub(super) struct TextError {
    pub(super) at: At,
    pub(super) message: String,
}

/// The documents that are not empty.
pub(super) fn documents(bytes: &[u8]) -> Result<Vec<Node>, TextError> {
    let whole = |message: String| TextError { at: At::default(), message };
    if bytes.len() > MAX_BYTES {
        return Err(whole(format!("the file has {} bytes; at most {MAX_BYTES} are read", bytes.len())));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
        // Its byte order mark, as PowerShell's `>` writes it.
        let message = match bytes {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "expected UTF-8, found UTF-16: save the file in UTF-8",
            _ => "expected UTF-8, found bytes that are not",
        };
        TextError { at: At { line, column: 0 }, message: message.to_owned() }
    })?;
    let is_control = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{85}');
    if let Some((offset, character)) = text.char_indices().find(|(_, c)| is_control(*c)) {
        let line = text[..offset].matches('\n').count() as u64 + 1;
        let message = format!("expected text, found the control character {character:?}");
        return Err(TextError { at: At { line, column: 0 }, message });
    }
    let documents = if text.trim_start().starts_with('{') {
        // `{a: b}` is YAML; whoever meant JSON wants the JSON reader's complaint.
        match json::read(text, MAX_DEPTH) {
            Ok(document) => vec![document],
            Err(error) => yaml(text)
                .map_err(|_| TextError { at: error.at, message: format!("not valid JSON: {}", error.message) })?,
        }
    } else {
        yaml(text)?
    };
    Ok(documents.into_iter().filter(|document| document.value != Value::Null).collect())
}

fn yaml(text: &str) -> Result<Vec<Node>, TextError> {
    let mut options = Options::default();
    options.duplicate_keys = DuplicateKeyPolicy::Error;
    options.legacy_octal_numbers = true;
    options.with_snippet = false;
    options.emit_comments = false;
    options.alias_limits.max_total_replayed_events = MAX_REPEATED;
    options.alias_limits.max_replay_stack_depth = MAX_DEPTH;
    if let Some(budget) = options.budget.as_mut() {
        budget.max_depth = MAX_DEPTH;
        budget.max_nodes = MAX_NODES;
        budget.max_events = 3 * MAX_NODES;
        budget.max_documents = MAX_DOCUMENTS;
        budget.max_aliases = 10_000;
        budget.max_total_scalar_bytes = 2 * MAX_BYTES;
    }
    serde_saphyr::from_multiple_with_options::<Node>(text, options).map_err(|error| {
        let at = error.location().map(At::from).unwrap_or_default();
        TextError { at, message: format!("not valid YAML: {}", plain(&error)) }
    })
}

/// The error on one line, without the place, which is told apart, and in words that mean something to whoever wrote
/// the file.
fn plain(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let text = match error.location() {
        Some(at) => text.replace(&format!("line {} column {}: ", at.line(), at.column()), ""),
        None => text,
    };
    let text = text.split(" at line ").next().unwrap_or_default();
    if text.contains("Depth {") {
        format!("nested more than {MAX_DEPTH} levels deep")
    } else if text.contains("alias replay limit") {
        format!("aliases repeat more than {MAX_REPEATED} values")
    } else if text.contains("budget breached") {
        format!("larger than what is read of one file ({MAX_NODES} values, {MAX_DOCUMENTS} documents)")
    } else if text.contains("recursive references") {
        "an alias inside of what it stands for".to_owned()
    } else if text.contains("non-finite float") {
        "expected a finite number; quote it if it is meant to be a string".to_owned()
    } else {
        text.split(", set DuplicateKeyPolicy").next().unwrap_or_default().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        documents(text.as_bytes()).expect_err("not a manifest").message
    }

    #[test]
    fn what_grows_is_bounded() {
        let many = "x:\n".to_owned() + &"- 1\n".repeat(MAX_NODES + 1);
        assert!(error(&many).contains("larger than what is read"), "{}", error(&many));
        assert!(error(&"--- 1\n".repeat(MAX_DOCUMENTS + 1)).contains("larger than what is read"));
        let bomb = "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d]\nf: [*e, *e, *e, *e, *e, *e, *e, *e]\n";
        assert!(error(bomb).contains("aliases repeat"), "{}", error(bomb));
    }

    #[test]
    fn utf_16_is_told_by_its_name() {
        let error = documents(b"\xff\xfea\0:\0").expect_err("not a manifest");
        assert!(error.message.contains("UTF-16: save the file in UTF-8"), "{}", error.message);
    }

    #[test]
    fn a_large_file_within_the_bounds_is_read_soon() {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\nspec:\n  containers:\n  - name: c\n    image: i\n";
        let text = vec![pod; 2_000].join("---\n");
        let started = std::time::Instant::now();
        assert_eq!(documents(text.as_bytes()).expect("2,000 documents").len(), 2_000);
        assert!(started.elapsed().as_secs() < 20);
    }
}
