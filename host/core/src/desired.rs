//! What should run: every source's last word, merged.
//!
//! The order in which sources speak does not count, and a source that has not spoken is never read as "no pods":
//! until all have, nothing may be removed ([`Desired::complete`]). Where sources disagree, the API server's word
//! comes before the folder's, that before the URL's, that before the plugins' by name.

use std::collections::BTreeMap;

use crate::pod::{Pod, Source};
use crate::ports::sources::{SourceProblem, SourceSnapshot};

/// On the API server's image of a pod that another source wants; such an image is not run.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// All that should run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// Pods by UID. No two have the same namespace and name.
    pub pods: BTreeMap<String, Pod>,
    /// Whether every source has spoken once. Until then a pod that is not in here may still be wanted.
    pub complete: bool,
    /// The sources' own problems, and pods that two of them claim.
    pub problems: Vec<SourceProblem>,
}

/// Merges the last words of all sources; `None` for one that has not spoken yet.
pub fn merge(words: &BTreeMap<Source, Option<SourceSnapshot>>) -> Desired {
    let mut desired = Desired { complete: words.values().all(Option::is_some), ..Desired::default() };
    let mut sources: Vec<(&Source, &SourceSnapshot)> =
        words.iter().filter_map(|(source, word)| Some((source, word.as_ref()?))).collect();
    sources.sort_by_key(|(source, _)| rank(source));
    let mut names: BTreeMap<(&str, &str), (&str, &Source)> = BTreeMap::new();
    let mut uids: BTreeMap<&str, (&Pod, &Source)> = BTreeMap::new();
    for (source, word) in sources {
        desired.problems.extend(word.problems.iter().cloned());
        for pod in &word.pods {
            if *source == Source::Api && pod.annotations().contains_key(MIRROR) {
                continue;
            }
            let name = (pod.id.namespace.as_str(), pod.id.name.as_str());
            let uid = pod.id.uid.as_str();
            if let Some((first, owner)) = uids.get(uid) {
                let message = format!(
                    "pod {}: UID {uid} is that of pod {} from source {} already; give one of them another metadata.uid",
                    pod.id,
                    first.id,
                    owner.as_str()
                );
                desired.problems.push(problem(source, message));
            } else if let Some((first, owner)) = names.get(&name) {
                let message = format!(
                    "pod {}: another pod of that namespace and name (UID {first}) comes from source {} already; rename or remove one of them",
                    pod.id,
                    owner.as_str()
                );
                desired.problems.push(problem(source, message));
            } else {
                names.insert(name, (uid, source));
                uids.insert(uid, (pod, source));
            }
        }
    }
    desired.pods = uids.into_iter().map(|(uid, (pod, _))| (uid.to_owned(), pod.clone())).collect();
    desired
}

fn problem(source: &Source, message: String) -> SourceProblem {
    SourceProblem { place: format!("source {}", source.as_str()), message, warning: false }
}

