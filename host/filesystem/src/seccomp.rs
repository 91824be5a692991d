//! Seccomp profiles of type `Localhost`: text files below `<root>/seccomp`.
//!
//! Owns finding and reading one. It must not look into it: the runtime judges profiles.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use longshore_core::ports::files::FilesError;
use rustix::fs::OFlags;

use crate::layout::{At, refuse};

/// Docker's own default profile has 14 kB.
const LARGEST: u64 = 1 << 20;

/// The text of `<root>/seccomp/<name>`. The folder is root's, so links in it are looked at once, not guarded.
pub(crate) fn read(root: &Path, name: &str) -> Result<String, FilesError> {
    let folder = root.join("seccomp");
    let asked = folder.join(name.trim_start_matches('/'));
    if name.is_empty() || name.starts_with('/') || name.split('/').any(|part| part == "..") {
        return Err(refuse(&asked, "a seccomp profile's name must be a relative path without '..'"));
    }
    let found = asked.canonicalize().at(&asked)?;
    if !found.starts_with(folder.canonicalize().at(&folder)?) {
        return Err(refuse(&asked, format!("leads out of {}", folder.display())));
    }
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&found).at(&asked)?;
    if !file.metadata().at(&asked)?.is_file() {
        return Err(refuse(&asked, "is not a file"));
    }
    let mut text = String::new();
    file.take(LARGEST + 1).read_to_string(&mut text).at(&asked)?;
    if text.len() as u64 > LARGEST {
        return Err(refuse(&asked, "is larger than 1 MiB, which no seccomp profile is"));
    }
    Ok(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_read_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("seccomp/profiles")).unwrap();
        std::fs::write(at("seccomp/profiles/a.json"), "{}").unwrap();
        std::fs::write(at("secret"), "secret").unwrap();
        std::os::unix::fs::symlink("../secret", at("seccomp/out")).unwrap();
        std::os::unix::fs::symlink("profiles/a.json", at("seccomp/in")).unwrap();
        assert_eq!(read(dir.path(), "profiles/a.json").unwrap(), "{}");
        assert_eq!(read(dir.path(), "in").unwrap(), "{}");
        for name in ["", "../secret", "/etc/passwd", "out", "profiles", "none"] {
            assert!(read(dir.path(), name).is_err(), "{name:?}");
        }
    }
}
