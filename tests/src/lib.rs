//! In-memory ports for tests of the loops: a runtime, a disk, objects, probes and a source that do what they are told
//! and fail when they are told to. They decide nothing. Beside them a reader of metrics, for tests of whoever writes some.

pub mod cluster;
pub mod files;
pub mod machine;
pub mod network;
pub mod objects;
pub mod probes;
pub mod prometheus;
pub mod runtime;
pub mod source;
pub mod stats;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1;
use longshore_core::node::{CgroupDriver, NodeFacts};
use longshore_core::pod::{Pod, PodId, Source};

/// A pod with that spec (YAML), named `default/<name>`, its UID the name.
///
/// # Panics
/// When the spec is not one: a mistake in a test.
#[must_use]
pub fn pod(name: &str, spec: &str) -> Pod {
    let spec: v1::PodSpec = serde_saphyr::from_str(spec).expect("a pod spec");
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let hashes: BTreeMap<String, String> = containers
        .map(|container| (container.name.clone(), format!("hash-{}", container.image.as_deref().unwrap_or(""))))
        .collect();
    let mut object = v1::Pod { spec: Some(spec), ..Default::default() };
    object.metadata.name = Some(name.to_owned());
    object.metadata.namespace = Some("default".to_owned());
    object.metadata.uid = Some(name.to_owned());
    let ephemeral = longshore_core::pod::ephemeral(&object);
    Pod {
        id: PodId { namespace: "default".to_owned(), name: name.to_owned(), uid: name.to_owned() },
        source: Source::File,
        object: Arc::new(object),
        hashes,
        sandbox_hash: "sandbox".to_owned(),
        deletion: None,
        ephemeral,
    }
}

/// A node with room for a hundred small pods.
#[must_use]
pub fn node() -> NodeFacts {
    NodeFacts {
        name: "node".to_owned(),
        root_id: "root".to_owned(),
        ips: vec![[192, 168, 0, 1].into()],
        allocatable_milli_cpu: 4_000,
        allocatable_memory: 8 << 30,
        allocatable_ephemeral_storage: Some(100 << 30),
        memory_capacity: 8 << 30,
        huge_pages: BTreeMap::new(),
        max_pods: 110,
        pod_pids_limit: None,
        cpu_quota_period: Some(longshore_core::resources::QUOTA_PERIOD),
        cluster_dns: Vec::new(),
        cluster_domain: String::new(),
        resolv_conf: Some("nameserver 192.168.0.254\n".to_owned()),
        hosts_file: "127.0.0.1 localhost\n".to_owned(),
        labels: BTreeMap::new(),
        cgroup_driver: CgroupDriver::Cgroupfs,
        cgroup_v2: true,
        single_process_oom_kill: true,
        min_oom_score_adj: -1000,
        apparmor: false,
        runtimes: vec!["runc".to_owned()],
        seccomp_root: "/nonexistent".to_owned(),
        allowed_unsafe_sysctls: Vec::new(),
        seccomp_default: false,
        recursive_read_only: false,
    }
}
