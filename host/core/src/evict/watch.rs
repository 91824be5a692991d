//! Thresholds over time: which are met, for how long, and which conditions the node has because of them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Observation, Observations, Policy, Resource, Signal, Threshold};
use crate::cluster::node_status::Pressure;

/// What is remembered between two looks. Times are those since the agent's start.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// Since when each threshold is met, by its place in the policy.
    since: BTreeMap<usize, Duration>,
    /// Thresholds that were met for their grace period, and hold until the minimum was reclaimed.
    held: Vec<usize>,
    /// When each condition was last seen to hold: memory, disk, process IDs.
    last: [Option<Duration>; 3],
}

/// What a look found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// What the node runs short of, or did lately.
    pub pressure: Pressure,
    /// What pods are to be evicted for, the most urgent; `None` when nothing is.
    pub starved: Option<Starved>,
}

/// Something of which too little is left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Starved {
    /// The threshold.
    pub threshold: Threshold,
    /// Less than this is too little.
    pub quantity: i64,
    /// What is left.
    pub available: i64,
}

impl Starved {
    /// What it is about.
    pub fn resource(&self) -> Resource {
        self.threshold.signal.resource()
    }
}

impl Watch {
    /// Takes in what was seen at `now`.
    pub fn look(&mut self, policy: &Policy, seen: &Observations, now: Duration) -> Found {
        let all = || policy.thresholds.iter().enumerate();
        let met: Vec<usize> = all()
            .filter(|(place, threshold)| {
                let held = self.held.contains(place);
                seen.get(&threshold.signal).is_some_and(|seen| is_met(threshold, *seen, held))
            })
            .map(|(place, _)| place)
            .collect();
        self.since = met.iter().map(|place| (*place, self.since.get(place).copied().unwrap_or(now))).collect();
        for place in &met {
            let Some(threshold) = policy.thresholds.get(*place) else { continue };
            self.last[condition(threshold.signal)] = Some(now);
        }
        let holds = |kind: usize| {
            self.last[kind].is_some_and(|at| at == now || now.saturating_sub(at) < policy.transition_period)
        };
        // A condition that holds now is one also without any transition period.
        let [memory, disk, pid] = [0, 1, 2].map(holds);

        let waited = |place: &usize| {
            let (threshold, since) = (policy.thresholds.get(*place)?, self.since.get(place)?);
            let long_enough = now.saturating_sub(*since) >= threshold.grace_period.unwrap_or_default();
            long_enough.then_some(*place)
        };
        self.held = met.iter().filter_map(waited).collect();
        let starved = self.held.iter().filter_map(|place| {
            let threshold = *policy.thresholds.get(*place)?;
            let Observation { available, capacity } = *seen.get(&threshold.signal)?;
            Some(Starved { threshold, quantity: threshold.amount.of(capacity), available })
        });
        // Memory before all else; the kubelet leaves the rest to chance.
        let starved = starved.min_by_key(|it| {
            (it.resource() != Resource::Memory, it.threshold.grace_period.is_some(), it.threshold.signal)
        });
        Found { pressure: Pressure { memory, disk, pid }, starved }
    }

    /// Whether everything is left again that there has to be, what is to be reclaimed beyond the thresholds included:
    /// then nobody need be evicted.
    pub fn is_relieved(policy: &Policy, seen: &Observations) -> bool {
        !policy
            .thresholds
            .iter()
            .any(|threshold| seen.get(&threshold.signal).is_some_and(|seen| is_met(threshold, *seen, true)))
    }

    /// Whether memory may run short soon, so that the next look should not be long in coming.
    pub fn is_near(policy: &Policy, seen: &Observations) -> bool {
        policy.thresholds.iter().filter(|threshold| threshold.signal.resource() == Resource::Memory).any(|threshold| {
            seen.get(&threshold.signal).is_some_and(|seen| {
                let quantity = threshold.amount.of(seen.capacity);
                let near = quantity.saturating_mul(2).min(quantity.saturating_add(seen.capacity / 10));
                seen.available < near
            })
        })
    }
}

/// Whether too little is left; with `reclaim` also as long as the minimum to be reclaimed is not.
fn is_met(threshold: &Threshold, seen: Observation, reclaim: bool) -> bool {
    let more = threshold.minimum_reclaim.filter(|_| reclaim).map_or(0, |more| more.of(seen.capacity));
    threshold.amount.of(seen.capacity).saturating_add(more) > seen.available
}

fn condition(signal: Signal) -> usize {
    match signal.resource() {
        Resource::Memory => 0,
        Resource::EphemeralStorage | Resource::Inodes => 1,
        Resource::Pids => 2,
    }
}
