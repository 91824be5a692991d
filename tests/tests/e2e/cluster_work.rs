//! Workloads by their controllers, as everyday life has them.

use serde_json::{Value, json};

use crate::bed::{
    cluster::until,
    docker::image,
    node::Node,
    pods::{SLEEP, container, is_ready, uid, with},
};

/// A pod template for this node.
fn template(node: &Node, label: &str, containers: Value, spec: Value) -> Value {
    let base = json!({"containers": containers, "terminationGracePeriodSeconds": 2});
    json!({"metadata": {"labels": {"app": label}}, "spec": with(with(base, node.selector()), spec)})
}

/// A workload whose pods have the label `app` of its name.
fn workload(kind: &str, name: &str, spec: Value, template: Value) -> Value {
    let base = json!({"selector": {"matchLabels": {"app": name}}, "template": template});
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": with(base, spec)})
}

fn pods_of(node: &Node, label: &str) -> Vec<Value> {
    node.cluster.list(&format!("{}?labelSelector=app%3D{label}", node.all("pods")))
}

#[test]
fn cluster_work_deployment_rolls_out_and_back() {
    let Some(node) = Node::start() else { return };
    let other = std::env::var("LONGSHORE_TEST_EXAMPLE_IMAGE").unwrap_or_else(|_| image());
    let containers = json!([container("app", SLEEP)]);
    let made = workload("Deployment", "web", json!({"replicas": 10}), template(&node, "web", containers, json!({})));
    node.cluster.create(&node.all("apps/deployments"), &made);
    let path = node.one("apps/deployments", "web");
    let rolled = |what: &str, image: &str| {
        node.told(|| {
            node.cluster.wait(&path, what, |web| {
                let told = &web["status"];
                told["observedGeneration"] == web["metadata"]["generation"]
                    && ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"]
                        .iter()
                        .all(|it| told[*it] == 10)
                    && told["unavailableReplicas"].is_null()
            });
            let pods =
                until("only the new pods are left", || Some(pods_of(&node, "web")).filter(|all| all.len() == 10));
            for pod in pods {
                assert_eq!(pod["spec"]["containers"][0]["image"], image);
                assert_eq!(pod["spec"]["nodeName"], node.name.as_str());
            }
        });
    };
    rolled("ten pods", &image());
    node.cluster.kubectl(&["set", "image", "-n", &node.name, "deployment/web", &format!("app={other}")]);
    rolled("rolled out", &other);
    node.cluster.kubectl(&["rollout", "undo", "-n", &node.name, "deployment/web"]);
    rolled("rolled back", &image());
    node.cluster.kubectl(&["scale", "-n", &node.name, "deployment/web", "--replicas=0"]);
    until("scaled to none", || pods_of(&node, "web").is_empty().then_some(()));
    node.told(|| until("nothing left in Docker", || node.containers_of_node().is_empty().then_some(())));
}

