//! A guest's request, checked and made into hyper's. It must not touch the network.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Method, Uri};
use http_body_util::Full;

use super::exchange::Version;
use crate::bindings::longshore::http::client::{HttpError, Request, Scheme};
use crate::limits::{MAX_HEADERS, MAX_REQUEST_BODY};

/// A request whose parts are what HTTP allows.
pub(super) struct Checked {
    method: Method,
    path: String,
    authority: String,
    headers: HeaderMap,
    body: Bytes,
}

fn invalid(text: impl Into<String>) -> HttpError {
    HttpError::Invalid(text.into())
}

/// Checks a request for the target at `address`.
pub(super) fn check(request: Request, address: &str) -> Result<Checked, HttpError> {
    let method = Method::from_bytes(request.method.as_bytes());
    let method = method.map_err(|_| invalid(format!("{:?} is not a method", request.method)))?;
    if method == Method::CONNECT {
        return Err(invalid("CONNECT is for proxies"));
    }
    if !request.path.starts_with('/') {
        return Err(invalid(format!("path {:?} does not begin with a slash", request.path)));
    }
    let size = |(name, value): &(String, Vec<u8>)| name.len() + value.len() + 4;
    if request.path.len() + request.headers.iter().map(size).sum::<usize>() > MAX_HEADERS {
        return Err(HttpError::Limit(format!("path and headers may have {MAX_HEADERS} bytes")));
    }
    if request.body.len() > MAX_REQUEST_BODY {
        return Err(HttpError::Limit(format!("a request's body may have {MAX_REQUEST_BODY} bytes")));
    }
    let mut authority = None;
    let mut headers = HeaderMap::with_capacity(request.headers.len());
    for (name, value) in request.headers {
        let header = HeaderName::from_bytes(name.as_bytes());
        let header = header.map_err(|_| invalid(format!("{name:?} is not a header name")))?;
        if header == HOST {
            authority = authority.or(Some(value));
        } else if !is_the_hosts(&header) {
            let value = HeaderValue::from_bytes(&value);
            headers.append(
                header,
                value.map_err(|_| invalid(format!("the value of header {name} is not a header value")))?,
            );
        }
    }
    let authority = match authority {
        Some(value) => String::from_utf8(value).map_err(|_| invalid("the value of header host is not text"))?,
        None if address.contains(':') => format!("[{address}]:{}", request.port),
        None => format!("{address}:{}", request.port),
    };
    Ok(Checked { method, path: request.path, authority, headers, body: request.body.into() })
}

/// Headers that govern the connection.
fn is_the_hosts(name: &HeaderName) -> bool {
    [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE].contains(name)
        || ["keep-alive", "proxy-connection"].contains(&name.as_str())
}

impl Checked {
    /// As the version of HTTP has it that was agreed on.
    pub(super) fn into_hyper(
        self,
        version: Version,
        scheme: Scheme,
        port: u16,
        address: &str,
    ) -> Result<http::Request<Full<Bytes>>, HttpError> {
        let Self { method, path, authority, mut headers, body } = self;
        let uri = match version {
            Version::Http1 => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
                headers.remove(TE);
                let value = HeaderValue::from_str(&authority);
                headers.insert(HOST, value.map_err(|_| invalid(format!("{authority:?} is not a host header")))?);
                Uri::try_from(path.as_str()).map_err(|_| invalid(format!("{path:?} is not a path")))
            }
            Version::Http2 => {
                let scheme = if scheme == Scheme::Http { "http" } else { "https" };
                let parts = Uri::builder().scheme(scheme).authority(authority.as_str()).path_and_query(path.as_str());
                parts.build().map_err(|_| invalid(format!("{path:?} is not a path, or {authority:?} not an authority")))
            }
        }?;
        tracing::trace!(%method, %uri, address, port, "a probe's request");
        let mut request = http::Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        if version == Version::Http2 {
            *request.version_mut() = http::Version::HTTP_2;
        }
        Ok(request)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{Version, check};
    use crate::bindings::longshore::http::client::{HttpError, Protocol, Request, Scheme};

    fn request(path: &str, headers: &[(&str, &str)]) -> Request {
        Request {
            method: "GET".to_owned(),
            scheme: Scheme::Http,
            protocol: Protocol::Auto,
            port: 80,
            path: path.to_owned(),
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect(),
            body: Vec::new(),
            max_body: 1,
        }
    }

    #[test]
    fn the_connection_is_the_hosts() {
        let checked = check(request("/a?b", &[("Connection", "upgrade"), ("Upgrade", "x"), ("X", "1")]), "fd00::1");
        let sent = checked.unwrap().into_hyper(Version::Http1, Scheme::Http, 80, "fd00::1").unwrap();
        let names: Vec<_> =
            sent.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(names, [("x", "1"), ("connection", "close"), ("host", "[fd00::1]:80")]);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for (path, headers) in [("http://elsewhere/", &[][..]), ("/", &[("a b", "")]), ("/", &[("a", "b\r\nc: d")])] {
            assert!(
                matches!(check(request(path, headers), "10.0.0.1"), Err(HttpError::Invalid(_))),
                "{path} {headers:?}"
            );
        }
        let split = check(request("/a b\r\nX: 1", &[]), "10.0.0.1").unwrap();
        assert!(split.into_hyper(Version::Http1, Scheme::Http, 80, "10.0.0.1").is_err());
        let long = "x".repeat(70_000);
        assert!(matches!(check(request("/", &[("a", &long)]), "10.0.0.1"), Err(HttpError::Limit(_))));
    }
}
