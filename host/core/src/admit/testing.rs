//! A node and pods for the tests of admission and support.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use k8s_openapi::api::core::v1;

use crate::node::{CgroupDriver, NodeFacts};
use crate::pod::{Pod, PodId, Source};

/// A node of 2 cores and 4 GiB for 3 pods.
pub(crate) fn node() -> NodeFacts {
    NodeFacts {
        name: "node".to_owned(),
        root_id: "root".to_owned(),
        ips: vec!["10.0.0.1".parse().expect("an address")],
        allocatable_milli_cpu: 2000,
        allocatable_memory: 4 << 30,
        allocatable_ephemeral_storage: Some(10 << 30),
        memory_capacity: 4 << 30,
        huge_pages: BTreeMap::new(),
        max_pods: 3,
        pod_pids_limit: None,
        cpu_quota_period: Some(crate::resources::QUOTA_PERIOD),
        cluster_dns: Vec::new(),
        cluster_domain: String::new(),
        resolv_conf: None,
        hosts_file: String::new(),
        labels: BTreeMap::from([("zone".to_owned(), "a".to_owned()), ("size".to_owned(), "4".to_owned())]),
        cgroup_driver: CgroupDriver::Cgroupfs,
        cgroup_v2: true,
        single_process_oom_kill: true,
        min_oom_score_adj: -1000,
        apparmor: false,
        runtimes: vec!["runc".to_owned()],
        seccomp_root: "/var/lib/longshore/seccomp".to_owned(),
        allowed_unsafe_sysctls: vec!["kernel.msg*".to_owned(), "net.core.somaxconn".to_owned()],
        seccomp_default: false,
        recursive_read_only: false,
    }
}

/// A pod with that spec (YAML); no two have the same UID.
pub(crate) fn pod(spec: &str) -> Pod {
    let spec: v1::PodSpec = serde_saphyr::from_str(spec).expect("a pod spec");
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let uid = COUNT.fetch_add(1, Ordering::Relaxed).to_string();
    let object = v1::Pod { spec: Some(spec), ..Default::default() };
    Pod {
        id: PodId { namespace: "default".to_owned(), name: "pod".to_owned(), uid },
        source: Source::File,
        object: Arc::new(object),
        hashes: BTreeMap::new(),
        sandbox_hash: String::new(),
        deletion: None,
        ephemeral: Vec::new(),
    }
}
