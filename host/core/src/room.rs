//! Room for a pod that finds none: of pods that end anyway, or, since it is critical, of pods that end for it.
//!
//! The kubelet rejects a pod for good while others that end still have their share; here it waits for them. Otherwise as
//! `HandleAdmissionFailure` in `pkg/kubelet/preemption/preemption.go`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1;

use crate::admit::{self, Rejection};
use crate::cluster::node_status::Pressure;
use crate::node::NodeFacts;
use crate::pod::Pod;
use crate::{preempt, priority};

/// Pods whose room another one gets; without any it has room already.
#[derive(Debug, Default, PartialEq)]
pub struct Room<'a> {
    /// Those that end anyway.
    pub leaving: Vec<&'a Pod>,
    /// Those that must end for it.
    pub victims: Vec<&'a Pod>,
}

/// The pods that hold a share of the node beside one that comes.
#[derive(Clone, Copy, Debug)]
pub struct Others<'a, 'b> {
    /// Those that end already.
    pub leaving: &'b [&'a Pod],
    /// All others.
    pub staying: &'b [&'a Pod],
}

/// Why a pod's containers are not started meanwhile.
pub const WAITS: &str = "waiting for pods that are stopping to free resources";

/// The node as a pod that is new finds it.
#[derive(Clone, Copy, Debug)]
pub struct Occupancy<'a> {
    /// Pods that were admitted and of which something may still run, by UID.
    pub active: &'a BTreeMap<String, Pod>,
    /// UIDs of those that end.
    pub leaving: &'a BTreeSet<String>,
    /// The node.
    pub facts: &'a NodeFacts,
    /// As for [`admit::admit`].
    pub node: Option<&'a v1::Node>,
    /// Whether there is no API server.
    pub alone: bool,
    /// What it runs short of.
    pub pressure: Pressure,
    /// Whether the machine goes down.
    pub goes_down: bool,
}

/// Whether a pod that is new may run here, and whose room it gets.
///
/// # Errors
/// Why it may not; asked again only at the agent's next start or when a shutdown is called off, and only for pods that are
/// not the API server's.
pub fn admit<'a>(pod: &Pod, occupancy: Occupancy<'a>) -> Result<Room<'a>, Rejection> {
    if occupancy.goes_down {
        return Err(admit::shutting_down());
    }
    admit::under_pressure(pod, occupancy.pressure)?;
    let others = occupancy.active.values().filter(|other| other.id.uid != pod.id.uid);
    let (leaving, staying): (Vec<&Pod>, Vec<&Pod>) =
        others.partition(|other| occupancy.leaving.contains(&other.id.uid));
    find(pod, Others { leaving: &leaving, staying: &staying }, occupancy.facts, occupancy.node, occupancy.alone)
}

/// Where a pod gets room: as few pods of either kind as may be. `node` as for [`admit::admit`]; `alone` where there is no
/// API server.
///
/// # Errors
/// Why it may not run here even when all of those have ended.
pub fn find<'a>(
    pod: &Pod,
    others: Others<'a, '_>,
    facts: &NodeFacts,
    node: Option<&v1::Node>,
    alone: bool,
) -> Result<Room<'a>, Rejection> {
    let fits = |beside: &[&Pod]| admit::admit(pod, beside, facts, node);
    if fits(&[others.leaving, others.staying].concat()).is_ok() {
        return Ok(Room::default());
    }
    let victims = match fits(others.staying) {
        Ok(()) => Vec::new(),
        Err(rejection) => victims(pod, others.staying, facts, node, rejection, alone)?,
    };
    let is_victim = |other: &Pod| victims.iter().any(|victim| victim.id.uid == other.id.uid);
    let staying: Vec<&Pod> = others.staying.iter().copied().filter(|other| !is_victim(other)).collect();
    let leaving = in_the_way(others.leaving.to_vec(), staying, |beside| fits(beside).is_ok());
    Ok(Room { leaving, victims })
}

/// The pods that must end so that one that was rejected may be admitted all the same.
fn victims<'a>(
    pod: &Pod,
    others: &[&'a Pod],
    facts: &NodeFacts,
    node: Option<&v1::Node>,
    rejection: Rejection,
    alone: bool,
) -> Result<Vec<&'a Pod>, Rejection> {
    let needs = admit::needs(pod, others, facts, node);
    if needs.is_empty() || !priority::is_critical(pod) {
        return Err(rejection);
    }
    admit::admit_but_for_room(pod, others, facts, node)?;
    match preempt::victims(pod, others, &needs) {
        Ok(victims) => Ok(victims),
        // On a node alone every pod is critical, and the plain reason says more.
        Err(_) if alone => Err(rejection),
        Err(impossible) => Err(Rejection {
            reason: "UnexpectedAdmissionError".into(),
            message: format!(
                "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of \
                 pods to preempt: {impossible}"
            ),
        }),
    }
}

