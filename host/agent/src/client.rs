//! The commands' side of the local socket.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::config::DEFAULT_ROOT;
use crate::socket;

/// How long the agent may take to begin an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// The largest answer that is held in memory.
const SIZE_LIMIT: usize = 256 << 20;

/// The agent's socket cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Unreachable {
    kind: std::io::ErrorKind,
    message: String,
}

/// Whether an error says that whoever asks may not ask the agent: nothing is known of it then.
pub(crate) fn is_forbidden(error: &anyhow::Error) -> bool {
    let forbidden = |error: &Unreachable| error.kind == std::io::ErrorKind::PermissionDenied;
    error.downcast_ref::<Unreachable>().is_some_and(forbidden)
}

/// A client of the agent on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    root: PathBuf,
}

impl Client {
    /// The agent of that root folder.
    pub(crate) fn new(root: &Path) -> Self {
        Client { root: root.to_owned() }
    }

    /// An answer as a whole.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let body = self.request(Method::GET, path).await?;
        whole(path, body).await
    }

    /// The answer to an order, as a whole.
    pub(crate) async fn order<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let body = self.request(Method::POST, path).await?;
        whole(path, body).await
    }

    /// An answer as it comes.
    pub(crate) async fn stream(&self, path: &str) -> anyhow::Result<Parts> {
        self.parts(Method::GET, path).await
    }

    /// The answer to an order, as it comes.
    pub(crate) async fn follow_order(&self, path: &str) -> anyhow::Result<Parts> {
        self.parts(Method::POST, path).await
    }

    async fn parts(&self, method: Method, path: &str) -> anyhow::Result<Parts> {
        Ok(Parts { body: self.request(method, path).await?, buffer: BytesMut::new(), lines: VecDeque::new() })
    }

    async fn request(&self, method: Method, path: &str) -> anyhow::Result<Incoming> {
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // What goes wrong here is told by the answer, too.
            let _ = connection.await;
        });
        let request = Request::builder().method(method).uri(path).header(header::HOST, "longshore");
        let request = request.body(Empty::<Bytes>::new())?;
        let answer = tokio::time::timeout(ANSWER_LIMIT, sender.send_request(request));
        let answer = answer.await.map_err(|_| anyhow!("the agent does not answer within {ANSWER_LIMIT:?}"))??;
        if answer.status().is_success() {
            return Ok(answer.into_body());
        }
        let code = answer.status();
        let bytes = Limited::new(answer.into_body(), 1 << 20).collect().await.map(|body| body.to_bytes());
        let status: Option<Status> = bytes.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        match status.and_then(|status| status.message) {
            Some(message) => bail!(message),
            None => bail!("the agent answered {code} to {path}"),
        }
    }

    async fn connect(&self) -> anyhow::Result<UnixStream> {
        let path = socket::path(&self.root);
        let connected = match socket::address(&path) {
            Ok((address, _folder)) => UnixStream::connect(address).await,
            Err(error) => Err(error),
        };
        connected.map_err(|error| {
            let root = self.root.display();
            let flag = if self.root == Path::new(DEFAULT_ROOT) { String::new() } else { format!(" --root-dir {root}") };
            let advice = match error.kind() {
                std::io::ErrorKind::PermissionDenied => "only root may ask: run this as root".to_owned(),
                std::io::ErrorKind::NotFound => format!(
                    "no agent runs with the root folder {root}: start it with `longshore run{flag}`, or name its root \
                     folder with --root-dir"
                ),
                std::io::ErrorKind::ConnectionRefused => {
                    format!("the agent that made it has ended: start it with `longshore run{flag}`")
                }
                _ => error.to_string(),
            };
            let message = format!("cannot reach the agent at {}: {advice}", path.display());
            Unreachable { kind: error.kind(), message }.into()
        })
    }
}

async fn whole<T: DeserializeOwned>(path: &str, body: Incoming) -> anyhow::Result<T> {
    let whole = tokio::time::timeout(ANSWER_LIMIT, Limited::new(body, SIZE_LIMIT).collect());
    let whole = whole.await.context("the agent does not go on with its answer")?;
    let bytes = whole.map_err(|error| anyhow!("the agent broke its answer off: {error}"))?.to_bytes();
    serde_json::from_slice(&bytes).with_context(|| format!("the agent's answer to {path} is not understood"))
}

/// An answer as it comes.
pub(crate) struct Parts {
    body: Incoming,
    buffer: BytesMut,
    lines: VecDeque<Bytes>,
}

impl Parts {
    /// The next piece; `None` at the end.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| anyhow!("the agent broke its answer off: {error}"))?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The next line, without its end; `None` at the end.
    pub(crate) async fn next_line(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            let Some(data) = self.next().await? else { return Ok(None) };
            self.buffer.extend_from_slice(&data);
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1).freeze();
                self.lines.push_back(line.slice(..end));
            }
            if self.buffer.len() > SIZE_LIMIT {
                bail!("the agent sent a line without end");
            }
        }
    }
}
