//! Thresholds are exact and conditions calm; the order is total and the same every time; messages are the kubelet's.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::cluster::node_status::Pressure;
use crate::pod::{Pod, Source};
use crate::ports::files::DiskUsage;
use crate::priority::is_critical;
use crate::testing;

const SIGNALS: [Signal; 6] = [
    Signal::MemoryAvailable,
    Signal::NodeFsAvailable,
    Signal::NodeFsInodesFree,
    Signal::ImageFsAvailable,
    Signal::ImageFsInodesFree,
    Signal::PidAvailable,
];

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

fn hard(signal: Signal, amount: i64) -> Threshold {
    Threshold { signal, amount: Amount::Absolute(amount), grace_period: None, minimum_reclaim: None }
}

fn policy(thresholds: Vec<Threshold>) -> Policy {
    Policy { thresholds, transition_period: seconds(300), max_pod_grace_seconds: 0 }
}

fn left(signal: Signal, available: i64) -> Observations {
    Observations::from([(signal, Observation { available, capacity: 1000 })])
}

fn api_pod(name: &str, spec: &str) -> Pod {
    let mut pod = testing::pod_from(spec);
    pod.id.name = name.to_owned();
    pod.id.uid = name.to_owned();
    pod.source = Source::Api;
    pod
}

fn used(memory: u64) -> Option<PodUse> {
    let container = ContainerUse { memory: Some(memory), ..ContainerUse::default() };
    let containers = BTreeMap::from([("c".to_owned(), container)]);
    Some(PodUse { memory: Some(memory), containers, ..PodUse::default() })
}

fn order(candidates: Vec<(&Pod, Option<PodUse>)>, signal: Signal, dedicated: bool) -> Vec<String> {
    let mut all: Vec<_> = candidates.into_iter().map(|(pod, usage)| Candidate { pod, usage }).collect();
    rank(&mut all, signal, dedicated);
    all.iter().map(|candidate| candidate.pod.id.name.clone()).collect()
}

#[test]
fn a_soft_threshold_waits_for_its_grace_period_and_a_condition_does_not() {
    let soft = Threshold { grace_period: Some(seconds(30)), ..hard(Signal::PidAvailable, 100) };
    let policy = policy(vec![soft]);
    let mut watch = Watch::default();
    let low = left(Signal::PidAvailable, 99);
    let first = watch.look(&policy, &low, seconds(10));
    assert_eq!(first, Found { pressure: Pressure { pid: true, ..Pressure::default() }, starved: None });
    assert_eq!(watch.look(&policy, &low, seconds(39)).starved, None);
    let starved = watch.look(&policy, &low, seconds(40)).starved.unwrap();
    assert_eq!((starved.threshold, starved.quantity, starved.available), (soft, 100, 99));
    // Over in between: the wait begins anew.
    assert_eq!(watch.look(&policy, &left(Signal::PidAvailable, 100), seconds(41)).starved, None);
    assert_eq!(watch.look(&policy, &low, seconds(50)).starved, None);
    assert!(watch.look(&policy, &low, seconds(80)).starved.is_some());
}

#[test]
fn what_is_reclaimed_goes_beyond_the_threshold() {
    let threshold = Threshold { minimum_reclaim: Some(Amount::Absolute(50)), ..hard(Signal::NodeFsAvailable, 100) };
    let policy = policy(vec![threshold]);
    let mut watch = Watch::default();
    let starved = |watch: &mut Watch, available: i64, at: u64| {
        watch.look(&policy, &left(Signal::NodeFsAvailable, available), seconds(at)).starved.is_some()
    };
    assert!(!starved(&mut watch, 120, 0), "not met before");
    assert!(starved(&mut watch, 99, 1));
    assert!(starved(&mut watch, 149, 2));
    assert!(!starved(&mut watch, 150, 3));
    assert!(!starved(&mut watch, 120, 4), "it is over");
    assert!(!Watch::is_relieved(&policy, &left(Signal::NodeFsAvailable, 149)));
    assert!(Watch::is_relieved(&policy, &left(Signal::NodeFsAvailable, 150)));
    assert!(Watch::is_relieved(&policy, &Observations::new()), "what cannot be read evicts nobody");
}

