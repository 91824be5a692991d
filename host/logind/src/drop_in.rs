//! The file by which logind is made to wait for longer.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// After `99-kubelet.conf`, so that a kubelet that was here before does not shorten it.
const NAME: &str = "99-longshore.conf";

/// The file in that folder.
pub(crate) fn path(folder: &Path) -> PathBuf {
    folder.join(NAME)
}

/// Writes it; whole seconds, rounded up.
pub(crate) fn write(path: &Path, delay: Duration) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
    let text = format!(
        "# Written by longshore: pods get this long to end when the machine goes down (shutdownGracePeriod).\n\
         [Login]\nInhibitDelayMaxSec={seconds}\n"
    );
    let fresh = path.with_extension("new");
    fs::write(&fresh, text)?;
    fs::rename(fresh, path)
}
