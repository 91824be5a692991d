//! The forms of names, keys and addresses (`apimachinery/pkg/util/validation/validation.go`), in its words.

use std::net::IpAddr;

/// What is wrong with a DNS-1123 label, if anything.
pub(super) fn dns_label(text: &str) -> Option<String> {
    if text.len() > 63 {
        return Some(too_long(63));
    }
    (!is_label(text)).then(|| {
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name', or '123-abc')".to_owned()
    })
}

/// What is wrong with a DNS-1123 subdomain, if anything.
pub(super) fn dns_subdomain(text: &str) -> Option<String> {
    if text.len() > 253 {
        return Some(too_long(253));
    }
    (!text.split('.').all(is_label)).then(|| {
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com')".to_owned()
    })
}

/// What is wrong with a search domain, if anything: a subdomain whose labels may have underscores, one at the start.
pub(super) fn search_domain(text: &str) -> Option<String> {
    if text.len() > 253 {
        return Some(too_long(253));
    }
    let label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let label = label.strip_prefix('_').unwrap_or(label).as_bytes();
        label.iter().all(|byte| plain(*byte) || matches!(byte, b'-' | b'_'))
            && [label.first(), label.last()].iter().all(|end| end.is_some_and(|byte| plain(*byte)))
    };
    (!text.split('.').all(label)).then(|| {
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com')".to_owned()
    })
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// What is wrong with the key of a label or annotation, if anything.
pub(crate) fn qualified_name(text: &str) -> Option<String> {
    let name = match text.split_once('/') {
        Some((prefix, name)) => {
            if prefix.is_empty() {
                return Some("prefix part must be non-empty".to_owned());
            }
            if let Some(message) = dns_subdomain(prefix) {
                return Some(format!("prefix part {message}"));
            }
            name
        }
        None => text,
    };
    if name.is_empty() {
        return Some("name part must be non-empty".to_owned());
    }
    if name.len() > 63 {
        return Some(format!("name part {}", too_long(63)));
    }
    (!is_qualified(name)).then(|| {
        "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc')".to_owned()
    })
}

fn is_qualified(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    text.bytes().all(inner) && ends(text.as_bytes().first()) && ends(text.as_bytes().last())
}

/// What is wrong with the value of a label, if anything.
pub(super) fn label_value(text: &str) -> Option<String> {
    if text.len() > 63 {
        return Some(too_long(63));
    }
    (!text.is_empty() && !is_qualified(text)).then(|| {
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345')".to_owned()
    })
}

/// What is wrong with the name of an environment variable, if anything.
pub(super) fn env_name(text: &str) -> Option<String> {
    // Relaxed since 1.34: any printable ASCII but the equals sign.
    (!text.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=')).then(|| {
        "a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()
    })
}

/// What is wrong with a key of a ConfigMap or Secret, if anything.
pub(super) fn config_key(text: &str) -> Option<String> {
    if text.len() > 253 {
        return Some(too_long(253));
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
        return Some("a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name')".to_owned());
    }
    // Such a key would leave the folder that it becomes a file of.
    if text == "." || text == ".." {
        return Some(format!("must not be '{text}'"));
    }
    text.starts_with("..").then(|| "must not start with '..'".to_owned())
}

/// What is wrong with the name of a port, if anything.
pub(super) fn port_name(text: &str) -> Option<String> {
    let message = if text.len() > 15 {
        return Some(too_long(15));
    } else if !text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"
    } else if !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        "must contain at least one letter (a-z)"
    } else if text.contains("--") {
        "must not contain consecutive hyphens"
    } else if text.starts_with('-') || text.ends_with('-') {
        "must not begin or end with a hyphen"
    } else {
        return None;
    };
    Some(message.to_owned())
}

/// What is wrong with the number of a port, if anything.
pub(super) fn port_number(port: i32) -> Option<String> {
    (!(1..=65535).contains(&port)).then(|| "must be between 1 and 65535, inclusive".to_owned())
}