#[test]
fn memory_is_seen_to_first() {
    let thresholds = [Signal::ImageFsAvailable, Signal::PidAvailable, Signal::MemoryAvailable].map(|it| hard(it, 10));
    let policy = policy(thresholds.to_vec());
    let mut seen = Observations::new();
    for signal in SIGNALS {
        seen.extend(left(signal, 1));
    }
    let found = Watch::default().look(&policy, &seen, seconds(0));
    assert_eq!(found.starved.unwrap().threshold.signal, Signal::MemoryAvailable);
    assert_eq!(found.pressure, Pressure { memory: true, disk: true, pid: true });
}

#[test]
fn the_hard_threshold_of_memory_counts_for_all_pods_together() {
    let own = Threshold { grace_period: None, ..hard(Signal::ContainerFsAvailable, 1) };
    let soft = Threshold { grace_period: Some(seconds(1)), ..hard(Signal::MemoryAvailable, 7) };
    let policy = policy(vec![hard(Signal::MemoryAvailable, 5), soft, own]);
    let signals = |enforced: bool| -> Vec<(Signal, i64)> {
        let all = policy.effective(enforced).thresholds;
        all.iter().map(|threshold| (threshold.signal, threshold.amount.of(0))).collect()
    };
    assert_eq!(signals(false), [(Signal::MemoryAvailable, 5), (Signal::MemoryAvailable, 7)]);
    assert_eq!(signals(true)[2..], [(Signal::AllocatableMemoryAvailable, 5)]);
}

#[test]
fn what_is_left_is_taken_from_what_was_read() {
    let fs = FileSystem { capacity: 100, available: 40, used: 60, inodes: 10, inodes_free: 3 };
    let node = NodeUsage {
        memory_available: Some(7),
        memory_capacity: Some(50),
        node_fs: Some(fs),
        image_fs: Some(FileSystem { inodes: 0, inodes_free: 0, ..fs }),
        processes: Some((300, 100)),
        pods: crate::ports::stats::Usage { memory_working_set: Some(30), ..Default::default() },
        ..NodeUsage::default()
    };
    let seen = observe(&node, Some(20));
    let of = |signal: Signal| seen.get(&signal).map(|seen| (seen.available, seen.capacity));
    assert_eq!(of(Signal::MemoryAvailable), Some((7, 50)));
    assert_eq!(of(Signal::AllocatableMemoryAvailable), Some((-10, 20)));
    assert_eq!(of(Signal::NodeFsAvailable), Some((40, 100)));
    assert_eq!(of(Signal::NodeFsInodesFree), Some((3, 10)));
    assert_eq!(of(Signal::ImageFsAvailable), Some((40, 100)));
    assert_eq!(of(Signal::ImageFsInodesFree), None, "no fixed number of inodes is not none left");
    assert_eq!(of(Signal::PidAvailable), Some((200, 300)));
    assert!(observe(&NodeUsage::default(), Some(20)).is_empty());
}

#[test]
fn pods_over_their_request_go_first_then_low_priority_then_the_largest() {
    let request = "{priority: PRIORITY, containers: [{name: c, resources: {requests: {memory: '100'}}}]}";
    let pod = |name: &str, priority: &str| api_pod(name, &request.replace("PRIORITY", priority));
    let (within, over, larger, important) = (pod("a", "0"), pod("b", "5"), pod("c", "5"), pod("d", "9"));
    let best_effort = api_pod("e", "{containers: [{name: c}]}");
    let all = vec![
        (&within, used(100)),
        (&over, used(101)),
        (&larger, used(150)),
        (&important, used(900)),
        (&best_effort, used(1)),
    ];
    assert_eq!(order(all, Signal::MemoryAvailable, false).concat(), "ecbda");
    let unknown = vec![(&best_effort, used(1)), (&within, None)];
    assert_eq!(order(unknown, Signal::MemoryAvailable, false).concat(), "ae", "what is not known goes first");
    // Process IDs: priority alone, then their number.
    let processes = |number: u64| Some(PodUse { processes: Some(number), ..PodUse::default() });
    let all = vec![(&important, processes(99)), (&over, processes(1)), (&larger, processes(2)), (&within, None)];
    assert_eq!(order(all, Signal::PidAvailable, false).concat(), "acbd");
}

