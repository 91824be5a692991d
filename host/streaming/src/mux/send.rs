//! From the application to the socket: windows, the bounded output buffer, flushing.

use std::io;
use std::task::{Context, Poll};

use super::state::{Flow, Shared, State};
use super::wire::Codec;

/// Most bytes of one data frame: what kubectl's read buffers hold.
const FRAME: usize = 32 << 10;

impl Shared {
    /// Takes as much of `data` as the windows and the output buffer allow.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, id: u32, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        let n = match self.writable(&mut state, id, data.len()) {
            Ok(0) if !data.is_empty() => return self.wait(&mut state, cx, id),
            Ok(n) => n,
            Err(error) => return Poll::Ready(Err(error)),
        };
        if n > 0 {
            state.session_send_window -= n as i64;
            if let Some(entry) = state.entries.get_mut(&id) {
                entry.send_window -= n as i64;
            }
            state.append(|out| self.codec.data(out, id, &data[..n]));
            drop(state);
            self.touch();
            self.to_write.notify_one();
        }
        Poll::Ready(Ok(n))
    }

    /// Waits until all that was written so far is on the socket.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>, id: u32, upto: &mut Option<u64>) -> Poll<io::Result<()>> {
        let mut state = self.state();
        let target = *upto.get_or_insert(state.enqueued);
        if state.written >= target {
            *upto = None;
            return Poll::Ready(Ok(()));
        }
        if state.dead {
            *upto = None;
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.wait(&mut state, cx, id)
    }

    /// Ends our side of a stream, once.
    pub(crate) fn fin(&self, id: u32) {
        let mut state = self.state();
        let open = !state.closing;
        let Some(entry) = state.entries.get_mut(&id) else { return };
        if !std::mem::replace(&mut entry.sent_fin, true) && open {
            entry.wake();
            state.append(|out| self.codec.fin(out, id));
            drop(state);
            if self.codec == Codec::Tunnel {
                self.close(self.codec.fine());
            }
            self.to_write.notify_one();
        }
    }

    /// Puts bytes on the wire past windows and buffers: for the few bytes of statuses and errors at the end.
    pub(crate) fn force(&self, id: u32, data: &[u8]) {
        let mut state = self.state();
        let open = !state.closing && state.entries.get(&id).is_some_and(|entry| !entry.sent_fin);
        if open {
            state.append(|out| self.codec.data(out, id, data));
            drop(state);
            self.to_write.notify_one();
        }
    }

    fn writable(&self, state: &mut State, id: u32, wanted: usize) -> io::Result<usize> {
        if state.closing {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let buffered = state.out.len();
        let Some(entry) = state.entries.get(&id) else { return Err(io::ErrorKind::BrokenPipe.into()) };
        if entry.sent_fin {
            let reset = entry.ended == Some(super::End::Reset);
            return Err(if reset { io::ErrorKind::ConnectionReset } else { io::ErrorKind::BrokenPipe }.into());
        }
        let mut allowed = wanted.min(FRAME).min(self.options.limits.output_buffer.saturating_sub(buffered));
        if self.codec == Codec::Spdy {
            let (stream, session) = (entry.send_window, state.session_send_window);
            for (flow, window) in [(&mut state.stream_flow, stream), (&mut state.session_flow, session)] {
                if *flow == Flow::Ignored {
                    continue;
                }
                if window <= 0 && *flow == Flow::Unknown {
                    *flow = Flow::Probing;
                    self.probe.notify_one();
                }
                allowed = allowed.min(window.max(0) as usize);
            }
        }
        Ok(allowed)
    }

    fn wait<T>(&self, state: &mut State, cx: &mut Context<'_>, id: u32) -> Poll<io::Result<T>> {
        let Some(entry) = state.entries.get_mut(&id) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        entry.writer = Some(cx.waker().clone());
        if !std::mem::replace(&mut entry.queued, true) {
            state.waiting.push(id);
        }
        Poll::Pending
    }
}

impl State {
    /// Wakes the writers that wait for the socket.
    pub(crate) fn wake_writers(&mut self) {
        for id in std::mem::take(&mut self.waiting) {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.queued = false;
                if let Some(waker) = entry.writer.take() {
                    waker.wake();
                }
            }
        }
    }

    /// Wakes every writer: a window of the session, or knowledge about windows, changed.
    pub(crate) fn wake_all_writers(&mut self) {
        for entry in self.entries.values_mut() {
            if let Some(waker) = entry.writer.take() {
                waker.wake();
            }
        }
    }
}
