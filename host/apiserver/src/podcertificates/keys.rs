//! A pod's key, and the proofs that we have it. Must not know of requests. Private keys never leave this room but as PEM
//! for the pod.
//!
//! As `generateKeyAndProof` of `pkg/kubelet/podcertificate`: PKCS #8 as Go writes it, an empty PKCS #10 request. ring signs
//! where it can; it has neither P-521 nor SHA-256 for P-384, and makes no RSA keys.

use getrandom::SysRng;
use p384::ecdsa::signature::Signer;
use p384::ecdsa::signature::hazmat::PrehashSigner;
use p521::elliptic_curve::Generate;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA256,
    RsaEncoding, RsaKeyPair,
};
use rsa::pkcs8::{EncodePrivateKey, EncodePublicKey};
use sha2::{Digest, Sha256};

use crate::pem;

/// Why there is no key, or no proof.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    /// A `keyType` of a newer API.
    #[error("unknown key type {0:?}")]
    Unknown(String),
    /// No randomness, or a key that does not pass its own checks.
    #[error("while generating keypair: {0}")]
    Failed(String),
}

fn failed(error: impl ToString) -> KeyError {
    KeyError::Failed(error.to_string())
}

/// A private key.
pub(crate) struct Key {
    /// PKCS #8, DER.
    private: Vec<u8>,
    /// SubjectPublicKeyInfo, DER.
    public: Vec<u8>,
    signs: Signs,
}

enum Signs {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
    P384(p384::ecdsa::SigningKey),
    P521(p521::ecdsa::SigningKey),
    Rsa(RsaKeyPair),
}

/// Object identifiers, whole.
mod oid {
    pub(super) const ED25519: &[u8] = &[0x06, 3, 0x2b, 0x65, 0x70];
    pub(super) const EC: &[u8] = &[0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
    pub(super) const P256: &[u8] = &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    pub(super) const ECDSA_SHA256: &[u8] = &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    pub(super) const ECDSA_SHA384: &[u8] = &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
    pub(super) const ECDSA_SHA512: &[u8] = &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4];
    pub(super) const RSA_SHA256: &[u8] = &[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11];
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const NULL: &[u8] = &[0x05, 0];

/// An element of DER.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let bytes = &bytes[length.leading_zeros() as usize / 8..];
        out.push(0x80 | bytes.len() as u8);
        out.extend_from_slice(bytes);
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

fn bits(bytes: &[u8]) -> Vec<u8> {
    der(BIT_STRING, &[&[0], bytes])
}

impl Key {
    /// Makes one of a pod's `keyType`. Seconds of work for RSA.
    pub(crate) fn generate(key_type: &str) -> Result<Self, KeyError> {
        match key_type {
            "ED25519" => Self::ed25519(),
            "ECDSAP256" => Self::p256(),
            "ECDSAP384" => {
                let secret = p384::SecretKey::try_generate_from_rng(&mut SysRng).map_err(failed)?;
                let private = secret.to_pkcs8_der().map_err(failed)?.as_bytes().to_vec();
                let public = secret.public_key().to_public_key_der().map_err(failed)?.into_vec();
                Ok(Self { private, public, signs: Signs::P384(secret.into()) })
            }
            "ECDSAP521" => {
                let secret = p521::SecretKey::try_generate_from_rng(&mut SysRng).map_err(failed)?;
                let private = secret.to_pkcs8_der().map_err(failed)?.as_bytes().to_vec();
                let public = secret.public_key().to_public_key_der().map_err(failed)?.into_vec();
                Ok(Self { private, public, signs: Signs::P521(secret.into()) })
            }
            "RSA3072" => Self::rsa(3072),
            "RSA4096" => Self::rsa(4096),
            other => Err(KeyError::Unknown(other.to_owned())),
        }
    }

    /// Without the public key behind it, which OpenSSL before 3 does not read.
    fn ed25519() -> Result<Self, KeyError> {
        let seed: [u8; 32] = ring::rand::generate(&SystemRandom::new()).map_err(failed)?.expose();
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(failed)?;
        let algorithm = der(SEQUENCE, &[oid::ED25519]);
        let inner = der(OCTET_STRING, &[&seed]);
        let private = der(SEQUENCE, &[&der(INTEGER, &[&[0]]), &algorithm, &der(OCTET_STRING, &[&inner])]);
        let public = der(SEQUENCE, &[&algorithm, &bits(pair.public_key().as_ref())]);
        Ok(Self { private, public, signs: Signs::Ed25519(pair) })
    }

