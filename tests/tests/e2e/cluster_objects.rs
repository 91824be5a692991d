//! What pods use of the API: ConfigMaps, Secrets, tokens and the rest, at start and as they change.

use serde_json::{Value, json};

use crate::bed::{
    cluster::until,
    docker::image,
    front::Fate,
    node::Node,
    pods::{SLEEP, container, pod, restarts, sleeper, status, waiting, with},
};

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn secret(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})
}

/// Waits until a script in the pod prints this.
fn prints(node: &Node, pod: &str, script: &str, wanted: &str) {
    node.told(|| {
        let deadline = std::time::Instant::now() + crate::bed::limit(std::time::Duration::from_secs(130));
        loop {
            let (_, text) = node.sh(pod, script);
            if text == wanted {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{script}: {wanted:?} is wanted, not {text:?}");
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
    });
}

#[test]
fn cluster_objects_change_under_a_running_pod() {
    let Some(node) = Node::start() else { return };
    node.cluster.create(&node.all("configmaps"), &map("c", json!({"word": "one", "other": "x"})));
    node.cluster.create(&node.all("secrets"), &secret("s", json!({"key": "hush"})));
    let app = with(
        container("app", SLEEP),
        json!({
            "env": [{"name": "WORD", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "word"}}},
                {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "s", "key": "none", "optional": true}}}],
            "envFrom": [{"secretRef": {"name": "s"}, "prefix": "S_"}],
            "volumeMounts": [{"name": "c", "mountPath": "/c"}, {"name": "s", "mountPath": "/s"}],
        }),
    );
    let volumes = json!([{"name": "c", "configMap": {"name": "c"}}, {"name": "s", "secret": {"secretName": "s", "defaultMode": 256}}]);
    node.bind(&pod("a", json!([app]), json!({"volumes": volumes})));
    node.wait_api_ready("a");
    let (_, text) =
        node.sh("a", "echo $WORD $S_key; cat /c/word; echo; cat /s/key; stat -Lc %a /s/key; env | grep -c NONE");
    assert_eq!(text, "one hush\none\nhush400\n0\n");
    node.cluster.patch(&node.one("configmaps", "c"), &json!({"data": {"word": "two", "other": null}}));
    node.cluster.patch(&node.one("secrets", "s"), &json!({"stringData": {"key": "shout", "more": "m"}}));
    prints(&node, "a", "cat /c/word; ls /c", "twoword\n");
    prints(&node, "a", "cat /s/key; cat /s/more", "shoutm");
    // What was given as a variable stays, and nothing was restarted.
    let (_, text) = node.sh("a", "echo $WORD $S_key");
    assert_eq!(text, "one hush\n");
    assert_eq!(restarts(&node.wait_api_ready("a"), "app"), 0);
}

#[test]
fn cluster_objects_that_are_missing_are_waited_for() {
    let Some(node) = Node::start() else { return };
    let by_variable = with(
        container("app", SLEEP),
        json!({"env": [{"name": "WORD", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "word"}}}]}),
    );
    node.bind(&pod("variable", json!([by_variable]), json!({})));
    let by_volume = with(container("app", SLEEP), json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    let volumes = json!({"volumes": [{"name": "v", "configMap": {"name": "late"}}]});
    node.bind(&pod("volume", json!([by_volume]), volumes));
    node.wait_api("variable", "waits", |pod| waiting(pod, "app") == "CreateContainerConfigError");
    node.wait_api("volume", "waits", |pod| waiting(pod, "app") == "ContainerCreating");
    node.wait_api_event("volume", "FailedMount", "late");
    node.cluster.create(&node.all("configmaps"), &map("late", json!({"word": "here"})));
    for name in ["variable", "volume"] {
        node.wait_api_ready(name);
    }
    assert_eq!(node.sh("variable", "echo $WORD").1, "here\n");
    assert_eq!(node.sh("volume", "cat /v/word").1, "here");
}

