//! The task of a session: reads, writes, watches idleness, probes for windows, and closes without losing a tail.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};

use super::input::Input;
use super::state::{Flow, Shared};

/// A peer that uses windows opens one before it answers a ping behind the data, or so soon after. Every stream to one
/// that knows none, and so to every kubectl, stands still for it once.
const AFTER_ANSWER: Duration = Duration::from_millis(10);

/// How the reading side of a session ended.
pub(crate) enum Ended {
    /// The peer is gone.
    Gone,
    /// It broke the protocol, or said goodbye: answer with this status and close.
    Close(u32),
}

/// Reads a protocol's frames into the streams of a session.
pub(crate) trait Demux: Send + 'static {
    /// Reads one frame; says how that ended the reading, if it did.
    fn frame<R: AsyncRead + Send + Unpin>(
        &mut self,
        input: &mut Input<R>,
        shared: &Shared,
    ) -> impl Future<Output = std::io::Result<Option<Ended>>> + Send;

    /// Reads until the peer is gone or must be sent away.
    fn run<R: AsyncRead + Send + Unpin>(
        &mut self,
        input: &mut Input<R>,
        shared: &Shared,
    ) -> impl Future<Output = Ended> + Send {
        async move {
            loop {
                shared.room_for_answers().await;
                match self.frame(input, shared).await {
                    Ok(None) => {}
                    Ok(Some(ended)) => return ended,
                    Err(_) => return Ended::Gone,
                }
            }
        }
    }
}

/// The handle that keeps a session: when the last is dropped, the session closes in order.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    _guard: Arc<Guard>,
}

#[derive(Debug)]
struct Guard(Arc<Shared>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.close(self.0.codec.fine());
    }
}

impl Session {
    /// Closes in order and waits until the client has closed too, who then has everything, or is gone, or had
    /// [`Limits::farewell`](crate::Limits::farewell) for it. The connection is closed then.
    pub(crate) async fn close(&self) {
        self.shared.patient.store(true, Ordering::Relaxed);
        self.shared.close(self.shared.codec.fine());
        self.shared.done.cancelled().await;
    }
}

/// Starts a session over a byte stream.
pub(crate) fn start<IO>(io: IO, shared: Arc<Shared>, demux: impl Demux) -> Session
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (reader, writer) = tokio::io::split(io);
    tokio::spawn({
        let shared = shared.clone();
        async move {
            drive(reader, writer, &shared, demux).await;
            shared.done.cancel();
        }
    });
    Session { _guard: Arc::new(Guard(shared.clone())), shared }
}

async fn drive<IO>(reader: ReadHalf<IO>, mut io: WriteHalf<IO>, shared: &Shared, mut demux: impl Demux)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut input = Input::new(reader);
    {
        let mut read = std::pin::pin!(demux.run(&mut input, shared));
        let mut overdue = std::pin::pin!(overdue(shared));
        let mut heard_all = false;
        let written = {
            let mut write = std::pin::pin!(write(&mut io, shared));
            tokio::select! {
                written = &mut write => written,
                ended = &mut read => {
                    heard_all = true;
                    shared.over.cancel();
                    match ended {
                        Ended::Gone => false,
                        Ended::Close(status) => {
                            shared.close(status);
                            tokio::select! {
                                written = &mut write => written,
                                () = &mut overdue => false,
                            }
                        }
                    }
                }
                () = &mut overdue => false,
                () = watch(shared) => false,
            }
        };
        if written && !heard_all && shared.patient.load(Ordering::Relaxed) {
            // What was written may be in sockets' buffers still, of megabytes, and those between us and the client
            // close both ways when one of us closes: whatever the client then still sends, if only a ping, makes a
            // kernel throw away what the client has not read yet. So it is the client who closes first.
            tokio::select! {
                _ = &mut read => {}
                () = answer(&mut io, shared) => {}
                () = &mut overdue => {}
                () = watch(shared) => {}
            }
        }
        if !written {
            shared.die();
        }
    }
    let shut = tokio::time::timeout(shared.options.limits.linger, io.shutdown()).await;
    if matches!(shut, Ok(Ok(()))) && !shared.state().dead {
        // Closing a socket with unread input makes the kernel send a reset.
        let drained = async {
            while let Ok(piece) = input.some(usize::MAX).await {
                let n = piece.len();
                if n == 0 {
                    break;
                }
                input.consume(n);
            }
        };
        let _ = tokio::time::timeout(shared.options.limits.linger.min(Duration::from_secs(5)), drained).await;
    }
    shared.die();
}

