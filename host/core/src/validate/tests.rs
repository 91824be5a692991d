//! Whole pods; messages are pinned by the corpus of [`crate::manifest`].

use proptest::prelude::*;

use super::*;

fn pod(spec: &str) -> v1::Pod {
    let mut pod = v1::Pod { spec: Some(serde_saphyr::from_str(spec).expect("a pod spec")), ..Default::default() };
    pod.metadata.name = Some("web".to_owned());
    pod.metadata.namespace = Some("default".to_owned());
    crate::defaults::apply(&mut pod);
    pod
}

fn paths(spec: &str) -> Vec<String> {
    validate(&pod(spec)).into_iter().map(|error| error.path).collect()
}

#[test]
fn a_pod_that_uses_everything_is_valid() {
    let spec = r#"
restartPolicy: OnFailure
activeDeadlineSeconds: 10
dnsPolicy: None
dnsConfig: {nameservers: [10.0.0.1, "::1"], searches: [a.b., ., _tcp.x, a_b.c], options: [{name: ndots, value: "5"}]}
hostAliases: [{ip: "::1", hostnames: [a.b]}]
hostname: web
subdomain: x
os: {name: linux}
imagePullSecrets: [{name: pull}, {name: ""}, {}]
tolerations: [{operator: Exists}, {key: a/b, value: c, effect: NoExecute, tolerationSeconds: 3}]
securityContext:
  runAsUser: 0
  sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "0"}]
  seccompProfile: {type: Localhost, localhostProfile: a/b.json}
initContainers:
- {name: setup, image: i, ports: [{containerPort: 80, hostPort: 80}]}
- name: side
  image: i
  restartPolicy: Always
  startupProbe: {exec: {command: [x]}}
  lifecycle: {preStop: {sleep: {seconds: 3}}}
containers:
- name: web
  image: i
  restartPolicy: Never
  restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]
  ports: [{containerPort: 80, hostPort: 80, name: http}, {containerPort: 80, hostPort: 80, protocol: UDP}]
  resources: {requests: {cpu: 100m, hugepages-2Mi: 4Mi}, limits: {cpu: "0.1", hugepages-2Mi: 4Mi, example.com/x: "2"}}
  readinessProbe: {httpGet: {port: http, httpHeaders: [{name: X-A, value: b}]}, successThreshold: 3}
  livenessProbe: {grpc: {port: 80}, terminationGracePeriodSeconds: 3}
  lifecycle: {postStart: {exec: {command: [x]}}, stopSignal: SIGRTMIN+3}
  securityContext: {privileged: true, capabilities: {add: [ALL], drop: [NET_RAW]}}
  env:
  - {name: a.b-c, value: x}
  - {name: L, valueFrom: {fieldRef: {fieldPath: "metadata.labels['a.b/C']"}}}
  - {name: R, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
  envFrom: [{prefix: X_, configMapRef: {name: c}}]
  volumeMounts:
  - {name: e, mountPath: /e, mountPropagation: Bidirectional}
  - {name: p, mountPath: /p, subPath: a/..b, readOnly: true, recursiveReadOnly: IfPossible}
volumes:
- {name: e, emptyDir: {medium: Memory, sizeLimit: 1Gi}}
- name: p
  projected:
    sources:
    - {configMap: {name: c, items: [{key: k, path: a/b, mode: 0}]}}
    - {downwardAPI: {items: [{path: cpu, resourceFieldRef: {containerName: web, resource: limits.cpu}}]}}
- {name: h, hostPath: {path: /x, type: Directory}}
"#;
    assert_eq!(validate(&pod(spec)), []);
}

#[test]
fn capabilities_beside_no_privilege_escalation() {
    for (capability, refused) in [("SYS_ADMIN", false), ("CAP_SYS_ADMIN", true), ("NET_ADMIN", false)] {
        let security = format!("allowPrivilegeEscalation: false, capabilities: {{add: [{capability}]}}");
        let spec = format!("{{containers: [{{name: c, image: i, securityContext: {{{security}}}}}]}}");
        let expected = ["spec.containers[0].securityContext.allowPrivilegeEscalation"];
        assert_eq!(paths(&spec), if refused { &expected[..] } else { &[] }, "{capability}");
    }
}

