//! Guests of toolchains that import WASI 0.2: they load, find everything closed, and cannot use more of the host for it.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use longshore_core::pod::Source;
use longshore_core::ports::probes::{ProbeOutcome, ProbePlugins as _};
use longshore_core::ports::sources::PodSource as _;
use longshore_wasm::{Grants, Limits, SourceOptions};

use super::guests::{OK, SLEEP, expect, wasi_probe, wasi_source};
use super::support::{World, call, log_of, success, world};

const CLI: &str = r#"
    (import "wasi:cli/environment@0.2.0" "get-environment" (func $environment (param i32)))
    (import "wasi:cli/environment@0.2.0" "get-arguments" (func $arguments (param i32)))
    (import "wasi:cli/environment@0.2.0" "initial-cwd" (func $directory (param i32)))
    (import "wasi:cli/stdin@0.2.0" "get-stdin" (func $stdin (result i32)))
    (import "wasi:io/streams@0.2.0" "[method]input-stream.blocking-read" (func $read (param i32 i64 i32)))
    (import "wasi:filesystem/preopens@0.2.0" "get-directories" (func $preopens (param i32)))"#;

const SOCKETS: &str = r#"
    (import "wasi:sockets/instance-network@0.2.0" "instance-network" (func $network (result i32)))
    (import "wasi:sockets/ip-name-lookup@0.2.0" "resolve-addresses" (func $resolve (param i32 i32 i32 i32)))
    (import "wasi:sockets/tcp-create-socket@0.2.0" "create-tcp-socket" (func $tcp (param i32 i32)))
    (import "wasi:sockets/udp-create-socket@0.2.0" "create-udp-socket" (func $udp (param i32 i32)))"#;

const POLL: &str = r#"
    (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))
    (import "wasi:io/poll@0.2.0" "poll" (func $poll (param i32 i32 i32)))"#;

const HTTP: &str = r#"
    (import "wasi:http/types@0.2.0" "[constructor]fields" (func $fields (result i32)))
    (import "wasi:http/types@0.2.0" "[constructor]outgoing-request" (func $request (param i32) (result i32)))
    (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-authority"
        (func $authority (param i32 i32 i32 i32) (result i32)))
    (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-path-with-query"
        (func $path (param i32 i32 i32 i32) (result i32)))
    (import "wasi:http/types@0.2.0" "[method]outgoing-request.body" (func $body (param i32 i32)))
    (import "wasi:http/types@0.2.0" "[method]outgoing-body.write" (func $write (param i32 i32)))
    (import "wasi:http/outgoing-handler@0.2.0" "handle" (func $handle (param i32 i32 i32 i32)))
    (import "wasi:http/types@0.2.0" "[method]future-incoming-response.subscribe" (func $subscribe (param i32) (result i32)))
    (import "wasi:http/types@0.2.0" "[method]future-incoming-response.get" (func $get (param i32 i32)))"#;

const PRINT: &str = r#"
    (import "wasi:cli/stdout@0.2.0" "get-stdout" (func $stdout (result i32)))
    (import "wasi:cli/stderr@0.2.0" "get-stderr" (func $stderr (result i32)))
    (import "wasi:io/streams@0.2.0" "[method]output-stream.blocking-write-and-flush"
        (func $print (param i32 i32 i32 i32)))"#;