    fn p256() -> Result<Self, KeyError> {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_ASN1_SIGNING);
        let private = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(failed)?.as_ref().to_vec();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, &private, &random).map_err(failed)?;
        let algorithm = der(SEQUENCE, &[oid::EC, oid::P256]);
        let public = der(SEQUENCE, &[&algorithm, &bits(pair.public_key().as_ref())]);
        Ok(Self { private, public, signs: Signs::P256(pair) })
    }

    fn rsa(bits: usize) -> Result<Self, KeyError> {
        let made = rsa::PrivateKey::new(&mut SysRng, bits).map_err(failed)?;
        let private = made.to_pkcs8_der().map_err(failed)?.as_bytes().to_vec();
        let public = made.as_ref().to_public_key_der().map_err(failed)?.into_vec();
        let pair = RsaKeyPair::from_pkcs8(&private).map_err(failed)?;
        Ok(Self { private, public, signs: Signs::Rsa(pair) })
    }

    /// The private key, PEM.
    pub(crate) fn pem(&self) -> String {
        pem::encode("PRIVATE KEY", &self.private)
    }

    /// SubjectPublicKeyInfo, DER.
    pub(crate) fn public(&self) -> &[u8] {
        &self.public
    }

    /// An empty PKCS #10 request, DER: the proof that API servers want from 1.36 on.
    pub(crate) fn stub_request(&self) -> Result<Vec<u8>, KeyError> {
        let (version, name, attributes) = (der(INTEGER, &[&[0]]), der(SEQUENCE, &[]), der(0xa0, &[]));
        let info = der(SEQUENCE, &[&version, &name, &self.public, &attributes]);
        let (algorithm, signature) = match &self.signs {
            Signs::Ed25519(pair) => (der(SEQUENCE, &[oid::ED25519]), pair.sign(&info).as_ref().to_vec()),
            Signs::P256(pair) => (der(SEQUENCE, &[oid::ECDSA_SHA256]), p256_signature(pair, &info)?),
            Signs::P384(key) => {
                let signature: p384::ecdsa::DerSignature = key.try_sign(&info).map_err(failed)?;
                (der(SEQUENCE, &[oid::ECDSA_SHA384]), signature.as_bytes().to_vec())
            }
            Signs::P521(key) => {
                let signature: p521::ecdsa::DerSignature = key.try_sign(&info).map_err(failed)?;
                (der(SEQUENCE, &[oid::ECDSA_SHA512]), signature.as_bytes().to_vec())
            }
            Signs::Rsa(pair) => {
                (der(SEQUENCE, &[oid::RSA_SHA256, NULL]), rsa_signature(pair, &RSA_PKCS1_SHA256, &info)?)
            }
        };
        Ok(der(SEQUENCE, &[&info, &algorithm, &bits(&signature)]))
    }

    /// A signature over the pod's UID: the proof that API servers want before 1.36. Of ECDSA and RSA over its SHA-256.
    pub(crate) fn proof(&self, uid: &str) -> Result<Vec<u8>, KeyError> {
        let digest = Sha256::digest(uid);
        Ok(match &self.signs {
            Signs::Ed25519(pair) => pair.sign(uid.as_bytes()).as_ref().to_vec(),
            Signs::P256(pair) => p256_signature(pair, uid.as_bytes())?,
            Signs::P384(key) => {
                let signature: p384::ecdsa::Signature = key.sign_prehash(&digest).map_err(failed)?;
                signature.to_der().as_bytes().to_vec()
            }
            Signs::P521(key) => {
                let signature: p521::ecdsa::Signature = key.sign_prehash(&digest).map_err(failed)?;
                signature.to_der().as_bytes().to_vec()
            }
            Signs::Rsa(pair) => rsa_signature(pair, &RSA_PSS_SHA256, uid.as_bytes())?,
        })
    }
}

