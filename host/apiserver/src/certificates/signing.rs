//! Asking the API server to sign a certificate: the CertificateSigningRequest, its name, and the wait for it. It must
//! not decide when, nor keep what it gets.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::Method;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use longshore_core::ports::cluster::ApiError;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData, SanType};
use serde_json::json;
use sha2::{Digest, Sha512_256};
use x509_parser::prelude::FromDer;

use crate::credentials::{Pair, PairError};
use crate::requests::{JSON, Requests, encoded};

const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// As long as the kubelet waits for one request (`client-go/util/certificate/csr`).
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// How often is looked, at first and at most.
const POLL: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// After this the log says what is waited for, then ever more rarely.
const SAY: Duration = Duration::from_secs(10);

/// The signer of a node's client certificate.
pub(crate) const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// The signer of a node's server certificate.
pub(crate) const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// The group of nodes.
const GROUP: &str = "system:nodes";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The API server did not take the request.
    #[error("the API server does not take the certificate signing request; {advice}")]
    Api {
        /// What to do.
        advice: String,
        /// What it said.
        #[source]
        source: ApiError,
    },
    /// Somebody, or the signer, refused it.
    #[error(
        "certificate signing request {name} was {verdict}: {message}; when it should be granted, \
         `kubectl delete csr {name}` and it is asked for again"
    )]
    Refused {
        /// Its name.
        name: String,
        /// `denied` or `failed`.
        verdict: &'static str,
        /// Reason and message.
        message: String,
    },
    /// Nobody decided in time.
    #[error("certificate signing request {name} was not {lacks} within {} minutes; {advice}", LIMIT.as_secs() / 60)]
    Undecided {
        /// Its name.
        name: String,
        /// `approved` or `signed`.
        lacks: &'static str,
        /// What to do.
        advice: String,
    },
    /// The request was deleted meanwhile.
    #[error("certificate signing request {name} was deleted before it was signed")]
    Deleted {
        /// Its name.
        name: String,
    },
    /// One of that name asks for something else.
    #[error("certificate signing request {name} exists and asks for something else; `kubectl delete csr {name}`")]
    Taken {
        /// Its name.
        name: String,
    },
    /// What was signed is not what was asked for.
    #[error("what the API server signed as {name} cannot be used: {reason}")]
    Unusable {
        /// The request's name.
        name: String,
        /// Why.
        reason: PairError,
    },
    /// The key or the request cannot be made.
    #[error("a key or certificate request cannot be made: {0}")]
    Make(String),
}

/// What to ask for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) signer: &'static str,
    pub(crate) common_name: String,
    pub(crate) dns: BTreeSet<String>,
    pub(crate) ips: BTreeSet<IpAddr>,
    /// Named by what it asks for, so that it is found again after a crash; else the API server names it.
    pub(crate) by_digest: bool,
}

impl Wanted {
    fn usages(&self) -> [&'static str; 2] {
        ["digital signature", if self.signer == SERVING_SIGNER { "server auth" } else { "client auth" }]
    }

    /// The request as PEM.
    fn pem(&self, key: &KeyPair) -> Result<String, SigningError> {
        let make = |error: rcgen::Error| SigningError::Make(error.to_string());
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, GROUP);
        params.distinguished_name.push(DnType::CommonName, self.common_name.as_str());
        for name in &self.dns {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().map_err(make)?));
        }
        params.subject_alt_names.extend(self.ips.iter().map(|ip| SanType::IpAddress(*ip)));
        params.serialize_request(key).and_then(|request| request.pem()).map_err(make)
    }
}

/// The kubelet's name for a request: the same key and wishes always have the same (`digestedName` in
/// `pkg/kubelet/certificate/bootstrap/bootstrap.go`).
pub(crate) fn digest_name(public_key: &[u8], common_name: &str, organizations: &[&str], usages: &[&str]) -> String {
    let mut hash = Sha512_256::new();
    let texts = organizations.iter().chain(usages).map(|text| text.as_bytes());
    for part in [public_key, common_name.as_bytes()].into_iter().chain(texts) {
        // The delimiter is not in the alphabet, so no two inputs make the same stream.
        hash.update(URL_SAFE_NO_PAD.encode(part));
        hash.update(b"|");
    }
    format!("node-csr-{}", URL_SAFE_NO_PAD.encode(hash.finalize()))
}

/// Whether a request is for that key and signer.
fn is_for(csr: &CertificateSigningRequest, signer: &str, public_key: &[u8]) -> bool {
    let same_key = x509_parser::pem::parse_x509_pem(&csr.spec.request.0).is_ok_and(|(_, pem)| {
        x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents)
            .is_ok_and(|(_, request)| request.certification_request_info.subject_pki.raw == public_key)
    });
    csr.spec.signer_name == signer && same_key
}

