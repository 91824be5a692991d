//! A client's or server's certificate with its key, as PEM, and what it says of itself.

use std::fmt;
use std::path::Path;

use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Why PEM is no certificate with its key.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct PairError(String);

/// Whose a certificate is, and when it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateDates {
    /// Its common name.
    pub common_name: String,
    /// From when it holds.
    pub not_before: Timestamp,
    /// Until when it holds.
    pub not_after: Timestamp,
}

impl fmt::Display for CertificateDates {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}, from {} until {}", self.common_name, self.not_before, self.not_after)
    }
}

impl CertificateDates {
    /// What the first certificate of PEM says; the end is the earliest of all of them.
    pub(crate) fn of(pem: &[u8]) -> Result<Self, PairError> {
        let mut found: Option<Self> = None;
        for der in CertificateDer::pem_slice_iter(pem) {
            let der = der.map_err(|error| PairError(format!("its PEM is broken ({error})")))?;
            let (_, parsed) = x509_parser::parse_x509_certificate(&der)
                .map_err(|error| PairError(format!("it is not an X.509 certificate ({error})")))?;
            let at = |seconds| Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
            let (begins, ends) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
            let common_name = parsed.subject().iter_common_name().find_map(|name| name.as_str().ok());
            match &mut found {
                None => {
                    let common_name = common_name.unwrap_or_default().to_owned();
                    found = Some(Self { common_name, not_before: at(begins), not_after: at(ends) });
                }
                Some(first) => first.not_after = first.not_after.min(at(ends)),
            }
        }
        found.ok_or_else(|| PairError("it holds no certificate".to_owned()))
    }

    /// Whether it has ended.
    pub fn is_over(&self, now: Timestamp) -> bool {
        now > self.not_after
    }
}

/// A chain and its key.
#[derive(Clone)]
pub(crate) struct Pair {
    /// The chain as PEM.
    pub(crate) chain: String,
    /// The key as PEM.
    pub(crate) key: String,
    pub(crate) dates: CertificateDates,
}

impl fmt::Debug for Pair {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Pair({})", self.dates)
    }
}

/// The PEM blocks of a text whose label holds that word.
fn blocks(pem: &str, label: &str) -> String {
    let mut out = String::new();
    let mut within = false;
    for line in pem.lines() {
        if line.starts_with("-----BEGIN ") {
            within = line.contains(label) && !line.contains("REQUEST");
        }
        if within {
            out.push_str(line);
            out.push('\n');
        }
        if line.starts_with("-----END ") {
            within = false;
        }
    }
    out
}

impl Pair {
    /// A chain and a key that belong together.
    pub(crate) fn of(chain: &[u8], key: &[u8]) -> Result<Self, PairError> {
        let dates = CertificateDates::of(chain)?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(chain).filter_map(Result::ok).collect();
        let der = PrivateKeyDer::from_pem_slice(key).map_err(|_| PairError("its key is not a PEM key".to_owned()))?;
        let provider = rustls::crypto::ring::default_provider();
        rustls::sign::CertifiedKey::from_der(certificates, der, &provider)
            .map_err(|error| PairError(format!("certificate and key do not belong together ({error})")))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Self { chain: blocks(&text(chain), "CERTIFICATE"), key: blocks(&text(key), "PRIVATE KEY"), dates })
    }

    /// From one file that holds both, as the kubelet keeps them.
    pub(crate) fn read(path: &Path) -> Result<Self, PairError> {
        let pem = std::fs::read(path).map_err(|error| PairError(format!("it cannot be read ({error})")))?;
        Self::of(&pem, &pem)
    }
}
