//! The state of a session and of each of its streams.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::wire::Codec;
use crate::options::Options;

/// SPDY's initial window of a stream and of a session, in bytes.
pub(crate) const WINDOW: i64 = 64 << 10;

/// What is known of the peer's use of flow control windows; see the `spdy` module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Nothing yet: the initial window is respected.
    Unknown,
    /// The initial window is used up; a PING is under way.
    Probing,
    /// The peer answered without opening a window: it knows none.
    Ignored,
    /// The peer uses windows.
    Honoured,
}

/// How the peer's side of a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// In order.
    Fin,
    /// By RST_STREAM, from either side.
    Reset,
}

/// One stream, or one channel.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) received: VecDeque<u8>,
    pub(crate) ended: Option<End>,
    /// Nobody reads: what arrives is dropped.
    pub(crate) ignored: bool,
    pub(crate) reader: Option<Waker>,
    pub(crate) receive_window: i64,
    pub(crate) unacknowledged: i64,
    pub(crate) send_window: i64,
    /// Our side is over.
    pub(crate) sent_fin: bool,
    pub(crate) writer: Option<Waker>,
    pub(crate) queued: bool,
    /// No handle is left.
    pub(crate) released: bool,
}

impl Entry {
    pub(crate) fn new(send_window: i64) -> Self {
        Self {
            received: VecDeque::new(),
            ended: None,
            ignored: false,
            reader: None,
            receive_window: WINDOW,
            unacknowledged: 0,
            send_window,
            sent_fin: false,
            writer: None,
            queued: false,
            released: false,
        }
    }

    pub(crate) fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// What the mutex guards.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) entries: HashMap<u32, Entry>,
    /// Frames in order.
    pub(crate) out: Vec<u8>,
    /// Frames that overtake: PING, WINDOW_UPDATE.
    pub(crate) urgent: Vec<u8>,
    /// Bytes ever put into `out`, and of these, written.
    pub(crate) enqueued: u64,
    pub(crate) written: u64,
    /// Streams whose writer waits for the socket.
    pub(crate) waiting: Vec<u32>,
    /// Bytes held for the application.
    pub(crate) held: usize,
    pub(crate) last_id: u32,
    pub(crate) closing: bool,
    pub(crate) dead: bool,
    pub(crate) initial_send_window: i64,
    pub(crate) stream_flow: Flow,
    pub(crate) session_flow: Flow,
    pub(crate) session_send_window: i64,
    pub(crate) session_receive_window: i64,
    pub(crate) session_unacknowledged: i64,
    pub(crate) next_ping: u32,
    /// The compressed state of our SPDY replies has begun.
    pub(crate) replied: bool,
}

/// A session, as its tasks and streams share it.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) codec: Codec,
    pub(crate) options: Options,
    /// There is something to write.
    pub(crate) to_write: Notify,
    /// There is room: for what was received, or in what is to be written.
    pub(crate) room: Notify,
    /// A window is used up for the first time.
    pub(crate) probe: Notify,
    pub(crate) pong: Notify,
    pub(crate) closing: CancellationToken,
    /// Whoever closes waits for the client, who may be slow to read.
    pub(crate) patient: AtomicBool,
    /// The connection is closed.
    pub(crate) done: CancellationToken,
    /// The peer is gone or the session over.
    pub(crate) over: CancellationToken,
    started: Instant,
    active: AtomicU64,
}

impl Shared {
    pub(crate) fn new(codec: Codec, options: Options) -> Self {
        Self {
            state: Mutex::new(State {
                entries: HashMap::new(),
                out: Vec::new(),
                urgent: Vec::new(),
                enqueued: 0,
                written: 0,
                waiting: Vec::new(),
                held: 0,
                last_id: 0,
                closing: false,
                dead: false,
                initial_send_window: WINDOW,
                stream_flow: Flow::Unknown,
                session_flow: Flow::Unknown,
                session_send_window: WINDOW,
                session_receive_window: WINDOW,
                session_unacknowledged: 0,
                next_ping: 2,
                replied: false,
            }),
            codec,
            options,
            to_write: Notify::new(),
            room: Notify::new(),
            probe: Notify::new(),
            pong: Notify::new(),
            closing: CancellationToken::new(),
            patient: AtomicBool::new(false),
            done: CancellationToken::new(),
            over: CancellationToken::new(),
            started: Instant::now(),
            active: AtomicU64::new(0),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened that counts against idleness.
    pub(crate) fn touch(&self) {
        self.active.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// How long nothing has happened.
    pub(crate) fn idle(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.active.load(Ordering::Relaxed)))
    }

    /// Begins to close: what is queued is still written, nothing more is taken.
    pub(crate) fn close(&self, status: u32) {
        let mut state = self.state();
        if !state.closing && !state.dead {
            state.closing = true;
            let last = state.last_id;
            state.append(|out| self.codec.goodbye(out, last, status));
            state.entries.values_mut().for_each(Entry::wake);
        }
        drop(state);
        self.closing.cancel();
        self.to_write.notify_one();
        self.room.notify_one();
    }

    /// The connection is over: reads end after what was received, writes fail.
    pub(crate) fn die(&self) {
        let mut state = self.state();
        state.dead = true;
        state.closing = true;
        state.out = Vec::new();
        state.urgent = Vec::new();
        state.entries.values_mut().for_each(Entry::wake);
        drop(state);
        self.closing.cancel();
        self.over.cancel();
        self.to_write.notify_one();
        self.room.notify_one();
    }
}

impl State {
    /// Puts a frame in order.
    pub(crate) fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.out.len();
        write(&mut self.out);
        self.enqueued += (self.out.len() - before) as u64;
    }

    /// Aborts a stream from our side. A session that closes says no more of its streams.
    pub(crate) fn reset(&mut self, codec: Codec, id: u32, status: u32) {
        if !self.closing {
            self.append(|out| codec.reset(out, id, status));
        }
        self.abort(id);
    }

    /// A stream was aborted: what it holds is dropped, both sides learn of it.
    pub(crate) fn abort(&mut self, id: u32) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        self.held -= entry.received.len();
        self.session_unacknowledged += entry.received.len() as i64;
        entry.received = VecDeque::new();
        entry.ended = Some(End::Reset);
        entry.sent_fin = true;
        entry.wake();
        if entry.released {
            self.entries.remove(&id);
        }
    }
}
