//! Manifests as users write them, well and badly.

use std::fmt::Write;

use proptest::prelude::*;

use super::*;

fn origin() -> Origin {
    Origin { source: Source::File, node_name: "node-1".to_owned(), place: "/manifests/web.yaml".to_owned() }
}

fn read(text: &str) -> Parsed {
    parse(text.as_bytes(), &origin())
}

fn one(text: &str) -> Pod {
    let parsed = read(text);
    assert_eq!(parsed.problems, []);
    assert_eq!(parsed.pods.len(), 1, "one pod");
    parsed.pods.into_iter().next().unwrap()
}

const WEB: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
spec:
  containers:
  - name: web
    image: nginx:1.27
    ports:
    - containerPort: 80
      hostPort: 8080
    volumeMounts:
    - {name: config, mountPath: /etc/nginx}
  volumes:
  - name: config
    configMap: {name: web, defaultMode: 0640}
";

#[test]
fn bad_manifests_are_told_of_by_line_and_field() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manifest/corpus");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut text = String::new();
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let origin = Origin { place: format!("/m/{name}"), ..origin() };
        let started = std::time::Instant::now();
        let parsed = parse(&std::fs::read(&file).unwrap(), &origin);
        assert!(started.elapsed().as_secs() < 60, "{name} took too long");
        assert!(!parsed.problems.is_empty(), "{name} has a problem");
        for problem in &parsed.problems {
            let kind = if problem.warning { "warning" } else { "error" };
            writeln!(text, "{} {kind}: {}", problem.place, problem.message).unwrap();
        }
        let objects = (parsed.pods.len(), parsed.config_maps.len(), parsed.secrets.len());
        if objects != (0, 0, 0) {
            writeln!(text, "{}: reads {objects:?} all the same", origin.place).unwrap();
        }
    }
    insta::assert_snapshot!("bad_manifests", text);
}

#[test]
fn a_pod_gets_what_the_kubelet_adds() {
    let pod = one(WEB);
    assert_eq!((pod.id.namespace.as_str(), pod.id.name.as_str()), ("default", "web-node-1"));
    assert_eq!(pod.id.uid.len(), 32);
    assert_eq!(pod.annotations()["kubernetes.io/config.hash"], pod.id.uid);
    assert_eq!(pod.annotations()["kubernetes.io/config.source"], "file");
    assert_eq!(pod.spec().node_name.as_deref(), Some("node-1"));
    let toleration = &pod.spec().tolerations.as_ref().unwrap()[0];
    assert_eq!((toleration.operator.as_deref(), toleration.effect.as_deref()), (Some("Exists"), Some("NoExecute")));
    let mode = pod.spec().volumes.as_ref().unwrap()[0].config_map.as_ref().unwrap().default_mode;
    assert_eq!(mode, Some(0o640));
    assert_eq!(pod.spec().containers[0].image_pull_policy.as_deref(), Some("IfNotPresent"));
    assert_eq!(pod.hashes.keys().collect::<Vec<_>>(), ["web"]);

    let http = Origin { source: Source::Http, ..origin() };
    let parsed = parse(WEB.as_bytes(), &http);
    assert_eq!(parsed.pods[0].spec().tolerations, None);
    assert_eq!(parsed.pods[0].annotations()["kubernetes.io/config.source"], "http");
}

#[test]
fn derived_uids_are_fixed_for_ever() {
    // A change here makes every static pod a new one on upgrade.
    assert_eq!(one(WEB).id.uid, "60318c4223d6ca7b300f258574d3752e");
    assert_eq!(one(&WEB.replace("  name: web\n  labels", "  uid: own-uid\n  name: web\n  labels")).id.uid, "own-uid");
}

