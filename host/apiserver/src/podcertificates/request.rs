//! A PodCertificateRequest: in which version the API server has them, how one is made, and what has become of one. Must
//! not decide when to ask.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use jiff::Timestamp;
use k8s_openapi::Metadata;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use longshore_core::pod::PodId;
use longshore_core::ports::cluster::ApiError;
use serde::Deserialize;
use serde_json::{Value, json};

use super::keys::{Key, KeyError};
use crate::cluster::server_version;
use crate::pem;
use crate::requests::{JSON, Requests, encoded};

const PLURAL: &str = "podcertificaterequests";
/// The first minor version of the API server that takes an empty PKCS #10 request for the proof.
const TAKES_STUBS: u32 = 36;

/// The version of the API that is asked, and which proof it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Served {
    version: &'static str,
    stub: bool,
}

impl Served {
    /// Asks the API server what it has; the error is for the pod's owner.
    pub(super) async fn ask(requests: &Requests) -> Result<Self, String> {
        let known = |error: ApiError| format!("while looking for PodCertificateRequests: {error}");
        let Some(version) = requests.certificates_version(PLURAL).await.map_err(known)? else {
            return Err(
                "the API server does not serve PodCertificateRequests: it needs --feature-gates=PodCertificateRequest=true \
                 and --runtime-config=certificates.k8s.io/v1beta1=true"
                    .to_owned(),
            );
        };
        let stub = match version {
            "v1" => true,
            "v1beta1" => server_version(requests).await.map_err(known)?.1 >= TAKES_STUBS,
            _ => false,
        };
        Ok(Self { version, stub })
    }

    /// The path of the list of all of them.
    pub(super) fn list(self) -> String {
        format!("/apis/certificates.k8s.io/{}/{PLURAL}", self.version)
    }
}

/// Who asks for which certificate.
pub(super) struct Wanted {
    pub(super) pod: PodId,
    pub(super) node: String,
    pub(super) account: String,
    pub(super) source: v1::PodCertificateProjection,
}

