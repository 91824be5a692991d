//! What an agent makes once for a machine: compiled plugins, and what it found out about Docker. What the first agent
//! left is laid into the root folders of those that follow, which are up seconds sooner. Nothing of a pod is in it.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// Below the root folder, of root alone as the agent makes them.
const FILES: [&str; 2] = ["docker.json", "plugins/compiled-by"];
const COMPILED: &str = "plugins/cache";

static LEFT: OnceLock<Vec<(PathBuf, Vec<u8>)>> = OnceLock::new();

/// Takes what the agent of this root folder left, if it is the first to be up.
pub(super) fn take(root: &Path) {
    if LEFT.get().is_some() {
        return;
    }
    let compiled = fs::read_dir(root.join(COMPILED)).into_iter().flatten().flatten();
    let compiled = compiled.map(|entry| Path::new(COMPILED).join(entry.file_name()));
    let paths = FILES.iter().map(PathBuf::from).chain(compiled);
    let read = paths.map(|path| Ok((path.clone(), fs::read(root.join(path))?))).collect::<std::io::Result<_>>();
    // One that has none of it, beside a Docker that is a fake say, leaves it to the next.
    if let Ok(read) = read {
        let _ = LEFT.set(read);
    }
}

/// Lays it into a root folder that is not there yet.
pub(super) fn lay(root: &Path) {
    let Some(left) = LEFT.get().filter(|_| !root.exists()) else { return };
    fs::DirBuilder::new().mode(0o750).create(root).unwrap();
    for (path, content) in left {
        let path = root.join(path);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path.parent().unwrap()).unwrap();
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
        std::io::Write::write_all(&mut file, content).unwrap();
    }
}
