//! The agent's tasks by name, and how they end: together.
//!
//! One token cancels all. A task that ends although nobody asked it to cancels the others, and the process ends
//! with an error: what restarts the agent (systemd) restarts it whole, and no pod notices.

use std::time::Duration;

use anyhow::anyhow;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long tasks may take to end once they are asked to.
const GRACE: Duration = Duration::from_secs(10);

/// The agent's tasks.
pub(crate) struct Supervisor {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    stop: CancellationToken,
}

impl Supervisor {
    /// No tasks yet.
    pub(crate) fn new() -> Self {
        Supervisor { tasks: JoinSet::new(), stop: CancellationToken::new() }
    }

    /// The token that ends all tasks.
    pub(crate) fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task, which is to run until the token is cancelled.
    pub(crate) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// Waits for SIGTERM or SIGINT, or for a task that ends by itself; then ends all. A second signal does not wait.
    pub(crate) async fn supervise(mut self, stopping: impl FnOnce()) -> anyhow::Result<()> {
        let mut signals = Signals::new()?;
        // Cancel safe: signals and tasks that were not taken are there at the next turn.
        let mut failure = tokio::select! {
            name = signals.next() => {
                tracing::info!("{name}: stopping; the pods keep running, and the next start takes them on");
                None
            }
            ended = self.tasks.join_next() => Some(unexpected(ended)),
        };
        stopping();
        self.stop.cancel();
        let drain = async {
            let mut failure = None;
            while let Some(ended) = self.tasks.join_next().await {
                if let Some(error) = ended_badly(ended) {
                    tracing::error!("{error:#}");
                    failure = Some(error);
                }
            }
            failure
        };
        tokio::select! {
            late = drain => failure = failure.or(late),
            name = signals.next() => {
                tracing::warn!("{name} again: ending without waiting; the pods keep running");
                failure = failure.or_else(|| Some(anyhow!("ended by a second signal")));
            }
            () = tokio::time::sleep(GRACE) => {
                failure = failure.or_else(|| Some(anyhow!("some tasks did not end within {GRACE:?}")));
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

type Ended = Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>;

fn ended_badly(ended: Ended) -> Option<anyhow::Error> {
    match ended {
        Ok((_, Ok(()))) => None,
        Ok((name, Err(error))) => Some(error.context(format!("{name} failed"))),
        Err(error) => Some(anyhow!("a task of the agent failed: {error}")),
    }
}

fn unexpected(ended: Option<Ended>) -> anyhow::Error {
    match ended {
        None => anyhow!("the agent has nothing to do"),
        Some(Ok((name, Ok(())))) => anyhow!("{name} ended, although nobody asked it to"),
        Some(ended) => ended_badly(ended).unwrap_or_else(|| anyhow!("a task of the agent ended")),
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_by_itself_ends_all_with_an_error() {
        let mut supervisor = Supervisor::new();
        let stop = supervisor.stop_token();
        supervisor.spawn("waiter", async move {
            stop.cancelled().await;
            Ok(())
        });
        supervisor.spawn("quitter", async { Ok(()) });
        let error = supervisor.supervise(|| {}).await.unwrap_err();
        assert_eq!(error.to_string(), "quitter ended, although nobody asked it to");
    }

    #[tokio::test]
    async fn a_failure_names_its_task() {
        let mut supervisor = Supervisor::new();
        supervisor.spawn("socket", async { Err(anyhow!("no place")) });
        let error = supervisor.supervise(|| {}).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "socket failed: no place");
        let mut supervisor = Supervisor::new();
        supervisor.spawn("loops", async { panic!("oh") });
        assert!(supervisor.supervise(|| {}).await.unwrap_err().to_string().contains("a task of the agent failed"));
    }
}
