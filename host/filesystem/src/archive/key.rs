//! The key that secrets are kept with: where it comes from, and how it is written.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Name of the credential that systemd may pass (`LoadCredentialEncrypted=longshore-state-key`, `systemd-creds`).
pub const STATE_KEY_CREDENTIAL: &str = "longshore-state-key";

/// A file that is larger holds no key.
const LARGEST: u64 = 4096;

/// A key of 32 bytes.
#[derive(Clone)]
pub struct StateKey(pub(super) [u8; 32]);

impl fmt::Debug for StateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StateKey(…)")
    }
}

/// Why there is no key although one was named.
#[derive(Debug, thiserror::Error)]
pub enum StateKeyError {
    /// The file cannot be read.
    #[error("the state key {} cannot be read; {}", .path.display(), advice(.path))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file does not hold a key.
    #[error(
        "{} holds no state key: expected 32 bytes, raw, as 64 hexadecimal digits or as base64, found {found}; {}",
        .path.display(),
        advice(.path)
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it holds, in words that tell nothing of it.
        found: String,
    },
}

fn advice(path: &Path) -> String {
    let path = path.display();
    format!("make one with: (umask 077; openssl rand -base64 32 > {path})")
}

impl StateKey {
    /// The key of `file`, which must be there; without one that of the folder of systemd's credentials
    /// (`$CREDENTIALS_DIRECTORY`), which may be. `None` when there is none.
    pub fn load(file: Option<&Path>, credentials: Option<&Path>) -> Result<Option<StateKey>, StateKeyError> {
        if let Some(file) = file {
            return StateKey::read(file).map(Some);
        }
        let Some(path) = credentials.map(|folder| folder.join(STATE_KEY_CREDENTIAL)) else { return Ok(None) };
        match StateKey::read(&path) {
            Err(StateKeyError::Unreadable { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    fn read(path: &Path) -> Result<StateKey, StateKeyError> {
        let unreadable = |source| StateKeyError::Unreadable { path: path.to_owned(), source };
        let malformed = |found: String| StateKeyError::Malformed { path: path.to_owned(), found };
        let found = std::fs::metadata(path).map_err(unreadable)?;
        if !found.is_file() || found.len() > LARGEST {
            return Err(malformed(format!("something of {} bytes", found.len())));
        }
        if found.mode() & 0o077 != 0 {
            tracing::warn!("{} may be read by others than its owner: chmod 0600 it", path.display());
        }
        let bytes = std::fs::read(path).map_err(unreadable)?;
        StateKey::parse(&bytes).ok_or_else(|| malformed(format!("{} bytes of something else", bytes.len())))
    }

    /// A key as it may be written.
    pub(super) fn parse(bytes: &[u8]) -> Option<StateKey> {
        if let Ok(raw) = bytes.try_into() {
            return Some(StateKey(raw));
        }
        let text = std::str::from_utf8(bytes).ok()?.trim();
        let decoded = if text.len() == 64 { hexadecimal(text)? } else { STANDARD.decode(text).ok()? };
        decoded.try_into().ok().map(StateKey)
    }
}

fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    text.as_bytes().chunks_exact(2).map(|pair| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8)).collect()
}