/// An address, in whose octets zeros may lead as they may for the API server (`ParseIPSloppy`): they are decimal all the same.
pub(crate) fn ip(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let octet = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse::<u8>().ok()).flatten();
    let octets: Vec<u8> = text.split('.').map(octet).collect::<Option<_>>()?;
    <[u8; 4]>::try_from(octets).ok().map(IpAddr::from)
}

/// What is wrong with an address, if anything.
pub(super) fn address(text: &str) -> Option<String> {
    ip(text).is_none().then(|| "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned())
}

/// What is wrong with a relative path that must not leave its folder, if anything.
pub(super) fn local_path(path: &str) -> Option<String> {
    if path.starts_with('/') {
        return Some("must be a relative path".to_owned());
    }
    no_backsteps(path)
}

/// Whether a path has a part `..`.
pub(super) fn no_backsteps(path: &str) -> Option<String> {
    path.split('/').any(|part| part == "..").then(|| "must not contain '..'".to_owned())
}

/// What is wrong with a UID, if anything: it becomes the name of folders and cgroups.
pub(super) fn uid(text: &str) -> Option<String> {
    if text.len() > 128 {
        return Some(too_long(128));
    }
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (!text.bytes().all(inner) || !text.starts_with(|c: char| c.is_ascii_alphanumeric())).then(|| {
        "must consist of alphanumeric characters, '-', '_' or '.', and must start with an alphanumeric character, since it names folders on the node".to_owned()
    })
}

/// What is wrong with the name of a sysctl, if anything.
pub(super) fn sysctl(text: &str) -> Option<String> {
    if text.len() > 253 {
        return Some(too_long(253));
    }
    let part = |part: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
        let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.bytes().all(inner) && part.starts_with(ends) && part.ends_with(ends)
    };
    (!text.split(['.', '/']).all(part)).then(|| {
        "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$".to_owned()
    })
}

pub(super) fn too_long(bytes: usize) -> String {
    format!("must be no more than {bytes} characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_a_folder_are_refused() {
        for name in ["", ".", "..", "a/b", "a\0b", "../x"] {
            assert!(uid(name).is_some() || name.is_empty(), "{name:?}");
            assert!(config_key(name).is_some(), "{name:?}");
            assert!(dns_label(name).is_some(), "{name:?}");
            assert!(dns_subdomain(name).is_some(), "{name:?}");
        }
    }

    #[test]
    fn forms() {
        assert_eq!(qualified_name("a.b/c_D.e"), None);
        assert!(qualified_name("A.b/c").is_some() && qualified_name("/c").is_some() && qualified_name("a/").is_some());
        assert_eq!(label_value(""), None);
        for domain in ["foo._tcp.example.com", "a_b.c", "a"] {
            assert_eq!(search_domain(domain), None, "{domain}");
        }
        for domain in ["-foo.com", "foo.com-", "__foo.com", "foo_.com", "_", "a..b", "A.b", "a b", ""] {
            assert!(search_domain(domain).is_some(), "{domain}");
        }
        for (text, expected) in [("010.0.0.08", "10.0.0.8"), ("::1", "::1"), ("1.2.3.4", "1.2.3.4")] {
            assert_eq!(ip(text).map(|ip| ip.to_string()).as_deref(), Some(expected), "{text}");
        }
        for text in ["", "1.2.3", "1.2.3.+4", "1.2.3.0256", "1.2.3.4.5", "1..2.3", "here"] {
            assert_eq!(ip(text), None, "{text}");
        }
        assert_eq!(port_name("http-2"), None);
        assert!(port_name("80").is_some() && port_name("a--b").is_some());
        assert_eq!(local_path("a/..b/c"), None);
        assert!(local_path("a/../b").is_some() && local_path("/a").is_some());
        assert_eq!(sysctl("net.ipv4.conf/eth0"), None);
        assert!(sysctl("net..x").is_some());
    }
}
