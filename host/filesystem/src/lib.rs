//! What pods have on the node's disk, and the manifest folder.
//!
//! [`Files`] is the port `FileStore`: pods' folders, volumes, sub-paths, records, log links, cgroups; and `PullRecords`.
//! [`ManifestFolder`] is the source of pods, ConfigMaps and Secrets that lie in a folder. [`lock_root`] and [`root_id`] are
//! for the agent's start. It decides nothing about pods: specs come in complete, and what is unclear goes back as an error.

mod archive;
mod cgroups;
mod host_path;
mod images;
mod layout;
mod logs;
mod manifests;
mod mounts;
mod nfs;
mod ownership;
mod payload;
mod pulls;
mod records;
mod remove;
mod root;
mod seccomp;
mod store;
mod sub_path;
mod unpack;
mod usage;
mod volumes;
mod write;

pub use archive::{ArchiveOptions, STATE_KEY_CREDENTIAL, StateArchive, StateKey, StateKeyError};
pub use cgroups::CgroupOptions;
pub use manifests::{FolderObjects, MANIFESTS_IDENTITY, ManifestFolder, Memory, Reading, read_as_at_start, read_once};
pub use root::{LockError, RootLock, lock_root, root_id};
pub use store::Files;
