//! A container's log through the API, whatever driver keeps it. It must not read Docker's files.
//!
//! A daemon before 23 that is followed leaves out what was written last when the container ends, and what comes after a
//! rotation that it did not notice: it is asked once more then, for what follows the newest date that was told.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use jiff::Timestamp;
use longshore_core::ports::runtime::{LogChunk, LogOptions, RuntimeError};

use crate::connection::CALL;
use crate::docker::Docker;
use crate::fault::Fault;
use crate::{names, observe, wire};

/// A frame is handed on in pieces of this size at most, so that a long one is never held whole.
const PIECE: usize = 64 << 10;
/// Of the daemon's own words in a log so many bytes are kept.
const WORDS: usize = 4096;
/// Bytes that a date has at most.
const DATE: usize = 64;
/// Of a daemon's API that tells all to those who follow: Docker 23.
const WHOLE: (usize, usize) = (1, 42);
/// Without `follow`, the next piece has to come within this time.
const SILENCE: Duration = CALL;

impl Docker {
    /// The first piece is empty and comes once the log is open: one that is followed may stay silent for long.
    pub(crate) fn read_log(
        self,
        id: String,
        options: LogOptions,
    ) -> BoxStream<'static, Result<LogChunk, RuntimeError>> {
        stream::once(async move {
            match self.open_log(&id, &options).await {
                Ok(reader) => {
                    let endpoint = self.connection().name.clone();
                    let open = LogChunk { stderr: false, data: Bytes::new() };
                    let rest = stream::unfold((reader, endpoint), |(mut reader, endpoint)| async move {
                        let next = reader.next(&endpoint).await?;
                        Some((next.map_err(|fault| fault.during("read log")), (reader, endpoint)))
                    });
                    stream::iter([Ok(open)]).chain(rest).boxed()
                }
                Err(error) => stream::iter([Err(error)]).boxed(),
            }
        })
        .flatten()
        .boxed()
    }

    async fn open_log(&self, id: &str, options: &LogOptions) -> Result<Reader, RuntimeError> {
        let absent = || RuntimeError::NotFound { what: format!("container {id}") };
        let sort = |fault: Fault| if fault.is_absent() { absent() } else { fault.during("read log") };
        if !names::is_container(id) {
            return Err(absent());
        }
        let inspect: wire::Inspect =
            self.connection().ask(CALL, &format!("/containers/{id}/json")).await.map_err(sort)?;
        if !observe::is_ours(&inspect, self.root_id()) {
            return Err(absent());
        }
        let tty = inspect.config.and_then(|config| config.tty).unwrap_or_default();
        let api = self.connection().session().await.map_err(sort)?.api;
        // What a terminal says is in no messages that could be told apart.
        let twice = options.follow && !tty && api < WHOLE;
        let asked = LogOptions { timestamps: options.timestamps || twice, ..options.clone() };
        // Of a log of which only the end is wanted, and there is none, all that comes is new.
        let since = if options.tail.is_some() { Some(Timestamp::now()) } else { options.since };
        let body = self.connection().open(CALL, &path(id, &asked)).await.map_err(sort)?;
        let again = LogOptions { follow: false, tail: None, since, ..asked };
        Ok(Reader {
            body,
            decoder: Decoder::new(tty, asked.timestamps, options.timestamps),
            follow: options.follow,
            over: false,
            again: twice.then(|| (self.clone(), id.to_owned(), again)),
            asked_again: false,
        })
    }
}

fn path(id: &str, options: &LogOptions) -> String {
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
    path
}

struct Reader {
    body: Incoming,
    decoder: Decoder,
    follow: bool,
    over: bool,
    /// How to ask once more at the end.
    again: Option<(Docker, String, LogOptions)>,
    /// That was done: what goes wrong from then on takes nothing away from what was followed to its end.
    asked_again: bool,
}

impl Reader {
    async fn next(&mut self, endpoint: &str) -> Option<Result<LogChunk, Fault>> {
        match self.read(endpoint).await {
            Some(Err(fault)) if self.asked_again => {
                tracing::debug!(%fault, "the end of a log that was followed cannot be looked at again");
                None
            }
            read => read,
        }
    }

    async fn read(&mut self, endpoint: &str) -> Option<Result<LogChunk, Fault>> {
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
                    let wrong = self.decoder.end();
                    if wrong.is_none() && self.goes_on().await {
                        continue;
                    }
                    self.over = true;
                    return wrong.map(Err);
                }
            }
        }
    }

    /// Asks once more, where that was not done yet.
    async fn goes_on(&mut self) -> bool {
        let Some((docker, id, mut options)) = self.again.take() else { return false };
        options.since = self.decoder.told.again().or(options.since);
        match docker.connection().open(CALL, &path(&id, &options)).await {
            Ok(body) => {
                (self.body, self.follow, self.asked_again) = (body, false, true);
                true
            }
            Err(fault) => {
                // It went with its container, for instance.
                tracing::debug!(id, %fault, "the end of a log that was followed is not looked at again");
                false
            }
        }
    }
}

