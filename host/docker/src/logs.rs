//! A container's log through the API, whatever driver keeps it. It must not read Docker's files.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use longshore_core::ports::runtime::{LogChunk, LogOptions, RuntimeError};

use crate::connection::CALL;
use crate::docker::Docker;
use crate::fault::Fault;
use crate::{names, observe, wire};

/// A frame is handed on in pieces of this size at most, so that a long one is never held whole.
const PIECE: usize = 64 << 10;
/// Without `follow`, the next piece has to come within this time.
const SILENCE: Duration = CALL;

impl Docker {
    pub(crate) fn read_log(
        self,
        id: String,
        options: LogOptions,
    ) -> BoxStream<'static, Result<LogChunk, RuntimeError>> {
        stream::once(async move {
            match self.open_log(&id, &options).await {
                Ok((body, tty)) => {
                    let reader = Reader { body, decoder: Decoder::new(tty), follow: options.follow, over: false };
                    let endpoint = self.connection().name.clone();
                    stream::unfold((reader, endpoint), |(mut reader, endpoint)| async move {
                        let next = reader.next(&endpoint).await?;
                        Some((next.map_err(|fault| fault.during("read log")), (reader, endpoint)))
                    })
                    .boxed()
                }
                Err(error) => stream::iter([Err(error)]).boxed(),
            }
        })
        .flatten()
        .boxed()
    }

    async fn open_log(&self, id: &str, options: &LogOptions) -> Result<(Incoming, bool), RuntimeError> {
        let absent = || RuntimeError::NotFound { what: format!("container {id}") };
        let sort = |fault: Fault| if fault.is_absent() { absent() } else { fault.during("read log") };
        if !names::is_container(id) {
            return Err(absent());
        }
        let inspect: wire::Inspect =
            self.connection().ask(CALL, &format!("/containers/{id}/json")).await.map_err(sort)?;
        if observe::root_of(&inspect) != Some(self.root_id()) {
            return Err(absent());
        }
        let tty = inspect.config.and_then(|config| config.tty).unwrap_or_default();
        let mut path = format!(
            "/containers/{id}/logs?stdout=true&stderr=true&follow={}&timestamps={}",
            options.follow, options.timestamps
        );
        if let Some(lines) = options.tail {
            path += &format!("&tail={lines}");
        }
        if let Some(since) = options.since.filter(|since| since.as_second() >= 0) {
            path += &format!("&since={}.{:09}", since.as_second(), since.subsec_nanosecond().max(0));
        }
        let body = self.connection().open(CALL, &path).await.map_err(sort)?;
        Ok((body, tty))
    }
}

struct Reader {
    body: Incoming,
    decoder: Decoder,
    follow: bool,
    over: bool,
}

impl Reader {
    async fn next(&mut self, endpoint: &str) -> Option<Result<LogChunk, Fault>> {
        loop {
            if self.over {
                return None;
            }
            if let Some(chunk) = self.decoder.next().transpose() {
                self.over = chunk.is_err();
                return Some(chunk);
            }
            let frame = if self.follow {
                self.body.frame().await
            } else {
                match tokio::time::timeout(SILENCE, self.body.frame()).await {
                    Ok(frame) => frame,
                    Err(_) => {
                        self.over = true;
                        return Some(Err(Fault::late(SILENCE)));
                    }
                }
            };
            match frame {
                Some(Ok(frame)) => self.decoder.feed(&frame.into_data().unwrap_or_default()),
                Some(Err(error)) => {
                    self.over = true;
                    return Some(Err(Fault::broken(&error, endpoint)));
                }
                None => {
                    self.over = true;
                    let cut = self.decoder.is_amid_a_frame();
                    return cut.then(|| Err(Fault::Nonsense("the log ended within a line".to_owned())));
                }
            }
        }
    }
}

/// Takes Docker's multiplexed stream apart: frames with a head of eight bytes (stream, three zeros, length). A
/// terminal's output comes as it is.
struct Decoder {
    tty: bool,
    buffer: BytesMut,
    /// Of the frame at hand: whether it is stderr's, and what is to come.
    frame: Option<(bool, usize)>,
}

impl Decoder {
    fn new(tty: bool) -> Decoder {
        Decoder { tty, buffer: BytesMut::new(), frame: None }
    }

    fn feed(&mut self, data: &Bytes) {
        self.buffer.extend_from_slice(data);
    }

    fn is_amid_a_frame(&self) -> bool {
        self.frame.is_some() || !self.buffer.is_empty()
    }

    fn next(&mut self) -> Result<Option<LogChunk>, Fault> {
        loop {
            if self.tty {
                let length = self.buffer.len().min(PIECE);
                let chunk = || LogChunk { stderr: false, data: self.buffer.split_to(length).freeze() };
                return Ok((length > 0).then(chunk));
            }
            if let Some((stderr, rest)) = self.frame {
                let length = self.buffer.len().min(rest).min(PIECE);
                if length == 0 {
                    return Ok(None);
                }
                self.frame = (rest > length).then_some((stderr, rest - length));
                return Ok(Some(LogChunk { stderr, data: self.buffer.split_to(length).freeze() }));
            }
            let Some(head) = self.buffer.first_chunk::<8>().copied() else { return Ok(None) };
            if head[0] > 2 || head[1..4] != [0; 3] {
                return Err(Fault::Nonsense("the log is no stream of Docker's".to_owned()));
            }
            self.buffer.advance(8);
            let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
            self.frame = (length > 0).then_some((head[0] == 2, length));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn frames_in_any_pieces() {
        let stream = b"\x01\0\0\0\0\0\0\x03a\nb\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\x01c";
        for size in 1..=stream.len() {
            let mut decoder = Decoder::new(false);
            let (mut out, mut err) = (Vec::new(), Vec::new());
            for piece in stream.chunks(size) {
                decoder.feed(&Bytes::copy_from_slice(piece));
                while let Some(chunk) = decoder.next().unwrap() {
                    if chunk.stderr { err.extend(chunk.data) } else { out.extend(chunk.data) }
                }
            }
            assert_eq!((out.as_slice(), err.as_slice()), (b"a\nb".as_slice(), b"c".as_slice()));
            assert!(!decoder.is_amid_a_frame());
        }
    }

    #[test]
    fn nonsense_is_an_error_and_a_terminal_is_raw() {
        let mut decoder = Decoder::new(false);
        decoder.feed(&Bytes::from_static(b"hello world"));
        assert!(decoder.next().is_err());
        let mut decoder = Decoder::new(true);
        decoder.feed(&Bytes::from_static(b"\x01hello"));
        assert_eq!(decoder.next().unwrap().unwrap().data, Bytes::from_static(b"\x01hello"));
    }
}
