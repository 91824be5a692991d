//! The manifest URL: where it is, what is sent to it, how often. Header values and passwords may be secret: no message holds one.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use longshore_core::document::{Node, Value};
use serde::Serialize;

use super::draft::{Findings, FlagNotes};
use super::duration;
use super::joining::given;
use super::layer::layer;
use super::reader::Reader;

/// Flags of the manifest URL.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct ManifestUrlFlags {
    /// URL (http or https) of a Pod or PodList that is kept running, beside the manifest folder
    #[arg(long, value_name = "URL")]
    pub(crate) manifest_url: Option<String>,
    /// Headers that are sent to the manifest URL: name:value, separated by commas
    #[arg(long, value_name = "HEADERS")]
    pub(crate) manifest_url_header: Vec<String>,
    /// CA certificates (PEM) that the manifest URL's server is verified by, in place of the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) manifest_url_ca_file: Option<PathBuf>,
    /// How often the manifest URL is looked at [default: 20s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) http_check_frequency: Option<String>,
}

layer! {
    /// What one place says of the manifest URL.
    ManifestUrlLayer {
        url: String,
        headers: Headers,
        ca_file: PathBuf,
        period: Duration,
    }
    tables {}
}

/// Headers by name; one that is sent several times is in here several times. Their values are not shown.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Headers(pub(crate) Vec<(String, String)>);

impl fmt::Debug for Headers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// The manifest URL, complete.
#[derive(Clone, PartialEq)]
pub(crate) struct ManifestUrl {
    /// The URL; `None` when there is none. May hold a password.
    pub(crate) url: Option<String>,
    /// Headers that are sent.
    pub(crate) headers: Headers,
    /// CA certificates in place of the system's.
    pub(crate) ca_file: Option<PathBuf>,
    /// Time between two looks.
    pub(crate) period: Duration,
}

impl fmt::Debug for ManifestUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ManifestUrl")
            .field("url", &self.url.as_deref().map(super::publish::without_password))
            .field("headers", &self.headers)
            .field("ca_file", &self.ca_file)
            .field("period", &self.period)
            .finish()
    }
}

impl ManifestUrlLayer {
    pub(super) fn from_flags(flags: &ManifestUrlFlags, note: &mut FlagNotes<'_>) -> ManifestUrlLayer {
        ManifestUrlLayer {
            url: note.read("--manifest-url", &flags.manifest_url, url),
            headers: note.all("--manifest-url-header", &flags.manifest_url_header, headers),
            ca_file: given(&flags.manifest_url_ca_file),
            period: note.read("--http-check-frequency", &flags.http_check_frequency, |text| {
                duration::parse(text).and_then(period)
            }),
        }
    }

    /// Reads a field of this group; false when it is of another.
    pub(super) fn field(&mut self, reader: &mut Reader<'_>, key: &str, node: &Node) -> bool {
        match key {
            "httpCheckFrequency" => self.period = reader.duration(key, node, period),
            "staticPodURL" => self.url = reader.text(key, node, |text| url(&text)),
            "staticPodURLHeader" => self.headers = read_headers(reader, key, node),
            _ => return false,
        }
        true
    }

    /// The group, complete, with the kubelet's defaults.
    pub(super) fn finish(self, findings: &mut Findings) -> ManifestUrl {
        let url = self.url.filter(|url| !url.is_empty());
        if url.is_none() && (self.headers.is_some() || self.ca_file.is_some()) {
            let message = "--manifest-url-header and --manifest-url-ca-file have no effect without --manifest-url";
            findings.warnings.push(message.to_owned());
        }
        ManifestUrl {
            url,
            headers: self.headers.unwrap_or_default(),
            ca_file: self.ca_file,
            period: self.period.unwrap_or(Duration::from_secs(20)),
        }
    }
}

fn url(text: &str) -> Result<String, String> {
    let plain = |letter: char| !letter.is_control() && letter != ' ';
    let rest = text
        .split_once("://")
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"));
    let host = rest.map(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
    let host = host.map(|authority| authority.rsplit('@').next().unwrap_or_default());
    match text.is_empty() || text.chars().all(plain) && host.is_some_and(|host| !host.is_empty()) {
        true => Ok(text.to_owned()),
        false => {
            let shown = super::publish::without_password(text);
            Err(format!("expected a URL like https://example.com/pods.yaml, got {shown:?}"))
        }
    }
}

fn period(value: Duration) -> Result<Duration, String> {
    match value >= Duration::from_millis(100) {
        true => Ok(value),
        false => Err(format!("expected at least 100ms, got {value:?}")),
    }
}

/// `name:value,name:value`, as `ColonSeparatedMultimapStringString` in `staging/src/k8s.io/component-base/cli/flag`.
fn headers(text: &str) -> Result<Headers, String> {
    let pairs = text.split(',').filter(|pair| !pair.is_empty()).enumerate();
    let pairs = pairs.map(|(index, pair)| {
        let (name, value) = pair
            .split_once(':')
            .ok_or_else(|| format!("header {} is malformed: expected name:value, separated by commas", index + 1))?;
        header(name.trim(), value.trim())
    });
    pairs.collect::<Result<_, _>>().map(Headers)
}

fn header(name: &str, value: &str) -> Result<(String, String), String> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(format!("{name:?} is not a valid HTTP header name"));
    }
    if value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
        return Err(format!("the value of header {name:?} has control characters, which no header may have"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// `staticPodURLHeader`: a list of values by name.
fn read_headers(reader: &mut Reader<'_>, field: &str, node: &Node) -> Option<Headers> {
    if !matches!(node.value, Value::Map(_)) {
        reader.wrong(field, node, "a mapping of names to lists of values");
        return None;
    }
    let mut headers = Headers::default();
    for entry in reader.map(field, node) {
        let place = format!("{field}.{}", entry.key);
        for value in reader.texts(&place, &entry.node, |text| Ok(text.to_owned())).unwrap_or_default() {
            let line = reader.place(entry.at.line, &place);
            headers.0.extend(reader.findings.note(&line, header(&entry.key, &value)));
        }
    }
    Some(headers)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn headers_as_the_kubelet_reads_them() {
        let read = headers("a:hello, b : x:y ,a:again,,c:").unwrap();
        let pairs: Vec<(&str, &str)> = read.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("a", "hello"), ("b", "x:y"), ("a", "again"), ("c", "")]);
        assert_eq!(format!("{read:?}"), r#"["a", "b", "a", "c"]"#);
        for wrong in ["a:1,secret", "secret value:x", "a:secret\nb"] {
            let message = headers(wrong).unwrap_err();
            assert!(
                !message.contains("secret") || message.contains("\"secret value\" is not a valid HTTP header name"),
                "{message}"
            );
        }
    }

    #[test]
    fn urls() {
        for good in ["", "http://h", "https://u:p@h:8443/x?y=z", "HTTP://[fd00::1]:80/"] {
            assert!(url(good).is_ok(), "{good}");
        }
        for wrong in ["h/x", "file:///x", "http:///x", "http://u:secret@/x", "http://u:secret@h/ x"] {
            assert!(!url(wrong).unwrap_err().contains("secret"), "{wrong}");
        }
    }
}
