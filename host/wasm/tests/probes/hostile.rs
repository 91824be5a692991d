//! Guests that mean harm: each is a fault of the plugin, never a verdict, and the host is as well afterwards as before.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use longshore_core::ports::probes::{ProbeConfigError, ProbeOutcome, ProbePlugins as _};
use longshore_wasm::{Grants, Limits, LoadError};

use super::guests::{CONNECT, LOG, OK, SLEEP, probe, probe_of_pages, probe_that_validates};
use super::server::{Then, raw};
use super::support::{World, call, log_of, success, world};

const BUDGET: Duration = Duration::from_millis(500);
/// How a guest that spins is ended: by the CPU, or by the clock on a machine so busy that it never gets so much of one.
const ENDED: &[&str] = &["500 ms on the CPU", "did not end"];
/// How much longer than its budget a check may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(4);

fn load(world: &World, imports: &str, body: &str, grants: Grants) {
    world.host.load_probe("hostile", &probe(imports, body), grants, Limits::default()).unwrap();
}

async fn fault(world: &World) -> (String, Duration) {
    let (outcome, took) = world.timed("hostile", "{}", BUDGET).await;
    match outcome {
        ProbeOutcome::Fault { message } => (message, took),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn one_that_behaves() {
    let world = world();
    load(&world, "", OK, Grants::default());
    assert_eq!(world.check("hostile", "{}").await, success("hello"));
    assert_eq!(world.host.validate("hostile", "{}").await, Ok(()));
}

#[tokio::test]
async fn traps() {
    let world = world();
    for body in ["unreachable", "(i32.load (i32.const -4))", "(i32.div_u (i32.const 1) (local.get $count))"] {
        load(&world, "", body, Grants::default());
        let (message, _) = fault(&world).await;
        assert!(message.starts_with("it crashed: "), "{message}");
    }
    load(&world, "", "(call $recurse (i32.const 0))", Grants::default());
    assert!(fault(&world).await.0.contains("stack"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn one_that_never_ends_holds_nobody_up() {
    let world = world();
    load(&world, "", "(loop $again (br $again)) (i32.const 0)", Grants::default());
    let runaway = tokio::spawn({
        let host = Arc::clone(&world.host);
        async move { host.check(call("hostile", "{}", BUDGET)).await.outcome }
    });
    // Others get their turn on the one thread that there is, while it runs.
    for _ in 0..5 {
        assert_eq!(world.check("exec", r#"{"command": ["true"]}"#).await, success("ok"));
    }
    assert!(!runaway.is_finished(), "nobody waited for its end");
    let outcome = runaway.await.unwrap();
    assert!(
        matches!(&outcome, ProbeOutcome::Fault { message } if ENDED.iter().any(|said| message.contains(said))),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn one_that_allocates_without_end() {
    let world = world();
    load(&world, "", "(loop $again (drop (memory.grow (i32.const 16))) (br $again)) (i32.const 0)", Grants::default());
    let (message, took) = fault(&world).await;
    assert_eq!(message, "it wanted more than 32768 KiB of memory");
    assert!(took < BUDGET + PATIENCE, "{took:?}");
}

#[tokio::test]
async fn one_that_says_too_much() {
    let world = world();
    for length in [70_000, 120_000, i32::MAX] {
        load(
            &world,
            "",
            &format!("(call $report (i32.const 0) (i32.const 0) (i32.const {length}))"),
            Grants::default(),
        );
        fault(&world).await;
    }
    // Not too much, but more than is kept.
    load(&world, "", "(call $report (i32.const 2) (i32.const 1024) (i32.const 60000))", Grants::default());
    let outcome = world.check("hostile", "{}").await;
    assert!(matches!(&outcome, ProbeOutcome::Failure { message } if message.len() == 10 * 1024), "{outcome:?}");
}

#[tokio::test]
async fn one_whose_answer_is_nonsense() {
    let world = world();
    for body in [
        "(i32.const -1)",
        "(call $report (i32.const 77) (i32.const 256) (i32.const 5))",
        "(i32.store8 (i32.const 64) (i32.const 9)) (i32.const 64)",
        "(i32.store8 (i32.const 300) (i32.const 255)) (call $report (i32.const 0) (i32.const 300) (i32.const 5))",
    ] {
        load(&world, "", body, Grants::default());
        fault(&world).await;
    }
}

#[tokio::test]
async fn one_that_sleeps_through_its_budget_ends_with_it() {
    let world = world();
    load(&world, SLEEP, &format!("(call $sleep (i32.const -1)) {OK}"), Grants::default());
    let (outcome, took) = world.timed("hostile", "{}", BUDGET).await;
    assert_eq!(outcome, success("hello"));
    assert!(took >= BUDGET && took < BUDGET + PATIENCE, "{took:?}");
    load(&world, SLEEP, "(loop $again (call $sleep (i32.const 1)) (br $again)) (i32.const 0)", Grants::default());
    let (_, took) = fault(&world).await;
    assert!(took < BUDGET + PATIENCE, "{took:?}");
}

#[tokio::test]
async fn one_that_never_comes_to_be() {
    let world = world();
    let cases: [(&str, &[&str]); 2] = [("(loop $again (br $again))", ENDED), ("unreachable", &["it crashed: "])];
    for (body, said) in cases {
        load(&world, &format!(r#"(func (export "_initialize") {body})"#), OK, Grants::default());
        let (message, _) = fault(&world).await;
        assert!(said.iter().any(|said| message.contains(said)), "{message}");
    }
}

#[tokio::test]
async fn one_that_does_harm_while_it_looks_at_a_configuration() {
    let world = world();
    let cases: [(&str, &[&str]); 4] = [
        ("unreachable", &["it crashed: "]),
        ("(loop $again (br $again)) (i32.const 0)", ENDED),
        ("(loop $again (drop (memory.grow (i32.const 16))) (br $again)) (i32.const 0)", &["32768 KiB of memory"]),
        ("(i32.const -1)", &["it crashed: "]),
    ];
    for (body, said) in cases {
        let guest = probe_that_validates(body);
        world.host.load_probe("hostile", &guest, Grants::default(), Limits::default()).unwrap();
        match world.host.validate("hostile", "{}").await {
            // The plugin's fault, not the configuration's: whoever wrote the pod is told so.
            Err(ProbeConfigError::Fault { plugin, message }) => {
                let expected = said.iter().any(|said| message.contains(said));
                assert!(plugin == "hostile" && expected, "{body}: {message}");
            }
            other => panic!("{body}: {other:?}"),
        }
        // A check is a call of its own.
        assert_eq!(world.check("hostile", "{}").await, success("hello"));
    }
}

#[test]
fn one_that_floods_the_log() {
    let world = world();
    let body = format!(
        "(loop $again
            (call $log (i32.const 2) (i32.const 0) (i32.const 4096))
            (local.set $count (i32.add (local.get $count) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $count) (i32.const 1000))))
        {OK}"
    );
    load(&world, LOG, &body, Grants::default());
    let began = Instant::now();
    let text = log_of(async {
        for _ in 0..20 {
            assert_eq!(world.check("hostile", "{}").await, success("hello"));
        }
    });
    let lines = text.lines().filter(|line| line.contains("plugin says:")).count();
    // A burst, and one more after each half second.
    let most = 33 + usize::try_from(began.elapsed().as_millis() / 500).unwrap();
    assert!((1..=most).contains(&lines), "{lines} lines, {most} at most");
    assert!(text.lines().all(|line| line.len() < 8 * 1024));
    assert!(text.contains("plugin=hostile") && text.contains("container=web"));
}

/// Connects to `port` a hundred times, and says in its health whether all were refused (2) or some were not (0).
fn dialer(port: u16) -> String {
    format!(
        "(local $ok i32)
        (loop $again
            (call $connect (i32.const {port}) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
                (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 512))
            (if (i32.eqz (i32.load8_u (i32.const 512))) (then (local.set $ok (i32.const 1))))
            (local.set $count (i32.add (local.get $count) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $count) (i32.const 100))))
        (call $report (if (result i32) (local.get $ok) (then (i32.const 0)) (else (i32.const 2)))
            (i32.const 256) (i32.const 5))"
    )
}

#[tokio::test]
async fn one_that_dials_without_end_and_one_that_may_not() {
    let world = world();
    let server = raw(|_| Vec::new(), Then::Hold, false).await;
    load(&world, CONNECT, &dialer(server.port), Grants::default());
    assert!(matches!(world.check("hostile", "{}").await, ProbeOutcome::Failure { .. }));
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
    load(&world, CONNECT, &dialer(server.port), Grants { dial: true, ..Grants::default() });
    assert_eq!(world.check("hostile", "{}").await, success("hello"));
    // The last of them may not have been accepted yet.
    let end = Instant::now() + Duration::from_secs(30);
    while server.connections.load(Ordering::SeqCst) < 16 && Instant::now() < end {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 16);
    // And its `host` is nobody's business but the pod's author's, where that was granted.
    let (elsewhere, _) = world.timed("hostile", r#"{"host": "192.0.2.1"}"#, BUDGET).await;
    assert_eq!(elsewhere, success("hello"));
}

#[tokio::test]
async fn what_is_no_probe_is_not_loaded_and_the_last_good_one_stays() {
    let world = world();
    load(&world, "", OK, Grants::default());
    let bad = |wasm: &[u8]| world.host.load_probe("hostile", wasm, Grants::default(), Limits::default()).unwrap_err();
    assert!(matches!(bad(b"nonsense"), LoadError::Compile { .. }));
    assert!(matches!(bad(&wat::parse_str("(module)").unwrap()), LoadError::Compile { .. }));
    assert!(matches!(bad(&wat::parse_str("(component)").unwrap()), LoadError::NotAProbe { .. }));
    let great = bad(&probe_of_pages(513));
    assert!(matches!(great, LoadError::TooGreat { .. }), "{great:?}");
    assert!(great.to_string().ends_with("it begins with 32832 KiB of memory, its limit is 32768 KiB"), "{great}");
    world.host.load_probe("greatest", &probe_of_pages(512), Grants::default(), Limits::default()).unwrap();
    assert_eq!(world.check("greatest", "{}").await, success("hello"));
    let wasi = r#"(component (import "wasi:cli/environment@0.2.0" (instance)))"#;
    assert!(matches!(bad(&wat::parse_str(wasi).unwrap()), LoadError::NotAProbe { .. }));
    assert_eq!(world.check("hostile", "{}").await, success("hello"));
    load(&world, "", "unreachable", Grants::default());
    assert!(matches!(world.check("hostile", "{}").await, ProbeOutcome::Fault { .. }));
    assert!(matches!(world.host.validate("hostile", "{}").await, Ok(())));
    assert!(world.host.unload_probe("hostile") && !world.host.unload_probe("hostile"));
    assert!(matches!(world.host.validate("hostile", "{}").await, Err(ProbeConfigError::UnknownPlugin { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_of_them_leave_the_host_well() {
    let world = world();
    let bodies = [
        "unreachable",
        "(loop $again (br $again)) (i32.const 0)",
        "(loop $again (drop (memory.grow (i32.const 16))) (br $again)) (i32.const 0)",
        "(call $report (i32.const 0) (i32.const 0) (i32.const 100000))",
        "(call $recurse (i32.const 0))",
    ];
    for (number, body) in bodies.iter().enumerate() {
        let guest = probe("", body);
        world.host.load_probe(&format!("hostile-{number}"), &guest, Grants::default(), Limits::default()).unwrap();
    }
    let hostile = (0..100).map(|number| {
        let host = Arc::clone(&world.host);
        tokio::spawn(async move { host.check(call(&format!("hostile-{}", number % 5), "{}", BUDGET)).await.outcome })
    });
    for outcome in futures::future::join_all(hostile).await {
        assert!(matches!(outcome.unwrap(), ProbeOutcome::Fault { .. }));
    }
    let statistics = world.host.statistics();
    let faults: u64 = statistics.iter().map(|(_, statistics)| statistics.faults).sum();
    assert_eq!(faults, 100);
    for _ in 0..200 {
        assert_eq!(world.check("exec", r#"{"command": ["true"]}"#).await, success("ok"));
    }
}