#[test]
fn a_uid_depends_on_content_node_and_place_alone() {
    let uid = one(WEB).id.uid;
    let same = [
        WEB.replace("labels: {app: web}", "labels:\n    # a comment\n    'app': \"web\"\n  annotations:"),
        WEB.replace("kind: Pod\n", "kind: Pod\nstatus: {phase: Running}\n"),
        WEB.replace("0640", "416"),
        serde_json::to_string_pretty(
            &serde_saphyr::from_str::<serde_json::Value>(&WEB.replace("0640", "416")).unwrap(),
        )
        .unwrap(),
        format!(
            "apiVersion: v1\nkind: List\nitems:\n-{}",
            WEB.trim_start().replace('\n', "\n  ").replacen("apiVersion", " apiVersion", 1)
        ),
    ];
    for text in same {
        assert_eq!(one(&text).id.uid, uid, "{text}");
    }
    assert_ne!(one(&WEB.replace("8080", "8081")).id.uid, uid);
    for other in [Origin { node_name: "node-2".to_owned(), ..origin() }, Origin { place: "/x".to_owned(), ..origin() }]
    {
        assert_ne!(parse(WEB.as_bytes(), &other).pods[0].id.uid, uid);
    }
}

#[test]
fn yaml_is_read_as_kubernetes_reads_it() {
    let text = "\u{feff}# a byte order mark, anchors, merges, octals, quantities that are numbers
apiVersion: v1
kind: Pod
metadata:
  name: web
  annotations:
    a: 'yes'
    b: \"1\"
    c: |
      text
    3: three
    'on': x
spec:
  terminationGracePeriodSeconds: 010
  activeDeadlineSeconds: 0x10
  containers:
  - &base
    name: web
    image: nginx:1
    command: [sh, '-c', 2020-01-01, 1:30]
    resources: {limits: {cpu: 1, memory: 1.5e9}, requests: {cpu: 0.5}}
    env:
    - {name: NONE, value: null}
    - {name: DATE, value: 2020-01-01}
  - <<: *base
    name: other
  volumes:
  - {name: a, secret: {secretName: s, defaultMode: 0o400}}
  - {name: b, secret: {secretName: s, defaultMode: 0400}}
  - {name: c, secret: {secretName: s, defaultMode: 256}}
";
    let pod = one(text);
    let spec = pod.spec();
    assert_eq!(spec.termination_grace_period_seconds, Some(8));
    assert_eq!(spec.active_deadline_seconds, Some(16));
    assert_eq!(spec.containers[1].name, "other");
    assert_eq!(spec.containers[1].command.as_ref().unwrap()[2..], ["2020-01-01", "1:30"]);
    let limits = spec.containers[0].resources.as_ref().unwrap().limits.as_ref().unwrap();
    assert_eq!(crate::quantity::value(&limits["memory"]), Some(1_500_000_000));
    assert_eq!(crate::quantity::milli(&limits["cpu"]), Some(1000));
    for volume in spec.volumes.as_ref().unwrap() {
        assert_eq!(volume.secret.as_ref().unwrap().default_mode, Some(0o400), "{}", volume.name);
    }
    assert_eq!(pod.annotations()["a"], "yes");
    assert_eq!(pod.annotations()["3"], "three");
}

#[test]
fn a_file_holds_documents_lists_and_objects() {
    let text = format!(
        "---\n# nothing\n---\n{WEB}\n---\n
apiVersion: v1
kind: List
items:
- {{apiVersion: v1, kind: ConfigMap, metadata: {{name: web}}, data: {{a: b}}, binaryData: {{c: aGk=}}}}
- {{apiVersion: v1, kind: Secret, metadata: {{name: s, namespace: other}}, data: {{a: aGk=}}, stringData: {{a: plain, b: x}}}}
---
apiVersion: v1
kind: PodList
metadata: {{}}
items:
- metadata: {{name: second, namespace: other}}
  spec: {{containers: [{{name: c, image: i}}]}}
---
"
    );
    let parsed = read(&text);
    assert_eq!(parsed.problems, []);
    assert_eq!(
        parsed.pods.iter().map(|pod| pod.id.to_string()).collect::<Vec<_>>(),
        ["default/web-node-1", "other/second-node-1"]
    );
    assert_eq!(parsed.config_maps[0].metadata.namespace.as_deref(), Some("default"));
    let secret = parsed.secrets[0].data.as_ref().unwrap();
    assert_eq!((secret["a"].0.as_slice(), secret["b"].0.as_slice()), (b"plain".as_slice(), b"x".as_slice()));
    assert_eq!(parsed.secrets[0].type_.as_deref(), Some("Opaque"));
    assert!(read("").problems.is_empty() && read("---\n---\n# x\n").problems.is_empty());
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let parsed = parse(&vec![b'#'; 11 << 20], &origin());
    assert!(parsed.has_errors() && parsed.problems[0].message.contains("at most"), "{:?}", parsed.problems);
}

