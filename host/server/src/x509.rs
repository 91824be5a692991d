//! What certificates say and prove that rustls reads no further: those of X.509's first version, which `openssl x509 -req` makes where
//! it is told of no extensions, and clients' that are CAs themselves, as a self-signed one is. The kubelet takes all of them. It
//! must not know who may do what.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::{CertificateError, DigitallySignedStruct, Error};
use x509_parser::asn1_rs::Any;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::parse_x509_certificate;
use x509_parser::prelude::FromDer;

const NONE: Error = Error::InvalidCertificate(CertificateError::BadEncoding);
const BAD: Error = Error::InvalidCertificate(CertificateError::BadSignature);

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
    let key = public_key(certificate).ok_or(NONE)?;
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
        Err(Error::InvalidCertificate(_)) => {}
        verified => return verified,
    }
    let (_, parsed) = parse_x509_certificate(certificate).map_err(|_| NONE)?;
    let key = parsed.public_key();
    let of_key = Any::from_der(key.raw).ok().and_then(|(_, whole)| Any::from_der(whole.data).ok());
    let (_, of_key) = of_key.ok_or(NONE)?;
    let fitting = algorithms.mapping.iter().filter(|(scheme, _)| *scheme == signed.scheme).flat_map(|(_, all)| *all);
    let mut fitting = fitting.filter(|algorithm| algorithm.public_key_alg_id().as_ref() == of_key.data);
    let verifies = fitting
        .any(|algorithm| algorithm.verify_signature(&key.subject_public_key.data, message, signed.signature()).is_ok());
    if verifies { Ok(HandshakeSignatureValid::assertion()) } else { Err(BAD) }
}

/// Whether one of `authorities` itself has signed a client's certificate that says nothing against its use now.
pub(crate) fn is_issued_by_one_of(client: &CertificateDer<'_>, authorities: &[CertificateDer<'_>]) -> bool {
    let Ok((_, client)) = parse_x509_certificate(client) else { return false };
    client.validity().is_valid() && is_for_clients(&client) && {
        let mut authorities = authorities.iter().filter_map(|one| parse_x509_certificate(one).ok());
        authorities.any(|(_, authority)| {
            authority.subject() == client.issuer()
                // What may not be signed by it is rustls' to judge.
                && !matches!(authority.name_constraints(), Ok(Some(_)) | Err(_))
                && client.verify_signature(Some(authority.public_key())).is_ok()
        })
    }
}

fn is_for_clients(certificate: &X509Certificate<'_>) -> bool {
    certificate.extensions().iter().all(|extension| match extension.parsed_extension() {
        ParsedExtension::ExtendedKeyUsage(usage) => usage.any || usage.client_auth,
        ParsedExtension::BasicConstraints(_)
        | ParsedExtension::KeyUsage(_)
        | ParsedExtension::SubjectAlternativeName(_) => true,
        _ => !extension.critical,
    })
}
