//! Who may still come to a node that runs short of something (`Admit` of `pkg/kubelet/eviction/eviction_manager.go`).

use super::{Rejection, reject, tolerates};
use crate::cgroup::{Qos, qos};
use crate::cluster::node_status::Pressure;
use crate::pod::Pod;
use crate::{evict, priority};

/// Whether the pod may come. Critical ones may always; short of memory alone only those that promise nothing of it may
/// not, unless they tolerate it.
pub fn under_pressure(pod: &Pod, pressure: Pressure) -> Result<(), Rejection> {
    let Pressure { memory, disk, pid } = pressure;
    if pressure == Pressure::default() || priority::is_critical(pod) {
        return Ok(());
    }
    if !disk && !pid && (qos(pod.spec()) != Qos::BestEffort || tolerates_memory_pressure(pod)) {
        return Ok(());
    }
    let conditions = [(memory, "MemoryPressure"), (disk, "DiskPressure"), (pid, "PIDPressure")];
    let held: Vec<&str> = conditions.into_iter().filter(|(holds, _)| *holds).map(|(_, name)| name).collect();
    reject(evict::REASON, format!("The node had condition: [{}]. ", held.join(" ")))
}

fn tolerates_memory_pressure(pod: &Pod) -> bool {
    let taint = k8s_openapi::api::core::v1::Taint {
        key: "node.kubernetes.io/memory-pressure".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Default::default()
    };
    pod.spec().tolerations.iter().flatten().any(|toleration| tolerates(toleration, &taint))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::testing::pod;
    use super::*;
    use crate::pod::Source;

    fn outcome(spec: &str, pressure: [bool; 3]) -> String {
        let [memory, disk, pid] = pressure;
        let pod = Pod { source: Source::Api, ..pod(spec) };
        match under_pressure(&pod, Pressure { memory, disk, pid }) {
            Ok(()) => "admitted".to_owned(),
            Err(rejection) => rejection.to_string(),
        }
    }

    #[test]
    fn a_node_short_of_memory_takes_what_asks_for_some() {
        let best_effort = "{containers: [{name: c, image: i}]}";
        let burstable = "{containers: [{name: c, image: i, resources: {requests: {memory: 1Mi}}}]}";
        let tolerant = "{containers: [{name: c, image: i}], tolerations: \
                        [{key: node.kubernetes.io/memory-pressure, operator: Exists, effect: NoSchedule}]}";
        let critical = "{containers: [{name: c, image: i}], priority: 2000000000}";
        let memory = [true, false, false];
        assert_eq!(outcome(best_effort, [false; 3]), "admitted");
        assert_eq!(outcome(best_effort, memory), "Evicted: The node had condition: [MemoryPressure]. ");
        for spec in [burstable, tolerant, critical] {
            assert_eq!(outcome(spec, memory), "admitted");
        }
        for spec in [best_effort, burstable, tolerant] {
            assert_eq!(outcome(spec, [false, true, false]), "Evicted: The node had condition: [DiskPressure]. ");
        }
        let all = "Evicted: The node had condition: [MemoryPressure DiskPressure PIDPressure]. ";
        assert_eq!(outcome(burstable, [true; 3]), all);
        assert_eq!(outcome(critical, [true; 3]), "admitted");
    }
}
