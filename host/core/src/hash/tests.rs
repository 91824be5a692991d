//! Golden hashes, and which changes count.

use proptest::prelude::*;

use super::*;

const SPEC: &str = r#"
hostname: web
securityContext: {runAsUser: 1000, sysctls: [{name: net.ipv4.tcp_syncookies, value: "1"}]}
initContainers:
- {name: setup, image: "busybox:1", command: [sh, -c, "true"]}
containers:
- name: web
  image: nginx:1.27
  env: [{name: A, value: b}, {name: EMPTY, value: ""}]
  ports: [{containerPort: 80, hostPort: 8080}]
  resources: {requests: {cpu: 100m}, limits: {memory: 64Mi, hugepages-2Mi: 2Mi}}
  readinessProbe: {httpGet: {port: 80}}
  volumeMounts: [{name: data, mountPath: /data}]
volumes:
- {name: data, emptyDir: {}}
- {name: other, hostPath: {path: /x}}
"#;

fn pod(spec: &str) -> v1::Pod {
    v1::Pod { spec: Some(serde_saphyr::from_str(spec).expect("a pod spec")), ..Default::default() }
}

fn web(spec: &str, source: &Source) -> String {
    containers(&pod(spec), source)["web"].clone()
}

#[test]
fn hashes_are_fixed_for_ever() {
    // A change here restarts every container of everybody on upgrade: take another hash version instead.
    assert_eq!(crate::labels::CURRENT_HASH_VERSION, "1");
    let hashes = containers(&pod(SPEC), &Source::File);
    assert_eq!((hashes["setup"].as_str(), hashes["web"].as_str()), ("5c78dd5f14f9cc57", "8f81bfef3fcee9c4"));
    assert_eq!(containers(&pod(SPEC), &Source::Api)["web"], "2b55c0cc9938bb72");
    assert_eq!(sandbox(&pod(SPEC)), "02b7f8eac043d286");
    assert_eq!(sandbox(&pod("{containers: []}")), "e3b0c44298fc1c14");
}

#[test]
fn what_needs_a_new_container_changes_its_hash() {
    let changes = [
        ("nginx:1.27", "nginx:1.28"),
        ("value: b", "value: c"),
        ("runAsUser: 1000", "runAsUser: 1001"),
        ("mountPath: /data", "mountPath: /other"),
        ("{name: data, emptyDir: {}}", "{name: data, emptyDir: {medium: Memory}}"),
        ("hugepages-2Mi: 2Mi", "hugepages-2Mi: 4Mi"),
        ("image: nginx:1.27", "image: nginx:1.27\n  tty: true"),
        ("image: nginx:1.27", "image: nginx:1.27\n  lifecycle: {stopSignal: SIGINT}"),
        ("image: nginx:1.27", "image: nginx:1.27\n  securityContext: {allowPrivilegeEscalation: false}"),
        ("image: nginx:1.27", "image: nginx:1.27\n  args: [x]"),
        ("image: nginx:1.27", "image: nginx:1.27\n  workingDir: /w"),
        ("image: nginx:1.27", "image: nginx:1.27\n  envFrom: [{configMapRef: {name: x}}]"),
        ("image: nginx:1.27", "image: nginx:1.27\n  stdin: true"),
        ("image: nginx:1.27", "image: nginx:1.27\n  stdin: true\n  stdinOnce: true"),
        ("image: nginx:1.27", "image: nginx:1.27\n  terminationMessagePath: /t"),
        ("image: nginx:1.27", "image: nginx:1.27\n  volumeDevices: [{name: other, devicePath: /d}]"),
        ("readinessProbe", "resizePolicy: [{resourceName: cpu, restartPolicy: RestartContainer}]\n  readinessProbe"),
    ];
    for (from, to) in changes {
        let changed = SPEC.replace(from, to);
        assert_ne!(web(&changed, &Source::File), web(SPEC, &Source::File), "{to}");
        let same = containers(&pod(&changed), &Source::File)["setup"] == containers(&pod(SPEC), &Source::File)["setup"];
        assert_eq!(same, !from.contains("runAsUser"), "only what a container depends on counts: {to}");
    }
}

