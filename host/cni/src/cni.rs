//! The adapter itself: attaching, taking back, and what is asked of plugins besides.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use longshore_core::network::attachment::{Attachment, arguments};
use longshore_core::ports::network::{NetworkPlugins, PluginError};
use serde_json::{Value, json};
use tokio::sync::RwLock;

use crate::cache::{Cache, DEVICE, Entry};
use crate::chain::Caller;
use crate::config::NetworkList;
use crate::validate::Validator;
use crate::version::Version;
use crate::{adopt, folder, result};

/// How the adapter is set up.
#[derive(Clone, Debug)]
pub struct CniOptions {
    /// Folder of the networks' configurations.
    pub conf_dir: PathBuf,
    /// Folders of the plugins' programs, in the order in which they are looked through.
    pub bin_dirs: Vec<PathBuf>,
    /// Folder that attachments are kept in; others may use it as well.
    pub cache_dir: PathBuf,
    /// ID of the agent's root folder.
    pub root_id: String,
}

/// How long an answer to STATUS holds: a good one, and another.
const STATUS: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(5));

/// So long pods can be attached although the folder has no network that can be used: files are written anew.
const GAP: Duration = Duration::from_secs(15);

/// What plugins said to STATUS, when, and of which network.
struct Status {
    at: Instant,
    of: NetworkList,
    answer: Result<(), PluginError>,
}

/// CNI plugins. See the port.
pub struct Cni {
    conf_dir: PathBuf,
    caller: Caller,
    cache: Cache,
    validator: Validator,
    /// By sandbox.
    entries: Arc<Mutex<BTreeMap<String, Entry>>>,
    /// Sandboxes that something is being done with.
    busy: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Held for writing while plugins collect what belongs to nobody: what is being attached would be nobody's.
    collecting: RwLock<()>,
    status: tokio::sync::Mutex<Option<Status>>,
    /// The network that the folder last had, and when.
    last: Mutex<Option<(Instant, NetworkList)>>,
    /// What was wrong with the folder when it was last read.
    said: Mutex<Vec<String>>,
}

/// A poisoned lock still holds whole values here: every write is one insert or remove.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cni {
    /// Sets up the adapter, and reads what an agent of the same root attached before, or says why it cannot. Blocks for a
    /// moment.
    pub fn new(options: CniOptions) -> Result<Cni, PluginError> {
        let cache = Cache::new(&options.cache_dir, &options.root_id);
        let (entries, _) = cache.load()?;
        if !entries.is_empty() {
            tracing::info!(sandboxes = entries.len(), "known to be attached to the pods' network");
        }
        Ok(Cni {
            conf_dir: options.conf_dir,
            caller: Caller { folders: options.bin_dirs },
            cache,
            validator: Validator::default(),
            entries: Arc::new(Mutex::new(entries)),
            busy: Mutex::default(),
            collecting: RwLock::new(()),
            status: tokio::sync::Mutex::new(None),
            last: Mutex::default(),
            said: Mutex::default(),
        })
    }

    /// The network for new sandboxes; where the folder has none, the one that it had, if that is no longer ago.
    async fn network(&self, gap: Duration) -> Result<NetworkList, PluginError> {
        let found = self.found().await;
        let mut last = lock(&self.last);
        if let Ok(list) = &found {
            *last = Some((Instant::now(), list.clone()));
        }
        let recent = last.as_ref().filter(|(at, _)| at.elapsed() < gap).map(|(_, list)| list.clone());
        found.or_else(|error| recent.ok_or(error))
    }

    /// The first one of the folder that can be used.
    async fn found(&self) -> Result<NetworkList, PluginError> {
        let conf_dir = self.conf_dir.clone();
        let read = tokio::task::spawn_blocking(move || folder::read(&conf_dir)).await;
        let (lists, mut problems) = read.unwrap_or_default();
        let mut found = None;
        for list in lists {
            match self.validator.check(&self.caller, &list).await {
                Ok(()) => {
                    found = Some(list);
                    break;
                }
                Err(problem) => problems.push(format!("network {:?} cannot be used: {problem}", list.name)),
            }
        }
        let summary = problems.join("; ");
        let before = std::mem::replace(&mut *lock(&self.said), problems.clone());
        for problem in problems.iter().filter(|problem| !before.contains(problem)) {
            tracing::warn!("CNI configuration: {problem}");
        }
        // The kubelet's words, and why.
        found.ok_or_else(|| PluginError::NotReady { message: format!("cni config uninitialized ({summary})") })
    }

    /// Waits until nothing else is done with that sandbox, nor collected.
    async fn alone(&self, id: &str) -> Alone<'_> {
        let collecting = self.collecting.read().await;
        let mutex = lock(&self.busy).entry(id.to_owned()).or_default().clone();
        let held = mutex.lock_owned().await;
        Alone { cni: self, id: id.to_owned(), held: Some(held), _collecting: collecting }
    }

    fn entry(&self, id: &str) -> Option<Entry> {
        lock(&self.entries).get(id).cloned()
    }

    /// Keeps an entry, on disk and then in memory: both, also when the caller is dropped meanwhile.
    async fn save(&self, mut entry: Entry) -> Result<(), PluginError> {
        let (cache, entries) = (self.cache.clone(), self.entries.clone());
        on_disk(&self.cache, move || {
            cache.save(&mut entry)?;
            lock(&entries).insert(entry.container_id.clone(), entry);
            Ok(())
        })
        .await
    }

    /// Drops an entry, the same way.
    async fn forget(&self, entry: &Entry) -> Result<(), PluginError> {
        let (cache, entries, entry) = (self.cache.clone(), self.entries.clone(), entry.clone());
        on_disk(&self.cache, move || {
            cache.remove(&entry)?;
            lock(&entries).remove(&entry.container_id);
            Ok(())
        })
        .await
    }

    /// Takes a sandbox for attached that has these addresses although nothing is kept of it: attaching it once more would fail,
    /// and what is taken back then is its network.
    async fn adopt(
        &self,
        attachment: &Attachment,
        netns: &str,
        found: Vec<IpAddr>,
    ) -> Result<Vec<IpAddr>, PluginError> {
        let mut list = self.network(Duration::MAX).await?;
        // What it was given is not known to the letter.
        list.disable_check = true;
        let id = &attachment.sandbox_id;
        let mut entry = Entry::new(&list, id, netns, arguments(attachment), attachment.capabilities.clone());
        entry.result = given(&list, netns, &found).as_object().cloned();
        self.save(entry).await?;
        tracing::warn!(sandbox = id, pod = %attachment.pod, ?found, "it is on a network of which nothing was kept");
        Ok(found)
    }

    /// Has every plugin let go of a sandbox, and forgets it then. `netns` is empty when it is gone.
    async fn take_back(&self, entry: &Entry, netns: &str) -> Result<(), PluginError> {
        match entry.list() {
            Ok(list) => self.caller.del(&list, entry, netns).await?,
            // Nobody can be told any more.
            Err(problem) => {
                tracing::error!(sandbox = entry.container_id, "what is kept of an attachment is damaged: {problem}")
            }
        }
        self.forget(entry).await
    }
}

