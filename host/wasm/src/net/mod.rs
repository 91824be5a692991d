//! Connections of the host to targets, for `longshore:dial` and `longshore:http`. It must not choose a target: that is the call's.

mod lookup;
pub(crate) mod tls;
pub(crate) mod web;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Where a target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// The pod's address, or one that the probe's author wrote.
    Ip(IpAddr),
    /// A name that the probe's author wrote.
    Name(String),
}

impl Address {
    /// Reads v1's `host`.
    pub(crate) fn parse(host: &str) -> Self {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        bare.parse().map_or_else(|_| Self::Name(host.to_owned()), Self::Ip)
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum ConnectError {
    Lookup(String),
    Connect(String),
}

/// A connection to a target. It lingers for at most a second when it is closed, as the kubelet's do (`pkg/probe/dialer_others.go`),
/// so that probes do not use up the node's ports.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    deadline: Instant,
    /// How the other side began.
    first: [u8; 5],
    read: usize,
}

impl Socket {
    /// Connects: to each address of a name in turn, as Go does, until one answers.
    pub(crate) async fn connect(address: &Address, port: u16, deadline: Instant) -> Result<Self, ConnectError> {
        let stream = match address {
            Address::Ip(ip) => TcpStream::connect(SocketAddr::new(*ip, port)).await,
            Address::Name(name) => {
                let found = lookup::lookup(name).await.map_err(ConnectError::Lookup)?;
                let mut last = Err(io::Error::other("the name has no address"));
                for mut address in found.iter().copied() {
                    address.set_port(port);
                    last = TcpStream::connect(address).await;
                    if last.is_ok() {
                        break;
                    }
                }
                last
            }
        };
        let stream = stream.map_err(|error| ConnectError::Connect(error_text(&error)))?;
        let _ = stream.set_nodelay(true);
        let _ = set_socket_linger(&stream, Some(Duration::from_secs(1)));
        Ok(Self { stream, deadline, first: [0; 5], read: 0 })
    }

    /// Whether the other side began with a plain answer of HTTP.
    pub(crate) fn answered_in_http(&self) -> bool {
        &self.first == b"HTTP/"
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Closing a socket that lingers blocks this thread until the peer has acknowledged. One that let the whole budget pass may
        // never do so.
        if Instant::now() >= self.deadline {
            let _ = set_socket_linger(&self.stream, None);
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = to.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, to);
        let (known, news) = (self.read, &to.filled()[before..]);
        if known < self.first.len() {
            let count = news.len().min(self.first.len() - known);
            self.first[known..known + count].copy_from_slice(&news[..count]);
            self.read += count;
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// An error of the operating system in Go's words: `connection refused`.
pub(crate) fn error_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    match letters.next() {
        Some(first) if !letters.as_str().starts_with(char::is_uppercase) => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Address, error_text};
    use std::io;

    #[test]
    fn errors_have_gos_words() {
        for (number, text) in [
            (111, "connection refused"),
            (113, "no route to host"),
            (101, "network is unreachable"),
            (104, "connection reset by peer"),
        ] {
            assert_eq!(error_text(&io::Error::from_raw_os_error(number)), text);
        }
    }

    #[test]
    fn hosts() {
        assert_eq!(Address::parse("[::1]"), Address::Ip("::1".parse().expect("an address")));
        assert_eq!(Address::parse("10.0.0.1"), Address::Ip("10.0.0.1".parse().expect("an address")));
        assert_eq!(Address::parse("a.example"), Address::Name("a.example".to_owned()));
    }
}