const CLOCKS: &str = r#"
    (import "wasi:clocks/wall-clock@0.2.0" "now" (func $wall (param i32)))
    (import "wasi:clocks/monotonic-clock@0.2.0" "now" (func $monotonic (result i64)))
    (import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration" (func $after (param i64) (result i32)))"#;

const RANDOM: &str = r#"
    (import "wasi:random/random@0.2.0" "get-random-u64" (func $random (result i64)))
    (import "wasi:random/random@0.2.0" "get-random-bytes" (func $bytes (param i64 i32)))"#;

const EXIT: &str = r#"(import "wasi:cli/exit@0.2.0" "exit" (func $exit (param i32)))"#;

fn load(world: &World, imports: &[&str], body: &str) {
    let guest = wasi_probe("0.2.0", &imports.concat(), body);
    world.host.load_probe("wasi", &guest, Grants::default(), Limits::default()).unwrap();
}

/// An empty list at 512, which was something else before.
fn empty(call: &str, step: u32) -> String {
    format!("(i32.store (i32.const 516) (i32.const 7)) (call {call} (i32.const 512)) ")
        + &expect("(i32.eqz (i32.load (i32.const 516)))", step)
}

/// A result at 512 that is an error of that number.
fn refused(call: &str, code: u32, step: u32) -> String {
    let error = "(i32.and (i32.eq (i32.load8_u (i32.const 512)) (i32.const 1)) (i32.eq (i32.load8_u (i32.const 516))";
    call.to_owned() + &expect(&format!("{error} (i32.const {code})))"), step)
}

async fn fault(world: &World, budget: Duration) -> String {
    match world.timed("wasi", "{}", budget).await {
        (ProbeOutcome::Fault { message }, _) => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nothing_of_the_hosts_is_there() {
    let world = world();
    let body = [
        empty("$environment", 1),
        empty("$arguments", 2),
        empty("$preopens", 3),
        format!("(call $directory (i32.const 512)) {}", expect("(i32.eqz (i32.load8_u (i32.const 512)))", 4)),
        // Closed: error (1), and of its two cases the second.
        refused("(call $read (call $stdin) (i64.const 10) (i32.const 512))", 1, 5),
        OK.to_owned(),
    ];
    load(&world, &[CLI], &body.concat());
    assert_eq!(world.check("wasi", "{}").await, success("hello"));
}

#[tokio::test]
async fn sockets_and_names_are_denied() {
    let world = world();
    let (access_denied, permanent_resolver_failure) = (1, 20);
    let resolve = "(call $resolve (call $network) (i32.const 256) (i32.const 5) (i32.const 512))";
    let body = [
        refused("(call $tcp (i32.const 0) (i32.const 512))", access_denied, 1),
        refused("(call $tcp (i32.const 1) (i32.const 512))", access_denied, 2),
        refused("(call $udp (i32.const 0) (i32.const 512))", access_denied, 3),
        refused(resolve, permanent_resolver_failure, 4),
        OK.to_owned(),
    ];
    load(&world, &[SOCKETS], &body.concat());
    assert_eq!(world.check("wasi", "{}").await, success("hello"));
}

#[tokio::test]
async fn http_is_denied() {
    let world = world();
    // `get` answers some (0), ok (8), error (16), and which (24).
    let denied = "(i32.and
        (i32.and (i32.eq (i32.load8_u (i32.const 512)) (i32.const 1)) (i32.eqz (i32.load8_u (i32.const 520))))
        (i32.and (i32.eq (i32.load8_u (i32.const 528)) (i32.const 1)) (i32.eq (i32.load8_u (i32.const 536)) (i32.const 15))))";
    let body = [
        "(local $request i32) (local $response i32)
        (i32.store8 (i32.const 300) (i32.const 47))
        (local.set $request (call $request (call $fields)))
        (drop (call $authority (local.get $request) (i32.const 1) (i32.const 256) (i32.const 5)))
        (drop (call $path (local.get $request) (i32.const 1) (i32.const 300) (i32.const 1)))
        (call $handle (local.get $request) (i32.const 0) (i32.const 0) (i32.const 512))",
        &expect("(i32.eqz (i32.load8_u (i32.const 512)))", 1),
        "(local.set $response (i32.load (i32.const 520)))
        (call $block (call $subscribe (local.get $response)))
        (call $get (local.get $response) (i32.const 512))",
        &expect(denied, 2),
        OK,
    ];
    load(&world, &[HTTP, POLL], &body.concat());
    assert_eq!(world.check("wasi", "{}").await, success("hello"));
}

#[tokio::test]
async fn clocks_and_randomness_are_real() {
    let world = world();
    let body = [
        "(local $before i64) (call $wall (i32.const 512))",
        &expect("(i64.gt_u (i64.load (i32.const 512)) (i64.const 1700000000))", 1),
        "(local.set $before (call $monotonic)) (call $block (call $after (i64.const 2000000)))",
        &expect("(i64.ge_u (i64.sub (call $monotonic) (local.get $before)) (i64.const 2000000))", 2),
        &expect("(i64.ne (call $random) (call $random))", 3),
        "(call $bytes (i64.const 1000) (i32.const 512))",
        &expect("(i32.eq (i32.load (i32.const 516)) (i32.const 1000))", 4),
        OK,
    ];
    load(&world, &[CLOCKS, RANDOM, POLL], &body.concat());
    assert_eq!(world.check("wasi", "{}").await, success("hello"));
}

#[tokio::test]
async fn every_version_of_wasi_0_2_is_served() {
    let world = world();
    for version in ["0.2.0", "0.2.3", "0.2.9", "0.2.14"] {
        let guest = wasi_probe(version, CLI, &[&empty("$environment", 1), OK].concat());
        world.host.load_probe("wasi", &guest, Grants::default(), Limits::default()).unwrap();
        assert_eq!(world.check("wasi", "{}").await, success("hello"), "{version}");
    }
}

#[test]
fn what_is_printed_is_a_line_of_the_log() {
    let world = world();
    // "hello\n" and "hello\x1b" without an end; "hel" and "lo" on the other.
    let body = "(i32.store8 (i32.const 261) (i32.const 10))
        (call $print (call $stdout) (i32.const 256) (i32.const 6) (i32.const 512))
        (i32.store8 (i32.const 261) (i32.const 27))
        (call $print (call $stdout) (i32.const 256) (i32.const 6) (i32.const 512))
        (call $print (call $stderr) (i32.const 256) (i32.const 3) (i32.const 512))
        (call $print (call $stderr) (i32.const 259) (i32.const 2) (i32.const 512))
        unreachable";
    load(&world, &[PRINT], body);
    let text = log_of(async {
        assert!(fault(&world, Duration::from_secs(5)).await.starts_with("it crashed: "));
    });
    let said = |level: &str, line: &str| {
        let end = format!("plugin says: {line} plugin=wasi pod=default/web-0 container=web dropped=0");
        text.lines().filter(|found| found.contains(level) && found.ends_with(&end)).count()
    };
    assert_eq!([said(" INFO ", "hello"), said(" INFO ", "hello\\u{1b}"), said(" WARN ", "hello")], [1; 3], "{text}");
}

#[test]
fn printing_without_end_is_bounded() {
    let world = world();
    let flood = |ends: bool| {
        let end = if ends { "(i32.store8 (i32.const 5095) (i32.const 10))" } else { "" };
        format!(
            "(memory.fill (i32.const 1000) (i32.const 120) (i32.const 4096)) {end}
            (loop $again
                (call $print (call $stdout) (i32.const 1000) (i32.const 4096) (i32.const 512))
                (local.set $count (i32.add (local.get $count) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $count) (i32.const 200))))
            {OK}"
        )
    };
    for (ends, most) in [(true, 16), (false, 1)] {
        load(&world, &[PRINT], &flood(ends));
        let text = log_of(async {
            assert_eq!(world.check("wasi", "{}").await, success("hello"));
        });
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("plugin says: xxx")).collect();
        assert_eq!(lines.len(), most, "{text}");
        assert!(lines.iter().all(|line| line.contains("x … plugin=wasi") && line.len() < 800), "{text}");
    }
}

