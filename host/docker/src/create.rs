//! The bodies of create calls: a sandbox's or container's configuration in Docker's words. Pure translation, as
//! `pkg/kubelet/dockershim/{docker_sandbox,docker_container,security_context}.go` of Kubernetes 1.20 has it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount as DockerMount, MountBindOptions,
    MountBindOptionsPropagationEnum, MountImageOptions, MountType, PortBinding, RestartPolicy, RestartPolicyNameEnum,
};
use longshore_core::container::{
    ContainerConfig, Mount, MountSource, PortMapping, Propagation, SandboxConfig, SandboxNetwork,
};

use crate::docker::LogBounds;

/// CPU weight of a pause process: the least.
const SANDBOX_CPU_SHARES: i64 = 2;
/// Size of `/dev/shm`.
const SHM_SIZE: i64 = 64 << 20;

/// What the daemon is, as far as a body depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dialect {
    /// Read-only binds are made read-only with all that is mounted below, unless told otherwise (API 1.44).
    pub(crate) recursive_read_only: bool,
    /// Mounts can have what they bind made (API 1.42); before, only what was called a bind did.
    pub(crate) makes_sources: bool,
    /// How logs are kept; `None` leaves that to the daemon.
    pub(crate) logs: Option<Logs>,
}

/// A log driver that rotates, and its bounds. Other options of that driver stay as the daemon's configuration has them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Logs {
    /// `json-file` or `local`.
    pub(crate) driver: &'static str,
    pub(crate) bounds: LogBounds,
}

/// A sandbox's body; `image` is the pause image.
pub(crate) fn sandbox(config: &SandboxConfig, image: &str, dialect: Dialect) -> ContainerCreateBody {
    // Plugins see to the ports of what they attach.
    let bridged = matches!(config.network, SandboxNetwork::Default | SandboxNetwork::Named(_));
    let (exposed_ports, port_bindings) = ports(&config.ports, bridged);
    let network_mode = match &config.network {
        SandboxNetwork::Host => "host",
        SandboxNetwork::Default => "default",
        SandboxNetwork::Named(name) => name,
        SandboxNetwork::Detached => "none",
    };
    let host_config = HostConfig {
        network_mode: Some(network_mode.to_owned()),
        ipc_mode: Some(if config.host.ipc { "host" } else { "shareable" }.to_owned()),
        pid_mode: config.host.pid.then(|| "host".to_owned()),
        userns_mode: shares_host(config.host).then(|| "host".to_owned()),
        shm_size: Some(SHM_SIZE),
        sysctls: (!config.sysctls.is_empty())
            .then(|| config.sysctls.iter().map(|(key, value)| (key.clone(), value.clone())).collect()),
        port_bindings,
        cpu_shares: Some(SANDBOX_CPU_SHARES),
        oom_score_adj: Some(config.oom_score_adj.into()),
        cgroup_parent: config.cgroup_parent.clone(),
        security_opt: some(&config.security_options),
        group_add: groups(&config.groups),
        runtime: config.runtime.clone(),
        ..host_defaults(dialect)
    };
    ContainerCreateBody {
        hostname: (!config.host.network).then(|| config.hostname.clone()).filter(|name| !name.is_empty()),
        user: config.user.clone(),
        image: Some(image.to_owned()),
        labels: Some(labels(&config.labels)),
        healthcheck: Some(no_healthcheck()),
        exposed_ports,
        host_config: Some(host_config),
        ..Default::default()
    }
}