#[test]
fn a_disk_of_images_is_filled_by_layers_and_the_nodes_by_logs_and_volumes() {
    let spec = "{containers: [{name: c}]}";
    let (layer, log) = (api_pod("layer", spec), api_pod("log", spec));
    let disk = |bytes: u64| Some(DiskUsage { bytes, inodes: bytes / 10 });
    let usage = |rootfs: u64, logs: u64| {
        let container = ContainerUse { memory: None, rootfs: disk(rootfs), logs: disk(logs) };
        Some(PodUse { containers: BTreeMap::from([("c".to_owned(), container)]), ..PodUse::default() })
    };
    let first = |signal: Signal, dedicated: bool| {
        order(vec![(&layer, usage(500, 10)), (&log, usage(100, 300))], signal, dedicated)[0].clone()
    };
    assert_eq!(first(Signal::NodeFsAvailable, false), "layer");
    assert_eq!(first(Signal::NodeFsAvailable, true), "log");
    assert_eq!(first(Signal::NodeFsInodesFree, true), "log");
    assert_eq!(first(Signal::ImageFsAvailable, true), "layer");
    assert_eq!(first(Signal::ImageFsInodesFree, true), "layer");
    // Files that could not all be counted may be more than anybody's, where files count.
    let first = |signal: Signal, dedicated: bool| {
        let uncounted = Some(PodUse { partial: true, ..PodUse::default() });
        order(vec![(&layer, usage(500, 10)), (&log, uncounted)], signal, dedicated)[0].clone()
    };
    assert_eq!(first(Signal::NodeFsInodesFree, false), "log");
    assert_eq!(first(Signal::ImageFsAvailable, true), "layer");
}

#[test]
fn files_that_could_not_all_be_counted_exceed_what_was_asked_for_and_priority_goes_on_counting() {
    let pod = |name: &str, priority: i32| {
        let requests = "resources: {requests: {ephemeral-storage: '100'}}";
        api_pod(name, &format!("{{priority: {priority}, containers: [{{name: c, {requests}}}]}}"))
    };
    let (over, uncounted, larger, within) = (pod("a", 0), pod("b", 5), pod("c", 5), pod("d", 0));
    let holds = |bytes: u64, partial: bool| {
        let files = DiskUsage { bytes, inodes: 0 };
        Some(PodUse { files, partial, ..PodUse::default() })
    };
    let all = vec![
        (&within, holds(50, false)),
        (&larger, holds(900, false)),
        (&uncounted, holds(1, true)),
        (&over, holds(101, false)),
    ];
    assert_eq!(order(all, Signal::NodeFsAvailable, false).concat(), "abcd");
}

#[test]
fn messages_are_the_kubelets() {
    let starved = |signal: Signal, quantity: i64, available: i64| Starved {
        threshold: hard(signal, quantity),
        quantity,
        available,
    };
    let pod = api_pod(
        "p",
        "{containers: [{name: c, resources: {requests: {memory: 64Mi, ephemeral-storage: 1Ki}}}, {name: d}], \
         resources: {requests: {memory: 80Mi}}}",
    );
    let mut usage = used(100 << 20).unwrap();
    usage.containers.insert("d".to_owned(), ContainerUse { memory: Some(0), ..ContainerUse::default() });
    let memory = starved(Signal::MemoryAvailable, 100 << 20, (90 << 20) + 1024);
    let (text, annotations) = message(&memory, &pod, Some(&usage));
    assert_eq!(
        text,
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 92161Ki. \
         Pod p was using 100Mi, request is 80Mi, has larger consumption of memory. \
         Container c was using 100Mi, request is 64Mi, has larger consumption of memory. "
    );
    assert_eq!((annotations["offending_pod"].as_str(), annotations["offending_pod_usage"].as_str()), ("p", "100Mi"));
    let disk = Some(DiskUsage { bytes: 1025, inodes: 7 });
    usage.containers.insert("d".to_owned(), ContainerUse { memory: None, rootfs: disk, logs: disk });
    let (text, annotations) = message(&starved(Signal::NodeFsAvailable, 5000, 2048), &pod, Some(&usage));
    assert_eq!(
        text,
        "The node was low on resource: ephemeral-storage. Threshold quantity: 5000, available: 2Ki. \
         Container d was using 2050, request is 0, has larger consumption of ephemeral-storage. "
    );
    let annotations: Vec<(&str, &str)> =
        annotations.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(
        annotations,
        [
            ("offending_containers", "d"),
            ("offending_containers_usage", "2050"),
            ("starved_resource", "ephemeral-storage"),
        ]
    );
    for (signal, amount, available, text) in [
        (Signal::PidAvailable, Amount::Decimal(5000), 2000, "pids. Threshold quantity: 5k, available: 2k. "),
        (
            Signal::MemoryAvailable,
            Amount::Decimal(500_000_000),
            1024,
            "memory. Threshold quantity: 500M, available: 1Ki. ",
        ),
        (Signal::NodeFsInodesFree, Amount::Percent(5.0), 1000, "inodes. Threshold quantity: 320Ki, available: 1k. "),
    ] {
        let threshold = Threshold { amount, ..hard(signal, 0) };
        let (text, expected) = (format!("The node was low on resource: {text}"), amount.of(6_553_600));
        let starved = Starved { threshold, quantity: expected, available };
        assert_eq!(message(&starved, &pod, None), (text, BTreeMap::new()));
    }
}

