//! What other agents attached through libcni, for whoever takes their sandboxes over. Never another longshore's.

use std::path::{Path, PathBuf};

use longshore_core::ports::network::PluginError;

use crate::cache::{Cache, DEVICE, Entry};
use crate::chain::Caller;

/// Attachments of dockershim and cri-dockerd.
#[derive(Debug)]
pub struct ForeignAttachments {
    caller: Caller,
    cache: Cache,
    entries: Vec<Entry>,
}

impl ForeignAttachments {
    /// Reads what there is in a folder like `--cni-cache-dir`. Blocks for a moment.
    pub fn read(cache_dir: &Path, bin_dirs: Vec<PathBuf>) -> Result<ForeignAttachments, PluginError> {
        // No root has the empty ID.
        let cache = Cache::new(cache_dir, "");
        let (_, mut entries) = cache.load()?;
        // Of the loopback, which they attach as well, nothing is left; other devices are a plugin's to take back.
        entries.retain(|entry| entry.if_name == DEVICE && !entry.is_longshores());
        Ok(ForeignAttachments { caller: Caller { folders: bin_dirs }, cache, entries })
    }

    /// Whether that sandbox is attached.
    pub fn has(&self, sandbox_id: &str) -> bool {
        self.entries.iter().any(|entry| entry.container_id == sandbox_id)
    }

    /// Has the plugins that attached a sandbox let go of it; one that is not attached is fine. `pid` is its process, if it
    /// runs: some plugins see in its namespace alone what they are to take back on the node.
    pub async fn release(&self, sandbox_id: &str, pid: Option<u32>) -> Result<(), PluginError> {
        let netns = netns("/proc", pid);
        for entry in self.entries.iter().filter(|entry| entry.container_id == sandbox_id) {
            let list = entry.list().map_err(|problem| self.cache.failed(&problem))?;
            self.caller.del(&list, entry, &netns).await?;
            self.cache.remove(entry)?;
        }
        Ok(())
    }
}

/// The network namespace of that process; empty where it is gone, or where it is our own, of which no plugin may take
/// anything: with a Docker in a virtual machine the number is another process's.
fn netns(processes: &str, pid: Option<u32>) -> String {
    let of = |process: &str| format!("{processes}/{process}/ns/net");
    let path = pid.map(|pid| of(&pid.to_string())).unwrap_or_default();
    match std::fs::read_link(&path) {
        Ok(found) if std::fs::read_link(of("self")).is_ok_and(|own| own != found) => path,
        _ => String::new(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use serde_json::Map;

    use super::*;
    use crate::config::NetworkList;

    #[tokio::test]
    async fn what_others_attached_is_taken_back_once() {
        let folder = tempfile::tempdir().unwrap();
        let (results, told) = (folder.path().join("results"), folder.path().join("told"));
        let list = NetworkList::parse(r#"{"name": "n", "plugins": [{"type": "x"}]}"#).unwrap();
        let mut ours = Entry::new(&list, "ours", "", Vec::new(), Map::new());
        Cache::new(folder.path(), "root").save(&mut ours).unwrap();
        // As libcni itself writes one.
        let config = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, list.text());
        let of = |id: &str, device: &str| {
            let text = format!(
                r#"{{"kind":"cniCacheV1","containerId":"{id}","config":"{config}","ifName":"{device}","networkName":"n"}}"#
            );
            fs::write(results.join(format!("n-{id}-{device}")), text).unwrap();
        };
        of("a", "eth0");
        of("a", "lo");
        of("b", "eth0");
        let plugin = folder.path().join("x");
        let read = || ForeignAttachments::read(folder.path(), vec![folder.path().to_owned()]).unwrap();
        let found = read();
        assert!(found.has("a") && found.has("b") && !found.has("ours") && !found.has("c"));
        assert!(found.release("a", None).await.is_err(), "there is no such plugin yet");
        assert!(read().has("a"), "it is there to be tried again");

        let script = format!("#!/bin/sh\necho $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME >> {}\n", told.display());
        fs::write(&plugin, script).unwrap();
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
        found.release("a", None).await.unwrap();
        found.release("c", None).await.unwrap();
        assert_eq!(fs::read_to_string(told).unwrap(), "DEL a eth0\n");
        let left = read();
        assert!(!left.has("a") && left.has("b") && results.join("n-ours-eth0").exists());
    }

    #[test]
    fn a_sandboxs_namespace_while_it_runs_and_never_ours() {
        let folder = tempfile::tempdir().unwrap();
        for (process, namespace) in [("self", "net:[1]"), ("7", "net:[2]"), ("8", "net:[1]")] {
            let path = folder.path().join(process).join("ns");
            fs::create_dir_all(&path).unwrap();
            std::os::unix::fs::symlink(namespace, path.join("net")).unwrap();
        }
        let processes = folder.path().to_str().unwrap();
        assert_eq!(netns(processes, Some(7)), format!("{processes}/7/ns/net"));
        for other in [Some(8), Some(9), None] {
            assert_eq!(netns(processes, other), "");
        }
    }
}
