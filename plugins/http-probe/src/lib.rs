//! The kubelet's HTTP probe (`pkg/probe/http/{http,request}.go`) with the redirects of Go's client: healthy from 200 to 399. It must
//! not know how a request travels; the host sends each one to the target, whatever a redirect says.

mod config;
mod url;

use config::HttpGet;
use longshore_guest::client::{self, HttpError, Phase, Protocol, Request, Response, Scheme};
use longshore_guest::tcp::DialError;
use longshore_guest::{Guest, Health, PluginError, Report, Target, address, report, user_agent, wording};
use url::{LocationError, Url};

/// Bytes of a body that are read and shown, as the kubelet has it.
const MAX_BODY: u32 = 10 * 1024;

/// Requests of one check; Go's client stops at the tenth redirect.
const MAX_REQUESTS: usize = 10;

struct Plugin;

#[cfg(target_arch = "wasm32")]
longshore_guest::export!(Plugin with_types_in longshore_guest::bindings);

impl Guest for Plugin {
    fn validate(config: String) -> Result<(), String> {
        config::read(&config).map(drop)
    }

    fn check(target: Target, config: String, _budget_ms: u32) -> Result<Report, PluginError> {
        let get = config::read(&config).map_err(PluginError::Invalid)?;
        check(&target, &get, |request| client::send(&request))
    }
}

fn check(
    target: &Target,
    get: &HttpGet,
    mut send: impl FnMut(Request) -> Result<Response, HttpError>,
) -> Result<Report, PluginError> {
    let host = address(target)?;
    let port = get.port.resolve(target).map_err(PluginError::Failed)?;
    let mut url = Url::of_probe(get.scheme, host, port, &get.path);
    let (mut headers, own_host) = headers(target, get);
    let mut authority = own_host.clone().unwrap_or_else(|| url.authority.clone());
    for sent in 1.. {
        let request = request(&url, &authority, &headers);
        let response = match send(request) {
            Ok(response) => response,
            Err(error) => return failed(&url, host, error),
        };
        let Some(location) = redirect(&response) else { return Ok(verdict(&response)) };
        let next = match url.join(&location) {
            Ok(next) => next,
            Err(LocationError::Scheme { host: other, .. }) if other != host => return Ok(verdict(&response)),
            Err(LocationError::Scheme { scheme, .. }) => {
                let text = format!("unsupported protocol scheme {}", wording::quote(&scheme));
                return Ok(unhealthy(&location, &text));
            }
            Err(LocationError::Malformed) => {
                let text = format!("failed to parse Location header {}", wording::quote(&location));
                return Ok(unhealthy(&url.text(), &text));
            }
        };
        // The check that keeps a pod from making its node send requests elsewhere.
        if next.url.host != host {
            return Ok(verdict(&response));
        }
        if sent >= MAX_REQUESTS {
            return Ok(unhealthy(&next.url.text(), &format!("stopped after {MAX_REQUESTS} redirects")));
        }
        authority = match &own_host {
            Some(own) if !next.absolute => own.clone(),
            _ => next.url.authority.clone(),
        };
        refer(&mut headers, &url, &next.url, get);
        url = next.url;
    }
    unreachable!("the loop ends with a return")
}

/// The headers of the first request, without `Host`, and the author's own `Host`.
fn headers(target: &Target, get: &HttpGet) -> (Vec<(String, Vec<u8>)>, Option<String>) {
    // Go's transport writes these itself, whatever was asked for.
    const NOT_SENT: [&str; 4] = ["host", "content-length", "transfer-encoding", "trailer"];
    let is = |name: &str, other: &str| name.eq_ignore_ascii_case(other);
    let first = |wanted: &str| get.headers.iter().find(|(name, _)| is(name, wanted)).map(|(_, value)| value.as_str());
    let mut headers: Vec<(String, Vec<u8>)> = Vec::with_capacity(get.headers.len() + 2);
    match first("User-Agent") {
        None => headers.push(("User-Agent".to_owned(), user_agent(target).into_bytes())),
        // Empty means none at all, as in Go.
        Some(agent) if !agent.is_empty() => headers.push(("User-Agent".to_owned(), agent.to_owned().into_bytes())),
        Some(_) => {}
    }
    let accept = first("Accept");
    if accept.is_none() {
        headers.push(("Accept".to_owned(), b"*/*".to_vec()));
    }
    for (name, value) in &get.headers {
        let skip = NOT_SENT.iter().any(|other| is(name, other))
            || is(name, "User-Agent")
            || (is(name, "Accept") && accept == Some(""));
        if !skip {
            headers.push((name.clone(), value.clone().into_bytes()));
        }
    }
    (headers, first("Host").filter(|host| !host.is_empty()).map(str::to_owned))
}

