//! What people type: kubectl's logs, exec, attach, cp, port-forward, debug and top, through the API server.

use std::{fs, os::unix::fs::PermissionsExt, process::Stdio, sync::Arc, thread};

use serde_json::{Value, json};

use crate::bed::{
    cluster::until,
    docker::image,
    inside,
    kubectl::Kubectl,
    node::Node,
    pods::{SLEEP, busy, container, id, is_ready, job, pod, restarts, sleeper, status, with},
    process::Ending,
};

/// Bytes that no compression or line ending makes look right by chance.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[test]
fn cluster_kubectl_logs() {
    let Some(node) = Node::start() else { return };
    let kubectl = Kubectl::new(&node);
    let first = container("setup", "echo set up");
    let sidecar = with(container("side", &format!("echo beside; {SLEEP}")), json!({"restartPolicy": "Always"}));
    let script = format!("for i in 1 2 3 4 5; do echo line $i; done; echo oops >&2; {SLEEP}");
    node.bind(&pod("a", json!([container("app", &script)]), json!({"initContainers": [first, sidecar]})));
    node.wait_api_ready("a");
    // Running, it may not have said all yet.
    let all = node.told(|| {
        until("all is logged", || {
            let all = kubectl.said(&["logs", "a"]);
            (all.contains("line 5\n") && all.contains("oops\n")).then_some(all)
        })
    });
    assert_eq!(all.lines().filter(|line| line.starts_with("line ")).count(), 5, "{all}");
    assert!(all.contains("oops\n"), "{all}");
    assert_eq!(kubectl.said(&["logs", "a", "-c", "setup"]), "set up\n");
    assert_eq!(kubectl.said(&["logs", "a", "-c", "side"]), "beside\n");
    assert_eq!(kubectl.said(&["logs", "a", "--tail=2"]).lines().count(), 2);
    assert_eq!(kubectl.said(&["logs", "a", "--limit-bytes=6"]), all[..6]);
    let stamped = kubectl.said(&["logs", "a", "--timestamps", "--tail=1"]);
    let (time, _) = stamped.split_once(' ').expect("a time and a line");
    assert!(time.ends_with('Z') && time.contains('T'), "{stamped}");
    assert_eq!(kubectl.said(&["logs", "a", "--since=1h"]), all);
    let (code, _, err) = kubectl.run(&["logs", "a", "-c", "none"], b"");
    assert!(code != 0 && err.contains("none"), "{err}");

    // Followed to its end, across nothing but its own lines.
    node.bind(&job("b", "Never", "for i in 1 2 3; do echo $i; sleep 0.3; done"));
    node.wait_api("b", "begun", |pod| !status(pod, "app")["containerID"].is_null());
    assert_eq!(kubectl.said(&["logs", "-f", "b"]), "1\n2\n3\n");

    // The one before, and the one now.
    node.bind(&job("c", "Always", "echo $HOSTNAME began; sleep 1; exit 3"));
    node.wait_api("c", "restarted", |pod| restarts(pod, "app") >= 1);
    assert_eq!(kubectl.said(&["logs", "--previous", "c"]), "c began\n");
}

