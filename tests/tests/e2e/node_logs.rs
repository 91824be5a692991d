//! Logs of the node's own services, asked of its server (`kubectl get --raw /api/v1/nodes/NODE/proxy/logs/?query=…`). Where the
//! machine has a journal: the emulated one does.

use std::{fs, net::TcpStream, path::Path, process::Command};

use crate::bed::{Bed, callers, process, until};

/// What the journal itself has of a service, in the words that the node asks in.
fn journal(arguments: &[&str]) -> String {
    let mut command = Command::new("journalctl");
    let output = process::output(command.args(["--utc", "--no-pager", "--output=short-precise"]).args(arguments), b"");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn node_logs_of_the_journal() {
    let Some(mut bed) = Bed::new() else { return };
    let (ours, address) = callers::serving(&mut bed);
    let folder = bed.folder.join("configuration");
    fs::create_dir(&folder).unwrap();
    let configuration = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nenableSystemLogQuery: true\n\
                         featureGates: {NodeLogQuery: true}\n";
    fs::write(folder.join("10-logs.conf"), configuration).unwrap();
    bed.flags.push(format!("--config-dir={}", folder.display()));
    bed.env.push(("TZ".to_owned(), "JST-9".to_owned()));
    bed.begin();
    until("it serves", || TcpStream::connect(address).ok());
    let user = ours.connector(Some(&ours.sign("user")));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let asked = |query: &str| {
        let answer = runtime.block_on(callers::get(&user, address, &format!("/logs/?query={query}"))).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{query}: {answer}");
        body.to_owned()
    };
    if !Path::new("/run/systemd/journal").is_dir() {
        assert!(asked("no-such-service").contains("log not found for no-such-service"));
        return;
    }
    // What both say while the service says nothing.
    let same = |query: &str, arguments: &[&str]| {
        let arguments = [&["--unit=systemd-udevd"], arguments].concat();
        let (before, told, after) = (journal(&arguments), asked(&format!("systemd-udevd{query}")), journal(&arguments));
        (before == after).then(|| assert_eq!(told, before, "{query}"))
    };
    assert!(journal(&["--unit=systemd-udevd"]).contains("systemd-udevd["), "there is nothing to ask for");
    until("all of it", || same("", &[]));
    until("its end", || same("&tailLines=2", &["--lines=2"]));
    until("some of it", || same("&boot=0&pattern=Start%5BEei%5D", &["--grep=Start[Eei]", "--boot=0"]));
    // Times are of the request, whatever zone the node is in.
    let future = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    assert!(asked(&format!("systemd-udevd&sinceTime={future:.0}")).contains("No entries"));
    let past = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * 365);
    until("all of a year", || same(&format!("&sinceTime={past:.0}"), &[]));
    assert!(asked("systemd-udevd&query=no-such-service").ends_with("log not found for no-such-service\n"));
}