#[test]
fn parts_have_the_precision_of_the_kubelets() {
    assert_eq!([10.0, 16.0, 100.0].map(|percent| Amount::Percent(percent).of(1000)), [100, 159, 1000]);
}

#[test]
fn static_pods_and_those_of_the_system_are_critical() {
    let mut pod = api_pod("p", "{containers: [{name: c}], priority: 1000000000}");
    assert!(!is_critical(&pod));
    pod.source = Source::File;
    assert!(is_critical(&pod));
    assert!(is_critical(&api_pod("p", "{containers: [{name: c}], priority: 2000001000}")));
}

#[test]
fn a_hard_threshold_leaves_a_second_and_a_soft_one_what_it_says() {
    let mut policy = policy(Vec::new());
    let hard = hard(Signal::MemoryAvailable, 1);
    let soft = Threshold { grace_period: Some(seconds(1)), ..hard };
    assert_eq!((hard.pod_grace(&policy, 30), soft.pod_grace(&policy, 30), soft.pod_grace(&policy, 0)), (1, 30, 1));
    policy.max_pod_grace_seconds = 10;
    assert_eq!((hard.pod_grace(&policy, 30), soft.pod_grace(&policy, 30), soft.pod_grace(&policy, 5)), (1, 10, 5));
}

fn any_threshold() -> impl Strategy<Value = Threshold> {
    let amount = prop_oneof![
        (1i64..1000).prop_map(Amount::Absolute),
        (1u32..99).prop_map(|percent| Amount::Percent(f64::from(percent)))
    ];
    let more = prop::option::of((0i64..200).prop_map(Amount::Absolute));
    (0..SIGNALS.len(), amount, prop::option::of(1u64..120), more).prop_map(|(which, amount, grace, more)| Threshold {
        signal: SIGNALS[which],
        amount,
        grace_period: grace.map(seconds),
        minimum_reclaim: more,
    })
}

/// A pod of 200 names, its memory request and its usage.
fn any_candidate() -> impl Strategy<Value = (Pod, Option<PodUse>)> {
    (0u32..200, -2i32..3, 0u64..4, prop::option::of((0u64..4, 0u64..4))).prop_map(|(name, priority, request, usage)| {
        let spec = format!(
            "{{priority: {priority}, containers: [{{name: c, resources: {{requests: {{memory: '{request}'}}}}}}]}}"
        );
        let usage = usage.map(|(memory, bytes)| {
            let disk = Some(DiskUsage { bytes, inodes: memory });
            let container = ContainerUse { memory: Some(memory), rootfs: disk, logs: disk };
            let containers = BTreeMap::from([("c".to_owned(), container)]);
            PodUse { memory: Some(memory), processes: Some(bytes), containers, ..PodUse::default() }
        });
        (api_pod(&name.to_string(), &spec), usage)
    })
}

