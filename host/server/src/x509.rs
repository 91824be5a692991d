//! What certificates say and prove that rustls reads no further: those of X.509's first version, which `openssl x509 -req` makes where
//! it is told of no extensions; clients' that are CAs themselves, as a self-signed one is; and whether a CA may sign, of which
//! rustls asks nothing. As Go's `crypto/x509` has it, by which the kubelet goes. It must not know who may do what.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use rustls::{CertificateError, DigitallySignedStruct, Error};
use x509_parser::asn1_rs::Any;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Version};
use x509_parser::{parse_x509_certificate, x509::X509Name};

const UNREADABLE: Error = Error::InvalidCertificate(CertificateError::BadEncoding);
const WRONG_SIGNATURE: Error = Error::InvalidCertificate(CertificateError::BadSignature);

/// A certificate's public key; `None` for what is no certificate.
pub(crate) fn public_key<'a>(certificate: &'a CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'a>> {
    let (_, parsed) = parse_x509_certificate(certificate).ok()?;
    Some(SubjectPublicKeyInfoDer::from(parsed.tbs_certificate.subject_pki.raw))
}

/// Whether who shows a certificate in a handshake of TLS 1.3 holds its key.
///
/// # Errors
/// When that is not so.
pub(crate) fn verify_tls13(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let key = public_key(certificate).ok_or(UNREADABLE)?;
    verify_tls13_signature_with_raw_key(message, &key, signed, algorithms)
}

/// The same for TLS 1.2, where rustls has nothing for keys alone.
///
/// # Errors
/// When that is not so.
pub(crate) fn verify_tls12(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    match verify_tls12_signature(message, certificate, signed, algorithms) {
        Err(Error::InvalidCertificate(reason)) if reason != CertificateError::BadSignature => {}
        verified => return verified,
    }
    let (_, parsed) = parse_x509_certificate(certificate).map_err(|_| UNREADABLE)?;
    let of_scheme = algorithms.mapping.iter().filter(|(scheme, _)| *scheme == signed.scheme).flat_map(|(_, all)| *all);
    match is_signed(of_scheme.copied(), parsed.public_key(), message, signed.signature()) {
        true => Ok(HandshakeSignatureValid::assertion()),
        false => Err(WRONG_SIGNATURE),
    }
}

/// Whether one of these algorithms is the key's, and verifies.
fn is_signed(
    mut algorithms: impl Iterator<Item = &'static dyn SignatureVerificationAlgorithm>,
    key: &SubjectPublicKeyInfo<'_>,
    message: &[u8],
    signature: &[u8],
) -> bool {
    let of_key = Any::from_der(key.raw).and_then(|(_, whole)| Any::from_der(whole.data));
    let Ok((_, of_key)) = of_key else { return false };
    algorithms.any(|algorithm| {
        algorithm.public_key_alg_id().as_ref() == of_key.data
            && algorithm.verify_signature(&key.subject_public_key.data, message, signature).is_ok()
    })
}

/// Whether others' certificates may be signed by one of `--client-ca-file`.
pub(crate) fn may_sign(authority: &CertificateDer<'_>) -> bool {
    parse_x509_certificate(authority).is_ok_and(|(_, authority)| is_authority(&authority))
}

fn is_authority(certificate: &X509Certificate<'_>) -> bool {
    let signs = match certificate.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.key_cert_sign()),
        Err(_) => false,
    };
    let says_so = certificate.version().0 < X509Version::V3.0 || certificate.is_ca();
    says_so && signs && is_for_clients(certificate)
}

/// Until when the authorities count that a chain may lead to, in seconds of Unix: the latest of those that count now.
pub(crate) fn authority_ends(chain: &[CertificateDer<'_>], authorities: &[CertificateDer<'_>]) -> Option<i64> {
    let is_issuer = |name: &X509Name<'_>| {
        chain.iter().any(|one| parse_x509_certificate(one).is_ok_and(|(_, one)| one.issuer() == name))
    };
    let authorities = authorities.iter().filter_map(|one| parse_x509_certificate(one).ok());
    let count = authorities.filter(|(_, one)| one.validity().is_valid() && is_issuer(one.subject()));
    count.map(|(_, one)| one.validity().not_after.timestamp()).max()
}

/// Whether a client's certificate that rustls does not judge counts now: one that is itself among `authorities`, or one of the
/// first version or of a CA that one of them has signed.
pub(crate) fn is_good(
    client: &CertificateDer<'_>,
    authorities: &[CertificateDer<'_>],
    algorithms: &WebPkiSupportedAlgorithms,
) -> bool {
    let Ok((_, parsed)) = parse_x509_certificate(client) else { return false };
    if !parsed.validity().is_valid() || !is_for_clients(&parsed) {
        return false;
    }
    if authorities.contains(client) {
        return true;
    }
    (parsed.version() == X509Version::V1 || parsed.is_ca())
        && authorities.iter().any(|authority| is_issued_by(client, &parsed, authority, algorithms))
}

fn is_issued_by(
    client: &CertificateDer<'_>,
    parsed: &X509Certificate<'_>,
    authority: &CertificateDer<'_>,
    algorithms: &WebPkiSupportedAlgorithms,
) -> bool {
    let Ok((_, authority)) = parse_x509_certificate(authority) else { return false };
    // What names it may sign, and how long a chain below it may be, rustls would judge.
    let is_plain = matches!(authority.name_constraints(), Ok(None))
        && (!parsed.is_ca()
            || authority
                .basic_constraints()
                .is_ok_and(|basic| basic.is_none_or(|basic| basic.value.path_len_constraint.is_none())));
    if authority.subject() != parsed.issuer()
        || !is_plain
        || !is_authority(&authority)
        || !authority.validity().is_valid()
        || parsed.tbs_certificate.signature != parsed.signature_algorithm
    {
        return false;
    }
    let of_signature = Any::from_der(client)
        .and_then(|(_, whole)| Any::from_der(whole.data))
        .and_then(|(rest, _)| Any::from_der(rest))
        .map(|(_, algorithm)| algorithm.data.to_vec());
    let Ok(of_signature) = of_signature else { return false };
    let fitting = algorithms.all.iter().filter(|algorithm| algorithm.signature_alg_id().as_ref() == of_signature);
    let (message, signature) = (parsed.tbs_certificate.as_ref(), &parsed.signature_value.data);
    is_signed(fitting.copied(), authority.public_key(), message, signature)
}

/// Whether nothing in a certificate says that it is not for clients, or must be understood and is not.
fn is_for_clients(certificate: &X509Certificate<'_>) -> bool {
    certificate.extensions().iter().all(|extension| match extension.parsed_extension() {
        ParsedExtension::ExtendedKeyUsage(usage) => usage.any || usage.client_auth,
        ParsedExtension::BasicConstraints(_)
        | ParsedExtension::KeyUsage(_)
        | ParsedExtension::NameConstraints(_)
        | ParsedExtension::SubjectAlternativeName(_) => true,
        ParsedExtension::ParseError { .. } => false,
        _ => !extension.critical,
    })
}
