//! Reads JSON into [`Node`]s, with places, which serde_json cannot tell.
//!
//! Strict as RFC 8259 has it; strings and numbers are decoded by serde_json. Depth is bounded by the caller's
//! limit, and nothing is allocated that the text does not hold.

use crate::document::{At, Entry, Node, Value, quoted};

/// What is wrong and where.
pub(super) struct JsonError {
    pub(super) at: At,
    pub(super) message: String,
}

/// The one document in `text`.
pub(super) fn read(text: &str, max_depth: usize) -> Result<Node, JsonError> {
    let mut reader = Reader { text, position: 0, line: 1, line_start: 0, max_depth };
    reader.skip_space();
    let node = reader.value(0)?;
    reader.skip_space();
    if reader.position < text.len() {
        return Err(reader.error("expected the end of the file after the JSON document"));
    }
    Ok(node)
}

struct Reader<'a> {
    text: &'a str,
    position: usize,
    line: u64,
    line_start: usize,
    max_depth: usize,
}

impl Reader<'_> {
    fn at(&self) -> At {
        At { line: self.line, column: (self.position - self.line_start) as u64 + 1 }
    }

    fn error(&self, message: impl Into<String>) -> JsonError {
        JsonError { at: self.at(), message: message.into() }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.position).copied()
    }

    fn skip_space(&mut self) {
        while let Some(byte @ (b' ' | b'\t' | b'\r' | b'\n')) = self.peek() {
            self.position += 1;
            if byte == b'\n' {
                self.line += 1;
                self.line_start = self.position;
            }
        }
    }

    fn found(&self) -> String {
        self.text[self.position..].chars().next().map_or("the end of the file".to_owned(), |c| format!("{c:?}"))
    }

    fn value(&mut self, depth: usize) -> Result<Node, JsonError> {
        if depth > self.max_depth {
            return Err(self.error(format!("nested more than {} levels deep", self.max_depth)));
        }
        let at = self.at();
        let value = match self.peek() {
            Some(b'{') => self.map(depth)?,
            Some(b'[') => self.seq(depth)?,
            Some(b'"') => Value::String(self.string()?),
            Some(b'-' | b'0'..=b'9' | b'a'..=b'z') => self.scalar()?,
            _ => return Err(self.error(format!("expected a value, found {}", self.found()))),
        };
        Ok(Node { at, value })
    }

    fn map(&mut self, depth: usize) -> Result<Value, JsonError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        self.position += 1;
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.position += 1;
            return Ok(Value::Map(entries));
        }
        loop {
            let at = self.at();
            if self.peek() != Some(b'"') {
                return Err(self.error(format!("expected a key in double quotes, found {}", self.found())));
            }
            let key = self.string()?;
            if !seen.insert(key.clone()) {
                return Err(JsonError { at, message: format!("duplicate key {}", quoted(&key)) });
            }
            self.skip_space();
            if self.peek() != Some(b':') {
                return Err(self.error(format!("expected ':' after the key {key:?}, found {}", self.found())));
            }
            self.position += 1;
            self.skip_space();
            let node = self.value(depth + 1)?;
            entries.push(Entry { key, at, node });
            if self.ends(b'}')? {
                return Ok(Value::Map(entries));
            }
        }
    }

    fn seq(&mut self, depth: usize) -> Result<Value, JsonError> {
        let mut items = Vec::new();
        self.position += 1;
        self.skip_space();
        if self.peek() == Some(b']') {
            self.position += 1;
            return Ok(Value::Seq(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if self.ends(b']')? {
                return Ok(Value::Seq(items));
            }
        }
    }

    /// Past a comma or the closing bracket; whether it was the latter.
    fn ends(&mut self, close: u8) -> Result<bool, JsonError> {
        self.skip_space();
        let end = match self.peek() {
            Some(b',') => false,
            Some(byte) if byte == close => true,
            _ => return Err(self.error(format!("expected ',' or '{}', found {}", close as char, self.found()))),
        };
        self.position += 1;
        if !end {
            self.skip_space();
        }
        Ok(end)
    }

    fn string(&mut self) -> Result<String, JsonError> {
        let start = self.position;
        let bytes = self.text.as_bytes();
        let mut end = start + 1;
        loop {
            match bytes.get(end) {
                Some(b'"') => break,
                Some(b'\\') => end += 2,
                Some(b'\n') | None => return Err(self.error("a string that does not end on its line")),
                Some(_) => end += 1,
            }
        }
        let literal = &self.text[start..=end];
        let text = serde_json::from_str(literal)
            .map_err(|_| self.error("a string with an invalid escape or a control character"))?;
        self.position = end + 1;
        Ok(text)
    }

    fn scalar(&mut self) -> Result<Value, JsonError> {
        let rest = &self.text[self.position..];
        let end =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))).unwrap_or(rest.len());
        let word = &rest[..end];
        let value = match word {
            "null" => Value::Null,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            _ => self.number(word)?,
        };
        self.position += end;
        Ok(value)
    }

    fn number(&self, word: &str) -> Result<Value, JsonError> {
        let unknown = || self.error(format!("expected a value, found {}", quoted(word)));
        let number: serde_json::Number = serde_json::from_str(word).map_err(|_| unknown())?;
        if let Some(value) = number.as_i64() {
            Ok(Value::Int(value.into()))
        } else if let Some(value) = number.as_u64() {
            Ok(Value::Int(value.into()))
        } else {
            number.as_f64().filter(|value| value.is_finite()).map(Value::Float).ok_or_else(unknown)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &str) -> Option<String> {
        let node = read(text, 20).ok()?;
        let mut out = String::new();
        node.canonical_json(&mut out);
        Some(out)
    }

    #[test]
    fn places_are_those_of_the_text() {
        let node = read("{\n  \"a\": [1,\n    {\"b\": \"x\\u00e9\\n\"}]\n}", 10).ok().unwrap();
        assert_eq!(node.find("a[1].b"), At { line: 3, column: 6 });
        assert_eq!(node.find("a[7]"), At { line: 2, column: 3 });
        assert!(read("{\"a\": 1, \"a\": 2}", 10).is_err_and(|error| error.message.contains("duplicate key")));
    }

    proptest! {
        #[test]
        fn accepts_what_serde_json_accepts(text in "[\\[\\]{}:,\"a1.0e \\\\-]{0,12}") {
            // serde_json takes the last of equal keys, which we refuse.
            let theirs = serde_json::from_str::<serde_json::Value>(&text).is_ok();
            match read(&text, 20) {
                Ok(_) => prop_assert!(theirs, "{text}"),
                Err(error) => prop_assert!(!theirs || error.message.contains("duplicate key"), "{text}: {}", error.message),
            }
        }

        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = canonical(&text);
        }
    }
}
