//! Where a pod is, and was.

use super::*;

fn told(status: &v1::PodStatus) -> Vec<&str> {
    let all: Vec<&str> = status.pod_ips.iter().flatten().map(|known| known.ip.as_str()).collect();
    assert_eq!(all.first().copied(), status.pod_ip.as_deref());
    all
}

#[test]
fn addresses_and_class() {
    let status = one("Always").status();
    assert_eq!(status.pod_ip.as_deref(), Some("172.17.0.2"));
    assert_eq!(status.host_ip.as_deref(), Some("192.168.1.10"));
    assert_eq!((status.qos_class.as_deref(), status.start_time), (Some("BestEffort"), Some(Time(at(5)))));
    let status = case("{hostNetwork: true, containers: [{name: a, image: i}]}").status();
    assert_eq!(status.pod_ip, status.host_ip);
}

#[test]
fn addresses_outlive_their_sandbox() {
    let mut pod = one("Never").with("a", 0, running(10));
    assert_eq!(told(&pod.status()), ["172.17.0.2"]);
    pod.observed.containers[0].state = ended(0);
    pod.observed.sandboxes[0].state = SandboxState::Exited;
    pod.observed.sandboxes[0].ips = Vec::new();
    pod.look();
    let status = pod.status();
    assert_eq!((status.phase.as_deref(), told(&status)), (Some("Succeeded"), vec!["172.17.0.2"]));
    pod.observed.sandboxes.clear();
    pod.look();
    assert_eq!(told(&pod.status()), ["172.17.0.2"]);
    // They are told, and are not where it can be reached.
    assert_eq!(pod_ips(&pod.pod, &pod.observed, &node()), Vec::<IpAddr>::new());
}

#[test]
fn the_next_sandbox_has_addresses_of_its_own() {
    let mut pod = one("Always").with("a", 0, running(10));
    let mut next = sandbox(1, SandboxState::Running);
    next.ips = Vec::new();
    pod.observed.sandboxes = vec![next];
    pod.look();
    assert_eq!(told(&pod.status()), ["172.17.0.2"], "it has none yet");
    pod.observed.sandboxes[0].ips = vec!["172.17.0.3".parse().unwrap()];
    pod.look();
    assert_eq!(told(&pod.status()), ["172.17.0.3"]);
}

#[test]
fn a_pod_on_the_nodes_network_is_always_where_the_node_is() {
    let mut pod = case("{hostNetwork: true, containers: [{name: a, image: i}]}");
    pod.observed.sandboxes.clear();
    let status = pod.status();
    let of_node: Vec<String> = node().ips.iter().map(ToString::to_string).collect();
    assert_eq!(
        (status.phase.as_deref(), told(&status)),
        (Some("Pending"), of_node.iter().map(String::as_str).collect())
    );
}
