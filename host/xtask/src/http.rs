//! A small HTTP/1.1 client over a Unix socket: enough for Docker's API and for the agent's own socket.
//! One connection, kept open, one request at a time. Must not know what it carries.

use std::{
    io::{BufRead, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// The most that an answer may hold; Docker's inspect of 100 containers is far below it.
const BODY_LIMIT: usize = 64 << 20;

/// An answer: its status and its body.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The HTTP status code.
    pub status: u16,
    /// The body, whole.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).context("the answer is not JSON")
    }
}

/// A client of the server at one Unix socket.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    connection: Option<BufReader<UnixStream>>,
    limit: Duration,
}

impl Client {
    /// A client of the server at `socket`; nothing is connected yet. `limit` is for each read and write.
    pub(crate) fn new(socket: impl Into<PathBuf>, limit: Duration) -> Self {
        Self { socket: socket.into(), connection: None, limit }
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// When the server cannot be reached or breaks off. A status of 400 and more is an answer, not an error.
    pub(crate) fn request(&mut self, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<Answer> {
        let reused = self.connection.is_some();
        match self.exchange(method, path, kind, body) {
            // A kept connection may have been closed by the other side meanwhile: once more on a new one.
            Err(_) if reused => {
                self.connection = None;
                self.exchange(method, path, kind, body)
            }
            other => other,
        }
        .with_context(|| format!("{method} {path} on {}", self.socket.display()))
    }

    /// GET, as JSON; a status of 400 and more is an error with the server's message.
    ///
    /// # Errors
    /// See there.
    pub(crate) fn get(&mut self, path: &str) -> Result<Value> {
        self.expect("GET", path, None)
    }

    /// A request with a JSON body (or none); a status of 400 and more is an error with the server's message.
    ///
    /// # Errors
    /// See there.
    pub(crate) fn expect(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let bytes = body.map(Value::to_string).unwrap_or_default();
        let answer = self.request(method, path, "application/json", bytes.as_bytes())?;
        if answer.status >= 400 {
            bail!("{method} {path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body).trim());
        }
        if answer.body.is_empty() { Ok(Value::Null) } else { answer.json() }
    }

    fn exchange(&mut self, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<Answer> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let stream = UnixStream::connect(&self.socket)?;
                stream.set_read_timeout(Some(self.limit))?;
                stream.set_write_timeout(Some(self.limit))?;
                BufReader::new(stream)
            }
        };
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
        if !body.is_empty() || method == "POST" {
            head.push_str(&format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let stream = connection.get_mut();
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let (answer, keep) = read_answer(&mut connection)?;
        if keep {
            self.connection = Some(connection);
        }
        Ok(answer)
    }
}

/// Reads one answer; the flag says whether the connection may be used again.
fn read_answer(from: &mut impl BufRead) -> Result<(Answer, bool)> {
    let line = read_line(from)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status: u16 = status.with_context(|| format!("no HTTP status line: {line:?}"))?;
    let (mut length, mut chunked, mut keep) = (None, false, true);
    loop {
        let line = read_line(from)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = Some(value.parse::<usize>().context("Content-Length")?),
            "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
            "connection" => keep = !value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    let mut body = Vec::new();
    if status == 204 || status == 304 {
        return Ok((Answer { status, body }, keep));
    }
    if chunked {
        loop {
            let size = read_line(from)?;
            let size = usize::from_str_radix(size.split(';').next().unwrap_or_default(), 16)
                .with_context(|| format!("chunk size {size:?}"))?;
            if body.len() + size > BODY_LIMIT {
                bail!("an answer of more than {BODY_LIMIT} bytes");
            }
            let start = body.len();
            body.resize(start + size, 0);
            from.read_exact(&mut body[start..])?;
            if !read_line(from)?.is_empty() {
                bail!("a chunk without its end");
            }
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = length {
        if length > BODY_LIMIT {
            bail!("an answer of more than {BODY_LIMIT} bytes");
        }
        body.resize(length, 0);
        from.read_exact(&mut body)?;
    } else {
        from.take(BODY_LIMIT as u64).read_to_end(&mut body)?;
        keep = false;
    }
    Ok((Answer { status, body }, keep))
}

fn read_line(from: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    if from.take(64 << 10).read_line(&mut line)? == 0 {
        bail!("the server closed the connection");
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Answer, bool)> {
        read_answer(&mut text.as_bytes())
    }

    #[test]
    fn bodies_by_length_by_chunks_and_to_the_end() {
        let (answer, keep) = read("HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}trailing").unwrap();
        assert_eq!((answer.status, answer.body.as_slice(), keep), (201, &b"{}"[..], true));
        let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        let (answer, keep) = read(chunks).unwrap();
        assert_eq!((answer.body.as_slice(), keep), (&b"abcde"[..], true));
        let (answer, keep) = read("HTTP/1.0 200 OK\r\n\r\nall of it").unwrap();
        assert_eq!((answer.body.as_slice(), keep), (&b"all of it"[..], false));
        let (answer, keep) = read("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").unwrap();
        assert_eq!((answer.body.as_slice(), keep), (&b""[..], false));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for text in [
            "",
            "hello\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        ] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }
}
