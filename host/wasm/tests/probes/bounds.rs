//! What a call may use of the host, capability by capability, and what a guest may be made of: each bound of `limits.rs` that no
//! other test meets.

use std::error::Error;
use std::sync::atomic::Ordering;
use std::time::Duration;

use longshore_core::ports::probes::{ProbeOutcome, ProbePlugins as _};
use longshore_wasm::{Grants, Limits};

use super::guests::{LOG, OK, SLEEP, expect, probe, probe_of_modules};
use super::server::{Then, raw};
use super::support::{Script, World, call, success, world};

/// `run` with a list of arguments; the answer is written at the last argument.
const EXEC: &str = r#"(import "longshore:exec/runner@0.1.0" "run" (func $run (param i32 i32 i32)))"#;

/// `send(method, scheme, protocol, port, path, headers, body, max-body)`; the answer is written at the last argument.
const SEND: &str = r#"(import "longshore:http/client@0.1.0" "send"
    (func $send (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))"#;

fn load(world: &World, imports: &str, body: &str, grants: Grants) {
    world.host.load_probe("bound", &probe(imports, body), grants, Limits::default()).unwrap();
}

/// A result at 512 that is this case of its error.
fn is_error(case: u32) -> String {
    format!("(i32.and (i32.load8_u (i32.const 512)) (i32.eq (i32.load8_u (i32.const 516)) (i32.const {case})))")
}

/// Does it until the answer at 512 is an error, and then says "hello" if that is of this case after so many times.
fn until_refused(attempt: &str, case: u32, times: u32) -> String {
    format!(
        "(loop $again {attempt}
            (if (i32.eqz (i32.load8_u (i32.const 512))) (then
                (local.set $count (i32.add (local.get $count) (i32.const 1)))
                (br $again))))"
    ) + &expect(&is_error(case), 1)
        + &expect(&format!("(i32.eq (local.get $count) (i32.const {times}))"), 2)
        + OK
}

async fn fault(world: &World) -> String {
    match world.check("bound", "{}").await {
        ProbeOutcome::Fault { message } => message,
        other => panic!("{other:?}"),
    }
}

/// A command of so many parts, each `length` bytes from `at`.
fn run(parts: u32, at: u32, length: u32) -> String {
    let store = |part: u32| {
        let to = 600 + 8 * part;
        format!(
            "(i32.store (i32.const {to}) (i32.const {at})) (i32.store offset=4 (i32.const {to}) (i32.const {length}))"
        )
    };
    let list: String = (0..parts).map(store).collect();
    format!("{list} (call $run (i32.const 600) (i32.const {parts}) (i32.const 512))")
}

#[tokio::test]
async fn commands_are_counted_and_have_a_length() {
    let world = world();
    let may = Grants { exec: true, ..Grants::default() };
    let (denied, invalid) = (0, 1);
    load(&world, EXEC, &until_refused(&run(1, 256, 5), denied, 0), Grants::default());
    assert_eq!(world.check("bound", "{}").await, success("hello"));
    load(&world, EXEC, &until_refused(&run(1, 256, 0), invalid, 0), may);
    assert_eq!(world.check("bound", "{}").await, success("hello"));
    load(&world, EXEC, &until_refused(&run(3, 1000, 50_000), invalid, 0), may);
    assert_eq!(world.check("bound", "{}").await, success("hello"));
    assert!(world.runtime.asked.lock().unwrap().is_empty());

    load(&world, EXEC, &until_refused(&run(1, 256, 5), invalid, 32), may);
    assert_eq!(world.check("bound", "{}").await, success("hello"));
    assert_eq!(world.runtime.asked.lock().unwrap().len(), 32);

    // The container is never the guest's to choose, and what its command says is cut.
    assert_eq!(world.runtime.asked.lock().unwrap()[0].container_id, "c0ffee");
    *world.runtime.script.lock().unwrap() = Script::Exit(0, vec![b'x'; 100_000]);
    let body = run(1, 256, 5) + &expect("(i32.eq (i32.load (i32.const 528)) (i32.const 10240))", 1) + OK;
    load(&world, EXEC, &body, may);
    assert_eq!(world.check("bound", "{}").await, success("hello"));
}

/// A GET of "/" with a header's value and a body of so many bytes, and as much of the answer as there is.
fn send(port: u16, value: u32, body: u32) -> String {
    let (get, slash, name, header) = (700, 704, 256, 720);
    format!(
        r#"(i32.store (i32.const {get}) (i32.const 0x00544547)) (i32.store8 (i32.const {slash}) (i32.const 47))
        (memory.fill (i32.const 2000) (i32.const 120) (i32.const 63000))
        (i32.store (i32.const {header}) (i32.const {name})) (i32.store offset=4 (i32.const {header}) (i32.const 5))
        (i32.store offset=8 (i32.const {header}) (i32.const 2000)) (i32.store offset=12 (i32.const {header}) (i32.const {value}))
        (call $send (i32.const {get}) (i32.const 3) (i32.const 0) (i32.const 0) (i32.const {port})
            (i32.const {slash}) (i32.const 1) (i32.const {header}) (i32.const 1) (i32.const 2000) (i32.const {body})
            (i32.const -1) (i32.const 512))"#
    )
}

