//! What the manifest folder's reader knows from before the agent started.
//!
//! Owns a small file in the root folder that says which folder the pods came from. It holds nothing of the manifests.

use std::path::PathBuf;

use longshore_core::pod::Pod;

use super::folder::Identity;
use crate::write;

/// Name of the file in the root folder that says which folder the pods came from.
pub const MANIFESTS_IDENTITY: &str = "manifests.identity";

/// What is known from before the agent started.
#[derive(Clone, Debug)]
pub struct Memory {
    /// Pods of the manifest folder that ran then and that nobody has asked to end, from their records.
    pub former: Vec<Pod>,
    /// Whether a folder that is not there, and of which there are none of these, is one without pods: nobody named it.
    pub optional: bool,
    /// Where it is kept which folder they came from: a file in the root folder, made here.
    pub file: PathBuf,
}

impl Memory {
    /// The folder that pods came from last; none when it is not known.
    pub(super) async fn load(&self) -> Option<Identity> {
        let memory = self.clone();
        tokio::task::spawn_blocking(move || memory.read()).await.ok()?
    }

    /// The same. Blocks.
    pub(super) fn read(&self) -> Option<Identity> {
        serde_json::from_slice(&std::fs::read(&self.file).ok()?).ok()
    }

    /// How a user says that an empty folder is meant.
    pub(super) fn release(&self) -> String {
        format!("remove {} and restart longshore", self.file.display())
    }

    /// Remembers a folder; why it could not be done.
    pub(super) async fn save(&self, identity: Identity) -> Result<(), String> {
        let file = self.file.clone();
        let saved = tokio::task::spawn_blocking(move || {
            let text = serde_json::to_vec(&identity).unwrap_or_default();
            write::replace(&file, &text, 0o600)
        });
        saved.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}
