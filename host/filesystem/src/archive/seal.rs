//! How an object lies in its file: sealed with AES-256-GCM, or in the clear with a checksum. Either way what is read
//! is what was written for that very object, or an error.

use longshore_core::ports::archive::ArchiveKey;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

use super::key::StateKey;

const MAGIC: &[u8; 4] = b"LSA1";
/// Bytes that tell that a file is ours and how it is kept.
pub(super) const HEAD: usize = 5;
const CLEAR: u8 = 0;
const SEALED: u8 = 1;
/// Bytes of a key's name, by which a foreign one is told from damage.
const KEY_NAME: usize = 8;

/// Why a file cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unsealable {
    /// It is none of ours, cut off, changed, or another object's.
    #[error("it is damaged")]
    Damaged,
    /// It was kept with another key.
    #[error("it was kept with another state key")]
    ForeignKey,
    /// It needs a key.
    #[error("it was kept with a state key, and there is none now")]
    NoKey,
    /// The machine has no randomness, or the object is larger than AES-GCM takes.
    #[error("it cannot be sealed")]
    Refused,
}

/// Seals and opens.
#[derive(Debug)]
pub(super) struct Seal {
    key: LessSafeKey,
    name: [u8; KEY_NAME],
    random: SystemRandom,
}

impl Seal {
    pub(super) fn new(key: &StateKey) -> Result<Seal, Unsealable> {
        let unbound = UnboundKey::new(&AES_256_GCM, &key.0).map_err(|_| Unsealable::Refused)?;
        let named = digest(&SHA256, &[b"longshore state key\0".as_slice(), &key.0].concat());
        let mut name = [0; KEY_NAME];
        name.copy_from_slice(&named.as_ref()[..KEY_NAME]);
        Ok(Seal { key: LessSafeKey::new(unbound), name, random: SystemRandom::new() })
    }

    /// The file of an object.
    pub(super) fn seal(&self, key: &ArchiveKey, bytes: &[u8]) -> Result<Vec<u8>, Unsealable> {
        // Nonces are random: 2^32 writes with one key are far off.
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| Unsealable::Refused)?;
        let mut body = bytes.to_vec();
        let aad = Aad::from(identity(key));
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut body)
            .map_err(|_| Unsealable::Refused)?;
        Ok([MAGIC.as_slice(), &[SEALED], &self.name, &nonce, &body].concat())
    }

    fn open(&self, key: &ArchiveKey, rest: &[u8]) -> Result<Vec<u8>, Unsealable> {
        let (name, rest) = rest.split_at_checked(KEY_NAME).ok_or(Unsealable::Damaged)?;
        let (nonce, body) = rest.split_at_checked(NONCE_LEN).ok_or(Unsealable::Damaged)?;
        if name != self.name {
            return Err(Unsealable::ForeignKey);
        }
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Unsealable::Damaged)?;
        let mut body = body.to_vec();
        let opened = self.key.open_in_place(nonce, Aad::from(identity(key)), &mut body);
        opened.map(|bytes| bytes.to_vec()).map_err(|_| Unsealable::Damaged)
    }
}

/// The file of an object that is no secret, or that lies in memory only.
pub(super) fn clear(key: &ArchiveKey, bytes: &[u8]) -> Vec<u8> {
    [MAGIC.as_slice(), &[CLEAR], checksum(key, bytes).as_ref(), bytes].concat()
}

/// What a file holds.
pub(super) fn open(seal: Option<&Seal>, key: &ArchiveKey, file: &[u8]) -> Result<Vec<u8>, Unsealable> {
    let rest = file.strip_prefix(MAGIC.as_slice()).ok_or(Unsealable::Damaged)?;
    match rest.split_first() {
        Some((&SEALED, rest)) => seal.ok_or(Unsealable::NoKey)?.open(key, rest),
        Some((&CLEAR, rest)) => {
            let (sum, bytes) = rest.split_at_checked(SHA256.output_len()).ok_or(Unsealable::Damaged)?;
            if checksum(key, bytes).as_ref() == sum { Ok(bytes.to_vec()) } else { Err(Unsealable::Damaged) }
        }
        _ => Err(Unsealable::Damaged),
    }
}

fn checksum(key: &ArchiveKey, bytes: &[u8]) -> ring::digest::Digest {
    digest(&SHA256, &[identity(key).as_slice(), bytes].concat())
}

/// Name of an object's file: any character may be in the object's.
pub(super) fn file_name(key: &ArchiveKey) -> String {
    digest(&SHA256, &identity(key)).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that are one object's and no other's: each part with its length before it.
fn identity(key: &ArchiveKey) -> Vec<u8> {
    let mut bytes = b"longshore state 1".to_vec();
    for part in [key.kind, &key.namespace, &key.name] {
        bytes.extend((part.len() as u64).to_le_bytes());
        bytes.extend(part.as_bytes());
    }
    bytes
}
