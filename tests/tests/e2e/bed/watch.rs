//! The pods as the agent's watch tells them, with all that it ever told, so that a test can see what flapped.

use std::{
    collections::BTreeMap,
    io::BufRead,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::http;

/// What was told so far.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// By UID.
    pub(crate) pods: BTreeMap<String, Value>,
    /// Every change, in order.
    pub(crate) history: Vec<(String, Value)>,
    pub(crate) synced: bool,
    pub(crate) ended: bool,
}

/// A watch, read by a thread of its own that ends when the agent does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch(Arc<(Mutex<Told>, Condvar)>);

impl Watch {
    pub(crate) fn open(socket: &Path) -> std::io::Result<Watch> {
        let (_, reader) = http::open(socket, "GET", "/v1/pods?watch=1", "", b"")?;
        reader.get_ref().set_read_timeout(None)?;
        let watch = Watch::default();
        let theirs = watch.clone();
        thread::spawn(move || {
            for line in reader.lines() {
                let Ok(line) = line else { break };
                if let Ok(event) = serde_json::from_str::<Value>(&line) {
                    theirs.take(event);
                }
            }
            theirs.told().ended = true;
            theirs.0.1.notify_all();
        });
        Ok(watch)
    }

    fn take(&self, event: Value) {
        let mut told = self.told();
        let kind = event["type"].as_str().unwrap_or_default().to_owned();
        let uid = event["object"]["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        match kind.as_str() {
            "ADDED" | "MODIFIED" => _ = told.pods.insert(uid, event["object"].clone()),
            "DELETED" => _ = told.pods.remove(&uid),
            _ => told.synced = true,
        }
        told.history.push((kind, event["object"].clone()));
        drop(told);
        self.0.1.notify_all();
    }

    pub(crate) fn told(&self) -> MutexGuard<'_, Told> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `good` finds what it looks for; `None` after `limit`, or when the agent ended.
    pub(crate) fn wait<T>(&self, limit: Duration, mut good: impl FnMut(&Told) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut told = self.told();
        loop {
            if told.synced
                && let Some(found) = good(&told)
            {
                return Some(found);
            }
            if told.ended || Instant::now() > deadline {
                return None;
            }
            let waited = self.0.1.wait_timeout(told, Duration::from_millis(200));
            told = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
