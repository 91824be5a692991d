//! The built-in source: what `--manifest-url` and its companions become for the guest and its grants. It must not fetch anything.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use longshore_core::pod::{Pod, Source};

use super::SourceOptions;

/// Time for one fetch with all its redirects (`pkg/kubelet/config/http.go`, `NewSourceURL`).
const FETCH_LIMIT: Duration = Duration::from_secs(10);

/// The manifest URL.
#[derive(Clone)]
pub struct UrlSource {
    /// Where the manifests are: http or https.
    pub url: String,
    /// Headers that are sent, and no others but `Host`, `User-Agent` and what caches need. Secrets, perhaps.
    pub headers: Vec<(String, String)>,
    /// Time between two looks (`httpCheckFrequency`, 20 s).
    pub period: Duration,
    /// A file of CA certificates (PEM) that are believed in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// Name of this node.
    pub node_name: String,
    /// Version of the agent, for `User-Agent`.
    pub version: String,
    /// Pods of the URL that ran before the agent started, from their records.
    pub former: Vec<Pod>,
}

impl fmt::Debug for UrlSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("UrlSource").field("url", &shown(&self.url)).finish_non_exhaustive()
    }
}

impl UrlSource {
    pub(super) fn into_options(self) -> SourceOptions {
        let user_agent = format!("longshore/{}", self.version);
        let config = serde_json::json!({"url": self.url, "headers": self.headers, "userAgent": user_agent});
        // A URL without a host reaches nobody; the guest says what is wrong with it.
        let host = self.url.parse::<Uri>().ok().and_then(|url| url.host().map(str::to_owned));
        let host = host.map(|host| host.trim_start_matches('[').trim_end_matches(']').to_owned());
        SourceOptions {
            source: Source::Http,
            node_name: self.node_name,
            place: shown(&self.url),
            config: config.to_string(),
            period: self.period,
            budget: FETCH_LIMIT,
            former: self.former,
            hosts: host.into_iter().collect(),
            ca_file: self.ca_file,
        }
    }
}

/// The URL with a password hidden, as Go's `URL.Redacted` does.
fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split_once(':').map_or(user.to_owned(), |(user, _)| format!("{user}:xxxxx"));
            format!("{scheme}://{user}@{host}{}", &rest[end..])
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn passwords_are_not_shown() {
        for (url, text) in [
            ("http://h/a@b:c", "http://h/a@b:c"),
            ("https://me:secret@h:8443/x?y", "https://me:xxxxx@h:8443/x?y"),
            ("https://token@h", "https://token@h"),
        ] {
            assert_eq!(shown(url), text);
        }
    }
}
