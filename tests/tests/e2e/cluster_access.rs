//! Who gets into the node's server, as the real API server has it: rights given and taken, tokens taken; and what the log
//! tells of all that: no secret.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
};

use serde_json::{Value, json};

use crate::bed::{callers, cluster::until, kubectl::Kubectl, node::Node, pods::sleeper};

/// Short times of remembering.
const FLAGS: &[&str] = &[
    "--authentication-token-webhook-cache-ttl=1s",
    "--authorization-webhook-cache-authorized-ttl=1s",
    "--authorization-webhook-cache-unauthorized-ttl=1s",
];

/// What kubectl makes of a 401.
const UNAUTHORIZED: &str = "You must be logged in to the server";

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// Lets somebody read these subresources of that node.
fn grant(node: &Node, role: &str, subresources: &[&str], subject: &Value) {
    let rules = json!([{"apiGroups": [""], "resources": subresources, "resourceNames": [node.name], "verbs": ["get"]}]);
    node.cluster.create(&format!("{RBAC}/clusterroles"), &json!({"metadata": {"name": role}, "rules": rules}));
    let binding = json!({
        "metadata": {"name": role},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [subject],
    });
    node.cluster.create(&format!("{RBAC}/clusterrolebindings"), &binding);
}

/// What the node answers to a token.
fn ask(node: &Node, token: &str, path: &str) -> String {
    let server = format!("--server=https://{}:{}", node.cluster.address, node.port);
    let token = format!("--token={token}");
    let config = node.folder.join("none.kubeconfig");
    fs::write(&config, "{}").unwrap();
    let config = format!("--kubeconfig={}", config.display());
    let output =
        node.cluster.try_kubectl(&[&config, &server, "--insecure-skip-tls-verify", &token, "get", "--raw", path]);
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn wait(node: &Node, token: &str, path: &str, part: &str) {
    let mut last = String::new();
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        until(part, || {
            last = ask(node, token, path);
            last.contains(part).then_some(())
        });
    }));
    assert!(seen.is_ok(), "{path}: never {part:?}, but {last:?}\n{}", node.log());
}

#[test]
fn cluster_access_follows_rights_and_tokens() {
    let Some(node) = Node::start_with(FLAGS, false) else { return };
    let cluster = &node.cluster;
    cluster.create(&node.all("serviceaccounts"), &json!({"metadata": {"name": "scraper"}}));
    let token = cluster.kubectl(&["--namespace", &node.name, "create", "token", "scraper"]).trim().to_owned();
    wait(&node, "nonsense", "/metrics", UNAUTHORIZED);
    let user = format!("user=system:serviceaccount:{}:scraper", node.name);
    let refused = |path: &str, subresources: &str| {
        let words = format!("Forbidden ({user}, verb=get, resource=nodes, subresource(s)=[{subresources}])");
        wait(&node, &token, path, &words);
    };
    refused("/metrics", "metrics");
    refused("/pods", "pods proxy");
    refused("/containerLogs/a/b/c", "proxy");

    let role = format!("scraper-{}", node.name);
    let scraper = json!({"kind": "ServiceAccount", "name": "scraper", "namespace": node.name});
    grant(&node, &role, &["nodes/metrics", "nodes/pods"], &scraper);
    wait(&node, &token, "/metrics", "process_cpu_seconds_total");
    wait(&node, &token, "/pods", "PodList");
    refused("/containerLogs/a/b/c", "proxy");

    // Rights taken, then the token.
    cluster.delete(&format!("{RBAC}/clusterrolebindings/{role}"), None);
    refused("/metrics", "metrics");
    cluster.delete(&format!("{RBAC}/clusterroles/{role}"), None);
    cluster.delete(&node.one("serviceaccounts", "scraper"), None);
    wait(&node, &token, "/metrics", UNAUTHORIZED);
}

/// Where callers without credentials are let in to be judged.
#[test]
fn cluster_access_of_nobody_is_what_rights_say() {
    let flags = [FLAGS, &["--anonymous-auth=true"]].concat();
    let Some(mut node) = Node::new(&flags, false) else { return };
    let nobody = callers::certified(&mut node).connector(None);
    node.begin();
    node.wait_node_ready();
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, node.port));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answers = |path: &str, code: u16, part: &str| {
        let (begin, mut last) = (format!("HTTP/1.1 {code} "), String::new());
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until(part, || {
                last = runtime.block_on(callers::get(&nobody, server, path)).unwrap_or_else(|error| error.to_string());
                (last.starts_with(&begin) && last.contains(part)).then_some(())
            });
        }));
        assert!(seen.is_ok(), "{path}: never {code} with {part:?}, but {last:?}\n{}", node.log());
    };
    let refused = |path: &str, subresources: &str| {
        let who = "user=system:anonymous, verb=get, resource=nodes";
        answers(path, 403, &format!("\r\n\r\nForbidden ({who}, subresource(s)=[{subresources}])\n"));
    };
    refused("/metrics", "metrics");
    refused("/pods", "pods proxy");
    wait(&node, "nonsense", "/metrics", UNAUTHORIZED);
    let role = format!("nobody-{}", node.name);
    let subject = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:anonymous"});
    grant(&node, &role, &["nodes/metrics"], &subject);
    answers("/metrics", 200, "process_cpu_seconds_total");
    refused("/pods", "pods proxy");
    wait(&node, "nonsense", "/metrics", UNAUTHORIZED);
    for kind in ["clusterrolebindings", "clusterroles"] {
        node.cluster.delete(&format!("{RBAC}/{kind}/{role}"), None);
    }
    refused("/metrics", "metrics");
}

