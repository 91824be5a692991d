//! Log links and termination messages: `/var/log/pods`, `/var/log/containers`, `<pod>/containers`.
//!
//! Owns the links (`pkg/kubelet/kuberuntime/legacy.go`), never the logs: those are the runtime's.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use longshore_core::pod::PodId;
use longshore_core::ports::files::FilesError;
use rustix::fs::OFlags;

use crate::layout::{At, Layout, files_of, part, refuse};
use crate::write;

/// Termination files of so many attempts of a container are kept.
const ATTEMPTS: u32 = 3;

/// Links `/var/log/containers/… → /var/log/pods/… → the runtime's file`.
pub(crate) fn link(
    layout: &Layout,
    pod: &PodId,
    container: &str,
    attempt: u32,
    id: &str,
    runtime_log: &Path,
) -> Result<(), FilesError> {
    let log = layout.log(pod, container, attempt);
    if let Some(folder) = log.parent() {
        write::folders(folder, 0o755)?;
    }
    place(&log, runtime_log)?;
    write::folders(&layout.container_logs, 0o755)?;
    place(&layout.container_log(pod, container, id), &log)
}

/// Puts a link at a path, in one step, unless it is there.
fn place(link: &Path, target: &Path) -> Result<(), FilesError> {
    match std::fs::symlink_metadata(link) {
        Ok(found) if !found.is_symlink() => {
            return Err(refuse(
                link,
                "is not a link of ours: remove it, so that the container's log can be linked here",
            ));
        }
        Ok(_) if std::fs::read_link(link).is_ok_and(|found| found == target) => return Ok(()),
        Ok(_) | Err(_) => {}
    }
    // Short whatever the link's own name is, which may fill all 255 bytes.
    let next = link.with_file_name(format!(".longshore-{:016x}", fingerprint(link)));
    let _ = std::fs::remove_file(&next);
    std::os::unix::fs::symlink(target, &next).at(&next)?;
    std::fs::rename(&next, link).at(link)
}

/// FNV-1a of a path: tells links that are being placed at the same time apart.
fn fingerprint(path: &Path) -> u64 {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Takes a container's links away, and its folder when it was the last.
pub(crate) fn unlink(layout: &Layout, pod: &PodId, container: &str, attempt: u32, id: &str) {
    let log = layout.log(pod, container, attempt);
    for link in [&layout.container_log(pod, container, id), &log] {
        if std::fs::symlink_metadata(link).is_ok_and(|found| found.is_symlink())
            && let Err(error) = std::fs::remove_file(link)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%pod, container, path = %link.display(), %error, "cannot remove a log link");
        }
    }
    if let Some(folder) = log.parent() {
        // Not empty is the usual answer.
        let _ = std::fs::remove_dir(folder);
        let _ = folder.parent().map(std::fs::remove_dir);
    }
}

/// Removes what is left of the links of a pod that is gone: those that lead nowhere, and folders without any.
pub(crate) fn forget(layout: &Layout, uid: &str) {
    let tail = format!("_{uid}");
    for folder in children(&layout.logs).into_iter().filter(|path| path.to_string_lossy().ends_with(&tail)) {
        for container in children(&folder) {
            for log in children(&container) {
                if leads_nowhere(&log) {
                    let _ = std::fs::remove_file(&log);
                }
            }
            let _ = std::fs::remove_dir(&container);
        }
        let _ = std::fs::remove_dir(&folder);
        for link in children(&layout.container_logs) {
            if std::fs::read_link(&link).is_ok_and(|target| target.starts_with(&folder)) && leads_nowhere(&link) {
                let _ = std::fs::remove_file(&link);
            }
        }
    }
}

fn leads_nowhere(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) && !path.exists()
}

fn children(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder)
        .map(|list| list.filter_map(Result::ok).map(|entry| entry.path()).collect())
        .unwrap_or_default()
}

/// An empty file for a container's termination message, which any user in the container may write:
/// `<pod>/containers/<container>/<attempt>`.
pub(crate) fn termination_file(pod: &Path, container: &str, attempt: u32) -> Result<PathBuf, FilesError> {
    let mut folder = files_of(pod).messages;
    write::folder(&folder, 0o750)?;
    let name = part(&folder, "container name", container)?;
    folder.push(name);
    write::folder(&folder, 0o750)?;
    let name = |attempt: u32| format!("{attempt:08x}");
    if let Some(oldest) = attempt.checked_sub(ATTEMPTS) {
        let _ = std::fs::remove_file(folder.join(name(oldest)));
    }
    let file = folder.join(name(attempt));
    write::rewrite(&file, b"", 0o666)?;
    Ok(file)
}