#[test]
fn what_a_pod_has_is_enough_for_its_containers() {
    let spec = |whole: &str| {
        let own = "resources: {requests: {cpu: 100m, memory: 1Gi}, limits: {cpu: '1', memory: 1Gi}}";
        format!("{{resources: {whole}, containers: [{{name: a, image: i, {own}}}, {{name: b, image: i, {own}}}]}}")
    };
    let cases: [(&str, &[&str]); 7] = [
        ("{requests: {cpu: 200m, memory: 2Gi}, limits: {cpu: '1', memory: 2Gi}}", &[]),
        ("{limits: {cpu: '1', memory: 2Gi}}", &[]),
        ("{requests: {cpu: '0.199', memory: 2Gi}}", &["spec.resources.requests[cpu]"]),
        ("{requests: {memory: 2047Mi}}", &["spec.resources.requests[memory]"]),
        (
            "{limits: {cpu: 999m}}",
            &["spec.containers[0].resources.limits[cpu]", "spec.containers[1].resources.limits[cpu]"],
        ),
        ("{requests: {ephemeral-storage: 1Gi}}", &["spec.resources.requests[ephemeral-storage]"]),
        ("{claims: [{name: x}]}", &["spec.resources.claims"]),
    ];
    for (whole, expected) in cases {
        assert_eq!(paths(&spec(whole)), expected, "{whole}");
    }
}

/// The fields that are warned of; nothing else is wrong.
fn warned(spec: &str) -> Vec<String> {
    let found = validate(&pod(spec));
    assert!(found.iter().all(|error| error.warning), "{found:?}");
    found.into_iter().map(|error| error.path).collect()
}

#[test]
fn what_means_less_than_it_says_is_warned_of() {
    let env = |resource: &str, divisor: &str| {
        let field = format!("resourceFieldRef: {{resource: {resource}, divisor: {divisor}}}");
        format!("{{containers: [{{name: c, image: i, env: [{{name: X, valueFrom: {{{field}}}}}]}}]}}")
    };
    for (resource, divisor, expected) in [
        ("limits.cpu", "1m", false),
        ("limits.cpu", "'1'", false),
        ("limits.cpu", "'0'", false),
        ("limits.cpu", "10m", true),
        ("requests.cpu", "1Mi", true),
        ("limits.memory", "1024Ki", false),
        ("limits.memory", "1M", false),
        ("limits.memory", "2Mi", true),
    ] {
        let path = ["spec.containers[0].env[0].valueFrom.resourceFieldRef.divisor"];
        assert_eq!(warned(&env(resource, divisor)).len(), usize::from(expected), "{resource} {divisor}");
        assert!(!expected || warned(&env(resource, divisor)) == path);
    }
    let mount = |more: &str| {
        let mount = format!("{{name: v, mountPath: /v, readOnly: true, recursiveReadOnly: Enabled{more}}}");
        format!("{{volumes: [{{name: v}}], containers: [{{name: c, image: i, volumeMounts: [{mount}]}}]}}")
    };
    assert_eq!(warned(&mount(", mountPropagation: None")), [""; 0]);
    let expected = ["spec.containers[0].volumeMounts[0].recursiveReadOnly"];
    assert_eq!(warned(&mount(", mountPropagation: HostToContainer")), expected);
    let spec =
        "{resourceClaims: [{name: a}], containers: [{name: c, image: i, resources: {claims: [{name: a}, {name: b}]}}]}";
    assert_eq!(warned(spec), ["spec.containers[0].resources.claims[1]"]);
}

