//! URLs as the kubelet and Go's HTTP client make them of a probe's path and of `Location` headers. It must not decide
//! whether a redirect is followed.

use longshore_guest::client::Scheme;
use longshore_guest::wording::join_host_port;

/// A URL of scheme http or https.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) scheme: Scheme,
    /// The host alone: a name, or an address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Host and port as they were written; what the `Host` header says.
    pub(crate) authority: String,
    /// Path and query as they are sent; begins with `/`.
    pub(crate) path: String,
    fragment: String,
}

/// Where a `Location` points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) url: Url,
    /// It had a scheme, so that a `Host` header of the probe's author is not kept.
    pub(crate) absolute: bool,
}

/// Why a `Location` cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LocationError {
    /// It is no URL.
    Malformed,
    /// Another scheme than http and https, on a host.
    Scheme {
        /// The scheme, in lower case.
        scheme: String,
        /// The host.
        host: String,
    },
}

impl Url {
    /// The probe's own URL (`pkg/probe/http/request.go`, `formatURL`): the path may have a query, and what is not valid in
    /// it is escaped; when it is no path at all, all of it is.
    pub(crate) fn of_probe(scheme: Scheme, host: &str, port: u16, path: &str) -> Self {
        let (path, fragment) = path.split_once('#').unwrap_or((path, ""));
        let path = match split_scheme(path) {
            Some((_, rest)) => rest.strip_prefix("//").map_or(rest, without_authority),
            None => path.strip_prefix("//").map_or(path, without_authority),
        };
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let mut sent = String::new();
        if !path.starts_with('/') {
            sent.push('/');
        }
        if escapes_are_valid(path) {
            escape(&mut sent, path, true);
            if let Some(query) = query {
                sent.push('?');
                escape(&mut sent, query, true);
            }
        } else {
            escape(&mut sent, path, false);
            if let Some(query) = query {
                sent.push_str("%3F");
                escape(&mut sent, query, false);
            }
        }
        Self {
            scheme,
            host: host.to_owned(),
            port,
            authority: join_host_port(host, port),
            path: sent,
            fragment: fragment.to_owned(),
        }
    }

    /// Resolves a `Location` against this URL (RFC 3986, section 5.2).
    pub(crate) fn join(&self, location: &str) -> Result<Location, LocationError> {
        if location.chars().any(char::is_control) {
            return Err(LocationError::Malformed);
        }
        let (location, fragment) = location.split_once('#').unwrap_or((location, ""));
        let (scheme, rest) = match split_scheme(location) {
            Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
            None => (None, location),
        };
        let absolute = scheme.is_some();
        let mut url = Self { fragment: fragment.to_owned(), ..self.clone() };
        if let Some(rest) = rest.strip_prefix("//") {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            let authority = rest[..end].rsplit_once('@').map_or(&rest[..end], |(_, host)| host);
            let (host, port) = split_authority(authority).ok_or(LocationError::Malformed)?;
            url.scheme = match scheme.as_deref() {
                None => self.scheme,
                Some("http") => Scheme::Http,
                Some("https") => Scheme::Https,
                Some(other) => return Err(LocationError::Scheme { scheme: other.to_owned(), host: host.to_owned() }),
            };
            url.port = port.unwrap_or(if url.scheme == Scheme::Http { 80 } else { 443 });
            url.host = host.to_owned();
            url.authority = authority.to_owned();
            url.path = sent(&rest[end..], "");
        } else if let Some(scheme) = scheme {
            return Err(LocationError::Scheme { scheme, host: String::new() });
        } else {
            let (path, _) = self.path.split_once('?').unwrap_or((&self.path, ""));
            url.path = match rest {
                "" => self.path.clone(),
                query if query.starts_with('?') => sent(&format!("{path}{query}"), ""),
                path if path.starts_with('/') => sent(path, ""),
                relative => sent(relative, &path[..=path.rfind('/').unwrap_or(0)]),
            };
        }
        if escapes_are_valid(&url.path) { Ok(Location { url, absolute }) } else { Err(LocationError::Malformed) }
    }

    /// As Go prints it.
    pub(crate) fn text(&self) -> String {
        let fragment = if self.fragment.is_empty() { String::new() } else { format!("#{}", self.fragment) };
        format!("{}://{}{}{fragment}", self.scheme_text(), self.authority, self.path)
    }

