//! HTTP connections to the daemon, kept for the next request. It must not know what is asked.
//!
//! A new one costs both sides more than most requests do. One is used again when its answer was read to the end and nobody
//! has closed it; a request that it did not take any more goes to a new one.

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bollard::BollardRequest;
use bollard::errors::Error;
use hyper::Response;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;

/// Connections that are kept, streams that go on among them: more than this many pods are not made at a time.
const KEPT: usize = 16;
/// How long one is used again: a burst of calls is over by then, and what lies between may have forgotten it. It is closed
/// at the next request.
const KEPT_FOR: Duration = Duration::from_secs(5);

pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The type of a request's body, for which bollard has no public name.
pub(crate) trait WithBody {
    type Body;
}

impl<B> WithBody for hyper::Request<B> {
    type Body = B;
}

type Sender = SendRequest<<BollardRequest as WithBody>::Body>;

struct Line {
    sender: Sender,
    task: AbortHandle,
    used: Instant,
}

/// See the module. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<Line>>>);

impl Lines {
    /// Sends a request; the answer ends when its head is there. Given up before, the daemon sees that.
    pub(crate) async fn exchange<F>(
        &self,
        connect: impl FnOnce() -> F,
        mut request: BollardRequest,
    ) -> Result<Response<Incoming>, Error>
    where
        F: Future<Output = io::Result<Box<dyn Duplex>>>,
    {
        while let Some(line) = self.idle() {
            match self.send(line, request).await {
                Ok(response) => return Ok(response),
                Err((_, Some(unsent))) => request = unsent,
                Err((error, None)) => return Err(error.into()),
            }
        }
        let stream = connect().await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let task = tokio::spawn(async move {
            // Its errors reach the one who asked.
            let _ = connection.with_upgrades().await;
        });
        let line = Line { sender, task: task.abort_handle(), used: Instant::now() };
        self.send(line, request).await.map_err(|(error, _)| error.into())
    }

    async fn send(
        &self,
        mut line: Line,
        request: BollardRequest,
    ) -> Result<Response<Incoming>, (hyper::Error, Option<BollardRequest>)> {
        let mut hangup = Hangup(Some(line.task.clone()));
        let answer = line.sender.try_send_request(request).await;
        hangup.0 = None;
        match answer {
            Ok(response) => {
                self.keep(line);
                Ok(response)
            }
            Err(mut error) => {
                let unsent = error.take_message();
                Err((error.into_error(), unsent))
            }
        }
    }

    /// One whose last answer was read to its end.
    fn idle(&self) -> Option<Line> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|line| !line.sender.is_closed() && line.used.elapsed() < KEPT_FOR);
        let at = kept.iter().rposition(|line| line.sender.is_ready())?;
        Some(kept.remove(at))
    }

    /// Keeps one whose answer is being read. Of one that is forgotten the answer goes on.
    fn keep(&self, line: Line) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push(Line { used: Instant::now(), ..line });
    }
}

/// Ends a connection's task when the request is given up before its answer has begun, so that the daemon sees it.
struct Hangup(Option<AbortHandle>);

impl Drop for Hangup {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A daemon that answers so many requests on a connection, and then closes it without a word.
    struct Daemon {
        answers: usize,
        connections: Arc<AtomicUsize>,
    }

    impl Daemon {
        async fn connect(&self) -> io::Result<Box<dyn Duplex>> {
            self.connections.fetch_add(1, Ordering::Relaxed);
            let (ours, mut theirs) = tokio::io::duplex(4096);
            let answers = self.answers;
            tokio::spawn(async move {
                let mut seen = Vec::new();
                for _ in 0..answers {
                    while !seen.ends_with(b"\r\n\r\n") {
                        let mut part = [0; 1024];
                        match theirs.read(&mut part).await {
                            Ok(count) if count > 0 => seen.extend_from_slice(&part[..count]),
                            _ => return,
                        }
                    }
                    seen.clear();
                    theirs.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                }
            });
            Ok(Box::new(ours))
        }
    }

    async fn ask(lines: &Lines, daemon: &Daemon) -> Response<Incoming> {
        let request = hyper::Request::get("/").header("host", "docker").body(bollard::body_full(Bytes::new())).unwrap();
        lines.exchange(|| daemon.connect(), request).await.unwrap()
    }

    /// Until each task has seen what became of its connection.
    async fn settle(lines: &Lines) {
        let settled = async {
            while lines.0.lock().unwrap().iter().any(|line| !line.sender.is_ready() && !line.sender.is_closed()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), settled).await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_is_used_again_until_it_is_closed() {
        let lines = Lines::default();
        let daemon = Daemon { answers: 3, connections: Arc::default() };
        for (asked, connections) in [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)] {
            assert_eq!(ask(&lines, &daemon).await.into_body().collect().await.unwrap().to_bytes(), "ok");
            settle(&lines).await;
            assert_eq!(daemon.connections.load(Ordering::Relaxed), connections, "after {asked}");
        }
    }

    #[tokio::test]
    async fn those_that_ask_at_once_have_their_own_and_no_more_than_so_many_are_kept() {
        let lines = Lines::default();
        let daemon = Daemon { answers: 2, connections: Arc::default() };
        let asked = (0..2 * KEPT).map(|_| async {
            assert_eq!(ask(&lines, &daemon).await.into_body().collect().await.unwrap().to_bytes(), "ok");
        });
        futures::future::join_all(asked).await;
        assert_eq!(daemon.connections.load(Ordering::Relaxed), 2 * KEPT);
        assert_eq!(lines.0.lock().unwrap().len(), KEPT);
    }
}
