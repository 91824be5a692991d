//! Port forwarding: the same forwards over SPDY, SPDY in WebSocket, and WebSocket channels
//! (k8s.io/cri-streaming `pkg/streaming/portforward`). Connects nowhere: the caller copies to the pod.

mod pairs;

use std::collections::VecDeque;
use std::io;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::mux::{self, Stream};
use crate::negotiate::Protocol;
use crate::options::Options;
use crate::remote_command::Gone;
use crate::spdy;
use crate::websocket::{self, Channel};
use pairs::Pairs;

/// Most ports of a request over channels: each takes two of 255.
const MOST_PORTS: usize = 127;
/// Largest header block of a stream, in bytes: a kind, a port and a request's number are in it.
const HEADER_BLOCK: usize = 8 << 10;

/// One connection to be forwarded.
#[derive(Debug)]
pub struct Forward {
    /// The port in the pod.
    pub port: u16,
    /// The connection's data.
    pub data: Stream,
    end: ForwardEnd,
}

impl Forward {
    /// The port, the data, and the end to be told.
    #[must_use]
    pub fn into_parts(self) -> (u16, Stream, ForwardEnd) {
        (self.port, self.data, self.end)
    }

    /// Ends the forward; see [`ForwardEnd::finish`].
    ///
    /// # Errors
    /// The client went away.
    pub async fn finish(self, result: Result<(), String>) -> io::Result<()> {
        self.end.finish(result).await
    }
}

/// The end of a forward. Dropped unused, the forward ends without an error.
#[derive(Debug)]
pub struct ForwardEnd {
    error: Stream,
    data: u32,
    /// Counts the forwards of channels that are not over.
    _running: Option<mpsc::Sender<()>>,
}

impl ForwardEnd {
    /// Ends the forward: without an error, or with one for the client to see, which also aborts both streams. Keep the
    /// data until then: dropped, it has ended in order already.
    ///
    /// # Errors
    /// The client went away.
    pub async fn finish(mut self, result: Result<(), String>) -> io::Result<()> {
        let Err(message) = result else { return self.error.shutdown().await };
        self.error.write_all(message.as_bytes()).await?;
        self.error.flush().await?;
        self.error.reset_other(self.data);
        self.error.reset();
        Ok(())
    }
}

/// The forwards of a connection.
#[derive(Debug)]
pub struct Forwards(Kind);

#[derive(Debug)]
enum Kind {
    Spdy { session: spdy::Session, pairs: Pairs },
    Channels { session: mux::Session, waiting: VecDeque<Forward>, running: mpsc::Receiver<()> },
}

impl Forwards {
    /// The next connection; `None` when the client went away or was idle for too long, or, over channels, when all
    /// forwards are over.
    pub async fn next(&mut self) -> Option<Forward> {
        match &mut self.0 {
            Kind::Spdy { pairs, .. } => pairs.next().await,
            Kind::Channels { session, waiting, running } => {
                if let Some(forward) = waiting.pop_front() {
                    return Some(forward);
                }
                tokio::select! {
                    _ = running.recv() => {}
                    () = session.shared.over.cancelled() => {}
                }
                None
            }
        }
    }

    /// Tells when the client goes away.
    #[must_use]
    pub fn gone(&self) -> Gone {
        Gone(match &self.0 {
            Kind::Spdy { session, .. } => session.shared().over.clone(),
            Kind::Channels { session, .. } => session.shared.over.clone(),
        })
    }

    /// Closes when the client has read everything and closed, or is gone, or had its time for it.
    pub async fn close(self) {
        match self.0 {
            Kind::Spdy { session, .. } => session.close().await,
            Kind::Channels { session, .. } => session.close().await,
        }
    }
}

/// Serves port forwarding on an upgraded connection. `ports` are those of the query ([`ports_of_query`]); over SPDY
/// and the tunnel each pair of streams names its own.
#[must_use]
pub fn serve<IO>(io: IO, protocol: Protocol, ports: &[u16], mut options: Options) -> Forwards
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    options.limits.header_block = options.limits.header_block.min(HEADER_BLOCK);
    let timeout = options.creation_timeout;
    let (session, incoming) = match protocol {
        Protocol::Spdy { .. } => spdy::Session::serve(io, options),
        Protocol::Tunnel => spdy::Session::serve(websocket::tunnel(io, options.clone()), options),
        Protocol::Channels { base64, .. } => return over_channels(io, base64, ports, options),
    };
    let pairs = Pairs::new(session.shared().clone(), incoming, timeout);
    Forwards(Kind::Spdy { session, pairs })
}

fn over_channels<IO>(io: IO, base64: bool, ports: &[u16], options: Options) -> Forwards
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let ports = &ports[..ports.len().min(MOST_PORTS)];
    let channels: Vec<Channel> = ports.iter().flat_map(|_| [Channel::ReadWrite, Channel::Write]).collect();
    let (session, streams) = websocket::channels(io, base64, false, &channels, options);
    let (sender, running) = mpsc::channel(1);
    let mut waiting = VecDeque::new();
    let mut streams = streams.into_iter().flatten();
    for port in ports {
        if let (Some(data), Some(error)) = (streams.next(), streams.next()) {
            for stream in [&data, &error] {
                session.shared.force(stream.id(), &port.to_le_bytes());
            }
            let end = ForwardEnd { error, data: data.id(), _running: Some(sender.clone()) };
            waiting.push_back(Forward { port: *port, data, end });
        }
    }
    Forwards(Kind::Channels { session, waiting, running })
}

/// The ports of a request's `port` parameters, each a list with commas.
///
/// # Errors
/// The body of the answer 400.
pub fn ports_of_query<S: AsRef<str>>(parameters: &[S]) -> Result<Vec<u16>, String> {
    if parameters.is_empty() {
        return Err(r#"query parameter "port" is required"#.to_owned());
    }
    let mut ports = Vec::new();
    for parameter in parameters {
        let parameter = parameter.as_ref();
        if parameter.is_empty() {
            return Err(r#"query parameter "port" cannot be empty"#.to_owned());
        }
        for text in parameter.split(',') {
            let port =
                text.parse::<u16>().map_err(|error| format!("unable to parse {parameter:?} as a port: {error}"))?;
            if port == 0 {
                return Err(format!("port {text:?} must be > 0"));
            }
            ports.push(port);
        }
    }
    if ports.len() > MOST_PORTS {
        return Err(format!("{} ports are more than the {MOST_PORTS} of one connection", ports.len()));
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::ports_of_query;

    #[test]
    fn ports_are_lists() {
        assert_eq!(ports_of_query(&["80,443", "8080"]), Ok(vec![80, 443, 8080]));
        for wrong in [&[][..], &[""], &["0"], &["x"], &["65536"], &["80,"]] {
            assert!(ports_of_query(wrong).is_err(), "{wrong:?}");
        }
    }
}
