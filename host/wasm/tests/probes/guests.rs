//! Guests in WebAssembly text, made components with the WIT of `wit/`: what no compiler would write.

use std::path::Path;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// A probe whose `check` has this body. It may return `$report`, a report with the message of `$message` and `$length`.
pub(crate) fn probe(imports: &str, body: &str) -> Vec<u8> {
    component(&format!(
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
    ))
}

/// A source whose `poll` has this body. It may return `$pods`, a snapshot of the manifest at 1024, with a cursor.
pub(crate) fn source(imports: &str, body: &str, manifest: &str) -> Vec<u8> {
    let (length, data) = (manifest.len(), manifest.replace('"', "\\22").replace('\n', "\\0a"));
    let text = format!(
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
    );
    made(&text, &["types", "log", "clock", "http", "source"], "source")
}

fn component(text: &str) -> Vec<u8> {
    made(text, &["types", "log", "clock", "exec", "dial", "http", "probe"], "probe")
}

fn made(text: &str, packages: &[&str], world: &str) -> Vec<u8> {
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit");
    let mut resolve = Resolve::default();
    let mut package = None;
    for name in packages {
        package = Some(resolve.push_path(wit.join(name)).unwrap().0);
    }
    let world = resolve.select_world(&[package.unwrap()], Some(world)).unwrap();
    let mut module = wat::parse_str(text).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().validate(true).module(&module).unwrap().encode().unwrap()
}

pub(crate) const LOG: &str = r#"(import "longshore:log/logger@0.1.0" "log" (func $log (param i32 i32 i32)))"#;

pub(crate) const SLEEP: &str = r#"(import "longshore:clock/clock@0.1.0" "sleep" (func $sleep (param i32)))"#;

/// `connect(port, no TLS, no timeout)`; the answer is written at the last argument.
pub(crate) const CONNECT: &str = r#"(import "longshore:dial/tcp@0.1.0" "[static]connection.connect"
    (func $connect (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))"#;