/// Go's client says where it comes from, unless that would tell a secure URL to a plain server.
fn refer(headers: &mut Vec<(String, Vec<u8>)>, from: &Url, to: &Url, get: &HttpGet) {
    if get.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("Referer")) {
        return;
    }
    headers.retain(|(name, _)| name != "Referer");
    if from.scheme == Scheme::Http || to.scheme == Scheme::Https {
        headers.push(("Referer".to_owned(), from.text().into_bytes()));
    }
}

fn request(url: &Url, authority: &str, headers: &[(String, Vec<u8>)]) -> Request {
    let mut all = Vec::with_capacity(headers.len() + 1);
    all.push(("Host".to_owned(), authority.to_owned().into_bytes()));
    all.extend_from_slice(headers);
    Request {
        method: "GET".to_owned(),
        scheme: url.scheme,
        protocol: Protocol::Auto,
        port: url.port,
        path: url.path.clone(),
        headers: all,
        body: Vec::new(),
        max_body: MAX_BODY,
    }
}

/// Where the answer sends us, when it does.
fn redirect(response: &Response) -> Option<String> {
    if !matches!(response.status, 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let (_, value) = response.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("location"))?;
    let value = String::from_utf8_lossy(value).into_owned();
    (!value.is_empty()).then_some(value)
}

fn verdict(response: &Response) -> Report {
    match response.status {
        200..=299 => report(Health::Healthy, String::from_utf8_lossy(&response.body)),
        300..=399 => report(
            Health::HealthyWithWarning,
            format!("Probe terminated redirects, Response body: {}", String::from_utf8_lossy(&response.body)),
        ),
        // Not the body: it may hold what the user should not see (kubernetes#99425).
        status => report(Health::Unhealthy, format!("HTTP probe failed with statuscode: {status}")),
    }
}

fn unhealthy(url: &str, text: &str) -> Report {
    report(Health::Unhealthy, format!("Get {}: {text}", wording::quote(url)))
}

fn failed(url: &Url, host: &str, error: HttpError) -> Result<Report, PluginError> {
    let dial = |error| wording::dial(host, url.port, &error);
    let text = match error {
        HttpError::Denied => return Err(PluginError::Denied("longshore:http".to_owned())),
        HttpError::NoAddress => return Err(PluginError::Failed("the pod has no IP address yet".to_owned())),
        HttpError::Invalid(text) => text,
        HttpError::Limit(text) => return Err(PluginError::Failed(text)),
        HttpError::Body(text) => return Err(PluginError::Failed(text)),
        // An error in the kubelet, too, which forgets it: whoever answers and then streams is not unhealthy for that.
        HttpError::Timeout(Phase::Body) => {
            let text = "context deadline exceeded (Client.Timeout or context cancellation while reading body)";
            return Err(PluginError::Failed(text.to_owned()));
        }
        HttpError::Timeout(Phase::Connect) => {
            format!("{} (Client.Timeout exceeded while awaiting headers)", dial(DialError::Timeout))
        }
        HttpError::Timeout(Phase::Headers) => {
            "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned()
        }
        HttpError::Lookup(text) => dial(DialError::Lookup(text)),
        HttpError::Connect(text) => dial(DialError::Connect(text)),
        HttpError::Tls(text) => format!("tls: {text}"),
        HttpError::Closed(text) => text,
        HttpError::Protocol(text) => format!("malformed HTTP response: {text}"),
    };
    Ok(unhealthy(&url.text(), &text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
