//! Pods that the node itself ends.

use super::*;

#[test]
fn an_eviction_is_told_as_the_nodes_doing() {
    let mut case = case("{containers: [{name: a, image: i}]}").with("a", 0, running(10));
    let (reason, message) = (Some("Evicted".to_owned()), Some("too much".to_owned()));
    case.record.terminal = Some(Terminal { phase: "Failed".to_owned(), reason, message });
    let is_told = |status: &v1::PodStatus| {
        status.conditions.iter().flatten().any(|condition| condition.type_ == "DisruptionTarget")
    };
    assert!(!is_told(&case.status()), "it runs still");
    let mut case = case.gone("a");
    let conditions = case.status().conditions.unwrap();
    let found = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget").unwrap();
    assert_eq!((found.status.as_str(), found.reason.as_deref()), ("True", Some("TerminationByKubelet")));
    assert_eq!(found.message.as_deref(), Some("too much"));
}

#[test]
fn a_pod_that_exceeded_its_own_limit_is_no_disruption() {
    let mut case = case("{containers: [{name: a, image: i}]}").with("a", 0, running(10));
    let (reason, message) = (Some("Evicted".to_owned()), Some("too much".to_owned()));
    case.record.terminal = Some(Terminal { phase: "Failed".to_owned(), reason, message });
    case.record.evicted = Some(crate::record::Evicted { grace_seconds: 1, disruption: false });
    let mut case = case.gone("a");
    let conditions = case.status().conditions.unwrap();
    assert!(!conditions.iter().any(|condition| condition.type_ == "DisruptionTarget"));
}
