//! Blocking reads that may hang, kept from hanging who asks.
//!
//! A read of a dead NFS server's file system never returns and its thread cannot be ended, so what counts is that
//! there are few of them: each guard lets a fixed number run, and who comes later waits no longer than the limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(2);

/// A place that is read, and the reads of it that are under way.
#[derive(Debug)]
pub(crate) struct Guard {
    what: String,
    limit: Duration,
    under_way: Arc<Semaphore>,
    silent: AtomicBool,
}

impl Guard {
    /// `what` is for the log; `most` reads run at a time.
    pub(crate) fn new(what: String, most: usize) -> Guard {
        Guard { what, limit: LIMIT, under_way: Arc::new(Semaphore::new(most)), silent: AtomicBool::new(false) }
    }

    /// Runs a blocking read on a thread of its own; `None` when there is no answer in time.
    pub(crate) async fn read<T: Send + 'static>(&self, read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let until = Instant::now() + self.limit;
        let answer = async {
            let permit = timeout_at(until, self.under_way.clone().acquire_owned()).await.ok()?.ok()?;
            let task = tokio::task::spawn_blocking(move || {
                let found = read();
                drop(permit);
                found
            });
            timeout_at(until, task).await.ok()?.ok()
        };
        let answer = answer.await;
        let silent = answer.is_none();
        if self.silent.swap(silent, Ordering::Relaxed) != silent {
            if silent {
                tracing::warn!(what = self.what, seconds = self.limit.as_secs_f64(), "no answer in time");
            } else {
                tracing::info!(what = self.what, "answers again");
            }
        }
        answer
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_hangs_holds_no_more_threads_than_it_may_and_nobody_up() {
        let mut guard = Guard::new("test".to_owned(), 2);
        assert_eq!(guard.read(|| 1).await, Some(1));
        guard.limit = Duration::from_millis(30);
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = Arc::new(std::sync::Mutex::new(held));
        let ran = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        for _ in 0..5 {
            let (held, ran) = (held.clone(), ran.clone());
            let asked = guard.read(move || {
                ran.fetch_add(1, Ordering::SeqCst);
                let _ = held.lock().unwrap().recv();
            });
            assert_eq!(asked.await, None);
        }
        assert!(ran.load(Ordering::SeqCst) <= 2);
        drop(release);
        guard.limit = LIMIT;
        while guard.under_way.available_permits() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(guard.read(|| 2).await, Some(2));
    }
}
