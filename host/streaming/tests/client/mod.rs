//! A small SPDY client for tests, in clear bytes: header blocks are stored, replies' blocks are skipped.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};

pub(crate) const SYN_STREAM: u16 = 1;
pub(crate) const SYN_REPLY: u16 = 2;
pub(crate) const RST_STREAM: u16 = 3;
pub(crate) const SETTINGS: u16 = 4;
pub(crate) const PING: u16 = 6;
pub(crate) const GOAWAY: u16 = 7;
pub(crate) const WINDOW_UPDATE: u16 = 9;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    Data { id: u32, fin: bool, data: Vec<u8> },
    Control { kind: u16, body: Vec<u8> },
}

impl Frame {
    /// The body's first two words, of a control frame of this kind.
    pub(crate) fn words(&self, wanted: u16) -> Option<(u32, u32)> {
        let Self::Control { kind, body } = self else { return None };
        let word = |at: usize| body.get(at..at + 4).map_or(0, |bytes| u32::from_be_bytes(bytes.try_into().unwrap()));
        (*kind == wanted).then(|| (word(0), word(4)))
    }
}

pub(crate) struct Reader<R = ReadHalf<DuplexStream>>(pub(crate) R);

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let mut header = [0; 8];
        self.0.read_exact(&mut header).await.ok()?;
        let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.ok()?;
        Some(if header[0] & 0x80 == 0 {
            let id = u32::from_be_bytes(header[..4].try_into().unwrap());
            Frame::Data { id, fin: header[4] & 1 != 0, data: body }
        } else {
            Frame::Control { kind: u16::from_be_bytes([header[2], header[3]]), body }
        })
    }

    /// The next frame of a kind; others are dropped.
    pub(crate) async fn control(&mut self, kind: u16) -> Option<(u32, u32)> {
        while let Some(frame) = self.next().await {
            if let Some(words) = frame.words(kind) {
                return Some(words);
            }
        }
        None
    }
}

pub(crate) struct Writer<W = WriteHalf<DuplexStream>> {
    pub(crate) io: W,
    begun: bool,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    pub(crate) fn new(io: W) -> Self {
        Self { io, begun: false }
    }

    pub(crate) async fn control(&mut self, kind: u16, flags: u8, body: &[u8]) {
        let mut frame = vec![0x80, 3];
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(&((body.len() as u32) | (u32::from(flags) << 24)).to_be_bytes());
        frame.extend_from_slice(body);
        let _ = self.io.write_all(&frame).await;
    }

    pub(crate) async fn words(&mut self, kind: u16, words: &[u32]) {
        let body: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        self.control(kind, 0, &body).await;
    }

    pub(crate) async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let mut text = (headers.len() as u32).to_be_bytes().to_vec();
        for part in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.extend_from_slice(&(part.len() as u32).to_be_bytes());
            text.extend_from_slice(part.as_bytes());
        }
        self.open_raw(id, &text).await;
    }

    pub(crate) async fn open_raw(&mut self, id: u32, text: &[u8]) {
        let mut body = id.to_be_bytes().to_vec();
        body.extend_from_slice(&[0; 6]);
        if !std::mem::replace(&mut self.begun, true) {
            body.extend_from_slice(&[0x78, 0x01]);
        }
        body.push(0);
        body.extend_from_slice(&(text.len() as u16).to_le_bytes());
        body.extend_from_slice(&(!(text.len() as u16)).to_le_bytes());
        body.extend_from_slice(text);
        self.control(SYN_STREAM, 0, &body).await;
    }

    pub(crate) async fn data(&mut self, id: u32, fin: bool, data: &[u8]) -> std::io::Result<()> {
        let mut frame = id.to_be_bytes().to_vec();
        frame.extend_from_slice(&((data.len() as u32) | (u32::from(fin) << 24)).to_be_bytes());
        frame.extend_from_slice(data);
        self.io.write_all(&frame).await
    }
}

/// A client's two halves and the server's end of the connection.
pub(crate) fn connect() -> (Reader, Writer, DuplexStream) {
    let (client, server) = tokio::io::duplex(64 << 10);
    let (reader, writer) = tokio::io::split(client);
    (Reader(reader), Writer::new(writer), server)
}
