//! What the folder's files describe, over time: what counts, what is kept, what is a duplicate.
//!
//! Owns the rules; it must not read anything. They are, for files: one that cannot be read, or holds an error, or holds
//! nothing (a copy that has just begun), keeps what it last described well, until it is mended or removed. For the folder:
//! one that cannot be read keeps all; so does an empty one in the place of one that was not (an unmounted disk looks
//! like that); files that are removed from the same folder are gone, for that is the user's wish.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use longshore_core::manifest::Parsed;
use longshore_core::pod::Pod;
use longshore_core::ports::sources::{SourceProblem, SourceSnapshot};

use super::folder::{Entry, Identity, Listing, Stamp};
use super::objects::{FolderObjects, Key};

/// Files that are read; the rest is a problem. A node has some hundred pods.
const FILES: usize = 10_000;
/// Problems that are shown.
const PROBLEMS: usize = 1000;
/// A file from which something vanished counts only when it has been quiet for so long: half a copy of several documents
/// is a good manifest without the last ones. In nanoseconds.
const QUIET: i128 = 500_000_000;
/// A file is gone when it stays away for so long: editors and git remove a file and make it anew. In nanoseconds.
const GONE: i128 = 100_000_000;
/// A stamp is trusted from this age on: a write right after the read may not show in it. In nanoseconds.
const SETTLED: i128 = 100_000_000;

/// Everything that is known of the folder.
#[derive(Debug)]
pub(super) struct State {
    path: PathBuf,
    /// The folder of the last good read.
    identity: Option<Identity>,
    files: BTreeMap<OsString, FileState>,
    /// What is wrong with the folder as a whole.
    folder_problems: Vec<SourceProblem>,
    /// Which file each pod and object comes from.
    winners: HashMap<(&'static str, Key), OsString>,
}

#[derive(Debug, Default)]
struct FileState {
    place: String,
    stamp: Option<Stamp>,
    settled: bool,
    good: Good,
    problems: Vec<SourceProblem>,
    /// Since when it is not there any more, in nanoseconds since the epoch.
    missing: Option<i128>,
}

/// What a file last described well.
#[derive(Debug, Default)]
struct Good {
    pods: Vec<Pod>,
    config_maps: Vec<Arc<v1::ConfigMap>>,
    secrets: Vec<Arc<v1::Secret>>,
}

impl Good {
    fn len(&self) -> usize {
        self.pods.len() + self.config_maps.len() + self.secrets.len()
    }

    fn of(parsed: Parsed) -> Good {
        Good {
            pods: parsed.pods,
            config_maps: parsed.config_maps.into_iter().map(Arc::new).collect(),
            secrets: parsed.secrets.into_iter().map(Arc::new).collect(),
        }
    }

    /// Adds what only `former` describes; says how much that was.
    fn keep(&mut self, former: Good) -> usize {
        let before = self.len();
        keep(&mut self.pods, former.pods, pod_key);
        keep(&mut self.config_maps, former.config_maps, |object| meta_key(&object.metadata));
        keep(&mut self.secrets, former.secrets, |object| meta_key(&object.metadata));
        self.len() - before
    }

    /// Whether all that `former` describes is in here as well, as it is now or changed.
    fn covers(&self, former: &Good) -> bool {
        covers(&self.pods, &former.pods, pod_key)
            && covers(&self.config_maps, &former.config_maps, |object| meta_key(&object.metadata))
            && covers(&self.secrets, &former.secrets, |object| meta_key(&object.metadata))
    }
}

fn keep<T>(list: &mut Vec<T>, former: Vec<T>, key: impl Fn(&T) -> Key) {
    let there: HashSet<Key> = list.iter().map(&key).collect();
    list.extend(former.into_iter().filter(|item| !there.contains(&key(item))));
}

fn covers<T>(list: &[T], former: &[T], key: impl Fn(&T) -> Key) -> bool {
    let there: HashSet<Key> = list.iter().map(&key).collect();
    former.iter().all(|item| there.contains(&key(item)))
}

fn pod_key(pod: &Pod) -> Key {
    (pod.id.namespace.clone(), pod.id.name.clone())
}

fn meta_key(meta: &ObjectMeta) -> Key {
    let namespace = meta.namespace.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned());
    (namespace, meta.name.clone().unwrap_or_default())
}

impl State {
    pub(super) fn new(path: PathBuf) -> State {
        State { path, identity: None, files: BTreeMap::new(), folder_problems: Vec::new(), winners: HashMap::new() }
    }

    /// Whether the folder was ever read.
    pub(super) fn spoke(&self) -> bool {
        self.identity.is_some()
    }

    /// Whether a file must be looked at again soon.
    pub(super) fn unsettled(&self) -> bool {
        self.files.values().any(|file| !file.settled || file.missing.is_some())
    }

