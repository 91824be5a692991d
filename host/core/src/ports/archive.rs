//! Where objects and tokens are kept for times without the API server.
//!
//! Who reads objects puts each one in when it comes or changes and asks for it only when the API server cannot be
//! reached and nothing is known. Whether secrets may be kept at all, and how, is the archive's to decide.

use async_trait::async_trait;

/// Which object it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArchiveKey {
    /// `ConfigMap`, `Secret`, `Token` and so on.
    pub kind: &'static str,
    /// Namespace; empty for what has none.
    pub namespace: String,
    /// Name; for a token one that is made of pod, account, audience and life. May hold any character.
    pub name: String,
}

/// An archive. Calls are cheap for the caller: `put` and `remove` hand over and do not wait for a disk.
#[async_trait]
pub trait ObjectArchive: Send + Sync {
    /// Keeps the bytes in place of what was kept under that key. `secret` must never reach a disk in the clear.
    fn put(&self, key: &ArchiveKey, bytes: Vec<u8>, secret: bool);

    /// Forgets it: the API server said that there is none, or nobody needs it any more.
    fn remove(&self, key: &ArchiveKey);

    /// What was kept last; `None` when there is nothing or it cannot be read.
    async fn get(&self, key: &ArchiveKey) -> Option<Vec<u8>>;

    /// Whether secrets outlive a reboot of the machine.
    fn keeps_secrets(&self) -> bool;
}
