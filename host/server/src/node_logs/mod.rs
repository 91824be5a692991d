//! `/logs/`: the files of the log folder, and queries of services' logs (`pkg/kubelet/kubelet_server_journal.go` of 1.36).
//! It must not leave the folder.

mod file;
mod journal;
mod wanted;

use std::path::{Path, PathBuf};

use axum::body::Body;
use axum::response::Response;
use file::Opened;
use http::header::{HeaderValue, LOCATION};
use http::{HeaderMap, StatusCode, Uri};

use crate::query::Query;
use crate::routes::{Api, error, missing, respond, text};

/// Entries of a folder's page.
const ENTRIES: usize = 10_000;

/// For fuzz targets: reads a query and drops what it says.
pub(crate) fn try_query(query: &Query) {
    drop(wanted::read(query).map(|wanted| wanted.map(|wanted| wanted.validate())));
}

/// To another path, with the same query.
fn moved(to: &str, uri: &Uri) -> Response {
    let to = uri.query().map_or_else(|| to.to_owned(), |query| format!("{to}?{query}"));
    let mut response = text(StatusCode::MOVED_PERMANENTLY, "");
    if let Ok(to) = HeaderValue::from_str(&to) {
        response.headers_mut().insert(LOCATION, to);
    }
    response
}

pub(crate) async fn answer(api: &Api, rest: &[&str], query: &Query, uri: &Uri, headers: &HeaderMap) -> Response {
    let Some(last) = rest.last() else { return moved("/logs/", uri) };
    let config = &api.config;
    let root = config.log_folder.clone();
    let mut path: PathBuf = rest.iter().filter(|part| !part.is_empty()).collect();
    // Those of a query, whose answers are of another kind.
    let mut asked = None;
    if config.system_log_query {
        match wanted::read(query) {
            Err(why) => return error(StatusCode::BAD_REQUEST, &why),
            Ok(None) => {}
            Ok(Some(_)) if rest.iter().any(|part| !part.is_empty()) => {
                return error(StatusCode::NOT_ACCEPTABLE, "path not allowed in query mode");
            }
            Ok(Some(wanted)) => {
                if let Err(why) = wanted.validate() {
                    return error(StatusCode::NOT_ACCEPTABLE, &why);
                }
                match wanted.files.first() {
                    None => {
                        return match api.place_to_read() {
                            Ok(place) => journal::answer(root, wanted, place),
                            Err(why) => text(StatusCode::TOO_MANY_REQUESTS, why),
                        };
                    }
                    Some(file) => path = file.trim_start_matches('/').into(),
                }
                asked = Some(wanted.files);
            }
        }
    }
    if rest.iter().any(|part| matches!(*part, "." | "..") || part.contains('\0')) {
        return error(StatusCode::BAD_REQUEST, "invalid URL path");
    }
    let found = tokio::task::spawn_blocking(move || look(&root, &path)).await;
    match found {
        Err(_) | Ok(Err(_)) if let Some(files) = &asked => {
            let why = wanted::invalid("query", files, "no such file or directory");
            error(StatusCode::NOT_ACCEPTABLE, &why)
        }
        // Its links begin at its own path.
        Ok(Ok(Found::Folder(_))) if !last.is_empty() => moved(&format!("{}/", href(last)), uri),
        Ok(Ok(Found::Folder(page))) => respond(StatusCode::OK, "text/html; charset=utf-8", Body::from(page)),
        Ok(Ok(Found::File(_))) if let [.., name, ""] = rest => moved(&format!("../{}", href(name)), uri),
        Ok(Ok(Found::File(opened))) => file::answer(opened, headers).await,
        Ok(Err(why)) if why.kind() == std::io::ErrorKind::PermissionDenied => {
            error(StatusCode::FORBIDDEN, "403 Forbidden")
        }
        _ => missing(),
    }
}

enum Found {
    Folder(String),
    File(Opened),
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
        let changed = kind.modified().ok().and_then(|at| at.try_into().ok());
        return Ok(Found::File(Opened { file: std::fs::File::open(path)?, size: kind.len(), changed }));
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