#[test]
fn sysctls_of_the_node_are_not_a_pods() {
    for (field, name, refused) in [
        ("hostNetwork", "net.ipv4.tcp_rmem", true),
        ("hostNetwork", "kernel.shm_rmid_forced", false),
        ("hostIPC", "kernel.shm_rmid_forced", true),
        ("hostIPC", "net/ipv4/tcp_rmem", false),
        ("hostPID", "net.ipv4.tcp_rmem", false),
    ] {
        let sysctls = format!("securityContext: {{sysctls: [{{name: {name}, value: '1'}}]}}");
        let spec = format!("{{{field}: true, {sysctls}, containers: [{{name: c, image: i}}]}}");
        let expected: &[&str] = if refused { &["spec.securityContext.sysctls[0].name"] } else { &[] };
        assert_eq!(paths(&spec), expected, "{field} {name}");
    }
}

#[test]
fn huge_pages_are_whole_and_come_with_something() {
    let path = "spec.containers[0].resources";
    for (limits, expected) in [
        ("cpu: '1', hugepages-2Mi: 4Mi", String::new()),
        ("memory: 1Gi, hugepages-1Gi: '0'", String::new()),
        ("cpu: '1', hugepages-2Mi: 3Mi", format!("{path}.limits[hugepages-2Mi]")),
        ("cpu: '1', hugepages-x: 3Mi", format!("{path}.limits[hugepages-x]")),
        ("hugepages-2Mi: 4Mi", path.to_owned()),
    ] {
        let spec = format!("{{containers: [{{name: c, image: i, resources: {{limits: {{{limits}}}}}}}]}}");
        assert_eq!(warned(&spec).join(" "), expected, "{limits}");
    }
}

#[test]
fn an_annotation_beside_a_field_says_the_same() {
    let spec = "{securityContext: {seccompProfile: {type: RuntimeDefault}, appArmorProfile: {type: Unconfined}}, containers: \
                [{name: c, image: i, securityContext: {seccompProfile: {type: Localhost, localhostProfile: a.json}}}]}";
    for (annotation, value, expected) in [
        ("seccomp.security.alpha.kubernetes.io/pod", "docker/default", ""),
        ("seccomp.security.alpha.kubernetes.io/pod", "unconfined", "spec.securityContext.seccompProfile.type"),
        ("container.seccomp.security.alpha.kubernetes.io/c", "localhost/a.json", ""),
        (
            "container.seccomp.security.alpha.kubernetes.io/c",
            "localhost/b.json",
            "spec.containers[0].securityContext.seccompProfile.type",
        ),
        ("container.apparmor.security.beta.kubernetes.io/c", "unconfined", ""),
        (
            "container.apparmor.security.beta.kubernetes.io/c",
            "runtime/default",
            "spec.containers[0].securityContext.appArmorProfile.type",
        ),
        ("container.apparmor.security.beta.kubernetes.io/other", "runtime/default", ""),
    ] {
        let mut pod = pod(spec);
        pod.metadata.annotations = Some(BTreeMap::from([(annotation.to_owned(), value.to_owned())]));
        let found = validate(&pod);
        assert!(found.iter().all(|error| error.warning), "{found:?}");
        let found: Vec<&str> = found.iter().map(|error| error.path.as_str()).collect();
        assert_eq!(found.join(" "), expected, "{annotation}: {value}");
    }
}

