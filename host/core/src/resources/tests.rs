//! Shares, quotas and oom scores: cases and bounds.

use proptest::prelude::*;

use super::*;
use crate::testing::{node, pod_from};

#[test]
fn shares_and_quotas() {
    let shares = [(0, 2), (1, 2), (2, 2), (100, 102), (1000, 1024), (2500, 2560), (300_000, 262_144), (-1, 2)];
    for (milli, expected) in shares {
        assert_eq!(milli_cpu_to_shares(milli), expected, "{milli}");
    }
    for (milli, expected) in [(0, 0), (-5, 0), (1, 1000), (10, 1000), (20, 2000), (1000, 100_000), (2500, 250_000)] {
        assert_eq!(milli_cpu_to_quota(milli, QUOTA_PERIOD), expected, "{milli}");
    }
    assert_eq!([500, 50, 0].map(|milli| milli_cpu_to_quota(milli, 10_000)), [5000, 1000, 0]);
}

#[test]
fn a_containers_resources() {
    let pod = pod_from(
        "containers:
        - {name: both, resources: {requests: {cpu: 100m}, limits: {cpu: 500m, memory: 64Mi}}}
        - {name: limit, resources: {limits: {cpu: '1'}}}
        - {name: bare}",
    );
    let of = |name: &str| of_container(&pod, pod.container(name).unwrap().spec, &node());
    let both = Resources { cpu_shares: 102, cpu_quota: 50_000, cpu_period: 100_000, memory: 64 << 20 };
    assert_eq!(of("both"), both);
    assert_eq!(of("limit"), Resources { cpu_shares: 1024, cpu_quota: 100_000, cpu_period: 100_000, memory: 0 });
    assert_eq!(of("bare"), Resources { cpu_shares: 2, ..Resources::default() });

    let unlimited = NodeFacts { cpu_quota_period: None, ..node() };
    let of = |node: &NodeFacts| of_container(&pod, pod.container("both").unwrap().spec, node);
    assert_eq!(of(&unlimited), Resources { cpu_quota: 0, cpu_period: 0, ..both });
    let often = NodeFacts { cpu_quota_period: Some(10_000), ..node() };
    assert_eq!(of(&often), Resources { cpu_quota: 5_000, cpu_period: 10_000, ..both });
}

#[test]
fn the_pods_limits_stand_in_for_a_containers() {
    let pod = pod_from("{resources: {limits: {cpu: '2', memory: 1Gi}}, containers: [
        {name: bare}, {name: none, resources: {requests: {cpu: '0'}}}, {name: own, resources: {requests: {cpu: 500m}}}]}");
    let of = |name: &str| of_container(&pod, pod.container(name).unwrap().spec, &node());
    let bare = Resources { cpu_shares: 2048, cpu_quota: 200_000, cpu_period: 100_000, memory: 1 << 30 };
    assert_eq!(of("bare"), bare);
    assert_eq!(of("none"), Resources { cpu_shares: 2, ..bare }, "a request of nothing is one");
    assert_eq!(of("own"), Resources { cpu_shares: 512, ..bare });
    for container in &pod.spec().containers {
        let resources = of_container(&pod, container, &node());
        assert!(!crate::resize::drifted(&pod, container, &resources), "{}", container.name);
    }
}

#[test]
fn totals_of_a_pod() {
    let mixed = pod_from(
        "{overhead: {cpu: 10m},
         containers: [
           {name: a, resources: {requests: {cpu: 100m}, limits: {cpu: 200m}}},
           {name: b, resources: {limits: {cpu: 200m}}}],
         initContainers: [
           {name: first, resources: {limits: {cpu: 150m}}},
           {name: side, restartPolicy: Always, resources: {limits: {cpu: 50m}}},
           {name: second, resources: {requests: {cpu: 900m}, limits: {cpu: '1'}}}]}",
    );
    // second runs beside side: 950m beats 100 + 200 + 50.
    assert_eq!(pod_request(mixed.spec(), "cpu"), 960);
    assert_eq!(pod_limit(mixed.spec(), "cpu"), Some(1060));
    assert_eq!(pod_limit(mixed.spec(), "memory"), None);
    assert_eq!(pod_request(mixed.spec(), "memory"), 0);
    let half = pod_from("containers: [{name: a, resources: {limits: {memory: 1Gi}}}, {name: b}]");
    assert_eq!((pod_limit(half.spec(), "memory"), sum_of_limits(half.spec(), "memory")), (None, 1 << 30));
    let level = pod_from(
        "{resources: {requests: {cpu: 300m}, limits: {cpu: '1'}},
         containers: [{name: a, resources: {requests: {cpu: 100m}}}, {name: b}]}",
    );
    assert_eq!((pod_request(level.spec(), "cpu"), pod_limit(level.spec(), "cpu")), (300, Some(1000)));
    let only_limit = pod_from("{resources: {limits: {cpu: '1'}}, containers: [{name: b}]}");
    assert_eq!(pod_request(only_limit.spec(), "cpu"), 1000);
}

