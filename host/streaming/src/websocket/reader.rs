//! Reads a client's WebSocket frames (RFC 6455) into channels.

use tokio::io::AsyncRead;

use super::base64::Decoder;
use crate::mux::{Demux, Ended, Input, Shared, ws_header};

const PROTOCOL_ERROR: u32 = 1002;
const TOO_LARGE: u32 = 1009;
const NORMAL: u32 = 1000;
/// The close signal's channel (v5).
const CLOSE_SIGNAL: u8 = 255;

/// What the messages mean.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// A first byte with the channel, then data.
    Channels { base64: bool, close_signals: bool, count: u32 },
    /// Data.
    Tunnel,
}

/// Where the rest of a message goes.
#[derive(Debug)]
enum Target {
    /// Its first byte is still to come.
    Unknown,
    Stream(u32),
    Base64(u32, Decoder),
    /// To no channel, or it is broken: dropped, as by the kubelet.
    Nowhere,
    /// A close signal, and the channel that it names.
    Close(Option<u8>),
}

/// The reading half of a WebSocket server.
#[derive(Debug)]
pub(crate) struct Reader {
    kind: Kind,
    /// The message under way, and its length so far.
    message: Option<(Target, u64)>,
}

impl Reader {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind, message: None }
    }

    /// Hands on a piece of a message.
    async fn data(&mut self, shared: &Shared, mut piece: &[u8]) -> Option<Ended> {
        let (target, _) = self.message.as_mut()?;
        if let (Target::Unknown, Some((first, rest))) = (&*target, piece.split_first()) {
            *target = self.kind.target(*first);
            piece = rest;
        }
        match target {
            Target::Stream(id) => {
                let _ = shared.push(*id, piece).await;
            }
            Target::Base64(id, decoder) => match decoder.push(piece) {
                Some(data) => {
                    let _ = shared.push(*id, &data).await;
                }
                None => *target = Target::Nowhere,
            },
            Target::Close(channel) => match piece {
                [] => {}
                [one] if channel.is_none() => *channel = Some(*one),
                _ => return Some(Ended::Close(NORMAL)),
            },
            Target::Nowhere | Target::Unknown => {}
        }
        None
    }

    /// A message is over.
    fn end(&mut self, shared: &Shared) -> Option<Ended> {
        let (Kind::Channels { count, .. }, Some((Target::Close(channel), _))) = (self.kind, self.message.take()) else {
            return None;
        };
        match channel {
            Some(channel) if u32::from(channel) < count => {
                shared.push_fin(u32::from(channel));
                None
            }
            // A signal for nothing: the kubelet hangs up too.
            _ => Some(Ended::Close(NORMAL)),
        }
    }
}

impl Kind {
    fn target(self, first: u8) -> Target {
        let Self::Channels { base64, close_signals, count } = self else { return Target::Stream(0) };
        if close_signals && first == CLOSE_SIGNAL {
            return Target::Close(None);
        }
        let channel = u32::from(if base64 { first.wrapping_sub(b'0') } else { first });
        match channel {
            _ if channel >= count => Target::Nowhere,
            _ if base64 => Target::Base64(channel, Decoder::default()),
            _ => Target::Stream(channel),
        }
    }
}

fn control(shared: &Shared, opcode: u8, body: &[u8]) -> Option<Ended> {
    match opcode {
        8 => {
            let status = match body {
                [] => NORMAL,
                [first, second, ..] => u32::from(u16::from_be_bytes([*first, *second])),
                [_] => PROTOCOL_ERROR,
            };
            Some(Ended::Close(if matches!(status, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                status
            } else {
                PROTOCOL_ERROR
            }))
        }
        9 => {
            shared.answer(|out| {
                ws_header(out, 10, body.len());
                out.extend_from_slice(body);
            });
            None
        }
        10 => None,
        _ => Some(Ended::Close(PROTOCOL_ERROR)),
    }
}

fn unmask(piece: &mut [u8], mask: [u8; 4], at: usize) {
    let mut mask = mask;
    mask.rotate_left(at % 4);
    let mut words = piece.chunks_exact_mut(4);
    let word = u32::from_ne_bytes(mask);
    for chunk in &mut words {
        if let Ok(bytes) = <[u8; 4]>::try_from(&*chunk) {
            chunk.copy_from_slice(&(u32::from_ne_bytes(bytes) ^ word).to_ne_bytes());
        }
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(mask) {
        *byte ^= key;
    }
}

impl Demux for Reader {
    async fn frame<R: AsyncRead + Send + Unpin>(
        &mut self,
        input: &mut Input<R>,
        shared: &Shared,
    ) -> std::io::Result<Option<Ended>> {
        let Some([first, second]) = input.array::<2>().await? else { return Ok(Some(Ended::Gone)) };
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        // No extension was agreed on, and clients must mask.
        if first & 0x70 != 0 || second & 0x80 == 0 {
            return Ok(Some(Ended::Close(PROTOCOL_ERROR)));
        }
        let length = match second & 0x7f {
            126 => input.array::<2>().await?.map(|bytes| u64::from(u16::from_be_bytes(bytes))),
            127 => input.array::<8>().await?.map(u64::from_be_bytes),
            short => Some(u64::from(short)),
        };
        let (Some(length), Some(mask)) = (length, input.array::<4>().await?) else {
            return Ok(Some(Ended::Gone));
        };
        if opcode >= 8 {
            if !fin || length > 125 {
                return Ok(Some(Ended::Close(PROTOCOL_ERROR)));
            }
            let mut body = input.body(length as usize).await?;
            unmask(&mut body, mask, 0);
            return Ok(control(shared, opcode, &body));
        }
        match (opcode, &self.message) {
            (0, Some(_)) => {}
            (1 | 2, None) => {
                let target = if matches!(self.kind, Kind::Tunnel) { Target::Stream(0) } else { Target::Unknown };
                self.message = Some((target, 0));
            }
            _ => return Ok(Some(Ended::Close(PROTOCOL_ERROR))),
        }
        if let Some((_, so_far)) = &mut self.message {
            *so_far = so_far.saturating_add(length);
            if *so_far > shared.options.limits.message {
                return Ok(Some(Ended::Close(TOO_LARGE)));
            }
        }
        let mut done = 0;
        while done < length {
            let piece = input.some(usize::try_from(length - done).unwrap_or(usize::MAX)).await?;
            if piece.is_empty() {
                return Ok(Some(Ended::Gone));
            }
            unmask(piece, mask, done as usize);
            if let Some(ended) = self.data(shared, piece).await {
                return Ok(Some(ended));
            }
            let n = piece.len();
            input.consume(n);
            done += n as u64;
        }
        Ok(if fin { self.end(shared) } else { None })
    }
}
