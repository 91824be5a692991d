//! What the kernel does to the node by itself: it kills for want of memory, and the node has an event of it.
//!
//! Containers that were killed are told of by the runtime; this must not touch them.

use longshore_core::event::EventType;
use longshore_core::oom::OutOfMemory;
use longshore_core::ports::events::EventSink;
use longshore_core::ports::kernel::KernelLog;
use tokio_util::sync::CancellationToken;

/// Follows the kernel's messages until they end or `stop` is cancelled.
pub async fn watch(log: &dyn KernelLog, events: &dyn EventSink, stop: &CancellationToken) {
    let mut follower = OutOfMemory::default();
    // Cancel safe: a message that was not taken is of no use any more.
    while let Some(next) = stop.run_until_cancelled(log.next()).await {
        match next {
            Ok(message) => {
                let Some(kill) = follower.take(&message) else { continue };
                match kill.event() {
                    Some(event) => events.record_node(EventType::Warning, "SystemOOM", &event),
                    None => tracing::debug!(?kill, "a cgroup had no memory left"),
                }
            }
            Err(error) => {
                tracing::warn!("{error}; OOM kills are no longer reported");
                return;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use longshore_core::ports::kernel::KernelLogError;

    use super::*;
    use crate::events::EventRing;

    struct Said(Mutex<VecDeque<&'static str>>);

    #[async_trait]
    impl KernelLog for Said {
        async fn next(&self) -> Result<String, KernelLogError> {
            let next = self.0.lock().unwrap().pop_front();
            next.map(str::to_owned).ok_or_else(|| KernelLogError("it ended".to_owned()))
        }
    }

    #[tokio::test]
    async fn a_machine_without_memory_has_an_event_of_each_victim_and_a_cgroup_has_none() {
        let said = [
            "a invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
            "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/,task=a,pid=1,uid=0",
            "Out of memory: Killed process 1 (a) total-vm:1kB, anon-rss:1kB, file-rss:0kB",
            "Memory cgroup out of memory: Killed process 2 (b) total-vm:1kB, anon-rss:1kB, file-rss:0kB",
            "Out of memory: Killed process 3 (c) total-vm:1kB, anon-rss:1kB, file-rss:0kB",
        ];
        let ring = EventRing::new();
        let stop = CancellationToken::new();
        watch(&Said(Mutex::new(said.into())), &*ring, &stop).await;
        let told: Vec<_> =
            ring.events(None).into_iter().map(|event| (event.pod, event.reason, event.message)).collect();
        let event =
            |text: &str| (None, "SystemOOM".to_owned(), format!("System OOM encountered, victim process: {text}"));
        assert_eq!(told, [event("a, pid: 1"), event("c, pid: 3")]);
        stop.cancel();
        watch(&Said(Mutex::new(said.into())), &*ring, &stop).await;
    }
}
