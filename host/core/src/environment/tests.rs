//! Environments and `$(VAR)`: order, sources, and that expansion never fails.

use std::sync::Arc;

use k8s_openapi::ByteString;
use proptest::prelude::*;

use super::*;
use crate::testing::{node, pod_from};

fn objects() -> Objects {
    let mut objects = Objects::default();
    let text = |entries: &[(&str, &str)]| entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let bytes =
        |entries: &[(&str, &[u8])]| entries.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.to_vec()))).collect();
    let config = v1::ConfigMap { data: Some(text(&[("color", "red"), ("size", "$(color)")])), ..Default::default() };
    objects.config_maps.insert("config".to_owned(), Arc::new(config));
    let secret = v1::Secret {
        data: Some(bytes(&[("password", b"from-data"), ("raw", &[0xff, b'a']), ("nul", b"a\0b")])),
        string_data: Some(text(&[("password", "from-text")])),
        ..Default::default()
    };
    objects.secrets.insert("secret".to_owned(), Arc::new(secret));
    objects
}

fn environment(container: &str, services: &[(&str, &str)]) -> Result<Vec<(String, String)>, String> {
    let pod = pod_from(&format!("containers: [{container}]"));
    let services = services.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let of = |volume: &str, path: &str| (volume.to_owned(), path.to_owned());
    let files = EnvFiles::from([
        (of("v", "env"), Ok(b"A='from file'\nEMPTY=''\nB=bad".to_vec())),
        (of("v", "gone"), Err("no such file".to_owned())),
    ]);
    let ctx = EnvironmentContext {
        node: &node(),
        objects: &objects(),
        pod_ips: &["10.0.0.5".parse().unwrap()],
        host_ips: &node().ips,
        services: &services,
        files: &files,
    };
    build(&pod, pod.container("app").unwrap(), &ctx).map_err(|error| error.to_string())
}

fn pairs(expected: &[(&str, &str)]) -> Result<Vec<(String, String)>, String> {
    Ok(expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
}

#[test]
fn variables_from_files_of_volumes() {
    let of = |volume: &str, path: &str, key: &str, optional: bool| {
        environment(
            &format!(
                "{{name: app, env: [{{name: X, valueFrom: {{fileKeyRef: {{volumeName: {volume}, path: {path}, key: {key}, optional: \
                 {optional}}}}}}}]}}"
            ),
            &[],
        )
    };
    assert_eq!(of("v", "env", "A", false), pairs(&[("X", "from file")]));
    assert_eq!(of("v", "env", "EMPTY", true), pairs(&[]));
    let error = |found: Result<Vec<(String, String)>, String>| found.unwrap_err();
    assert!(
        error(of("v", "env", "EMPTY", false))
            .starts_with("environment variable key \"EMPTY\" not found in file \"v/env\"")
    );
    assert!(error(of("v", "env", "C", true)).contains("at line 3: value must be enclosed in single quotes"));
    assert!(
        error(of("v", "gone", "A", true)).starts_with("couldn't parse env file: no such file"),
        "also an optional one"
    );
    assert!(
        error(of("none", "env", "A", false)).starts_with("cannot find the volume \"none\" referenced by FileKeyRef")
    );
}

#[test]
fn expansion_as_the_kubelets() {
    let cases = [
        ("", ""),
        ("$(A)", "1"),
        ("$(A)$(B)", "12"),
        ("x$(A)-$(B)y", "x1-2y"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$$$$(A)", "$$(A)"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$()", "$()"),
        ("$(A", "$(A"),
        ("$A", "$A"),
        ("$", "$"),
        ("$$", "$"),
        ("a$", "a$"),
        ("$é(A)", "$é(A)"),
        ("$(EMPTY)", ""),
        ("$(NEST)", "$(A)"),
        ("$((A))", "$((A))"),
        ("${A}", "${A}"),
    ];
    for (text, expected) in cases {
        let lookup = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "B" => Some("2".to_owned()),
            "EMPTY" => Some(String::new()),
            "NEST" => Some("$(A)".to_owned()),
            _ => None,
        };
        assert_eq!(expand(text, lookup), expected, "{text}");
    }
}

#[test]
fn order_and_overrides() {
    let container = "{name: app,
        envFrom: [{prefix: P_, configMapRef: {name: config}}, {secretRef: {name: absent, optional: true}},
                  {configMapRef: {name: config}}],
        env: [{name: first, value: '$(color)-$(SVC)-$(later)'}, {name: color, value: blue}, {name: later, value: '$(color)'},
              {name: own, value: '$(own)'}, {name: own, value: 'x$(own)'}, {name: SVC2, value: mine}, {name: none}]}";
    assert_eq!(
        environment(container, &[("SVC", "10.96.0.1"), ("SVC2", "theirs")]),
        pairs(&[
            ("P_color", "red"),
            ("P_size", "$(color)"),
            ("color", "blue"),
            ("size", "$(color)"),
            ("first", "red-10.96.0.1-$(later)"),
            ("later", "blue"),
            ("own", "x$(own)"),
            ("SVC2", "mine"),
            ("none", ""),
            ("SVC", "10.96.0.1"),
        ])
    );
}

