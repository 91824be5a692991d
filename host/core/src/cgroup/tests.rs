//! Classes and names of cgroups, case by case.

use super::*;
use crate::testing::{node, pod_from};

fn of(spec: &str) -> PodCgroup {
    pod_cgroup(&pod_from(spec), &node())
}

#[test]
fn classes() {
    let cases = [
        ("containers: [{name: a}]", Qos::BestEffort),
        ("containers: [{name: a, resources: {requests: {cpu: '0'}}}]", Qos::BestEffort),
        ("containers: [{name: a, resources: {limits: {ephemeral-storage: 1Gi}}}]", Qos::BestEffort),
        ("containers: [{name: a, resources: {limits: {cpu: '1', memory: 1Gi}}}]", Qos::Guaranteed),
        (
            "containers: [{name: a, resources: {limits: {cpu: '1', memory: 1Gi}, requests: {cpu: 1000m, memory: 1024Mi}}}]",
            Qos::Guaranteed,
        ),
        (
            "containers: [{name: a, resources: {limits: {cpu: '1', memory: 1Gi}, requests: {cpu: 100m}}}]",
            Qos::Burstable,
        ),
        ("containers: [{name: a, resources: {limits: {cpu: '1', memory: 1Gi}, requests: {cpu: '0'}}}]", Qos::Burstable),
        ("containers: [{name: a, resources: {limits: {cpu: '1', memory: 1Gi}}}, {name: b}]", Qos::Burstable),
        (
            "{containers: [{name: a, resources: {limits: {cpu: '1', memory: 1Gi}}}], initContainers: [{name: i}]}",
            Qos::Burstable,
        ),
        ("{resources: {limits: {cpu: '1', memory: 1Gi}}, containers: [{name: a}]}", Qos::Guaranteed),
        ("{resources: {limits: {cpu: '1'}}, containers: [{name: a}]}", Qos::Burstable),
        ("{resources: {}, containers: [{name: a}]}", Qos::BestEffort),
    ];
    for (spec, expected) in cases {
        assert_eq!(qos(pod_from(spec).spec()), expected, "{spec}");
    }
}

#[test]
fn limits_of_the_pod() {
    let best_effort = of("containers: [{name: a}]");
    assert_eq!((best_effort.cpu_shares, best_effort.cpu_quota, best_effort.memory), (2, None, None));
    let guaranteed = of("containers: [{name: a, resources: {limits: {cpu: 500m, memory: 1Gi}}},
                                      {name: b, resources: {limits: {cpu: 250m, memory: 1Gi}}}]");
    assert_eq!((guaranteed.cpu_shares, guaranteed.cpu_quota, guaranteed.memory), (768, Some(75_000), Some(2 << 30)));
    let half = of("containers: [{name: a, resources: {limits: {cpu: 500m, memory: 1Gi}}},
                                {name: b, resources: {limits: {memory: 1Gi}}}]");
    assert_eq!((half.cpu_shares, half.cpu_quota, half.memory), (512, None, Some(2 << 30)));
    let with_init = of("{containers: [{name: a, resources: {limits: {memory: 1Gi}}}],
                         initContainers: [{name: i, resources: {limits: {memory: 3Gi}}}]}");
    assert_eq!(with_init.memory, Some(3 << 30));
    let level = of("{resources: {limits: {memory: 5Gi}}, overhead: {memory: 1Gi}, containers: [{name: a}]}");
    assert_eq!((level.cpu_quota, level.memory), (None, Some(6 << 30)));
}

#[test]
fn what_the_node_is_configured_to() {
    let pod = pod_from("containers: [{name: a, resources: {limits: {cpu: 500m, memory: 1Gi}}}]");
    let set = |period, pids| {
        let cgroup = pod_cgroup(&pod, &NodeFacts { cpu_quota_period: period, pod_pids_limit: pids, ..node() });
        (cgroup.cpu_quota, cgroup.cpu_period, cgroup.pids)
    };
    assert_eq!(set(Some(100_000), None), (Some(50_000), 100_000, None));
    assert_eq!(set(Some(20_000), Some(64)), (Some(10_000), 20_000, Some(64)));
    assert_eq!(set(None, Some(64)), (None, 100_000, Some(64)));
}

#[test]
fn huge_pages_are_held_to_what_is_requested() {
    let pod = pod_from(
        "containers: [{name: a, resources: {limits: {hugepages-2Mi: 4Mi}}},
                                     {name: b, resources: {limits: {hugepages-2Mi: 2Mi}}}]",
    );
    let node = NodeFacts { huge_pages: [("hugepages-1Gi", 0), ("hugepages-2Mi", 64 << 20)].into(), ..node() };
    assert_eq!(pod_cgroup(&pod, &node).huge_pages, [("1GB", 0), ("2MB", 6 << 20)]);
}

#[test]
fn parents_by_driver() {
    let mut pod = pod_from("containers: [{name: a, resources: {requests: {cpu: 1m}}}]");
    pod.id.uid = "12-34".to_owned();
    let mut node = node();
    assert_eq!(parent(&pod, &node), "/kubepods/burstable/pod12-34");
    node.cgroup_driver = CgroupDriver::Systemd;
    assert_eq!(parent(&pod, &node), "kubepods-burstable-pod12_34.slice");
    assert_eq!(
        pod_cgroup(&pod, &node).path(CgroupDriver::Systemd),
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12_34.slice"
    );
}
