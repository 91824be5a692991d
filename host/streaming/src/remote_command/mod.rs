//! exec and attach: the same streams over SPDY and WebSocket (k8s.io/cri-streaming `pkg/streaming/remotecommand`).
//! Runs nothing: the caller copies between these streams and the container.

mod resize;
mod status;

use std::collections::HashMap;
use std::io;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use resize::Size;
pub(crate) use resize::parse as parse_sizes;
pub use status::Outcome;

use crate::mux::{self, Stream};
use crate::negotiate::Protocol;
use crate::options::Options;
use crate::spdy;
use crate::websocket::{self, Channel};

/// The streams that a request asks for (`input`, `output`, `error`, `tty` = 1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requested {
    /// Data from the client.
    pub stdin: bool,
    /// Output.
    pub stdout: bool,
    /// Error output; dropped with a terminal.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

impl Requested {
    /// The request as it is served.
    ///
    /// # Errors
    /// The body of the answer 400, if no stream is asked for.
    pub fn check(mut self) -> Result<Self, &'static str> {
        self.stderr &= !self.tty;
        if self.stdin || self.stdout || self.stderr {
            Ok(self)
        } else {
            Err("you must specify at least 1 of stdin, stdout, stderr")
        }
    }
}

/// Why a connection cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The client did not open its streams in time.
    #[error("timed out waiting for client to create streams")]
    TimedOut,
    /// The client went away before.
    #[error("the client went away before it had created its streams")]
    Gone,
    /// The protocol is not one of this service.
    #[error("protocol {0:?} does not carry this service")]
    Protocol(Protocol),
}

/// A command's streams. Take them out; dropping an output ends it for the client.
pub struct RemoteCommand {
    /// What the client sends; ends when the client ends it or goes away.
    pub stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// For the client; fails when the client went away.
    pub stdout: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// For the client; none with a terminal.
    pub stderr: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Sizes of the client's terminal; only with a terminal.
    pub resize: Option<mpsc::Receiver<Size>>,
    /// Says how the command ended, and closes.
    pub finish: Finish,
}

impl std::fmt::Debug for RemoteCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteCommand").field("finish", &self.finish).finish_non_exhaustive()
    }
}

impl RemoteCommand {
    /// Tells when the client goes away.
    #[must_use]
    pub fn gone(&self) -> Gone {
        Gone(self.finish.session.shared.over.clone())
    }
}

/// Tells when the client goes away; any number of clones may wait.
#[derive(Debug, Clone)]
pub struct Gone(pub(crate) CancellationToken);

impl Gone {
    /// Resolves when the client went away, was idle for too long, or the connection was closed.
    pub async fn wait(&self) {
        self.0.cancelled().await;
    }
}

/// The end of a command. Dropped unused, it closes the connection without a status.
#[derive(Debug)]
pub struct Finish {
    session: mux::Session,
    error: Stream,
    version: u8,
    /// Streams to end before the close.
    streams: Vec<u32>,
}

impl Finish {
    /// Ends the outputs, writes the status, and closes when the client has: it may be slow to read the tail. Write all
    /// output before.
    ///
    /// # Errors
    /// The client went away before it had everything.
    pub async fn finish(mut self, outcome: Outcome) -> io::Result<()> {
        for id in &self.streams {
            self.session.shared.fin(*id);
        }
        let message = outcome.message(self.version);
        let said = tokio::select! {
            said = async {
                self.error.write_all(&message).await?;
                self.error.shutdown().await
            } => said,
            () = self.session.shared.over.cancelled() => Err(io::ErrorKind::BrokenPipe.into()),
        };
        self.session.close().await;
        said
    }
}