/// A container's body.
pub(crate) fn container(config: &ContainerConfig, dialect: Dialect) -> ContainerCreateBody {
    let sandbox = format!("container:{}", config.sandbox_id);
    let pid_mode = match &config.processes_of {
        _ if config.host.pid => Some("host".to_owned()),
        _ if config.share_process_namespace => Some(sandbox.clone()),
        Some(target) => Some(format!("container:{target}")),
        None => None,
    };
    let (mut mounts, mut binds) = (Vec::new(), Vec::new());
    for mount in &config.mounts {
        match old_bind(mount).filter(|_| !dialect.makes_sources) {
            Some(bind) => binds.push(bind),
            None => mounts.push(mount),
        }
    }
    let resources = &config.resources;
    let unless_zero = |value: i64| (value != 0).then_some(value);
    let host_config = HostConfig {
        network_mode: Some(sandbox.clone()),
        ipc_mode: Some(sandbox),
        pid_mode,
        uts_mode: config.host.network.then(|| "host".to_owned()),
        userns_mode: shares_host(config.host).then(|| "host".to_owned()),
        mounts: (!mounts.is_empty()).then(|| mounts.iter().map(|mount| mounted(mount, dialect)).collect()),
        binds: some(&binds),
        cpu_shares: unless_zero(resources.cpu_shares),
        cpu_quota: unless_zero(resources.cpu_quota),
        cpu_period: unless_zero(resources.cpu_period),
        memory: unless_zero(resources.memory),
        memory_swap: unless_zero(resources.memory),
        oom_score_adj: Some(config.oom_score_adj.into()),
        cgroup_parent: config.cgroup_parent.clone(),
        group_add: groups(&config.groups),
        privileged: Some(config.privileged),
        cap_add: some(&config.cap_add),
        cap_drop: some(&config.cap_drop),
        readonly_rootfs: Some(config.read_only_rootfs),
        security_opt: some(&config.security_options),
        masked_paths: config.unmasked_proc.then(Vec::new),
        readonly_paths: config.unmasked_proc.then(Vec::new),
        shm_size: Some(SHM_SIZE),
        runtime: config.runtime.clone(),
        ..host_defaults(dialect)
    };
    ContainerCreateBody {
        user: config.user.clone(),
        image: Some(config.image.clone()),
        entrypoint: config.command.clone().filter(|command| !command.is_empty()),
        cmd: config.args.clone().filter(|args| !args.is_empty()),
        env: some(&config.env),
        working_dir: config.working_dir.clone().filter(|path| !path.is_empty()),
        labels: Some(labels(&config.labels)),
        open_stdin: Some(config.stdin),
        stdin_once: Some(config.stdin_once),
        tty: Some(config.tty),
        stop_signal: config.stop_signal.clone(),
        healthcheck: Some(no_healthcheck()),
        host_config: Some(host_config),
        ..Default::default()
    }
}

fn host_defaults(dialect: Dialect) -> HostConfig {
    HostConfig {
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        log_config: dialect.logs.map(log_config),
        ..Default::default()
    }
}

fn log_config(logs: Logs) -> HostConfigLogConfig {
    let options =
        [("max-size", logs.bounds.max_size.to_string()), ("max-file", logs.bounds.max_files.max(1).to_string())];
    HostConfigLogConfig {
        typ: Some(logs.driver.to_owned()),
        config: Some(options.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
    }
}

/// Docker refuses the node's namespaces in a user namespace of its own (`userns-remap`).
fn shares_host(host: longshore_core::container::HostNamespaces) -> bool {
    host.network || host.pid || host.ipc
}

/// Docker's health checks are the image's; ours are the pod's.
fn no_healthcheck() -> HealthConfig {
    HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }
}

fn some(list: &[String]) -> Option<Vec<String>> {
    (!list.is_empty()).then(|| list.to_vec())
}

fn groups(groups: &[i64]) -> Option<Vec<String>> {
    (!groups.is_empty()).then(|| groups.iter().map(i64::to_string).collect())
}

