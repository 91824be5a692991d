//! Pods' records: `<pod>/record.json`, replaced as a whole.
//!
//! Owns reading and writing them. A record that is damaged is evidence: it is reported, left where it is, and set
//! aside as `record.json.damaged` only when a new one takes its place. One that the disk does not give may be good.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use longshore_core::ports::files::{FilesError, Records};
use longshore_core::record::{PodRecord, StoredPod};

use crate::layout::{At, Layout, refuse};
use crate::write::{self, Durability};

/// Name of a record in the pod's folder.
pub(crate) const RECORD: &str = "record.json";
/// Name of one that could not be read, once a new one is there.
pub(crate) const DAMAGED: &str = "record.json.damaged";
/// A pod is at most 10 MiB in a manifest; twice that is no record of ours.
const LARGEST: u64 = 20 << 20;

/// Reads all records. An error when the disk does not say which there are.
pub(crate) fn load_all(layout: &Layout) -> Result<Records, FilesError> {
    let mut found = Records::default();
    for uid in uids(layout)? {
        let path = layout.pod(&uid)?.join(RECORD);
        match read(&path) {
            Ok(Some(data)) => match parse(&path, &data) {
                Ok(pod) => found.pods.push(pod),
                Err(error) => found.damaged.push(error),
            },
            Ok(None) => {}
            Err(error) => found.unread.push(error),
        }
    }
    Ok(found)
}

/// UIDs of all pods that have a folder, in order.
pub(crate) fn uids(layout: &Layout) -> Result<Vec<String>, FilesError> {
    let pods = layout.pods();
    let list = match std::fs::read_dir(&pods) {
        Ok(list) => list,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).at(&pods),
    };
    let mut uids = Vec::new();
    for entry in list {
        let entry = entry.at(&pods)?;
        let is_other = entry.file_type().is_ok_and(|kind| !kind.is_dir());
        let name = entry.file_name().into_string().ok();
        uids.extend(name.filter(|name| !is_other && layout.pod(name).is_ok()));
    }
    uids.sort();
    Ok(uids)
}

fn parse(path: &Path, data: &[u8]) -> Result<StoredPod, FilesError> {
    let lost = "the pod's restart counts and start time are lost, the file is kept";
    if data.len() as u64 > LARGEST {
        return Err(refuse(path, format!("is larger than any record of ours; {lost}")));
    }
    serde_json::from_slice(data).map_err(|error| refuse(path, format!("is damaged: {error}; {lost}")))
}

/// What a record holds, cut off where it is larger than any of ours; `None` when there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, FilesError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).at(path),
    };
    let mut data = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut data).at(path)?;
    Ok(Some(data))
}

/// Stores a record; nothing is written where it says the same already. Returns the file when it is still to be flushed.
///
/// A power cut ends all containers, so what must survive one is what Docker cannot tell afterwards: that a pod ended or
/// was to end, and how often containers ran. For the rest the record before will do, and for the first one none.
pub(crate) fn save(pod: &Path, stored: &StoredPod) -> Result<Option<PathBuf>, FilesError> {
    let path = pod.join(RECORD);
    let data = serde_json::to_vec(stored).map_err(|error| refuse(&path, format!("cannot be written: {error}")))?;
    let durability = match read(&path) {
        Ok(Some(found)) if found == data => return Ok(None),
        Ok(None) => Durability::Later,
        Ok(Some(found)) => match serde_json::from_slice::<StoredPod>(&found) {
            Ok(former) if ends(&former.record) == ends(&stored.record) => Durability::Whole,
            Ok(_) => Durability::New,
            Err(_) => set_aside(pod)?,
        },
        Err(_) => set_aside(pod)?,
    };
    // Environment variables may hold what only root should read.
    write::replace_as(&path, &data, 0o600, durability)?;
    Ok((durability == Durability::Later).then_some(path))
}

fn set_aside(pod: &Path) -> Result<Durability, FilesError> {
    let path = pod.join(RECORD);
    std::fs::rename(&path, pod.join(DAMAGED)).at(&path)?;
    Ok(Durability::New)
}

