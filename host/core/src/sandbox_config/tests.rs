//! Sandboxes' configurations, case by case.

use super::*;
use crate::testing::{node, pod_from};

fn of(spec: &str) -> Result<SandboxConfig, String> {
    build(&pod_from(spec), &node(), 2).map_err(|error| error.to_string())
}

#[test]
fn a_plain_pod() {
    let config = of("containers: [{name: a}]").unwrap();
    assert_eq!(config.attempt, 2);
    assert_eq!(config.hash, "sandbox-hash");
    assert_eq!(config.hostname, "pod");
    assert_eq!(config.cgroup_parent.as_deref(), Some("/kubepods/besteffort/poduid"));
    assert_eq!(config.host, HostNamespaces::default());
    assert_eq!(config.security_options, ["no-new-privileges"]);
    assert_eq!((config.user, config.groups), (None, Vec::new()));
    assert_eq!(config.oom_score_adj, -998);
    assert_eq!(config.labels[labels::ROOT], "root-1");
    assert_eq!(config.labels[labels::ATTEMPT], "2");
    assert_eq!(config.runtime, None);
}

#[test]
fn namespaces_and_context() {
    let config = of("{subdomain: a-long-name-that-does-not-fit-the-kernel-with-its-domain, setHostnameAsFQDN: true,
                      hostNetwork: true, hostIPC: true, shareProcessNamespace: true, runtimeClassName: runc,
                      securityContext: {runAsUser: 5, runAsGroup: 6, fsGroup: 7, sysctls: [{name: kernel/shm_rmid_forced, value: '1'}]},
                      containers: [{name: a, ports: [{containerPort: 80, hostPort: 80}]},
                                   {name: b, securityContext: {privileged: true}}]}")
    .unwrap();
    assert_eq!(config.host, HostNamespaces { network: true, pid: false, ipc: true });
    assert!(config.share_process_namespace);
    assert_eq!(config.ports, []);
    assert_eq!(config.sysctls, BTreeMap::from([("kernel.shm_rmid_forced".to_owned(), "1".to_owned())]));
    assert_eq!((config.user.as_deref(), config.groups), (Some("5:6"), vec![7]));
    assert_eq!(config.runtime.as_deref(), Some("runc"));
    let both = of("{hostPID: true, shareProcessNamespace: true, containers: [{name: a}]}").unwrap();
    assert!(both.host.pid && !both.share_process_namespace);
}

#[test]
fn ports_of_the_node() {
    let config = of("{containers: [{name: a, ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 81}]},
                                   {name: b, ports: [{containerPort: 53, hostPort: 53, protocol: UDP, hostIP: 127.0.0.1},
                                                     {containerPort: 80, hostPort: 8080}]}],
                      initContainers: [{name: i, ports: [{containerPort: 1, hostPort: 1}]},
                                       {name: s, restartPolicy: Always, ports: [{containerPort: 2, hostPort: 2, hostIP: ''}]}]}")
    .unwrap();
    let mapping = |host_port, container_port, protocol: &str, host_ip: Option<&str>| PortMapping {
        host_port,
        container_port,
        protocol: protocol.to_owned(),
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
    };
    let expected =
        [mapping(2, 2, "tcp", None), mapping(8080, 80, "tcp", None), mapping(53, 53, "udp", Some("127.0.0.1"))];
    assert_eq!(config.ports, expected);
}

#[test]
fn problems() {
    let port = |port: &str| of(&format!("containers: [{{name: a, ports: [{{{port}}}]}}]")).unwrap_err();
    assert_eq!(port("containerPort: 80, hostPort: 70000"), "hostPort of container \"a\": 70000 is not in 1 … 65535");
    assert!(port("containerPort: 80, hostPort: 80, hostIP: here").contains("\"here\" is not an address"));
    assert_eq!(
        of("{runtimeClassName: kata, containers: [{name: a}]}").unwrap_err(),
        "RuntimeHandler \"kata\" not supported"
    );
}
