//! What plugins were told and said of each sandbox, on disk in libcni's format (`cachedInfo` of `libcni/api.go`): the list
//! of what must be taken back. An entry is there from before the first plugin is called; it has a result once all were.
//!
//! The folder may be shared with others: an entry of ours names our root. One that cannot be read is an error, not an
//! empty one: what is forgotten here is never taken back.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use longshore_core::ports::network::PluginError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::NetworkList;

const KIND: &str = "cniCacheV1";
/// The device in the pod.
pub(crate) const DEVICE: &str = "eth0";
/// An entry is a few KiB.
const ENTRY_LIMIT: u64 = 1 << 20;

/// One sandbox on one network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    kind: String,
    pub(crate) container_id: String,
    /// The list of plugins that were called, in base64.
    config: String,
    pub(crate) if_name: String,
    pub(crate) network_name: String,
    #[serde(default)]
    pub(crate) netns: String,
    #[serde(default)]
    pub(crate) cni_args: Vec<(String, String)>,
    #[serde(default)]
    pub(crate) capability_args: Map<String, Value>,
    /// What the last plugin gave; absent while they are being called, or when one failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<Map<String, Value>>,
    /// Our root; libcni does not look at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    longshore_root: Option<String>,
}

impl Entry {
    /// One for a sandbox that is about to be attached.
    pub(crate) fn new(
        list: &NetworkList,
        container_id: &str,
        netns: &str,
        cni_args: Vec<(String, String)>,
        capability_args: Map<String, Value>,
    ) -> Entry {
        Entry {
            kind: KIND.to_owned(),
            container_id: container_id.to_owned(),
            config: STANDARD.encode(list.text()),
            if_name: DEVICE.to_owned(),
            network_name: list.name.clone(),
            netns: netns.to_owned(),
            cni_args,
            capability_args,
            result: None,
            longshore_root: None,
        }
    }

    /// Whether an agent like this one made it, of whatever root.
    pub(crate) fn is_longshores(&self) -> bool {
        self.longshore_root.is_some()
    }

    /// The plugins that were called.
    pub(crate) fn list(&self) -> Result<NetworkList, String> {
        let text = STANDARD.decode(&self.config).map_err(|error| error.to_string())?;
        NetworkList::parse(&String::from_utf8_lossy(&text)).map_err(|error| error.to_string())
    }
}

/// The folder. Its methods block.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    root: String,
}

impl Cache {
    pub(crate) fn new(folder: &Path, root: &str) -> Cache {
        Cache { folder: folder.join("results"), root: root.to_owned() }
    }

    /// All entries: ours by sandbox, and others'. What is no entry is nobody's, and a folder that is not there is empty.
    pub(crate) fn load(&self) -> Result<(BTreeMap<String, Entry>, Vec<Entry>), PluginError> {
        let (mut ours, mut others) = (BTreeMap::new(), Vec::new());
        let folder = match fs::read_dir(&self.folder) {
            Ok(folder) => folder,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok((ours, others)),
            Err(error) => return Err(disk(&self.folder, &error)),
        };
        for found in folder {
            let path = found.map_err(|error| disk(&self.folder, &error))?.path();
            let Some(entry) = read(&path).map_err(|error| disk(&path, &error))? else { continue };
            if entry.longshore_root.as_ref() == Some(&self.root) {
                ours.insert(entry.container_id.clone(), entry);
            } else {
                others.push(entry);
            }
        }
        Ok((ours, others))
    }

    /// That something else kept it from being read or written.
    pub(crate) fn failed(&self, error: &dyn std::fmt::Display) -> PluginError {
        disk(&self.folder, error)
    }

    fn path(&self, entry: &Entry) -> PathBuf {
        self.folder.join(format!("{}-{}-{}", entry.network_name, entry.container_id, entry.if_name))
    }

    /// Writes an entry as ours. It is there whole, also after a power cut, or as it was before.
    pub(crate) fn save(&self, entry: &mut Entry) -> Result<(), PluginError> {
        entry.longshore_root = Some(self.root.clone());
        let path = self.path(entry);
        let text = serde_json::to_vec(entry).map_err(|error| disk(&path, &error))?;
        let partial = self.folder.join(format!(".{}.partial", entry.container_id));
        let write = || -> std::io::Result<()> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            fs::File::open(&self.folder)?.sync_all()
        };
        write().map_err(|error| disk(&path, &error))
    }

    /// Removes an entry; one that is gone is fine.
    pub(crate) fn remove(&self, entry: &Entry) -> Result<(), PluginError> {
        let path = self.path(entry);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(disk(&path, &error)),
            _ => Ok(()),
        }
    }
}

