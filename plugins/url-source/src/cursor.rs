//! What is remembered from one poll to the next: the body's digest and its ETag. It must not hold the body: that may have 10 MiB.

use sha2::{Digest as _, Sha256};

/// Bytes of an ETag that is remembered; a longer one is not used.
pub(crate) const MAX_ETAG: usize = 4096;

/// The last body that was handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Its SHA-256.
    pub(crate) digest: [u8; 32],
    /// What the server called it.
    pub(crate) etag: Option<String>,
}

impl Cursor {
    /// Of a body that just came.
    pub(crate) fn of(body: &[u8], etag: Option<String>) -> Self {
        Self { digest: Sha256::digest(body).into(), etag }
    }

    /// As the host keeps it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.digest.to_vec();
        bytes.extend_from_slice(self.etag.as_deref().unwrap_or_default().as_bytes());
        bytes
    }

    /// From what the host kept. One that is not ours is none: then the body is handed over once more.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let (digest, etag) = bytes.split_first_chunk::<32>()?;
        let etag = std::str::from_utf8(etag).ok()?;
        Some(Self { digest: *digest, etag: (!etag.is_empty()).then(|| etag.to_owned()) })
    }
}