#[test]
fn problems_are_bounded() {
    let containers: String = (0..500).map(|_| "  - {name: Bad, image: ''}\n").collect();
    let parsed =
        read(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  containers:\n{containers}"));
    assert_eq!(parsed.problems.len(), MAX_PROBLEMS + 1);
    assert!(parsed.problems[MAX_PROBLEMS].message.contains("more problems"));
}

#[test]
fn many_warnings_are_no_error() {
    let pods = (0..60).map(|at| format!("- {{apiVersion: v1, kind: Pod, metadata: {{name: p{at}}}, spec: {{x: 1, containers: [{{name: c, image: i}}]}}}}\n"));
    let parsed = read(&format!("apiVersion: v1\nkind: List\nitems:\n{}", pods.collect::<String>()));
    assert_eq!((parsed.pods.len(), parsed.problems.len()), (60, MAX_PROBLEMS + 1));
    assert!(!parsed.has_errors());
}

#[test]
fn a_pod_that_is_warned_of_is_read() {
    let parsed = read(
        &WEB.replace("    ports:", "    resizePolicy: [{resourceName: gpu, restartPolicy: NotRequired}]\n    ports:"),
    );
    assert_eq!((parsed.pods.len(), parsed.has_errors()), (1, false));
    assert!(
        parsed.problems[0].warning && parsed.problems[0].place.ends_with("web.yaml:11:21"),
        "{:?}",
        parsed.problems
    );
}

#[test]
fn a_volume_that_is_never_there_is_warned_of() {
    let claim = WEB.replace("configMap: {name: web, defaultMode: 0640}", "persistentVolumeClaim: {claimName: data}");
    let warned = |text: &str| {
        let parsed = read(text);
        assert_eq!((parsed.pods.len(), parsed.has_errors()), (1, false));
        parsed.problems.into_iter().map(|problem| problem.message).collect::<Vec<_>>()
    };
    assert_eq!(
        warned(&claim),
        [
            "Pod web: spec.volumes[0].persistentVolumeClaim: the pod will stay Pending: claims are not bound on this node; \
          use hostPath or emptyDir"
        ]
    );
    assert_eq!(warned(&claim.replace("    - {name: config, mountPath: /etc/nginx}", "      []")), [""; 0], "unused");
}

#[test]
fn fields_that_nobody_knows_are_told_of_beside_one_that_does_not_fit() {
    let parsed = read("apiVersion: v1\nkind: Pod\nmetadata: {name: web, lables: {}}\nspec: {containers: 3}\n");
    let found: Vec<(bool, &str)> =
        parsed.problems.iter().map(|problem| (problem.warning, problem.message.as_str())).collect();
    assert_eq!(
        found,
        [
            (true, "Pod web: metadata.lables: unknown field; did you mean \"labels\"?"),
            (false, "Pod web: spec.containers: expected a list, found the number 3"),
        ]
    );
}

#[test]
fn a_problem_is_short_however_long_what_it_is_about() {
    let long = "é".repeat(1 << 20);
    let parsed =
        read(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {long}}}\nspec: {{containers: [], {long}: 1}}\n"));
    assert!(parsed.has_errors());
    assert!(parsed.problems.iter().all(|problem| problem.message.len() <= MAX_MESSAGE + 3));
}

#[test]
fn a_control_character_is_told_with_its_line() {
    let parsed = read("apiVersion: v1\nkind: Pod\nmetadata: {name: \u{7}}\n");
    assert_eq!(parsed.problems[0].place, format!("{}:3", origin().place));
}

#[test]
fn secrets_are_not_repeated_in_problems() {
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {key: 'hunter2!'}\nstringData: {a: [hunter2], b: 2}\n";
    let problems = format!("{:?}", read(text).problems);
    assert!(!problems.is_empty() && !problems.contains("hunter2"), "{problems}");
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: hunter2\n";
    let problems = format!("{:?}", read(text).problems);
    assert!(!problems.contains("hunter2"), "{problems}");
}