/// Does what waits for the disk where it keeps nobody else waiting.
async fn on_disk<T: Send + 'static>(
    cache: &Cache,
    work: impl FnOnce() -> Result<T, PluginError> + Send + 'static,
) -> Result<T, PluginError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(cache.failed(&error)))
}

/// Nothing else is done with a sandbox while this is there.
struct Alone<'a> {
    cni: &'a Cni,
    id: String,
    held: Option<tokio::sync::OwnedMutexGuard<()>>,
    _collecting: tokio::sync::RwLockReadGuard<'a, ()>,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        let mut busy = lock(&self.cni.busy);
        self.held = None;
        // One count is the map's own.
        if busy.get(&self.id).is_some_and(|mutex| Arc::strong_count(mutex) == 1) {
            busy.remove(&self.id);
        }
    }
}

/// The network namespace of a process; empty when it is gone.
fn netns(pid: Option<u32>) -> String {
    let path = pid.map(|pid| format!("/proc/{pid}/ns/net")).unwrap_or_default();
    if Path::new(&path).exists() { path } else { String::new() }
}

/// What plugins would have given for these addresses, as far as others need it to let go of them.
fn given(list: &NetworkList, netns: &str, found: &[IpAddr]) -> Value {
    let ip = |ip: &IpAddr| {
        let (version, bits) = if ip.is_ipv4() { ("4", 32) } else { ("6", 128) };
        json!({"version": version, "interface": 0, "address": format!("{ip}/{bits}")})
    };
    json!({
        "cniVersion": list.version_text,
        "interfaces": [{"name": DEVICE, "sandbox": netns}],
        "ips": found.iter().map(ip).collect::<Vec<Value>>(),
    })
}

#[async_trait]
impl NetworkPlugins for Cni {
    async fn ready(&self) -> Result<(), PluginError> {
        let list = self.network(GAP).await?;
        if list.version < Version::WITH_GC {
            return Ok(());
        }
        let mut known = self.status.lock().await;
        if let Some(Status { at, of, answer }) = &*known
            && *of == list
            && at.elapsed() < if answer.is_ok() { STATUS.0 } else { STATUS.1 }
        {
            return answer.clone();
        }
        let answer = self.caller.status(&list).await;
        let answer = answer.map_err(|error| PluginError::NotReady { message: error.to_string() });
        *known = Some(Status { at: Instant::now(), of: list, answer: answer.clone() });
        answer
    }