fn labels(labels: &BTreeMap<String, String>) -> HashMap<String, String> {
    labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn mounted(mount: &Mount, dialect: Dialect) -> DockerMount {
    match &mount.source {
        MountSource::Path(path) => bind(mount, path, dialect),
        MountSource::HostPath(path) => {
            let mut bound = bind(mount, path, dialect);
            if let Some(options) = &mut bound.bind_options {
                options.create_mountpoint = dialect.makes_sources.then_some(true);
            }
            bound
        }
        MountSource::Image { id, sub_path } => DockerMount {
            typ: Some(MountType::IMAGE),
            source: Some(id.clone()),
            target: Some(mount.target.clone()),
            read_only: Some(true),
            image_options: sub_path.clone().map(|subpath| MountImageOptions { subpath: Some(subpath) }),
            ..Default::default()
        },
    }
}

/// A mount whose source is to be made, in the older way, where that can say it.
fn old_bind(mount: &Mount) -> Option<String> {
    let MountSource::HostPath(path) = &mount.source else { return None };
    let (source, target) = (path.to_str()?, &mount.target);
    let mode = if mount.read_only { "ro" } else { "rw" };
    let propagation = match mount.propagation {
        Propagation::Private => "",
        Propagation::HostToContainer => ",rslave",
        Propagation::Bidirectional => ",rshared",
    };
    (!source.contains(':') && !target.contains(':')).then(|| format!("{source}:{target}:{mode}{propagation}"))
}

/// A mount and not a bind: a bind would make a missing source, as a folder of root's.
fn bind(mount: &Mount, source: &Path, dialect: Dialect) -> DockerMount {
    // Private is the daemon's default; said aloud it is refused for what holds the daemon's own folder, such as `/`.
    let propagation = match mount.propagation {
        Propagation::Private => None,
        Propagation::HostToContainer => Some(MountBindOptionsPropagationEnum::RSLAVE),
        Propagation::Bidirectional => Some(MountBindOptionsPropagationEnum::RSHARED),
    };
    // `readOnly` of Kubernetes is not recursive unless that is asked for, and then it is an error where it cannot be.
    let told = mount.read_only && dialect.recursive_read_only;
    let read_only_non_recursive = (told && !mount.recursive).then_some(true);
    let read_only_force_recursive = (told && mount.recursive).then_some(true);
    DockerMount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(mount.target.clone()),
        read_only: Some(mount.read_only),
        bind_options: Some(MountBindOptions {
            propagation,
            read_only_non_recursive,
            read_only_force_recursive,
            ..Default::default()
        }),
        ..Default::default()
    }
}

type Bindings = HashMap<String, Option<Vec<PortBinding>>>;

