//! How much depends on a pod: its priority, and whether it is critical.
//!
//! As `pkg/apis/scheduling/types.go` and `pkg/kubelet/types/pod_update.go`. What follows from it is decided elsewhere
//! ([`crate::evict`], [`crate::preempt`], [`crate::shutdown`], [`crate::resources`]).

use crate::pod::{Pod, Source};

/// Pods of this priority and above are critical (`SystemCriticalPriority`); `system-cluster-critical` has it.
pub const CRITICAL: i32 = 2_000_000_000;
/// Priority of `system-node-critical`.
pub const NODE_CRITICAL: i32 = CRITICAL + 1000;

/// `spec.priority`, 0 where absent.
pub fn of(pod: &Pod) -> i32 {
    pod.spec().priority.unwrap_or(0)
}

/// The same; where it is absent what the class stands for. Nobody resolves a class for a pod that does not come from the
/// API server: those of the system have values that are known.
pub fn by_class(pod: &Pod) -> i32 {
    let spec = pod.spec();
    spec.priority.unwrap_or(match spec.priority_class_name.as_deref() {
        Some("system-node-critical") => NODE_CRITICAL,
        Some("system-cluster-critical") => CRITICAL,
        _ => 0,
    })
}

/// Whether a pod is never evicted, and admitted whatever the node runs short of (`IsCriticalPod`): a static one, which
/// would not come back, or one of the system's.
pub fn is_critical(pod: &Pod) -> bool {
    pod.source != Source::Api || of(pod) >= CRITICAL
}

/// Whether a pod is critical for its node (`IsNodeCriticalPod`): it is critical, and of the class `system-node-critical`.
pub fn is_node_critical(pod: &Pod) -> bool {
    is_critical(pod) && pod.spec().priority_class_name.as_deref() == Some("system-node-critical")
}
