//! Names of TLS versions and cipher suites, as Go (and so the kubelet) writes them.

use crate::names::nearest;

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// 1.0 or 1.1, which nothing here speaks.
    Older,
    /// 1.2
    #[default]
    Tls12,
    /// 1.3
    Tls13,
}

impl Version {
    /// Its name; of those that nothing here speaks, the oldest that is spoken.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Version::Older | Version::Tls12 => "VersionTLS12",
            Version::Tls13 => "VersionTLS13",
        }
    }
}

/// Suites that rustls has.
const OFFERED: [&str; 9] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];

/// Suites that the kubelet takes and rustls does not have.
const OTHERS: [&str; 13] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
];

/// Names of the suites that can be used.
pub(crate) fn names() -> &'static [&'static str] {
    &OFFERED
}

/// A suite by its name.
pub(crate) fn cipher(text: &str) -> Result<&'static str, String> {
    // Two names without their end, from before Go named them in full.
    let full = match text {
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" | "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" => format!("{text}_SHA256"),
        _ => text.to_owned(),
    };
    let mut known = OFFERED.into_iter().chain(OTHERS);
    known.find(|name| *name == full).ok_or_else(|| {
        let hint = nearest(text, OFFERED).map_or(String::new(), |near| format!("; did you mean {near}?"));
        format!("{text:?} is not a known cipher suite; known: {}{hint}", OFFERED.join(", "))
    })
}

/// Those that can be used, and the rest.
pub(crate) fn offered(suites: Vec<&'static str>) -> (Vec<&'static str>, Vec<&'static str>) {
    suites.into_iter().partition(|suite| OFFERED.contains(suite))
}

/// A version by its name.
pub(crate) fn version(text: &str) -> Result<Version, String> {
    match text {
        "VersionTLS10" | "VersionTLS11" => Ok(Version::Older),
        "VersionTLS12" => Ok(Version::Tls12),
        "VersionTLS13" => Ok(Version::Tls13),
        _ => Err(format!("expected VersionTLS12 or VersionTLS13, got {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_by_name() {
        assert_eq!(cipher("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"), Ok(OFFERED[8]));
        let (yes, no) = offered(vec![OFFERED[0], OTHERS[0]]);
        assert_eq!((yes, no), (vec![OFFERED[0]], vec![OTHERS[0]]));
        let problem = cipher("TLS_AES_128_GCM_SHA25").expect_err("no such suite");
        assert!(problem.ends_with("did you mean TLS_AES_128_GCM_SHA256?"), "{problem}");
    }

    #[test]
    fn versions_are_in_order() {
        assert!(version("VersionTLS11") < version("VersionTLS12"));
        assert!(version("1.2").is_err());
    }
}
