//! Copies what comes in a trickle with few wake-ups: a process that writes a line or a page at a time would else cost
//! some system calls for each, on both sides of us. It must not hold anything back from whoever waits for it.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::time::Instant;

/// What is copied at a time.
const PIECE: usize = 32 << 10;
/// Pieces without a pause before them, after which small ones are left to gather: what a person sees is sooner over. More of them
/// each time that nothing gathered, which is how questions and answers go.
const TRICKLE: (u32, u32) = (16, 4096);
/// How long they gather: less than the buffers of a pipe and of a socket take to fill.
const PAUSE: Duration = Duration::from_millis(1);

/// Copies until the end of `from`.
///
/// # Errors
/// When reading or writing fails.
pub(crate) async fn copy(from: impl AsyncRead + Unpin, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut from = BufReader::with_capacity(PIECE, from);
    let (mut without_pause, mut trickle) = (0u32, TRICKLE.0);
    // Whether the next piece had time to gather, and about how long those are that had none.
    let (mut waited, mut single) = (false, 0);
    loop {
        let asked = Instant::now();
        let piece = from.fill_buf().await?;
        let length = piece.len();
        if length == 0 {
            return to.flush().await;
        }
        without_pause = if asked.elapsed() > PAUSE { 0 } else { without_pause.saturating_add(1) };
        match waited {
            true if length > 2 * single => trickle = TRICKLE.0,
            true => (without_pause, trickle) = (0, (trickle * 2).min(TRICKLE.1)),
            false => single = length.max(single - single / 16),
        }
        to.write_all(piece).await?;
        from.consume(length);
        waited = without_pause > trickle && length < PIECE / 2;
        if waited {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use super::*;

    /// Counts what it is given, and takes no time.
    #[derive(Default)]
    struct Pieces(Vec<usize>);

    impl AsyncWrite for Pieces {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, piece: &[u8]) -> Poll<io::Result<usize>> {
            self.0.push(piece.len());
            Poll::Ready(Ok(piece.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// What arrives of `count` writes of `length` bytes with pauses between them.
    async fn copied(count: usize, length: usize, pause: Duration) -> Vec<usize> {
        let (mut process, from) = tokio::io::duplex(1 << 20);
        let writing = tokio::spawn(async move {
            for _ in 0..count {
                process.write_all(&vec![1; length]).await.unwrap();
                match pause.is_zero() {
                    true => tokio::task::yield_now().await,
                    false => tokio::time::sleep(pause).await,
                }
            }
        });
        let mut pieces = Pieces::default();
        copy(from, &mut pieces).await.unwrap();
        writing.await.unwrap();
        assert_eq!(pieces.0.iter().sum::<usize>(), count * length);
        pieces.0
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_is_gathered_and_what_comes_after_a_pause_is_not() {
        let trickle = copied(1000, 100, Duration::ZERO).await;
        assert!(trickle.len() < 50, "{trickle:?}");
        let keys = copied(100, 1, Duration::from_millis(10)).await;
        assert_eq!(keys, vec![1; 100]);
    }

    #[tokio::test(start_paused = true)]
    async fn questions_and_answers_are_not_held_up() {
        let (mut client, from) = tokio::io::duplex(64);
        let (mut to, mut server) = tokio::io::duplex(64);
        let copying = tokio::spawn(async move { copy(from, &mut to).await });
        let begun = Instant::now();
        let mut question = [0; 60];
        for turn in 0..10_000 {
            let length = 5 + turn * 7 % 50;
            client.write_all(&vec![1; length]).await.unwrap();
            tokio::io::AsyncReadExt::read_exact(&mut server, &mut question[..length]).await.unwrap();
        }
        // Time goes by only where it is waited for.
        assert!(begun.elapsed() < Duration::from_millis(50), "{:?}", begun.elapsed());
        drop(client);
        copying.await.unwrap().unwrap();
    }
}
