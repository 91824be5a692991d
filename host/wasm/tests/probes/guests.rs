//! Guests in WebAssembly text, made components with the WIT of `wit/`: what no compiler would write.

use std::path::Path;

use wit_component::{ComponentEncoder, LibraryInfo, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// A probe whose `check` has this body. It may return `$report`, a report with the message of `$message` and `$length`.
pub(crate) fn probe(imports: &str, body: &str) -> Vec<u8> {
    made(&probe_text(imports, body), &PROBE, None, "probe")
}

/// The same, of a toolchain that imports WASI of that version.
pub(crate) fn wasi_probe(version: &str, imports: &str, body: &str) -> Vec<u8> {
    let text = probe_text(imports, body).replace("@0.2.0", &format!("@{version}"));
    made(&text, &[PROBE.as_slice(), &["source"]].concat(), Some(version), "probe")
}

/// A probe that begins with so many pages of memory.
pub(crate) fn probe_of_pages(pages: u32) -> Vec<u8> {
    let text = probe_text("", OK).replacen(
        r#"(memory (export "memory") 2)"#,
        &format!(r#"(memory (export "memory") {pages})"#),
        1,
    );
    made(&text, &PROBE, None, "probe")
}

/// A probe that looks at its configuration so.
pub(crate) fn probe_that_validates(body: &str) -> Vec<u8> {
    let harmless = "(param i32 i32) (result i32) (i32.const 16))";
    let text = probe_text("", OK).replacen(harmless, &format!("(param i32 i32) (result i32) {body})"), 1);
    assert!(text.contains(body), "the guest's text has changed");
    made(&text, &PROBE, None, "probe")
}

/// A probe that is linked of so many modules more, as languages with libraries are, each with this in it.
pub(crate) fn probe_of_modules(more: usize, part: &str, body: &str) -> Vec<u8> {
    let library = wat::parse_str(format!(r#"(module (func (export "f")) {part})"#)).unwrap();
    let alone = || LibraryInfo { instantiate_after_shims: false, arguments: Vec::new() };
    let whole = encoder(&probe_text("", body), &PROBE, None, "probe");
    let whole = (0..more).fold(whole, |whole, at| whole.library(&format!("library{at}"), &library, alone()).unwrap());
    whole.validate(true).encode().unwrap()
}

const PROBE: [&str; 7] = ["types", "log", "clock", "exec", "dial", "http", "probe"];

fn probe_text(imports: &str, body: &str) -> String {
    format!(
        r#"(module
            {imports}
            (memory (export "memory") 2)
            (global $free (mut i32) (i32.const 65536))
            (func $allocate (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (local $at i32)
                (local.set $at (i32.and (i32.add (global.get $free) (i32.const 15)) (i32.const -16)))
                (global.set $free (i32.add (local.get $at) (local.get 3)))
                (if (i32.gt_u (global.get $free) (i32.mul (memory.size) (i32.const 65536)))
                    (then (drop (memory.grow (i32.const 1)))))
                (local.get $at))
            (func (export "longshore:probe/prober@0.1.0#validate") (param i32 i32) (result i32) (i32.const 16))
            ;; result<report, plugin-error> at 64: ok, healthy, a message of so many bytes, no attributes.
            (func $report (param $health i32) (param $message i32) (param $length i32) (result i32)
                (i32.store8 (i32.const 64) (i32.const 0))
                (i32.store8 (i32.const 68) (local.get $health))
                (i32.store (i32.const 72) (local.get $message))
                (i32.store (i32.const 76) (local.get $length))
                (i32.store (i32.const 80) (i32.const 0))
                (i32.store (i32.const 84) (i32.const 0))
                (i32.const 64))
            (func $recurse (param i32) (result i32)
                (i32.add (call $recurse (i32.add (local.get 0) (i32.const 1))) (i32.const 1)))
            (func $check (export "longshore:probe/prober@0.1.0#check") (param $arguments i32) (result i32)
                (local $count i32)
                {body})
            (data (i32.const 256) "hello")
        )"#
    )
}

/// A source whose `poll` has this body. It may return `$pods`, a snapshot of the manifest at 1024, with a cursor.
pub(crate) fn source(imports: &str, body: &str, manifest: &str) -> Vec<u8> {
    made(&source_text(imports, body, manifest), &["types", "log", "clock", "http", "source"], None, "source")
}

/// The same, of a toolchain that imports WASI.
pub(crate) fn wasi_source(imports: &str, body: &str, manifest: &str) -> Vec<u8> {
    let text = source_text(imports, body, manifest);
    made(&text, &[PROBE.as_slice(), &["source"]].concat(), Some("0.2.0"), "source")
}

fn source_text(imports: &str, body: &str, manifest: &str) -> String {
    let (length, data) = (manifest.len(), manifest.replace('"', "\\22").replace('\n', "\\0a"));
    format!(
        r#"(module
            {imports}
            (memory (export "memory") 2)
            (global $free (mut i32) (i32.const 65536))
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (local $at i32)
                (local.set $at (i32.and (i32.add (global.get $free) (i32.const 15)) (i32.const -16)))
                (global.set $free (i32.add (local.get $at) (local.get 3)))
                (local.get $at))
            (func (export "longshore:source/provider@0.1.0#validate") (param i32 i32) (result i32) (i32.const 16))
            ;; result<batch, plugin-error> at 64: ok, a snapshot of so many entries at 512, a cursor of so many bytes.
            (func $answer (param $entries i32) (param $cursor i32) (result i32)
                (i32.store8 (i32.const 64) (i32.const 0))
                (i32.store8 (i32.const 68) (i32.const 1))
                (i32.store (i32.const 72) (i32.const 512))
                (i32.store (i32.const 76) (local.get $entries))
                (i32.store (i32.const 88) (i32.const 1024))
                (i32.store (i32.const 92) (local.get $cursor))
                (i32.store (i32.const 96) (i32.const 0))
                (i32.store (i32.const 520) (i32.const 1024))
                (i32.store (i32.const 524) (i32.const {length}))
                (i32.const 64))
            (func $pods (result i32) (call $answer (i32.const 1) (i32.const 1)))
            (func (export "longshore:source/provider@0.1.0#poll")
                (param $config i32) (param i32) (param $again i32) (param i32) (param i32) (param i32) (result i32)
                {body})
            (data (i32.const 1024) "{data}")
        )"#
    )
}

fn made(text: &str, packages: &[&str], wasi: Option<&str>, world: &str) -> Vec<u8> {
    encoder(text, packages, wasi, world).validate(true).encode().unwrap()
}

fn encoder(text: &str, packages: &[&str], wasi: Option<&str>, world: &str) -> ComponentEncoder {
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit");
    let mut resolve = Resolve::default();
    let mut package = None;
    for name in packages {
        package = Some(resolve.push_path(wit.join(name)).unwrap().0);
    }
    if let Some(version) = wasi {
        let text = include_str!("wasi.wit").replace("@0.2.0", &format!("@{version}"));
        package = Some(resolve.push_str("wasi.wit", &text).unwrap());
    }
    let world = resolve.select_world(&[package.unwrap()], Some(world)).unwrap();
    let mut module = wat::parse_str(text).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().module(&module).unwrap()
}

pub(crate) const LOG: &str = r#"(import "longshore:log/logger@0.1.0" "log" (func $log (param i32 i32 i32)))"#;

pub(crate) const SLEEP: &str = r#"(import "longshore:clock/clock@0.1.0" "sleep" (func $sleep (param i32)))"#;

/// `connect(port, no TLS, no timeout)`; the answer is written at the last argument.
pub(crate) const CONNECT: &str = r#"(import "longshore:dial/tcp@0.1.0" "[static]connection.connect"
    (func $connect (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))"#;

pub(crate) const READ: &str = r#"(import "longshore:dial/tcp@0.1.0" "[method]connection.read"
    (func $read (param i32 i32 i32 i32 i32)))"#;

pub(crate) const WRITE: &str = r#"(import "longshore:dial/tcp@0.1.0" "[method]connection.write"
    (func $write (param i32 i32 i32 i32 i32 i32)))"#;

/// `start-tls(connection, no name, no protocols, no timeout)`; the answer is written at the last argument.
pub(crate) const START_TLS: &str = r#"(import "longshore:dial/tcp@0.1.0" "[method]connection.start-tls"
    (func $tls (param i32 i32 i32 i32 i32 i32 i32 i32 i32)))"#;

/// The end of a check that found what it should: "hello".
pub(crate) const OK: &str = "(call $report (i32.const 0) (i32.const 256) (i32.const 5))";

/// Ends the check as unhealthy, with so many letters of "hello", unless the condition holds.
pub(crate) fn expect(condition: &str, step: u32) -> String {
    format!(
        "(if (i32.eqz {condition}) (then (return (call $report (i32.const 2) (i32.const 256) (i32.const {step})))))"
    )
}
