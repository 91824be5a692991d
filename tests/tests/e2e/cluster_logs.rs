//! `kubectl logs` where it is hard: through rotations, from a moment on, one stream of the two, over a restart.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    sync::mpsc,
    thread,
};

use serde_json::{Value, json};

use crate::bed::{
    cluster::{LONG, until},
    kubectl::Kubectl,
    limit,
    node::{MOMENT, Node},
    pods::{SLEEP, container, job, pod, restarts, status, with},
    process::Ending,
};

/// A kubectl that follows a pod's log, and its lines; they end with it.
fn follow(kubectl: &Kubectl<'_>, pod: &str) -> (Ending, mpsc::Receiver<String>) {
    let mut follower = Ending(kubectl.command(&["logs", "-f", pod]).stdout(Stdio::piped()).spawn().unwrap());
    let (reader, (sender, told)) = (BufReader::new(follower.0.stdout.take().unwrap()), mpsc::channel());
    thread::spawn(move || reader.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    (follower, told)
}

/// The numbers of lines `line 7 …`.
fn numbers(text: &str) -> Vec<u32> {
    text.lines().filter_map(|line| line.split(' ').nth(1)?.parse().ok()).collect()
}

#[test]
fn cluster_logs_through_rotation() {
    let Some(node) = Node::start_with(&["--container-log-max-size=16Ki", "--container-log-max-files=3"], false) else {
        return;
    };
    let kubectl = Kubectl::new(&node);
    // 1,500 lines of 100 bytes and more: ten files' worth, at a pace that a reader can keep, once it reads.
    let script = "i=0; pad=$(printf '%080d' 0); while [ $i -lt 1500 ]; do echo \"line $i $pad\"; i=$((i+1)); \
                  until [ -e /tmp/read ]; do sleep 0.1; done; [ $((i % 20)) -gt 0 ] || sleep 0.1; done";
    node.bind(&job("a", "Never", script));
    node.wait_api("a", "begun", |pod| status(pod, "app")["state"]["running"].is_object());
    let (_follower, told) = follow(&kubectl, "a");
    let mut followed = node.told(|| told.recv_timeout(limit(LONG)).expect("the first line"));
    assert_eq!(node.sh("a", "touch /tmp/read").0, 0);
    while let Ok(line) = told.recv_timeout(limit(LONG)) {
        followed.extend(["\n", line.as_str()]);
    }
    let mut followed = numbers(&followed);
    if node.docker.is_20() {
        // That one tells a few lines again when it goes on to the next file (moby's followLogs before 23).
        followed.sort_unstable();
        followed.dedup();
    }
    assert_eq!(followed, (0..1500).collect::<Vec<_>>());

    // What is left: the newest files, without a gap.
    let left = numbers(&kubectl.said(&["logs", "a"]));
    let first = left[0];
    assert!(first > 0, "nothing was rotated away");
    assert_eq!(left, (first..1500).collect::<Vec<_>>());
    assert_eq!(numbers(&kubectl.said(&["logs", "a", "--tail=200"])), (1300..1500).collect::<Vec<_>>());
    if let Some(old) = Kubectl::old(&node) {
        assert_eq!(numbers(&old.said(&["logs", "a", "--tail=3"])), [1497, 1498, 1499]);
    }
}

#[test]
fn cluster_logs_since_and_streams() {
    let Some(node) = Node::start() else { return };
    let kubectl = Kubectl::new(&node);
    // The API server hands moments on in whole seconds, and a line has that in which Docker came to read it.
    let script = format!("for i in 1 2 3 4; do echo line $i; echo error $i >&2; sleep 2.1; done; {SLEEP}");
    node.bind(&pod("a", json!([container("app", &script)]), json!({})));
    node.wait_api_ready("a");
    let all = node.told(|| {
        until("all is logged", || {
            let all = kubectl.said(&["logs", "a", "--timestamps"]);
            (all.contains("line 4") && all.contains("error 4")).then_some(all)
        })
    });
    let third = all.lines().find(|line| line.ends_with("line 3")).unwrap_or_else(|| panic!("{all}"));
    let (time, _) = third.split_once(' ').unwrap();
    let since = kubectl.said(&["logs", "a", &format!("--since-time={time}")]);
    assert!(!since.contains("line 2") && since.contains("line 3") && since.contains("line 4"), "{time}: {since}");

    // The API server passes `stream` on only with a gate of its own; the node knows it.
    let path = format!("/api/v1/nodes/{0}/proxy/containerLogs/{0}/a/app", node.name);
    let stream = |name: &str| kubectl.said(&["get", "--raw", &format!("{path}?stream={name}")]);
    assert_eq!(stream("Stdout"), "line 1\nline 2\nline 3\nline 4\n");
    assert_eq!(stream("Stderr"), "error 1\nerror 2\nerror 3\nerror 4\n");
    assert_eq!(stream("All").lines().count(), 8);
}

/// As the kubelet has it: one run of the container is followed, to its end.
#[test]
fn cluster_logs_followed_over_a_restart() {
    let Some(node) = Node::start() else { return };
    let kubectl = Kubectl::new(&node);
    let script = "n=$(($(cat /v/runs 2>/dev/null) + 1)); echo $n > /v/runs; echo run $n; \
                  until [ -e /v/end$n ]; do sleep 0.1; done; echo end of $n; exit 3";
    let app = with(container("app", script), json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    node.bind(&pod("a", json!([app]), json!({"volumes": [{"name": "v", "emptyDir": {}}]})));
    node.wait_api("a", "begun", |pod| status(pod, "app")["state"]["running"].is_object());
    let (mut follower, told) = follow(&kubectl, "a");
    assert_eq!(node.told(|| told.recv_timeout(limit(LONG)).expect("the first line")), "run 1");
    assert_eq!(told.recv_timeout(MOMENT), Err(mpsc::RecvTimeoutError::Timeout), "it runs, and says nothing");
    assert_eq!(node.sh("a", "touch /v/end1").0, 0);
    let mut rest = Vec::new();
    while let Ok(line) = told.recv_timeout(limit(LONG)) {
        rest.push(line);
    }
    assert_eq!(rest, ["end of 1"]);
    let ended = until("kubectl ends", || follower.0.try_wait().unwrap());
    assert!(ended.success(), "{ended}");
    let again = |pod: &Value| restarts(pod, "app") == 1 && status(pod, "app")["state"]["running"].is_object();
    node.wait_api("a", "restarted", again);
    assert_eq!(kubectl.said(&["logs", "--previous", "a"]), "run 1\nend of 1\n");
    node.told(|| until("the second run's log", || kubectl.said(&["logs", "a"]).eq("run 2\n").then_some(())));
}