    fn scheme_text(&self) -> &'static str {
        match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

/// `scheme:rest`, when it begins so.
fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let mut letters = scheme.bytes();
    let valid = letters.next().is_some_and(|byte| byte.is_ascii_alphabetic())
        && letters.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
    valid.then_some((scheme, rest))
}

fn without_authority(rest: &str) -> &str {
    &rest[rest.find(['/', '?']).unwrap_or(rest.len())..]
}

/// Host (without brackets) and port of an authority.
fn split_authority(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        match rest {
            "" => (host, ""),
            rest => (host, rest.strip_prefix(':')?),
        }
    } else {
        authority.rsplit_once(':').unwrap_or((authority, ""))
    };
    let port = if port.is_empty() { None } else { Some(port.parse().ok().filter(|port| *port != 0)?) };
    (!host.contains([' ', '/', '\\'])).then_some((host, port))
}

/// Path and query as they are sent, the path on top of `base` and without `.` and `..`.
fn sent(reference: &str, base: &str) -> String {
    let (path, query) = reference.split_once('?').map_or((reference, None), |(path, query)| (path, Some(query)));
    let path = format!("{base}{path}");
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = path.trim_start_matches('/').split('/').peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." | ".." => {
                if part == ".." {
                    segments.pop();
                }
                if last {
                    segments.push("");
                }
            }
            part => segments.push(part),
        }
    }
    let mut text = "/".to_owned();
    escape(&mut text, &segments.join("/"), true);
    if let Some(query) = query {
        text.push('?');
        escape(&mut text, query, true);
    }
    text
}

fn escapes_are_valid(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let hex = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_hexdigit());
        if byte == b'%' && !(hex(bytes.next()) && hex(bytes.next())) || byte.is_ascii_control() {
            return false;
        }
    }
    true
}

/// Appends `text` with what may not stand in a request line escaped; `%` only when it begins no escape already.
fn escape(to: &mut String, text: &str, has_escapes: bool) {
    for byte in text.bytes() {
        let plain =
            byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}');
        if plain && (byte != b'%' || has_escapes) {
            to.push(char::from(byte));
        } else {
            to.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{LocationError, Url};
    use longshore_guest::client::Scheme;

    fn probe(path: &str) -> String {
        Url::of_probe(Scheme::Http, "10.0.0.1", 80, path).text()
    }

    #[test]
    fn a_probes_path() {
        for (path, text) in [
            ("", "/"),
            ("/", "/"),
            ("healthz", "/healthz"),
            ("/a?b=c&d", "/a?b=c&d"),
            ("/a b", "/a%20b"),
            ("/a%20b", "/a%20b"),
            ("/100%", "/100%25"),
            ("/100%?x", "/100%25%3Fx"),
            ("/ä", "/%C3%A4"),
            ("/a#b", "/a#b"),
            ("http://elsewhere/a", "/a"),
            ("//elsewhere/a", "/a"),
        ] {
            assert_eq!(probe(path), format!("http://10.0.0.1:80{text}"), "{path}");
        }
        assert_eq!(Url::of_probe(Scheme::Https, "fd00::1", 443, "/").text(), "https://[fd00::1]:443/");
    }

    #[test]
    fn locations() {
        let base = Url::of_probe(Scheme::Http, "10.0.0.1", 8080, "/a/b?q");
        for (location, text) in [
            ("/x", "http://10.0.0.1:8080/x"),
            ("x", "http://10.0.0.1:8080/a/x"),
            ("../x/./y", "http://10.0.0.1:8080/x/y"),
            ("?r", "http://10.0.0.1:8080/a/b?r"),
            ("", "http://10.0.0.1:8080/a/b?q"),
            ("//other/x", "http://other/x"),
            ("https://10.0.0.1/x?y", "https://10.0.0.1/x?y"),
            ("http://u:p@[fd00::1]:81", "http://[fd00::1]:81/"),
        ] {
            assert_eq!(base.join(location).unwrap().url.text(), text, "{location}");
        }
        assert_eq!(base.join("https://10.0.0.1/").unwrap().url.port, 443);
        assert!(base.join("http://x/").unwrap().absolute && !base.join("//x/").unwrap().absolute);
        for malformed in ["http://h:99999/", "/%zz", "/a\u{1}"] {
            assert_eq!(base.join(malformed), Err(LocationError::Malformed), "{malformed}");
        }
        let ftp = LocationError::Scheme { scheme: "ftp".to_owned(), host: "10.0.0.1".to_owned() };
        assert_eq!(base.join("FTP://10.0.0.1/"), Err(ftp));
    }
}
