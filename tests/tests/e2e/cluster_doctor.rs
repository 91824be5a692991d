//! `longshore doctor`, on a node of a real cluster: both directions, and what it says when something is broken.

use crate::bed::{kubectl::get, node::Node, pods::sleeper, ports::free_port};

/// Whether the doctor is content, and what it prints.
fn doctor(node: &Node) -> (bool, String) {
    let admin = format!("--admin-kubeconfig={}", node.cluster.kubeconfig().display());
    let output = node.cli(&["doctor", &admin]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

fn has(text: &str, outcome: &str, what: &str) -> bool {
    text.lines().any(|line| line.starts_with(&format!("{outcome:<5} {what:<18} ")))
}

#[test]
fn cluster_doctor_goes_there_and_back() {
    let health = free_port();
    let Some(mut node) = Node::start_with(&[&format!("--healthz-port={health}")], false) else { return };
    assert!(get(health, "/healthz").unwrap().ends_with(b"\r\n\r\nok"));
    node.bind(&sleeper("a"));
    node.wait_api_ready("a");
    node.wait_server();
    let (well, text) = node.told(|| doctor(&node));
    assert!(well, "{text}");
    for what in ["agent", "Docker", "API server", "Node", "Lease", "health", "reviews", "way back", "exec"] {
        assert!(has(&text, "ok", what), "{what}:\n{text}");
    }

    node.kill();
    // Without the agent it is told where to look by flags.
    let kubeconfig = format!("--kubeconfig={}", node.folder.join("kubeconfig").display());
    let (name, port) = (format!("--hostname-override={}", node.name), format!("--port={}", node.port));
    let admin = format!("--admin-kubeconfig={}", node.cluster.kubeconfig().display());
    let output = node.cli(&["doctor", &admin, &kubeconfig, &name, &port]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success(), "{text}");
    assert!(has(&text, "FAIL", "agent") && has(&text, "FAIL", "way back"), "{text}");
    assert!(text.contains("is the agent running"), "{text}");
}
