//! The outgoing frames of both protocols, as bytes. Writes only; reads nothing.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// SPDY's RST_STREAM status codes that we send.
pub(crate) mod rst {
    pub(crate) const REFUSED_STREAM: u32 = 3;
    pub(crate) const CANCEL: u32 = 5;
    pub(crate) const FLOW_CONTROL_ERROR: u32 = 7;
}

/// How a session's streams are put on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    /// SPDY/3.1 frames.
    Spdy,
    /// One WebSocket message per write, its first byte the channel.
    Channels { base64: bool },
    /// One binary WebSocket message per write, without a channel.
    Tunnel,
}

impl Codec {
    /// A frame with data of a stream.
    pub(crate) fn data(self, out: &mut Vec<u8>, id: u32, data: &[u8]) {
        match self {
            Self::Spdy => {
                out.extend_from_slice(&id.to_be_bytes());
                out.extend_from_slice(&(data.len() as u32).to_be_bytes());
                out.extend_from_slice(data);
            }
            Self::Channels { base64: false } => {
                ws_header(out, 2, data.len() + 1);
                out.push(id as u8);
                out.extend_from_slice(data);
            }
            Self::Channels { base64: true } => {
                let text = STANDARD.encode(data);
                ws_header(out, 1, text.len() + 1);
                out.push(b'0'.wrapping_add(id as u8));
                out.extend_from_slice(text.as_bytes());
            }
            Self::Tunnel => {
                ws_header(out, 2, data.len());
                out.extend_from_slice(data);
            }
        }
    }

    /// The end of a stream. WebSocket servers say nothing: kubectl takes a close signal from a server for a
    /// message of an unknown stream (client-go `tools/remotecommand/websocket.go`).
    pub(crate) fn fin(self, out: &mut Vec<u8>, id: u32) {
        if self == Self::Spdy {
            out.extend_from_slice(&id.to_be_bytes());
            out.extend_from_slice(&[1, 0, 0, 0]);
        }
    }

    /// The abortion of a stream.
    pub(crate) fn reset(self, out: &mut Vec<u8>, id: u32, status: u32) {
        if self == Self::Spdy {
            control(out, 3, 0, &[id, status]);
        }
    }

    /// The end of the session: GOAWAY, or a close frame.
    pub(crate) fn goodbye(self, out: &mut Vec<u8>, last: u32, status: u32) {
        match self {
            Self::Spdy => control(out, 7, 0, &[last, status]),
            Self::Channels { .. } | Self::Tunnel => {
                ws_header(out, 8, 2);
                out.extend_from_slice(&(status as u16).to_be_bytes());
            }
        }
    }

    /// A question whether the peer lives.
    pub(crate) fn ping(self, out: &mut Vec<u8>, id: u32) {
        match self {
            Self::Spdy => control(out, 6, 0, &[id]),
            Self::Channels { .. } | Self::Tunnel => ws_header(out, 9, 0),
        }
    }

    /// The status of [`Self::goodbye`] when all is well.
    pub(crate) fn fine(self) -> u32 {
        if self == Self::Spdy { 0 } else { 1000 }
    }
}

/// A SPDY/3 control frame of 32-bit words.
pub(crate) fn control(out: &mut Vec<u8>, kind: u16, flags: u8, words: &[u32]) {
    out.extend_from_slice(&[0x80, 3]);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&((words.len() as u32 * 4) | (u32::from(flags) << 24)).to_be_bytes());
    for word in words {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

/// The header of a whole, unmasked WebSocket message.
pub(crate) fn ws_header(out: &mut Vec<u8>, opcode: u8, length: usize) {
    out.push(0x80 | opcode);
    match length {
        0..=125 => out.push(length as u8),
        126..=0xffff => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}
