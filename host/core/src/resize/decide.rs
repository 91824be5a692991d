//! Which of the resizes that are wanted can be granted, and in which order they are tried.
//!
//! As `pkg/kubelet/allocation/allocation_manager.go` (`sortPendingResizes`, `handlePodResourcesResize`), with the check
//! against the whole node of 1.35 (`canResizePod`), which later API servers do themselves.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;

use crate::admit::{self, Rejection};
use crate::cgroup::{self, Qos};
use crate::node::NodeFacts;
use crate::pod::Pod;

/// A resize that is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// The pod as its source wants it.
    pub wanted: Pod,
    /// The pod as it was given.
    pub given: Pod,
    /// Since when the wish is pending; `None` for one that was not looked at yet.
    pub since: Option<Timestamp>,
}

/// What becomes of a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is given.
    Granted,
    /// It may be given later: what keeps it from being given now.
    Deferred(Rejection),
    /// It can never be given here.
    Infeasible(String),
}

/// Decides over all wishes, by the pods' UIDs. `active` are the pods that hold a share of the node, by UID, the wishing
/// ones among them with what they hold now; what is granted to one counts against those after it. `node` is the Node as
/// the API server has it, where there is one.
pub fn decide<'a>(
    wishes: impl IntoIterator<Item = &'a Wish>,
    active: &BTreeMap<String, Pod>,
    facts: &NodeFacts,
    node: Option<&v1::Node>,
) -> BTreeMap<String, Verdict> {
    let mut wishes: Vec<&Wish> = wishes.into_iter().collect();
    wishes.sort_by_key(|wish| order(wish));
    let mut granted: BTreeMap<&str, Pod> = BTreeMap::new();
    let mut verdicts = BTreeMap::new();
    for wish in wishes {
        let uid = wish.wanted.id.uid.as_str();
        let others: Vec<&Pod> = active
            .iter()
            .filter(|(other, _)| *other != uid)
            .map(|(other, pod)| granted.get(other.as_str()).unwrap_or(pod))
            .collect();
        let verdict = verdict(wish, &others, facts, node);
        if verdict == Verdict::Granted {
            // What shrinks holds what it has until it was actuated.
            granted.insert(uid, super::most(&wish.wanted, active.get(uid).unwrap_or(&wish.given)));
        }
        verdicts.insert(uid.to_owned(), verdict);
    }
    verdicts
}

/// What requests no more first, then by priority, then Guaranteed before the others, then what waits longest.
fn order(wish: &Wish) -> (bool, Reverse<i32>, bool, Timestamp, String) {
    let spec = wish.wanted.spec();
    (
        grows(wish),
        Reverse(spec.priority.unwrap_or(0)),
        cgroup::qos(spec) != Qos::Guaranteed,
        wish.since.unwrap_or(Timestamp::MAX),
        wish.wanted.id.uid.clone(),
    )
}

/// Whether more CPU or memory is requested than was given.
fn grows(wish: &Wish) -> bool {
    let (wanted, given) = (admit::pod_requests(wish.wanted.spec()), admit::pod_requests(wish.given.spec()));
    ["cpu", "memory"].iter().any(|name| wanted.get(*name).unwrap_or(&0) > given.get(*name).unwrap_or(&0))
}

fn verdict(wish: &Wish, others: &[&Pod], facts: &NodeFacts, node: Option<&v1::Node>) -> Verdict {
    let wanted = &wish.wanted;
    // The API server lets none through; a manifest may say anything.
    let (class, before) = (cgroup::qos(wanted.spec()), cgroup::qos(wish.given.spec()));
    if class != before {
        return Verdict::Infeasible(format!(
            "Pod QOS Class may not change as a result of resizing: it is {} and would be {}; for a new pod of that class \
             give the manifest another metadata.uid, or take it away and put it back once the pod is gone",
            before.as_str(),
            class.as_str()
        ));
    }
    let requests = admit::pod_requests(wanted.spec());
    for (name, capacity) in [("memory", facts.allocatable_memory), ("cpu", facts.allocatable_milli_cpu)] {
        let requested = requests.get(name).copied().unwrap_or(0);
        if requested > capacity {
            let message =
                format!("Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}");
            return Verdict::Infeasible(message);
        }
    }
    match admit::admit(wanted, others, facts, node) {
        Ok(()) => Verdict::Granted,
        Err(rejection) => Verdict::Deferred(rejection),
    }
}
