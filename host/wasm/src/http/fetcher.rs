//! `longshore:http/fetcher`: requests by URL. It must not reach a host that was not granted, nor believe a certificate that is not
//! vouched for.

use http::Uri;

use super::exchange::{self, Stream, Version};
use super::request;
use crate::bindings::longshore::http::client::{HttpError, Phase, Protocol, Request, Response, Scheme};
use crate::bindings::source::longshore::http::fetcher::{FetchRequest, Host};
use crate::call::{Call, until};
use crate::limits::{MAX_MANIFEST, MAX_REQUESTS};
use crate::net::{Address, ConnectError, Socket};

impl Host for Call {
    async fn fetch(&mut self, request: FetchRequest) -> wasmtime::Result<Result<Response, HttpError>> {
        Ok(fetch(self, request).await)
    }
}

async fn fetch(call: &mut Call, wanted: FetchRequest) -> Result<Response, HttpError> {
    let web = call.web.clone().ok_or(HttpError::Denied)?;
    let invalid = |text: &str| HttpError::Invalid(text.to_owned());
    let uri = Uri::try_from(wanted.url.as_str()).map_err(|_| invalid("the URL is not valid"))?;
    let scheme = match uri.scheme_str() {
        Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        _ => return Err(invalid("the URL's scheme is neither http nor https")),
    };
    let authority = uri.authority().ok_or_else(|| invalid("the URL has no host"))?;
    if authority.as_str().contains('@') {
        return Err(invalid("the URL has a user: send an Authorization header"));
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    // The grant: below every version of the interface, and asked for each hop of a redirect.
    if !web.allows(host) {
        tracing::debug!(plugin = %call.plugin, host, "a plugin asked for a host that it was not granted");
        return Err(HttpError::Denied);
    }
    call.used.requests += 1;
    if call.used.requests > MAX_REQUESTS {
        return Err(HttpError::Limit(format!("a call may send {MAX_REQUESTS} requests")));
    }
    let end = call.end(wanted.timeout_ms);
    let max_body = (wanted.max_body as usize).min(MAX_MANIFEST);
    let port = authority.port_u16().unwrap_or(if scheme == Scheme::Http { 80 } else { 443 });
    let mut headers = wanted.headers;
    headers.retain(|(name, _)| !name.eq_ignore_ascii_case("host"));
    headers.push(("host".to_owned(), authority.as_str().as_bytes().to_vec()));
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let request = Request {
        method: wanted.method,
        scheme,
        protocol: Protocol::Http1,
        port,
        path,
        headers,
        body: wanted.body,
        max_body: wanted.max_body,
    };
    let request = request::check(request, host)?;
    let address = Address::parse(host);
    let connect = async {
        let socket = Socket::connect(&address, port, end).await.map_err(|error| match error {
            ConnectError::Lookup(text) => HttpError::Lookup(text),
            ConnectError::Connect(text) => HttpError::Connect(text),
        })?;
        Ok(match scheme {
            Scheme::Http => Stream::Plain(socket),
            Scheme::Https => Stream::Tls(Box::new(web.secure(socket, host).await.map_err(HttpError::Tls)?)),
        })
    };
    let stream = until(end, connect).await.map_err(|_| HttpError::Timeout(Phase::Connect))??;
    let request = request.into_hyper(Version::Http1, scheme, port, host)?;
    exchange::run(stream, Version::Http1, request, max_body, end).await
}
