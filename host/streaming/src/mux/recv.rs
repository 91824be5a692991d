//! From the socket to the application: bounded buffers, backpressure, windows that open as the application reads.

use std::io;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;

use super::state::{Flow, Shared, State, WINDOW};
use super::wire::{Codec, control, rst};
use super::{End, Entry};

/// Most bytes of answers that wait to be written.
const ANSWERS: usize = 64 << 10;

/// How much of a chunk a stream took.
enum Pushed {
    Took(usize),
    Full,
    /// The peer broke the session's window.
    Overrun,
}

impl Shared {
    /// Hands data to a stream, waiting while there is no room. Data for streams that are no more is dropped.
    ///
    /// # Errors
    /// `()` when the peer uses windows and overran the session's.
    pub(crate) async fn push(&self, id: u32, mut data: &[u8]) -> Result<(), ()> {
        self.touch();
        while !data.is_empty() {
            match self.try_push(id, data) {
                Pushed::Took(n) => data = &data[n..],
                Pushed::Overrun => return Err(()),
                Pushed::Full => {
                    // A peer that is gone cannot be seen by reading while we do not read: write now and then.
                    if tokio::time::timeout(std::time::Duration::from_secs(5), self.room.notified()).await.is_err() {
                        self.ping();
                    }
                }
            }
        }
        Ok(())
    }

    fn try_push(&self, id: u32, data: &[u8]) -> Pushed {
        let limits = &self.options.limits;
        let mut state = self.state();
        let state = &mut *state;
        let spdy = self.codec == Codec::Spdy;
        let room = limits.session_buffer.saturating_sub(state.held);
        let entry = match state.entries.get_mut(&id) {
            Some(entry) if !entry.ignored && entry.ended.is_none() && !state.closing => entry,
            _ => {
                if spdy {
                    state.session_receive_window -= data.len() as i64;
                    self.credit_session(state, data.len());
                }
                return Pushed::Took(data.len());
            }
        };
        let most = limits.stream_buffer.max(WINDOW as usize);
        let n = data.len().min(most.saturating_sub(entry.received.len())).min(room);
        if n == 0 {
            return Pushed::Full;
        }
        if spdy {
            entry.receive_window -= n as i64;
            state.session_receive_window -= n as i64;
            if entry.receive_window < 0 && state.stream_flow == Flow::Honoured {
                self.credit_session(state, n);
                state.reset(self.codec, id, rst::FLOW_CONTROL_ERROR);
                self.to_write.notify_one();
                return Pushed::Took(data.len());
            }
            if state.session_receive_window < 0 && state.session_flow == Flow::Honoured {
                return Pushed::Overrun;
            }
        }
        entry.received.extend(&data[..n]);
        state.held += n;
        if let Some(waker) = entry.reader.take() {
            waker.wake();
        }
        Pushed::Took(n)
    }

    /// The peer ended its side of a stream.
    pub(crate) fn push_fin(&self, id: u32) {
        self.touch();
        let mut state = self.state();
        if let Some(entry) = state.entries.get_mut(&id) {
            entry.ended.get_or_insert(End::Fin);
            if let Some(waker) = entry.reader.take() {
                waker.wake();
            }
            if entry.released && entry.sent_fin {
                state.entries.remove(&id);
            }
        }
    }

    /// Reads what a stream holds.
    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, id: u32, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state();
        let state = &mut *state;
        let Some(entry) = state.entries.get_mut(&id) else { return Poll::Ready(Ok(())) };
        let n = into.remaining().min(entry.received.len());
        if n == 0 {
            return match entry.ended {
                _ if into.remaining() == 0 => Poll::Ready(Ok(())),
                Some(End::Reset) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                Some(End::Fin) => Poll::Ready(Ok(())),
                None if state.closing => Poll::Ready(Ok(())),
                None => {
                    entry.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        let (front, back) = entry.received.as_slices();
        let first = n.min(front.len());
        into.put_slice(&front[..first]);
        into.put_slice(&back[..n - first]);
        entry.received.drain(..n);
        state.held -= n;
        if self.codec == Codec::Spdy {
            entry.unacknowledged += n as i64;
            if entry.unacknowledged >= WINDOW / 2 && entry.ended.is_none() {
                let opened = std::mem::take(&mut entry.unacknowledged);
                entry.receive_window += opened;
                control(&mut state.urgent, 9, 0, &[id, opened as u32]);
                self.to_write.notify_one();
            }
            self.credit_session(state, n);
        }
        self.touch();
        self.room.notify_one();
        Poll::Ready(Ok(()))
    }

    /// Nobody reads a stream any more: what it holds and what follows is dropped.
    pub(crate) fn ignore(&self, id: u32) {
        let mut state = self.state();
        let state = &mut *state;
        let Some(entry) = state.entries.get_mut(&id) else { return };
        entry.ignored = true;
        let dropped = std::mem::take(&mut entry.received).len();
        state.held -= dropped;
        if self.codec == Codec::Spdy {
            self.credit_session(state, dropped);
        }
        self.room.notify_one();
    }

    /// No handle of a stream is left.
    pub(crate) fn release(&self, id: u32) {
        self.ignore(id);
        self.fin(id);
        if self.codec == Codec::Spdy {
            // Whatever still comes for it is dropped by its number.
            self.state().entries.remove(&id);
        } else if let Some(entry) = self.state().entries.get_mut(&id) {
            entry.released = true;
        }
    }

    /// Asks the peer for a sign of life; at most one such frame waits to be written.
    pub(crate) fn ping(&self) {
        let mut state = self.state();
        let state = &mut *state;
        if state.urgent.is_empty() && !state.closing {
            let id = state.next_ping;
            state.next_ping = (id + 2) & 0x7fff_ffff;
            self.codec.ping(&mut state.urgent, id.max(2));
            self.to_write.notify_one();
        }
    }

    fn credit_session(&self, state: &mut State, n: usize) {
        state.session_unacknowledged += n as i64;
        if state.session_unacknowledged >= WINDOW / 2 {
            let opened = std::mem::take(&mut state.session_unacknowledged);
            state.session_receive_window += opened;
            if !state.closing {
                control(&mut state.urgent, 9, 0, &[0, opened as u32]);
                self.to_write.notify_one();
            }
        }
    }

    /// Answers a frame of the peer's, ahead of what waits. A session that closes leaves out what does not fit, for it
    /// reads on.
    pub(crate) fn answer(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        if !state.closing || (self.codec == Codec::Spdy && state.urgent.len() < ANSWERS) {
            write(&mut state.urgent);
            drop(state);
            self.to_write.notify_one();
        }
    }

    /// Waits until answers to the peer's frames fit: a peer that asks and never reads is read no further.
    pub(crate) async fn room_for_answers(&self) {
        loop {
            {
                let state = self.state();
                if state.closing
                    || (state.urgent.len() < ANSWERS && state.out.len() < self.options.limits.output_buffer + ANSWERS)
                {
                    return;
                }
            }
            self.room.notified().await;
        }
    }
}

impl State {
    /// Opens a stream, or a channel.
    pub(crate) fn open(&mut self, id: u32) -> &mut Entry {
        let window = self.initial_send_window;
        self.entries.entry(id).or_insert_with(|| Entry::new(window))
    }
}