#[test]
fn cluster_access_while_the_api_server_is_away_is_for_who_was_known() {
    // A right that is not there yet is asked for again soon.
    let flags = ["--authorization-webhook-cache-unauthorized-ttl=1s"];
    let Some(node) = Node::start_with(&flags, true) else { return };
    node.cluster.create(&node.all("serviceaccounts"), &json!({"metadata": {"name": "scraper"}}));
    let token = || node.cluster.kubectl(&["--namespace", &node.name, "create", "token", "scraper"]).trim().to_owned();
    let (known, late) = (token(), token());
    assert_ne!(known, late);
    let role = format!("scraper-{}", node.name);
    let scraper = json!({"kind": "ServiceAccount", "name": "scraper", "namespace": node.name});
    grant(&node, &role, &["nodes/metrics", "nodes/stats"], &scraper);
    wait(&node, &known, "/metrics", "process_cpu_seconds_total");
    let gate = node.gate.as_ref().unwrap();
    gate.shut();
    let user = format!("system:serviceaccount:{}:scraper", node.name);
    let unknown_right = format!("Authorization error (user={user}, verb=get, resource=nodes, subresource=stats)");
    for (token, path, part) in [
        (&late, "/metrics", UNAUTHORIZED),
        (&known, "/metrics", "process_cpu_seconds_total"),
        (&known, "/stats/summary", unknown_right.as_str()),
    ] {
        let answer = ask(&node, token, path);
        assert!(answer.contains(part), "{path}: no {part:?} in {answer:?}\n{}", node.log());
    }
    gate.open();
    wait(&node, &late, "/metrics", "process_cpu_seconds_total");
    wait(&node, &known, "/stats/summary", "nodeName");
    for kind in ["clusterrolebindings", "clusterroles"] {
        node.cluster.delete(&format!("{RBAC}/{kind}/{role}"), None);
    }
}

#[test]
fn cluster_access_tells_no_secret_to_the_log() {
    let Some(node) = Node::start() else { return };
    let kubectl = Kubectl::new(&node);
    node.bind(&sleeper("a"));
    node.wait_api_ready("a");
    let secrets = ["argument-of-an-exec", "token-of-nobody", "input-of-an-exec", "query-of-a-run"];
    for code in ["0", "3"] {
        kubectl.run(
            &["exec", "-i", "a", "--", "sh", "-c", &format!("cat; exit {code}"), secrets[0]],
            secrets[2].as_bytes(),
        );
        kubectl.run(&["exec", "a", "--", "/no/such/program", secrets[0]], b"");
    }
    ask(&node, secrets[1], "/pods");
    let proxy = format!("/api/v1/nodes/{}/proxy", node.name);
    let run = format!("{proxy}/run/{}/a/app?cmd=false+{}", node.name, secrets[3]);
    kubectl.run(&["create", "--raw", &run, "-f", "-"], b"{}");
    kubectl.run(&["exec", "a", "-c", "absent", "--", secrets[0]], b"");
    // All of it was answered: something later is in the log, or nothing at all is.
    let configz: Value = serde_json::from_str(&kubectl.said(&["get", "--raw", &format!("{proxy}/configz")])).unwrap();
    assert!(configz["kubeletconfig"].is_object());
    let log = fs::read_to_string(node.folder.join("log")).unwrap();
    assert!(!log.is_empty());
    for secret in secrets {
        let line = log.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{line:?}");
    }
}

#[test]
fn cluster_access_the_api_server_admits_as_others_do() {
    let Some(node) = Node::new(&[], false) else { return };
    // Accounts and their tokens are put into pods, which much of what is tried here lives on.
    let pods = format!("{}?dryRun=All", node.all("pods"));
    let made = node.cluster.create(&pods, &sleeper("plain"));
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    assert!(made["spec"]["volumes"].to_string().contains("kube-api-access-"), "{}", made["spec"]["volumes"]);
    let enforce = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    node.cluster.patch(&format!("/api/v1/namespaces/{}", node.name), &enforce);
    let answer = node.cluster.call("POST", &pods, "application/json", Some(&sleeper("refused")));
    assert!(answer.status == 403 && answer.text().contains("violates PodSecurity"), "{}", answer.text());
}
