//! Which pods end so that a critical one can be admitted that finds no room.
//!
//! As `pkg/kubelet/preemption/preemption.go`: as few as may be, BestEffort before Burstable before Guaranteed. Nothing here
//! ends one.

use std::fmt;

use crate::admit;
use crate::cgroup::{self, Qos};
use crate::pod::Pod;
use crate::priority::is_critical;

/// `status.reason` of a pod that was preempted, and the reason of its event.
pub const REASON: &str = "Preempting";
/// `status.message` of a pod that was preempted, and the message of its event.
pub const MESSAGE: &str = "Preempted in order to admit critical pod";
/// Message of its `DisruptionTarget` condition.
pub const DISRUPTION: &str = "Pod was preempted by Kubelet to accommodate a critical pod.";
/// How much of a resource a pod lacks to be admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Name of the resource; `pods` for a place.
    pub resource: String,
    /// Thousandths of a core, bytes, or places; more than 0.
    pub amount: i64,
}

/// No set of pods that may be preempted has what is lacking.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no set of running pods found to reclaim resources: {0}")]
pub struct Impossible(Needs);

/// Needs in Go's notation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs(Vec<Need>);

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[")?;
        for need in &self.0 {
            write!(f, "(res: {}, q: {}), ", need.resource, need.amount)?;
        }
        write!(f, "]")
    }
}

/// Whether `other` may end for `pod`.
fn may_preempt(pod: &Pod, other: &Pod) -> bool {
    let priorities = pod.spec().priority.zip(other.spec().priority);
    (is_critical(pod) && !is_critical(other)) || priorities.is_some_and(|(own, others)| own > others)
}

fn request(pod: &Pod, resource: &str) -> i64 {
    if resource == "pods" { 1 } else { admit::pod_requests(pod.spec()).get(resource).copied().unwrap_or(0) }
}

/// What is still lacking once those pods are gone.
fn without(needs: &[Need], gone: &[&Pod]) -> Vec<Need> {
    let left = needs.iter().map(|need| {
        let freed = gone.iter().map(|pod| request(pod, &need.resource)).fold(0, i64::saturating_add);
        Need { amount: need.amount.saturating_sub(freed), ..need.clone() }
    });
    left.filter(|need| need.amount > 0).collect()
}

/// The pods that end so that `pod` gets what it needs; `active` are all that hold a share of the node.
pub fn victims<'a>(pod: &Pod, active: &[&'a Pod], needs: &[Need]) -> Result<Vec<&'a Pod>, Impossible> {
    let class = |class: Qos| -> Vec<&'a Pod> {
        let others = active.iter().copied().filter(|other| other.id.uid != pod.id.uid && may_preempt(pod, other));
        others.filter(|other| cgroup::qos(other.spec()) == class).collect()
    };
    let (best_effort, burstable, guaranteed) = (class(Qos::BestEffort), class(Qos::Burstable), class(Qos::Guaranteed));
    let all: Vec<&Pod> = [best_effort.as_slice(), &burstable, &guaranteed].concat();
    let lacking = without(needs, &all);
    if !lacking.is_empty() {
        return Err(Impossible(Needs(lacking)));
    }
    // What is needed of a class when all of the lower ones end, and then of the lower ones less what that gives.
    let lower: Vec<&Pod> = [best_effort.as_slice(), &burstable].concat();
    let third = nearest(guaranteed, without(needs, &lower))?;
    let beside: Vec<&Pod> = [best_effort.as_slice(), &third].concat();
    let second = nearest(burstable, without(needs, &beside))?;
    let beside: Vec<&Pod> = [second.as_slice(), &third].concat();
    let first = nearest(best_effort, without(needs, &beside))?;
    Ok([first, second, third].concat())
}

/// Pods out of those that cover the needs, one after the other the one that covers most of what is left.
fn nearest(mut pods: Vec<&Pod>, mut needs: Vec<Need>) -> Result<Vec<&Pod>, Impossible> {
    let mut chosen = Vec::new();
    while !needs.is_empty() {
        let best = pods.iter().enumerate().min_by(|(_, a), (_, b)| {
            let size = |pod: &Pod| (request(pod, "memory"), request(pod, "cpu"));
            let distances = distance(&needs, a).total_cmp(&distance(&needs, b));
            distances.then(size(a).cmp(&size(b))).then(a.id.cmp(&b.id))
        });
        let Some((index, _)) = best else { return Err(Impossible(Needs(needs))) };
        let pod = pods.swap_remove(index);
        needs = without(&needs, &[pod]);
        chosen.push(pod);
    }
    Ok(chosen)
}

