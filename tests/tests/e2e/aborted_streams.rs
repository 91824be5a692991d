//! Streams whose clients go in the middle leave nothing behind: no descriptor of the agent's, no process in the pod but of a
//! command that reads nothing, which goes on, as with the kubelet.

use std::{fs, net::TcpListener};

use crate::bed::{
    Bed, NODE, callers, inside,
    pods::{SLEEP, container, id, pod},
    until,
};

/// So many of each kind are begun, so many of them at a time.
const ROUNDS: usize = 10;
const AT_ONCE: usize = 6;
/// What an agent at rest has more or less at one time than at another, with much to spare, and far less than `ROUNDS *
/// AT_ONCE`.
const NOISE: usize = 25;

/// The agent's descriptors.
fn descriptors(bed: &Bed) -> usize {
    fs::read_dir(format!("/proc/{}/fd", bed.pid())).unwrap().count()
}

#[test]
fn aborted_streams_leave_nothing_behind() {
    let Some(mut bed) = Bed::new() else { return };
    let (ours, server) = callers::serving(&mut bed);
    bed.begin();
    bed.apply(&pod("a", serde_json::json!([container("app", &format!("echo hi; {SLEEP}"))]), serde_json::json!({})));
    let app = id(&bed.wait_ready("a"), "app");
    let pid = bed.docker.inspect(&app).unwrap()["State"]["Pid"].to_string();
    let listener = inside::run(&pid, || TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        use std::io::Write as _;
        // Kept: it is the client who goes.
        let mut kept = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"hi");
            kept.push(stream);
        }
    });
    let of = format!("default/a-{NODE}");
    let paths = [
        format!("/exec/{of}/app?command=sh&command=-c&command=echo%20hi%3Bcat&input=1&output=1"),
        format!("/exec/{of}/app?command=sh&command=-c&command=echo%20hi%3Bexec%20sleep%201000000&output=1"),
        format!("/containerLogs/{of}/app?follow=true"),
        format!("/portForward/{of}?port={port}"),
    ];
    let user = ours.connector(Some(&ours.sign("user")));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let before = descriptors(&bed);
    for _ in 0..ROUNDS {
        let all = paths.iter().flat_map(|path| std::iter::repeat_n(path, AT_ONCE));
        let all = all.map(|path| callers::begun(&user, server, path));
        // Dropped without a word, as by a machine that goes down.
        drop(runtime.block_on(futures::future::join_all(all)));
    }
    let mut last = 0;
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        until("the agent has let go of all", || {
            last = descriptors(&bed);
            (last < before + NOISE).then_some(())
        });
        until("no process is left", || bed.docker.exec(&app, &["pidof", "cat"]).0.eq(&1).then_some(()));
    }));
    assert!(seen.is_ok(), "{before} descriptors, then {last}\n{}", bed.log());
}