/// The newest date of the messages that were told, and how many have it.
#[derive(Default)]
struct Told {
    newest: Option<Timestamp>,
    count: u64,
    /// Of these, those that are still to come again.
    again: u64,
}

impl Told {
    /// Whether a message of that date is news.
    fn is_news(&mut self, date: Timestamp) -> bool {
        if self.newest.is_none_or(|newest| newest < date) {
            (self.newest, self.count, self.again) = (Some(date), 0, 0);
        }
        if self.newest == Some(date) && self.again > 0 {
            self.again -= 1;
            return false;
        }
        self.count += u64::from(self.newest == Some(date));
        true
    }

    /// All messages come again from the newest date on, which this gives.
    fn again(&mut self) -> Option<Timestamp> {
        self.again = self.count;
        self.newest
    }
}

/// Whose a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Stdout = 0,
    Stderr = 1,
    Daemon,
}

/// Takes Docker's multiplexed stream apart: frames with a head of eight bytes (stream, three zeros, length). A
/// terminal's output comes as it is.
pub(crate) struct Decoder {
    tty: bool,
    buffer: BytesMut,
    /// The frame at hand, and what is to come of it.
    frame: Option<(Kind, usize)>,
    /// The daemon's own words since the last piece of the log, e.g. of a line that it cannot read.
    words: Vec<u8>,
    /// Whether each message begins with a date and a space.
    dated: bool,
    /// Whether these are wanted.
    shown: bool,
    /// By [`Kind`]: whether a line of it has begun and not ended.
    amid: [bool; 2],
    /// What has come of the date of the message at hand, until that is whole.
    date: Option<BytesMut>,
    told: Told,
    /// The message at hand was told before.
    old: bool,
}

impl Decoder {
    /// Of a log whose messages are `dated`, and whose dates are to be `shown`.
    pub(crate) fn new(tty: bool, dated: bool, shown: bool) -> Decoder {
        Decoder {
            tty,
            buffer: BytesMut::new(),
            frame: None,
            words: Vec::new(),
            dated,
            shown,
            amid: [false; 2],
            date: None,
            told: Told::default(),
            old: false,
        }
    }

    pub(crate) fn feed(&mut self, data: &Bytes) {
        self.buffer.extend_from_slice(data);
    }

    /// What is wrong with a log that ends here.
    fn end(&mut self) -> Option<Fault> {
        if !self.words.is_empty() {
            return Some(Fault::Answer { status: 500, message: self.take_words() });
        }
        let cut = self.frame.is_some() || !self.buffer.is_empty();
        cut.then(|| Fault::Nonsense("the log ended within a line".to_owned()))
    }

