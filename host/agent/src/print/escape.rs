//! Control characters made visible: what containers and servers say must not steer the terminal of whoever reads it.
//!
//! ESC and CR as kubectl shows them (`k8s.io/cli-runtime/pkg/printers`, `terminalEscaper`); all others, C1 among them,
//! as Rust writes them.

use std::borrow::Cow;
use std::fmt::Write;

/// What is left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Line feeds and tabs: the text is a page.
    Lines,
    /// Nothing: the text is a part of a line.
    Nothing,
}

/// The text without control characters, those aside that are to be kept.
pub(crate) fn escaped(text: &str, keep: Keep) -> Cow<'_, str> {
    let is_unsafe = |c: char| c.is_control() && !(keep == Keep::Lines && matches!(c, '\n' | '\t'));
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\x1b' => safe.push_str("^["),
            c if is_unsafe(c) => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
    }
    Cow::Owned(safe)
}

/// JSON that means the same, without control characters but line feeds: serde_json leaves DEL and C1 as they are, which
/// are nowhere but in strings.
pub(crate) fn json(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' {
            let _ = write!(safe, "\\u{:04x}", u32::from(c));
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_a_terminal() {
        let hostile = "a\x1b]0;t\x07\rb\u{9b}2J\x7f\tc\nd é";
        assert_eq!(escaped(hostile, Keep::Lines), "a^[]0;t\\u{7}\\rb\\u{9b}2J\\u{7f}\tc\nd é");
        assert_eq!(escaped(hostile, Keep::Nothing), "a^[]0;t\\u{7}\\rb\\u{9b}2J\\u{7f}\\tc\\nd é");
        assert!(matches!(escaped("é\n", Keep::Lines), Cow::Borrowed("é\n")));
    }

    #[test]
    fn json_keeps_its_meaning() {
        let value = serde_json::json!({"m": "\x1b[2J\u{9b}2J\x7f\n\té"});
        let safe = json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!safe.contains(|c: char| c.is_control() && c != '\n'), "{safe:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
    }
}