/// What has become of a request.
#[derive(Debug, PartialEq)]
enum Verdict {
    Signed(Vec<u8>),
    Refused(&'static str, String),
    Approved,
    Open,
}

fn verdict(csr: &CertificateSigningRequest) -> Verdict {
    let Some(status) = &csr.status else { return Verdict::Open };
    let conditions = status.conditions.as_deref().unwrap_or_default();
    for (type_, word) in [("Denied", "denied"), ("Failed", "failed")] {
        if let Some(condition) = conditions.iter().find(|condition| condition.type_ == type_) {
            let parts = [condition.reason.as_deref(), condition.message.as_deref()];
            let text = parts.into_iter().flatten().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(": ");
            return Verdict::Refused(word, if text.is_empty() { "no reason was given".to_owned() } else { text });
        }
    }
    match &status.certificate {
        Some(certificate) if !certificate.0.is_empty() => Verdict::Signed(certificate.0.clone()),
        _ if conditions.iter().any(|condition| condition.type_ == "Approved") => Verdict::Approved,
        _ => Verdict::Open,
    }
}

fn advice(name: &str, approved: bool) -> String {
    match approved {
        true => "it is approved, but not signed: is kube-controller-manager running, with --cluster-signing-cert-file?"
            .to_owned(),
        false => format!("approve it: `kubectl certificate approve {name}`"),
    }
}

async fn submit(requests: &Requests, wanted: &Wanted, key: &KeyPair) -> Result<String, SigningError> {
    let public_key = key.subject_public_key_info();
    let usages = wanted.usages();
    let metadata = match wanted.by_digest {
        true => json!({"name": digest_name(&public_key, &wanted.common_name, &[GROUP], &usages)}),
        false => json!({"generateName": "csr-"}),
    };
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": metadata,
        "spec": {
            "request": STANDARD.encode(wanted.pem(key)?), "signerName": wanted.signer, "usages": usages,
        },
    });
    let refused = |source: ApiError| SigningError::Api {
        advice: match &source {
            ApiError::Forbidden { .. } => {
                "its credentials must be accepted and may need the role system:node-bootstrapper; a bootstrap token \
                 may have expired: `kubeadm token create --print-join-command` makes one"
            }
            .to_owned(),
            _ => "it is tried again".to_owned(),
        },
        source,
    };
    match requests.send::<CertificateSigningRequest, _>(Method::POST, PATH, JSON, &object).await {
        Ok(made) => Ok(made.metadata.name.unwrap_or_default()),
        Err(ApiError::Conflict { exists: true, .. }) if wanted.by_digest => {
            let name = digest_name(&public_key, &wanted.common_name, &[GROUP], &usages);
            let found: CertificateSigningRequest =
                requests.get(&format!("{PATH}/{}", encoded(&name))).await.map_err(refused)?;
            match is_for(&found, wanted.signer, &public_key) {
                true => Ok(name),
                false => Err(SigningError::Taken { name }),
            }
        }
        Err(error) => Err(refused(error)),
    }
}

/// Asks for a certificate and waits for it.
pub(crate) async fn sign(requests: &Requests, wanted: &Wanted, key: &KeyPair) -> Result<Pair, SigningError> {
    let name = submit(requests, wanted, key).await?;
    tracing::info!(csr = name, signer = wanted.signer, "asked for a certificate");
    let begun = Instant::now();
    let (mut pause, mut say, mut approved) = (POLL.0, SAY, false);
    loop {
        match requests.get::<CertificateSigningRequest>(&format!("{PATH}/{}", encoded(&name))).await {
            Ok(csr) => match verdict(&csr) {
                Verdict::Signed(chain) => {
                    let unusable = |reason| SigningError::Unusable { name: name.clone(), reason };
                    let pair = Pair::of(&chain, key.serialize_pem().as_bytes()).map_err(unusable)?;
                    tracing::info!(csr = name, certificate = %pair.dates, "a certificate was signed");
                    return Ok(pair);
                }
                Verdict::Refused(verdict, message) => return Err(SigningError::Refused { name, verdict, message }),
                Verdict::Approved => approved = true,
                Verdict::Open => {}
            },
            Err(ApiError::NotFound { .. }) => return Err(SigningError::Deleted { name }),
            Err(error) if error.is_passing() => {}
            Err(source) => {
                return Err(SigningError::Api { advice: format!("{name} cannot be read"), source });
            }
        }
        if begun.elapsed() >= LIMIT {
            let lacks = if approved { "signed" } else { "approved" };
            return Err(SigningError::Undecided { lacks, advice: advice(&name, approved), name });
        }
        if begun.elapsed() >= say {
            tracing::info!(csr = name, waited = ?begun.elapsed(), "waiting for a certificate: {}", advice(&name, approved));
            say *= 3;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL.1);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn csr(value: serde_json::Value) -> CertificateSigningRequest {
        let mut whole = json!({"metadata": {}, "spec": {"request": "", "signerName": "s"}});
        whole["status"] = value;
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn verdicts() {
        assert_eq!(verdict(&csr(json!({}))), Verdict::Open);
        let approved = json!({"conditions": [{"type": "Approved", "status": "True"}]});
        assert_eq!(verdict(&csr(approved)), Verdict::Approved);
        let denied = json!({"conditions": [{"type": "Denied", "status": "True", "reason": "No", "message": "way"}]});
        assert_eq!(verdict(&csr(denied)), Verdict::Refused("denied", "No: way".to_owned()));
        let signed = json!({"certificate": "eA==", "conditions": [{"type": "Approved", "status": "True"}]});
        assert_eq!(verdict(&csr(signed)), Verdict::Signed(b"x".to_vec()));
    }

    proptest! {
        #[test]
        fn a_name_stands_for_what_is_asked(key in any::<[u8; 8]>(), name in "[a-z:]{0,6}", other in "[a-z:]{0,6}") {
            let of = |name: &str, group: &str| digest_name(&key, name, &[group], &["client auth"]);
            prop_assert_eq!(of(&name, "g"), of(&name, "g"));
            prop_assert_eq!(of(&name, "g") == of(&other, "g"), name == other);
            prop_assert_ne!(digest_name(&key, "ab", &["c"], &[]), digest_name(&key, "a", &["bc"], &[]));
            prop_assert_eq!(of(&name, "g").len(), "node-csr-".len() + 43);
        }
    }
}
