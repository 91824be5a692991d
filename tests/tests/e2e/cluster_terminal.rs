//! People at a terminal: a shell in a container, its window pulled larger, Ctrl-C, attach and detach, a debugger.

use serde_json::{Value, json};

use crate::bed::{
    cluster::until,
    docker::image,
    kubectl::{Kubectl, Terminal},
    node::Node,
    pods::{container, pod, restarts, sleeper, status, with},
};

/// Types a line until what it makes is shown: what it tells about changes a moment after its cause.
fn wait_by_asking(terminal: &mut Terminal, line: &str, part: &str) {
    until(&format!("{part:?} on the terminal, which shows {:?}", terminal.shown()), || {
        terminal.keys(line);
        terminal.shown().contains(part).then_some(())
    });
}

#[test]
fn cluster_terminal_shell() {
    let Some(node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    node.wait_api_ready("a");
    for kubectl in [Some(Kubectl::new(&node)), Kubectl::old(&node)].into_iter().flatten() {
        let mut terminal = kubectl.terminal(&["exec", "-it", "a", "--", "sh"], (37, 91));
        terminal.wait("# ");
        // What is typed comes back as well: the marks are spelt so that only what is made of them matches.
        terminal.keys("tty; stty size; echo do''ne\n");
        terminal.wait("done");
        let shown = terminal.shown();
        assert!(shown.contains("/dev/pts/") && shown.contains("37 91"), "{shown}");
        terminal.resize(50, 120);
        wait_by_asking(&mut terminal, "stty size\n", "50 120");
        // Ctrl-P is a key as others are, and there at once.
        terminal.keys("stty raw -echo; echo rea''dy; dd bs=1 count=1 2>/dev/null | od -An -tx1; stty sane\n");
        terminal.wait("ready");
        terminal.keys("\u{10}");
        terminal.wait(" 10");
        terminal.keys("sleep 4321\n");
        node.told(|| until("it sleeps", || node.sh("a", "ps | grep 'sleep 432[1]'").0.eq(&0).then_some(())));
        terminal.keys("\u{3}");
        terminal.keys("echo ended with $?\n");
        terminal.wait("ended with 130");
        terminal.keys("exit 7\n");
        assert_eq!(terminal.end(), 7);
    }
}

#[test]
fn cluster_terminal_ctrl_c() {
    let Some(node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    node.wait_api_ready("a");
    for kubectl in [Some(Kubectl::new(&node)), Kubectl::old(&node)].into_iter().flatten() {
        let command = ["exec", "-it", "a", "--", "sh", "-c", "echo ready; exec sleep 4321"];
        let mut terminal = kubectl.terminal(&command, (24, 80));
        terminal.wait("ready");
        terminal.keys("\u{3}");
        assert_eq!(terminal.end(), 130);
        assert_ne!(node.sh("a", "ps | grep 'sleep 432[1]'").0, 0);
    }
}

#[test]
fn cluster_terminal_that_is_closed() {
    let Some(node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    node.wait_api_ready("a");
    for kubectl in [Some(Kubectl::new(&node)), Kubectl::old(&node)].into_iter().flatten() {
        let mut terminal = kubectl.terminal(&["exec", "-it", "a", "--", "sh"], (24, 80));
        terminal.wait("# ");
        terminal.keys("echo $$ >/tmp/shell; sleep 4321\n");
        let sleeps = || node.sh("a", "ps | grep 'sleep 432[1]'").0 == 0;
        node.told(|| until("it sleeps", || sleeps().then_some(())));
        drop(terminal);
        node.told(|| until("it sleeps no more", || (!sleeps()).then_some(())));
        let shell = || node.sh("a", "test -e /proc/$(cat /tmp/shell)").0 == 0;
        node.told(|| until("the shell has ended", || (!shell()).then_some(())));
    }
}

#[test]
fn cluster_terminal_attach() {
    let Some(node) = Node::start() else { return };
    let script = "echo begun; while read line; do echo got $line; done; echo ended";
    let app = with(container("app", script), json!({"stdin": true, "tty": true}));
    node.bind(&pod("a", json!([app]), json!({})));
    let before = node.wait_api_ready("a");
    for kubectl in [Some(Kubectl::new(&node)), Kubectl::old(&node)].into_iter().flatten() {
        for word in ["one", "two"] {
            let mut terminal = kubectl.terminal(&["attach", "-it", "a"], (24, 80));
            wait_by_asking(&mut terminal, &format!("{word}\n"), &format!("got {word}"));
            // The keys to detach; the old one leaves them to Docker.
            terminal.keys("\u{10}\u{11}");
            assert_eq!(terminal.end(), 0);
        }
        let now = node.cluster.get(&node.one("pods", "a")).unwrap();
        assert_eq!(status(&now, "app")["containerID"], status(&before, "app")["containerID"]);
        assert_eq!(node.sh("a", "true").0, 0, "it runs on");
    }
}

#[test]
fn cluster_terminal_debug() {
    let Some(node) = Node::start() else { return };
    let kubectl = Kubectl::new(&node);
    node.bind(&sleeper("a"));
    let before = node.wait_api_ready("a");
    let image = format!("--image={}", image());
    let flags = ["--image-pull-policy=Never", "--target=app", "--container=look"];
    let command = [["debug", "-it", "a", image.as_str()].as_slice(), &flags, &["--", "sh"]].concat();
    let mut terminal = kubectl.terminal(&command, (24, 80));
    let wait_debugger = |what: &str, good: &dyn Fn(&Value) -> bool| {
        node.wait_api("a", what, |pod| {
            let mut all = pod["status"]["ephemeralContainerStatuses"].as_array().into_iter().flatten();
            all.any(|one| one["name"] == "look" && good(&one["state"]))
        })
    };
    wait_debugger("the debugger runs", &|state| state["running"].is_object());
    // The prompt may have come before kubectl did, and what is typed waits for the shell.
    wait_by_asking(&mut terminal, "ps | grep -q 'sleep [1]000000' && echo se''en\n", "seen");
    terminal.keys("tty; kill -0 1 && echo rea''ched\n");
    terminal.wait("reached");
    assert!(terminal.shown().contains("/dev/pts/"), "{}", terminal.shown());
    terminal.keys("exit 7\n");
    // As with every attach, kubectl is not told the code; the pod's status has it.
    assert_eq!(terminal.end(), 0);
    let now = wait_debugger("the debugger has ended", &|state| state["terminated"]["exitCode"] == 7);
    assert_eq!(status(&now, "app")["containerID"], status(&before, "app")["containerID"]);
    assert_eq!(restarts(&now, "app"), 0);
}
