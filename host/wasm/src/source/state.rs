//! What a source wants, as far as it is known: the rules for what cannot be read, and for what ran before. It must not poll.

use std::collections::{BTreeMap, BTreeSet};

use longshore_core::manifest::Parsed;
use longshore_core::pod::Pod;
use longshore_core::ports::sources::{SourceProblem, SourceSnapshot};

/// One manifest, read.
#[derive(Clone, Debug, Default)]
struct Entry {
    /// Its pods; those that it had before, while it cannot be read.
    pods: Vec<Pod>,
    problems: Vec<SourceProblem>,
    /// Whether it was ever read without errors.
    good: bool,
}

/// A poll's news, with the manifests read.
#[derive(Debug)]
pub(super) enum News {
    Unchanged,
    Snapshot(Vec<(String, Parsed)>),
    Delta(Vec<(String, Parsed)>, Vec<String>),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct State {
    entries: BTreeMap<String, Entry>,
    /// What ran before the agent started and may still be wanted.
    former: Vec<Pod>,
    /// Whether the source has answered once.
    spoke: bool,
    /// Why it does not answer now.
    failure: Option<SourceProblem>,
}

impl State {
    pub(super) fn new(former: Vec<Pod>) -> Self {
        Self { former, ..Self::default() }
    }

    /// The source answered.
    pub(super) fn heard(&mut self, news: News) {
        self.failure = None;
        match news {
            News::Unchanged => {}
            News::Snapshot(manifests) => {
                self.spoke = true;
                let mut before = std::mem::take(&mut self.entries);
                for (key, parsed) in manifests {
                    let entry = read(before.remove(&key).unwrap_or_default(), parsed);
                    self.entries.insert(key, entry);
                }
            }
            News::Delta(upsert, remove) => {
                self.spoke = true;
                for key in remove {
                    self.entries.remove(&key);
                }
                for (key, parsed) in upsert {
                    let entry = read(self.entries.remove(&key).unwrap_or_default(), parsed);
                    self.entries.insert(key, entry);
                }
            }
        }
        // One that was never read may describe any of them.
        if self.spoke && self.entries.values().all(|entry| entry.good) {
            self.former = Vec::new();
        }
    }

    /// The source did not answer: whatever it wanted it still wants.
    pub(super) fn failed(&mut self, problem: SourceProblem) {
        self.failure = Some(problem);
    }

    /// All that is wrong.
    pub(super) fn problems(&self) -> Vec<SourceProblem> {
        let of_entries = self.entries.values().flat_map(|entry| &entry.problems);
        self.failure.iter().chain(of_entries).cloned().collect()
    }

    /// The last word; nothing while the source has never answered.
    pub(super) fn snapshot(&self) -> Option<SourceSnapshot> {
        if !self.spoke {
            return None;
        }
        let mut pods: Vec<Pod> = self.entries.values().flat_map(|entry| &entry.pods).cloned().collect();
        let names: BTreeSet<(String, String)> =
            pods.iter().map(|pod| (pod.id.namespace.clone(), pod.id.name.clone())).collect();
        let uids: BTreeSet<String> = pods.iter().map(|pod| pod.id.uid.clone()).collect();
        let covered =
            |pod: &Pod| names.contains(&(pod.id.namespace.clone(), pod.id.name.clone())) || uids.contains(&pod.id.uid);
        pods.extend(self.former.iter().filter(|pod| !covered(pod)).cloned());
        Some(SourceSnapshot { pods, problems: self.problems() })
    }
}

/// The manifest as it is now, after what it was: with errors it keeps its pods, as a whole (`pkg/kubelet/config/common.go`,
/// `tryDecodePodList` refuses a list for one pod in it).
fn read(before: Entry, parsed: Parsed) -> Entry {
    if parsed.has_errors() {
        return Entry { pods: before.pods, problems: parsed.problems, good: before.good };
    }
    Entry { pods: parsed.pods, problems: parsed.problems, good: true }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use longshore_core::pod::{PodId, Source};

    use super::{News, Parsed, Pod, SourceProblem, State};

    fn pod(name: &str) -> Pod {
        Pod {
            id: PodId { namespace: "default".to_owned(), name: name.to_owned(), uid: format!("uid-{name}") },
            source: Source::Http,
            object: Arc::default(),
            hashes: Default::default(),
            sandbox_hash: String::new(),
            deletion: None,
            ephemeral: Vec::new(),
        }
    }

    fn good(names: &[&str]) -> Parsed {
        Parsed { pods: names.iter().map(|name| pod(name)).collect(), ..Parsed::default() }
    }

    fn bad() -> Parsed {
        Parsed { problems: vec![problem("bad")], ..Parsed::default() }
    }

    fn problem(message: &str) -> SourceProblem {
        SourceProblem { place: "p".to_owned(), message: message.to_owned(), warning: false }
    }

    fn snapshot(manifests: Vec<(&str, Parsed)>) -> News {
        News::Snapshot(manifests.into_iter().map(|(key, parsed)| (key.to_owned(), parsed)).collect())
    }

    fn names(state: &State) -> Option<Vec<String>> {
        let snapshot = state.snapshot()?;
        Some(snapshot.pods.into_iter().map(|pod| pod.id.name).collect())
    }

    #[test]
    fn a_source_that_never_answered_says_nothing() {
        let mut state = State::new(vec![pod("a")]);
        assert_eq!(names(&state), None);
        state.failed(problem("down"));
        assert_eq!(names(&state), None);
        assert_eq!(state.problems(), [problem("down")]);
        state.heard(snapshot(vec![]));
        assert_eq!(names(&state).unwrap(), [""; 0]);
        assert!(state.problems().is_empty());
    }

    #[test]
    fn what_ran_before_is_kept_until_it_is_known_what_is_wanted() {
        let mut state = State::new(vec![pod("a"), pod("b")]);
        state.heard(snapshot(vec![("", bad())]));
        assert_eq!(names(&state).unwrap(), ["a", "b"]);
        state.heard(snapshot(vec![("", good(&["b", "c"]))]));
        assert_eq!(names(&state).unwrap(), ["b", "c"]);
        state.heard(snapshot(vec![("", bad())]));
        assert_eq!(names(&state).unwrap(), ["b", "c"]);
    }

    #[test]
    fn a_failure_and_a_bad_manifest_keep_pods_and_an_empty_list_does_not() {
        let mut state = State::default();
        state.heard(snapshot(vec![("x", good(&["a"])), ("y", good(&["b"]))]));
        state.failed(problem("down"));
        let said = state.snapshot().unwrap();
        assert_eq!((said.pods.len(), said.problems), (2, vec![problem("down")]));
        state.heard(snapshot(vec![("x", bad()), ("y", good(&["c"]))]));
        assert_eq!(names(&state).unwrap(), ["a", "c"]);
        assert_eq!(state.problems(), [problem("bad")]);
        state.heard(News::Unchanged);
        assert_eq!(state.problems(), [problem("bad")]);
        state.heard(snapshot(vec![("x", good(&[]))]));
        assert_eq!(names(&state).unwrap(), [""; 0]);
    }

    #[test]
    fn changes_alone() {
        let mut state = State::default();
        state.heard(snapshot(vec![("x", good(&["a"])), ("y", good(&["b"]))]));
        state.heard(News::Delta(vec![("y".to_owned(), good(&["c"]))], vec!["x".to_owned(), "z".to_owned()]));
        assert_eq!(names(&state).unwrap(), ["c"]);
    }
}
