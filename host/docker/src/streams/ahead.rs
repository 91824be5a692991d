//! Reading ahead of whoever wants an output, once its process has ended: Docker drops what was not taken two seconds later.
//! It must not talk to the daemon.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;
use tokio_util::task::AbortOnDropHandle;

/// What is read at a time.
const PIECE: usize = 64 << 10;
/// Most bytes that wait in memory. Docker, its pipes and sockets hold little more than 1 MB of a process that has ended.
const MOST: usize = 4 << 20;

struct Ahead<R> {
    from: R,
    /// From here on the task reads, and nobody else.
    begun: bool,
    held: BytesMut,
    over: bool,
    /// Who waits for bytes.
    reader: Option<Waker>,
    /// The task, when it waits for room.
    filler: Option<Waker>,
}

fn lock<R>(ahead: &Mutex<Ahead<R>>) -> MutexGuard<'_, Ahead<R>> {
    ahead.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Reader<R> {
    ahead: Arc<Mutex<Ahead<R>>>,
    _task: AbortOnDropHandle<()>,
}

/// What comes `from` there. Before the process has ended nothing is held but what the reader asks for.
pub(super) fn ahead(
    from: impl AsyncRead + Send + Unpin + 'static,
    ended: impl Future<Output = ()> + Send + 'static,
) -> impl AsyncRead + Send + Unpin + 'static {
    let ahead = Ahead { from, begun: false, held: BytesMut::new(), over: false, reader: None, filler: None };
    let ahead = Arc::new(Mutex::new(ahead));
    let filled = ahead.clone();
    let task = tokio::spawn(async move {
        ended.await;
        poll_fn(|cx| lock(&filled).poll_fill(cx)).await;
    });
    Reader { ahead, _task: AbortOnDropHandle::new(task) }
}

impl<R: AsyncRead + Unpin> Ahead<R> {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.begun = true;
        while !self.over {
            if self.held.len() + PIECE > MOST {
                self.filler = Some(cx.waker().clone());
                return Poll::Pending;
            }
            self.held.reserve(PIECE);
            match poll_read_buf(Pin::new(&mut self.from), cx, &mut self.held) {
                Poll::Ready(Ok(0)) => self.over = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "a stream of Docker's broke");
                    self.over = true;
                }
                Poll::Pending => return Poll::Pending,
            }
            if let Some(reader) = self.reader.take() {
                reader.wake();
            }
        }
        Poll::Ready(())
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Reader<R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut ahead = lock(&self.ahead);
        let done = if ahead.begun {
            let n = ahead.held.len().min(buf.remaining());
            buf.put_slice(&ahead.held[..n]);
            ahead.held.advance(n);
            if let Some(filler) = ahead.filler.take() {
                filler.wake();
            }
            if n > 0 || ahead.over { Poll::Ready(Ok(())) } else { Poll::Pending }
        } else {
            Pin::new(&mut ahead.from).poll_read(cx, buf)
        };
        // What it waits for may come to the task.
        if done.is_pending() {
            ahead.reader = Some(cx.waker().clone());
        }
        done
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn nobody_has_to_read_once_the_process_has_ended() {
        let (mut docker, from) = tokio::io::duplex(1024);
        let (end, ended) = oneshot::channel::<()>();
        let mut reader = ahead(from, async move { ended.await.unwrap() });
        docker.write_all(b"before").await.unwrap();
        let mut before = [0; 6];
        reader.read_exact(&mut before).await.unwrap();
        end.send(()).unwrap();
        let sent = vec![7_u8; 2 << 20];
        docker.write_all(&sent).await.unwrap();
        drop(docker);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).await.unwrap();
        assert!(before == *b"before" && rest == sent);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waited_is_woken_and_what_waits_in_memory_has_a_bound() {
        let (mut docker, from) = tokio::io::duplex(1024);
        let (end, ended) = oneshot::channel::<()>();
        let mut reader = ahead(from, async move { ended.await.unwrap() });
        let (go, goes) = oneshot::channel::<()>();
        let reading = tokio::spawn(async move {
            let first = reader.read_u8().await.unwrap();
            goes.await.unwrap();
            let mut rest = Vec::new();
            reader.read_to_end(&mut rest).await.unwrap();
            (first, rest.len())
        });
        tokio::task::yield_now().await;
        end.send(()).unwrap();
        let sent = 2 * MOST;
        let mut written = 0;
        // Until nothing moves any more.
        while let Ok(n) = timeout(Duration::from_secs(1), docker.write(&[7; 1024])).await {
            written += n.unwrap();
        }
        assert!(written <= MOST + 2048, "{written}");
        go.send(()).unwrap();
        docker.write_all(&vec![7; sent - written]).await.unwrap();
        drop(docker);
        assert_eq!(reading.await.unwrap(), (7, sent - 1));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_read_ahead_of_a_process_that_runs_and_the_connection_goes_with_its_reader() {
        let (mut docker, from) = tokio::io::duplex(1024);
        let reader = ahead(from, pending());
        docker.write_all(&[7; 1024]).await.unwrap();
        let more = timeout(Duration::from_secs(1), docker.write_all(&[7])).await;
        assert!(more.is_err());
        drop(reader);
        let mut nothing = Vec::new();
        assert_eq!(docker.read_to_end(&mut nothing).await.unwrap(), 0);
    }
}
