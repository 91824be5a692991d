//! Static pods and their mirrors in the API.

use serde_json::{Value, json};

use crate::bed::{
    cluster::until,
    docker::image,
    node::Node,
    pods::{SLEEP, container, id, is_ready, pod, sleeper, uid, with},
};
use crate::manifest_url::Server;

/// A static pod in this test's namespace.
fn fixed(node: &Node, name: &str) -> Value {
    with(sleeper(name), json!({"metadata": {"namespace": node.name}}))
}

#[test]
fn cluster_life_static_pod_has_a_mirror() {
    let Some(node) = Node::start() else { return };
    node.apply(&fixed(&node, "s"));
    let name = format!("s-{}", node.name);
    let mirror = node.wait_api_ready(&name);
    let annotations = &mirror["metadata"]["annotations"];
    for annotation in ["kubernetes.io/config.mirror", "kubernetes.io/config.hash", "kubernetes.io/config.source"] {
        assert!(annotations[annotation].is_string(), "{annotation}: {annotations}");
    }
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    assert!(annotations["kubernetes.io/config.seen"].as_str().is_some_and(|seen| seen.starts_with("20")));
    let owner = &mirror["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], owner["name"].as_str()), (&json!("Node"), Some(node.name.as_str())));
    assert_eq!(mirror["spec"]["nodeName"], node.name.as_str());
    let container = id(&mirror, "app");

    // A mirror that is deleted comes back; the pod does not notice.
    node.cluster.delete(&node.one("pods", &name), None);
    let again = node.wait_api(&name, "another mirror", |pod| is_ready(pod) && uid(pod) != uid(&mirror));
    assert_eq!(id(&again, "app"), container);
    node.cluster.delete(&node.one("pods", &name), Some(0));
    let again = node.wait_api(&name, "another mirror", |pod| is_ready(pod) && uid(pod) != uid(&again));
    assert_eq!(id(&again, "app"), container);
}

#[test]
fn cluster_life_static_pod_changes_and_goes() {
    let Some(node) = Node::start() else { return };
    node.apply(&fixed(&node, "s"));
    let name = format!("s-{}", node.name);
    let first = node.wait_api_ready(&name);
    let other = std::env::var("LONGSHORE_TEST_EXAMPLE_IMAGE").unwrap_or_else(|_| image());
    let mut changed = fixed(&node, "s");
    changed["spec"]["containers"][0]["image"] = json!(other);
    changed["metadata"]["labels"] = json!({"changed": "yes"});
    node.apply(&changed);
    let second = node.wait_api(&name, "the changed one", |pod| {
        is_ready(pod) && pod["metadata"]["labels"]["changed"] == "yes" && id(pod, "app") != id(&first, "app")
    });
    assert_eq!(second["spec"]["containers"][0]["image"], other.as_str());
    assert_ne!(
        first["metadata"]["annotations"]["kubernetes.io/config.hash"],
        second["metadata"]["annotations"]["kubernetes.io/config.hash"]
    );
    node.delete("s");
    node.wait_api(&name, "gone", Value::is_null);
    until("nothing left in Docker", || node.containers_of_node().is_empty().then_some(()));
}

#[test]
fn cluster_life_static_pod_and_agent_restart() {
    let Some(mut node) = Node::start() else { return };
    let pod = fixed(&node, "s");
    node.apply(&pod);
    let name = format!("s-{}", node.name);
    let before = node.wait_api_ready(&name);
    node.kill();
    // While nobody looks the mirror goes, and so does the manifest of nothing.
    node.cluster.delete(&node.one("pods", &name), Some(0));
    node.begin();
    let after = node.wait_api(&name, "another mirror", |pod| is_ready(pod) && uid(pod) != uid(&before));
    assert_eq!(id(&after, "app"), id(&before, "app"));
    node.kill();
    node.delete("s");
    node.begin();
    node.wait_api(&name, "gone", Value::is_null);
}

#[test]
fn cluster_life_static_pod_may_not_use_the_apis_objects() {
    let Some(node) = Node::start() else { return };
    let map = |word: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": node.name}, "data": {"word": word}});
    node.cluster.create(&node.all("configmaps"), &map("of the API"));
    let app = with(container("app", SLEEP), json!({"volumeMounts": [{"name": "c", "mountPath": "/c"}]}));
    let spec = json!({"volumes": [{"name": "c", "configMap": {"name": "c"}}], "containers": [app]});
    node.apply(&with(fixed(&node, "s"), json!({"spec": spec})));
    let problems = || node.get("/v1/problems").to_string();
    node.told(|| {
        until("refused", || problems().contains("static pods may not reference configmaps").then_some(()));
    });
    let name = format!("s-{}", node.name);
    let shown = node.say(&["get", "pods", "-A"]);
    assert!(shown.contains(&name), "{shown}");
    assert!(node.containers_of_node().is_empty());
    // The folder gets what is missing: the pod runs with that, and without a mirror.
    node.apply(&map("of the folder"));
    let unmirrored = json!({"metadata": {"name": name}});
    let found = node.told(|| until("it runs", || node.running(&unmirrored)));
    assert_eq!(node.docker.exec(&found, &["cat", "/c/word"]).1, "of the folder");
    node.wait_node_event("NoMirrorPod");
    assert_eq!(node.cluster.get(&node.one("pods", &name)), None);
    until("nothing is wrong", || (!problems().contains("may not reference")).then_some(()));
    // A pod of the API server sees the API server's.
    node.bind(&pod("a", spec["containers"].clone(), json!({"volumes": spec["volumes"]})));
    node.wait_api_ready("a");
    assert_eq!(node.sh("a", "cat /c/word").1, "of the API");
}

#[test]
fn cluster_life_joining_and_leaving_restart_no_pod_of_the_folder() {
    let Some(mut node) = Node::new(&[], false) else { return };
    let joining = node.flags.clone();
    let alone: Vec<String> = joining.iter().filter(|flag| flag.starts_with("--hostname-override")).cloned().collect();
    let name = format!("s-{}", node.name);
    let unmirrored = json!({"metadata": {"name": name}});
    node.apply(&fixed(&node, "s"));
    node.flags = alone.clone();
    node.begin();
    let container = node.told(|| until("it runs", || node.running(&unmirrored)));
    node.stop();
    node.flags = joining;
    node.begin();
    node.wait_node_ready();
    let mirror = node.wait_api_ready(&name);
    assert_eq!(id(&mirror, "app"), container);
    assert_eq!(crate::bed::pods::restarts(&mirror, "app"), 0);
    // And back, as when a cluster is given up.
    node.stop();
    node.flags = alone;
    node.begin();
    node.told(|| {
        until("it is known again", || {
            // It fails while the node does not know its pods yet.
            let shown = String::from_utf8_lossy(&node.cli(&["get", "pods", "-A"]).stdout).into_owned();
            shown.lines().any(|line| line.contains(&name) && line.contains("Running")).then_some(())
        })
    });
    assert_eq!(node.running(&unmirrored), Some(container));
}

#[test]
fn cluster_life_pod_of_the_manifest_url_has_a_mirror() {
    let server = Server::start();
    let url = format!("--manifest-url={}", server.url());
    let Some(mut node) = Node::new(&[&url, "--http-check-frequency=1s"], false) else { return };
    // Before it has spoken, no node is Ready.
    server.say(&fixed(&node, "u"));
    node.begin();
    node.wait_node_ready();
    let name = format!("u-{}", node.name);
    let mirror = node.wait_api_ready(&name);
    assert_eq!(mirror["metadata"]["annotations"]["kubernetes.io/config.source"], "http");
    node.cluster.delete(&node.one("pods", &name), Some(0));
    let again = node.wait_api(&name, "another mirror", |pod| is_ready(pod) && uid(pod) != uid(&mirror));
    assert_eq!(id(&again, "app"), id(&mirror, "app"));
    server.say(&json!({"apiVersion": "v1", "kind": "PodList", "items": []}));
    node.wait_api(&name, "gone", Value::is_null);
    until("nothing left in Docker", || node.containers_of_node().is_empty().then_some(()));
}
