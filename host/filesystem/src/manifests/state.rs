//! What the folder's files describe, over time: what counts, what is kept, what is a duplicate.
//!
//! Owns the rules; it must not read anything. They are, for files: one that cannot be read, or holds an error, or holds
//! nothing (a copy that has just begun), keeps what it last described well, until it is mended or removed. For the folder:
//! one that cannot be read keeps all; so does one without a good manifest in the place of one that had some (an unmounted
//! disk looks like that); files that are removed from the same folder are gone, for that is the user's wish. And for a
//! restart of the agent: pods that ran before are kept as long as a file, or the folder, cannot say whether it still wants
//! them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use longshore_core::manifest::Parsed;
use longshore_core::pod::Pod;
use longshore_core::ports::sources::{SourceProblem, SourceSnapshot};

use super::Memory;
use super::choice::Choice;
use super::folder::{Entry, Identity, Listing, Stamp, Unread};
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
/// For how long that is waited for in all, however many go. In nanoseconds.
const AWAITED: i128 = 3 * GONE;
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
    /// Pods that ran before this agent started and that no file has described yet.
    former: Vec<Pod>,
    /// The folder that they came from.
    remembered: Option<Identity>,
    /// Whether the folder was replaced by one without a good manifest, and what it held before counts.
    held: bool,
    /// The folder with files that took its place; it counts from its first good manifest on.
    successor: Option<(Identity, BTreeSet<OsString>)>,
    /// How a user says that an empty folder is meant.
    release: String,
    /// Whether there need not be a folder, as long as there are no pods from it.
    optional: bool,
    /// Whether there is none, and need be none.
    absent: bool,
    /// Since when a file that went is waited for, in nanoseconds since the epoch.
    awaited: Option<i128>,
}

#[derive(Debug, Default)]
pub(super) struct FileState {
    pub(super) place: String,
    stamp: Option<Stamp>,
    settled: bool,
    pub(super) good: Good,
    problems: Vec<SourceProblem>,
    /// Whether it was ever read without an error: what it describes is known.
    whole: bool,
    /// Since when it is not there any more, in nanoseconds since the epoch.
    missing: Option<i128>,
}

