//! `/containerLogs` (`pkg/kubelet/server/server.go`, getContainerLogs; `pkg/kubelet/kubelet_pods.go`). Nothing is read
//! ahead of the client: a slow one costs what is in flight. It must not know how logs are kept.

use std::pin::Pin;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1;
use longshore_core::ports::runtime::{LogChunk, LogOptions, RuntimeError};
use tokio::sync::OwnedSemaphorePermit;

use crate::query::Query;
use crate::routes::{Api, bare, has_container, respond, statuses, text};

/// What is asked for.
#[derive(Debug, PartialEq)]
struct Wanted {
    previous: bool,
    options: LogOptions,
    limit: Option<u64>,
    /// `Some(true)`: stderr only.
    only: Option<bool>,
}

pub(crate) async fn answer(api: &Api, namespace: &str, pod: &str, container: &str, query: &Query) -> Response {
    let wanted = match read(query) {
        Ok(wanted) => wanted,
        Err((code, message)) => return text(code, message),
    };
    let Ok(view) = api.pod(namespace, pod, None) else {
        return text(StatusCode::NOT_FOUND, format!("pod {pod:?} does not exist"));
    };
    if !has_container(&view.object, container) {
        return text(StatusCode::NOT_FOUND, format!("container {container:?} not found in pod {pod:?}"));
    }
    let id = match container_id(&view.object, pod, container, wanted.previous) {
        Ok(id) => id,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let place = match api.place_to_read() {
        Ok(place) => place,
        Err(why) => return text(StatusCode::TOO_MANY_REQUESTS, why),
    };
    let follow = wanted.options.follow;
    let mut chunks = (api.parts.logs)(&id, wanted.options).peekable();
    // A log that cannot be opened, or read at all, gets an answer; one that breaks later breaks the connection. The first
    // piece says that it is open: one that is followed may stay silent for long and must not hold the answer up.
    loop {
        match Pin::new(&mut chunks).peek().await {
            Some(Err(RuntimeError::NotFound { .. })) => {
                let words = format!("unable to retrieve container logs for docker://{id}");
                return text(StatusCode::BAD_REQUEST, words);
            }
            Some(Err(error)) => return text(StatusCode::BAD_REQUEST, error.to_string()),
            Some(Ok(chunk)) if chunk.data.is_empty() && !follow => drop(chunks.next().await),
            _ => break,
        }
    }
    let body = Body::from_stream(parts(chunks, place, wanted.only, wanted.limit));
    respond(StatusCode::OK, "text/plain", body)
}

/// The bytes that are wanted of a log. It ends with the last of them, without a look at what the container writes next,
/// and keeps its place until then.
fn parts(
    chunks: impl Stream<Item = Result<LogChunk, RuntimeError>> + Send + Unpin,
    place: OwnedSemaphorePermit,
    only: Option<bool>,
    limit: Option<u64>,
) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send {
    stream::unfold((chunks, place, limit), move |(mut chunks, place, mut left)| async move {
        loop {
            if left == Some(0) {
                return None;
            }
            let mut data = match chunks.next().await? {
                Ok(chunk) if only.is_some_and(|stderr| chunk.stderr != stderr) => continue,
                Ok(chunk) => chunk.data,
                Err(error) => return Some((Err(std::io::Error::other(error)), (chunks, place, left))),
            };
            if data.is_empty() {
                continue;
            }
            if let Some(left) = &mut left {
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
            }
            return Some((Ok(data), (chunks, place, left)));
        }
    })
}

fn read(query: &Query) -> Result<Wanted, (StatusCode, String)> {
    let undecoded = || (StatusCode::BAD_REQUEST, r#"{"message": "Unable to decode query."}"#.to_owned());
    let invalid = || (StatusCode::UNPROCESSABLE_ENTITY, r#"{"message": "Invalid request."}"#.to_owned());
    let number = |key: &str| -> Result<Option<i64>, (StatusCode, String)> {
        query.get(key).map(|text| text.parse().map_err(|_| undecoded())).transpose()
    };
    // "tail" is of old; "all" means no bound.
    let tail = match query.get("tail") {
        Some("all") => None,
        Some(_) => number("tail")?,
        None => number("tailLines")?,
    };
    let (limit, seconds) = (number("limitBytes")?, number("sinceSeconds")?);
    let time: Option<Timestamp> =
        query.get("sinceTime").map(|text| text.parse().map_err(|_| undecoded())).transpose()?;
    let only = match query.get("stream") {
        None | Some("All") => None,
        Some("Stdout") => Some(false),
        Some("Stderr") => Some(true),
        Some(_) => return Err(invalid()),
    };
    let bad = tail.is_some_and(|lines| lines < 0)
        || limit.is_some_and(|bytes| bytes < 1)
        || seconds.is_some_and(|seconds| seconds < 1)
        || (seconds.is_some() && time.is_some())
        || (tail.is_some() && only.is_some());
    if bad {
        return Err(invalid());
    }
    let since = match seconds {
        Some(seconds) => {
            Some(Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN))
        }
        None => time,
    };
    Ok(Wanted {
        previous: query.is_set("previous"),
        options: LogOptions {
            follow: query.is_set("follow"),
            tail: tail.and_then(|lines| u64::try_from(lines).ok()),
            since,
            timestamps: query.is_set("timestamps"),
        },
        limit: limit.and_then(|bytes| u64::try_from(bytes).ok()),
        only,
    })
}

/// For fuzz targets: reads a query and drops what it says.
pub(crate) fn try_query(query: &Query) {
    drop(read(query));
}

/// The container whose log is wanted (`validateContainerLogStatus`).
fn container_id(pod: &v1::Pod, name: &str, container: &str, previous: bool) -> Result<String, String> {
    let Some(status) = statuses(pod).find(|status| status.name == container) else {
        return Err(format!("container {container:?} in pod {name:?} is not available"));
    };
    let filled = |id: Option<&String>| id.filter(|id| !id.is_empty()).map(|id| bare(id).to_owned());
    let ended = |state: Option<&v1::ContainerState>| {
        filled(state.and_then(|state| state.terminated.as_ref()).and_then(|ended| ended.container_id.as_ref()))
    };
    let (state, last) = (status.state.as_ref(), ended(status.last_state.as_ref()));
    if previous {
        return last.ok_or_else(|| format!("previous terminated container {container:?} in pod {name:?} not found"));
    }
    if state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
        && let Some(id) = filled(status.container_id.as_ref()).or_else(|| ended(state))
    {
        return Ok(id);
    }
    let ended_without_id = state.is_some_and(|state| state.terminated.is_some())
        || status.last_state.as_ref().is_some_and(|state| state.terminated.is_some());
    // Between two runs the last one's log is what there is.
    last.ok_or_else(|| {
        let waiting = state.and_then(|state| state.waiting.as_ref());
        let why = match waiting.and_then(|waiting| waiting.reason.as_deref()) {
            _ if ended_without_id => "terminated",
            Some("ErrImagePull") => "waiting to start: image can't be pulled",
            Some("ImagePullBackOff") => "waiting to start: trying and failing to pull image",
            Some(reason) => &format!("waiting to start: {reason}"),
            None => "waiting to start - no logs yet",
        };
        format!("container {container:?} in pod {name:?} is {why}")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        let wanted =
            read(&Query::parse("follow=true&tailLines=5&limitBytes=7&timestamps=1&previous=false").unwrap()).unwrap();
        assert!(wanted.options.follow && wanted.options.timestamps && !wanted.previous);
        assert_eq!((wanted.options.tail, wanted.limit), (Some(5), Some(7)));
        for (query, code) in [
            ("tailLines=x", 400),
            ("sinceTime=yesterday", 400),
            ("tailLines=-1", 422),
            ("limitBytes=0", 422),
            ("sinceSeconds=0", 422),
            ("sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z", 422),
            ("stream=Stdout&tailLines=1", 422),
            ("stream=x", 422),
        ] {
            assert_eq!(read(&Query::parse(query).unwrap()).unwrap_err().0.as_u16(), code, "{query}");
        }
        assert_eq!(read(&Query::parse("tail=all").unwrap()).unwrap().options.tail, None);
    }
}