/// Returns when a session that closes has had its time.
async fn overdue(shared: &Shared) {
    shared.closing.cancelled().await;
    let limits = &shared.options.limits;
    let patient = shared.patient.load(Ordering::Relaxed);
    tokio::time::sleep(if patient { limits.farewell } else { limits.linger }).await;
}

/// Answers a client that has not closed yet; returns when it cannot be written to.
async fn answer<IO: AsyncWrite>(io: &mut WriteHalf<IO>, shared: &Shared) {
    loop {
        shared.to_write.notified().await;
        if !write(io, shared).await {
            return;
        }
    }
}

/// Writes until the session closes; `false` if the peer is gone.
async fn write<IO: AsyncWrite>(io: &mut WriteHalf<IO>, shared: &Shared) -> bool {
    let (mut out, mut urgent) = (Vec::new(), Vec::new());
    loop {
        let ordered = {
            let mut state = shared.state();
            std::mem::swap(&mut state.out, &mut out);
            std::mem::swap(&mut state.urgent, &mut urgent);
            state.wake_writers();
            if out.is_empty() && urgent.is_empty() {
                if state.closing {
                    return true;
                }
                state.out = Vec::new();
            }
            out.len()
        };
        shared.room.notify_one();
        if out.is_empty() && urgent.is_empty() {
            // An idle session holds no buffers.
            (out, urgent) = (Vec::new(), Vec::new());
            shared.to_write.notified().await;
            continue;
        }
        for buffer in [&mut urgent, &mut out] {
            if io.write_all(buffer).await.is_err() {
                return false;
            }
            buffer.clear();
        }
        if io.flush().await.is_err() {
            return false;
        }
        let mut state = shared.state();
        state.written += ordered as u64;
        state.wake_writers();
    }
}

/// Returns when the session was idle for too long and could not even say so; probes and pings meanwhile.
async fn watch(shared: &Shared) {
    let options = &shared.options;
    let mut ping = tokio::time::interval(options.keepalive.unwrap_or(Duration::from_secs(3600)));
    ping.tick().await;
    loop {
        let left = options.idle_timeout.saturating_sub(shared.idle());
        tokio::select! {
            () = tokio::time::sleep(left) => {
                if shared.idle() >= options.idle_timeout {
                    tracing::debug!(idle = ?options.idle_timeout, "closing an idle streaming connection");
                    shared.over.cancel();
                    shared.close(shared.codec.fine());
                    tokio::time::sleep(options.limits.linger).await;
                    return;
                }
            }
            _ = ping.tick(), if options.keepalive.is_some() && shared.codec != super::Codec::Spdy => shared.ping(),
            () = shared.probe.notified() => probe(shared).await,
        }
    }
}

/// Learns whether a peer whose window is used up knows windows at all; see the `spdy` module.
async fn probe(shared: &Shared) {
    {
        let mut state = shared.state();
        let id = state.next_ping;
        state.next_ping = (id + 2) & 0x7fff_ffff;
        // In order behind the data: a peer that uses windows opens one before it answers.
        state.append(|out| shared.codec.ping(out, id.max(2)));
    }
    shared.to_write.notify_one();
    let _ = tokio::time::timeout(Duration::from_secs(2), shared.pong.notified()).await;
    tokio::time::sleep(AFTER_ANSWER).await;
    let mut state = shared.state();
    let state = &mut *state;
    for flow in [&mut state.stream_flow, &mut state.session_flow] {
        if *flow == Flow::Probing {
            *flow = Flow::Ignored;
        }
    }
    state.wake_all_writers();
}
