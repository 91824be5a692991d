//! URLs of manifests, and where `Location` headers lead from them (RFC 3986, section 5.2). It must not decide whether a redirect is
//! followed.

/// A URL of scheme http or https.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    /// Whether the scheme is https.
    pub(crate) secure: bool,
    /// User and password as they were written, percent-encoded.
    user: Option<String>,
    /// Host and port as they were written.
    pub(crate) authority: String,
    /// The host alone.
    pub(crate) host: String,
    /// Path and query; begins with `/`.
    path: String,
}

impl Url {
    /// Reads an absolute URL.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.chars().any(|letter| letter.is_control() || letter == ' ') {
            return Err("has spaces or control characters".to_owned());
        }
        let text = text.split_once('#').map_or(text, |(text, _)| text);
        let (scheme, rest) = text.split_once("://").ok_or("expected a URL like https://host/pods.yaml")?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            other => return Err(format!("unsupported protocol scheme {other:?}; expected http or https")),
        };
        Self::after_scheme(secure, rest)
    }

    /// What follows `scheme://`.
    fn after_scheme(secure: bool, rest: &str) -> Result<Self, String> {
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (user, authority) = match rest[..end].rsplit_once('@') {
            Some((user, authority)) => (Some(user.to_owned()), authority),
            None => (None, &rest[..end]),
        };
        let host = host(authority).ok_or_else(|| format!("{authority:?} is not a host"))?;
        let path = sent(&rest[end..], "");
        Ok(Self { secure, user, authority: authority.to_owned(), host: host.to_owned(), path })
    }

    /// Where a `Location` leads.
    pub(crate) fn join(&self, location: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("cannot follow the Location header: {why}");
        if location.chars().any(char::is_control) {
            return Err(wrong("it has control characters"));
        }
        let location = location.split_once('#').map_or(location, |(location, _)| location);
        if has_scheme(location) {
            return Self::parse(location).map_err(|why| wrong(&why));
        }
        if let Some(rest) = location.strip_prefix("//") {
            return Self::after_scheme(self.secure, rest).map_err(|why| wrong(&why));
        }
        let (path, _) = self.path.split_once('?').unwrap_or((&self.path, ""));
        let path = match location {
            "" => self.path.clone(),
            query if query.starts_with('?') => sent(&format!("{path}{query}"), ""),
            absolute if absolute.starts_with('/') => sent(absolute, ""),
            relative => sent(relative, &path[..=path.rfind('/').unwrap_or(0)]),
        };
        Ok(Self { path, ..self.clone() })
    }

    /// As it is sent: without user and password.
    pub(crate) fn plain(&self) -> String {
        format!("{}://{}{}", self.scheme(), self.authority, self.path)
    }

    /// For messages: with a password hidden, as Go's `URL.Redacted` does.
    pub(crate) fn shown(&self) -> String {
        match self.user.as_deref() {
            None => self.plain(),
            Some(user) => {
                let user = user.split_once(':').map_or(user.to_owned(), |(user, _)| format!("{user}:xxxxx"));
                format!("{}://{user}@{}{}", self.scheme(), self.authority, self.path)
            }
        }
    }

    /// The `Authorization` header that user and password ask for.
    pub(crate) fn basic(&self) -> Option<String> {
        let user = self.user.as_deref()?;
        let (name, password) = user.split_once(':').unwrap_or((user, ""));
        let mut plain = decoded(name);
        plain.push(b':');
        plain.extend(decoded(password));
        Some(format!("Basic {}", base64(&plain)))
    }

    fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

fn has_scheme(text: &str) -> bool {
    let Some((scheme, _)) = text.split_once(':') else { return false };
    let mut letters = scheme.bytes();
    letters.next().is_some_and(|byte| byte.is_ascii_alphabetic())
        && letters.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

/// The host of an authority, when it and its port are sound.
fn host(authority: &str) -> Option<&str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, if rest.is_empty() { "" } else { rest.strip_prefix(':')? })
        }
        None => authority.rsplit_once(':').unwrap_or((authority, "")),
    };
    let sound = port.is_empty() || port.parse::<u16>().is_ok_and(|port| port != 0);
    (sound && !host.is_empty() && !host.contains([' ', '/', '\\', '@'])).then_some(host)
}

/// Path and query as they are sent, the path on top of `base` and without `.` and `..`.
fn sent(reference: &str, base: &str) -> String {
    let (path, query) = reference.split_once('?').map_or((reference, None), |(path, query)| (path, Some(query)));
    let mut segments: Vec<&str> = Vec::new();
    let whole = format!("{base}{path}");
    let mut parts = whole.strip_prefix('/').unwrap_or(&whole).split('/').peekable();
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
    escape(&mut text, &segments.join("/"));
    if let Some(query) = query {
        text.push('?');
        escape(&mut text, query);
    }
    text
}

/// Appends `text` with what may not stand in a request line escaped.
fn escape(to: &mut String, text: &str) {
    for byte in text.bytes() {
        let plain = byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte);
        if plain { to.push(char::from(byte)) } else { to.push_str(&format!("%{byte:02X}")) }
    }
}

/// Without percent-encoding; what is no escape stays.
fn decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 3;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    plain
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for position in 0..4 {
            let letter = LETTERS[(group >> (18 - 6 * position)) as usize & 63];
            text.push(if position <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{Url, base64};

    #[test]
    fn urls() {
        for (text, plain) in [
            ("http://h", "http://h/"),
            ("HTTPS://h:8443/a/../b?c=d#e", "https://h:8443/b?c=d"),
            ("http://[fd00::1]:81/x y", ""),
            ("http://[fd00::1]:81/x", "http://[fd00::1]:81/x"),
            ("http://h:0/", ""),
            ("http://h:x/", ""),
            ("http:///x", ""),
            ("ftp://h/x", ""),
            ("h/x", ""),
        ] {
            assert_eq!(Url::parse(text).map_or(String::new(), |url| url.plain()), plain, "{text}");
        }
        assert_eq!(Url::parse("http://[fd00::1]:81/x").unwrap().host, "fd00::1");
    }

    #[test]
    fn users_are_sent_apart_and_passwords_not_shown() {
        let url = Url::parse("http://me:p%40ss@h/x").unwrap();
        assert_eq!(url.plain(), "http://h/x");
        assert_eq!(url.shown(), "http://me:xxxxx@h/x");
        assert_eq!(url.basic().unwrap(), "Basic bWU6cEBzcw==");
        assert_eq!(url.join("/y").unwrap().shown(), "http://me:xxxxx@h/y");
        assert_eq!(url.join("http://h/y").unwrap().basic(), None);
        assert_eq!(["", "f", "fo", "foo"].map(|text| base64(text.as_bytes())), ["", "Zg==", "Zm8=", "Zm9v"]);
    }

    #[test]
    fn locations() {
        let base = Url::parse("http://h:8080/a/b?q").unwrap();
        for (location, text) in [
            ("/x", "http://h:8080/x"),
            ("x", "http://h:8080/a/x"),
            ("../x/./y", "http://h:8080/x/y"),
            ("?r", "http://h:8080/a/b?r"),
            ("", "http://h:8080/a/b?q"),
            ("//other/x", "http://other/x"),
            ("https://h/x?y", "https://h/x?y"),
            ("ftp://h/x", ""),
            ("http://h:99999/", ""),
            ("/a\u{1}", ""),
        ] {
            assert_eq!(base.join(location).map_or(String::new(), |url| url.plain()), text, "{location}");
        }
    }
}
