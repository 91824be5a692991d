//! Where certificates that we asked for are kept, as the kubelet keeps them: dated files that hold certificate and key,
//! and a link to the one in use (`client-go/util/certificate/certificate_store.go`). It must not ask for any.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::credentials::Pair;

/// Dated files that are kept, the one in use among them.
const KEPT: usize = 4;

/// A certificate or key cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be written; look at the folder's disk and rights", path.display())]
pub struct StoreError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The files of one certificate and its successors.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    prefix: &'static str,
}

/// Writes a file that only its owner can read, all of it or nothing.
pub(crate) fn write_private(path: &Path, content: &str) -> Result<(), StoreError> {
    let failed = |source| StoreError { path: path.to_owned(), source };
    let folder = path.parent().unwrap_or(Path::new("/"));
    if !folder.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed)?;
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let partial = folder.join(format!(".{name}.partial"));
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&partial).map_err(failed)?;
    // One that was left by a crash may have other rights.
    file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed)?;
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&partial, path).map_err(failed)?;
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

impl Store {
    pub(crate) fn new(folder: &Path, prefix: &'static str) -> Self {
        Self { folder: folder.to_owned(), prefix }
    }

    /// The link to the file in use.
    pub(crate) fn current(&self) -> PathBuf {
        self.folder.join(format!("{}-current.pem", self.prefix))
    }

    /// Where the key of a first certificate waits for it, so that a crash does not lose what was asked for with it
    /// (`pkg/kubelet/certificate/bootstrap/bootstrap.go`).
    pub(crate) fn waiting_key(&self) -> PathBuf {
        self.folder.join("kubelet-client.key.tmp")
    }

    /// Keeps a certificate and makes it the one in use.
    pub(crate) fn put(&self, pair: &Pair) -> Result<PathBuf, StoreError> {
        let date = jiff::Timestamp::now().strftime("%Y-%m-%d-%H-%M-%S");
        let path = self.folder.join(format!("{}-{date}.pem", self.prefix));
        write_private(&path, &format!("{}{}", pair.chain, pair.key))?;
        let current = self.current();
        let failed = |source| StoreError { path: current.clone(), source };
        let updated = self.folder.join(format!("{}-updated.pem", self.prefix));
        match fs::remove_file(&updated) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => symlink(&path, &updated).map_err(failed)?,
        }
        fs::rename(&updated, &current).map_err(failed)?;
        fs::File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        self.prune(&path);
        Ok(current)
    }

    /// Removes the oldest; what cannot be removed stays.
    fn prune(&self, used: &Path) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let dated = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let middle = name.strip_prefix(self.prefix).and_then(|rest| rest.strip_suffix(".pem"));
            middle
                .is_some_and(|date| date.len() == 20 && date.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit()))
        };
        let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(dated).collect();
        found.sort();
        let extra = found.len().saturating_sub(KEPT);
        for path in found.iter().take(extra).filter(|path| path.as_path() != used) {
            if let Err(error) = fs::remove_file(path) {
                tracing::debug!(file = %path.display(), %error, "an old certificate stays");
            }
        }
    }
}
