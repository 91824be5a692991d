//! One test per reason.

#![allow(clippy::unwrap_used)]

use super::testing::{node, pod};
use super::*;

fn outcome(wanted: &Pod, active: &[&Pod]) -> String {
    match admit(wanted, active, &node(), None) {
        Ok(()) => "admitted".to_owned(),
        Err(rejection) => rejection.to_string(),
    }
}

fn alone(spec: &str) -> String {
    outcome(&pod(spec), &[])
}

fn with(rest: &str) -> String {
    format!("{{containers: [{{name: c, image: i, {rest}}}]}}")
}

#[test]
fn requests_must_fit_beside_those_of_the_others() {
    let half = pod(&with("resources: {requests: {cpu: '1', memory: 2Gi}}"));
    let rest = pod(&with("resources: {requests: {cpu: 1000m, memory: 2Gi}}"));
    let more = pod(&with("resources: {requests: {cpu: 1001m}}"));
    assert_eq!(outcome(&rest, &[&half]), "admitted");
    assert_eq!(
        outcome(&more, &[&half]),
        "OutOfcpu: Node didn't have enough resource: cpu, requested: 1001, used: 1000, capacity: 2000"
    );
    assert!(alone(&with("resources: {requests: {memory: 5Gi}}")).starts_with("OutOfmemory: "));
    assert!(alone(&with("resources: {requests: {ephemeral-storage: 1Ti}}")).starts_with("OutOfephemeral-storage: "));
    let careless = NodeFacts { allocatable_ephemeral_storage: None, ..node() };
    let least = pod(&with("resources: {requests: {ephemeral-storage: 1}}"));
    let refused = admit(&least, &[], &careless, None).unwrap_err().to_string();
    assert!(refused.starts_with("OutOfephemeral-storage: "), "{refused}");
    // What requests nothing fits on a full node, and a pod does not stand in its own way.
    let full = pod(&with("resources: {requests: {cpu: '2'}}"));
    assert_eq!(outcome(&pod(&with("")), &[&full]), "admitted");
    assert_eq!(outcome(&full, &[&full]), "admitted");
    let (a, b, c) = (pod(&with("")), pod(&with("")), pod(&with("")));
    assert_eq!(outcome(&a, &[&b, &c]), "admitted");
    assert_eq!(
        outcome(&a, &[&b, &c, &full]),
        "OutOfpods: Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3"
    );
}

#[test]
fn what_others_advertise_is_fitted_where_the_node_has_it() {
    let wants = |list: &str| pod(&with(&format!("resources: {{requests: {{{list}}}}}")));
    let dongles: v1::Node = serde_saphyr::from_str("{status: {allocatable: {example.com/dongle: '3'}}}").unwrap();
    let of = |pod: &Pod, active: &[&Pod], node: Option<&v1::Node>| match admit(pod, active, &node_of_two(), node) {
        Ok(()) => "admitted".to_owned(),
        Err(rejection) => rejection.to_string(),
    };
    let (two, other) = (wants("example.com/dongle: 2"), wants("example.com/dongle: 2"));
    assert_eq!(of(&two, &[], Some(&dongles)), "admitted");
    assert_eq!(
        of(&two, &[&other], Some(&dongles)),
        "OutOfexample.com/dongle: Node didn't have enough resource: example.com/dongle, requested: 2, used: 2, capacity: 3"
    );
    let lacking = needs(&two, &[&other], &node_of_two(), Some(&dongles));
    assert_eq!(lacking, [Need { resource: "example.com/dongle".to_owned(), amount: 1 }]);
    // What the Node does not have is nobody's here to refuse, but for Kubernetes' own names.
    assert_eq!(of(&two, &[&other], None), "admitted");
    assert_eq!(of(&wants("nvidia.com/gpu: 1"), &[], Some(&dongles)), "admitted");
    assert!(
        of(&wants("kubernetes.io/batteries: 1"), &[], Some(&dongles)).starts_with("OutOfkubernetes.io/batteries: ")
    );
    assert_eq!(of(&wants("hugepages-2Mi: 4Mi"), &[], None), "admitted");
    assert!(of(&wants("hugepages-2Mi: 6Mi"), &[], None).starts_with("OutOfhugepages-2Mi: "));
    assert!(of(&wants("hugepages-1Gi: 1Gi"), &[], None).starts_with("OutOfhugepages-1Gi: "));
}

