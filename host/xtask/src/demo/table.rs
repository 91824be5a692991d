//! The pods on the screen: a table that redraws on a terminal, one line for each change elsewhere.
//! Must not ask for anything.

use std::{collections::BTreeMap, io::Write as _, time::Instant};

use super::pods::Shown;
use crate::say;

/// What was shown last.
#[derive(Debug)]
pub(super) struct Table {
    started: Instant,
    live: bool,
    lines: usize,
    last: BTreeMap<String, Shown>,
}

impl Table {
    /// An empty table; times are counted from `started`.
    pub(super) fn new(started: Instant) -> Self {
        Self { started, live: say::on_terminal(), lines: 0, last: BTreeMap::new() }
    }

    /// Shows `pods`.
    pub(super) fn show(&mut self, pods: &[Shown]) {
        let now: BTreeMap<_, _> = pods.iter().map(|pod| (pod.name.clone(), pod.clone())).collect();
        let seconds = self.started.elapsed().as_secs_f32();
        if self.live {
            self.redraw(pods, seconds);
        } else {
            for (name, pod) in &now {
                if self.last.get(name) != Some(pod) {
                    let ready = if pod.ready { "Ready" } else { "not Ready" };
                    let Shown { containers, status, restarts, ip, .. } = pod;
                    say!("{seconds:6.1} s  {name}: {ready}, {containers}, {status}, {restarts} restarts {ip}");
                }
            }
            for name in self.last.keys().filter(|name| !now.contains_key(*name)) {
                say!("{seconds:6.1} s  {name}: gone");
            }
        }
        self.last = now;
    }

    /// Prints a line that stays, above the table from now on.
    pub(super) fn note(&mut self, text: &str) {
        self.erase();
        say!("{text}");
        self.lines = 0;
    }

    fn redraw(&mut self, pods: &[Shown], seconds: f32) {
        self.erase();
        let mut out =
            format!("{:<24} {:<6} {:<18} {:<9} {:<15}  {seconds:.0} s\n", "NAME", "READY", "STATUS", "RESTARTS", "IP");
        for pod in pods {
            let Shown { name, containers, status, restarts, ip, .. } = pod;
            let mark = if pod.ready { "\x1b[32m" } else { "\x1b[33m" };
            out.push_str(&format!("{name:<24} {mark}{containers:<6} {status:<18}\x1b[0m {restarts:<9} {ip:<15}\n"));
        }
        self.lines = pods.len() + 1;
        let mut stdout = std::io::stdout().lock();
        let _ = stdout.write_all(out.as_bytes());
        let _ = stdout.flush();
    }

    fn erase(&self) {
        if self.live && self.lines > 0 {
            let mut stdout = std::io::stdout().lock();
            let _ = write!(stdout, "\x1b[{}A\x1b[J", self.lines);
        }
    }
}
