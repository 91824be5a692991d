//! Of several files that describe the same thing, the one that counts.
//!
//! Owns the rule for duplicates: the file that it came from so far, else the first by name; the others are told so.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::path::Path;

use longshore_core::pod::Pod;
use longshore_core::ports::sources::SourceProblem;

use super::objects::Key;
use super::state::{FileState, Good};

/// Chooses among files that describe the same thing: the one that it came from so far, else the first by name.
pub(super) struct Choice<'a> {
    files: &'a BTreeMap<OsString, FileState>,
    former: &'a HashMap<(&'static str, Key), OsString>,
    now: HashMap<(&'static str, Key), OsString>,
    problems: Vec<SourceProblem>,
}

impl<'a> Choice<'a> {
    /// `former` says which file each thing came from so far.
    pub(super) fn new(
        files: &'a BTreeMap<OsString, FileState>,
        former: &'a HashMap<(&'static str, Key), OsString>,
        problems: Vec<SourceProblem>,
    ) -> Choice<'a> {
        Choice { files, former, now: HashMap::new(), problems }
    }

    /// Which file each thing comes from now, and all problems.
    pub(super) fn done(self) -> (HashMap<(&'static str, Key), OsString>, Vec<SourceProblem>) {
        (self.now, self.problems)
    }

    /// What counts of one kind, in the order of the files' names.
    pub(super) fn of<T>(
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
    pub(super) fn one_per_uid(&mut self, pods: Vec<(&'a OsString, &'a Pod)>) -> Vec<(&'a OsString, &'a Pod)> {
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