/// How far a pod is from covering the needs, each of which weighs the same.
fn distance(needs: &[Need], pod: &Pod) -> f64 {
    let parts = needs.iter().map(|need| {
        let left = need.amount.saturating_sub(request(pod, &need.resource)).max(0);
        (left as f64 / need.amount as f64).powi(2)
    });
    parts.sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pod::Source;
    use crate::testing::pod_from;

    /// `b`, `u` or `g` for its class, and what it requests of CPU and memory.
    fn pod(uid: &str, class: char, cpu: i64, memory: i64) -> Pod {
        let list = format!("{{cpu: {cpu}m, memory: {memory}Mi}}");
        let resources = match class {
            'b' => String::new(),
            'u' => format!(", resources: {{requests: {list}}}"),
            _ => format!(", resources: {{requests: {list}, limits: {list}}}"),
        };
        let mut pod = pod_from(&format!("{{containers: [{{name: c, image: i{resources}}}]}}"));
        pod.id.uid = uid.to_owned();
        pod.source = Source::Api;
        pod
    }

    fn critical() -> Pod {
        Pod { source: Source::File, ..pod("critical", 'u', 1000, 100) }
    }

    fn need(resource: &str, amount: i64) -> Need {
        Need { resource: resource.to_owned(), amount }
    }

    fn chosen(pods: &[Pod], needs: &[Need]) -> Vec<String> {
        let active: Vec<&Pod> = pods.iter().collect();
        let chosen = victims(&critical(), &active, needs).unwrap();
        chosen.into_iter().map(|pod| pod.id.uid.clone()).collect()
    }

    #[test]
    fn as_few_and_as_small_as_may_be() {
        let pods = [
            pod("b", 'b', 0, 0),
            pod("u-small", 'u', 100, 10),
            pod("u-large", 'u', 900, 10),
            pod("g-small", 'g', 300, 10),
            pod("g-large", 'g', 900, 10),
        ];
        assert_eq!(chosen(&pods, &[need("pods", 1)]), ["b"]);
        assert_eq!(chosen(&pods, &[need("cpu", 50)]), ["u-small"]);
        assert_eq!(chosen(&pods, &[need("cpu", 500)]), ["u-large"]);
        assert_eq!(chosen(&pods, &[need("cpu", 1200)]), ["u-large", "g-small"]);
        assert_eq!(chosen(&pods, &[]), Vec::<String>::new());
    }

    #[test]
    fn critical_ones_never_end_and_priority_counts_among_equals() {
        let lower = pod("lower", 'u', 1000, 10);
        let mut own = critical();
        let mut other = Pod { source: Source::File, ..lower.clone() };
        let text = |result: Result<Vec<&Pod>, Impossible>| result.map(|pods| pods.len()).map_err(|no| no.to_string());
        let no = "no set of running pods found to reclaim resources: [(res: cpu, q: 500), ]";
        assert_eq!(text(victims(&own, &[&other], &[need("cpu", 500)])), Err(no.to_owned()));
        let set = |pod: &mut Pod, priority| {
            std::sync::Arc::make_mut(&mut pod.object).spec.as_mut().unwrap().priority = Some(priority);
        };
        set(&mut own, 2);
        set(&mut other, 1);
        assert_eq!(text(victims(&own, &[&other], &[need("cpu", 500)])), Ok(1));
        // One that is not critical preempts by priority alone.
        let plain = pod("plain", 'u', 1, 1);
        assert!(victims(&plain, &[&lower], &[need("cpu", 500)]).is_err());
    }

    proptest! {
        /// What is chosen suffices, and none of it is needless; higher classes end only where lower ones do not suffice.
        #[test]
        fn chosen_pods_suffice_and_are_needed(
            sizes in prop::collection::vec((prop_oneof![Just('b'), Just('u'), Just('g')], 1i64..1000, 1i64..1000), 0..9),
            cpu in 0i64..3000,
            memory in 0i64..3000,
            places in 0i64..3,
        ) {
            let pods: Vec<Pod> =
                sizes.into_iter().enumerate().map(|(i, (class, cpu, memory))| pod(&format!("p{i}"), class, cpu, memory)).collect();
            let needs: Vec<Need> = [need("cpu", cpu), need("memory", memory << 20), need("pods", places)]
                .into_iter()
                .filter(|need| need.amount > 0)
                .collect();
            let active: Vec<&Pod> = pods.iter().collect();
            match victims(&critical(), &active, &needs) {
                Err(_) => prop_assert!(!without(&needs, &active).is_empty()),
                Ok(chosen) => {
                    prop_assert!(without(&needs, &chosen).is_empty());
                    prop_assert!(chosen.len() <= pods.len());
                    let lower: Vec<&Pod> =
                        active.iter().copied().filter(|pod| cgroup::qos(pod.spec()) != Qos::Guaranteed).collect();
                    let ends = chosen.iter().any(|pod| cgroup::qos(pod.spec()) == Qos::Guaranteed);
                    prop_assert_eq!(ends, !without(&needs, &lower).is_empty());
                    if needs.is_empty() {
                        prop_assert!(chosen.is_empty());
                    }
                }
            }
        }
    }
}
