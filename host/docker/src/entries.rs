//! A list of the daemon's, taken apart as it comes: one entry may be long, and there may be many, but little is kept of each.
//! It must not know what they say.

use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use crate::fault::Fault;

/// One entry may be this long.
const ENTRY_LIMIT: usize = 64 << 20;

/// Reads `[…, …]`.
pub(crate) struct Entries<T> {
    /// What has come of the one that is not over.
    entry: Vec<u8>,
    /// Brackets that are open.
    depth: usize,
    quoted: bool,
    escaped: bool,
    over: bool,
    of: PhantomData<T>,
}

impl<T: DeserializeOwned> Entries<T> {
    pub(crate) fn new() -> Entries<T> {
        Entries { entry: Vec::new(), depth: 0, quoted: false, escaped: false, over: false, of: PhantomData }
    }

    /// Reads on, and adds the entries that end here.
    pub(crate) fn feed(&mut self, data: &[u8], found: &mut Vec<T>) -> Result<(), Fault> {
        // Where the entry goes on that is not over.
        let mut from = 0;
        for (at, &byte) in data.iter().enumerate() {
            if self.escaped {
                self.escaped = false;
                continue;
            }
            match byte {
                b'\\' if self.quoted => self.escaped = true,
                b'"' => self.quoted = !self.quoted,
                _ if self.quoted => {}
                _ if self.depth == 0 => match byte {
                    b'[' if !self.over => (self.depth, from) = (1, at + 1),
                    byte if byte.is_ascii_whitespace() => {}
                    _ => return Err(Fault::Nonsense("it is not a list".to_owned())),
                },
                b'[' | b'{' => self.depth += 1,
                b',' if self.depth == 1 => {
                    self.end(&data[from..at], found)?;
                    from = at + 1;
                }
                b']' | b'}' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        self.end(&data[from..at], found)?;
                        self.over = true;
                    }
                }
                _ => {}
            }
        }
        if self.depth > 0 {
            self.entry.extend_from_slice(&data[from..]);
        }
        if self.entry.len() > ENTRY_LIMIT {
            return Err(Fault::Nonsense(format!("an entry of a list has more than {ENTRY_LIMIT} bytes")));
        }
        Ok(())
    }

    /// After all of it.
    pub(crate) fn finish(self) -> Result<(), Fault> {
        if self.over { Ok(()) } else { Err(Fault::Nonsense("a list without its end".to_owned())) }
    }

    fn end(&mut self, rest: &[u8], found: &mut Vec<T>) -> Result<(), Fault> {
        self.entry.extend_from_slice(rest);
        if !self.entry.trim_ascii().is_empty() {
            found.push(serde_json::from_slice(&self.entry).map_err(|error| Fault::Nonsense(error.to_string()))?);
        }
        self.entry.clear();
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(list: &[u8], size: usize) -> Result<Vec<Value>, Fault> {
        let (mut entries, mut found) = (Entries::new(), Vec::new());
        for piece in list.chunks(size) {
            entries.feed(piece, &mut found)?;
        }
        entries.finish().map(|()| found)
    }

    #[test]
    fn as_if_it_were_read_at_once() {
        let list = json!([{"a": ["]", "\\\"},", {}], "b": {"c": [1, 2]}}, {"ü": "\\"}, 3, "x,y", [null]]);
        for text in [list.to_string(), format!(" {list:#} \n")] {
            for size in 1..=text.len() {
                assert_eq!(Value::from(read(text.as_bytes(), size).unwrap()), list, "{size}");
            }
        }
        assert_eq!(read(b"[ ]\n", 1).unwrap(), Vec::<Value>::new());
    }

    #[test]
    fn what_is_no_list() {
        for text in ["", "[", "[{}", "{}", "null", "\"[]\"", "[]]", "[][]", "[x]", "[{]"] {
            for size in [1, 8] {
                assert!(read(text.as_bytes(), size).is_err(), "{text}");
            }
        }
    }
}
