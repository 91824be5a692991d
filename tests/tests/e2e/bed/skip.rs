//! A test that cannot be run on this machine says so, and is counted as left out by `cargo xtask test`.

use std::{fs::OpenOptions, io::Write, thread};

/// Why the test that runs is left out; it is to return then.
pub(crate) fn skip(reason: &str) {
    eprintln!("SKIPPED: {reason}");
    let Some(list) = std::env::var_os("LONGSHORE_TEST_SKIPS") else { return };
    let line = format!("{}: {}\n", thread::current().name().unwrap_or("a test"), reason.replace('\n', " "));
    let list = OpenOptions::new().create(true).append(true).open(list);
    // In one write: others may be left out at the same time.
    list.and_then(|mut list| list.write_all(line.as_bytes())).expect("the list of what is left out can be written");
}
