//! What the kernel says.

use async_trait::async_trait;

/// Why there are no more messages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's messages cannot be read: {0}")]
pub struct KernelLogError(pub String);

/// The kernel's messages.
#[async_trait]
pub trait KernelLog: Send + Sync {
    /// The next message, however long it takes to come; those that the kernel dropped before they were read are left
    /// out. Cancel safe. An error is final.
    async fn next(&self) -> Result<String, KernelLogError>;
}
