//! Where things of a pod are below the root folder, and which names may become parts of a path.
//!
//! Owns every path that this room makes and the check that none can lead elsewhere. It must not touch the disk.
//! Paths as `pkg/kubelet/kubelet_getters.go`; log paths as `pkg/kubelet/kuberuntime/{legacy,helpers}.go`.

use std::path::{Path, PathBuf};

use longshore_core::pod::PodId;
use longshore_core::ports::files::{FilesError, PodFiles};

/// Longest file name that Linux file systems take, in bytes.
const NAME_MAX: usize = 255;

/// All paths that this room uses. The roots are absolute and free of symlinks, so that they compare with mountinfo.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// `/var/lib/longshore`.
    pub(crate) root: PathBuf,
    /// `/var/log/pods`.
    pub(crate) logs: PathBuf,
    /// `/var/log/containers`.
    pub(crate) container_logs: PathBuf,
}

impl Layout {
    /// Folder of all pods' folders.
    pub(crate) fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// Folder of a pod.
    pub(crate) fn pod(&self, uid: &str) -> Result<PathBuf, FilesError> {
        Ok(self.pods().join(part(&self.pods(), "pod UID", uid)?))
    }

    /// Folder of a container's log links: `<logs>/<ns>_<pod>_<uid>/<container>`. Long names of pods are cut, for a
    /// file name ends at 255 bytes; the UID keeps the folder the pod's own.
    pub(crate) fn pod_logs(&self, pod: &PodId) -> PathBuf {
        let tail = format!("_{}", pod.uid);
        let whole = format!("{}_{}", pod.namespace, pod.name);
        let head = cut(&whole, NAME_MAX.saturating_sub(tail.len()));
        self.logs.join(plain(&format!("{head}{tail}")))
    }

    /// A container's log link.
    pub(crate) fn log(&self, pod: &PodId, container: &str, attempt: u32) -> PathBuf {
        self.pod_logs(pod).join(plain(container)).join(format!("{attempt}.log"))
    }

    /// The link for log collectors: `<pod>_<ns>_<container>-<id>.log`, cut to 255 bytes as the kubelet cuts it.
    pub(crate) fn container_log(&self, pod: &PodId, container: &str, id: &str) -> PathBuf {
        let name = format!("{}_{}_{container}-{id}", pod.name, pod.namespace);
        self.container_logs.join(plain(&format!("{}.log", cut(&name, NAME_MAX - ".log".len()))))
    }
}

/// What is where in a pod's folder, but for its volumes.
pub(crate) fn files_of(pod: &Path) -> PodFiles {
    PodFiles {
        resolv_conf: pod.join("resolv.conf"),
        hosts: pod.join("etc-hosts"),
        messages: pod.join("containers"),
        ..PodFiles::default()
    }
}

/// The first `limit` bytes of a text, never half a character.
fn cut(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A name that can only be one part of a path, whatever was in it: for paths that cannot fail.
fn plain(name: &str) -> String {
    if name == "." || name == ".." || name.is_empty() {
        return "_".to_owned();
    }
    name.replace(['/', '\0'], "_")
}

/// Checks that a name is one part of a path and nothing more.
pub(crate) fn part<'a>(place: &Path, what: &str, name: &'a str) -> Result<&'a str, FilesError> {
    let reason = if name.is_empty() {
        "is empty"
    } else if name == "." || name == ".." {
        "names a folder above"
    } else if name.contains(['/', '\0']) {
        "contains a slash or a NUL"
    } else if name.len() > NAME_MAX {
        "is longer than 255 bytes"
    } else if name.starts_with('.') {
        "starts with a dot"
    } else {
        return Ok(name);
    };
    Err(FilesError::Io {
        path: place.to_owned(),
        message: format!("{what} {name:?} {reason}: it cannot be a folder's name"),
    })
}

/// An I/O error with the path that it is about.
pub(crate) trait At<T> {
    /// Names the path.
    fn at(self, path: &Path) -> Result<T, FilesError>;
}

impl<T, E: Into<std::io::Error>> At<T> for Result<T, E> {
    fn at(self, path: &Path) -> Result<T, FilesError> {
        self.map_err(|error| FilesError::Io { path: path.to_owned(), message: error.into().to_string() })
    }
}

/// An error about a path that no system call made.
pub(crate) fn refuse(path: &Path, message: impl Into<String>) -> FilesError {
    FilesError::Io { path: path.to_owned(), message: message.into() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout { root: "/r".into(), logs: "/l".into(), container_logs: "/c".into() }
    }

    fn pod(namespace: &str, name: &str, uid: &str) -> PodId {
        PodId { namespace: namespace.into(), name: name.into(), uid: uid.into() }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for uid in ["", ".", "..", "a/b", "../x", "a\0b", ".hidden", &"x".repeat(256)] {
            assert!(layout().pod(uid).is_err(), "{uid:?}");
        }
        assert_eq!(layout().pod("0a-b").unwrap(), Path::new("/r/pods/0a-b"));
    }

    #[test]
    fn log_paths_are_the_kubelets() {
        let pod = pod("ns", "web", "u1");
        assert_eq!(layout().log(&pod, "app", 3), Path::new("/l/ns_web_u1/app/3.log"));
        assert_eq!(layout().container_log(&pod, "app", "abc"), Path::new("/c/web_ns_app-abc.log"));
    }

    #[test]
    fn log_names_end_at_255_bytes() {
        let pod = pod(&"n".repeat(63), &"p".repeat(253), &"u".repeat(36));
        let folder = layout().pod_logs(&pod);
        let name = folder.file_name().unwrap().to_str().unwrap();
        assert_eq!(name.len(), 255);
        assert!(name.ends_with(&format!("_{}", pod.uid)));
        let link = layout().container_log(&pod, "c", &"d".repeat(64));
        assert_eq!(link.file_name().unwrap().len(), 255);
        assert!(link.to_str().unwrap().ends_with(".log"));
    }

    #[test]
    fn log_paths_of_hostile_names_stay_inside() {
        let pod = pod("../..", "../../etc", "..");
        assert_eq!(layout().log(&pod, "..", 0).parent().unwrap().parent().unwrap().parent(), Some(Path::new("/l")));
    }
}