#[tokio::test]
async fn leaving_is_no_answer() {
    let world = world();
    for (status, said) in [(0, "exit status 0"), (1, "exit status 1")] {
        load(&world, &[EXIT], &format!("(call $exit (i32.const {status})) {OK}"));
        let message = fault(&world, Duration::from_secs(5)).await;
        assert!(message.contains(said) && message.contains("where an answer was due"), "{message}");
    }
}

#[tokio::test]
async fn what_a_guest_holds_of_the_host_is_bounded() {
    let world = world();
    let forever = "(loop $again (drop (call $after (i64.const 1000000000))) (br $again)) (i32.const 0)";
    load(&world, &[CLOCKS], forever);
    let message = fault(&world, Duration::from_secs(5)).await;
    assert!(message.contains("resource table"), "{message}");
    load(&world, &[RANDOM], &format!("(call $bytes (i64.const 100000000) (i32.const 512)) {OK}"));
    let message = fault(&world, Duration::from_secs(5)).await;
    assert!(message.contains("exceeds limit 1048576"), "{message}");
}

/// Waits for a minute.
const MINUTE: &str = "(call $block (call $after (i64.const 60000000000)))";
/// The time of a guest that waits; and how long after it the guest must have been ended, on a busy machine too: less than what a
/// call is given that hangs in nothing that the host knows.
const SHORT: Duration = Duration::from_millis(200);
const AT_ONCE: Duration = Duration::from_millis(2500);

