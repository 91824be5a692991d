//! The node's need: what is left is looked at again and again; before anything runs out, what nobody needs is removed, and
//! then pods are ended, one at a time.
//!
//! As `pkg/kubelet/eviction/eviction_manager.go`. When and whom is decided in [`longshore_core::evict`]; a pod is ended by
//! its worker. What the node runs short of goes to [`crate::health`], from where the API server and admission have it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use longshore_core::cluster::node_status::Pressure;
use longshore_core::event::EventType;
use longshore_core::evict::{self, Candidate, Observations, PodUse, Policy, Resource, Starved, Watch};
use longshore_core::ports::events::EventSink;
use longshore_core::ports::stats::NodeUsage;
use longshore_core::priority;

use crate::collection::Collector;
use crate::inbox::Evict;
use crate::node::Shared;
use crate::roster::Member;
use crate::usage;

/// Pods that are measured at a time: one that takes long holds up no others.
const MEASURED: usize = 16;
/// How often it is looked (`evictionMonitoringPeriod`).
const PERIOD: Duration = Duration::from_secs(10);
/// How often while memory may run short soon.
const NEAR_PERIOD: Duration = Duration::from_secs(1);
/// How long an evicted pod's things may take to go before it is looked again (`podCleanupTimeout`).
const CLEANUP: Duration = Duration::from_secs(30);
/// How long the containers of an evicted pod may take to end at least before that is told (`killPodNow`).
const KILL: Duration = Duration::from_secs(10);

/// How the loop is set up.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// When pods are evicted.
    pub policy: Policy,
    /// What all pods together may use of the memory; `None` where that is not enforced.
    pub pods_memory: Option<i64>,
    /// How often it is looked.
    pub period: Duration,
}

impl Default for Options {
    /// Nothing is ever evicted.
    fn default() -> Self {
        let policy =
            Policy { thresholds: Vec::new(), transition_period: Duration::from_secs(300), max_pod_grace_seconds: 0 };
        Options { policy, pods_memory: None, period: PERIOD }
    }
}

/// Looks after the node for ever.
pub(crate) async fn run(shared: &Shared, collector: &Collector<'_>) {
    let options = &shared.options.eviction;
    let policy = options.policy.effective(options.pods_memory.is_some());
    if policy.thresholds.is_empty() {
        return std::future::pending().await;
    }
    let mut manager = Manager {
        shared,
        collector,
        policy,
        watch: Watch::default(),
        begun: Instant::now(),
        before: Pressure::default(),
        helpless: None,
    };
    loop {
        match manager.pass().await {
            Pass::Evicted(pod, grace) => manager.wait_for(&pod, grace).await,
            // Cancel safe: a look that is not taken is taken at the next start.
            Pass::Calm { near } => {
                tokio::time::sleep(if near { options.period.min(NEAR_PERIOD) } else { options.period }).await;
            }
        }
    }
}

/// What a look came to.
enum Pass {
    /// A pod was told to end, with so many seconds to do it.
    Evicted(Arc<Member>, i64),
    /// Nobody was.
    Calm { near: bool },
}

struct Manager<'a> {
    shared: &'a Shared,
    collector: &'a Collector<'a>,
    policy: Policy,
    watch: Watch,
    begun: Instant,
    before: Pressure,
    /// The threshold for which no pod may end, as it was last said: nobody reads that every ten seconds.
    helpless: Option<&'static str>,
}