#[test]
fn cluster_objects_token_is_good() {
    let Some(node) = Node::start() else { return };
    let token = json!({"serviceAccountToken": {"path": "token", "audience": "example.com", "expirationSeconds": 600}});
    let app = with(container("app", SLEEP), json!({"volumeMounts": [{"name": "t", "mountPath": "/t"}]}));
    node.bind(&pod("a", json!([app]), json!({"volumes": [{"name": "t", "projected": {"sources": [token]}}]})));
    let a = node.wait_api_ready("a");
    let folder = "/var/run/secrets/kubernetes.io/serviceaccount";
    let (_, text) = node.sh("a", &format!("cat {folder}/namespace; echo; cat {folder}/ca.crt"));
    assert!(text.starts_with(&format!("{}\n-----BEGIN CERTIFICATE-----", node.name)), "{text}");
    for (path, audience) in [(format!("{folder}/token"), None), ("/t/token".to_owned(), Some("example.com"))] {
        let (_, token) = node.sh("a", &format!("cat {path}"));
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token.trim(), "audiences": audience.map(|audience| vec![audience])}});
        let told = node.cluster.create("/apis/authentication.k8s.io/v1/tokenreviews", &review);
        let told = &told["status"];
        assert_eq!(told["authenticated"], true, "{path}: {told}");
        assert_eq!(told["user"]["username"], format!("system:serviceaccount:{}:default", node.name).as_str());
        let extra = &told["user"]["extra"];
        assert_eq!(extra["authentication.kubernetes.io/pod-uid"][0], a["metadata"]["uid"], "{extra}");
    }
    // By default it is not a token for others.
    let (_, token) = node.sh("a", "cat /t/token");
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token.trim()}});
    let told = node.cluster.create("/apis/authentication.k8s.io/v1/tokenreviews", &review);
    assert_ne!(told["status"]["authenticated"], true);
}