proptest! {
    /// Below is met, at is not; and a condition that was seen stays for the period, however what is left goes up and down.
    #[test]
    fn thresholds_are_exact_and_conditions_stay(
        threshold in any_threshold(), looks in prop::collection::vec((0i64..1001, 1u64..100), 1..30),
    ) {
        let mut policy = policy(vec![threshold]);
        policy.transition_period = seconds(60);
        let quantity = threshold.amount.of(1000);
        let more = threshold.minimum_reclaim.map_or(0, |more| more.of(1000));
        let mut watch = Watch::default();
        let (mut now, mut since, mut last, mut held) = (0, None, None::<u64>, false);
        for (available, step) in looks {
            now += step;
            let found = watch.look(&policy, &left(threshold.signal, available), seconds(now));
            let met = available < if held { quantity + more } else { quantity };
            since = if met { since.or(Some(now)) } else { None };
            held = since.is_some_and(|since| seconds(now - since) >= threshold.grace_period.unwrap_or_default());
            prop_assert_eq!(found.starved.is_some(), held);
            last = if met { Some(now) } else { last };
            let holds = last.is_some_and(|last| now - last < 60);
            let Pressure { memory, disk, pid } = found.pressure;
            prop_assert_eq!([memory, disk, pid].iter().filter(|is| **is).count(), usize::from(holds));
        }
    }

    /// Whatever the order that they come in, the order that they go in is one; and nobody who uses no more than he asked for goes
    /// before one who does.
    #[test]
    fn the_order_is_total_and_the_same(
        pods in prop::collection::vec(any_candidate(), 0..12).prop_shuffle(),
        which in 0..SIGNALS.len(), dedicated in any::<bool>(), turn in 0usize..12,
    ) {
        let mut pods: BTreeMap<String, (Pod, Option<PodUse>)> =
            pods.into_iter().map(|(pod, usage)| (pod.id.uid.clone(), (pod, usage))).collect();
        let ranked = |pods: Vec<&(Pod, Option<PodUse>)>| {
            order(pods.into_iter().map(|(pod, usage)| (pod, usage.clone())).collect(), SIGNALS[which], dedicated)
        };
        let one = ranked(pods.values().collect());
        let mut turned: Vec<_> = pods.values().collect();
        turned.reverse();
        let middle = turn % turned.len().max(1);
        turned.rotate_left(middle);
        prop_assert_eq!(&one, &ranked(turned));
        if SIGNALS[which] == Signal::MemoryAvailable {
            let over = |name: &String| {
                let (pod, usage) = &pods[name];
                let asked: u64 = pod.spec().containers[0].resources.as_ref().unwrap().requests.as_ref().unwrap()["memory"]
                    .0.parse().unwrap();
                usage.as_ref().is_none_or(|usage| usage.memory > Some(asked))
            };
            prop_assert!(one.iter().map(over).is_sorted_by(|a, b| a >= b), "{:?}", one);
        }
        // The choice does not hang on the others: without the last, the rest stay in order.
        if let Some(last) = one.last() {
            pods.remove(last);
            prop_assert_eq!(&one[..one.len() - 1], &ranked(pods.values().collect())[..]);
        }
    }

    #[test]
    fn no_usage_brings_it_down(memory in any::<u64>(), bytes in any::<u64>(), request in any::<i64>()) {
        let mut pod = api_pod("p", "{containers: [{name: c}]}");
        let mut object = (*pod.object).clone();
        let requests = BTreeMap::from([
            ("memory".to_owned(), k8s_openapi::apimachinery::pkg::api::resource::Quantity(request.to_string())),
        ]);
        object.spec.as_mut().unwrap().containers[0].resources =
            Some(k8s_openapi::api::core::v1::ResourceRequirements { requests: Some(requests), ..Default::default() });
        pod.object = Arc::new(object);
        let disk = Some(DiskUsage { bytes, inodes: bytes });
        let container = ContainerUse { memory: Some(memory), rootfs: disk, logs: disk };
        let volumes = BTreeMap::from([("v".to_owned(), DiskUsage { bytes, inodes: bytes })]);
        let containers = BTreeMap::from([("c".to_owned(), container)]);
        let (processes, files) = (Some(bytes), DiskUsage { bytes, inodes: bytes });
        let usage = PodUse { memory: Some(memory), processes, containers, volumes, files, partial: false };
        for signal in Signal::ALL {
            let starved = Starved { threshold: hard(signal, i64::MAX), quantity: i64::MAX, available: i64::MIN };
            let (text, _) = message(&starved, &pod, Some(&usage));
            prop_assert!(text.starts_with("The node was low on resource: "));
            order(vec![(&pod, Some(usage.clone()))], signal, false);
        }
    }
}
