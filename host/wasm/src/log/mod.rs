//! `longshore:log`: lines of guests, bounded in length and rate, in our log. It must not be a way to fill a disk.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub(crate) use crate::bindings::longshore::log::logger::Level;

use crate::bindings::longshore::log::logger::Host;
use crate::call::{Aim, Call};
use crate::limits::{LINE_BURST, LINE_EVERY, MAX_LINE, MAX_LINES};

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
        let mut bucket = self.bucket();
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

    /// Counts a line that is dropped for another reason.
    fn drop_one(&self) {
        self.bucket().dropped += 1;
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call's voice: who speaks, and how much was said. Shared with what the guest prints.
#[derive(Debug)]
pub(crate) struct Voice {
    plugin: Arc<str>,
    pod: String,
    container: String,
    lines: Arc<Lines>,
    said: AtomicU32,
}

impl Voice {
    pub(crate) fn new(plugin: &Arc<str>, lines: &Arc<Lines>, aim: &Aim) -> Self {
        Self {
            plugin: Arc::clone(plugin),
            pod: format!("{}/{}", aim.namespace, aim.pod),
            container: aim.container.clone(),
            lines: Arc::clone(lines),
            said: AtomicU32::new(0),
        }
    }

    /// Another call begins.
    pub(crate) fn renew(&self) {
        self.said.store(0, Ordering::Relaxed);
    }

    /// Writes a line, when the call and the plugin have one left; else it is counted, and the next line says so.
    pub(crate) fn say(&self, level: Level, message: &str) {
        if self.said.load(Ordering::Relaxed) >= MAX_LINES {
            self.lines.drop_one();
            return;
        }
        self.said.fetch_add(1, Ordering::Relaxed);
        let Some(dropped) = self.lines.take() else { return };
        let (plugin, pod, container, line) = (&self.plugin, &self.pod, &self.container, clean(message));
        macro_rules! say {
            ($level:ident) => {
                tracing::$level!(%plugin, %pod, %container, dropped, "plugin says: {line}")
            };
        }
        match level {
            Level::Debug => say!(debug),
            Level::Info => say!(info),
            Level::Warn => say!(warn),
            Level::Error => say!(error),
        }
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
        self.voice().say(level, &message);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Level, Lines, Voice, clean};
    use crate::call::Aim;
    use crate::limits::{LINE_BURST, MAX_LINE, MAX_LINES};

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

    #[test]
    fn lines_beyond_a_calls_share_are_counted() {
        let lines = Arc::new(Lines::default());
        let voice = Voice::new(&"p".into(), &lines, &Aim::default());
        for _ in 0..MAX_LINES + 3 {
            voice.say(Level::Info, "x");
        }
        assert_eq!(lines.take(), Some(3));
        voice.renew();
        voice.say(Level::Info, "x");
        assert_eq!(lines.take(), Some(0));
    }
}