#[test]
fn the_examples_have_no_problems() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/manifests");
    let mut pods = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().path();
        let parsed = parse(&std::fs::read(&file).unwrap(), &origin());
        assert_eq!(parsed.problems, [], "{}", file.display());
        pods += parsed.pods.len();
    }
    assert!(pods > 0);
}

#[test]
fn a_manifest_of_many_megabytes_is_read_or_refused_soon() {
    let started = std::time::Instant::now();
    let long = WEB.replace("labels: {app: web}", &format!("annotations: {{a: {}}}", "x".repeat(9 << 20)));
    assert!(read(&long).problems[0].message.contains("Too long"));
    let pods: String = (0..1_000)
        .map(|n| format!("---{}", WEB.replace("name: web\n  labels", &format!("name: web-{n}\n  labels"))))
        .collect();
    assert_eq!(read(&pods).pods.len(), 1_000);
    let labels: String = (0..50_000).map(|n| format!("    label-{n}: x\n")).collect();
    let many = WEB.replace("labels: {app: web}", &format!("labels:\n{labels}"));
    assert!(read(&many).pods.len() == 1);
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

/// One manifest as data, to be written down in several ways.
fn manifests() -> impl Strategy<Value = serde_json::Value> {
    let word = "[a-z][a-z0-9]{0,8}";
    let text = "[ -~éλ]{0,12}";
    let labels = prop::collection::btree_map(word, word, 0..4);
    let args = prop::collection::vec(text, 0..4);
    let env = prop::collection::vec((word, text), 0..4);
    (word, labels, args, env, 1i32..65536, any::<bool>(), 0i32..0o777).prop_map(
        |(name, labels, args, env, port, tty, mode)| {
            let env: Vec<_> =
                env.iter().map(|(name, value)| serde_json::json!({"name": name, "value": value})).collect();
            serde_json::json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "labels": labels},
                "spec": {
                    "containers": [{
                        "name": "c", "image": "i:1", "args": args, "env": env, "tty": tty,
                        "ports": [{"containerPort": port}],
                        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                    }],
                    "volumes": [{"name": "v", "secret": {"secretName": "s", "defaultMode": mode}}],
                },
            })
        },
    )
}

/// The same document with its keys the other way round.
fn reversed(value: &serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(map) => {
            serde_json::Value::Object(map.iter().rev().map(|(key, value)| (key.clone(), reversed(value))).collect())
        }
        serde_json::Value::Array(items) => serde_json::Value::Array(items.iter().map(reversed).collect()),
        other => other.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn however_it_is_written_it_is_the_same_pod(manifest in manifests()) {
        let json = one(&serde_json::to_string(&manifest).unwrap());
        let pretty = one(&serde_json::to_string_pretty(&reversed(&manifest)).unwrap());
        let yaml = one(&format!("# comment\n{}", serde_saphyr::to_string(&reversed(&manifest)).unwrap()));
        prop_assert_eq!(&json, &pretty);
        prop_assert_eq!(&json, &yaml);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes, &origin());
    }

    #[test]
    fn a_mutated_manifest_never_panics(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), "[-:{}\\[\\]&*'\"|># \n\t0a,?!~]{0,3}", 0usize..4), 1..5),
        json in any::<bool>(),
    ) {
        let mut text = WEB.to_owned();
        if json {
            text = serde_json::to_string_pretty(&serde_saphyr::from_str::<serde_json::Value>(WEB).unwrap()).unwrap();
        }
        for (at, insert, remove) in cuts {
            let start = at.index(text.len());
            let end = (start + remove).min(text.len());
            text.replace_range(start..end, &insert);
        }
        let started = std::time::Instant::now();
        let parsed = read(&text);
        prop_assert!(started.elapsed().as_secs() < 5);
        for pod in &parsed.pods {
            prop_assert!(!pod.id.uid.is_empty() && !pod.id.uid.contains('/'));
        }
    }
}
