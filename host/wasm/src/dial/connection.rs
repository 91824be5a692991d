//! A guest's connection, plain or with TLS. It must not count or bound anything: the call does.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::client::TlsStream;

use crate::bindings::longshore::dial::tcp::DialError;
use crate::net::{Address, Socket, error_text, tls};

/// A connection to the target.
#[allow(unreachable_pub)]
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    address: Address,
}

#[derive(Debug)]
enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
    /// A TLS handshake failed, or did not end in time: nothing sensible can be said on it any more.
    Broken,
}

impl Connection {
    pub(crate) fn new(socket: Socket, address: Address) -> Self {
        Self { stream: Stream::Plain(socket), address }
    }

    pub(crate) async fn start_tls(&mut self, name: Option<&str>, alpn: Vec<Vec<u8>>) -> Result<(), DialError> {
        match std::mem::replace(&mut self.stream, Stream::Broken) {
            Stream::Plain(socket) => {
                let stream = tls::start(socket, &self.address, name, alpn).await;
                let stream = stream.map_err(|error| DialError::Tls(error.text))?;
                self.stream = Stream::Tls(Box::new(stream));
                Ok(())
            }
            other => {
                self.stream = other;
                Err(DialError::Tls("TLS is spoken already".to_owned()))
            }
        }
    }

    pub(crate) fn alpn(&self) -> Option<String> {
        let Stream::Tls(stream) = &self.stream else { return None };
        let protocol = stream.get_ref().1.alpn_protocol()?;
        Some(String::from_utf8_lossy(protocol).into_owned())
    }

    pub(crate) async fn read(&mut self, max: usize) -> Result<Vec<u8>, DialError> {
        let mut bytes = vec![0; max];
        let read = match &mut self.stream {
            Stream::Plain(socket) => socket.read(&mut bytes).await.map_err(plain)?,
            Stream::Tls(stream) => stream.read(&mut bytes).await.map_err(secure)?,
            Stream::Broken => return Err(broken()),
        };
        bytes.truncate(read);
        Ok(bytes)
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), DialError> {
        match &mut self.stream {
            Stream::Plain(socket) => socket.write_all(bytes).await.map_err(plain),
            Stream::Tls(stream) => {
                stream.write_all(bytes).await.map_err(secure)?;
                stream.flush().await.map_err(secure)
            }
            Stream::Broken => Err(broken()),
        }
    }

    pub(crate) async fn shutdown(&mut self) -> Result<(), DialError> {
        match &mut self.stream {
            Stream::Plain(socket) => socket.shutdown().await.map_err(plain),
            Stream::Tls(stream) => stream.shutdown().await.map_err(secure),
            Stream::Broken => Ok(()),
        }
    }
}

fn broken() -> DialError {
    DialError::Closed("TLS could not be spoken on it".to_owned())
}

fn plain(error: io::Error) -> DialError {
    DialError::Closed(error_text(&error))
}

fn secure(error: io::Error) -> DialError {
    match error.get_ref() {
        Some(_) => DialError::Tls(tls::text(&error)),
        None => plain(error),
    }
}
