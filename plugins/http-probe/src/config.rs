//! Configuration of the HTTP probe: v1's `httpGet`. It must not know how a request is sent.

use longshore_guest::client::Scheme;
use longshore_guest::config::{Fields, Port, near};

/// v1's `httpGet`, without `host`: that is the host's to read, which dials it.
#[derive(Clone, Debug)]
pub(crate) struct HttpGet {
    pub(crate) port: Port,
    pub(crate) path: String,
    pub(crate) scheme: Scheme,
    pub(crate) headers: Vec<(String, String)>,
}

/// Reads it, with the API server's defaults and rules.
pub(crate) fn read(config: &str) -> Result<HttpGet, String> {
    let fields = Fields::read(config, &["port", "path", "host", "scheme", "httpHeaders"])?;
    fields.text("host")?;
    let scheme = match fields.text("scheme")? {
        None | Some("" | "HTTP") => Scheme::Http,
        Some("HTTPS") => Scheme::Https,
        Some(other) => {
            let hint =
                near(other, &["HTTP", "HTTPS"]).map_or(String::new(), |near| format!("; did you mean {near:?}?"));
            return Err(fields.complaint("scheme", &format!("expected \"HTTP\" or \"HTTPS\", found {other:?}{hint}")));
        }
    };
    let mut headers = Vec::new();
    for header in fields.objects("httpHeaders", &["name", "value"])? {
        let name = header.required_text("name")?;
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(header.complaint("name", &format!("{name:?} is not an HTTP header name (like X-Header-Name)")));
        }
        let value = header.text("value")?.unwrap_or_default();
        if value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
            return Err(header.complaint("value", "has control characters, which no header may have"));
        }
        headers.push((name.to_owned(), value.to_owned()));
    }
    let path = match fields.text("path")? {
        None | Some("") => "/".to_owned(),
        Some(path) => path.to_owned(),
    };
    Ok(HttpGet { port: fields.port("port")?, path, scheme, headers })
}

/// A byte of an HTTP header's name (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::read;
    use longshore_guest::client::Scheme;

    #[test]
    fn defaults() {
        let get = read(r#"{"port": 80}"#).unwrap();
        assert_eq!((get.path.as_str(), get.scheme, get.headers.len()), ("/", Scheme::Http, 0));
    }

    #[test]
    fn complaints_name_the_field() {
        for (config, text) in [
            (r#"{"path": "/"}"#, "port: required"),
            (
                r#"{"port": 1, "scheme": "https"}"#,
                r#"scheme: expected "HTTP" or "HTTPS", found "https"; did you mean "HTTPS"?"#,
            ),
            (r#"{"port": 1, "headers": []}"#, r#"headers: unknown field; did you mean "httpHeaders"?"#),
            (r#"{"port": 1, "httpHeaders": [{"value": "x"}]}"#, "httpHeaders[0].name: required"),
            (
                r#"{"port": 1, "httpHeaders": [{"name": "a", "val": "x"}]}"#,
                r#"httpHeaders[0].val: unknown field; did you mean "value"?"#,
            ),
            (
                r#"{"port": 1, "httpHeaders": [{"name": "a b"}]}"#,
                r#"httpHeaders[0].name: "a b" is not an HTTP header name (like X-Header-Name)"#,
            ),
            (r#"{"port": 1, "path": 2}"#, "path: expected a text, found the number 2"),
        ] {
            assert_eq!(read(config).unwrap_err(), text);
        }
    }
}
