//! What is remembered of pulls: with whose credentials an image came, and which pulls have begun.

use std::collections::BTreeSet;

use async_trait::async_trait;

use super::files::FilesError;
use crate::credentials::access::PullRecord;

/// Remembers how images came, over restarts.
#[async_trait]
pub trait PullRecords: Send + Sync {
    /// The record of an image by its ID; `None` where there is none. One that is damaged is [`PullRecord::lost`].
    async fn pulled(&self, image: &str) -> Result<Option<PullRecord>, FilesError>;

    /// Puts a record in the place of the image's last one, in one step that survives a power cut.
    async fn keep_pulled(&self, record: &PullRecord) -> Result<(), FilesError>;

    /// Forgets an image.
    async fn forget_pulled(&self, image: &str) -> Result<(), FilesError>;

    /// IDs of all images that have a record.
    async fn all_pulled(&self) -> Result<Vec<String>, FilesError>;

    /// Names of images whose pulls have begun, and of which it was not noted that they ended.
    async fn pulling(&self) -> Result<BTreeSet<String>, FilesError>;

    /// Notes these, in place of those before.
    async fn keep_pulling(&self, names: &BTreeSet<String>) -> Result<(), FilesError>;
}
