//! Whether files are still those that were read. It looks at what links lead to, so that swapped links count.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What tells one version of a file from another.
type Version = Option<(u64, u64, i64, i64, i64, u64)>;

fn version(path: &Path) -> Version {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.mtime(), found.mtime_nsec(), found.ctime_nsec(), found.size()))
}

/// Files and their versions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Stamp(Vec<(PathBuf, Version)>);

impl Stamp {
    pub(crate) fn of(files: Vec<PathBuf>) -> Self {
        Self(Vec::new()).with(files)
    }

    pub(crate) fn with(mut self, files: Vec<PathBuf>) -> Self {
        self.0.extend(files.into_iter().map(|path| {
            let version = version(&path);
            (path, version)
        }));
        self
    }

    /// The same files as they are now.
    pub(crate) fn now(&self) -> Self {
        Self(self.0.iter().map(|(path, _)| (path.clone(), version(path))).collect())
    }

    /// The files that differ from then, for messages.
    pub(crate) fn changed(&self, now: &Self) -> String {
        let differ = self.0.iter().zip(&now.0).filter(|(then, now)| then != now);
        differ.map(|((path, _), _)| path.display().to_string()).collect::<Vec<_>>().join(", ")
    }
}
