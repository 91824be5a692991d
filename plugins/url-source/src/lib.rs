//! The kubelet's manifest URL (`pkg/kubelet/config/http.go`) with the redirects of Go's client, and ETags beyond it. It must not know
//! what a manifest says: the host reads it. The host decides which hosts may be reached, too.

mod config;
mod cursor;
mod url;

#[allow(missing_docs, unreachable_pub, clippy::all)]
mod bindings {
    wit_bindgen::generate!({
        path: ["../../wit/types", "../../wit/log", "../../wit/clock", "../../wit/http", "../../wit/source"],
        world: "longshore:source/source",
        generate_all,
    });
}

use bindings::exports::longshore::source::provider::{Batch, Entry, Guest, Update};
use bindings::longshore::http::client::{HttpError, Phase, Response};
use bindings::longshore::http::fetcher::{self, FetchRequest};
use bindings::longshore::types::core::PluginError;
use config::Config;
use cursor::Cursor;
use url::Url;

/// Bytes of a body that are taken (`maxConfigLength` in `pkg/kubelet/config/file.go`).
const MAX_BODY: u32 = 10 << 20;

/// Requests of one poll; Go's client stops at the tenth redirect.
const MAX_REQUESTS: usize = 10;

struct Plugin;

#[cfg(target_arch = "wasm32")]
bindings::export!(Plugin with_types_in bindings);

impl Guest for Plugin {
    fn validate(config: String) -> Result<(), String> {
        config::read(&config).map(drop)
    }

    fn poll(config: String, cursor: Option<Vec<u8>>, _max_wait_ms: u32) -> Result<Batch, PluginError> {
        let config = config::read(&config).map_err(PluginError::Invalid)?;
        let seen = cursor.as_deref().and_then(Cursor::read);
        poll(&config, seen, |request| fetcher::fetch(&request))
    }
}

fn poll(
    config: &Config,
    seen: Option<Cursor>,
    mut fetch: impl FnMut(FetchRequest) -> Result<Response, HttpError>,
) -> Result<Batch, PluginError> {
    let asked = seen.as_ref().and_then(|seen| seen.etag.clone()).filter(|_| !config.has("If-None-Match"));
    let mut url = config.url.clone();
    let mut referer = None;
    for sent in 1.. {
        let request = request(config, &url, referer.as_deref(), asked.as_deref());
        let response = fetch(request).map_err(|error| failed(&url, &error))?;
        let Some(location) = redirect(&response) else { return answer(config, &url, seen, asked, response) };
        let next = url.join(&location).map_err(|why| PluginError::Failed(format!("{}: {why}", url.shown())))?;
        if sent >= MAX_REQUESTS {
            return Err(PluginError::Failed(format!("Get {:?}: stopped after {MAX_REQUESTS} redirects", next.shown())));
        }
        // Go's client says where it comes from, unless that would tell a secure URL to a plain server.
        referer = (!url.secure || next.secure).then(|| url.plain());
        url = next;
    }
    unreachable!("the loop ends with a return")
}

fn request(config: &Config, url: &Url, referer: Option<&str>, etag: Option<&str>) -> FetchRequest {
    let field = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
    let mut headers = Vec::with_capacity(config.headers.len() + 4);
    if !config.has("User-Agent") {
        headers.push(field("User-Agent", &config.user_agent));
    }
    // An empty one means none at all, as in Go.
    let own =
        config.headers.iter().filter(|(name, value)| !(name.eq_ignore_ascii_case("User-Agent") && value.is_empty()));
    headers.extend(own.map(|(name, value)| field(name, value)));
    if let Some(credentials) = url.basic().filter(|_| !config.has("Authorization")) {
        headers.push(field("Authorization", &credentials));
    }
    if let Some(referer) = referer.filter(|_| !config.has("Referer")) {
        headers.push(field("Referer", referer));
    }
    if let Some(etag) = etag {
        headers.push(field("If-None-Match", etag));
    }
    let (method, body) = ("GET".to_owned(), Vec::new());
    FetchRequest { method, url: url.plain(), headers, body, max_body: MAX_BODY, timeout_ms: None }
}

/// Where the answer sends us, when it does.
fn redirect(response: &Response) -> Option<String> {
    matches!(response.status, 301 | 302 | 303 | 307 | 308).then(|| header(response, "location")).flatten()
}

fn header(response: &Response, wanted: &str) -> Option<String> {
    let (_, value) = response.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted))?;
    std::str::from_utf8(value).ok().map(str::to_owned).filter(|value| !value.is_empty())
}

fn answer(
    config: &Config,
    url: &Url,
    seen: Option<Cursor>,
    asked: Option<String>,
    response: Response,
) -> Result<Batch, PluginError> {
    let batch = |update, cursor: &Cursor| Batch { update, cursor: cursor.bytes(), min_wait_ms: 0 };
    let etag =
        header(&response, "etag").filter(|etag| etag.len() <= cursor::MAX_ETAG && !etag.contains(char::is_control));
    match (response.status, seen) {
        (200, _) if response.truncated => Err(PluginError::Failed(format!(
            "{}: the body has more than {MAX_BODY} bytes (10 MiB): serve fewer pods",
            url.shown()
        ))),
        (200, seen) => {
            let now = Cursor::of(&response.body, etag);
            let same = seen.is_some_and(|seen| seen.digest == now.digest);
            let update = match same {
                true => Update::Unchanged,
                false => Update::Snapshot(vec![Entry { key: String::new(), manifest: response.body }]),
            };
            Ok(batch(update, &now))
        }
        (304, Some(seen)) if asked.is_some() || config.has("If-None-Match") => Ok(batch(Update::Unchanged, &seen)),
        (status, _) => Err(PluginError::Failed(format!("{}: {}", url.shown(), status_text(status)))),
    }
}

/// A status as `net/http` writes it, for those that servers of manifests are known to send.
fn status_text(status: u16) -> String {
    let text = match status {
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        407 => "Proxy Authentication Required",
        410 => "Gone",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => return format!("{status} (expected 200)"),
    };
    format!("{status} {text}")
}

fn failed(url: &Url, error: &HttpError) -> PluginError {
    let text = match error {
        HttpError::Denied => {
            let host = &url.host;
            return PluginError::Denied(format!(
                "{}: only the host of the manifest URL may be reached, and {host:?} is another: name the URL that it redirects to",
                url.shown()
            ));
        }
        HttpError::NoAddress => "the host has no address".to_owned(),
        HttpError::Timeout(Phase::Connect) => "timed out while connecting".to_owned(),
        HttpError::Timeout(Phase::Headers) => "timed out while awaiting headers".to_owned(),
        HttpError::Timeout(Phase::Body) => "timed out while reading the body".to_owned(),
        HttpError::Lookup(text) => format!("lookup {}: {text}", url.host),
        HttpError::Connect(text) => format!("dial tcp {}: connect: {text}", url.authority),
        HttpError::Tls(text) => format!("tls: {text}"),
        HttpError::Protocol(text) => format!("malformed HTTP response: {text}"),
        HttpError::Invalid(text) | HttpError::Limit(text) | HttpError::Closed(text) | HttpError::Body(text) => {
            text.clone()
        }
    };
    PluginError::Failed(format!("Get {:?}: {text}", url.shown()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
