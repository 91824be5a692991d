//! Other clients than the cluster's own kubectl: one of 1.20, which speaks SPDY, and metrics-server.

use std::{
    fs,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::bed::{
    cluster::until,
    inside,
    kubectl::Kubectl,
    node::Node,
    pods::{busy, container, pod, sleeper, with},
    ports::free_port,
    process::Ending,
};

#[test]
fn cluster_clients_old_kubectl() {
    let Some(node) = Node::start() else { return };
    let Some(kubectl) = Kubectl::old(&node) else { return };
    node.bind(&sleeper("a"));
    let talker = with(
        container("app", "while read line; do echo got $line; done; sleep 1"),
        json!({"stdin": true, "stdinOnce": true}),
    );
    node.bind(&pod("b", json!([talker]), json!({"restartPolicy": "Never"})));
    node.wait_api_ready("a");
    node.wait_api_ready("b");
    for (script, code) in [("true", 0), ("exit 3", 3), ("kill -9 $$", 137)] {
        let (exited, _, err) = kubectl.run(&["exec", "a", "--", "sh", "-c", script], b"");
        assert_eq!(exited, code, "{script}: {err}");
    }
    let bytes: Vec<u8> = (0..8_u32 << 18).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    let (code, back, err) = kubectl.run(&["exec", "-i", "a", "--", "cat"], &bytes);
    assert!(code == 0 && back == bytes, "{code}: {} of {} bytes: {err}", back.len(), bytes.len());
    let (code, out, err) = kubectl.run(&["exec", "a", "--", "sh", "-c", "echo out; echo err >&2"], b"");
    assert_eq!((code, out.as_slice(), err.as_str()), (0, b"out\n".as_slice(), "err\n"));

    let (code, out, err) = kubectl.run(&["attach", "-i", "b"], b"one\ntwo\n");
    assert_eq!((code, String::from_utf8_lossy(&out).as_ref()), (0, "got one\ngot two\n"), "{err}");
    assert_eq!(kubectl.said(&["logs", "b"]), "got one\ngot two\n");

    let file = node.folder.join("file");
    fs::write(&file, &bytes).unwrap();
    kubectl.said(&["cp", &file.display().to_string(), "a:/tmp/file"]);
    let back = node.folder.join("back");
    kubectl.said(&["cp", "a:/tmp/file", &back.display().to_string()]);
    assert!(fs::read(back).unwrap() == bytes);

    inside::listen(&node, "a", "127.0.0.1:8080", inside::hello);
    let forward = kubectl.forward("a", 8080);
    for path in ["/", "/5000000", "/"] {
        let answer = forward.get(path).unwrap();
        let whole = answer.ends_with(b"hello\n") || answer.len() > 5_000_000;
        assert!(whole, "{path}: {} bytes; {}", answer.len(), forward.complaints());
    }
}

/// What metrics-server is installed with, and the token that it comes with.
fn account(node: &Node) -> String {
    let cluster = &node.cluster;
    let rules = json!([
        {"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["metrics.k8s.io"], "resources": ["*"], "verbs": ["get", "list", "watch"]},
    ]);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    cluster.create(&node.all("serviceaccounts"), &json!({"metadata": {"name": "metrics-server"}}));
    let role = json!({"metadata": {"name": format!("metrics-{}", node.name)}, "rules": rules});
    cluster.create(&format!("{rbac}/clusterroles"), &role);
    let subject = json!({"kind": "ServiceAccount", "name": "metrics-server", "namespace": node.name});
    for role in [format!("metrics-{}", node.name), "system:auth-delegator".to_owned()] {
        let binding = json!({
            "metadata": {"name": format!("{}-{}", node.name, role.replace(':', "-"))},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [subject],
        });
        cluster.create(&format!("{rbac}/clusterrolebindings"), &binding);
    }
    let reader = json!({
        "metadata": {"name": node.name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "extension-apiserver-authentication-reader"},
        "subjects": [subject],
    });
    cluster.create(&format!("{rbac}/namespaces/kube-system/rolebindings"), &reader);
    cluster.kubectl(&["--namespace", &node.name, "create", "token", "metrics-server"]).trim().to_owned()
}

#[test]
fn cluster_clients_metrics_server() {
    let Some(program) = std::env::var_os("LONGSHORE_TEST_METRICS_SERVER") else {
        crate::bed::skip("LONGSHORE_TEST_METRICS_SERVER is not set: `cargo xtask test` builds it");
        return;
    };
    let Some(node) = Node::start() else { return };
    node.bind(&busy("a"));
    node.wait_api_ready("a");
    let cluster = &node.cluster;
    let token = account(&node);
    let mut config: Value = serde_json::from_slice(&fs::read(&cluster.bootstrap).unwrap()).unwrap();
    config["users"][0]["user"] = json!({"token": token});
    let kubeconfig = node.folder.join("metrics.kubeconfig");
    fs::write(&kubeconfig, config.to_string()).unwrap();
    let port = free_port();
    let log = fs::File::create(node.folder.join("metrics-server")).unwrap();
    let mut server = Command::new(program);
    for flag in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
        server.arg(format!("--{flag}={}", kubeconfig.display()));
    }
    server.arg(format!("--secure-port={port}")).arg(format!("--bind-address={}", cluster.address));
    server.arg(format!("--cert-dir={}", node.folder.join("metrics-pki").display()));
    server.arg(format!("--kubelet-certificate-authority={}", cluster.folder.join("pki/ca.crt").display()));
    server.args(["--kubelet-use-node-status-port", "--kubelet-preferred-address-types=InternalIP"]);
    server.args(["--metric-resolution=10s", "--kubelet-request-timeout=5s"]);
    let _server = Ending(server.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    // A Service by a name that is an address: nothing here routes to those of Services.
    let service =
        json!({"metadata": {"name": "metrics"}, "spec": {"type": "ExternalName", "externalName": cluster.address}});
    cluster.create(&node.all("services"), &service);
    let registration = json!({
        "metadata": {"name": "v1beta1.metrics.k8s.io"},
        "spec": {
            "group": "metrics.k8s.io", "version": "v1beta1", "insecureSkipTLSVerify": true,
            "groupPriorityMinimum": 100, "versionPriority": 100,
            "service": {"name": "metrics", "namespace": node.name, "port": port},
        },
    });
    let services = "/apis/apiregistration.k8s.io/v1/apiservices";
    cluster.create(services, &registration);
    let kubectl = Kubectl::new(&node);
    let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        until("kubectl top shows the pod busy", || {
            let (code, out, _) = kubectl.run(&["top", "pod", "a", "--containers", "--no-headers"], b"");
            let line = String::from_utf8(out).unwrap();
            // "a   app   1000m   0Mi"
            let cpu = line.split_whitespace().nth(2)?.strip_suffix('m')?.parse::<u64>().ok()?;
            (code == 0 && cpu > 100 && line.contains("Mi")).then_some(())
        });
        until("kubectl top shows the node", || {
            let (code, out, _) = kubectl.run(&["top", "node", &node.name, "--no-headers"], b"");
            let line = String::from_utf8(out).unwrap();
            (code == 0 && line.split_whitespace().count() == 5 && !line.contains("unknown")).then_some(())
        });
    }));
    cluster.delete(&format!("{services}/v1beta1.metrics.k8s.io"), None);
    for path in ["clusterroles", "clusterrolebindings", "namespaces/kube-system/rolebindings"] {
        for object in cluster.list(&format!("/apis/rbac.authorization.k8s.io/v1/{path}")) {
            let name = object["metadata"]["name"].as_str().unwrap();
            if name.contains(&node.name) {
                cluster.delete(&format!("/apis/rbac.authorization.k8s.io/v1/{path}/{name}"), None);
            }
        }
    }
    if let Err(panic) = told {
        let log = fs::read_to_string(node.folder.join("metrics-server")).unwrap();
        eprintln!("--- the log of metrics-server:\n{log}\n--- of {}:\n{}", node.name, node.log());
        std::panic::resume_unwind(panic);
    }
}
