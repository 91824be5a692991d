//! What people type: kubectl's logs, exec, attach, cp, port-forward, debug and top, through the API server.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::bed::{
    cluster::until,
    docker::image,
    node::Node,
    pods::{SLEEP, container, is_ready, job, pod, restarts, sleeper, status, with},
};

/// A process that ends with its test.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// kubectl in the node's namespace.
fn kubectl(node: &Node, arguments: &[&str]) -> Command {
    let mut command = node.cluster.kubectl_command();
    command.arg("--namespace").arg(&node.name).args(arguments);
    command
}

/// Exit code, stdout and stderr of a kubectl that gets `input`.
fn run(node: &Node, arguments: &[&str], input: &[u8]) -> (i32, Vec<u8>, String) {
    let mut child =
        kubectl(node, arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_owned());
    // A process that does not read its input to the end is no error here.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    (output.status.code().unwrap_or(-1), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What a kubectl that must succeed prints.
fn said(node: &Node, arguments: &[&str]) -> String {
    node.told(|| {
        let (code, out, err) = run(node, arguments, b"");
        assert_eq!(code, 0, "kubectl {arguments:?}: {}{err}", String::from_utf8_lossy(&out));
        String::from_utf8(out).unwrap()
    })
}

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
    let first = container("setup", "echo set up");
    let script = format!("for i in 1 2 3 4 5; do echo line $i; done; echo oops >&2; {SLEEP}");
    node.bind(&pod("a", json!([container("app", &script)]), json!({"initContainers": [first]})));
    node.wait_api_ready("a");
    let all = said(&node, &["logs", "a"]);
    assert_eq!(all.lines().filter(|line| line.starts_with("line ")).count(), 5, "{all}");
    assert!(all.contains("oops\n"), "{all}");
    assert_eq!(said(&node, &["logs", "a", "-c", "setup"]), "set up\n");
    assert_eq!(said(&node, &["logs", "a", "--tail=2"]).lines().count(), 2);
    assert_eq!(said(&node, &["logs", "a", "--limit-bytes=6"]), all[..6]);
    let stamped = said(&node, &["logs", "a", "--timestamps", "--tail=1"]);
    let (time, _) = stamped.split_once(' ').expect("a time and a line");
    assert!(time.ends_with('Z') && time.contains('T'), "{stamped}");
    assert_eq!(said(&node, &["logs", "a", "--since=1h"]), all);
    let (code, _, err) = run(&node, &["logs", "a", "-c", "none"], b"");
    assert!(code != 0 && err.contains("none"), "{err}");

    // Followed to its end, across nothing but its own lines.
    node.bind(&job("b", "Never", "for i in 1 2 3; do echo $i; sleep 0.3; done"));
    node.wait_api("b", "begun", |pod| !status(pod, "app")["containerID"].is_null());
    assert_eq!(said(&node, &["logs", "-f", "b"]), "1\n2\n3\n");

    // The one before, and the one now.
    node.bind(&job("c", "Always", "echo $HOSTNAME began; sleep 1; exit 3"));
    node.wait_api("c", "restarted", |pod| restarts(pod, "app") >= 1);
    assert_eq!(said(&node, &["logs", "--previous", "c"]), "c began\n");
}