fn disk(path: &Path, error: &dyn std::fmt::Display) -> PluginError {
    PluginError::Disk { path: path.display().to_string(), message: format!("{error} (--cni-cache-dir)") }
}

/// The entry in a file; `None` where it is none, or gone meanwhile.
fn read(path: &Path) -> std::io::Result<Option<Entry>> {
    let mut text = Vec::new();
    // A pipe would never end, nor would opening it.
    let opened = match fs::metadata(path) {
        Ok(found) if !found.is_file() => return Ok(None),
        found => found.and_then(|_| fs::File::open(path)),
    };
    match opened {
        Ok(file) => file.take(ENTRY_LIMIT).read_to_end(&mut text)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let Ok(entry) = serde_json::from_slice::<Entry>(&text) else { return Ok(None) };
    // What it says must be what its name says: both become parts of paths.
    let named = format!("{}-{}-{}", entry.network_name, entry.container_id, entry.if_name);
    Ok((entry.kind == KIND && path.file_name().is_some_and(|name| name == named.as_str())).then_some(entry))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn entry(id: &str) -> Entry {
        let list = NetworkList::parse(r#"{"name": "n", "plugins": [{"type": "x"}]}"#).unwrap();
        Entry::new(&list, id, "/proc/1/ns/net", vec![("IgnoreUnknown".to_owned(), "1".to_owned())], Map::new())
    }

    #[test]
    fn entries_are_kept_as_libcni_keeps_them() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path(), "root");
        let mut kept = entry("abc");
        cache.save(&mut kept).unwrap();
        kept.result = Some(serde_json::from_str(r#"{"ips": []}"#).unwrap());
        cache.save(&mut kept).unwrap();
        let path = folder.path().join("results/n-abc-eth0");
        let written: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!((&written["kind"], &written["ifName"]), (&"cniCacheV1".into(), &"eth0".into()));
        assert_eq!((&written["containerId"], &written["networkName"]), (&"abc".into(), &"n".into()));
        assert_eq!(written["cniArgs"], serde_json::json!([["IgnoreUnknown", "1"]]));
        let (ours, others) = cache.load().unwrap();
        assert_eq!((ours.get("abc"), others.len(), ours.len()), (Some(&kept), 0, 1));
        assert_eq!(kept.list().unwrap().plugins[0].kind, "x");
        cache.remove(&kept).unwrap();
        cache.remove(&kept).unwrap();
        assert!(cache.load().unwrap().0.is_empty());
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_no_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path(), "root");
        assert_eq!(cache.load(), Ok((BTreeMap::new(), Vec::new())), "it is made with the first entry");
        let results = folder.path().join("results");
        fs::write(&results, "").unwrap();
        let PluginError::Disk { path, message } = cache.load().unwrap_err() else { panic!("another error") };
        assert_eq!(path, results.display().to_string());
        assert!(message.contains("--cni-cache-dir"), "{message}");
        // The same for an entry: a link that leads to itself, whoever runs this.
        fs::remove_file(&results).unwrap();
        fs::create_dir(&results).unwrap();
        std::os::unix::fs::symlink("n-abc-eth0", results.join("n-abc-eth0")).unwrap();
        assert!(matches!(cache.load(), Err(PluginError::Disk { path, .. }) if path.ends_with("results/n-abc-eth0")));
    }

    #[test]
    fn entries_of_others_are_others() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path(), "root");
        Cache::new(folder.path(), "another").save(&mut entry("abc")).unwrap();
        let results = folder.path().join("results");
        // As libcni itself writes one.
        let text = r#"{"kind":"cniCacheV1","containerId":"def","config":"e30=","ifName":"eth0","networkName":"n",
            "cniArgs":[["a","b"]],"capabilityArgs":{"portMappings":[]},"result":{"cniVersion":"0.4.0"}}"#;
        fs::write(results.join("n-def-eth0"), text).unwrap();
        fs::write(results.join("n-lies-eth0"), text).unwrap();
        fs::write(results.join("rubbish"), "{").unwrap();
        let (ours, others) = cache.load().unwrap();
        assert_eq!((ours.len(), others.len()), (0, 2));
    }
}