/// The last `limit` bytes that a container left (`pkg/util/tail`); empty when there is nothing to read.
pub(crate) fn termination_message(file: &Path, limit: usize) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let mut file = OpenOptions::new().read(true).custom_flags(flags).open(file)?;
        let found = file.metadata()?;
        if !found.is_file() {
            return Ok(Vec::new());
        }
        file.seek(SeekFrom::Start(found.len().saturating_sub(limit as u64)))?;
        let mut data = Vec::new();
        file.take(limit as u64).read_to_end(&mut data)?;
        Ok(data)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn fixture() -> (tempfile::TempDir, Layout, PodId) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let layout = Layout { root: at("root"), logs: at("log/pods"), container_logs: at("log/containers") };
        let pod = PodId { namespace: "ns".into(), name: "web".into(), uid: "u1".into() };
        (dir, layout, pod)
    }

    #[test]
    fn links_lead_to_the_runtimes_file_and_go_with_their_folders() {
        let (dir, layout, pod) = fixture();
        let log = dir.path().join("json.log");
        std::fs::write(&log, "line").unwrap();
        for id in ["old", "abc", "abc"] {
            link(&layout, &pod, "app", 1, id, &log).unwrap();
        }
        let container = layout.container_logs.join("web_ns_app-abc.log");
        assert_eq!(std::fs::read_to_string(&container).unwrap(), "line");
        assert_eq!(std::fs::read_link(&container).unwrap(), layout.logs.join("ns_web_u1/app/1.log"));
        unlink(&layout, &pod, "app", 1, "abc");
        unlink(&layout, &pod, "app", 1, "old");
        assert_eq!(std::fs::read_dir(&layout.logs).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(&layout.container_logs).unwrap().count(), 0);
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "line");
    }

    #[test]
    fn forgetting_keeps_logs_of_containers_that_exist() {
        let (dir, layout, pod) = fixture();
        let log = dir.path().join("json.log");
        std::fs::write(&log, "line").unwrap();
        link(&layout, &pod, "app", 0, "here", &log).unwrap();
        link(&layout, &pod, "gone", 0, "gone", &dir.path().join("nothing")).unwrap();
        forget(&layout, &pod.uid);
        assert!(layout.log(&pod, "app", 0).exists());
        assert!(!layout.log(&pod, "gone", 0).parent().unwrap().exists());
        assert_eq!(std::fs::read_dir(&layout.container_logs).unwrap().count(), 1);
        std::fs::remove_file(&log).unwrap();
        forget(&layout, &pod.uid);
        assert!(!layout.pod_logs(&pod).exists());
        assert_eq!(std::fs::read_dir(&layout.container_logs).unwrap().count(), 0);
    }

    #[test]
    fn names_that_fill_255_bytes_are_linked() {
        let (dir, layout, mut pod) = fixture();
        pod.name = "p".repeat(253);
        let log = dir.path().join("json.log");
        std::fs::write(&log, "line").unwrap();
        link(&layout, &pod, "app", 0, &"d".repeat(64), &log).unwrap();
        assert!(layout.log(&pod, "app", 0).exists());
    }

    #[test]
    fn termination_messages_are_the_end_of_a_plain_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = termination_file(dir.path(), "app", 7).unwrap();
        assert_eq!(termination_message(&file, 10), "");
        std::fs::write(&file, "0123456789").unwrap();
        assert_eq!(termination_message(&file, 4), "6789");
        assert_eq!(termination_message(&file, 0), "");
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&secret, &link).unwrap();
        assert_eq!(termination_message(&link, 10), "");
        assert_eq!(termination_message(Path::new("/dev/zero"), 10), "");
        assert_eq!(termination_message(&dir.path().join("none"), 10), "");
        assert!(termination_file(dir.path(), "../x", 0).is_err());
    }

    #[test]
    fn termination_files_of_old_attempts_go() {
        let dir = tempfile::tempdir().unwrap();
        for attempt in 0..10 {
            termination_file(dir.path(), "app", attempt).unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path().join("containers/app")).unwrap().count(), ATTEMPTS as usize);
    }
}
