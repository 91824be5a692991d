//! The grammar of images' names (`github.com/distribution/reference`: regexp.go, normalize.go), read by hand.
//!
//! A regular expression for it takes 12 MiB of memory for as long as the process lives (measured with the one of
//! oci-spec, which the tests compare with). Must not know what a name is used for.

/// Bytes of a repository's name.
const NAME_LIMIT: usize = 255;
/// Bytes of a tag.
const TAG_LIMIT: usize = 128;

/// A name taken apart and normalised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// `docker.io` where the name has none.
    pub(super) registry: String,
    /// With `library/` where Docker Hub's name has one part.
    pub(super) repository: String,
    /// As written.
    pub(super) tag: Option<String>,
    /// As written.
    pub(super) digest: Option<String>,
}

/// Why a name is none, in distribution's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReferenceError {
    /// It does not follow the grammar.
    #[error("invalid reference format")]
    Format,
    /// It would, in lower case.
    #[error("invalid reference format: repository name must be lowercase")]
    Uppercase,
    /// Its repository is too long.
    #[error("repository name must not be more than 255 characters")]
    TooLong,
    /// Its digest is of an unknown kind.
    #[error("unsupported digest algorithm")]
    Digest,
}

/// Takes a name apart.
pub(super) fn parse(text: &str) -> Result<Reference, ReferenceError> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    // A colon before the last slash belongs to a port.
    let last = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[last..].split_once(':') {
        Some((part, tag)) => (&rest[..last + part.len()], Some(tag)),
        None => (rest, None),
    };
    if !is_name(name) || !tag.is_none_or(is_tag) || !digest.is_none_or(is_digest) {
        return Err(ReferenceError::Format);
    }
    let (registry, repository) = split_registry(name);
    if repository.len() > NAME_LIMIT {
        return Err(ReferenceError::TooLong);
    }
    digest.map_or(Ok(()), check_length)?;
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(ReferenceError::Uppercase);
    }
    Ok(Reference { registry, repository, tag: tag.map(str::to_owned), digest: digest.map(str::to_owned) })
}

/// Docker's rule for what is a registry: it has a dot or a port, or is `localhost`.
fn split_registry(name: &str) -> (String, String) {
    let registry = name.split_once('/').filter(|(first, _)| first.contains(['.', ':']) || *first == "localhost");
    match registry {
        Some((registry, rest)) if registry != "docker.io" && registry != "index.docker.io" => {
            (registry.to_owned(), rest.to_owned())
        }
        other => {
            let rest = other.map_or(name, |(_, rest)| rest);
            let library = if rest.contains('/') { "" } else { "library/" };
            ("docker.io".to_owned(), format!("{library}{rest}"))
        }
    }
}

fn is_name(name: &str) -> bool {
    if name.split('/').all(is_component) {
        return true;
    }
    name.split_once('/').is_some_and(|(first, rest)| is_domain(first) && rest.split('/').all(is_component))
}

/// Runs of `a-z0-9`, with `.`, `_`, `__` or any number of `-` between two.
fn is_component(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = text.bytes().next().is_some_and(plain) && text.bytes().next_back().is_some_and(plain);
    let separators = text.split(|c: char| c.is_ascii() && plain(c as u8)).filter(|part| !part.is_empty());
    let allowed = |part: &str| matches!(part, "." | "_" | "__") || part.bytes().all(|byte| byte == b'-');
    ends && separators.into_iter().all(allowed)
}

/// A host name or an IPv6 address in brackets, and a port where one is given.
fn is_domain(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, after)) => match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None => return false,
            },
            None => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let is_host = match text.starts_with('[') {
        true => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':'),
        false => host.split('.').all(is_label),
    };
    is_host && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    ends(bytes.first()) && ends(bytes.last()) && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= TAG_LIMIT
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else { return false };
    let part = |part: &str| {
        part.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    algorithm.split(['-', '_', '+', '.']).all(part)
        && hex.len() >= 32
        && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn check_length(digest: &str) -> Result<(), ReferenceError> {
    let (algorithm, hex) = digest.split_once(':').ok_or(ReferenceError::Format)?;
    let wanted = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err(ReferenceError::Digest),
    };
    if hex.len() == wanted { Ok(()) } else { Err(ReferenceError::Format) }
}

#[cfg(test)]
mod tests {
    use oci_spec::distribution::{ParseError, Reference as Peer};
    use proptest::prelude::*;

    use super::*;

    /// What the regular expression makes of it.
    fn peer(text: &str) -> Result<Reference, ReferenceError> {
        let parsed: Peer = text.parse().map_err(|error| match error {
            ParseError::NameTooLong => ReferenceError::TooLong,
            ParseError::DigestUnsupported => ReferenceError::Digest,
            _ => ReferenceError::Format,
        })?;
        if parsed.repository().bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(ReferenceError::Uppercase);
        }
        let registry = match parsed.registry() {
            "index.docker.io" => "docker.io",
            other => other,
        };
        // It fills in a tag, which is a matter of its own here.
        let written = text.split('@').next().unwrap_or_default().rsplit('/').next().unwrap_or_default().contains(':');
        Ok(Reference {
            registry: registry.to_owned(),
            repository: parsed.repository().to_owned(),
            tag: parsed.tag().filter(|_| written).map(str::to_owned),
            digest: parsed.digest().map(str::to_owned),
        })
    }

    #[test]
    fn examples() {
        let long = format!("a/{}", "b".repeat(256));
        let pinned = format!("a:1@sha256:{}", "0".repeat(64));
        let odd = format!("a@md5:{}", "0".repeat(32));
        let short = format!("a@sha256:{}", "0".repeat(32));
        for text in [
            "nginx",
            "a/b",
            "a.b/c",
            "a:5000/b",
            "a:5000",
            "localhost/a",
            "Foo/bar",
            "a/Foo",
            "foo.Bar/a",
            "a__b",
            "a___b",
            "a._b",
            "a--b",
            "-a",
            "a-",
            "a/",
            "/a",
            "a//b",
            "",
            "a:",
            "a:-",
            "a@",
            "docker.io/a",
            "index.docker.io/a/b",
            "a:b:c/d",
            "../x",
            "a b",
            "a.b:/c",
            "a..b/c",
            "aé",
            "é/a",
            &long,
            &pinned,
            &odd,
            &short,
        ] {
            assert_eq!(parse(text), peer(text), "{text}");
        }
        assert_eq!(parse("[fd00::1]:5000/a").map(|name| name.registry), Ok("[fd00::1]:5000".to_owned()));
        assert_eq!(parse(&format!("a:{}", "t".repeat(129))), Err(ReferenceError::Format));
    }

    proptest! {
        #[test]
        fn as_the_regular_expression(text in "[aB0._:/@-]{0,24}") {
            prop_assert_eq!(parse(&text), peer(&text));
        }

        #[test]
        fn also_what_is_nearly_right(
            text in "([a-cA]{1,3}([.-][a-c]{1,3}){0,2}(:[0-9]{0,4})?/)?[a-c]{1,3}(([._-]|__|--)[a-c]{1,2}){0,2}(/[a-c.]{1,3}){0,2}(:[a-zA-Z0-9_.-]{0,4})?(@sha(256|512|9):([0-9a-f]{32}|[0-9a-f]{64}|[0-9a-f]{128}))?"
        ) {
            prop_assert_eq!(parse(&text), peer(&text));
        }
    }
}
