//! Variables from files of the pod's volumes (`fileKeyRef`): which files, and what they say.
//!
//! As `pkg/kubelet/util/env/env_util.go`: a strict subset of the shell's assignments, `NAME='value'`. Reading the files is not
//! done here.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;

/// Longest line that is read, in bytes (`bufio.MaxScanTokenSize`).
const LINE: usize = 64 << 10;

/// A file of a volume: the volume's name, and the path in it.
pub type EnvFile = (String, String);

/// What is in the files, or why that cannot be said, by file.
pub type EnvFiles = BTreeMap<EnvFile, Result<Vec<u8>, String>>;

/// The files that a container's variables come from, each once.
pub fn env_files(container: &v1::Container) -> Vec<EnvFile> {
    let sources =
        container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()?.file_key_ref.as_ref());
    let mut files: Vec<EnvFile> = sources.map(|file| (file.volume_name.clone(), file.path.clone())).collect();
    files.sort();
    files.dedup();
    files
}

/// The value of a key; empty where the file does not have it. The file is checked no further than to the key.
pub(super) fn value(file: &[u8], key: &str) -> Result<String, String> {
    let mut lines = Lines { rest: file, number: 0 };
    let wrong = |line: usize, what: &str| Err(format!("invalid environment variable format at line {line}: {what}"));
    while let Some(line) = lines.next()? {
        let line = trimmed(line);
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let Some(equals) = line.iter().position(|byte| *byte == b'=') else {
            return wrong(lines.number, "missing '='");
        };
        let (name, assigned) = (&line[..equals], &line[equals + 1..]);
        match name.last() {
            None => return wrong(lines.number, "empty variable name"),
            Some(b' ' | b'\t') => return wrong(lines.number, "whitespace before '=' is not allowed"),
            Some(_) => {}
        }
        let wanted = name == key.as_bytes();
        // As in the shell: `NAME= 'value'` sets nothing.
        if assigned.starts_with(b" ") || assigned.starts_with(b"\t") {
            if wanted {
                return Ok(String::new());
            }
            continue;
        }
        let Some(mut rest) = assigned.strip_prefix(b"'") else {
            return wrong(lines.number, "value must be enclosed in single quotes");
        };
        let (mut found, begin) = (Vec::new(), lines.number);
        loop {
            if let Some(end) = rest.iter().position(|byte| *byte == b'\'') {
                found.extend_from_slice(&rest[..end]);
                let after = trimmed(&rest[end + 1..]);
                if !after.is_empty() && !after.starts_with(b"#") {
                    return wrong(lines.number, "unexpected content after closing quote");
                }
                break;
            }
            found.extend_from_slice(rest);
            found.push(b'\n');
            rest = lines.next()?.ok_or_else(|| {
                format!("invalid environment variable format starting at line {begin}: unclosed single quote")
            })?;
        }
        if wanted {
            return Ok(String::from_utf8_lossy(&found).into_owned());
        }
    }
    Ok(String::new())
}

/// Go's notion of lines: without their end, which may be `\r\n`, and none after the last end.
struct Lines<'a> {
    rest: &'a [u8],
    number: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<Option<&'a [u8]>, String> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let end = self.rest.iter().position(|byte| *byte == b'\n');
        let (line, rest) = match end {
            Some(end) => (&self.rest[..end], &self.rest[end + 1..]),
            None => (self.rest, &[][..]),
        };
        self.rest = rest;
        self.number += 1;
        if line.len() >= LINE {
            return Err(format!("line {} is longer than {LINE} bytes", self.number));
        }
        Ok(Some(line.strip_suffix(b"\r").unwrap_or(line)))
    }
}

/// Without blanks and tabs at the start; other white space stays.
fn trimmed(line: &[u8]) -> &[u8] {
    let start = line.iter().position(|byte| !matches!(byte, b' ' | b'\t')).unwrap_or(line.len());
    &line[start..]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_as_the_kubelet_reads_them() {
        let cases = [
            ("A='1'", "1"),
            ("  \tA='1' # why", "1"),
            ("# A='0'\n\n \nA='x=y $Z \\n'\n", "x=y $Z \\n"),
            ("B='2'\r\nA='1'\r\n", "1"),
            ("A='one\n two\n'\nB='2'", "one\n two\n"),
            ("A= 'x'", ""),
            ("B='2'", ""),
            ("A=''", ""),
            ("A='1'\nA='2'", "1"),
            ("A='1'\nwhat comes after is not looked at", "1"),
            ("", ""),
        ];
        for (file, expected) in cases {
            assert_eq!(value(file.as_bytes(), "A").as_deref(), Ok(expected), "{file:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let cases = [
            ("A", "at line 1: missing '='"),
            ("\n='1'", "at line 2: empty variable name"),
            ("A ='1'", "at line 1: whitespace before '=' is not allowed"),
            ("A=1", "at line 1: value must be enclosed in single quotes"),
            ("A=\"1\"", "at line 1: value must be enclosed in single quotes"),
            ("A='1'2", "at line 1: unexpected content after closing quote"),
            ("B='1\n2\n", "starting at line 1: unclosed single quote"),
        ];
        for (file, expected) in cases {
            let error = value(file.as_bytes(), "A").unwrap_err();
            assert!(error.starts_with("invalid environment variable format") && error.ends_with(expected), "{error}");
        }
        let long = format!("B='{}'\nA='1'", "x".repeat(LINE));
        assert!(value(long.as_bytes(), "A").unwrap_err().contains("line 1 is longer"));
    }

    #[test]
    fn files_are_named_once() {
        let container: v1::Container = serde_saphyr::from_str(
            "{name: c, env: [{name: A, valueFrom: {fileKeyRef: {volumeName: v, path: p, key: A}}}, {name: L, value: x},
              {name: B, valueFrom: {fileKeyRef: {volumeName: v, path: p, key: B}}},
              {name: C, valueFrom: {fileKeyRef: {volumeName: u, path: p, key: C}}}]}",
        )
        .unwrap();
        let of = |volume: &str| (volume.to_owned(), "p".to_owned());
        assert_eq!(env_files(&container), [of("u"), of("v")]);
    }

    proptest! {
        #[test]
        fn never_panics(file in prop::collection::vec(prop::sample::select(b"A='\n \t#\rB\xff".to_vec()), 0..60)) {
            let _ = value(&file, "A");
        }

        #[test]
        fn what_is_quoted_is_the_value(text in "[^'\r\0]{1,40}") {
            prop_assert_eq!(value(format!("A='{text}'").as_bytes(), "A"), Ok(text));
        }
    }
}
