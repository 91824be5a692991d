//! `longshore:http`: one request, one answer. It must not follow redirects, keep connections, or let a guest choose the host.

mod exchange;
mod fetcher;
mod request;

use exchange::{Stream, Version};
use longshore_core::hooks::PLAIN_ANSWER;

use crate::bindings::longshore::http::client::{Host, HttpError, Phase, Protocol, Request, Response, Scheme};
use crate::call::{Call, until};
use crate::grants::Capability;
use crate::limits::{MAX_BODY, MAX_REQUESTS};
use crate::net::tls::{self, NoTls};
use crate::net::{ConnectError, Socket};

impl Host for Call {
    async fn send(&mut self, request: Request) -> wasmtime::Result<Result<Response, HttpError>> {
        Ok(send(self, request).await)
    }
}

/// Go's words where the target speaks plain HTTP (`net/http/transport.go`); lifecycle hooks are repeated by them.
fn no_tls(error: NoTls) -> HttpError {
    match error.plain_http {
        true => HttpError::Closed(format!("http: {PLAIN_ANSWER}")),
        false => HttpError::Tls(error.text),
    }
}

async fn send(call: &mut Call, request: Request) -> Result<Response, HttpError> {
    call.ask(Capability::Http).map_err(|_| HttpError::Denied)?;
    let address = call.aim.address.clone().ok_or(HttpError::NoAddress)?;
    call.used.requests += 1;
    if call.used.requests > MAX_REQUESTS {
        return Err(HttpError::Limit(format!("a call may send {MAX_REQUESTS} requests")));
    }
    let text = call.aim.address_text().ok_or(HttpError::NoAddress)?;
    let (scheme, protocol, port) = (request.scheme, request.protocol, request.port);
    let max_body = (request.max_body as usize).min(MAX_BODY);
    let request = request::check(request, &text)?;
    let end = call.deadline;

    let connect = async {
        let socket = Socket::connect(&address, port, end).await.map_err(|error| match error {
            ConnectError::Lookup(text) => HttpError::Lookup(text),
            ConnectError::Connect(text) => HttpError::Connect(text),
        })?;
        let wanted = if protocol == Protocol::Http2 { Version::Http2 } else { Version::Http1 };
        match scheme {
            Scheme::Http => Ok((Stream::Plain(socket), wanted)),
            Scheme::Https => {
                let alpn: &[&[u8]] = match protocol {
                    Protocol::Auto => &[b"h2", b"http/1.1"],
                    Protocol::Http1 => &[b"http/1.1"],
                    Protocol::Http2 => &[b"h2"],
                };
                let alpn = alpn.iter().map(|protocol| protocol.to_vec()).collect();
                let stream = tls::start(socket, &address, None, alpn).await.map_err(no_tls)?;
                let chosen = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let version = if chosen { Version::Http2 } else { wanted };
                Ok((Stream::Tls(Box::new(stream)), version))
            }
        }
    };
    let (stream, version) = until(end, connect).await.map_err(|_| HttpError::Timeout(Phase::Connect))??;
    let request = request.into_hyper(version, scheme, port, &text)?;
    exchange::run(stream, version, request, max_body, end).await
}
