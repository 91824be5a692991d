//! A file as Go's `http.ServeContent` answers it: since when it is as it is, and parts of it. It must not look for it.

use std::fs::File;
use std::io::SeekFrom;

use axum::body::Body;
use axum::response::Response;
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, HeaderName, HeaderValue, IF_MODIFIED_SINCE, IF_RANGE, LAST_MODIFIED,
    RANGE,
};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use jiff::fmt::rfc2822::{DateTimeParser, DateTimePrinter};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::routes::{error, missing, respond};

const PLAIN: &str = "text/plain; charset=utf-8";

/// A file that is open, how long it is, and when that was last so.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) size: u64,
    pub(super) changed: Option<Timestamp>,
}

/// The file, or what of it was asked for.
pub(super) async fn answer(opened: Opened, headers: &HeaderMap) -> Response {
    let Opened { file, size, changed } = opened;
    let asked = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let date = changed.and_then(|at| DateTimePrinter::new().timestamp_to_rfc9110_string(&at).ok());
    let unchanged = |since: &str| {
        let since = DateTimeParser::new().parse_timestamp(since).ok();
        since.zip(changed).is_some_and(|(since, changed)| changed.as_second() <= since.as_second())
    };
    let mut response = if asked(&IF_MODIFIED_SINCE).is_some_and(unchanged) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        let of_this = asked(&IF_RANGE).is_none_or(|since| date.as_deref() == Some(since));
        match part(asked(&RANGE).filter(|_| of_this), size) {
            Part::None => {
                let mut response = error(StatusCode::RANGE_NOT_SATISFIABLE, "invalid range: failed to overlap");
                set(&mut response, CONTENT_RANGE, &format!("bytes */{size}"));
                return response;
            }
            Part::Some(first, length) => {
                let Some(body) = body(file, first, length).await else { return missing() };
                let mut response = respond(StatusCode::PARTIAL_CONTENT, PLAIN, body);
                set(&mut response, CONTENT_RANGE, &format!("bytes {first}-{}/{size}", first + length - 1));
                set(&mut response, CONTENT_LENGTH, &length.to_string());
                response
            }
            Part::All => {
                let Some(body) = body(file, 0, size).await else { return missing() };
                let mut response = respond(StatusCode::OK, PLAIN, body);
                set(&mut response, CONTENT_LENGTH, &size.to_string());
                response
            }
        }
    };
    if response.status() != StatusCode::NOT_MODIFIED {
        set(&mut response, ACCEPT_RANGES, "bytes");
    }
    if let Some(date) = date {
        set(&mut response, LAST_MODIFIED, &date);
    }
    response
}

fn set(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

async fn body(file: File, first: u64, length: u64) -> Option<Body> {
    let mut file = tokio::fs::File::from_std(file);
    if first > 0 {
        file.seek(SeekFrom::Start(first)).await.ok()?;
    }
    Some(Body::from_stream(ReaderStream::new(file.take(length))))
}

#[derive(Debug, PartialEq, Eq)]
enum Part {
    All,
    /// Where it begins, and how long it is.
    Some(u64, u64),
    /// Nothing that there is.
    None,
}

/// What a `Range` asks for. Several parts are more than anybody asks of a log, and are answered with all of it.
fn part(range: Option<&str>, size: u64) -> Part {
    let Some(range) = range else { return Part::All };
    let Some(ranges) = range.strip_prefix("bytes=") else { return Part::None };
    if ranges.contains(',') {
        return Part::All;
    }
    let Some((first, last)) = ranges.trim().split_once('-') else { return Part::None };
    let (first, last) = (first.trim(), last.trim());
    let (first, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Err(_), Ok(length)) if first.is_empty() => (size.saturating_sub(length), size),
        (Ok(first), Ok(last)) if first <= last => (first, last.saturating_add(1).min(size)),
        (Ok(first), Err(_)) if last.is_empty() => (first, size),
        _ => return Part::None,
    };
    match end.checked_sub(first) {
        Some(length @ 1..) => Part::Some(first, length),
        _ if size == 0 => Part::All,
        _ => Part::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (range, wanted) in [
            ("bytes=0-3", Part::Some(0, 4)),
            ("bytes=5-", Part::Some(5, 5)),
            ("bytes=-4", Part::Some(6, 4)),
            ("bytes=-40", Part::Some(0, 10)),
            ("bytes=8-99", Part::Some(8, 2)),
            ("bytes=0-1,3-4", Part::All),
            ("bytes=10-", Part::None),
            ("bytes=3-2", Part::None),
            ("bytes=-0", Part::None),
            ("bytes=x", Part::None),
            ("lines=0-1", Part::None),
        ] {
            assert_eq!(part(Some(range), 10), wanted, "{range}");
        }
        assert_eq!((part(None, 10), part(Some("bytes=0-"), 0)), (Part::All, Part::All));
    }
}