#[test]
fn cluster_kubectl_exec() {
    let Some(node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    node.wait_api_ready("a");
    for (script, code) in [("true", 0), ("exit 1", 1), ("exit 126", 126), ("exit 127", 127), ("kill -9 $$", 137)] {
        let (exited, _, err) = run(&node, &["exec", "a", "--", "sh", "-c", script], b"");
        assert_eq!(exited, code, "{script}: {err}");
    }
    // What the runtime says of it is the command's output.
    let (code, out, err) = run(&node, &["exec", "a", "--", "/no/such/program"], b"");
    let shown = format!("{}{err}", String::from_utf8_lossy(&out));
    assert!(code == 127 && shown.contains("/no/such/program"), "{code} {shown}");
    let (code, out, err) = run(&node, &["exec", "a", "--", "/etc"], b"");
    assert_eq!(code, 126, "{}{err}", String::from_utf8_lossy(&out));
    let (code, out, err) = run(&node, &["exec", "a", "--", "sh", "-c", "echo out; echo err >&2"], b"");
    assert_eq!((code, out.as_slice()), (0, b"out\n".as_slice()));
    assert!(err.contains("err\n"), "{err}");

    // Nothing lost or changed, there and back.
    let bytes = noise(20 << 20);
    let (code, back, err) = run(&node, &["exec", "-i", "a", "--", "cat"], &bytes);
    assert_eq!(code, 0, "{err}");
    assert!(back == bytes, "{} of {} bytes came back, or others", back.len(), bytes.len());

    // A client that goes leaves nothing behind.
    let client = kubectl(&node, &["exec", "-i", "a", "--", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let client = Ending(client);
    node.told(|| until("cat runs", || node.sh("a", "pidof cat").0.eq(&0).then_some(())));
    drop(client);
    node.told(|| until("cat has ended", || node.sh("a", "pidof cat").0.ne(&0).then_some(())));
}

#[test]
fn cluster_kubectl_exec_on_a_terminal() {
    let Some(node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    node.wait_api_ready("a");
    // `script` gives kubectl a terminal of that size, which the one in the container gets as well.
    let plain = kubectl(&node, &["exec", "-it", "a", "--", "sh", "-c", "tty; stty size; echo done"]);
    let words = std::iter::once(plain.get_program()).chain(plain.get_args());
    let line = words.map(|word| format!("'{}'", word.to_string_lossy())).collect::<Vec<_>>().join(" ");
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &format!("stty rows 37 cols 91; {line}"), "/dev/null"]);
    let output = terminal.stdin(Stdio::null()).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{shown}{}", String::from_utf8_lossy(&output.stderr));
    assert!(shown.contains("/dev/pts/") && shown.contains("37 91") && shown.contains("done"), "{shown}");
}

#[test]
fn cluster_kubectl_attach() {
    let Some(node) = Node::start() else { return };
    let script = "while read line; do echo got $line; done; echo ended; sleep 1";
    let app = with(container("app", script), json!({"stdin": true, "stdinOnce": true}));
    node.bind(&pod("a", json!([app]), json!({"restartPolicy": "Never"})));
    node.wait_api_ready("a");
    let (code, out, err) = run(&node, &["attach", "-i", "a"], b"one\ntwo\n");
    assert_eq!(code, 0, "{err}");
    assert_eq!(String::from_utf8_lossy(&out), "got one\ngot two\nended\n");
}

#[test]
fn cluster_kubectl_cp() {
    let Some(node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    node.wait_api_ready("a");
    let tree = node.folder.join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    let bytes = noise(3 << 20);
    fs::write(tree.join("sub/big"), &bytes).unwrap();
    fs::write(tree.join("run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(tree.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("sub/big", tree.join("link")).unwrap();
    said(&node, &["cp", &tree.display().to_string(), "a:/tmp/tree"]);
    let (code, seen) = node.sh("a", "stat -c %a /tmp/tree/run; readlink /tmp/tree/link; wc -c < /tmp/tree/sub/big");
    assert_eq!((code, seen.as_str()), (0, format!("755\nsub/big\n{}\n", bytes.len()).as_str()));
    let back = node.folder.join("back");
    said(&node, &["cp", "a:/tmp/tree", &back.display().to_string()]);
    assert!(fs::read(back.join("sub/big")).unwrap() == bytes);
    assert_eq!(fs::read(back.join("run")).unwrap(), b"#!/bin/sh\n");
}

#[test]
fn cluster_kubectl_port_forward() {
    let Some(node) = Node::start() else { return };
    // Only on the pod's own loopback: nobody else reaches it.
    let script = "mkdir /www; echo hello > /www/index.html; dd if=/dev/zero of=/www/big bs=1M count=20 2>/dev/null; \
                  httpd -f -p 127.0.0.1:8080 -h /www";
    let probe =
        json!({"readinessProbe": {"exec": {"command": ["wget", "-qO", "/dev/null", "http://127.0.0.1:8080/"]}}});
    node.bind(&pod("a", json!([with(container("app", script), probe)]), json!({})));
    node.wait_api_ready("a");
    let log = fs::File::create(node.folder.join("port-forward")).unwrap();
    let mut client = kubectl(&node, &["port-forward", "a", ":8080"]);
    let mut client = Ending(client.stdout(Stdio::piped()).stderr(log).spawn().unwrap());
    // It ends when nobody reads what it says.
    let mut lines = BufReader::new(client.0.stdout.take().unwrap());
    let mut first = String::new();
    lines.read_line(&mut first).unwrap();
    let talk = thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    let port: u16 = first
        .strip_prefix("Forwarding from 127.0.0.1:")
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("{first:?} names no port"));
    let get = move |path: &str| -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let many: Vec<_> = (0..200).map(|_| thread::spawn(move || get("/"))).collect();
    for answer in many.into_iter().map(|one| one.join().unwrap()) {
        let answer = answer.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let good = answer.as_ref().is_ok_and(|answer| answer.ends_with("hello\n"));
        assert!(good, "{answer:?}; {}", fs::read_to_string(node.folder.join("port-forward")).unwrap());
    }
    let big = get("/big").unwrap();
    assert!(big.len() > 20 << 20, "{} bytes of 20 MiB", big.len());
    drop(client);
    talk.join().unwrap().unwrap();
}

#[test]
fn cluster_kubectl_debug() {
    let Some(node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    let before = node.wait_api_ready("a");
    let image = image();
    said(
        &node,
        &[
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
        ],
    );
    let now = node.wait_api("a", "the container for debugging runs", |pod| {
        let all = pod["status"]["ephemeralContainerStatuses"].as_array();
        all.is_some_and(|all| all.iter().any(|one| one["name"] == "look" && one["state"]["running"].is_object()))
    });
    node.told(|| until("it has looked", || said(&node, &["logs", "a", "-c", "look"]).contains('\n').then_some(())));
    let count: u32 = said(&node, &["logs", "a", "-c", "look"]).trim().parse().unwrap();
    assert!(count >= 1, "it must see the processes of its target");
    let of = |pod: &Value| status(pod, "app")["containerID"].clone();
    assert_eq!(of(&now), of(&before));
    assert!(is_ready(&now));
    let (code, out, err) = run(&node, &["exec", "a", "-c", "look", "--", "echo", "in"], b"");
    assert_eq!((code, out.as_slice()), (0, b"in\n".as_slice()), "{err}");
}

#[test]
fn cluster_kubectl_is_told_what_the_node_uses() {
    let Some(node) = Node::start() else { return };
    node.bind(&pod("a", json!([container("app", "while :; do :; done")]), json!({})));
    node.wait_api_ready("a");
    let proxy = format!("/api/v1/nodes/{}/proxy", node.name);
    let raw = |path: &str| said(&node, &["get", "--raw", &format!("{proxy}{path}")]);
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
    let running: Value = serde_json::from_str(&raw("/runningpods/")).unwrap();
    assert!(running["items"].to_string().contains("\"a\""), "{running}");
}