/// A TokenRequest's answer, its token told to be good for a moment only.
fn short_lived(body: &str) -> String {
    let Ok(mut answer) = serde_json::from_str::<Value>(body) else { return body.to_owned() };
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(20);
    answer["status"]["expirationTimestamp"] = json!(soon.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    answer.to_string()
}

#[test]
fn cluster_objects_token_is_renewed_in_time() {
    let Some(node) = Node::start_fronted() else { return };
    let is_token = |path: &str| path.split('?').next().is_some_and(|path| path.ends_with("/token"));
    node.front().judge(move |_, path| if is_token(path) { Fate::Told(short_lived) } else { Fate::Pass });
    node.bind(&sleeper("a"));
    let a = node.wait_api_ready("a");
    let token = || node.sh("a", "cat /var/run/secrets/kubernetes.io/serviceaccount/token").1;
    let first = token();
    let next = node.told(|| until("another token", || Some(token()).filter(|now| *now != first && !now.is_empty())));
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": next.trim()}});
    let told = node.cluster.create("/apis/authentication.k8s.io/v1/tokenreviews", &review);
    let user = &told["status"]["user"];
    assert_eq!(told["status"]["authenticated"], true, "{told}");
    assert_eq!(user["extra"]["authentication.kubernetes.io/pod-uid"][0], a["metadata"]["uid"], "{told}");
    assert_eq!(restarts(&node.wait_api_ready("a"), "app"), 0);
}

#[test]
fn cluster_objects_downward_labels_follow() {
    let Some(node) = Node::start() else { return };
    let app = with(
        container("app", SLEEP),
        json!({
            "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}],
            "volumeMounts": [{"name": "d", "mountPath": "/d"}],
        }),
    );
    let items = json!([{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]);
    let whole = pod("a", json!([app]), json!({"volumes": [{"name": "d", "downwardAPI": {"items": items}}]}));
    node.bind(&with(whole, json!({"metadata": {"labels": {"app": "a"}}})));
    let a = node.wait_api_ready("a");
    let (_, text) = node.sh("a", "echo $NODE $IP $HOST; cat /d/labels");
    let ip = a["status"]["podIP"].as_str().unwrap();
    assert_eq!(text.trim_end(), format!("{} {ip} {}\napp=\"a\"", node.name, node.cluster.address));
    node.cluster.kubectl(&["label", "pod", "a", "-n", &node.name, "more=b"]);
    prints(&node, "a", "grep -c more /d/labels", "1\n");
    assert_eq!(restarts(&node.wait_api_ready("a"), "app"), 0);
}

#[test]
fn cluster_objects_are_watched_no_longer_than_needed() {
    let Some(node) = Node::start() else { return };
    node.cluster.create(&node.all("configmaps"), &map("c", json!({"word": "one"})));
    let app = with(container("app", SLEEP), json!({"volumeMounts": [{"name": "c", "mountPath": "/c"}]}));
    let spec = json!({"volumes": [{"name": "c", "configMap": {"name": "c"}}]});
    let a = node.bind(&pod("a", json!([app.clone()]), spec.clone()));
    node.wait_api_ready("a");
    node.cluster.delete(&node.one("pods", "a"), None);
    node.wait_api_gone(&a);
    // A change that came while nobody used it is there for the next one.
    node.cluster.patch(&node.one("configmaps", "c"), &json!({"data": {"word": "two"}}));
    let until_then = node.asked().len();
    node.bind(&pod("b", json!([app]), spec));
    node.wait_api_ready("b");
    prints(&node, "b", "cat /c/word", "two");
    let asked = node.asked();
    assert!(!asked.is_empty(), "an audit log");
    // What it may have may be refused at first: the API server itself is a moment late to know where the pod is bound.
    let (of_a, of_b) = asked.split_at(until_then);
    for asked in [of_a, of_b] {
        let granted = |path: &str| asked.iter().rposition(|(_, other, code)| other == path && *code < 300);
        let refused = asked.iter().enumerate().filter(|(at, (_, path, code))| {
            *code == 403 && !path.contains("/token") && granted(path).is_none_or(|granted| granted < *at)
        });
        let refused: Vec<&String> = refused.map(|(_, (_, path, _))| path).collect();
        assert!(refused.is_empty(), "the node asked for what it may not have: {refused:?}");
    }
}

#[test]
fn cluster_objects_image_is_a_volume() {
    let Some(node) = Node::start() else { return };
    let mounts = json!([{"name": "i", "mountPath": "/v"}, {"name": "e", "mountPath": "/e"}]);
    let app = with(container("app", SLEEP), json!({"volumeMounts": mounts}));
    let image = json!({"reference": image(), "pullPolicy": "Never"});
    let volumes = json!({"volumes": [{"name": "i", "image": image}, {"name": "e", "emptyDir": {}}]});
    node.bind(&pod("a", json!([app]), volumes));
    let a = node.wait_api_ready("a");
    let (_, text) = node.sh("a", "ls /v/bin/busybox; echo x > /v/x");
    assert!(text.contains("/v/bin/busybox\n") && text.contains("Read-only file system"), "{text}");
    let mounts = status(&a, "app")["volumeMounts"].as_array().unwrap().clone();
    let of = |path: &str| mounts.iter().find(|mount| mount["mountPath"] == path).unwrap()["volumeStatus"].clone();
    assert_eq!(of("/e"), Value::Null);
    let told = of("/v")["image"]["imageRef"].as_str().unwrap_or_default().to_owned();
    assert_eq!(told.starts_with("sha256:"), node.cluster.minor() >= 36, "{told:?}");
}

#[test]
fn cluster_objects_file_gives_variables() {
    let Some(node) = Node::start() else { return };
    if node.cluster.minor() < 34 {
        crate::bed::skip(&format!("Kubernetes {} knows no fileKeyRef", node.cluster.version));
        return;
    }
    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let init = with(container("init", "echo \"WORD='two words'\" > /v/env"), mounts);
    let of = |key: &str, optional| json!({"fileKeyRef": {"volumeName": "v", "path": "env", "key": key, "optional": optional}});
    let env =
        json!([{"name": "WORD", "valueFrom": of("WORD", false)}, {"name": "NONE", "valueFrom": of("NONE", true)}]);
    let spec = json!({"initContainers": [init], "volumes": [{"name": "v", "emptyDir": {}}]});
    node.bind(&pod("a", json!([with(container("app", SLEEP), json!({"env": env}))]), spec.clone()));
    let env = json!([{"name": "GONE", "valueFrom": of("GONE", false)}]);
    node.bind(&pod("b", json!([with(container("app", SLEEP), json!({"env": env}))]), spec));
    node.wait_api_ready("a");
    assert_eq!(node.sh("a", "echo $WORD,${NONE-unset}").1, "two words,unset\n");
    node.wait_api("b", "refused", |pod| waiting(pod, "app") == "CreateContainerConfigError");
}
