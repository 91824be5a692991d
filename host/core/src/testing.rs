//! Builders for tests of this crate: pods from short YAML, containers, exits.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1;

use crate::observed::{Container, ContainerState, Exit, Sandbox, SandboxState};
use crate::pod::{ContainerOf, Pod, PodId, Source};

/// A time, in seconds of the epoch.
pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a valid time")
}

/// An exit.
pub(crate) fn exit(code: i32, started: i64, finished: i64) -> Exit {
    Exit {
        code,
        reason: if code == 0 { "Completed" } else { "Error" }.to_owned(),
        message: String::new(),
        started_at: Some(at(started)),
        finished_at: at(finished),
    }
}

/// A pod with that spec (YAML), named `ns/pod`, hashes `h-<container>`.
pub(crate) fn pod_from(spec: &str) -> Pod {
    let spec: v1::PodSpec = serde_saphyr::from_str(spec).expect("a pod spec");
    let names = spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(|c| c.name.clone());
    let hashes: BTreeMap<String, String> = names.map(|name| (name.clone(), format!("h-{name}"))).collect();
    let mut object = v1::Pod { spec: Some(spec), ..Default::default() };
    object.metadata.name = Some("pod".to_owned());
    object.metadata.namespace = Some("ns".to_owned());
    object.metadata.uid = Some("uid".to_owned());
    let ephemeral = crate::pod::ephemeral(&object);
    Pod {
        id: PodId { namespace: "ns".to_owned(), name: "pod".to_owned(), uid: "uid".to_owned() },
        source: Source::File,
        object: Arc::new(object),
        hashes,
        sandbox_hash: "sandbox-hash".to_owned(),
        deletion: None,
        ephemeral,
    }
}

/// The same, its first container mounting each of its volumes: those that no container uses are passed over.
pub(crate) fn pod_using(spec: &str) -> Pod {
    let mut pod = pod_from(spec);
    let spec = Arc::make_mut(&mut pod.object).spec.get_or_insert_default();
    let mount = |volume: &v1::Volume| v1::VolumeMount {
        name: volume.name.clone(),
        mount_path: format!("/{}", volume.name),
        ..Default::default()
    };
    let mounts: Vec<v1::VolumeMount> = spec.volumes.iter().flatten().map(mount).collect();
    spec.containers[0].volume_mounts.get_or_insert_default().extend(mounts);
    pod
}

/// A sandbox of the pod of [`pod_from`].
pub(crate) fn sandbox(attempt: u32, state: SandboxState) -> Sandbox {
    Sandbox {
        id: format!("sandbox-{attempt}"),
        pod: PodId { namespace: "ns".to_owned(), name: "pod".to_owned(), uid: "uid".to_owned() },
        attempt,
        hash: "sandbox-hash".to_owned(),
        qos: None,
        created_at: at(10),
        state,
        network: crate::container::SandboxNetwork::Default,
        ips: vec!["172.17.0.2".parse().expect("an address")],
        pid: Some(100),
    }
}

/// A container of the pod of [`pod_from`], in the sandbox `sandbox-0`.
pub(crate) fn container(of: ContainerOf<'_>, attempt: u32, state: ContainerState) -> Container {
    let name = of.spec.name.clone();
    Container {
        id: format!("{name}-{attempt}"),
        pod: PodId { namespace: "ns".to_owned(), name: "pod".to_owned(), uid: "uid".to_owned() },
        hash: format!("h-{name}"),
        name,
        kind: of.kind,
        attempt,
        sandbox_id: "sandbox-0".to_owned(),
        image: of.spec.image.clone().unwrap_or_default(),
        image_id: "docker://sha256:0".to_owned(),
        created_at: at(20),
        state,
        runtime_log: None,
        volume_images: Vec::new(),
        recursive_read_only: None,
        termination_message_file: None,
        grace_seconds: Some(30),
        resources: None,
        user: None,
    }
}

/// A state: running since `second`.
pub(crate) fn running(second: i64) -> ContainerState {
    ContainerState::Running { started_at: at(second), pid: 200 }
}

/// A node with 4 cores and 8 GiB, on cgroupfs, where every `oom_score_adj` may be set.
pub(crate) fn node() -> crate::node::NodeFacts {
    crate::node::NodeFacts {
        name: "node-1".to_owned(),
        root_id: "root-1".to_owned(),
        ips: vec!["192.168.1.10".parse().expect("an address")],
        allocatable_milli_cpu: 4000,
        allocatable_memory: 8 << 30,
        allocatable_ephemeral_storage: Some(100 << 30),
        memory_capacity: 8 << 30,
        huge_pages: BTreeMap::new(),
        max_pods: 110,
        pod_pids_limit: None,
        cpu_quota_period: Some(crate::resources::QUOTA_PERIOD),
        cluster_dns: vec!["10.96.0.10".parse().expect("an address")],
        cluster_domain: "cluster.local".to_owned(),
        resolv_conf: Some("nameserver 192.168.1.1\nsearch example.com\n".to_owned()),
        hosts_file: "127.0.0.1 localhost\n".to_owned(),
        labels: BTreeMap::new(),
        cgroup_driver: crate::node::CgroupDriver::Cgroupfs,
        cgroup_v2: true,
        single_process_oom_kill: true,
        min_oom_score_adj: -1000,
        apparmor: true,
        runtimes: vec!["runc".to_owned()],
        seccomp_root: "/var/lib/longshore/seccomp".to_owned(),
        allowed_unsafe_sysctls: Vec::new(),
        seccomp_default: false,
        recursive_read_only: false,
    }
}