#[test]
fn a_resize_policy_that_means_nothing_is_warned_of() {
    let spec = |policies: &str, more: &str| {
        let container = format!("{{name: c, image: i, resizePolicy: [{policies}]}}");
        format!("{{{more}containers: [{container}]}}")
    };
    let policy = |resource: &str, restart: &str| format!("{{resourceName: {resource}, restartPolicy: {restart}}}");
    let cpu = policy("cpu", "RestartContainer");
    let path = "spec.containers[0].resizePolicy";
    assert_eq!(warned(&spec(&format!("{cpu}, {}", policy("memory", "NotRequired")), "")), [""; 0]);
    assert_eq!(warned(&spec(&format!("{cpu}, {cpu}"), "")), [format!("{path}[1]")]);
    assert_eq!(warned(&spec(&policy("gpu", "NotRequired"), "")), [format!("{path}[0].resourceName")]);
    assert_eq!(warned(&spec(&policy("cpu", "Always"), "")), [format!("{path}[0].restartPolicy")]);
    assert_eq!(warned(&spec(&cpu, "restartPolicy: Never, ")), [format!("{path}[0].restartPolicy")]);
    let init = format!("initContainers: [{{name: a, image: i, resizePolicy: [{cpu}]}}], ");
    assert_eq!(warned(&spec("", &init)), ["spec.initContainers[0].resizePolicy[0].restartPolicy"]);
}

#[test]
fn a_pod_with_a_node_has_no_scheduling_gates() {
    let spec =
        |gates: &str| format!("{{nodeName: node, schedulingGates: {gates}, containers: [{{name: c, image: i}}]}}");
    assert_eq!(paths(&spec("[{name: a/b}]")), ["spec.schedulingGates"]);
    assert_eq!(paths(&spec("[]")), [""; 0]);
}

#[test]
fn proc_is_unmasked_in_a_user_namespace_alone() {
    let refused = ["spec.containers[0].securityContext.procMount"];
    let cases: [(&str, &[&str]); 3] = [("hostUsers: false, ", &[]), ("hostUsers: true, ", &refused), ("", &refused)];
    for (field, expected) in cases {
        let spec = format!("{{{field}containers: [{{name: c, image: i, securityContext: {{procMount: Unmasked}}}}]}}");
        assert_eq!(paths(&spec), expected, "{field:?}");
    }
}

#[test]
fn what_the_api_server_takes_and_looks_odd() {
    let env = |from: &str| {
        format!(
            "{{containers: [{{name: c, image: i, env: [{{name: X, valueFrom: {{{from}}}}}]}}], volumes: [{{name: v}}]}}"
        )
    };
    let volume = |source: &str| format!("{{containers: [{{name: c, image: i}}], volumes: [{{name: v, {source}}}]}}");
    let twice = "items: [{key: a, path: f}, {key: b, path: f}]";
    let rules = "[{action: Restart, exitCodes: {operator: NotIn, values: []}}]";
    for spec in [
        "{hostAliases: [{ip: 010.0.0.1}], containers: [{name: c, image: i, ports: [{containerPort: 1, hostIP: 127.0.0.01}]}]}"
            .to_owned(),
        "{containers: [{name: c, image: i, resources: {requests: {memory: 12E}}}]}".to_owned(),
        env("fieldRef: {fieldPath: spec.host}"),
        env("fileKeyRef: {volumeName: v, path: /f, key: k}"),
        volume(&format!("configMap: {{name: c, {twice}}}")),
        volume(&format!("secret: {{secretName: s, {twice}}}")),
        format!("{{containers: [{{name: c, image: i, restartPolicy: Never, restartPolicyRules: {rules}}}]}}"),
        "{terminationGracePeriodSeconds: -1, containers: [{name: c, image: i}]}".to_owned(),
    ] {
        assert_eq!(validate(&pod(&spec)), [], "{spec}");
    }
}

#[test]
fn files_of_a_projected_volume_do_not_hide_each_other() {
    let key = "items: [{key: a, path: f}]";
    let field = "items: [{path: f, fieldRef: {fieldPath: metadata.name}}]";
    let sources =
        format!("[{{configMap: {{name: c, {key}}}}}, {{secret: {{name: s, {key}}}}}, {{downwardAPI: {{{field}}}}}]");
    let spec =
        format!("{{containers: [{{name: c, image: i}}], volumes: [{{name: v, projected: {{sources: {sources}}}}}]}}");
    let expected = ["sources[1].secret.items[0].path", "sources[2].downwardAPI.items[0].path"];
    assert_eq!(paths(&spec), expected.map(|path| format!("spec.volumes[0].projected.{path}")));
}

