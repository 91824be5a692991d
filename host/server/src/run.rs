//! `/run` and `/checkpoint` (`pkg/kubelet/server/server.go`). It must not stream anything.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, HeaderValue};
use longshore_core::ports::streams::{Read, StreamedExec, Wants};
use tokio::io::AsyncWriteExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::io::ReaderStream;

use crate::query::Query;
use crate::routes::{Api, NoPod, has_container, respond, running, text};

/// Output beyond this is thrown away: a process must not stand still for it.
const OUTPUT: u64 = 16 << 20;
/// Commands at a time: the whole output is kept until it is known how the command ended, for the answer begins with that.
pub(crate) const AT_A_TIME: usize = 8;
/// Of an answer, as much at a time.
const PIECE: usize = 64 << 10;
/// The command is let go after so long, and who does not read its output.
const LIMIT: Duration = Duration::from_secs(600);

/// A command without stdin, its output as the body.
pub(crate) async fn run(
    api: &Api,
    (namespace, pod, uid): (&str, &str, Option<&str>),
    container: &str,
    query: &Query,
) -> Response {
    let id = match api.pod_to_run_in(namespace, pod, uid) {
        Err(NoPod::OfThatName) => return text(StatusCode::NOT_FOUND, "pod does not exist"),
        Err(NoPod::WithThatUid) => None,
        Ok(view) => running(&view, container).map(str::to_owned),
    };
    let Some(id) = id else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, format!("container not found ({container:?})"));
    };
    let Ok(place) = api.runs.clone().try_acquire_owned() else {
        let why = format!("{AT_A_TIME} commands are run on this node already, try again later");
        return text(StatusCode::TOO_MANY_REQUESTS, why);
    };
    let command: Vec<String> = query.get("cmd").unwrap_or_default().split(' ').map(str::to_owned).collect();
    match tokio::time::timeout(LIMIT, output(api, id, command)).await {
        // The kubelet says so of whatever comes out.
        Ok(Ok(out)) => held(StatusCode::OK, "application/json", out, place),
        Ok(Err(message)) => {
            held(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", message.into_bytes(), place)
        }
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the command did not end in time"),
    }
}

/// An answer that keeps its place until all but a piece of it is read, or its time is over: who does not read keeps none.
fn held(code: StatusCode, content_type: &'static str, out: Vec<u8>, place: OwnedSemaphorePermit) -> Response {
    let length = HeaderValue::from(out.len());
    let (from, mut to) = tokio::io::duplex(PIECE);
    tokio::spawn(async move {
        // It fails when nobody listens any more. That something is missing is known by the length.
        let _ = tokio::time::timeout(LIMIT, to.write_all(&out)).await;
        drop((out, place));
    });
    let mut response = respond(code, content_type, Body::from_stream(ReaderStream::new(from)));
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response
}

async fn output(api: &Api, container_id: String, command: Vec<String>) -> Result<Vec<u8>, String> {
    let line = command.join(" ");
    let wants = Wants { stdout: true, stderr: true, ..Wants::default() };
    let exec = StreamedExec { container_id, command, wants };
    let mut it = api.parts.streams.exec_streams(&exec).await.map_err(|error| error.to_string())?;
    let (stdout, stderr) = futures::join!(whole(it.stdout.take()), whole(it.stderr.take()));
    let mut out = stdout.map_err(|error| error.to_string())?;
    out.append(&mut stderr.map_err(|error| error.to_string())?);
    match it.control.exit_code().await.map_err(|error| error.to_string())? {
        None | Some(0) => Ok(out),
        // The kubelet shows stderr alone.
        Some(code) => Err(format!("command '{line}' exited with {code}: {}", String::from_utf8_lossy(&out))),
    }
}

async fn whole(stream: Option<Read>) -> std::io::Result<Vec<u8>> {
    use futures::AsyncReadExt;
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        (&mut stream).take(OUTPUT).read_to_end(&mut bytes).await?;
        futures::io::copy(stream, &mut futures::io::sink()).await?;
    }
    Ok(bytes)
}

/// Always in vain: Docker's checkpoints cannot leave the node.
pub(crate) fn checkpoint(api: &Api, namespace: &str, pod: &str, container: &str, query: &Query) -> Response {
    let Ok(view) = api.pod(namespace, pod, None) else {
        return text(StatusCode::NOT_FOUND, "pod does not exist");
    };
    if !has_container(&view.object, container) {
        return text(StatusCode::NOT_FOUND, format!("container {container} does not exist"));
    }
    if query.all("timeout").last().is_some_and(|value| value.parse::<i64>().is_err()) {
        return text(StatusCode::NOT_FOUND, "cannot parse value of timeout parameter");
    }
    // As with every runtime that has no such call, which clients know these words of; Docker's checkpoints cannot leave the node.
    let why = "rpc error: code = Unimplemented desc = method CheckpointContainer not implemented";
    let message = format!("checkpointing of {namespace}/{pod}/{container} failed ({why})");
    text(StatusCode::INTERNAL_SERVER_ERROR, message)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_keeps_no_place() {
        let places = Arc::new(Semaphore::new(1));
        let answer = |length| {
            let place = places.clone().try_acquire_owned().unwrap();
            held(StatusCode::OK, "text/plain", vec![b'x'; length], place)
        };
        let read = async |answer: Response| axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap().len();
        let small = answer(PIECE);
        drop(timeout(LIMIT / 2, places.acquire()).await.unwrap().unwrap());
        assert_eq!(read(small).await, PIECE);
        assert_eq!(read(answer(3 * PIECE)).await, 3 * PIECE);
        let large = answer(3 * PIECE);
        drop(timeout(LIMIT * 2, places.acquire()).await.unwrap().unwrap());
        assert!(read(large).await < 3 * PIECE);
    }
}