fn p256_signature(pair: &EcdsaKeyPair, message: &[u8]) -> Result<Vec<u8>, KeyError> {
    Ok(pair.sign(&SystemRandom::new(), message).map_err(failed)?.as_ref().to_vec())
}

fn rsa_signature(pair: &RsaKeyPair, padding: &'static dyn RsaEncoding, message: &[u8]) -> Result<Vec<u8>, KeyError> {
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(padding, &SystemRandom::new(), message, &mut signature).map_err(failed)?;
    Ok(signature)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use p521::ecdsa::signature::Verifier;
    use p521::ecdsa::signature::hazmat::PrehashVerifier;
    use p521::pkcs8::{DecodePrivateKey, DecodePublicKey};
    use ring::signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256,
        RSA_PSS_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
    };
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::prelude::FromDer;

    use super::*;

    /// What a request and a proof are to be checked with.
    type Pair = (&'static dyn VerificationAlgorithm, &'static dyn VerificationAlgorithm);

    /// The request's signed part and its signature, once its form is right.
    fn request(key: &Key) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let stub = key.stub_request().unwrap();
        let (rest, request) = X509CertificationRequest::from_der(&stub).unwrap();
        let info = &request.certification_request_info;
        assert!(rest.is_empty() && info.subject.iter_rdn().next().is_none() && info.attributes().is_empty());
        assert_eq!(info.subject_pki.raw, key.public());
        let point = info.subject_pki.subject_public_key.data.to_vec();
        (info.raw.to_vec(), request.signature_value.data.to_vec(), point)
    }

    #[test]
    fn both_proofs_of_all_that_ring_knows() {
        let checks: [(&str, Pair); 5] = [
            ("ED25519", (&ED25519, &ED25519)),
            ("ECDSAP256", (&ECDSA_P256_SHA256_ASN1, &ECDSA_P256_SHA256_ASN1)),
            ("ECDSAP384", (&ECDSA_P384_SHA384_ASN1, &ECDSA_P384_SHA256_ASN1)),
            ("RSA3072", (&RSA_PKCS1_2048_8192_SHA256, &RSA_PSS_2048_8192_SHA256)),
            ("RSA4096", (&RSA_PKCS1_2048_8192_SHA256, &RSA_PSS_2048_8192_SHA256)),
        ];
        for (key_type, (of_request, of_proof)) in checks {
            let key = Key::generate(key_type).unwrap();
            let (info, signature, point) = request(&key);
            UnparsedPublicKey::new(of_request, &point).verify(&info, &signature).expect(key_type);
            let proof = key.proof("uid").unwrap();
            UnparsedPublicKey::new(of_proof, &point).verify(b"uid", &proof).expect(key_type);
            assert!(UnparsedPublicKey::new(of_proof, &point).verify(b"other", &proof).is_err(), "{key_type}");
            assert!(key.pem().starts_with("-----BEGIN PRIVATE KEY-----\n"));
            // What the pod's libraries would do with it.
            drop(
                rustls::crypto::ring::sign::any_supported_type(
                    &rustls::pki_types::PrivateKeyDer::try_from(key.private.clone()).unwrap(),
                )
                .expect(key_type),
            );
        }
    }

    #[test]
    fn both_proofs_of_p521() {
        let key = Key::generate("ECDSAP521").unwrap();
        let (info, signature, _) = request(&key);
        let public = p521::PublicKey::from_public_key_der(key.public()).unwrap();
        assert_eq!(p521::SecretKey::from_pkcs8_der(&key.private).unwrap().public_key(), public);
        let verifying = p521::ecdsa::VerifyingKey::from(public);
        let of = |bytes: &[u8]| p521::ecdsa::Signature::from_der(bytes).unwrap();
        verifying.verify(&info, &of(&signature)).unwrap();
        let proof = of(&key.proof("uid").unwrap());
        verifying.verify_prehash(&Sha256::digest("uid"), &proof).unwrap();
        assert!(verifying.verify_prehash(&Sha256::digest("other"), &proof).is_err());
    }

    #[test]
    fn a_key_type_that_is_not_known_is_named() {
        let Err(error) = Key::generate("RSA1024") else { panic!("it was made") };
        assert_eq!(error.to_string(), r#"unknown key type "RSA1024""#);
    }
}
