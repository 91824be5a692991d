//! Node allocatable is enforced: all pods together get no more of the machine than is not reserved.
//!
//! As `enforceNodeAllocatableCgroups` of `pkg/kubelet/cm/node_container_manager_linux.go`. Which limits there are is said by
//! [`Options`](crate::node::Options); here they are set, and it is told how that went.

use std::time::Duration;

use longshore_core::cgroup::PodsLimits;
use longshore_core::event::EventType;
use longshore_core::ports::events::EventSink;
use longshore_core::ports::files::{FileStore, FilesError};

/// After how long limits that could not be set are tried again: evictions may bring usage below them meanwhile.
const RETRY: Duration = Duration::from_secs(60);

/// Sets the limits, as often as it takes; never ends.
pub(crate) async fn run(files: &dyn FileStore, events: &dyn EventSink, limits: Option<PodsLimits>) {
    if let Some(limits) = limits {
        enforce(files, events, &limits, RETRY).await;
    }
    std::future::pending().await
}

async fn enforce(files: &dyn FileStore, events: &dyn EventSink, limits: &PodsLimits, retry: Duration) {
    loop {
        let (reason, again) = match files.limit_pods(limits).await {
            Ok(()) if limits.are_enforced() => {
                let message = "Updated Node Allocatable limit across pods";
                events.record_node(EventType::Normal, "NodeAllocatableEnforced", message);
                return;
            }
            Ok(()) => return,
            // Pods run all the same; nobody asked for limits, so nobody misses them.
            Err(FilesError::NotAllowed(_)) if !limits.are_enforced() => return,
            Err(FilesError::NotAllowed(reason)) => {
                (format!("{reason}; pods run without a limit for all of them"), false)
            }
            Err(error) => (error.to_string(), true),
        };
        let message = format!("Failed to update Node Allocatable Limits [\"kubepods\"]: {reason}");
        events.record_node(EventType::Warning, "FailedNodeAllocatableEnforcement", &message);
        if !again {
            return;
        }
        tokio::time::sleep(retry).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use longshore_tests::files::FakeFiles;

    use super::*;
    use crate::events::EventRing;

    const LIMITS: PodsLimits = PodsLimits { cpu_shares: 1024, memory: Some(1 << 30), pids: Some(100) };

    /// What is told when setting the limits leads to that, and whether they were set.
    async fn told(limits: PodsLimits, errors: Vec<FilesError>) -> (Vec<(String, String)>, bool) {
        let (files, events) = (FakeFiles::default(), EventRing::new());
        files.limiting.lock().unwrap().extend(errors);
        enforce(&files, &*events, &limits, Duration::ZERO).await;
        let told = events.events(None).into_iter().map(|event| (event.reason, event.message)).collect();
        (told, files.limits() == Some(limits))
    }

    fn enforced() -> (String, String) {
        ("NodeAllocatableEnforced".to_owned(), "Updated Node Allocatable limit across pods".to_owned())
    }

    #[tokio::test]
    async fn it_is_told_how_it_went_and_tried_again_where_that_may_help() {
        assert_eq!(told(LIMITS, Vec::new()).await, (vec![enforced()], true));
        let busy = FilesError::Io { path: "/x/memory.limit_in_bytes".into(), message: "busy".to_owned() };
        let (events, set) = told(LIMITS, vec![busy.clone(), busy.clone()]).await;
        assert!(set && events.len() == 2 && events[1] == enforced());
        assert_eq!(
            events[0],
            (
                "FailedNodeAllocatableEnforcement".to_owned(),
                "Failed to update Node Allocatable Limits [\"kubepods\"]: /x/memory.limit_in_bytes: busy".to_owned()
            )
        );
        let never = FilesError::NotAllowed("it is read-only".to_owned());
        let (events, set) = told(LIMITS, vec![never.clone()]).await;
        assert!(!set && events.len() == 1 && events[0].1.contains("it is read-only; pods run without"), "{events:?}");
        // Limits of a former run are taken away without a word.
        let none = PodsLimits { memory: None, pids: None, ..LIMITS };
        assert_eq!(told(none, Vec::new()).await, (Vec::new(), true));
        assert_eq!(told(none, vec![never]).await, (Vec::new(), false));
    }
}
