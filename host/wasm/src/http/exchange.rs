//! One exchange on a connection, by hyper. It must not leave anything behind: no task, no connection.

use std::error::Error as _;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{Either, select};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

use crate::bindings::longshore::http::client::{HttpError, Phase, Response};
use crate::call::until;
use crate::limits::MAX_HEADERS;
use crate::net::{Socket, error_text};

/// Which HTTP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// A connection, plain or with TLS.
pub(super) enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

/// hyper runs parts of HTTP/2 as tasks of their own; none may outlive its call by more than it takes to say goodbye.
#[derive(Clone, Copy)]
struct Brief(Instant);

impl<F> hyper::rt::Executor<F> for Brief
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        let end = self.0 + Duration::from_millis(100);
        tokio::spawn(async move {
            let _ = until(end, task).await;
        });
    }
}

/// Sends the request and reads the answer, with as much of its body as is wanted.
pub(super) async fn run(
    stream: Stream,
    version: Version,
    request: http::Request<Full<Bytes>>,
    max_body: usize,
    end: Instant,
) -> Result<Response, HttpError> {
    let io = TokioIo::new(stream);
    let late = |_| HttpError::Timeout(Phase::Headers);
    match version {
        Version::Http1 => {
            let handshake = http1::Builder::new()
                .title_case_headers(true)
                .max_buf_size(MAX_HEADERS)
                .handshake::<_, Full<Bytes>>(io);
            let (mut sender, connection) = handshake.await.map_err(|error| refused(&error))?;
            let mut connection = pin!(Driven { connection, ended: false });
            let answer = drive(&mut connection, sender.send_request(request));
            let answer = until(end, answer).await.map_err(late)?.map_err(|error| refused(&error))?;
            read(&mut connection, answer, max_body, end).await
        }
        Version::Http2 => {
            let handshake = http2::Builder::new(Brief(end))
                .max_header_list_size(MAX_HEADERS as u32)
                .handshake::<_, Full<Bytes>>(io);
            let handshake = until(end, handshake).await.map_err(late)?;
            let (mut sender, connection) = handshake.map_err(|error| refused(&error))?;
            let mut connection = pin!(Driven { connection, ended: false });
            let answer = drive(&mut connection, sender.send_request(request));
            let answer = until(end, answer).await.map_err(late)?.map_err(|error| refused(&error))?;
            read(&mut connection, answer, max_body, end).await
        }
    }
}

/// A connection's own future, which may end before what is asked on it does.
struct Driven<C> {
    connection: C,
    ended: bool,
}

impl<C: Future + Unpin> Future for Driven<C> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if !self.ended && Pin::new(&mut self.connection).poll(context).is_ready() {
            self.ended = true;
        }
        Poll::Pending
    }
}

/// Awaits something that needs the connection to run.
async fn drive<C: Future + Unpin, F: Future>(connection: &mut Pin<&mut Driven<C>>, wanted: F) -> F::Output {
    match select(connection, pin!(wanted)).await {
        Either::Right((answer, _)) => answer,
        Either::Left(((), _)) => unreachable!("a driven connection is never ready"),
    }
}

async fn read<C: Future + Unpin>(
    connection: &mut Pin<&mut Driven<C>>,
    answer: http::Response<Incoming>,
    max_body: usize,
    end: Instant,
) -> Result<Response, HttpError> {
    let (head, mut body) = answer.into_parts();
    let mut response = Response {
        status: head.status.as_u16(),
        headers: fields(&head.headers),
        body: Vec::new(),
        truncated: false,
        trailers: Vec::new(),
    };
    while !response.truncated {
        let frame = drive(connection, body.frame());
        let frame = match until(end, frame).await.map_err(|_| HttpError::Timeout(Phase::Body))? {
            None => break,
            Some(frame) => frame.map_err(|error| HttpError::Body(body_text(&error)))?,
        };
        if let Some(data) = frame.data_ref() {
            let wanted = data.len().min(max_body - response.body.len());
            response.body.extend_from_slice(&data[..wanted]);
            response.truncated = wanted < data.len();
        } else if let Some(trailers) = frame.trailers_ref() {
            response.trailers = fields(trailers);
        }
    }
    Ok(response)
}

fn fields(map: &http::HeaderMap) -> Vec<(String, Vec<u8>)> {
    map.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect()
}

/// What the operating system said, if it said anything.
fn system(error: &hyper::Error) -> Option<String> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(if error.kind() == io::ErrorKind::UnexpectedEof {
                "EOF".to_owned()
            } else {
                error_text(error)
            });
        }
        source = error.source();
    }
    None
}

/// Why there was no answer.
fn refused(error: &hyper::Error) -> HttpError {
    if error.is_parse() {
        return HttpError::Protocol(innermost(error));
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return HttpError::Closed("EOF".to_owned());
    }
    match system(error) {
        Some(text) => HttpError::Closed(text),
        None => HttpError::Protocol(innermost(error)),
    }
}

fn body_text(error: &hyper::Error) -> String {
    if error.is_incomplete_message() {
        return "unexpected EOF".to_owned();
    }
    let text = system(error).unwrap_or_else(|| innermost(error));
    if text == "EOF" { "unexpected EOF".to_owned() } else { text }
}

fn innermost(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    text
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, to),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, to),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, from),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, from),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
