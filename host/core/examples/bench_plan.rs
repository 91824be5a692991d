//! Times `plan` alone: prints one JSON object with microseconds per plan of one pod, over 10, 100 and 1,000 pods.
//!
//! `pods` are plans of pods that are up and need nothing, `new` those of pods that do not exist yet, `growth` is what
//! one plan of 1,000 costs over one of 10: planning looks at one pod alone, so it is about 1.

#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::backoff::Policy;
use longshore_core::node::{CgroupDriver, NodeFacts};
use longshore_core::observed::{Container, ContainerState, Exit, ObservedPod, Sandbox, SandboxState};
use longshore_core::plan::{self, Busy, Situation};
use longshore_core::pod::{ContainerKind, Pod, PodId, Source};
use longshore_core::record::PodRecord;
use longshore_core::status;
use serde_json::{Map, Value, json};

/// Each figure is taken over at least this time.
const LONG_ENOUGH: Duration = Duration::from_millis(300);
/// The best of so many counts: what else the machine does only ever adds.
const ROUNDS: usize = 5;

struct Known {
    pod: Pod,
    observed: ObservedPod,
    record: PodRecord,
}

fn main() {
    let now = Timestamp::UNIX_EPOCH;
    let (mut steady, mut new) = (Map::new(), Map::new());
    let (mut least, mut most) = (0.0, 0.0);
    for count in [10, 100, 1000] {
        let up: Vec<Known> = (0..count).map(|index| known(index, true, now)).collect();
        let none: Vec<Known> = (0..count).map(|index| known(index, false, now)).collect();
        let took = micros_per_plan(&up, now);
        if count == 10 {
            least = took;
        }
        most = took;
        steady.insert(count.to_string(), rounded(took));
        new.insert(count.to_string(), rounded(micros_per_plan(&none, now)));
    }
    println!("{}", json!({ "pods": steady, "new": new, "growth": rounded(most / least) }));
}

fn rounded(number: f64) -> Value {
    json!((number * 1000.0).round() / 1000.0)
}

fn micros_per_plan(pods: &[Known], now: Timestamp) -> f64 {
    let (unhealthy, busy, node) = (BTreeMap::new(), Busy::default(), node());
    let once = |known: &Known| {
        plan::plan(&Situation {
            pod: &known.pod,
            observed: &known.observed,
            record: &known.record,
            unhealthy: &unhealthy,
            busy: &busy,
            blocked: None,
            crash_loop: Policy::CRASH_LOOP,
            node: &node,
            cgroup: None,
            now,
        })
    };
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let mut plans = 0u32;
        while begun.elapsed() < LONG_ENOUGH / ROUNDS as u32 {
            for known in pods {
                black_box(once(black_box(known)));
                plans += 1;
            }
        }
        best = best.min(begun.elapsed().as_secs_f64() * 1e6 / f64::from(plans));
    }
    best
}

fn node() -> NodeFacts {
    NodeFacts {
        name: "node".to_owned(),
        root_id: "root".to_owned(),
        ips: Vec::new(),
        allocatable_milli_cpu: 2000,
        allocatable_memory: 4 << 30,
        allocatable_ephemeral_storage: Some(10 << 30),
        memory_capacity: 4 << 30,
        huge_pages: BTreeMap::new(),
        max_pods: 110,
        pod_pids_limit: None,
        cpu_quota_period: Some(longshore_core::resources::QUOTA_PERIOD),
        cluster_dns: Vec::new(),
        cluster_domain: String::new(),
        resolv_conf: None,
        hosts_file: String::new(),
        labels: BTreeMap::new(),
        cgroup_driver: CgroupDriver::Cgroupfs,
        cgroup_v2: true,
        single_process_oom_kill: true,
        min_oom_score_adj: -1000,
        apparmor: false,
        runtimes: Vec::new(),
        seccomp_root: String::new(),
        allowed_unsafe_sysctls: Vec::new(),
        seccomp_default: false,
        recursive_read_only: false,
    }
}

/// A pod with two containers, a sidecar and an init container; `up` has it run since `now`.
fn known(index: usize, up: bool, now: Timestamp) -> Known {
    let pod = pod(index);
    let observed = if up { running(&pod, now) } else { ObservedPod::default() };
    let mut record = PodRecord { start_time: Some(now), ..PodRecord::default() };
    status::remember(&mut record, &pod, &observed, &BTreeMap::new(), now);
    for known in record.containers.values_mut().filter(|known| known.exit.is_none()) {
        (known.started, known.ready) = (true, true);
    }
    Known { pod, observed, record }
}

fn pod(index: usize) -> Pod {
    let spec = json!({
        "initContainers": [
            { "name": "setup", "image": "busybox" },
            { "name": "side", "image": "busybox", "restartPolicy": "Always" },
        ],
        "containers": [
            { "name": "web", "image": "busybox", "env": [{ "name": "A", "value": "b" }] },
            { "name": "log", "image": "busybox" },
        ],
    });
    let spec: v1::PodSpec = serde_json::from_value(spec).expect("the spec above is one");
    let id = PodId { namespace: "default".to_owned(), name: format!("pod-{index}"), uid: format!("uid-{index}") };
    let mut object = v1::Pod { spec: Some(spec), ..v1::Pod::default() };
    object.metadata.name = Some(id.name.clone());
    object.metadata.namespace = Some(id.namespace.clone());
    object.metadata.uid = Some(id.uid.clone());
    let hashes = ["setup", "side", "web", "log"].map(|name| (name.to_owned(), format!("hash-{name}")));
    Pod {
        id,
        source: Source::File,
        object: Arc::new(object),
        hashes: hashes.into(),
        sandbox_hash: "hash".to_owned(),
        deletion: None,
        ephemeral: Vec::new(),
    }
}

fn running(pod: &Pod, now: Timestamp) -> ObservedPod {
    let sandbox = Sandbox {
        id: format!("sandbox-of-{}", pod.id.uid),
        pod: pod.id.clone(),
        attempt: 0,
        hash: pod.sandbox_hash.clone(),
        qos: None,
        created_at: now,
        state: SandboxState::Running,
        network: longshore_core::container::SandboxNetwork::Default,
        ips: vec![std::net::Ipv4Addr::LOCALHOST.into()],
        pid: Some(1),
    };
    let containers = pod.containers().map(|of| {
        let done = Exit {
            code: 0,
            reason: "Completed".to_owned(),
            message: String::new(),
            started_at: Some(now),
            finished_at: now,
        };
        let state = match of.kind {
            ContainerKind::Init => ContainerState::Exited(done),
            _ => ContainerState::Running { started_at: now, pid: 2 },
        };
        Container {
            id: format!("{}-of-{}", of.spec.name, pod.id.uid),
            pod: pod.id.clone(),
            name: of.spec.name.clone(),
            kind: of.kind,
            attempt: 0,
            hash: pod.hashes[&of.spec.name].clone(),
            sandbox_id: sandbox.id.clone(),
            image: "busybox".to_owned(),
            image_id: "docker://sha256:0".to_owned(),
            created_at: now,
            state,
            runtime_log: None,
            volume_images: Vec::new(),
            recursive_read_only: None,
            termination_message_file: None,
            grace_seconds: Some(30),
            resources: None,
            user: None,
        }
    });
    let containers = containers.collect();
    ObservedPod { sandboxes: vec![sandbox], containers, unseen: false }
}