#[test]
fn host_ports_of_app_containers_and_sidecars_are_unique() {
    let port = "ports: [{containerPort: 80, hostPort: 80}]";
    let spec = format!(
        "{{initContainers: [{{name: s, image: i, restartPolicy: Always, {port}}}], containers: [{{name: c, image: i, {port}}}]}}"
    );
    assert_eq!(paths(&spec), ["spec.containers[0].ports[0].hostPort"]);
    assert_eq!(paths(&format!("{{hostNetwork: true, {}", &spec[1..])), [""; 0], "nothing is mapped");
    let spec = format!(
        "{{initContainers: [{{name: a, image: i, {port}}}, {{name: b, image: i, {port}}}], containers: [{{name: c, image: i, {port}}}]}}"
    );
    assert_eq!(paths(&spec), [""; 0], "one after the other");
    let twice = "ports: [{containerPort: 80, hostPort: 80}, {containerPort: 81, hostPort: 80}]";
    let spec = format!("{{initContainers: [{{name: a, image: i, {twice}}}], containers: [{{name: c, image: i}}]}}");
    assert_eq!(paths(&spec), ["spec.initContainers[0].ports[1].hostPort"]);
    let other = "ports: [{containerPort: 80, hostPort: 81}]";
    let spec = format!(
        "{{hostNetwork: true, initContainers: [{{name: a, image: i, {other}}}], containers: [{{name: c, image: i, {other}}}]}}"
    );
    assert_eq!(paths(&spec), ["spec.containers[0].ports[0].hostPort"]);
    let spec = "{hostNetwork: true, containers: [{name: c, image: i, ports: [{containerPort: 70000}]}]}";
    assert_eq!(paths(spec), ["spec.containers[0].ports[0].containerPort"], "told of once");
}

#[test]
fn objects() {
    let secret = |name: &str, kind: &str, data: &[(&str, &[u8])]| {
        let mut secret = v1::Secret { type_: Some(kind.to_owned()), ..Default::default() };
        secret.metadata.name = Some(name.to_owned());
        secret.metadata.namespace = Some("default".to_owned());
        secret.data = Some(
            data.iter().map(|(key, value)| ((*key).to_owned(), k8s_openapi::ByteString(value.to_vec()))).collect(),
        );
        validate_secret(&secret).into_iter().map(|error| error.path).collect::<Vec<_>>()
    };
    assert!(secret("s", "Opaque", &[("a.b_c-D", b"x")]).is_empty());
    assert!(secret("s", "kubernetes.io/dockerconfigjson", &[(".dockerconfigjson", b"{}")]).is_empty());
    assert_eq!(secret("s", "kubernetes.io/tls", &[("tls.crt", b"x")]), ["data[tls.key]"]);
    assert_eq!(secret("s", "Opaque", &[("big", &vec![0; (1 << 20) + 1])]), ["data"]);
    assert_eq!(secret("S", "Opaque", &[("..", b"")]), ["metadata.name", "data[..]"]);
}

proptest! {
    #[test]
    fn what_is_valid_names_no_path_outside(name in "[a-z./\\-]{0,8}", uid in "[a-z./\\-]{0,8}", key in "[a-z./]{0,4}") {
        let mut pod = pod("{containers: [{name: c, image: i}]}");
        pod.metadata.name = Some(name.clone());
        pod.metadata.uid = Some(uid.clone());
        if validate(&pod).is_empty() {
            prop_assert!(!name.contains('/') && name != ".." && !uid.contains('/') && uid != "..");
        }
        let mut map = v1::ConfigMap { data: Some(BTreeMap::from([(key.clone(), String::new())])), ..Default::default() };
        map.metadata.name = Some("c".to_owned());
        map.metadata.namespace = Some("default".to_owned());
        if validate_config_map(&map).is_empty() {
            prop_assert!(!key.contains('/') && !key.starts_with(".."));
        }
    }
}