    fn pods(&self) -> usize {
        self.files.values().map(|file| file.good.pods.len()).sum()
    }

    fn kept(&self) -> String {
        match (self.spoke(), self.pods()) {
            (false, _) => "nothing is started or stopped before it has been read once".to_owned(),
            (true, 1) => "the pod from it is kept".to_owned(),
            (true, pods) => format!("the {pods} pods from it are kept"),
        }
    }

    fn folder_problem(&mut self, message: String, warning: bool) {
        let place = self.path.display().to_string();
        self.folder_problems.push(SourceProblem { place, message, warning });
    }

    /// The folder could not be read.
    pub(super) fn unreadable(&mut self, reason: &str) {
        self.folder_problems.clear();
        let kept = self.kept();
        self.folder_problem(format!("the manifest folder cannot be read: {reason}; {kept}; put it back"), false);
    }

    /// Changes to the folder cannot be watched.
    pub(super) fn unwatched(&mut self, reason: &str) {
        let message = format!("changes are found by looking only, not at once: {reason}; see fs.inotify in sysctl");
        self.folder_problem(message, true);
    }

    /// Takes a listing in; the files to look at, each with the stamp that it is known by. `now` is in nanoseconds since
    /// the epoch.
    pub(super) fn listed(&mut self, listing: Listing, now: i128) -> Vec<(OsString, PathBuf, Option<Stamp>)> {
        self.folder_problems.clear();
        let had = self.files.values().any(|file| file.good.len() > 0);
        if listing.entries.is_empty() && had && self.identity.is_some_and(|identity| identity != listing.identity) {
            let kept = self.kept();
            self.folder_problem(
                format!(
                    "is another, empty folder than the one that was read before (device or inode changed: is a disk not \
                     mounted?); {kept}; put the files back, or restart longshore to let the pods go"
                ),
                false,
            );
            return Vec::new();
        }
        self.identity = Some(listing.identity);
        self.files.retain(|name, file| {
            if listing.entries.contains_key(name) {
                file.missing = None;
                return true;
            }
            let since = *file.missing.get_or_insert(now);
            file.good.len() > 0 && (0..GONE).contains(&(now - since))
        });
        let mut look = Vec::new();
        let mut left_out = 0_usize;
        for (name, entry) in listing.entries {
            let path = listing.folder.join(&name);
            if !self.files.contains_key(&name) && self.files.len() >= FILES {
                left_out += 1;
                continue;
            }
            let file = self.files.entry(name.clone()).or_default();
            if file.place.is_empty() {
                file.place = path.display().to_string();
            }
            let known = file.stamp.filter(|_| file.settled);
            match entry {
                Entry::File(stamp) if known == Some(stamp) => {}
                Entry::File(_) | Entry::Link => look.push((name, path, known)),
                Entry::Other(what) => {
                    file.settled = true;
                    file.problems = vec![problem(file, format!("is {what}, which cannot be a manifest"), false)];
                }
            }
        }
        if left_out > 0 {
            self.folder_problem(format!("holds more than {FILES} files: {left_out} of them are not read"), false);
        }
        look
    }

    /// A file could not be read, or does not answer.
    pub(super) fn file_unreadable(&mut self, name: &OsString, reason: String) {
        let Some(file) = self.files.get_mut(name) else { return };
        file.stamp = None;
        // It is looked at with every rescan; there is no stamp that would say that it changed.
        file.settled = true;
        file.problems = vec![problem(file, reason, false)];
        note_kept(file, file.good.len());
    }

    /// A link that leads to a folder.
    pub(super) fn file_ignored(&mut self, name: &OsString) {
        if let Some(file) = self.files.get_mut(name) {
            *file = FileState { place: std::mem::take(&mut file.place), settled: true, ..FileState::default() };
        }
    }

    /// A file was read. `now` is in nanoseconds since the epoch.
    pub(super) fn file_read(&mut self, name: &OsString, stamp: Stamp, parsed: Parsed, now: i128) {
        let Some(file) = self.files.get_mut(name) else { return };
        // A modification time in the future, from a clock that stepped back, is as good as an old one.
        let age = now - stamp.modified();
        let younger = |limit: i128| (0..limit).contains(&age);
        let (errors, problems) = (parsed.has_errors(), parsed.problems.clone());
        let mut good = Good::of(parsed);
        if !errors && good.len() > 0 && younger(QUIET) && !good.covers(&file.good) {
            file.settled = false;
            return;
        }
        file.stamp = Some(stamp);
        file.settled = !younger(SETTLED);
        file.problems = problems;
        let mut kept = 0;
        if errors || good.len() == 0 {
            kept = good.keep(std::mem::take(&mut file.good));
            if !errors && kept > 0 {
                file.problems.push(problem(file, "holds no object".to_owned(), false));
            } else if !errors {
                file.problems.push(problem(file, "holds no object".to_owned(), true));
            }
        }
        file.good = good;
        note_kept(file, kept);
    }

