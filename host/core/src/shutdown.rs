//! The machine goes down: which pods end when, and how long each gets.
//!
//! As `pkg/kubelet/nodeshutdown/nodeshutdown_manager.go`: pods end in groups, the lowest priority first, and a group is
//! waited for before the next one ends. Nothing here ends a pod or counts time.

use std::time::Duration;

use crate::pod::{Pod, PodId, Source};
use crate::priority::{self, CRITICAL};
use crate::record::PodRecord;

/// `status.reason` of a pod that ended because the machine goes down.
pub const REASON: &str = "Terminated";
/// `status.message` of such a pod.
pub const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// Reason of the node's event when that begins, and when it is called off.
pub const EVENT_REASON: &str = "Shutdown";
/// `status.reason` of a pod that came while the machine goes down.
pub const REJECTED_REASON: &str = "NodeShutdown";
/// `status.message` of such a pod.
pub const REJECTED_MESSAGE: &str = "Pod was rejected as the node is shutting down.";
/// What the node's `Ready` condition says meanwhile.
pub const NOT_READY: &str = "node is shutting down";

/// How much longer than its grace period a pod may take where no time was set.
const SLACK: i64 = 10;

/// How long pods from one priority on (to the next step's) get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The lowest priority of this step.
    pub priority: i32,
    /// Seconds; `None` for as long as the pods' own grace periods say.
    pub seconds: Option<i64>,
}

/// The steps where none are configured: critical pods last, every pod with the grace period that it asks for.
pub const UNCONFIGURED: [Step; 2] = [Step { priority: 0, seconds: None }, Step { priority: CRITICAL, seconds: None }];

/// The time that all steps take together, which the machine is asked to wait for.
pub fn total(steps: &[Step]) -> Duration {
    let seconds = steps.iter().fold(0_i64, |sum, step| sum.saturating_add(step.seconds.unwrap_or(0).max(0)));
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Pods that end together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The lowest priority of its step.
    pub priority: i32,
    /// Seconds that it is waited for at most.
    pub seconds: i64,
    /// The pods, and how many seconds each asks for to end; ordered by namespace and name.
    pub pods: Vec<(PodId, i64)>,
}

impl Group {
    /// Seconds that a pod of it gets, of those that it asks for, when the group has `seconds` left. At least one: what runs
    /// is asked before it is killed.
    pub fn grace(asked: i64, seconds: i64) -> i64 {
        asked.min(seconds).max(1)
    }
}

/// The pods in the groups that end one after the other. Steps that nobody is in are left out: they are not waited for.
///
/// A pod belongs to the step with the highest priority that is not above its own; one below all steps to the lowest.
pub fn groups<'a>(steps: &[Step], pods: impl IntoIterator<Item = &'a Pod>) -> Vec<Group> {
    let mut steps = steps.to_vec();
    steps.sort_by_key(|step| step.priority);
    let mut members: Vec<Vec<(PodId, i64)>> = vec![Vec::new(); steps.len()];
    for pod in pods {
        let above = steps.partition_point(|step| step.priority <= priority::by_class(pod));
        if let Some(step) = members.get_mut(above.saturating_sub(1)) {
            step.push((pod.id.clone(), pod.grace_seconds()));
        }
    }
    let groups = steps.into_iter().zip(members).filter(|(_, pods)| !pods.is_empty());
    groups
        .map(|(step, mut pods)| {
            pods.sort();
            let longest = pods.iter().map(|(_, grace)| *grace).max().unwrap_or(0);
            let seconds = step.seconds.unwrap_or(longest.saturating_add(SLACK));
            Group { priority: step.priority, seconds: seconds.max(0), pods }
        })
        .collect()
}

/// Seconds that the first of the groups gets when all together may take only `left`: its share of that, and no more than
/// it needs. Asked anew for every group, so that what one did not need goes to the later ones.
pub fn share(groups: &[Group], left: i64) -> i64 {
    let Some(first) = groups.first() else { return 0 };
    let needed = groups.iter().fold(0_i128, |sum, group| sum + i128::from(group.seconds));
    let left = i128::from(left.max(0));
    if needed <= left {
        return first.seconds;
    }
    i64::try_from(i128::from(first.seconds) * left / needed).unwrap_or(first.seconds)
}