/// Whose word comes first.
fn rank(source: &Source) -> (u8, &str) {
    match source {
        Source::Api => (0, ""),
        Source::File => (1, ""),
        Source::Http => (2, ""),
        Source::Plugin(name) => (3, name),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1;
    use proptest::prelude::*;

    use super::*;
    use crate::pod::PodId;

    fn pod(source: &Source, name: &str, uid: &str) -> Pod {
        Pod {
            id: PodId { namespace: "default".to_owned(), name: name.to_owned(), uid: uid.to_owned() },
            source: source.clone(),
            object: Arc::new(v1::Pod::default()),
            hashes: BTreeMap::new(),
            sandbox_hash: String::new(),
            deletion: None,
            ephemeral: Vec::new(),
        }
    }

    fn word(source: &Source, pods: &[(&str, &str)]) -> (Source, Option<SourceSnapshot>) {
        let pods = pods.iter().map(|(name, uid)| pod(source, name, uid)).collect();
        (source.clone(), Some(SourceSnapshot { pods, problems: Vec::new() }))
    }

    #[test]
    fn a_source_that_has_not_spoken_is_not_an_empty_one() {
        let mut words = BTreeMap::from([word(&Source::File, &[("a", "1")]), (Source::Api, None)]);
        let desired = merge(&words);
        assert!(!desired.complete && desired.pods.len() == 1);
        words.insert(Source::Api, Some(SourceSnapshot::default()));
        assert!(merge(&words).complete);
        assert!(merge(&BTreeMap::new()).complete);
    }

    #[test]
    fn a_uid_and_a_name_belong_to_one_source() {
        let plugin = Source::Plugin("x".to_owned());
        let words = BTreeMap::from([
            word(&Source::File, &[("a", "1"), ("b", "2"), ("b", "3")]),
            word(&Source::Http, &[("c", "1"), ("a", "4")]),
            word(&plugin, &[("d", "5")]),
        ]);
        let desired = merge(&words);
        assert_eq!(desired.pods.keys().collect::<Vec<_>>(), ["1", "2", "5"]);
        assert_eq!(desired.pods["1"].source, Source::File);
        insta::assert_snapshot!(
            desired.problems.iter().map(|p| format!("{}: {}", p.place, p.message)).collect::<Vec<_>>().join("\n"),
            @r"
        source file: pod default/b: another pod of that namespace and name (UID 2) comes from source file already; rename or remove one of them
        source http: pod default/c: UID 1 is that of pod default/a from source file already; give one of them another metadata.uid
        source http: pod default/a: another pod of that namespace and name (UID 1) comes from source file already; rename or remove one of them
        "
        );
    }

    #[test]
    fn the_api_servers_image_of_a_static_pod_is_no_pod() {
        let mut mirror = pod(&Source::Api, "a", "2");
        let annotations = BTreeMap::from([(MIRROR.to_owned(), "1".to_owned())]);
        let object = Arc::make_mut(&mut mirror.object);
        object.metadata.annotations = Some(annotations);
        let words = BTreeMap::from([
            word(&Source::File, &[("a", "1")]),
            (Source::Api, Some(SourceSnapshot { pods: vec![mirror], problems: Vec::new() })),
        ]);
        let desired = merge(&words);
        assert_eq!(desired.pods.keys().collect::<Vec<_>>(), ["1"]);
        assert!(desired.problems.is_empty());
    }

    fn sources() -> [Source; 5] {
        let plugin = |name: &str| Source::Plugin(name.to_owned());
        [Source::File, Source::Http, Source::Api, plugin("a"), plugin("b")]
    }

    proptest! {
        #[test]
        fn merging_is_free_of_order_and_loses_nothing(
            pods in prop::collection::vec((0usize..5, 0u8..6, 0u8..6), 0..20),
            order in Just((0..5).collect::<Vec<usize>>()).prop_shuffle(),
            silent in prop::collection::vec(any::<bool>(), 5),
        ) {
            let sources = sources();
            let snapshot = |index: usize| {
                let own = pods.iter().filter(|(source, ..)| *source == index);
                let pods = own.map(|(_, name, uid)| pod(&sources[index], &name.to_string(), &uid.to_string())).collect();
                (!silent[index]).then_some(SourceSnapshot { pods, problems: Vec::new() })
            };
            let words: BTreeMap<_, _> = (0..5).map(|index| (sources[index].clone(), snapshot(index))).collect();
            let shuffled: BTreeMap<_, _> = order.iter().map(|index| (sources[*index].clone(), snapshot(*index))).collect();
            let desired = merge(&words);
            prop_assert_eq!(&desired, &merge(&shuffled));
            prop_assert_eq!(desired.complete, !silent.contains(&true));
            let given: usize = words.values().flatten().map(|word| word.pods.len()).sum();
            prop_assert_eq!(given, desired.pods.len() + desired.problems.len());
            let names: std::collections::BTreeSet<_> = desired.pods.values().map(|pod| &pod.id.name).collect();
            prop_assert_eq!(names.len(), desired.pods.len());
            // One more source that says something never takes another's pods away, unless it comes before it.
            let mut less = words.clone();
            less.insert(sources[4].clone(), None);
            for (uid, pod) in merge(&less).pods {
                prop_assert_eq!(desired.pods.get(&uid), Some(&pod));
            }
        }
    }
}