    /// The source's word.
    pub(super) fn snapshot(&mut self) -> (SourceSnapshot, FolderObjects) {
        let mut problems = self.folder_problems.clone();
        problems.extend(self.files.values().flat_map(|file| file.problems.iter().cloned()));
        let mut choice = Choice { files: &self.files, former: &self.winners, now: HashMap::new(), problems };
        let pods = choice.of("pod", |good| &good.pods, pod_key);
        let pods = choice.one_per_uid(pods);
        let config_maps = choice.of("ConfigMap", |good| &good.config_maps, |object| meta_key(&object.metadata));
        let secrets = choice.of("Secret", |good| &good.secrets, |object| meta_key(&object.metadata));
        let objects = FolderObjects {
            config_maps: config_maps
                .into_iter()
                .map(|(_, object)| (meta_key(&object.metadata), object.clone()))
                .collect(),
            secrets: secrets.into_iter().map(|(_, object)| (meta_key(&object.metadata), object.clone())).collect(),
        };
        let pods = pods.into_iter().map(|(_, pod)| pod.clone()).collect();
        let (winners, mut problems) = (choice.now, choice.problems);
        if problems.len() > PROBLEMS {
            let message = format!("{} more problems are not shown", problems.len() - PROBLEMS);
            problems.truncate(PROBLEMS);
            problems.push(SourceProblem { place: self.path.display().to_string(), message, warning: false });
        }
        self.winners = winners;
        (SourceSnapshot { pods, problems }, objects)
    }
}

fn problem(file: &FileState, message: String, warning: bool) -> SourceProblem {
    SourceProblem { place: file.place.clone(), message, warning }
}

fn note_kept(file: &mut FileState, kept: usize) {
    let what = match kept {
        0 => return,
        1 => "what it described before is".to_owned(),
        kept => format!("the {kept} objects that it described before are"),
    };
    file.problems.push(problem(file, format!("{what} kept until the file is mended or removed"), true));
}

/// Chooses among files that describe the same thing: the one that it came from so far, else the first by name.
struct Choice<'a> {
    files: &'a BTreeMap<OsString, FileState>,
    former: &'a HashMap<(&'static str, Key), OsString>,
    now: HashMap<(&'static str, Key), OsString>,
    problems: Vec<SourceProblem>,
}

impl<'a> Choice<'a> {
    fn of<T>(
        &mut self,
        kind: &'static str,
        list: impl Fn(&'a Good) -> &'a Vec<T>,
        key: impl Fn(&T) -> Key,
    ) -> Vec<(&'a OsString, &'a T)> {
        let all: Vec<(&OsString, &T, Key)> = self
            .files
            .iter()
            .flat_map(|(name, file)| list(&file.good).iter().map(move |item| (name, item)))
            .map(|(name, item)| (name, item, key(item)))
            .collect();
        self.choose(kind, all, |kind, (namespace, name)| format!("{kind} {namespace}/{name}"))
    }

    /// Pods of different names that claim one UID.
    fn one_per_uid(&mut self, pods: Vec<(&'a OsString, &'a Pod)>) -> Vec<(&'a OsString, &'a Pod)> {
        let all = pods.into_iter().map(|(name, pod)| (name, pod, (String::new(), pod.id.uid.clone()))).collect();
        self.choose("UID", all, |_, (_, uid)| format!("a pod with UID {uid}"))
    }

    fn choose<T>(
        &mut self,
        kind: &'static str,
        all: Vec<(&'a OsString, &'a T, Key)>,
        say: impl Fn(&str, &Key) -> String,
    ) -> Vec<(&'a OsString, &'a T)> {
        for (file, _, key) in &all {
            let key = (kind, key.clone());
            let former = self.former.get(&key);
            match self.now.get(&key) {
                None => _ = self.now.insert(key, (*file).clone()),
                Some(_) if former == Some(*file) => _ = self.now.insert(key, (*file).clone()),
                Some(_) => {}
            }
        }
        let mut chosen = Vec::new();
        let mut done: HashSet<Key> = HashSet::new();
        for (file, item, key) in all {
            let winner = self.now.get(&(kind, key.clone()));
            if winner == Some(file) && done.insert(key.clone()) {
                chosen.push((file, item));
                continue;
            }
            let place = |file: &OsString| self.files.get(file).map_or_else(String::new, |file| file.place.clone());
            let other = winner.map(place).unwrap_or_default();
            let message = format!(
                "{} is described in {} as well: that one counts, this one does not; remove or rename one of them",
                say(kind, &key),
                Path::new(&other).display()
            );
            self.problems.push(SourceProblem { place: place(file), message, warning: false });
        }
        chosen
    }
}
