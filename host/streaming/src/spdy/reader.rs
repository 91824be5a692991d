//! Reads SPDY/3.1 frames into a session.

use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use super::headers::{HeaderError, Headers, Inflater};
use super::session::Arrived;
use crate::mux::{Demux, Ended, Flow, Input, Shared};

/// GOAWAY's PROTOCOL_ERROR.
const PROTOCOL_ERROR: u32 = 1;
const RST_PROTOCOL_ERROR: u32 = 1;
const RST_INVALID_STREAM: u32 = 2;
const RST_REFUSED: u32 = 3;
const RST_VERSION: u32 = 4;
const RST_FLOW_CONTROL: u32 = 7;
const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;
const INITIAL_WINDOW_SIZE: u32 = 7;

/// The reading half of a SPDY server.
#[derive(Debug)]
pub(crate) struct Reader {
    inflater: Inflater,
    arrived: mpsc::UnboundedSender<Arrived>,
    leaving: bool,
}

impl Reader {
    pub(crate) fn new(arrived: mpsc::UnboundedSender<Arrived>) -> Self {
        Self { inflater: Inflater::default(), arrived, leaving: false }
    }

    async fn data<R: AsyncRead + Send + Unpin>(
        &mut self,
        input: &mut Input<R>,
        shared: &Shared,
        id: u32,
        flags: u8,
        mut length: usize,
    ) -> std::io::Result<Option<Ended>> {
        {
            let mut state = shared.state();
            if id == 0 {
                return Ok(Some(Ended::Close(PROTOCOL_ERROR)));
            }
            if id > state.last_id {
                state.reset(shared.codec, id, RST_INVALID_STREAM);
                shared.to_write.notify_one();
            }
        }
        while length > 0 {
            let piece = input.some(length).await?;
            if piece.is_empty() {
                return Ok(Some(Ended::Gone));
            }
            if shared.push(id, piece).await.is_err() {
                tracing::debug!("SPDY client overran the session's window");
                return Ok(Some(Ended::Close(PROTOCOL_ERROR)));
            }
            let n = piece.len();
            input.consume(n);
            length -= n;
        }
        if flags & FIN != 0 {
            shared.push_fin(id);
        }
        Ok(None)
    }

    fn control(&mut self, shared: &Shared, version: u16, kind: u16, flags: u8, body: &[u8]) -> Option<Ended> {
        let word = |at: usize| body.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
        let close = Some(Ended::Close(PROTOCOL_ERROR));
        let id = word(0).map(|id| id & 0x7fff_ffff);
        match kind {
            1 => match id {
                Some(id) if body.len() >= 10 => self.syn_stream(shared, version, flags, id, &body[10..]),
                _ => close,
            },
            // SYN_REPLY answers streams of ours, of which there are none; HEADERS adds nothing that we use.
            2 | 8 => {
                let Some(id) = id else { return close };
                match self.inflater.read(&body[4..], &shared.options.limits) {
                    Err(HeaderError::Broken(_)) => return close,
                    Ok(_) if kind == 8 => {}
                    _ => {
                        shared.state().reset(shared.codec, id, RST_PROTOCOL_ERROR);
                        shared.to_write.notify_one();
                        return None;
                    }
                }
                if flags & FIN != 0 {
                    shared.push_fin(id);
                }
                None
            }
            3 => {
                let Some(id) = id else { return close };
                shared.touch();
                shared.state().abort(id);
                None
            }
            4 => settings(shared, body).then_some(()).map_or(close, |()| None),
            6 => {
                let Some(id) = word(0) else { return close };
                if id % 2 == 0 {
                    shared.pong.notify_one();
                } else {
                    // kubectl pings every few seconds, and by that keeps what it forwards from being idle: with the kubelet,
                    // any frame does (`idleAwareFramer` of spdystream).
                    shared.touch();
                    shared.answer(|out| crate::mux::control(out, 6, 0, &[id]));
                }
                None
            }
            7 => {
                self.leaving = true;
                None
            }
            9 => match (id, word(4)) {
                (Some(id), Some(delta)) if delta & 0x7fff_ffff != 0 => window_update(shared, id, delta & 0x7fff_ffff),
                _ => close,
            },
            // NOOP, CREDENTIAL and unknown kinds are to be ignored.
            _ => None,
        }
    }

