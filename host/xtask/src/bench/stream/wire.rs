//! A client of the node's server: TLS, the upgrade, WebSocket messages, SPDY streams, as kubectl and the API server speak
//! them: no windows, no compression. Must not know what is streamed.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};

use crate::cluster::keys::{Authority, Pair};

/// A read or write that takes longer is given up.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// Bytes both ways.
pub(super) trait Duplex: Read + Write {}
impl<T: Read + Write> Duplex for T {}

type Stream = Box<dyn Duplex>;

/// Where the server is, and how to get in.
#[derive(Clone, Debug)]
pub(super) struct Door {
    address: SocketAddr,
    client: Arc<ClientConfig>,
}

fn pem(pair: &Pair) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_slice_iter(&fs::read(&pair.certificate)?).collect::<Result<Vec<_>, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_slice(&fs::read(&pair.key)?)?))
}

/// A TLS server's side with that certificate.
///
/// # Errors
/// When it cannot be used.
pub(super) fn server(pair: &Pair) -> Result<Arc<ServerConfig>> {
    let (chain, key) = pem(pair)?;
    let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?.with_no_client_auth();
    Ok(Arc::new(builder.with_single_cert(chain, key)?))
}

impl Door {
    /// To a server of that authority, as somebody with that certificate.
    ///
    /// # Errors
    /// When the certificates cannot be used.
    pub(super) fn new(address: SocketAddr, authority: &Authority, user: &Pair) -> Result<Door> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes())?)?;
        let (chain, key) = pem(user)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots);
        Ok(Door { address, client: Arc::new(builder.with_client_auth_cert(chain, key)?) })
    }

    /// The same door elsewhere.
    pub(super) fn at(&self, address: SocketAddr) -> Door {
        Door { address, client: self.client.clone() }
    }

    /// A connection.
    ///
    /// # Errors
    /// When nobody is there.
    pub(super) fn connect(&self) -> Result<impl Duplex + use<>> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let name = ServerName::from(self.address.ip());
        Ok(StreamOwned::new(ClientConnection::new(self.client.clone(), name)?, stream))
    }

    /// A connection that speaks SPDY from here on.
    ///
    /// # Errors
    /// When the server refuses.
    pub(super) fn spdy(&self, path: &str, protocol: &str) -> Result<Spdy> {
        let head = format!("Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n");
        Ok(Spdy::new(Box::new(upgrade(self.connect()?, "POST", path, &head)?)))
    }

    /// A connection that speaks WebSocket from here on.
    ///
    /// # Errors
    /// When the server refuses.
    pub(super) fn web_socket(&self, path: &str, protocol: &str) -> Result<WebSocket> {
        let head = format!(
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n"
        );
        Ok(WebSocket { io: Box::new(upgrade(self.connect()?, "GET", path, &head)?), rest: Vec::new(), at: 0 })
    }

    /// SPDY in the messages of a WebSocket, as kubectl has it since 1.31.
    ///
    /// # Errors
    /// When the server refuses.
    pub(super) fn tunnel(&self, path: &str) -> Result<Spdy> {
        Ok(Spdy::new(Box::new(self.web_socket(path, "SPDY/3.1+portforward.k8s.io")?)))
    }
}

/// Sends a request and its headers, and reads the answer's head, which must be 101.
fn upgrade(io: impl Duplex + 'static, method: &str, path: &str, headers: &str) -> Result<Buffered<Stream>> {
    let mut io = Buffered(BufReader::with_capacity(64 << 10, Box::new(io) as Stream));
    write!(io, "{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nContent-Length: 0\r\n{headers}\r\n")?;
    let status = io.line()?;
    while !io.line()?.is_empty() {}
    if !status.starts_with("HTTP/1.1 101") {
        bail!("{method} {path}: {status}");
    }
    Ok(io)
}

/// Reads in large pieces.
pub(super) struct Buffered<T: Read>(pub(super) BufReader<T>);

impl<T: Read> Buffered<T> {
    /// A line of an HTTP head, without its end.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(super) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            bail!("the server closed the connection");
        }
        Ok(line.trim_end().to_owned())
    }
}

impl<T: Read> Read for Buffered<T> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(into)
    }
}

impl<T: Read + Write> Write for Buffered<T> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.get_mut().flush()
    }
}

/// A WebSocket of binary messages. Read and written as a stream it does not tell where they begin.
pub(super) struct WebSocket {
    io: Stream,
    rest: Vec<u8>,
    at: usize,
}