/// What a file last described well.
#[derive(Debug, Default)]
pub(super) struct Good {
    pub(super) pods: Vec<Pod>,
    pub(super) config_maps: Vec<Arc<v1::ConfigMap>>,
    pub(super) secrets: Vec<Arc<v1::Secret>>,
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
        State {
            path,
            identity: None,
            files: BTreeMap::new(),
            folder_problems: Vec::new(),
            winners: HashMap::new(),
            former: Vec::new(),
            remembered: None,
            held: false,
            successor: None,
            release: "restart longshore".to_owned(),
            optional: false,
            absent: false,
            awaited: None,
        }
    }

    /// What is known from before the agent started.
    pub(super) fn remember(&mut self, memory: Memory, identity: Option<Identity>) {
        self.release = memory.release();
        (self.former, self.remembered, self.optional) = (memory.former, identity, memory.optional);
    }

    /// The folder that the pods of the last word came from, to be remembered; none when there are no pods in it.
    pub(super) fn identity(&self) -> Option<Identity> {
        self.identity.filter(|_| self.files.values().any(|file| file.good.len() > 0))
    }

    /// Whether it is known what comes from the folder.
    pub(super) fn spoke(&self) -> bool {
        self.identity.is_some() || self.absent
    }

    /// Whether a file must be looked at again soon.
    pub(super) fn unsettled(&self) -> bool {
        self.files.values().any(|file| !file.settled || file.missing.is_some())
    }

    /// Whether a file that went may be there again in a moment, so that nothing is said before that is known: a new file beside
    /// it may be what it was renamed to, or its successor, whose room it still has. `now` is in nanoseconds since the epoch.
    pub(super) fn awaits(&mut self, now: i128) -> bool {
        if self.files.values().all(|file| file.missing.is_none()) {
            self.awaited = None;
            return false;
        }
        let since = *self.awaited.get_or_insert(now);
        (0..AWAITED).contains(&(now - since))
    }

    fn pods(&self) -> usize {
        self.files.values().map(|file| file.good.pods.len()).sum::<usize>() + self.former.len()
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
    pub(super) fn unreadable(&mut self, reason: &Unread) {
        self.folder_problems.clear();
        self.successor = None;
        let new = self.identity.is_none() && self.former.is_empty();
        if let (true, true, Unread::Absent(_)) = (new, self.optional, reason) {
            self.absent = true;
            return self.folder_problem(
                "there is no such folder: manifests can be put there once it is made".to_owned(),
                true,
            );
        }
        let kept = self.kept();
        let advice = if new { "make it, or name another one with --config" } else { "put it back" };
        self.folder_problem(format!("the manifest folder cannot be read: {reason}; {kept}; {advice}"), false);
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
        self.successor = None;
        let had = self.files.values().any(|file| file.good.len() > 0);
        let replaced = match self.identity {
            Some(identity) => (had || self.held) && identity != listing.identity,
            // The first look after a start.
            None => {
                let another = |known: Identity| !known.survives_as(&listing.identity);
                !self.former.is_empty() && self.remembered.is_some_and(another)
            }
        };
        self.held = replaced;
        // When replaced, an answer all the same: the first word after a start is "those that ran".
        self.identity = if replaced { self.identity.or(self.remembered) } else { Some(listing.identity) };
        if listing.entries.is_empty() && replaced {
            let kept = self.kept();
            self.folder_problem(
                format!(
                    "is another, empty folder than the one that was read before (device or inode changed: is a disk not \
                     mounted?); {kept}; put the files back, or {} to let the pods go",
                    self.release
                ),
                false,
            );
            return Vec::new();
        }
        if replaced {
            self.successor = Some((listing.identity, listing.entries.keys().cloned().collect()));
        }
        self.files.retain(|name, file| {
            if listing.entries.contains_key(name) || (replaced && file.good.len() > 0) {
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
            let known = file.stamp.filter(|_| file.settled && !replaced);
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
        let sound = !errors && good.len() > 0;
        file.whole |= sound;
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
        if sound {
            self.succeed(now);
        }
    }

    /// The folder that took the place of the former one counts from now on: what it does not have is missing.
    fn succeed(&mut self, now: i128) {
        let Some((identity, names)) = self.successor.take() else { return };
        self.identity = Some(identity);
        self.held = false;
        for (_, file) in self.files.iter_mut().filter(|(name, _)| !names.contains(*name)) {
            file.missing = Some(now);
        }
    }

    /// Lets go of pods from before the start that are described again, or, once every file is known, are not.
    fn settle_former(&mut self) {
        if self.former.is_empty() || !self.spoke() {
            return;
        }
        let pods = || self.files.values().flat_map(|file| &file.good.pods);
        let described: HashSet<Key> = pods().map(pod_key).collect();
        let uids: HashSet<&str> = pods().map(|pod| pod.id.uid.as_str()).collect();
        let unknown = |file: &FileState| !file.whole && !file.problems.is_empty();
        let keep = self.held || self.files.values().any(unknown);
        self.former.retain(|pod| keep && !described.contains(&pod_key(pod)) && !uids.contains(pod.id.uid.as_str()));
    }

    /// The source's word.
    pub(super) fn snapshot(&mut self) -> (SourceSnapshot, FolderObjects) {
        self.settle_former();
        let mut problems = self.folder_problems.clone();
        if self.successor.is_some() {
            let message = format!(
                "is another folder or file than the one that was read before, and none of its manifests could be used so far; {}; \
                 put the files back, fix one of those that are here, or remove them all and {} to let the pods go",
                self.kept(),
                self.release
            );
            problems.push(SourceProblem { place: self.path.display().to_string(), message, warning: false });
        }
        if !self.former.is_empty() && !self.held && self.spoke() {
            let names: Vec<String> = self.former.iter().take(10).map(|pod| pod.id.to_string()).collect();
            let message = format!(
                "pods that ran before longshore started, and that no file describes now, are kept until every file here \
                 can be read: {}",
                names.join(", ")
            );
            problems.push(SourceProblem { place: self.path.display().to_string(), message, warning: true });
        }
        problems.extend(self.files.values().flat_map(|file| file.problems.iter().cloned()));
        let mut choice = Choice::new(&self.files, &self.winners, problems);
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
        let pods = pods.into_iter().map(|(_, pod)| pod.clone()).chain(self.former.iter().cloned()).collect();
        let (winners, mut problems) = choice.done();
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
    file.problems.push(problem(file, format!("{what} kept until the file is fixed or removed"), true));
}