#[test]
fn oom_scores() {
    let score = |spec: &str, name: &str| {
        let pod = pod_from(spec);
        oom_score_adj(&pod, pod.container(name).unwrap(), &node())
    };
    assert_eq!(score("containers: [{name: a}]", "a"), 1000);
    let guaranteed = "containers: [{name: a, resources: {limits: {cpu: '1', memory: 1Gi}}}]";
    assert_eq!(score(guaranteed, "a"), -997);
    // A node of 8 GiB.
    assert_eq!(score("containers: [{name: a, resources: {requests: {memory: 2Gi}}}]", "a"), 750);
    assert_eq!(score("containers: [{name: a, resources: {requests: {cpu: 100m}}}]", "a"), 999);
    assert_eq!(score("containers: [{name: a, resources: {requests: {memory: 8Gi}}}]", "a"), 3);
    assert_eq!(score("containers: [{name: a, resources: {requests: {memory: 80Gi}}}]", "a"), 3);
    let sidecar = "{containers: [{name: a, resources: {requests: {memory: 4Gi}}},
                                 {name: b, resources: {requests: {memory: 2Gi}}}],
                    initContainers: [{name: s, restartPolicy: Always}, {name: i}]}";
    assert_eq!((score(sidecar, "s"), score(sidecar, "a"), score(sidecar, "i")), (750, 500, 999));
    let level = "{resources: {requests: {memory: 4Gi}},
                  containers: [{name: a, resources: {requests: {memory: 2Gi}}}, {name: b}]}";
    assert_eq!((score(level, "a"), score(level, "b")), (625, 875));
    assert_eq!(score("{priorityClassName: system-node-critical, containers: [{name: a}]}", "a"), -997);
    assert_eq!(score("{priorityClassName: system-cluster-critical, containers: [{name: a}]}", "a"), 1000);
}

#[test]
fn only_the_systems_classes_make_a_pod_of_the_api_critical() {
    let mut pod = pod_from("{priorityClassName: system-node-critical, containers: [{name: a}]}");
    pod.source = crate::pod::Source::Api;
    assert!(!priority::is_node_critical(&pod));
    let mut pod = pod_from("{priorityClassName: system-node-critical, priority: 2000001000, containers: [{name: a}]}");
    pod.source = crate::pod::Source::Api;
    assert!(priority::is_node_critical(&pod));
}

#[test]
fn scores_are_clamped_where_they_may_not_be_lowered() {
    let mut node = node();
    node.min_oom_score_adj = 0;
    let pod = pod_from("containers: [{name: a, resources: {limits: {cpu: '1', memory: 1Gi}}}]");
    assert_eq!(oom_score_adj(&pod, pod.container("a").unwrap(), &node), 0);
    assert_eq!(sandbox_oom_score_adj(&node), 0);
    let told = limited_oom_scores(&node).unwrap();
    assert!(told.contains("below 0 here") && told.contains("get 0 in place of -997") && told.contains("of -998"));
    for lowest in [-1000, -998] {
        node.min_oom_score_adj = lowest;
        assert_eq!(sandbox_oom_score_adj(&node), -998);
        assert_eq!(limited_oom_scores(&node), None);
    }
}

proptest! {
    #[test]
    fn shares_are_monotone_and_bounded(a in any::<i64>(), b in any::<i64>()) {
        let (low, high) = (a.min(b), a.max(b));
        prop_assert!(milli_cpu_to_shares(low) <= milli_cpu_to_shares(high));
        prop_assert!((2..=262_144).contains(&milli_cpu_to_shares(a)));
        let quota = |milli| milli_cpu_to_quota(milli, QUOTA_PERIOD);
        prop_assert!(quota(low) <= quota(high));
        prop_assert!(quota(a) == 0 || quota(a) >= 1000);
    }

    #[test]
    fn burstable_scores_stay_between_the_other_classes(
        request in 1i64..i64::MAX, more in 0i64..i64::MAX, capacity in any::<i64>(), min in -1000i32..=1000,
    ) {
        let mut node = node();
        node.memory_capacity = capacity;
        node.min_oom_score_adj = min;
        let score = |request: i64| {
            let pod = pod_from(&format!("containers: [{{name: a, resources: {{requests: {{memory: '{request}'}}}}}}]"));
            oom_score_adj(&pod, pod.container("a").unwrap(), &node)
        };
        prop_assert!(score(request) >= min);
        prop_assert!(score(request) >= 3 && score(request) <= 999.max(min));
        prop_assert!(score(request.saturating_add(more)) <= score(request));
    }
}