    fn take_words(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.words)).trim().to_owned()
    }

    pub(crate) fn next(&mut self) -> Result<Option<LogChunk>, Fault> {
        loop {
            if self.tty {
                let length = self.buffer.len().min(PIECE);
                let chunk = || LogChunk { stderr: false, data: self.buffer.split_to(length).freeze() };
                return Ok((length > 0).then(chunk));
            }
            if let Some((kind, rest)) = self.frame {
                let length = self.buffer.len().min(rest).min(PIECE);
                if length == 0 {
                    return Ok(None);
                }
                self.frame = (rest > length).then_some((kind, rest - length));
                let data = self.buffer.split_to(length).freeze();
                if kind == Kind::Daemon {
                    let room = WORDS.saturating_sub(self.words.len()).min(length);
                    self.words.extend_from_slice(&data[..room]);
                    continue;
                }
                // It went on, and so does whoever reads: the kubelet leaves out what it cannot read, too.
                if !self.words.is_empty() {
                    let words = self.take_words();
                    tracing::warn!("a part of a log is left out: {words}");
                }
                let data = self.undated(kind, data)?;
                if data.is_empty() {
                    continue;
                }
                self.amid[kind as usize] = data.last() != Some(&b'\n');
                return Ok(Some(LogChunk { stderr: kind == Kind::Stderr, data }));
            }
            let Some(head) = self.buffer.first_chunk::<8>().copied() else { return Ok(None) };
            let kind = match head[..4] {
                [0 | 1, 0, 0, 0] => Kind::Stdout,
                [2, 0, 0, 0] => Kind::Stderr,
                [3, 0, 0, 0] => Kind::Daemon,
                _ => return Err(Fault::Nonsense("the log is not a stream of Docker's".to_owned())),
            };
            self.buffer.advance(8);
            let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
            self.frame = (length > 0).then_some((kind, length));
            (self.date, self.old) = ((self.dated && kind != Kind::Daemon).then(BytesMut::new), false);
        }
    }

    /// What is to be told of a piece of a message. Docker keeps a long line in parts and dates each of them; the kubelet
    /// dates lines.
    fn undated(&mut self, kind: Kind, mut data: Bytes) -> Result<Bytes, Fault> {
        if let Some(mut date) = self.date.take() {
            let end = data.iter().position(|byte| *byte == b' ');
            date.extend_from_slice(&data.split_to(end.map_or(data.len(), |at| at + 1)));
            if date.len() > DATE {
                return Err(Fault::Nonsense("the log has a line without a date".to_owned()));
            }
            if end.is_none() {
                self.date = Some(date);
                return Ok(data);
            }
            let read = std::str::from_utf8(&date).ok().and_then(|text| text.trim_end().parse().ok());
            self.old = read.is_some_and(|date| !self.told.is_news(date));
            if self.shown && !self.amid[kind as usize] {
                date.extend_from_slice(&data);
                data = date.freeze();
            }
        }
        Ok(if self.old { Bytes::new() } else { data })
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
            let mut decoder = Decoder::new(false, false, false);
            let (mut out, mut err) = (Vec::new(), Vec::new());
            for piece in stream.chunks(size) {
                decoder.feed(&Bytes::copy_from_slice(piece));
                while let Some(chunk) = decoder.next().unwrap() {
                    if chunk.stderr { err.extend(chunk.data) } else { out.extend(chunk.data) }
                }
            }
            assert_eq!((out.as_slice(), err.as_slice()), (b"a\nb".as_slice(), b"c".as_slice()));
            assert!(decoder.end().is_none());
        }
    }

    #[test]
    fn the_daemons_words_are_no_part_of_the_log_and_its_last_are_the_reason() {
        let words = b"\x03\0\0\0\0\0\0\x04why\n";
        let stream = [words.as_slice(), b"\x02\0\0\0\0\0\0\x02a\n", words].concat();
        for size in 1..=stream.len() {
            let mut decoder = Decoder::new(false, false, false);
            let mut read = Vec::new();
            for piece in stream.chunks(size) {
                decoder.feed(&Bytes::copy_from_slice(piece));
                while let Some(chunk) = decoder.next().unwrap() {
                    assert!(chunk.stderr);
                    read.extend(chunk.data);
                }
            }
            assert_eq!(read, b"a\n");
            assert_eq!(decoder.end().map(|fault| fault.to_string()).as_deref(), Some("why"));
        }
    }

    #[test]
    fn a_line_in_parts_has_one_date() {
        let frame = |kind: u8, text: &str| [&[kind, 0, 0, 0, 0, 0, 0, text.len() as u8][..], text.as_bytes()].concat();
        let stream = [
            frame(1, "2026-01-01T00:00:00Z long "),
            frame(2, "2026-01-01T00:00:01Z err\n"),
            frame(1, "2026-01-01T00:00:02Z li ne\n"),
            frame(1, "2026-01-01T00:00:03Z next\n"),
        ]
        .concat();
        for size in 1..=stream.len() {
            let mut decoder = Decoder::new(false, true, true);
            let (mut out, mut err) = (Vec::new(), Vec::new());
            for piece in stream.chunks(size) {
                decoder.feed(&Bytes::copy_from_slice(piece));
                while let Some(chunk) = decoder.next().unwrap() {
                    if chunk.stderr { err.extend(chunk.data) } else { out.extend(chunk.data) }
                }
            }
            let out = String::from_utf8(out).unwrap();
            assert_eq!(out, "2026-01-01T00:00:00Z long li ne\n2026-01-01T00:00:03Z next\n");
            assert_eq!(err, b"2026-01-01T00:00:01Z err\n");
        }
    }

    #[test]
    fn nonsense_is_an_error_and_a_terminal_is_raw() {
        let mut decoder = Decoder::new(false, false, false);
        decoder.feed(&Bytes::from_static(b"hello world"));
        assert!(decoder.next().is_err());
        let mut decoder = Decoder::new(true, false, false);
        decoder.feed(&Bytes::from_static(b"\x01hello"));
        assert_eq!(decoder.next().unwrap().unwrap().data, Bytes::from_static(b"\x01hello"));
    }
}
