//! All pods end, group after group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use longshore_core::shutdown::{self, Group, Step};
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::{Outcome, Told};
use crate::node::Shared;
use crate::roster::Member;

/// How long those may take to be gone that got no time any more.
const KILL: Duration = Duration::from_secs(3);
/// How long the API server may take at the end to hear how pods ended.
const REPORT: Duration = Duration::from_secs(2);

/// How they end.
pub(super) struct Order {
    /// By priority.
    pub(super) steps: Vec<Step>,
    /// How long all may take together, where that is less than what the steps say.
    pub(super) limit: Option<Duration>,
}

/// Ends all pods. Cancel safe: what was ended stays so, what was not told to end goes on.
pub(super) async fn end(shared: &Shared, order: Order, told: broadcast::Sender<Told>) -> Outcome {
    let begun = Instant::now();
    let members = shared.roster.members();
    let alive: Vec<Arc<Member>> = members.into_iter().filter(|member| !member.over).collect();
    let groups = shutdown::groups(&order.steps, alive.iter().map(|member| &member.pod));
    let mut ended = 0;
    // By UID: another pod may have the name by now.
    let mut left: Vec<(String, String)> = Vec::new();
    for n in 0..groups.len() {
        let group = &groups[n];
        let seconds = match order.limit {
            None => group.seconds,
            Some(limit) => {
                // What is left rounds up: a limit below a second is one.
                let left = limit.saturating_sub(begun.elapsed()).as_secs_f64().ceil() as i64;
                shutdown::share(&groups[n..], left)
            }
        };
        let late = end_group(shared, group, seconds, &told).await;
        ended += group.pods.len() - late.len();
        left.extend(late);
    }
    // What was late in its group has been killed by now, or is about to be.
    let still = |(uid, _): &(String, String)| shared.roster.member(uid).is_some_and(|member| !member.over);
    shared.roster.until(KILL, |_| !left.iter().any(still)).await;
    let before = left.len();
    left.retain(still);
    ended += before - left.len();
    shared.ports.views.until_reported(REPORT).await;
    Outcome { ended, left: left.into_iter().map(|(_, pod)| pod).collect() }
}

/// Ends a group's pods and waits for them. Gives those that did not end in time, by UID.
async fn end_group(
    shared: &Shared,
    group: &Group,
    seconds: i64,
    told: &broadcast::Sender<Told>,
) -> BTreeMap<String, String> {
    let begun = Instant::now();
    let mut waiting: BTreeMap<String, String> = BTreeMap::new();
    for (id, asked) in &group.pods {
        let grace = Group::grace(*asked, seconds);
        tracing::info!(pod = %id, grace, "stopping pod: node is shutting down or draining");
        if shared.roster.put(&id.uid, |wakes| wakes.shut_down = Some(grace)) {
            waiting.insert(id.uid.clone(), id.to_string());
        }
    }
    let pods = group.pods.iter().map(|(id, _)| id.to_string()).collect();
    let _ = told.send(Told::Group { priority: group.priority, seconds, pods });
    let deadline = begun + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let mut changes = shared.roster.changes();
    loop {
        changes.mark_unchanged();
        waiting.retain(|uid, pod| {
            let over = shared.roster.member(uid).is_none_or(|member| member.over);
            if over {
                let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                let _ = told.send(Told::Ended { pod: pod.clone(), milliseconds });
            }
            !over
        });
        if waiting.is_empty() {
            return waiting;
        }
        // Cancel safe: a change is looked at as a whole at every turn.
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return waiting },
            () = tokio::time::sleep_until(deadline) => {
                let late: Vec<String> = waiting.values().cloned().collect();
                tracing::warn!("not ended within {seconds} s: {}", late.join(", "));
                let _ = told.send(Told::Late { pods: late });
                return waiting;
            }
        }
    }
}
