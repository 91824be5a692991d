//! hostPath volumes: the checks of `pkg/volume/hostpath/host_path.go`, with its messages.
//!
//! A hostPath belongs to the node: nothing here, or anywhere in this room, ever changes its owner or removes it.

use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Component, Path};

use longshore_core::volume::HostPathKind;
use rustix::fs::OFlags;

/// Checks, or makes, what a hostPath must be. The error is for the user.
pub(crate) fn check(path: &Path, kind: HostPathKind) -> Result<(), String> {
    let shown = path.display();
    if path.components().any(|component| component == Component::ParentDir) {
        return Err(format!("invalid HostPath `{shown}`: must not contain '..'"));
    }
    if !path.is_absolute() {
        return Err(format!("invalid HostPath `{shown}`: must be an absolute path"));
    }
    match kind {
        HostPathKind::Unset => Ok(()),
        HostPathKind::DirectoryOrCreate if absent(path) => DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(|error| format!("hostPath {shown} cannot be made: {error}")),
        HostPathKind::FileOrCreate if absent(path) => {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
                .open(path);
            file.map(drop).map_err(|error| format!("hostPath {shown} cannot be made: {error}"))
        }
        HostPathKind::DirectoryOrCreate | HostPathKind::Directory => expect(path, "Directory", "directory"),
        HostPathKind::FileOrCreate | HostPathKind::File => expect(path, "File", "file"),
        HostPathKind::Socket => expect(path, "Socket", "socket file"),
        HostPathKind::CharDevice => expect(path, "CharDevice", "character device"),
        HostPathKind::BlockDevice => expect(path, "BlockDevice", "block device"),
    }
}

fn absent(path: &Path) -> bool {
    std::fs::metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

fn expect(path: &Path, wanted: &str, description: &str) -> Result<(), String> {
    let shown = path.display();
    let found = std::fs::metadata(path).map(|found| found.file_type()).map_err(|error| {
        let why = match error.kind() {
            std::io::ErrorKind::NotFound => format!("path {:?} does not exist", path.to_string_lossy()),
            _ => error.to_string(),
        };
        format!("hostPath type check failed, {shown} is not a {description}, unable to determine its type: {why}")
    })?;
    let kind = if found.is_dir() {
        "Directory"
    } else if found.is_file() {
        "File"
    } else if found.is_socket() {
        "Socket"
    } else if found.is_char_device() {
        "CharDevice"
    } else if found.is_block_device() {
        "BlockDevice"
    } else {
        "FIFO"
    };
    if kind == wanted {
        return Ok(());
    }
    Err(format!("hostPath type check failed: {shown} is not a {description}, it's a {kind}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn types_are_checked_with_the_kubelets_messages() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let message = |name: &str, kind| check(&at(name), kind).unwrap_err().replace(dir.path().to_str().unwrap(), "");
        std::fs::write(at("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (kind, wanted) in [
            (HostPathKind::Directory, "directory"),
            (HostPathKind::File, "file"),
            (HostPathKind::Socket, "socket file"),
            (HostPathKind::CharDevice, "character device"),
            (HostPathKind::BlockDevice, "block device"),
        ] {
            let wanted = format!(
                "hostPath type check failed, /none is not a {wanted}, unable to determine its type: path \"/none\" does not exist"
            );
            assert_eq!(message("none", kind), wanted);
        }
        assert_eq!(
            message("file", HostPathKind::DirectoryOrCreate),
            "hostPath type check failed: /file is not a directory, it's a File"
        );
        assert_eq!(
            message("socket", HostPathKind::File),
            "hostPath type check failed: /socket is not a file, it's a Socket"
        );
        assert_eq!(check(&at("socket"), HostPathKind::Socket), Ok(()));
        assert_eq!(check(Path::new("/dev/null"), HostPathKind::CharDevice), Ok(()));
        assert!(check(Path::new("/dev/null"), HostPathKind::BlockDevice).unwrap_err().ends_with("it's a CharDevice"));
        assert_eq!(check(&at("none"), HostPathKind::Unset), Ok(()));
    }

    #[test]
    fn what_is_absent_is_made_with_the_kubelets_modes() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        check(&dir.path().join("a/b"), HostPathKind::DirectoryOrCreate).unwrap();
        check(&dir.path().join("f"), HostPathKind::FileOrCreate).unwrap();
        assert_eq!(mode(&dir.path().join("a/b")), 0o755);
        assert_eq!(mode(&dir.path().join("f")), 0o644);
        check(&dir.path().join("f"), HostPathKind::FileOrCreate).unwrap();
        assert!(check(&dir.path().join("no/f"), HostPathKind::FileOrCreate).is_err());
    }

    #[test]
    fn backsteps_and_relative_paths_are_refused() {
        assert!(check(Path::new("/tmp/../etc"), HostPathKind::Unset).unwrap_err().contains("must not contain '..'"));
        assert!(check(Path::new("tmp"), HostPathKind::Unset).unwrap_err().contains("absolute"));
    }
}