/// Whether a pod that ended runs again once the machine stays up: it ended, or was not let in, for that alone, and no
/// controller makes another in its place. The kubelet runs static pods again as well, after its own restart.
pub fn comes_back(source: &Source, record: &PodRecord) -> bool {
    let why = record.terminal.as_ref().and_then(|terminal| terminal.reason.as_deref());
    *source != Source::Api && matches!(why, Some(REASON | REJECTED_REASON))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::Terminal;
    use crate::testing::pod_from;

    fn pod(name: &str, spec: &str) -> Pod {
        let mut pod = pod_from(&format!("{{containers: [{{name: c, image: i}}]{spec}}}"));
        pod.id = PodId { namespace: "default".into(), name: name.into(), uid: name.into() };
        pod
    }

    fn of(priority: i32, grace: i64) -> Pod {
        let name = format!("p{priority}-{grace}");
        pod(&name, &format!(", priority: {priority}, terminationGracePeriodSeconds: {grace}"))
    }

    fn step(priority: i32, seconds: i64) -> Step {
        Step { priority, seconds: Some(seconds) }
    }

    fn shown(groups: &[Group]) -> Vec<(i32, i64, Vec<&str>)> {
        groups
            .iter()
            .map(|group| (group.priority, group.seconds, group.pods.iter().map(|(id, _)| id.name.as_str()).collect()))
            .collect()
    }

    #[test]
    fn boundaries_are_the_kubelets() {
        let steps = [step(100_000, 10), step(10_000, 180), step(1_000, 120), step(0, 60)];
        let pods = [of(-5, 1), of(0, 1), of(999, 1), of(1_000, 1), of(99_999, 1), of(100_000, 1), of(CRITICAL, 1)];
        let groups = groups(&steps, &pods);
        assert_eq!(
            shown(&groups),
            [
                (0, 60, vec!["p-5-1", "p0-1", "p999-1"]),
                (1_000, 120, vec!["p1000-1"]),
                (10_000, 180, vec!["p99999-1"]),
                (100_000, 10, vec!["p100000-1", "p2000000000-1"]),
            ]
        );
        assert_eq!(total(&steps), Duration::from_secs(370));
    }

    #[test]
    fn steps_without_pods_are_not_waited_for() {
        let steps = [step(0, 60), step(10, 60), step(20, 60)];
        assert_eq!(shown(&groups(&steps, [&of(20, 1)])), [(20, 60, vec!["p20-1"])]);
        assert!(groups(&steps, []).is_empty());
        assert!(groups(&[], [&of(20, 1)]).is_empty());
    }

    #[test]
    fn a_static_pods_class_counts_where_nobody_resolved_it() {
        let pods = [
            pod("usual", ""),
            pod("node", ", priorityClassName: system-node-critical"),
            pod("cluster", ", priorityClassName: system-cluster-critical"),
            pod("own", ", priorityClassName: system-node-critical, priority: 5"),
        ];
        let groups = groups(&UNCONFIGURED, &pods);
        assert_eq!(shown(&groups), [(0, 40, vec!["own", "usual"]), (CRITICAL, 40, vec!["cluster", "node"])]);
        assert_eq!(total(&UNCONFIGURED), Duration::ZERO);
    }

    #[test]
    fn only_what_ended_for_the_machines_sake_and_has_no_controller_comes_back() {
        let ended = |reason: &str| {
            let terminal = Terminal { phase: "Failed".into(), reason: Some(reason.into()), message: None };
            PodRecord { terminal: Some(terminal), ..PodRecord::default() }
        };
        assert!(comes_back(&Source::File, &ended(REASON)) && comes_back(&Source::Http, &ended(REJECTED_REASON)));
        assert!(!comes_back(&Source::Api, &ended(REASON)));
        assert!(!comes_back(&Source::File, &ended("Evicted")));
        assert!(!comes_back(&Source::File, &PodRecord::default()));
        let mut record = ended(REASON);
        record.containers.entry("c".into()).or_default().restarts = 3;
        record.begin_anew();
        assert!(record.terminal.is_none() && !comes_back(&Source::File, &record));
        assert_eq!(record.containers["c"].restarts, 3);
    }

    proptest! {
        #[test]
        fn every_pod_ends_once_and_no_later_than_one_of_higher_priority(
            steps in prop::collection::vec((-3..9_i32, 0..100_i64), 1..5),
            pods in prop::collection::vec((-5..12_i32, 0..200_i64), 0..12),
        ) {
            let steps: Vec<Step> = steps.into_iter().map(|(priority, seconds)| step(priority, seconds)).collect();
            let mut pods: Vec<Pod> = pods.into_iter().map(|(priority, grace)| of(priority, grace)).collect();
            pods.sort_by(|a, b| a.id.cmp(&b.id));
            pods.dedup_by(|a, b| a.id == b.id);
            let found = groups(&steps, &pods);
            let order: Vec<(usize, &PodId)> =
                found.iter().enumerate().flat_map(|(n, group)| group.pods.iter().map(move |(id, _)| (n, id))).collect();
            prop_assert_eq!(order.len(), pods.len());
            let place = |pod: &Pod| order.iter().find(|(_, id)| **id == pod.id).map(|(n, _)| *n).unwrap();
            for a in &pods {
                for b in &pods {
                    prop_assert!(priority::by_class(a) > priority::by_class(b) || place(a) <= place(b));
                }
            }
            let all: i64 = found.iter().map(|group| group.seconds).sum();
            prop_assert!(Duration::from_secs(all as u64) <= total(&steps));
            for group in &found {
                for (_, asked) in &group.pods {
                    let grace = Group::grace(*asked, group.seconds);
                    prop_assert!(grace >= 1 && (grace <= group.seconds || grace == 1) && (grace <= *asked || grace == 1));
                }
            }
        }

        #[test]
        fn shares_never_exceed_what_is_left(
            needs in prop::collection::vec(0..1_000_000_i64, 0..6),
            left in -5..1_000_000_i64,
            used in prop::collection::vec(0.0..1.0_f64, 6),
        ) {
            let group = |seconds: &i64| Group { priority: 0, seconds: *seconds, pods: Vec::new() };
            let groups: Vec<Group> = needs.iter().map(group).collect();
            let (mut rest, mut spent) = (left, 0);
            for n in 0..groups.len() {
                let share = share(&groups[n..], rest);
                prop_assert!(share >= 0 && share <= groups[n].seconds && share <= rest.max(0));
                if needs.iter().sum::<i64>() <= left {
                    prop_assert_eq!(share, groups[n].seconds);
                }
                let used = (share as f64 * used[n]) as i64;
                rest -= used;
                spent += used;
            }
            prop_assert!(spent <= left.max(0));
            prop_assert_eq!(share(&[], left), 0);
        }
    }
}