    fn syn_stream(&mut self, shared: &Shared, version: u16, flags: u8, id: u32, block: &[u8]) -> Option<Ended> {
        let headers = self.inflater.read(block, &shared.options.limits).and_then(Headers::known);
        if let Err(error @ HeaderError::Broken(_)) = headers {
            tracing::debug!(%error, "SPDY header block");
            return Some(Ended::Close(PROTOCOL_ERROR));
        }
        shared.touch();
        let mut state = shared.state();
        if id.is_multiple_of(2) || id < state.last_id {
            return Some(Ended::Close(PROTOCOL_ERROR));
        }
        if state.closing {
            return None;
        }
        let refused = match &headers {
            _ if id == state.last_id => Some(RST_PROTOCOL_ERROR),
            _ if version != 3 => Some(RST_VERSION),
            Err(_) => Some(RST_PROTOCOL_ERROR),
            Ok(_) if self.leaving || state.entries.len() >= shared.options.limits.streams => Some(RST_REFUSED),
            Ok(_) => None,
        };
        state.last_id = id;
        if let Some(status) = refused {
            state.reset(shared.codec, id, status);
            shared.to_write.notify_one();
            return None;
        }
        let entry = state.open(id);
        if flags & FIN != 0 {
            entry.ended = Some(crate::mux::End::Fin);
        }
        entry.sent_fin = flags & UNIDIRECTIONAL != 0;
        // The channel holds no more than `limits.streams`: each of its streams is counted until it is dropped.
        if self.arrived.send(Arrived { id, headers: headers.unwrap_or_default() }).is_err() {
            state.reset(shared.codec, id, RST_REFUSED);
            state.entries.remove(&id);
            shared.to_write.notify_one();
        }
        None
    }
}

fn settings(shared: &Shared, body: &[u8]) -> bool {
    let Some((count, entries)) = body.split_first_chunk::<4>() else { return false };
    if u32::from_be_bytes(*count) as usize != entries.len() / 8 || entries.len() % 8 != 0 {
        return false;
    }
    let mut state = shared.state();
    let state = &mut *state;
    for entry in entries.chunks_exact(8) {
        let id = u32::from_be_bytes([0, entry[1], entry[2], entry[3]]);
        let value = u32::from_be_bytes([entry[4], entry[5], entry[6], entry[7]]);
        if id == INITIAL_WINDOW_SIZE {
            if value > 0x7fff_ffff {
                return false;
            }
            let change = i64::from(value) - state.initial_send_window;
            state.initial_send_window = i64::from(value);
            state.entries.values_mut().for_each(|stream| stream.send_window += change);
            state.stream_flow = Flow::Honoured;
        }
    }
    state.wake_all_writers();
    true
}

fn window_update(shared: &Shared, id: u32, delta: u32) -> Option<Ended> {
    const MOST: i64 = 0x7fff_ffff;
    let mut state = shared.state();
    let state = &mut *state;
    if id == 0 {
        state.session_flow = Flow::Honoured;
        state.session_send_window += i64::from(delta);
        if state.session_send_window > MOST {
            return Some(Ended::Close(PROTOCOL_ERROR));
        }
        state.wake_all_writers();
        return None;
    }
    state.stream_flow = Flow::Honoured;
    if let Some(entry) = state.entries.get_mut(&id) {
        entry.send_window += i64::from(delta);
        if entry.send_window > MOST {
            state.reset(shared.codec, id, RST_FLOW_CONTROL);
            shared.to_write.notify_one();
        } else if let Some(waker) = entry.writer.take() {
            waker.wake();
        }
    }
    None
}

impl Demux for Reader {
    async fn frame<R: AsyncRead + Send + Unpin>(
        &mut self,
        input: &mut Input<R>,
        shared: &Shared,
    ) -> std::io::Result<Option<Ended>> {
        let Some(header) = input.array::<8>().await? else { return Ok(Some(Ended::Gone)) };
        let [a, b, c, d, flags, length @ ..] = header;
        let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
        if a & 0x80 == 0 {
            let id = u32::from_be_bytes([a, b, c, d]);
            return self.data(input, shared, id, flags, length).await;
        }
        let (version, kind) = (u16::from_be_bytes([a & 0x7f, b]), u16::from_be_bytes([c, d]));
        if length > shared.options.limits.control_frame {
            tracing::debug!(kind, length, "SPDY control frame is too large");
            return Ok(Some(Ended::Close(PROTOCOL_ERROR)));
        }
        let body = input.body(length).await?;
        Ok(self.control(shared, version, kind, flags, &body))
    }
}