impl Wanted {
    /// Makes a request; gives its name.
    pub(super) async fn submit(&self, requests: &Requests, served: Served, key: &Key) -> Result<String, SubmitError> {
        let Wanted { pod, node, account, source } = self;
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{}", encoded(&pod.namespace), encoded(account));
        let found: v1::ServiceAccount = requests.get(&path).await.map_err(SubmitError::Account)?;
        let found_node: v1::Node =
            requests.get(&format!("/api/v1/nodes/{}", encoded(node))).await.map_err(SubmitError::Node)?;
        let mut spec = json!({
            "signerName": source.signer_name,
            "podName": pod.name, "podUID": pod.uid,
            "serviceAccountName": account, "serviceAccountUID": found.metadata.uid,
            "nodeName": node, "nodeUID": found_node.metadata.uid,
        });
        if let Some(seconds) = source.max_expiration_seconds {
            spec["maxExpirationSeconds"] = json!(seconds);
        }
        if let Some(annotations) = source.user_annotations.as_ref().filter(|all| !all.is_empty()) {
            spec["unverifiedUserAnnotations"] = json!(annotations);
        }
        if served.stub {
            spec["stubPKCS10Request"] = json!(STANDARD.encode(key.stub_request()?));
        } else {
            spec["pkixPublicKey"] = json!(STANDARD.encode(key.public()));
            spec["proofOfPossession"] = json!(STANDARD.encode(key.proof(&pod.uid)?));
        }
        let object = json!({
            "apiVersion": format!("certificates.k8s.io/{}", served.version), "kind": "PodCertificateRequest",
            "metadata": {"generateName": "req-", "namespace": pod.namespace, "ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid}]},
            "spec": spec,
        });
        let (group, namespace) = (served.version, encoded(&pod.namespace));
        let path = format!("/apis/certificates.k8s.io/{group}/namespaces/{namespace}/{PLURAL}");
        let made: Value = requests.send(Method::POST, &path, JSON, &object).await.map_err(SubmitError::Api)?;
        Ok(made["metadata"]["name"].as_str().unwrap_or_default().to_owned())
    }
}

/// Why no request was made.
#[derive(Debug, thiserror::Error)]
pub(super) enum SubmitError {
    #[error("while fetching service account: {0}")]
    Account(ApiError),
    #[error("while getting node object: {0}")]
    Node(ApiError),
    #[error("while creating on API: {0}")]
    Api(ApiError),
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// What is read of a request; the same in all versions.
#[derive(Deserialize)]
pub(super) struct Request {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    conditions: Vec<Condition>,
    certificate_chain: String,
    begin_refresh_at: Option<Time>,
    not_after: Option<Time>,
}

impl k8s_openapi::Resource for Request {
    const API_VERSION: &'static str = "certificates.k8s.io/v1beta1";
    const GROUP: &'static str = "certificates.k8s.io";
    const KIND: &'static str = "PodCertificateRequest";
    const VERSION: &'static str = "v1beta1";
    const URL_PATH_SEGMENT: &'static str = PLURAL;
    type Scope = k8s_openapi::NamespaceResourceScope;
}

impl Metadata for Request {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// What has become of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Pending,
    Issued(Issued),
    Refused(Refused),
}

/// A certificate as the signer gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Issued {
    /// The chain, PEM, without anything between and in its blocks.
    pub(super) chain: String,
    pub(super) refresh: Timestamp,
    pub(super) expires: Timestamp,
}

/// A final word against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// `Denied` or `Failed`.
    pub(super) condition: &'static str,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Request {
    /// What its signer says; an error where that is no certificate.
    pub(super) fn verdict(&self) -> Result<Verdict, String> {
        for condition in &self.status.conditions {
            let refused = |condition_type| Refused {
                condition: condition_type,
                reason: condition.reason.clone(),
                message: condition.message.clone(),
            };
            match condition.type_.as_str() {
                "Denied" => return Ok(Verdict::Refused(refused("Denied"))),
                "Failed" => return Ok(Verdict::Refused(refused("Failed"))),
                "Issued" => return self.issued().map(Verdict::Issued),
                _ => {}
            }
        }
        Ok(Verdict::Pending)
    }

    fn issued(&self) -> Result<Issued, String> {
        let blocks = pem::decode(&self.status.certificate_chain, None);
        let chain: String = blocks.iter().map(|der| pem::encode("CERTIFICATE", der)).collect();
        match (&self.status.begin_refresh_at, &self.status.not_after) {
            (Some(refresh), Some(expires)) if !chain.is_empty() => {
                Ok(Issued { chain, refresh: refresh.0, expires: expires.0 })
            }
            _ => Err("it is issued, but without certificateChain, beginRefreshAt or notAfter".to_owned()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn verdict(status: Value) -> Result<Verdict, String> {
        serde_json::from_value::<Request>(json!({"metadata": {}, "status": status})).unwrap().verdict()
    }

    fn condition(type_: &str) -> Value {
        json!([{"type": type_, "status": "True", "reason": "Why", "message": "so",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}])
    }

    #[test]
    fn verdicts() {
        assert_eq!(verdict(json!({})), Ok(Verdict::Pending));
        for word in ["Denied", "Failed"] {
            let refused = Refused { condition: word, reason: "Why".to_owned(), message: "so".to_owned() };
            assert_eq!(verdict(json!({"conditions": condition(word)})), Ok(Verdict::Refused(refused)));
        }
        let block = pem::encode("CERTIFICATE", b"x");
        let issued = json!({"conditions": condition("Issued"), "certificateChain": format!("a\n{block}b\n{block}"),
            "beginRefreshAt": "2026-01-01T01:00:00Z", "notAfter": "2026-01-02T00:00:00Z"});
        let Ok(Verdict::Issued(found)) = verdict(issued) else { panic!("it is issued") };
        assert_eq!(found.chain, format!("{block}{block}"));
        assert!(verdict(json!({"conditions": condition("Issued")})).is_err());
    }
}
