//! A daemon that answers as a test wants it to: badly.

use std::sync::{Arc, Mutex};

use longshore_docker::{Docker, DockerOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// What it does with a request.
pub(crate) enum Reply {
    /// Status and body.
    Json(u16, String),
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// These bytes, then nothing for ever.
    Stall(Vec<u8>),
}

pub(crate) fn ok(body: &str) -> Reply {
    Reply::Json(200, body.to_owned())
}

/// The head of a stream, and its first chunk.
pub(crate) fn chunk(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n", body.len()).into_bytes()
}

pub(crate) struct Fake {
    pub(crate) docker: Docker,
    /// `METHOD path` of each request so far.
    pub(crate) seen: Arc<Mutex<Vec<String>>>,
    server: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Fake {
    /// `/version` and `/_ping` are answered well; all else is up to `answer`, which gets `METHOD path` and how many
    /// requests came before.
    pub(crate) fn new(answer: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Fake {
        Fake::with(DockerOptions::default(), answer)
    }

    pub(crate) fn with(options: DockerOptions, answer: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Fake {
        let version = r#"{"Version":"99","ApiVersion":"1.44","MinAPIVersion":"1.24"}"#;
        Fake::serving(options, move |request, count| match request {
            "GET /version" => ok(version),
            "GET /_ping" => ok("OK"),
            other => answer(other, count),
        })
    }

    pub(crate) fn bare(answer: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Fake {
        Fake::serving(DockerOptions::default(), answer)
    }

    fn serving(options: DockerOptions, answer: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Fake {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let server = tokio::spawn({
            let (seen, answer) = (seen.clone(), Arc::new(answer));
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, seen.clone(), answer.clone()));
                }
            }
        });
        let docker = Docker::connect(&format!("unix://{}", path.display()), "r".to_owned(), options).unwrap();
        Fake { docker, seen, server, _folder: folder }
    }

    pub(crate) fn count(&self, part: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|request| request.contains(part)).count()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(mut stream: UnixStream, seen: Arc<Mutex<Vec<String>>>, answer: Arc<impl Fn(&str, usize) -> Reply>) {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => head.extend_from_slice(&buffer[..length]),
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let request = text.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
    let count = {
        let mut seen = seen.lock().unwrap();
        seen.push(request.clone());
        seen.len() - 1
    };
    let (bytes, stalls) = match answer(&request, count) {
        Reply::Json(status, body) => {
            let length = body.len();
            (format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes(), false)
        }
        Reply::Raw(bytes) => (bytes, false),
        Reply::Stall(bytes) => (bytes, true),
    };
    let _ = stream.write_all(&bytes).await;
    if stalls {
        // Until the other side hangs up.
        let mut buffer = [0; 4096];
        while !matches!(stream.read(&mut buffer).await, Ok(0) | Err(_)) {}
    }
}