/// Those of the leaving pods that must be gone before a pod fits beside the rest: as few as may be, and rather those with
/// little grace.
fn in_the_way<'a>(mut leaving: Vec<&'a Pod>, mut beside: Vec<&'a Pod>, fits: impl Fn(&[&Pod]) -> bool) -> Vec<&'a Pod> {
    leaving.sort_by_key(|pod| Reverse(pod.grace_seconds()));
    let mut must_go = Vec::new();
    for pod in leaving {
        beside.push(pod);
        if !fits(&beside) {
            beside.pop();
            must_go.push(pod);
        }
    }
    must_go
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::admit::testing::{node, pod};
    use crate::pod::Source;

    fn of(cpu: i64, grace: i64, source: Source) -> Pod {
        let spec = format!(
            "{{terminationGracePeriodSeconds: {grace}, containers: [{{name: c, image: i, resources: {{requests: {{cpu: \
             {cpu}m}}}}}}]}}"
        );
        Pod { source, ..pod(&spec) }
    }

    fn find_among<'a>(new: &Pod, leaving: &[&'a Pod], staying: &[&'a Pod]) -> Result<Room<'a>, Rejection> {
        find(new, Others { leaving, staying }, &node(), None, false)
    }

    #[test]
    fn of_those_that_end_anyway_the_one_with_little_grace_is_waited_for() {
        let (long, short) = (of(800, 30, Source::Api), of(800, 1, Source::Api));
        let room = find_among(&of(1000, 1, Source::Api), &[&long, &short], &[]).unwrap();
        assert_eq!(room, Room { leaving: vec![&short], victims: vec![] });
    }

    #[test]
    fn nobody_ends_for_a_pod_that_is_not_critical_or_refused_for_something_else() {
        let large = of(1500, 1, Source::Api);
        let plain = find_among(&of(1000, 1, Source::Api), &[], &[&large]);
        assert_eq!(plain.unwrap_err().reason, "OutOfcpu");
        let mut elsewhere = of(1000, 1, Source::File);
        std::sync::Arc::make_mut(&mut elsewhere.object).spec.as_mut().unwrap().node_selector =
            Some([("zone".to_owned(), "b".to_owned())].into());
        assert_eq!(find_among(&elsewhere, &[], &[&large]).unwrap_err().reason, "NodeAffinity");
        let room = find_among(&of(1000, 1, Source::File), &[], &[&large]).unwrap();
        assert_eq!(room.victims, [&large]);
    }

    proptest! {
        /// Once those have ended the pod is admitted, and it is not while one of the leaving ones that it waits for has not.
        #[test]
        fn the_room_suffices_and_nobody_is_waited_for_in_vain(
            pods in prop::collection::vec((1i64..1200, 0i64..60, any::<bool>(), any::<bool>()), 0..4),
            cpu in 1i64..2500,
            critical in any::<bool>(),
        ) {
            let source = |is_static: bool| if is_static { Source::File } else { Source::Api };
            let all: Vec<(Pod, bool)> =
                pods.into_iter().map(|(cpu, grace, file, leaves)| (of(cpu, grace, source(file)), leaves)).collect();
            let those = |leaves: bool| -> Vec<&Pod> {
                all.iter().filter(|(_, it)| *it == leaves).map(|(pod, _)| pod).collect()
            };
            let (leaving, staying) = (those(true), those(false));
            let new = of(cpu, 1, source(critical));
            let without = |gone: &[&Pod]| -> Vec<&Pod> {
                let there = leaving.iter().chain(&staying).copied();
                there.filter(|pod| gone.iter().all(|gone| gone.id.uid != pod.id.uid)).collect()
            };
            let fits = |beside: &[&Pod]| admit::admit(&new, beside, &node(), None).is_ok();
            match find_among(&new, &leaving, &staying) {
                Ok(room) => {
                    let gone = [room.leaving.as_slice(), &room.victims].concat();
                    prop_assert!(fits(&without(&gone)));
                    for (at, _) in room.leaving.iter().enumerate() {
                        let mut fewer = room.leaving.clone();
                        fewer.remove(at);
                        prop_assert!(!fits(&without(&[fewer.as_slice(), &room.victims].concat())));
                    }
                }
                Err(_) => prop_assert!(!fits(&staying)),
            }
        }
    }
}