/// One with two huge pages of 2 MiB.
fn node_of_two() -> NodeFacts {
    NodeFacts { huge_pages: [("hugepages-2Mi", 4 << 20)].into(), ..node() }
}

#[test]
fn sidecars_add_up_and_init_containers_run_one_by_one() {
    let spec = pod(r#"
initContainers:
- {name: a, image: i, resources: {requests: {cpu: 900m}}}
- {name: s, image: i, restartPolicy: Always, resources: {requests: {cpu: 100m}}}
- {name: b, image: i, resources: {requests: {cpu: 700m, memory: 1Ki}}}
containers:
- {name: c, image: i, resources: {requests: {cpu: 300m}}}
- {name: d, image: i, resources: {requests: {cpu: 200m}}}
overhead: {cpu: 50m}
"#);
    let requests = pod_requests(spec.spec());
    assert_eq!((requests["cpu"], requests["memory"]), (950, 1024));
    let whole = pod(
        "{containers: [{name: c, image: i, resources: {requests: {cpu: 300m}}}], resources: {requests: {cpu: '1'}}}",
    );
    assert_eq!(pod_requests(whole.spec())["cpu"], 1000);
}

#[test]
fn ports_of_the_node_are_taken_once() {
    let port = |rest: &str| pod(&with(&format!("ports: [{{containerPort: 80, hostPort: 80, protocol: TCP{rest}}}]")));
    let clash = "NodePorts: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports: pod \
                 default/pod has TCP port 80";
    assert_eq!(outcome(&port(""), &[&port("")]), clash);
    assert_eq!(outcome(&port(", hostIP: 10.0.0.1"), &[&port("")]), clash);
    assert_eq!(outcome(&port(", hostIP: 10.0.0.1"), &[&port(", hostIP: 10.0.0.2")]), "admitted");
    let udp = pod(&with("ports: [{containerPort: 80, hostPort: 80, protocol: UDP}]"));
    assert_eq!(outcome(&udp, &[&port("")]), "admitted");
}

#[test]
fn selectors_match_the_nodes_labels() {
    let spec = |rest: &str| format!("{{containers: [{{name: c, image: i}}], {rest}}}");
    let affinity = |terms: &str| {
        spec(&format!(
            "affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{terms}]}}}}}}"
        ))
    };
    let refused = "NodeAffinity: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
    assert_eq!(alone(&spec("nodeSelector: {zone: a}")), "admitted");
    assert_eq!(alone(&spec("nodeSelector: {zone: b}")), refused);
    assert_eq!(alone(&affinity("{matchExpressions: [{key: zone, operator: In, values: [a, b]}]}")), "admitted");
    assert_eq!(alone(&affinity("{matchExpressions: [{key: size, operator: Gt, values: ['4']}]}")), refused);
    assert_eq!(alone(&affinity("{matchExpressions: [{key: none, operator: NotIn, values: [a]}]}")), "admitted");
    assert_eq!(alone(&affinity("{matchFields: [{key: metadata.name, operator: In, values: [node]}]}")), "admitted");
    assert_eq!(alone(&affinity("{}")), refused);
    assert_eq!(
        alone(&spec("nodeName: other")),
        "NodeName: Predicate NodeName failed: node(s) didn't match the requested node name"
    );
}

#[test]
fn sysctls_are_the_safe_ones_and_those_allowed() {
    let spec = |name: &str, rest: &str| {
        alone(&format!(
            "{{containers: [{{name: c, image: i}}], securityContext: {{sysctls: [{{name: {name}, value: '1'}}]}}, {rest}}}"
        ))
    };
    assert_eq!(spec("net.ipv4.tcp_syncookies", ""), "admitted");
    assert_eq!(spec("net/ipv4/tcp_syncookies", ""), "admitted");
    assert_eq!(spec("kernel.msgmax", ""), "admitted");
    assert_eq!(spec("net.core.somaxconn", ""), "admitted");
    assert_eq!(spec("kernel.shmmax", ""), "SysctlForbidden: forbidden sysctl: \"kernel.shmmax\" not allowlisted");
    assert_eq!(
        spec("net.core.somaxconn", "hostNetwork: true"),
        "SysctlForbidden: forbidden sysctl: \"net.core.somaxconn\" not allowed with host net enabled"
    );
    assert_eq!(
        spec("kernel.msgmax", "hostIPC: true"),
        "SysctlForbidden: forbidden sysctl: \"kernel.msgmax\" not allowed with host ipc enabled"
    );
}

#[test]
fn what_linux_and_docker_lack_is_rejected_as_the_kubelet_does() {
    let spec = |rest: &str| alone(&format!("{{containers: [{{name: c, image: i}}], {rest}}}"));
    assert!(spec("os: {name: windows}").starts_with("PodOSNotSupported: "));
    assert!(
        spec("securityContext: {supplementalGroupsPolicy: Strict}")
            .starts_with("SupplementalGroupsPolicyNotSupported: ")
    );
    let lacking = "PodFeatureUnsupported: Pod requires node features that are not available: ";
    assert_eq!(spec("hostNetwork: true, hostUsers: false"), format!("{lacking}UserNamespacesHostNetworkSupport"));
    let mount = with("volumeMounts: [{name: v, mountPath: /v, bindMountOptions: [noexec]}]");
    assert_eq!(alone(&mount), format!("{lacking}VolumeBindMountOptions"));
    assert_eq!(spec("hostUsers: false"), "admitted");
    assert!(spec("securityContext: {appArmorProfile: {type: RuntimeDefault}}").starts_with("AppArmor: "));
    assert_eq!(spec("securityContext: {appArmorProfile: {type: Unconfined}}"), "admitted");
    assert!(alone(&with("securityContext: {appArmorProfile: {type: RuntimeDefault}}")).starts_with("AppArmor: "));
}

#[test]
fn the_node_as_the_api_server_has_it_decides_for_its_pods() {
    let node_with = |labels: &str, taints: &str| -> v1::Node {
        serde_saphyr::from_str(&format!("{{metadata: {{labels: {labels}}}, spec: {{taints: {taints}}}}}")).unwrap()
    };
    let of = |source: Source, spec: &str, node: Option<&v1::Node>| {
        let pod = Pod { source, ..pod(spec) };
        match admit(&pod, &[], &super::testing::node(), node) {
            Ok(()) => "admitted".to_owned(),
            Err(rejection) => rejection.reason.into_owned(),
        }
    };
    let outcome = |spec: &str, node: Option<&v1::Node>| of(Source::Api, spec, node);
    let selecting = "{containers: [{name: c, image: i}], nodeSelector: {disk: ssd}}";
    assert_eq!(outcome(selecting, None), "admitted");
    assert_eq!(outcome(selecting, Some(&node_with("{disk: ssd}", "[]"))), "admitted");
    assert_eq!(outcome(selecting, Some(&node_with("{}", "[]"))), "NodeAffinity");
    let tainted = node_with("{}", "[{key: a, value: b, effect: NoExecute}, {key: x, effect: NoSchedule}]");
    let plain = "{containers: [{name: c, image: i}]}";
    assert_eq!(outcome(plain, Some(&tainted)), "TaintToleration");
    for toleration in ["{operator: Exists}", "{key: a, operator: Exists, effect: NoExecute}", "{key: a, value: b}"] {
        let spec = format!("{{containers: [{{name: c, image: i}}], tolerations: [{toleration}]}}");
        assert_eq!(outcome(&spec, Some(&tainted)), "admitted", "{toleration}");
    }
    // Static pods are bound by labels, never by taints; before the Node is known, by the labels that are known here.
    assert_eq!(of(Source::File, plain, Some(&tainted)), "admitted");
    assert_eq!(of(Source::File, selecting, Some(&node_with("{disk: ssd}", "[]"))), "admitted");
    assert_eq!(of(Source::File, selecting, None), "NodeAffinity");
}