#[test]
fn cluster_kubectl_exec() {
    let Some(node) = Node::start() else { return };
    let kubectl = Kubectl::new(&node);
    node.bind(&sleeper("a"));
    node.wait_api_ready("a");
    for (script, code) in [("true", 0), ("exit 1", 1), ("exit 126", 126), ("exit 127", 127), ("kill -9 $$", 137)] {
        let (exited, _, err) = kubectl.run(&["exec", "a", "--", "sh", "-c", script], b"");
        assert_eq!(exited, code, "{script}: {err}");
    }
    // What the runtime says of it is the command's output.
    let (code, out, err) = kubectl.run(&["exec", "a", "--", "/no/such/program"], b"");
    let shown = format!("{}{err}", String::from_utf8_lossy(&out));
    let absent = if node.docker.is_20() { 126 } else { 127 };
    assert!(code == absent && shown.contains("/no/such/program"), "{code} {shown}");
    let (code, out, err) = kubectl.run(&["exec", "a", "--", "/etc"], b"");
    assert_eq!(code, 126, "{}{err}", String::from_utf8_lossy(&out));
    let (code, out, err) = kubectl.run(&["exec", "a", "--", "sh", "-c", "echo out; echo err >&2"], b"");
    assert_eq!((code, out.as_slice()), (0, b"out\n".as_slice()));
    assert!(err.contains("err\n"), "{err}");

    // Nothing lost or changed, there and back.
    let bytes = noise(100 << 20);
    let (code, back, err) = kubectl.run(&["exec", "-i", "a", "--", "cat"], &bytes);
    assert_eq!(code, 0, "{err}");
    assert!(back == bytes, "{} of {} bytes came back, or others", back.len(), bytes.len());

    // A client that goes leaves nothing behind.
    let client = kubectl.command(&["exec", "-i", "a", "--", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let client = Ending(client);
    node.told(|| until("cat runs", || node.sh("a", "pidof cat").0.eq(&0).then_some(())));
    drop(client);
    node.told(|| until("cat has ended", || node.sh("a", "pidof cat").0.ne(&0).then_some(())));
}

#[test]
fn cluster_kubectl_attach() {
    let Some(node) = Node::start() else { return };
    let kubectl = Kubectl::new(&node);
    let script = "while read line; do echo got $line; done; echo ended; sleep 1";
    let app = with(container("app", script), json!({"stdin": true, "stdinOnce": true}));
    node.bind(&pod("a", json!([app]), json!({"restartPolicy": "Never"})));
    node.wait_api_ready("a");
    let (code, out, err) = kubectl.run(&["attach", "-i", "a"], b"one\ntwo\n");
    assert_eq!(code, 0, "{err}");
    assert_eq!(String::from_utf8_lossy(&out), "got one\ngot two\nended\n");
}

#[test]
fn cluster_kubectl_cp() {
    let Some(node) = Node::start() else { return };
    let kubectl = Kubectl::new(&node);
    node.bind(&sleeper("a"));
    node.wait_api_ready("a");
    let tree = node.folder.join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    let bytes = noise(3 << 20);
    fs::write(tree.join("sub/big"), &bytes).unwrap();
    fs::write(tree.join("run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(tree.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("sub/big", tree.join("link")).unwrap();
    kubectl.said(&["cp", &tree.display().to_string(), "a:/tmp/tree"]);
    let (code, seen) = node.sh("a", "stat -c %a /tmp/tree/run; readlink /tmp/tree/link; wc -c < /tmp/tree/sub/big");
    assert_eq!((code, seen.as_str()), (0, format!("755\nsub/big\n{}\n", bytes.len()).as_str()));
    let back = node.folder.join("back");
    kubectl.said(&["cp", "a:/tmp/tree", &back.display().to_string()]);
    assert!(fs::read(back.join("sub/big")).unwrap() == bytes);
    assert_eq!(fs::read(back.join("run")).unwrap(), b"#!/bin/sh\n");

    // Back, kubectl leaves links out and modes to the umask; what it says to use instead keeps them.
    let (code, archive, err) = kubectl.run(&["exec", "a", "--", "tar", "cf", "-", "-C", "/tmp", "tree"], b"");
    assert_eq!(code, 0, "{err}");
    let whole = node.folder.join("whole");
    tar::Archive::new(archive.as_slice()).unpack(&whole).unwrap();
    let whole = whole.join("tree");
    assert_eq!(fs::read_link(whole.join("link")).unwrap().to_str(), Some("sub/big"));
    assert_eq!(fs::metadata(whole.join("run")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert!(fs::read(whole.join("link")).unwrap() == bytes);
}

#[test]
fn cluster_kubectl_port_forward() {
    let Some(node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    node.wait_api_ready("a");
    // Only on the pod's own loopback: nobody else reaches them.
    inside::listen(&node, "a", "127.0.0.1:8080", inside::hello);
    inside::listen(&node, "a", "[::1]:8081", inside::hello);
    let kubectl = Kubectl::new(&node);
    let forward = Arc::new(kubectl.forward("a", 8080));
    let many: Vec<_> = (0..200)
        .map(|_| {
            let forward = forward.clone();
            thread::spawn(move || forward.get("/"))
        })
        .collect();
    for answer in many.into_iter().map(|one| one.join().unwrap()) {
        let answer = answer.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let good = answer.as_ref().is_ok_and(|answer| answer.ends_with("hello\n"));
        assert!(good, "{answer:?}; {}", forward.complaints());
    }
    let big = forward.get(&format!("/{}", 100 << 20)).unwrap();
    assert!(big.len() > 100 << 20, "{} bytes of 100 MiB", big.len());
    let answer = kubectl.forward("a", 8081).get("/").unwrap();
    assert!(answer.ends_with(b"hello\n"), "{}", String::from_utf8_lossy(&answer));
}

/// What is forwarded is the pod's network, whichever of its containers runs at the moment.
#[test]
fn cluster_kubectl_port_forward_outlasts_a_container() {
    let Some(node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    let before = node.wait_api_ready("a");
    inside::listen(&node, "a", "127.0.0.1:8080", inside::hello);
    let kubectl = Kubectl::new(&node);
    let forward = kubectl.forward("a", 8080);
    let get = || forward.get("/").map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(get().unwrap().ends_with("hello\n"));
    node.docker.kill(&id(&before, "app"), "KILL");
    node.wait_api("a", "restarted", |pod| restarts(pod, "app") >= 1 && is_ready(pod));
    let answer = get();
    assert!(answer.as_ref().is_ok_and(|answer| answer.ends_with("hello\n")), "{answer:?}; {}", forward.complaints());
}

#[test]
fn cluster_kubectl_streams_come_as_the_api_server_sends_them() {
    let Some(node) = Node::start_with(&["-v=4"], false) else { return };
    let kubectl = Kubectl::new(&node);
    node.bind(&sleeper("a"));
    node.wait_api_ready("a");
    kubectl.said(&["exec", "a", "--", "true"]);
    inside::listen(&node, "a", "127.0.0.1:8080", inside::hello);
    assert!(kubectl.forward("a", 8080).get("/").unwrap().ends_with(b"hello\n"));
    let protocol = |what: &str| {
        let log = fs::read_to_string(node.folder.join("log")).unwrap();
        let line = log.lines().rfind(|line| line.contains(what)).unwrap_or_else(|| panic!("no {what:?} in {log}"));
        line.split_once("protocol=").unwrap().1.to_owned()
    };
    let told = (protocol("a stream begins"), protocol("a port-forward begins"));
    // Before 1.36 it turns what kubectl sends into SPDY; from then on it hands it on to nodes that declare to know it.
    let wanted = if node.cluster.minor() < 36 { ("Spdy", "Spdy") } else { ("Channels", "Tunnel") };
    assert!(told.0.starts_with(wanted.0) && told.1.starts_with(wanted.1), "{told:?}");
}

#[test]
fn cluster_kubectl_debug() {
    let Some(node) = Node::start() else { return };
    let kubectl = Kubectl::new(&node);
    node.bind(&sleeper("a"));
    let before = node.wait_api_ready("a");
    let image = image();
    kubectl.said(&[
        "debug",
        "a",
        "--image",
        &image,
        "--image-pull-policy=Never",
        "--target=app",
        "--container=look",
        "--",
        "sh",
        "-c",
        "ps | grep -c 'sleep [1]000000'; sleep 1000",
    ]);
    let now = node.wait_api("a", "the container for debugging runs", |pod| {
        let all = pod["status"]["ephemeralContainerStatuses"].as_array();
        all.is_some_and(|all| all.iter().any(|one| one["name"] == "look" && one["state"]["running"].is_object()))
    });
    node.told(|| until("it has looked", || kubectl.said(&["logs", "a", "-c", "look"]).contains('\n').then_some(())));
    let count: u32 = kubectl.said(&["logs", "a", "-c", "look"]).trim().parse().unwrap();
    assert!(count >= 1, "it must see the processes of its target");
    let of = |pod: &Value| status(pod, "app")["containerID"].clone();
    assert_eq!(of(&now), of(&before));
    assert!(is_ready(&now));
    let (code, out, err) = kubectl.run(&["exec", "a", "-c", "look", "--", "echo", "in"], b"");
    assert_eq!((code, out.as_slice()), (0, b"in\n".as_slice()), "{err}");
}

#[test]
fn cluster_kubectl_is_told_what_the_node_uses() {
    let Some(node) = Node::start() else { return };
    let kubectl = Kubectl::new(&node);
    node.bind(&busy("a"));
    node.wait_api_ready("a");
    let proxy = format!("/api/v1/nodes/{}/proxy", node.name);
    let raw = |path: &str| kubectl.said(&["get", "--raw", &format!("{proxy}{path}")]);
    node.told(|| {
        until("the pod's numbers", || {
            let summary: Value = serde_json::from_str(&raw("/stats/summary")).unwrap();
            let pods = summary["pods"].as_array().unwrap().clone();
            let a = pods.into_iter().find(|pod| pod["podRef"]["name"] == "a")?;
            let busy = a["containers"][0]["cpu"]["usageNanoCores"].as_u64()? > 100_000_000;
            let memory = a["containers"][0]["memory"]["workingSetBytes"].as_u64()? > 0;
            let machine = summary["node"]["memory"]["workingSetBytes"].as_u64()? > 1 << 20;
            (busy && memory && machine && a["network"]["interfaces"].is_array()).then_some(())
        })
    });
    let metrics = raw("/metrics/resource");
    let ours = format!("container_cpu_usage_seconds_total{{container=\"app\",namespace=\"{}\",pod=\"a\"}}", node.name);
    assert!(metrics.contains(&ours), "{metrics}");
    assert!(metrics.contains("node_memory_working_set_bytes "), "{metrics}");
    assert!(raw("/metrics").contains("process_cpu_seconds_total "));
    assert_eq!(raw("/healthz"), "ok");
    let configz: Value = serde_json::from_str(&raw("/configz")).unwrap();
    assert_eq!(configz["kubeletconfig"]["port"], node.port);
    let driver = configz["kubeletconfig"]["cgroupDriver"].as_str();
    assert!(matches!(driver, Some("systemd" | "cgroupfs")), "{driver:?}");
    let running: Value = serde_json::from_str(&raw("/runningpods/")).unwrap();
    assert!(running["items"].to_string().contains("\"a\""), "{running}");
}
