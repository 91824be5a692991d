//! `/logs/`: the files of the log folder, and queries of the journal. It must not leave the folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use http::header::{HeaderValue, LOCATION};
use tokio_util::io::ReaderStream;

use crate::query::Query;
use crate::routes::{Api, respond, text};

/// Entries of a folder's page.
const ENTRIES: usize = 10_000;
/// Bytes of an answer of the journal.
const JOURNAL: usize = 8 << 20;
/// How long the journal may take.
const JOURNAL_TIME: Duration = Duration::from_secs(30);

pub(crate) async fn answer(api: &Api, rest: &[&str], query: &Query) -> Response {
    if let Some(unit) = query.get("query") {
        if !api.config.system_log_query {
            return text(StatusCode::NOT_FOUND, "404 page not found\n");
        }
        return journal(unit, query).await;
    }
    if rest.is_empty() {
        let mut response = text(StatusCode::MOVED_PERMANENTLY, "");
        response.headers_mut().insert(LOCATION, HeaderValue::from_static("/logs/"));
        return response;
    }
    let (root, wanted): (PathBuf, PathBuf) = (api.config.log_folder.clone(), rest.iter().collect());
    if rest.iter().any(|part| matches!(*part, "." | "..") || part.contains('\0')) {
        return text(StatusCode::BAD_REQUEST, "invalid URL path\n");
    }
    let found = tokio::task::spawn_blocking(move || look(&root, &wanted)).await;
    match found {
        Ok(Ok(Found::Folder(page))) => respond(StatusCode::OK, "text/html; charset=utf-8", Body::from(page)),
        Ok(Ok(Found::File(file))) => {
            let body = Body::from_stream(ReaderStream::new(tokio::fs::File::from_std(file)));
            respond(StatusCode::OK, "text/plain; charset=utf-8", body)
        }
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            text(StatusCode::FORBIDDEN, "403 Forbidden\n")
        }
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

enum Found {
    Folder(String),
    File(std::fs::File),
}

/// Links that lead out of the folder lead nowhere, but for those of `/var/log/{pods,containers}` to Docker's files,
/// which have `/containerLogs`.
fn look(root: &Path, wanted: &Path) -> std::io::Result<Found> {
    let root = root.canonicalize()?;
    let path = root.join(wanted).canonicalize()?;
    if !path.starts_with(&root) {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    let kind = std::fs::metadata(&path)?;
    if kind.is_file() {
        return Ok(Found::File(std::fs::File::open(path)?));
    }
    if !kind.is_dir() {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(path)?.take(ENTRIES) {
        let entry = entry?;
        let slash = if entry.file_type()?.is_dir() { "/" } else { "" };
        names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
    }
    names.sort();
    let mut page = "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n".to_owned();
    for name in names {
        page.push_str(&format!("<a href=\"{}\">{}</a>\n", href(&name), escape(&name)));
    }
    page.push_str("</pre>\n");
    Ok(Found::Folder(page))
}

fn href(name: &str) -> String {
    let mut encoded = String::new();
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

fn escape(name: &str) -> String {
    name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;")
}

/// `kubectl get --raw …/logs/?query=docker`: journalctl, its arguments built from checked values only.
async fn journal(unit: &str, query: &Query) -> Response {
    let good = |text: &str| {
        !text.starts_with('-')
            && text.len() < 256
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@:\\".contains(&byte))
    };
    if !query.all("query").all(good) {
        return text(StatusCode::BAD_REQUEST, format!("invalid service name {unit:?}\n"));
    }
    let mut command = tokio::process::Command::new("journalctl");
    command.args(["--utc", "--no-pager", "--output=short-precise"]);
    for unit in query.all("query") {
        command.arg(format!("--unit={unit}"));
    }
    for (key, flag) in [("sinceTime", "--since="), ("untilTime", "--until=")] {
        if let Some(value) = query.get(key) {
            let Ok(time) = value.parse::<jiff::Timestamp>() else {
                return text(StatusCode::BAD_REQUEST, format!("invalid {key} {value:?}\n"));
            };
            command.arg(format!("{flag}@{}", time.as_second()));
        }
    }
    if let Some(lines) = query.get("tailLines") {
        let Ok(lines) = lines.parse::<u32>() else {
            return text(StatusCode::BAD_REQUEST, format!("invalid tailLines {lines:?}\n"));
        };
        command.arg(format!("--lines={}", lines.min(100_000)));
    }
    if let Some(boot) = query.get("boot") {
        let Ok(boot) = boot.parse::<i32>() else {
            return text(StatusCode::BAD_REQUEST, format!("invalid boot {boot:?}\n"));
        };
        command.arg("--boot").arg(boot.to_string());
    }
    if let Some(pattern) = query.get("pattern").filter(|pattern| pattern.len() < 1024) {
        command.arg(format!("--grep={pattern}"));
    }
    command.kill_on_drop(true).stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::null());
    let work = async {
        use tokio::io::AsyncReadExt;
        let mut child = command.spawn()?;
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(JOURNAL as u64).read_to_end(&mut output).await?;
        }
        std::io::Result::Ok(output)
    };
    match tokio::time::timeout(JOURNAL_TIME, work).await {
        Ok(Ok(output)) => respond(StatusCode::OK, "text/plain; charset=utf-8", Body::from(output)),
        Ok(Err(error)) => {
            text(StatusCode::INTERNAL_SERVER_ERROR, format!("journalctl cannot be run on this node: {error}\n"))
        }
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "journalctl did not end in time\n"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_folder() {
        let root = std::env::temp_dir().join(format!("longshore-logs-{}", std::process::id()));
        std::fs::create_dir_all(root.join("in")).unwrap();
        std::fs::write(root.join("in/a<b"), "x").unwrap();
        let link = root.join("out");
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        assert!(matches!(look(&root, Path::new("in/a<b")), Ok(Found::File(_))));
        assert!(matches!(look(&root, Path::new("in/")), Ok(Found::Folder(page)) if page.contains("a&lt;b")));
        assert!(look(&root, Path::new("out")).is_err());
        assert!(look(&root, Path::new("absent")).is_err());
        std::fs::remove_dir_all(root).unwrap();
    }
}