fn ports(mappings: &[PortMapping], bridged: bool) -> (Option<Vec<String>>, Option<Bindings>) {
    if !bridged || mappings.is_empty() {
        return (None, None);
    }
    let mut exposed: Vec<String> = Vec::new();
    let mut bindings: Bindings = HashMap::new();
    for mapping in mappings {
        let protocol = mapping.protocol.to_ascii_lowercase();
        let port = format!("{}/{protocol}", mapping.container_port);
        if !exposed.contains(&port) {
            exposed.push(port.clone());
        }
        if mapping.host_port != 0 {
            bindings.entry(port).or_default().get_or_insert_default().push(PortBinding {
                host_ip: mapping.host_ip.map(|ip| ip.to_string()),
                host_port: Some(mapping.host_port.to_string()),
            });
        }
    }
    (Some(exposed), (!bindings.is_empty()).then_some(bindings))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use longshore_core::container::{HostNamespaces, Resources};
    use longshore_core::pod::{ContainerKind, PodId};

    use super::*;

    const PLAIN: Dialect = Dialect { recursive_read_only: false, makes_sources: false, logs: None };

    fn pod() -> PodId {
        PodId { namespace: "ns".to_owned(), name: "p".to_owned(), uid: "u".to_owned() }
    }

    pub(crate) fn a_container() -> ContainerConfig {
        ContainerConfig {
            pod: pod(),
            sandbox_id: "sb".to_owned(),
            name: "c".to_owned(),
            kind: ContainerKind::App,
            attempt: 0,
            image: "img".to_owned(),
            command: Some(vec!["/x".to_owned()]),
            args: None,
            env: Vec::new(),
            working_dir: None,
            mounts: vec![Mount {
                source: MountSource::Path("/a".into()),
                target: "/b".to_owned(),
                read_only: true,
                recursive: false,
                propagation: Propagation::HostToContainer,
            }],
            resources: Resources { memory: 5 << 20, ..Default::default() },
            oom_score_adj: 1000,
            cgroup_parent: None,
            user: None,
            groups: vec![7],
            privileged: false,
            cap_add: Vec::new(),
            cap_drop: vec!["ALL".to_owned()],
            read_only_rootfs: true,
            security_options: Vec::new(),
            unmasked_proc: true,
            stdin: false,
            stdin_once: false,
            tty: false,
            host: HostNamespaces { network: true, pid: false, ipc: false },
            share_process_namespace: true,
            processes_of: None,
            labels: BTreeMap::new(),
            stop_signal: None,
            runtime: None,
        }
    }

    #[test]
    fn a_containers_body() {
        let json = serde_json::to_value(container(&a_container(), PLAIN)).unwrap();
        let host = &json["HostConfig"];
        for (key, value) in [
            ("NetworkMode", "container:sb"),
            ("IpcMode", "container:sb"),
            ("PidMode", "container:sb"),
            ("UTSMode", "host"),
        ] {
            assert_eq!(host[key], value);
        }
        assert_eq!(host["Memory"], host["MemorySwap"]);
        assert_eq!(host["MaskedPaths"], serde_json::json!([]));
        assert_eq!(host["ReadonlyPaths"], serde_json::json!([]));
        assert_eq!(host["Mounts"][0]["BindOptions"], serde_json::json!({"Propagation": "rslave"}));
        assert_eq!(json["Healthcheck"]["Test"][0], "NONE");
        assert!(json.get("Cmd").is_none() && json.get("Hostname").is_none() && host.get("LogConfig").is_none());
        let logs = Logs { driver: "json-file", bounds: LogBounds { max_size: 10 << 20, max_files: 5 } };
        let newer = Dialect { recursive_read_only: true, makes_sources: true, logs: Some(logs) };
        let json = serde_json::to_value(container(&a_container(), newer)).unwrap();
        assert_eq!(json["HostConfig"]["Mounts"][0]["BindOptions"]["ReadOnlyNonRecursive"], true);
        let mut recursive = a_container();
        recursive.mounts[0].recursive = true;
        recursive.mounts[0].propagation = Propagation::Private;
        let json = serde_json::to_value(container(&recursive, newer)).unwrap();
        let options = &json["HostConfig"]["Mounts"][0]["BindOptions"];
        assert_eq!(*options, serde_json::json!({"ReadOnlyForceRecursive": true}));
        let logs = serde_json::json!({"Type": "json-file", "Config": {"max-size": "10485760", "max-file": "5"}});
        assert_eq!(json["HostConfig"]["LogConfig"], logs);
    }

    #[test]
    fn a_host_path_of_which_nothing_was_said_is_made_by_docker() {
        let of = |path: &str, dialect: Dialect| {
            let mut config = a_container();
            config.mounts[0].source = MountSource::HostPath(path.into());
            serde_json::to_value(container(&config, dialect)).unwrap()["HostConfig"].clone()
        };
        let older = of("/a", PLAIN);
        assert_eq!(older["Binds"], serde_json::json!(["/a:/b:ro,rslave"]));
        assert!(older.get("Mounts").is_none());
        let newer = of("/a", Dialect { makes_sources: true, ..PLAIN });
        assert_eq!(newer["Mounts"][0]["BindOptions"]["CreateMountpoint"], true);
        assert!(newer.get("Binds").is_none());
        // What a bind cannot say is not made.
        assert_eq!(of("/a:b", PLAIN)["Mounts"][0]["Source"], "/a:b");
    }

    #[test]
    fn images_are_mounted_whole_or_in_part() {
        let of = |sub_path: Option<&str>| {
            let source = MountSource::Image { id: "sha256:1".to_owned(), sub_path: sub_path.map(str::to_owned) };
            let (target, propagation) = ("/i".to_owned(), Propagation::HostToContainer);
            let mount = Mount { source, target, read_only: true, recursive: false, propagation };
            serde_json::to_value(mounted(&mount, PLAIN)).unwrap()
        };
        let whole = serde_json::json!({"Type": "image", "Source": "sha256:1", "Target": "/i", "ReadOnly": true});
        assert_eq!(of(None), whole);
        assert_eq!(of(Some("a/b"))["ImageOptions"], serde_json::json!({"Subpath": "a/b"}));
    }

    #[test]
    fn ports_lead_into_the_sandbox() {
        let mapping = |host_port, host_ip: Option<&str>| PortMapping {
            host_port,
            container_port: 80,
            protocol: "TCP".to_owned(),
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        };
        let (exposed, bindings) = ports(&[mapping(8080, None), mapping(8081, Some("127.0.0.1"))], true);
        assert_eq!(exposed.unwrap(), ["80/tcp"]);
        assert_eq!(bindings.unwrap()["80/tcp"].as_ref().unwrap().len(), 2);
        assert_eq!(ports(&[mapping(8080, None)], false), (None, None));
    }
}