#[tokio::test]
async fn requests_are_counted_and_have_a_size() {
    let world = world();
    let may = Grants { http: true, ..Grants::default() };
    let (denied, limit) = (0, 3);
    let answer = || {
        let mut answer = b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n".to_vec();
        answer.resize(answer.len() + 100_000, b'x');
        answer
    };
    let server = raw(move |_| answer(), Then::Close, false).await;
    load(&world, SEND, &until_refused(&send(server.port, 1, 0), denied, 0), Grants::default());
    assert_eq!(world.check("bound", "{}").await, success("hello"));
    for (value, body) in [(64 << 10, 0), (1, (64 << 10) + 1)] {
        load(&world, SEND, &until_refused(&send(server.port, value, body), limit, 0), may);
        assert_eq!(world.check("bound", "{}").await, success("hello"), "{value} {body}");
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);

    load(&world, SEND, &until_refused(&send(server.port, 1, 0), limit, 16), may);
    assert_eq!(world.check("bound", "{}").await, success("hello"));
    assert_eq!(server.connections.load(Ordering::SeqCst), 16);

    let cut = "(i32.and (i32.load8_u (i32.const 536)) (i32.eq (i32.load (i32.const 532)) (i32.const 10240)))";
    load(&world, SEND, &(send(server.port, 1, 0) + &expect(cut, 1) + OK), may);
    assert_eq!(world.check("bound", "{}").await, success("hello"));

    // Headers without end: no answer, but no fault either, since the guest did nothing wrong.
    let endless = raw(|_| [b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &[b'x'; 100_000]].concat(), Then::Hold, false).await;
    load(&world, SEND, &(send(endless.port, 1, 0) + &expect("(i32.eqz (i32.load8_u (i32.const 512)))", 1) + OK), may);
    let outcome = world.host.check(call("bound", "{}", Duration::from_secs(2))).await.outcome;
    assert!(matches!(outcome, ProbeOutcome::Failure { .. }), "{outcome:?}");
}

#[tokio::test]
async fn what_crosses_the_border_at_once_is_bounded() {
    let world = world();
    let grow = "(drop (memory.grow (i32.const 64)))";
    load(
        &world,
        LOG,
        &format!("{grow} (call $log (i32.const 2) (i32.const 4096) (i32.const 3000000)) {OK}"),
        Grants::default(),
    );
    let message = fault(&world).await;
    assert!(message.starts_with("it crashed: ") && message.contains("fuel"), "{message}");
    // A list of as many empty texts costs the host as much, though it holds nothing.
    let may = Grants { exec: true, ..Grants::default() };
    let list = format!("{grow} (call $run (i32.const 65536) (i32.const 500000) (i32.const 512)) {OK}");
    load(&world, EXEC, &list, may);
    let message = fault(&world).await;
    assert!(message.starts_with("it crashed: ") && message.contains("fuel"), "{message}");
}

#[tokio::test]
async fn tables_have_a_size_and_a_number() {
    let world = world();
    let grows = "(drop (table.grow (ref.null func) (i32.const 100000))) (i32.const 0)";
    load(&world, "(table 1 funcref)", grows, Grants::default());
    assert_eq!(fault(&world).await, "it wanted a table of more than 20000 elements");
    // As many as there may be, in one module.
    load(&world, "(table 1 funcref) (table 1 funcref) (table 1 funcref)", OK, Grants::default());
    assert_eq!(world.check("bound", "{}").await, success("hello"));
    let refused = |imports: &str| {
        let guest = probe(imports, OK);
        let refused = world.host.load_probe("bound", &guest, Grants::default(), Limits::default()).unwrap_err();
        let causes = std::iter::successors(Some(&refused as &(dyn Error + 'static)), |error| (*error).source());
        causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    };
    for (imports, said) in [
        ("(table 30000 funcref)", "20000"),
        ("(table 1 funcref) (table 1 funcref) (table 1 funcref) (table 1 funcref) (table 1 funcref)", "tables"),
    ] {
        let message = refused(imports);
        assert!(message.contains(said), "{imports}: {message}");
        // The last good one stays.
        assert_eq!(world.check("bound", "{}").await, success("hello"));
    }
}

#[tokio::test]
async fn languages_that_link_libraries_have_room_for_them() {
    let world = world();
    let load = |more| {
        let guest = probe_of_modules(more, "", OK);
        world.host.load_probe("linked", &guest, Grants::default(), Limits::default()).unwrap();
    };
    // As many as componentize-py 0.25 makes with `--stub-wasi`.
    load(38);
    assert_eq!(world.check("linked", "{}").await, success("hello"));
    load(70);
    let outcome = world.check("linked", "{}").await;
    let said = "it is linked of more than 64 modules, which are the most";
    assert_eq!(outcome, ProbeOutcome::Fault { message: said.to_owned() });
}

#[tokio::test]
async fn a_second_memory_is_of_the_same_bound() {
    let world = world();
    let load = |more, body: &str| {
        let guest = probe_of_modules(more, "(memory 300)", body);
        world.host.load_probe("linked", &guest, Grants::default(), Limits::default())
    };
    load(1, &format!("(drop (memory.grow (i32.const 200))) {OK}")).unwrap();
    assert_eq!(world.check("linked", "{}").await, success("hello"));
    load(1, &format!("(drop (memory.grow (i32.const 300))) {OK}")).unwrap();
    let said = "it wanted more than 32768 KiB of memory";
    assert_eq!(world.check("linked", "{}").await, ProbeOutcome::Fault { message: said.to_owned() });
    let refused = load(2, OK).unwrap_err().to_string();
    assert!(refused.ends_with("it has 3 memories, 2 are the most"), "{refused}");
}

#[tokio::test]
async fn guests_with_all_that_they_may_have_do_not_take_it_from_others() {
    let world = world();
    let tables = "(table 1 funcref) (table 1 funcref) (table 1 funcref)";
    load(&world, &[SLEEP, tables].concat(), &format!("(call $sleep (i32.const -1)) {OK}"), Grants::default());
    let checks = (0..128).map(|_| world.host.check(call("bound", "{}", Duration::from_millis(300))));
    let outcomes = futures::future::join_all(checks).await;
    let failed = outcomes.iter().find(|answer| answer.outcome != success("hello"));
    assert!(failed.is_none(), "{failed:?}");
}