    async fn attach(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, PluginError> {
        let _alone = self.alone(&attachment.sandbox_id).await;
        let netns = netns(Some(attachment.pid));
        // An attachment that was begun and never ended: the agent was killed meanwhile.
        match self.entry(&attachment.sandbox_id) {
            Some(former) => self.take_back(&former, &netns).await?,
            None => {
                let found = adopt::addresses(Path::new(&format!("/proc/{}/net", attachment.pid)));
                if !found.is_empty() {
                    return self.adopt(attachment, &netns, found).await;
                }
            }
        }
        // As dockershim: what a sandbox is for was decided.
        let list = self.network(Duration::MAX).await?;
        let arguments = arguments(attachment);
        let mut entry = Entry::new(&list, &attachment.sandbox_id, &netns, arguments, attachment.capabilities.clone());
        self.save(entry.clone()).await?;
        let attached = match self.caller.add(&list, &entry).await {
            Ok((given, addresses)) => {
                entry.result = Some(given);
                self.save(entry.clone()).await.map(|()| addresses)
            }
            Err(error) => Err(error),
        };
        if attached.is_err()
            && let Err(error) = self.take_back(&entry, &netns).await
        {
            tracing::warn!(
                sandbox = attachment.sandbox_id,
                "an attachment that failed cannot be taken back: {error}; will retry"
            );
        }
        attached
    }

    fn addresses(&self, sandbox_id: &str) -> Option<Vec<IpAddr>> {
        lock(&self.entries).get(sandbox_id)?.result.as_ref().map(result::addresses)
    }

    async fn detach(&self, sandbox_id: &str, pid: Option<u32>) -> Result<(), PluginError> {
        let _alone = self.alone(sandbox_id).await;
        match self.entry(sandbox_id) {
            Some(entry) => self.take_back(&entry, &netns(pid)).await,
            None => Ok(()),
        }
    }

    fn attached(&self) -> Vec<String> {
        lock(&self.entries).keys().cloned().collect()
    }

    async fn check(&self, sandbox_id: &str, pid: u32) -> Result<(), PluginError> {
        let _alone = self.alone(sandbox_id).await;
        let Some(entry) = self.entry(sandbox_id).filter(|entry| entry.result.is_some()) else { return Ok(()) };
        let Ok(list) = entry.list() else { return Ok(()) };
        if list.version < Version::WITH_CHECK || list.disable_check {
            return Ok(());
        }
        self.caller.check(&list, &entry, &netns(Some(pid))).await
    }

    async fn collect(&self) -> Result<(), PluginError> {
        let list = self.network(Duration::ZERO).await?;
        if list.version < Version::WITH_GC || list.disable_gc {
            return Ok(());
        }
        let _nothing_else = self.collecting.write().await;
        let cache = self.cache.clone();
        // Others may attach to the same network: what is theirs is nobody's to drop.
        let (_, others) = on_disk(&self.cache, move || cache.load()).await?;
        let ours: Vec<Entry> = lock(&self.entries).values().cloned().collect();
        let all = ours.into_iter().chain(others).filter(|entry| entry.network_name == list.name);
        let attached: Vec<(String, String)> = all.map(|entry| (entry.container_id, entry.if_name)).collect();
        self.caller.collect(&list, &attached).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_network_that_is_gone_for_a_moment_serves_on() {
        let folder = tempfile::tempdir().unwrap();
        let (plugin, file) = (folder.path().join("x"), folder.path().join("10-n.conflist"));
        let answer = r#"echo '{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}'"#;
        std::fs::write(&plugin, format!("#!/bin/sh\n{answer}\n")).unwrap();
        std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = || folder.path().to_owned();
        let options =
            CniOptions { conf_dir: path(), bin_dirs: vec![path()], cache_dir: path(), root_id: "root".to_owned() };
        let cni = Cni::new(options).unwrap();
        assert!(cni.ready().await.is_err() && cni.network(Duration::MAX).await.is_err(), "there was none yet");
        std::fs::write(&file, r#"{"cniVersion": "0.4.0", "name": "n", "plugins": [{"type": "x"}]}"#).unwrap();
        assert_eq!(cni.ready().await, Ok(()));
        std::fs::remove_file(file).unwrap();
        assert_eq!(cni.ready().await, Ok(()));
        assert_eq!(cni.network(Duration::MAX).await.unwrap().name, "n");
        let PluginError::NotReady { message } = cni.network(Duration::ZERO).await.unwrap_err() else { panic!() };
        assert!(message.starts_with("cni config uninitialized"), "{message}");
    }
}