#[test]
fn what_needs_no_new_container_does_not() {
    let changes = [
        ("cpu: 100m", "cpu: 200m"),
        ("memory: 64Mi", "memory: 1Gi"),
        ("httpGet: {port: 80}", "httpGet: {port: 81}"),
        ("containerPort: 80", "containerPort: 81"),
        ("path: /x", "path: /y"),
        ("hostname: web", "hostname: other\nterminationGracePeriodSeconds: 3\nhostAliases: [{ip: 1.1.1.1}]"),
        (
            "image: nginx:1.27",
            "image: nginx:1.27\n  imagePullPolicy: Always\n  lifecycle: {preStop: {exec: {command: [x]}}}",
        ),
        ("image: nginx:1.27", "image: nginx:1.27\n  args: []\n  workingDir: ''\n  securityContext: {}"),
        (", value: \"\"", ""),
        ("{name: data, emptyDir: {}}", "{name: data}"),
    ];
    for (from, to) in changes {
        assert_ne!(SPEC.replace(from, to), SPEC);
        assert_eq!(web(&SPEC.replace(from, to), &Source::File), web(SPEC, &Source::File), "{to}");
    }
    let other = SPEC.replace("value: b", "value: c");
    assert_eq!(web(&other, &Source::Api), web(SPEC, &Source::Api));
    assert_ne!(web(&SPEC.replace("1.27", "1.28"), &Source::Api), web(SPEC, &Source::Api));
}

#[test]
fn what_a_pod_says_of_its_names() {
    let of = |spec: &str| names(&pod(&format!("{{containers: [], {spec}}}")));
    assert_eq!(of("dnsConfig: {}"), of(""));
    assert_eq!(of("hostAliases: [{ip: 1.1.1.1}]"), of(""));
    for other in ["dnsPolicy: None", "dnsConfig: {searches: [a]}"] {
        assert_ne!(of(other), of(""), "{other}");
        assert_eq!(sandbox(&pod(&format!("{{containers: [], {other}}}"))), sandbox(&pod("{containers: []}")));
    }
}

#[test]
fn what_needs_a_new_sandbox_changes_its_hash() {
    let before = sandbox(&pod(SPEC));
    for (from, to) in [
        ("hostPort: 8080", "hostPort: 8081"),
        ("hostname: web", "hostname: other"),
        ("hostname: web", "hostNetwork: true"),
        ("hostname: web", "hostname: web\nshareProcessNamespace: true"),
        ("runAsUser: 1000", "runAsUser: 1001"),
        ("value: \"1\"", "value: \"0\""),
        ("image: nginx:1.27", "image: nginx:1.27\n  securityContext: {privileged: true}"),
        ("hostname: web", "hostname: web\nhostPID: true"),
        ("hostname: web", "hostname: web\nhostIPC: true"),
        ("hostname: web", "hostname: web\nhostUsers: false"),
        ("hostname: web", "hostname: web\nsubdomain: s"),
        ("hostname: web", "hostname: web\nsetHostnameAsFQDN: true"),
        ("hostname: web", "hostname: web\nruntimeClassName: r"),
    ] {
        assert_ne!(sandbox(&pod(&SPEC.replace(from, to))), before, "{to}");
    }
    for (from, to) in [
        ("nginx:1.27", "nginx:1.28"),
        ("hostname: web", "hostname: web\nhostNetwork: false\nhostPID: false\ndnsPolicy: Default"),
        ("hostPort: 8080", "hostPort: 8080, protocol: TCP, name: http"),
    ] {
        assert_eq!(sandbox(&pod(&SPEC.replace(from, to))), before, "{to}");
    }
}

proptest! {
    #[test]
    fn defaults_do_not_count_as_they_come_after(image in "[a-z]{1,8}(:[a-z0-9]{1,5})?") {
        // The hash is of what was written: equal before and after a round trip through JSON.
        let written = pod(&format!("{{containers: [{{name: web, image: '{image}'}}]}}"));
        let again: v1::Pod = serde_json::from_str(&serde_json::to_string(&written).expect("JSON")).expect("a pod");
        prop_assert_eq!(containers(&written, &Source::File), containers(&again, &Source::File));
        prop_assert_eq!(sandbox(&written), sandbox(&again));
    }
}