#[test]
fn cluster_work_job_is_tried_again() {
    let Some(node) = Node::start() else { return };
    // The third pod finds what the first two left.
    let script = "echo x >> /shared/tries; test $(wc -l < /shared/tries) -ge 3";
    let app = with(container("app", script), json!({"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}));
    let volume =
        json!({"name": "shared", "hostPath": {"path": node.folder.join("shared"), "type": "DirectoryOrCreate"}});
    let spec = json!({"restartPolicy": "Never", "volumes": [volume]});
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"},
        "spec": {"backoffLimit": 4, "template": template(&node, "j", json!([app]), spec)}});
    node.cluster.create(&node.all("batch/jobs"), &job);
    let ended = node
        .told(|| node.cluster.wait(&node.one("batch/jobs", "j"), "complete", |job| job["status"]["succeeded"] == 1));
    assert_eq!(ended["status"]["failed"], 2, "{}", ended["status"]);
}

#[test]
fn cluster_work_daemon_set() {
    let Some(node) = Node::start() else { return };
    let made = workload("DaemonSet", "d", json!({}), template(&node, "d", json!([container("app", SLEEP)]), json!({})));
    node.cluster.create(&node.all("apps/daemonsets"), &made);
    let path = node.one("apps/daemonsets", "d");
    node.told(|| node.cluster.wait(&path, "ready", |set| set["status"]["numberReady"] == 1));
    // A daemon comes to a node that is cordoned, too.
    node.cluster.kubectl(&["cordon", &node.name]);
    let first = pods_of(&node, "d").remove(0);
    node.cluster.delete(&node.one("pods", first["metadata"]["name"].as_str().unwrap()), None);
    node.told(|| {
        until("another daemon is Ready", || {
            pods_of(&node, "d").into_iter().find(|pod| is_ready(pod) && uid(pod) != uid(&first))
        })
    });
}

#[test]
fn cluster_work_stateful_set_has_names() {
    let Some(node) = Node::start() else { return };
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "peers"},
        "spec": {"clusterIP": "None", "selector": {"app": "db"}, "ports": [{"port": 80}]}});
    node.cluster.create(&node.all("services"), &service);
    let spec = json!({"serviceName": "peers", "replicas": 2});
    let made = workload("StatefulSet", "db", spec, template(&node, "db", json!([container("app", SLEEP)]), json!({})));
    node.cluster.create(&node.all("apps/statefulsets"), &made);
    let path = node.one("apps/statefulsets", "db");
    node.told(|| node.cluster.wait(&path, "ready", |set| set["status"]["readyReplicas"] == 2));
    for name in ["db-0", "db-1"] {
        let (_, text) = node.sh(name, "hostname; hostname -f; cat /etc/hosts");
        let whole = format!("{name}.peers.{}.svc.cluster.local", node.name);
        assert!(text.starts_with(&format!("{name}\n")) && text.contains(&whole), "{text}");
    }
    let first = node.wait_api_ready("db-0");
    node.cluster.delete(&node.one("pods", "db-0"), None);
    node.wait_api("db-0", "another of the same name", |pod| is_ready(pod) && uid(pod) != uid(&first));
}

#[test]
fn cluster_work_cordon_and_taint() {
    let Some(node) = Node::start() else { return };
    let tolerant = json!({"tolerations": [{"key": "example.com/out", "operator": "Exists", "effect": "NoExecute"}]});
    node.bind(&crate::bed::pods::sleeper("plain"));
    node.bind(&crate::bed::pods::pod("tolerant", json!([container("app", SLEEP)]), tolerant));
    let plain = node.wait_api_ready("plain");
    let stays = node.wait_api_ready("tolerant");
    node.cluster.kubectl(&["cordon", &node.name]);
    let waits = with(crate::bed::pods::sleeper("waits"), json!({"spec": node.selector()}));
    node.cluster.create(&node.all("pods"), &waits);
    node.wait_api("waits", "unschedulable", |pod| pod["status"]["conditions"].to_string().contains("Unschedulable"));
    node.cluster.kubectl(&["uncordon", &node.name]);
    node.wait_api_ready("waits");
    node.cluster.kubectl(&["taint", "node", &node.name, "example.com/out=1:NoExecute"]);
    node.wait_api_gone(&plain);
    let now = node.wait_api_ready("tolerant");
    assert_eq!(uid(&now), uid(&stays));
    // One that is bound past the scheduler, and does not tolerate it, is refused by the node, unless the controller that evicts
    // is first.
    let refused = (0..10).find_map(|number| {
        let name = format!("late{number}");
        node.bind(&crate::bed::pods::sleeper(&name));
        node.told(|| {
            until("refused or evicted", || {
                let told = node.events_of(&name).into_iter().find(|event| event["reason"] == "TaintToleration");
                (told.is_some() || node.cluster.get(&node.one("pods", &name)).is_none()).then_some(told)
            })
        })
    });
    assert_eq!(refused.expect("one is refused by the node")["source"]["component"], "kubelet");
}