#[test]
fn each_source() {
    let container = "{name: app, resources: {limits: {cpu: 1500m}}, env: [
        {name: name, valueFrom: {fieldRef: {fieldPath: metadata.name}}},
        {name: ip, valueFrom: {fieldRef: {fieldPath: status.podIP}}},
        {name: host, valueFrom: {fieldRef: {fieldPath: status.hostIP}}},
        {name: cpu, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}},
        {name: color, valueFrom: {configMapKeyRef: {name: config, key: color}}},
        {name: password, valueFrom: {secretKeyRef: {name: secret, key: password}}},
        {name: raw, valueFrom: {secretKeyRef: {name: secret, key: raw}}},
        {name: gone, valueFrom: {secretKeyRef: {name: secret, key: no, optional: true}}},
        {name: gone, valueFrom: {configMapKeyRef: {name: no, key: no, optional: true}}},
        {name: both, value: '$(name)/$(gone)'}]}";
    assert_eq!(
        environment(container, &[]),
        pairs(&[
            ("name", "pod"),
            ("ip", "10.0.0.5"),
            ("host", "192.168.1.10"),
            ("cpu", "1500"),
            ("color", "red"),
            ("password", "from-text"),
            ("raw", "\u{fffd}a"),
            ("both", "pod/$(gone)"),
        ])
    );
}

#[test]
fn problems_are_the_kubelets_with_their_place() {
    let cases = [
        (
            "{name: app, envFrom: [{configMapRef: {name: no}}]}",
            "configmap \"no\" not found (envFrom of container \"app\")",
        ),
        ("{name: app, envFrom: [{secretRef: {name: no}}]}", "secret \"no\" not found (envFrom of container \"app\")"),
        (
            "{name: app, env: [{name: X, valueFrom: {configMapKeyRef: {name: config, key: no}}}]}",
            "couldn't find key no in ConfigMap ns/config (env \"X\" of container \"app\")",
        ),
        (
            "{name: app, env: [{name: X, valueFrom: {secretKeyRef: {name: secret, key: no}}}]}",
            "couldn't find key no in Secret ns/secret (env \"X\" of container \"app\")",
        ),
        (
            "{name: app, env: [{name: X, valueFrom: {secretKeyRef: {name: secret, key: nul}}}]}",
            "variable \"X\" holds a NUL byte (env \"X\" of container \"app\")",
        ),
        (
            "{name: app, env: [{name: X, valueFrom: {fileKeyRef: {volumeName: v, path: p, key: k}}}]}",
            "cannot find the volume \"v\" referenced by FileKeyRef (env \"X\" of container \"app\")",
        ),
        (
            "{name: app, env: [{name: X, valueFrom: {fieldRef: {fieldPath: spec.x}}}]}",
            "unsupported fieldPath: spec.x (env \"X\" of container \"app\")",
        ),
    ];
    for (container, expected) in cases {
        assert_eq!(environment(container, &[]), Err(expected.to_owned()));
    }
}

#[test]
fn probe_commands_see_the_static_environment_only() {
    let pod = pod_from(
        "containers: [{name: app, env: [{name: A, value: '1'}, {name: B, value: '$(A)'},
           {name: N, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]}]",
    );
    let command = ["$(A)", "$(B)", "[$(N)]", "$(NO)", "$$(A)"].map(str::to_owned);
    let expected = ["1", "$(A)", "[]", "$(NO)", "$(A)"];
    assert_eq!(expand_command(&pod.spec().containers[0], &command), expected);
}

#[test]
fn words_are_expanded_once() {
    let env = [("A".to_owned(), "$(B)".to_owned()), ("B".to_owned(), "2".to_owned())];
    assert_eq!(expand_words(&["$(A)$(B)".to_owned()], &env), ["$(B)2"]);
}

proptest! {
    #[test]
    fn expansion_never_panics(text in "[$()A-B é{}]{0,40}", value in ".{0,5}") {
        let _ = expand(&text, |name| (name == "A").then(|| value.clone()));
    }

    #[test]
    fn doubling_dollars_keeps_any_text(text in ".{0,60}") {
        prop_assert_eq!(expand(&text.replace('$', "$$"), |_| Some("lost".to_owned())), text);
    }

    #[test]
    fn without_variables_only_doubled_dollars_change(text in "[^$]{0,30}") {
        prop_assert_eq!(expand(&text, |_| Some("lost".to_owned())), text.clone());
        let reference = format!("$({})", text.replace(')', ""));
        prop_assert_eq!(expand(&reference, |_| None), reference.clone());
        let escaped = format!("${reference}");
        prop_assert_eq!(expand(&escaped, |_| Some("lost".to_owned())), reference);
    }

    #[test]
    fn names_are_unique(names in proptest::collection::vec("[A-D]", 0..12)) {
        let env: Vec<String> = names.iter().map(|name| format!("{{name: {name}, value: v}}")).collect();
        let built = environment(&format!("{{name: app, env: [{}]}}", env.join(",")), &[("A", "s")]).unwrap();
        let mut unique: Vec<&String> = built.iter().map(|(name, _)| name).collect();
        unique.sort();
        unique.dedup();
        prop_assert_eq!(unique.len(), built.len());
    }
}
