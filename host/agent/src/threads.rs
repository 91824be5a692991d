//! Threads apart from the loops', for what strangers can reach: however much they ask for, the loops and probes keep
//! theirs. Must not know what runs on them.

use std::time::Duration;

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};
use tokio_util::task::AbortOnDropHandle;

/// One more than one core's, so that a large copy does not hold up a short answer.
const WORKERS: usize = 2;
/// For files, which may be on slow disks.
const BLOCKING: usize = 8;
/// Niceness over the agent's own: a third of the loops' share where both want more than there is.
const NICER: i32 = 5;

/// See the module. Dropped, they end, and what runs on them.
pub(crate) struct Threads(Option<Runtime>);

impl Threads {
    /// Starts them under a name of at most 15 bytes, which is what the system keeps of it.
    ///
    /// # Errors
    /// When the system gives none.
    pub(crate) fn start(name: &str) -> std::io::Result<Self> {
        // Once for all: a thread begins with the niceness of the one that starts it, which may be one of these.
        let nice = (niceness() + NICER).min(19);
        let runtime = Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(BLOCKING)
            .thread_keep_alive(Duration::from_secs(5))
            .thread_name(name)
            .on_thread_start(move || set_niceness(nice))
            .enable_all()
            .build()?;
        Ok(Threads(Some(runtime)))
    }

    /// Runs something on them to its end; dropped, it is ended. What it opens belongs to them.
    ///
    /// # Errors
    /// When it panics, or the threads end before it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let runtime = self.0.as_ref().context("these threads have ended")?;
        Ok(AbortOnDropHandle::new(runtime.spawn(work)).await?)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // It may be dropped by a task, which must not wait.
            runtime.shutdown_background();
        }
    }
}

/// The calling thread's: Linux keeps one for each, whatever POSIX says.
fn niceness() -> i32 {
    rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap_or(0)
}

fn set_niceness(nice: i32) {
    // Where it may not be set, they are as good as others, which is no reason to serve nobody.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), nice);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn they_are_nicer_and_named_and_a_panic_is_an_error() {
        let threads = Threads::start("strangers").unwrap();
        let (name, nice) =
            threads.run(async { (std::thread::current().name().map(str::to_owned), niceness()) }).await.unwrap();
        assert_eq!((name.as_deref(), nice), (Some("strangers"), niceness() + NICER));
        let deeper = threads.run(async { tokio::task::spawn_blocking(niceness).await }).await.unwrap();
        assert_eq!(deeper.unwrap(), niceness() + NICER);
        assert!(threads.run(async { panic!("oh") }).await.is_err());
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_ends() {
        let threads = Threads::start("strangers").unwrap();
        let (held, ended) = tokio::sync::oneshot::channel::<()>();
        let work = threads.run(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        assert!(futures::poll!(std::pin::pin!(work)).is_pending());
        assert!(ended.await.is_err());
    }
}