/// Serves exec or attach on an upgraded connection.
///
/// # Errors
/// The client did not open its streams in time, or went away; the connection is then closed.
pub async fn serve<IO>(
    io: IO,
    protocol: Protocol,
    requested: Requested,
    options: Options,
) -> Result<RemoteCommand, ServeError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let requested = Requested { stderr: requested.stderr && !requested.tty, ..requested };
    match protocol {
        Protocol::Spdy { version } => over_spdy(io, version, requested, options).await,
        Protocol::Channels { base64, version } => Ok(over_channels(io, base64, version, requested, options)),
        Protocol::Tunnel => Err(ServeError::Protocol(protocol)),
    }
}

async fn over_spdy<IO>(io: IO, version: u8, requested: Requested, options: Options) -> Result<RemoteCommand, ServeError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let deadline = tokio::time::sleep(options.creation_timeout);
    let (session, mut incoming) = spdy::Session::serve(io, options);
    let wanted: Vec<&str> = [
        ("error", true),
        ("stdin", requested.stdin),
        ("stdout", requested.stdout),
        ("stderr", requested.stderr),
        // Versions 1 and 2 know no resizing.
        ("resize", requested.tty && version >= 3),
    ]
    .into_iter()
    .filter_map(|(name, wanted)| wanted.then_some(name))
    .collect();
    let mut streams: HashMap<&str, Stream> = HashMap::new();
    let collect = async {
        while streams.len() < wanted.len() {
            let new = incoming.next().await.ok_or(ServeError::Gone)?;
            let kind = new.headers().get("streamType").unwrap_or_default();
            match wanted.iter().find(|name| **name == kind) {
                Some(name) if !streams.contains_key(name) => {
                    let stream = new.accept();
                    streams.insert(name, stream);
                }
                _ => {
                    tracing::debug!(stream = kind, "refused a stream that was not asked for");
                    new.refuse();
                }
            }
        }
        Ok(())
    };
    tokio::select! {
        collected = collect => collected?,
        () = deadline => return Err(ServeError::TimedOut),
    }
    // What the client opens from here on is refused.
    drop(incoming);
    let ids = ["stdout", "stderr", "stdin", "resize"];
    let ids = ids.iter().filter_map(|name| streams.get(name).map(Stream::id)).collect();
    let Some(error) = streams.remove("error") else { return Err(ServeError::Gone) };
    // Each stream is kept whole: an end of ours on stdin would make kubectl stop sending it.
    Ok(RemoteCommand {
        stdin: streams.remove("stdin").map(|stream| Box::new(stream) as _),
        stdout: streams.remove("stdout").map(|stream| Box::new(stream) as _),
        stderr: streams.remove("stderr").map(|stream| Box::new(stream) as _),
        resize: streams.remove("resize").map(resize::sizes),
        finish: Finish { session: session.into_inner(), error, version, streams: ids },
    })
}

fn over_channels<IO>(io: IO, base64: bool, version: u8, requested: Requested, options: Options) -> RemoteCommand
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let when = |wanted, channel| if wanted { channel } else { Channel::Ignored };
    let channels = [
        when(requested.stdin, Channel::Read),
        when(requested.stdout, Channel::Write),
        when(requested.stderr, Channel::Write),
        Channel::Write,
        when(requested.tty, Channel::Read),
    ];
    let (session, streams) = websocket::channels(io, base64, version >= 5, &channels, options);
    let mut streams = streams.into_iter();
    let mut next = || streams.next().flatten();
    let (stdin, stdout, stderr, error, sizes) = (next(), next(), next(), next(), next());
    let error = error.unwrap_or_else(|| Stream::new(session.shared.clone(), 3));
    // An empty message says that the connection stands.
    let lowest = [&stdout, &stderr].into_iter().flatten().next().map_or(error.id(), Stream::id);
    session.shared.force(lowest, &[]);
    RemoteCommand {
        stdin: stdin.map(|stream| Box::new(stream) as _),
        stdout: stdout.map(|stream| Box::new(stream) as _),
        stderr: stderr.map(|stream| Box::new(stream) as _),
        resize: sizes.map(resize::sizes),
        finish: Finish { session, error, version, streams: Vec::new() },
    }
}