#[tokio::test]
async fn a_wait_that_outlasts_the_budget_is_a_fault() {
    let world = world();
    let lines = "(loop $again (call $block (call $after (i64.const 10000000))) (br $again)) (i32.const 0)";
    let list = "(i32.store (i32.const 512) (call $after (i64.const -1)))
        (i32.store (i32.const 516) (call $after (i64.const 60000000000)))
        (call $poll (i32.const 512) (i32.const 2) (i32.const 520)) unreachable";
    // A request's body that nobody reads, since the request is never sent.
    let body = "(local $request i32)
        (local.set $request (call $request (call $fields)))
        (call $body (local.get $request) (i32.const 512))
        (call $write (i32.load (i32.const 516)) (i32.const 520))
        (loop $again
            (call $print (i32.load (i32.const 524)) (i32.const 4096) (i32.const 4096) (i32.const 528))
            (br_if $again (i32.eqz (i32.load8_u (i32.const 528)))))
        unreachable";
    let resting = "(call $block (call $after (i64.const 0)))";
    let waits = [
        (vec![CLOCKS, POLL], format!("{MINUTE} {OK}")),
        (vec![CLOCKS, POLL], lines.to_owned()),
        (vec![CLOCKS, POLL], list.to_owned()),
        (vec![HTTP, PRINT], body.to_owned()),
        // It has spent its time in a function of ours, which ended in time, and goes on to wait.
        (vec![CLOCKS, POLL, SLEEP], format!("(call $sleep (i32.const -1)) {resting} {MINUTE} {OK}")),
        (vec![CLOCKS, POLL, r#"(func (export "_initialize") "#, MINUTE, ")"], OK.to_owned()),
    ];
    for (imports, body) in waits {
        load(&world, &imports, &body);
        let (outcome, took) = world.timed("wasi", "{}", SHORT).await;
        let said = "it still waited in WASI (a sleep, a poll or a stream) after its time of 200 ms was over";
        assert!(
            matches!(&outcome, ProbeOutcome::Fault { message } if message.starts_with(said)),
            "{body}: {outcome:?}"
        );
        assert!(took >= SHORT && took < AT_ONCE, "{body}: {took:?}");
    }
    // What it found until then counts, though its language yields and prints on the way.
    load(&world, &[CLOCKS, POLL, SLEEP], &format!("(call $sleep (i32.const -1)) {resting} {OK}"));
    assert_eq!(world.timed("wasi", "{}", SHORT).await.0, success("hello"));
}

#[tokio::test]
async fn those_that_wait_give_their_places_back() {
    let world = world();
    load(&world, &[CLOCKS, POLL], &format!("{MINUTE} {OK}"));
    // More than twice as many as there are places.
    let checks = (0..300).map(|_| world.host.check(call("wasi", "{}", SHORT)));
    let began = Instant::now();
    let (outcomes, others) = futures::join!(
        futures::future::join_all(checks),
        world.timed("exec", r#"{"command": ["true"]}"#, Duration::from_secs(5))
    );
    assert!(outcomes.iter().all(|answer| matches!(answer.outcome, ProbeOutcome::Fault { .. })));
    // Those that kept their places would do so for a minute.
    let soon = Duration::from_secs(30);
    assert!(began.elapsed() < soon, "{:?}", began.elapsed());
    assert!(others.0 == success("ok") && others.1 < soon, "{others:?}");
}

#[tokio::test]
async fn sources_may_import_it_as_well() {
    let manifest = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
        "spec": {"containers": [{"name": "app", "image": "busybox"}]}}"#;
    let guest = wasi_source(CLI, "(call $environment (i32.const 2048)) (call $pods)", manifest);
    let options = SourceOptions {
        source: Source::Plugin("wasi".to_owned()),
        node_name: "node".to_owned(),
        place: "nowhere".to_owned(),
        config: "{}".to_owned(),
        period: Duration::from_secs(1),
        budget: Duration::from_secs(5),
        former: Vec::new(),
        hosts: Vec::new(),
        ca_file: None,
    };
    let sources = world().host.sources().unwrap();
    let source = sources.plugin("wasi", &guest, options, Limits::default()).unwrap();
    let mut snapshots = source.snapshots();
    let first = tokio::time::timeout(Duration::from_secs(20), snapshots.next()).await.unwrap().unwrap();
    assert_eq!(first.pods.len(), 1);
}