/// What a power cut must not undo.
fn ends(record: &PodRecord) -> impl PartialEq + '_ {
    let containers = record.containers.iter();
    let containers: Vec<_> =
        containers.map(|(name, seen)| (name, seen.restarts, &seen.exit, &seen.last_exit)).collect();
    (&record.terminal, &record.deletion, containers)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use longshore_core::pod::Source;

    fn stored(name: &str) -> StoredPod {
        let mut object = k8s_openapi::api::core::v1::Pod::default();
        object.metadata.name = Some(name.to_owned());
        StoredPod {
            source: Source::File,
            object,
            hashes: Default::default(),
            sandbox_hash: "s".into(),
            record: Default::default(),
        }
    }

    fn layout(root: &Path) -> Layout {
        Layout { root: root.to_owned(), logs: root.join("l"), container_logs: root.join("c") }
    }

    #[test]
    fn records_are_saved_and_loaded_and_the_damaged_reported() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        for uid in ["u1", "u2", "u3", "u4"] {
            std::fs::create_dir_all(layout.pod(uid).unwrap()).unwrap();
        }
        save(&layout.pod("u1").unwrap(), &stored("a")).unwrap();
        save(&layout.pod("u1").unwrap(), &stored("b")).unwrap();
        std::fs::write(layout.pod("u2").unwrap().join(RECORD), b"{\"source\":\"fi").unwrap();
        std::fs::write(layout.pod("u3").unwrap().join(RECORD), b"").unwrap();
        let Records { pods, damaged: errors, unread } = load_all(&layout).unwrap();
        assert_eq!(unread, []);
        assert_eq!(pods, [stored("b")]);
        let messages: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), 2);
        assert!(messages[0].contains("u2/record.json: is damaged"), "{messages:?}");
        assert!(layout.pod("u2").unwrap().join(RECORD).exists(), "left where it is");
        save(&layout.pod("u2").unwrap(), &stored("c")).unwrap();
        assert_eq!(std::fs::read(layout.pod("u2").unwrap().join(DAMAGED)).unwrap(), b"{\"source\":\"fi");
        assert_eq!(load_all(&layout).unwrap().pods, [stored("b"), stored("c")]);
        assert_eq!(uids(&layout).unwrap(), ["u1", "u2", "u3", "u4"]);
    }

    #[test]
    fn what_the_disk_does_not_give_is_not_absent() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        assert_eq!(load_all(&layout).unwrap(), Records::default());
        // A folder can be opened, and reading it fails as a bad disk does.
        std::fs::create_dir_all(layout.pod("u1").unwrap().join(RECORD)).unwrap();
        let found = load_all(&layout).unwrap();
        assert!(found.damaged.is_empty() && found.unread[0].to_string().contains("u1/record.json"), "{found:?}");
        std::fs::remove_dir_all(layout.pods()).unwrap();
        std::fs::write(layout.pods(), "").unwrap();
        assert!(load_all(&layout).is_err());
    }

    #[test]
    fn the_same_record_is_not_written_again() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &stored("a")).unwrap();
        let before = std::fs::metadata(dir.path().join(RECORD)).unwrap();
        save(dir.path(), &stored("a")).unwrap();
        assert_eq!(std::fs::metadata(dir.path().join(RECORD)).unwrap().ino(), before.ino());
        assert_eq!(before.mode() & 0o777, 0o600);
    }
    #[test]
    fn the_first_record_is_flushed_later_and_others_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut pod = stored("a");
        let later = save(dir.path(), &pod).unwrap().unwrap();
        write::flush(&later).unwrap();
        pod.record.start_time = Some(jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(save(dir.path(), &pod).unwrap(), None);
        pod.record.containers.entry("app".into()).or_default().restarts = 1;
        assert_eq!(save(dir.path(), &pod).unwrap(), None);
        std::fs::remove_file(&later).unwrap();
        write::flush(&later).unwrap();
    }
}
