//! `longshore:log`: lines of guests, bounded in length and rate, in our log. It must not be a way to fill a disk.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::bindings::longshore::log::logger::{Host, Level};
use crate::call::Call;
use crate::limits::{LINE_BURST, LINE_EVERY, MAX_LINE};

/// How many lines a plugin may still write: a bucket that fills slowly.
#[derive(Debug)]
pub(crate) struct Lines(Mutex<Bucket>);

#[derive(Debug)]
struct Bucket {
    left: u32,
    filled: Instant,
    dropped: u64,
}

impl Default for Lines {
    fn default() -> Self {
        Self(Mutex::new(Bucket { left: LINE_BURST, filled: Instant::now(), dropped: 0 }))
    }
}

impl Lines {
    /// Takes a line; `None` when there is none, else how many were dropped since the last one.
    pub(crate) fn take(&self) -> Option<u64> {
        let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gained = bucket.filled.elapsed().as_nanos() / LINE_EVERY.as_nanos();
        if gained > 0 {
            bucket.left = bucket.left.saturating_add(u32::try_from(gained).unwrap_or(LINE_BURST)).min(LINE_BURST);
            bucket.filled = Instant::now();
        }
        if bucket.left == 0 {
            bucket.dropped += 1;
            return None;
        }
        bucket.left -= 1;
        Some(std::mem::take(&mut bucket.dropped))
    }
}

/// A line as it may stand in a log: cut, and without anything that a terminal would obey.
fn clean(line: &str) -> String {
    let mut cut = line.len().min(MAX_LINE);
    while !line.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut clean = String::with_capacity(cut + 4);
    for character in line[..cut].chars() {
        if character.is_control() {
            let _ = write!(clean, "{}", character.escape_default());
        } else {
            clean.push(character);
        }
    }
    if cut < line.len() {
        clean.push_str(" …");
    }
    clean
}

impl Host for Call {
    fn log(&mut self, level: Level, message: String) -> wasmtime::Result<()> {
        if !self.may_log() {
            return Ok(());
        }
        let Some(dropped) = self.lines.take() else { return Ok(()) };
        let (plugin, aim, line) = (&self.plugin, &self.aim, clean(&message));
        let pod = format_args!("{}/{}", aim.namespace, aim.pod);
        macro_rules! say {
            ($level:ident) => {
                tracing::$level!(%plugin, %pod, container = %aim.container, dropped, "plugin says: {line}")
            };
        }
        match level {
            Level::Debug => say!(debug),
            Level::Info => say!(info),
            Level::Warn => say!(warn),
            Level::Error => say!(error),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Lines, clean};
    use crate::limits::{LINE_BURST, MAX_LINE};

    #[test]
    fn lines_are_cut_and_harmless() {
        assert_eq!(clean("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
        let long = clean(&"ä".repeat(1000));
        assert!(long.len() <= MAX_LINE + 4 && long.ends_with(" …"), "{}", long.len());
    }

    #[test]
    fn lines_run_out() {
        let lines = Lines::default();
        let got = (0..LINE_BURST * 4).filter(|_| lines.take().is_some()).count();
        assert!(got <= LINE_BURST as usize + 2, "{got}");
    }
}