impl WebSocket {
    /// The next message; `None` after the close.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(super) fn receive(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let mut head = [0; 2];
            self.io.read_exact(&mut head)?;
            let length = match head[1] & 0x7f {
                126 => u64::from(u16::from_be_bytes(self.array()?)),
                127 => u64::from_be_bytes(self.array()?),
                length => u64::from(length),
            };
            let mut payload = vec![0; usize::try_from(length)?];
            self.io.read_exact(&mut payload)?;
            match head[0] & 0xf {
                1 | 2 => return Ok(Some(payload)),
                8 => return Ok(None),
                9 => self.frame(10, &[&payload])?,
                _ => {}
            }
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.io.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Sends the parts as one message.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(super) fn send(&mut self, parts: &[&[u8]]) -> Result<()> {
        self.frame(2, parts)
    }

    fn frame(&mut self, kind: u8, parts: &[&[u8]]) -> Result<()> {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        let mut frame = Vec::with_capacity(length + 14);
        frame.push(0x80 | kind);
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(length), _) if length < 126 => frame.push(0x80 | length),
            (_, Ok(length)) => {
                frame.push(0xfe);
                frame.extend_from_slice(&length.to_be_bytes());
            }
            _ => {
                frame.push(0xff);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        // A mask of zeros changes nothing, and costs the server what another would.
        frame.extend_from_slice(&[0; 4]);
        parts.iter().for_each(|part| frame.extend_from_slice(part));
        Ok(self.io.write_all(&frame)?)
    }
}

impl Read for WebSocket {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.rest.len() {
            match self.receive().map_err(std::io::Error::other)? {
                Some(message) => (self.rest, self.at) = (message, 0),
                None => return Ok(0),
            }
        }
        let length = into.len().min(self.rest.len() - self.at);
        into[..length].copy_from_slice(&self.rest[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

impl Write for WebSocket {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.send(&[bytes]).map_err(std::io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.io.flush()
    }
}

/// A SPDY session.
pub(super) struct Spdy {
    io: Buffered<Stream>,
    last: u32,
}

/// What came of a stream.
pub(super) struct Data {
    pub(super) stream: u32,
    pub(super) bytes: Vec<u8>,
    /// It was the stream's last.
    pub(super) end: bool,
}

impl Spdy {
    fn new(io: Stream) -> Spdy {
        Spdy { io: Buffered(BufReader::with_capacity(64 << 10, io)), last: 0 }
    }

    fn control(&mut self, kind: u8, body: &[u8]) -> Result<()> {
        let frame = [&[0x80, 3, 0, kind][..], &u32::try_from(body.len())?.to_be_bytes(), body].concat();
        Ok(self.io.write_all(&frame)?)
    }

    /// Opens a stream with these headers; its number.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(super) fn open(&mut self, headers: &[(&str, &str)]) -> Result<u32> {
        let first = self.last == 0;
        self.last = if first { 1 } else { self.last + 2 };
        let mut text = u32::try_from(headers.len())?.to_be_bytes().to_vec();
        for part in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.extend_from_slice(&u32::try_from(part.len())?.to_be_bytes());
            text.extend_from_slice(part.as_bytes());
        }
        let length = u16::try_from(text.len())?;
        let mut body = [&self.last.to_be_bytes()[..], &[0; 6]].concat();
        // A zlib stream that stores: it needs no dictionary.
        if first {
            body.extend_from_slice(&[0x78, 0x01]);
        }
        body.push(0);
        body.extend_from_slice(&length.to_le_bytes());
        body.extend_from_slice(&(!length).to_le_bytes());
        body.extend_from_slice(&text);
        self.control(1, &body)?;
        Ok(self.last)
    }

    /// Sends bytes on a stream.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(super) fn send(&mut self, stream: u32, bytes: &[u8], end: bool) -> Result<()> {
        let length = u32::try_from(bytes.len())? | u32::from(end) << 24;
        let head = [stream.to_be_bytes(), length.to_be_bytes()].concat();
        self.io.write_all(&[&head, bytes].concat())?;
        Ok(())
    }

    /// The next data; `None` when the server is gone.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(super) fn receive(&mut self) -> Result<Option<Data>> {
        loop {
            let mut head = [0; 8];
            match self.io.read_exact(&mut head) {
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
                other => other.context("a SPDY frame")?,
            }
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
            let mut bytes = vec![0; length];
            self.io.read_exact(&mut bytes)?;
            if head[0] & 0x80 == 0 {
                let stream = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
                return Ok(Some(Data { stream, bytes, end: head[4] & 1 != 0 }));
            }
            match head[3] {
                3 => bail!("the server reset a stream: {bytes:?}"),
                // As clients that know no windows, which only answer.
                6 => self.control(6, &bytes)?,
                7 => return Ok(None),
                _ => {}
            }
        }
    }
}