impl Manager<'_> {
    async fn pass(&mut self) -> Pass {
        let (node, seen) = self.look().await;
        let found = self.watch.look(&self.policy, &seen, self.begun.elapsed());
        self.tell(found.pressure);
        let near = Watch::is_near(&self.policy, &seen);
        let Some(starved) = found.starved else {
            self.helpless = None;
            return Pass::Calm { near };
        };
        let resource = starved.resource().name();
        let threshold = starved.threshold.signal.name();
        tracing::warn!(threshold, available = starved.available, "attempting to reclaim {resource}");
        let message = format!("Attempting to reclaim {resource}");
        self.shared.ports.events.record_node(EventType::Warning, "EvictionThresholdMet", &message);
        let dedicated = evict::has_own_image_disk(&node);
        if self.reclaim(&starved, dedicated).await {
            tracing::info!("what nobody needs was removed, no pod has to end for {resource}");
            self.helpless = None;
            return Pass::Calm { near };
        }
        match self.evict(&starved, dedicated).await {
            Some((pod, grace)) => {
                self.helpless = None;
                Pass::Evicted(pod, grace)
            }
            None => {
                if self.helpless.replace(threshold) != Some(threshold) {
                    tracing::warn!(threshold, "no pod can be evicted to reclaim {resource}");
                }
                Pass::Calm { near }
            }
        }
    }

    async fn look(&self) -> (NodeUsage, Observations) {
        let node = usage::of_node(self.shared).await;
        let seen = evict::observe(&node, self.shared.options.eviction.pods_memory);
        (node, seen)
    }

    fn tell(&mut self, pressure: Pressure) {
        self.shared.ports.health.set_pressure(pressure);
        let before = std::mem::replace(&mut self.before, pressure);
        let kinds = [
            ("memory", before.memory, pressure.memory),
            ("disk", before.disk, pressure.disk),
            ("process IDs", before.pid, pressure.pid),
        ];
        for (what, before, now) in kinds {
            match (before, now) {
                (false, true) => tracing::warn!("the node runs short of {what}"),
                (true, false) => tracing::info!("the node has enough {what} again"),
                _ => {}
            }
        }
    }

    /// Removes what nobody needs of a disk: dead containers of pods that ended and have nothing running any more, and images
    /// that are not used. Says whether that was enough.
    async fn reclaim(&self, starved: &Starved, dedicated: bool) -> bool {
        let on_disk = matches!(starved.resource(), Resource::EphemeralStorage | Resource::Inodes);
        if !on_disk || (dedicated && !starved.threshold.signal.is_of_images()) {
            return false;
        }
        let roster = &self.shared.roster;
        let ended: Vec<String> = roster
            .members()
            .iter()
            .filter(|member| !member.holds() && !member.containers.is_empty())
            .map(|member| member.pod.id.uid.clone())
            .collect();
        for uid in &ended {
            roster.put(uid, |wakes| wakes.empty = true);
        }
        let gone = |uid: &String| roster.member(uid).is_none_or(|member| member.containers.is_empty());
        if !roster.until(CLEANUP, |_| ended.iter().all(gone)).await {
            tracing::warn!("some dead containers are not removed within {} s", CLEANUP.as_secs());
        }
        self.collector.remove_unused().await;
        let (_, seen) = self.look().await;
        Watch::is_relieved(&self.policy, &seen)
    }

    /// Tells the first in the order that may be evicted to end.
    async fn evict(&self, starved: &Starved, dedicated: bool) -> Option<(Arc<Member>, i64)> {
        let mut members = self.shared.roster.members();
        // What may not end is not measured either: on some nodes that is most pods.
        members.retain(|member| {
            !member.ended && !priority::is_critical(&member.pod) && self.shared.may_evict(&member.pod)
        });
        if members.is_empty() {
            return None;
        }
        let mut candidates: Vec<Candidate<'_>> = Vec::new();
        let usages = self.usages(&members, starved.resource()).await;
        for (member, usage) in members.iter().zip(usages) {
            candidates.push(Candidate { pod: &member.pod, usage });
        }
        evict::rank(&mut candidates, starved.threshold.signal, dedicated);
        let order: Vec<String> = candidates.iter().map(|candidate| candidate.pod.id.to_string()).collect();
        tracing::info!("pods in the order of their eviction: {}", order.join(", "));
        for candidate in candidates {
            let pod = candidate.pod;
            let grace = starved.threshold.pod_grace(&self.policy, pod.grace_seconds());
            let (message, annotations) = evict::message(starved, pod, candidate.usage.as_ref());
            let order = Evict { reason: evict::REASON, message, annotations, grace_seconds: grace, disruption: true };
            if self.shared.roster.put(&pod.id.uid, |wakes| wakes.evict = wakes.evict.take().or(Some(order))) {
                let member = members.iter().find(|member| member.pod.id.uid == pod.id.uid)?;
                return Some((member.clone(), grace));
            }
        }
        None
    }

    async fn usages(&self, members: &[Arc<Member>], of: Resource) -> Vec<Option<PodUse>> {
        let on_disk = matches!(of, Resource::EphemeralStorage | Resource::Inodes);
        let layers = match on_disk {
            true => match self.shared.ports.runtime.writable_layers(None).await {
                Ok(layers) => Some(Some(layers)),
                Err(error) => {
                    tracing::warn!("writable layers cannot be measured: {error}");
                    Some(None)
                }
            },
            false => None,
        };
        let (shared, layers) = (self.shared, layers.as_ref());
        stream::iter(members.to_vec())
            .map(move |member| async move { usage::of_pod(shared, &member, layers).await })
            .buffered(MEASURED)
            .collect()
            .await
    }

    /// Waits until an evicted pod has given back what it had.
    async fn wait_for(&self, pod: &Member, grace: i64) {
        let (id, roster) = (&pod.pod.id, &self.shared.roster);
        let grace = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        let limit = KILL.max(grace + grace / 2);
        if !roster.until(limit, |roster| roster.member(&id.uid).is_none_or(|member| !member.holds())).await {
            let message = "Container runtime did not kill the pod within specified grace period.";
            self.shared.ports.events.record(id, None, EventType::Warning, "ExceededGracePeriod", message);
        }
        if !roster.until(CLEANUP, |roster| roster.member(&id.uid).is_none_or(|member| member.over)).await {
            tracing::warn!(pod = %id, "an evicted pod is not gone within {} s", CLEANUP.as_secs());
        }
    }
}
