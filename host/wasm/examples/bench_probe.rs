//! What a probe costs, as JSON on stdout: `cargo xtask bench probe` runs it. It must not need Docker or a network beyond loopback.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../tests/probes/guests.rs"]
#[allow(dead_code)]
mod guests;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use longshore_core::ports::exec::{ContainerExec, ExecError, ExecOutput, ExecRequest};
use longshore_core::ports::probes::{ProbeCall, ProbeOutcome, ProbePlugins as _, ProbeTarget};
use longshore_wasm::{Grants, Limits, ProbeHost};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

struct AtOnce;

#[async_trait]
impl ContainerExec for AtOnce {
    async fn exec(&self, _request: ExecRequest) -> Result<ExecOutput, ExecError> {
        Ok(ExecOutput { exit_code: Some(0), output: Vec::new() })
    }
}

fn call(plugin: &str, config: &str) -> ProbeCall {
    ProbeCall {
        plugin: plugin.to_owned(),
        config: config.to_owned(),
        target: ProbeTarget {
            pod_uid: "5b1d7a7e-9c8e-4f0b-8a30-0123456789ab".to_owned(),
            namespace: "default".to_owned(),
            pod: "web-0".to_owned(),
            container: "web".to_owned(),
            container_id: "c0ffee".to_owned(),
            pod_ip: Some([127, 0, 0, 1].into()),
            ports: vec![("web".to_owned(), 80)],
        },
        budget: Duration::from_secs(1),
    }
}

/// Calls one after the other, and how long each took.
async fn measure(host: &ProbeHost, call: &ProbeCall, calls: usize) -> Value {
    for _ in 0..calls / 10 {
        assert!(matches!(host.check(call.clone()).await.outcome, ProbeOutcome::Success { .. }));
    }
    let mut took = Vec::with_capacity(calls);
    let began = Instant::now();
    for _ in 0..calls {
        let call = call.clone();
        let began = Instant::now();
        let outcome = host.check(call).await.outcome;
        took.push(began.elapsed());
        assert!(matches!(outcome, ProbeOutcome::Success { .. }), "{outcome:?}");
    }
    let all = began.elapsed();
    took.sort_unstable();
    let micros = |share: f64| {
        let at = ((took.len() - 1) as f64 * share) as usize;
        (took[at].as_secs_f64() * 1e7).round() / 10.0
    };
    json!({
        "p50 µs": micros(0.5),
        "p99 µs": micros(0.99),
        "calls per second on a core": (calls as f64 / all.as_secs_f64()).round(),
    })
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Answers every request with 200 on a thread of its own, so that the probe's core is the probe's.
fn server() -> u16 {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            send.send(listener.local_addr().unwrap().port()).unwrap();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut request = [0; 1024];
                    let _ = stream.read(&mut request).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                });
            }
        });
    });
    receive.recv().unwrap()
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("compiled");
    let start = |what: &str| {
        let before = resident_kib();
        let began = Instant::now();
        let host = ProbeHost::new(Arc::new(AtOnce), &cache).unwrap();
        let figures = json!({
            "ms": (began.elapsed().as_secs_f64() * 1e4).round() / 10.0,
            "resident KiB more than before": resident_kib().saturating_sub(before),
        });
        (host, json!({ what: figures }))
    };
    // The first start of all leaves its compiled plugins for the next; only a process that never compiled shows what an
    // agent holds, so this one calls itself for the first.
    if std::env::args().nth(1).as_deref() == Some("--compile") {
        let cache = std::env::args().nth(2).unwrap();
        let began = Instant::now();
        ProbeHost::new(Arc::new(AtOnce), cache.as_ref()).unwrap();
        println!("{}", (began.elapsed().as_secs_f64() * 1e4).round() / 10.0);
        return;
    }
    let program = std::env::current_exe().unwrap();
    let compiled = std::process::Command::new(program).arg("--compile").arg(&cache).output().unwrap();
    let compile_ms: f64 = String::from_utf8(compiled.stdout).unwrap().trim().parse().unwrap();
    let (host, started) = start("start with the cache");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let port = server();
    let figures = runtime.block_on(async {
        let exec = call("exec", r#"{"command": ["true"]}"#);
        let http = call("http", &format!(r#"{{"port": {port}, "path": "/"}}"#));
        let tcp = call("tcp", &format!(r#"{{"port": {port}}}"#));
        let exec = measure(&host, &exec, 20_000).await;
        let http = measure(&host, &http, 3_000).await;
        let tcp = measure(&host, &tcp, 3_000).await;
        let resident = resident_kib();
        let nothing = guests::probe("", "(call $report (i32.const 0) (i32.const 256) (i32.const 5))");
        host.load_probe("nothing", &nothing, Grants::default(), Limits::default()).unwrap();
        let nothing = measure(&host, &call("nothing", "{}"), 20_000).await;
        json!({
            "call without I/O (smallest guest)": nothing,
            "exec probe, runtime answers at once": exec,
            "http probe on loopback": http,
            "tcp probe on loopback": tcp,
            "resident KiB after all of the built-in probes": resident,
        })
    });
    let all = json!({ "start that compiles, ms": compile_ms, "start": started, "calls": figures });
    println!("{}", serde_json::to_string_pretty(&all).unwrap());
}
