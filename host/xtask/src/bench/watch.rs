//! Pods as a watch tells them, the agent's or the API server's: no polling, so that looking costs next to nothing.
//! Must not ask anything else.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::{
    demo::pods::{Shown, shown},
    process,
};

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<String, Shown>,
    /// The first whole list has been told.
    synced: bool,
    ended: bool,
}

/// A watch that is being read by a thread of its own, which ends when the agent does.
#[derive(Debug)]
pub(super) struct Watch {
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Watch {
    /// Begins to watch at `socket`. The watch at `path` begins with all there is and a bookmark, unless it is `known` that
    /// there is nothing yet.
    ///
    /// # Errors
    /// When nobody listens there (yet).
    pub(super) fn open(socket: &Path, path: &str, known: bool) -> Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        // HTTP/1.0: the answer comes as plain lines, without chunks around them.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let state = State { synced: known, ..State::default() };
        let shared = Arc::new((Mutex::new(state), Condvar::new()));
        let theirs = Arc::clone(&shared);
        thread::Builder::new().name("watch".to_owned()).spawn(move || {
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { break };
                // The head's lines are no JSON.
                if let Ok(event) = serde_json::from_str::<Value>(&line) {
                    take(&mut lock(&theirs.0), &event);
                    theirs.1.notify_all();
                }
            }
            lock(&theirs.0).ended = true;
            theirs.1.notify_all();
        })?;
        Ok(Self { shared })
    }

    /// Waits until the pods are as `good` has it.
    ///
    /// # Errors
    /// When they are not within `limit` (the pods are in the message), the agent ended, or we were interrupted.
    pub(super) fn wait(&self, what: &str, limit: Duration, good: impl Fn(&[Shown]) -> bool) -> Result<Vec<Shown>> {
        let deadline = Instant::now() + limit;
        let mut state = lock(&self.shared.0);
        loop {
            let pods: Vec<Shown> = state.pods.values().cloned().collect();
            if state.synced && good(&pods) {
                return Ok(pods);
            }
            if state.ended {
                bail!("{what}: the watch ended meanwhile");
            }
            if Instant::now() > deadline {
                let states: Vec<_> = pods.iter().map(|pod| format!("{}: {}", pod.name, pod.status)).collect();
                bail!("{what}: not within {} s: {}", limit.as_secs(), states.join(", "));
            }
            process::check_interrupted()?;
            let waited = self.shared.1.wait_timeout(state, Duration::from_millis(200));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn take(state: &mut State, event: &Value) {
    let pod = shown(&event["object"]);
    match event["type"].as_str() {
        Some("ADDED" | "MODIFIED") => {
            state.pods.insert(pod.name.clone(), pod);
        }
        Some("DELETED") => {
            state.pods.remove(&pod.name);
        }
        Some("BOOKMARK") => state.synced = true,
        _ => {}
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
