//! A signer of pods' certificates, as somebody may run one beside a cluster: it looks when it is told to, and issues what
//! its name is on.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{CertificateParams, DnType, Issuer, KeyPair, PublicKeyData as _, SubjectPublicKeyInfo};
use serde_json::{Value, json};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

use super::cluster::Cluster;

/// How long certificates are good: no less is allowed.
const HOUR: Duration = Duration::from_secs(3600);

/// See the module.
pub(crate) struct Signer {
    /// Its name, as pods write it.
    pub(crate) name: String,
    issuer: Issuer<'static, KeyPair>,
    /// The list of its API, in the version that the server has.
    path: String,
}

/// A certificate that was issued.
pub(crate) struct Signed {
    pub(crate) request: Value,
    pub(crate) chain: String,
    /// The key that it is for, as SubjectPublicKeyInfo.
    public: Vec<u8>,
}

impl Signed {
    /// Whether this private key, PEM, is the certificate's.
    pub(crate) fn is_of(&self, key: &str) -> bool {
        KeyPair::from_pem(key).unwrap().subject_public_key_info() == self.public
    }
}

/// The newest version of `certificates.k8s.io` that has these.
pub(crate) fn version_of(cluster: &Cluster, plural: &str) -> Option<String> {
    ["v1", "v1beta1", "v1alpha1"].into_iter().map(|version| format!("/apis/certificates.k8s.io/{version}")).find(
        |group| {
            let resources = cluster.get(group).map_or(Value::Null, |group| group["resources"].clone());
            resources.as_array().is_some_and(|all| all.iter().any(|one| one["name"] == plural))
        },
    )
}

impl Signer {
    /// `None`, and a line that says so, where the cluster knows no such requests.
    pub(crate) fn new(cluster: &Cluster, name: &str) -> Option<Signer> {
        let Some(path) = version_of(cluster, "podcertificaterequests") else {
            assert!(cluster.minor() < 34, "{} does not serve PodCertificateRequests", cluster.version);
            crate::bed::skip(&format!("Kubernetes {} has no PodCertificateRequests", cluster.version));
            return None;
        };
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = Issuer::new(params, KeyPair::generate().unwrap());
        Some(Signer { name: name.to_owned(), issuer, path })
    }

    fn one(&self, request: &Value) -> String {
        let (namespace, name) = (&request["metadata"]["namespace"], &request["metadata"]["name"]);
        let (namespace, name) = (namespace.as_str().unwrap(), name.as_str().unwrap());
        format!("{}/namespaces/{namespace}/podcertificaterequests/{name}", self.path)
    }

    /// The requests to it that nobody has decided yet.
    pub(crate) fn open(&self, cluster: &Cluster) -> Vec<Value> {
        let all = cluster.list(&format!("{}/podcertificaterequests", self.path));
        let open = |one: &Value| one["status"]["conditions"].as_array().is_none_or(Vec::is_empty);
        all.into_iter().filter(|one| one["spec"]["signerName"] == self.name.as_str() && open(one)).collect()
    }

    fn decide(&self, cluster: &Cluster, request: &Value, condition: &str, reason: &str, mut status: Value) {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        status["conditions"] = json!([{"type": condition, "status": "True", "reason": reason,
            "message": "said the signer", "lastTransitionTime": now}]);
        cluster.patch(&format!("{}/status", self.one(request)), &json!({"status": status}));
    }

    /// Issues a certificate for an hour.
    pub(crate) fn sign(&self, cluster: &Cluster, request: Value) -> Signed {
        let bytes = |field: &str| STANDARD.decode(request["spec"][field].as_str().unwrap_or_default()).unwrap();
        // The API server has checked that the asking one has the key.
        let stub = bytes("stubPKCS10Request");
        let public = match X509CertificationRequest::from_der(&stub) {
            Ok((_, stub)) => stub.certification_request_info.subject_pki.raw.to_vec(),
            Err(_) => bytes("pkixPublicKey"),
        };
        let begin = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let at = |seconds: u64| time::OffsetDateTime::from_unix_timestamp((begin + seconds) as i64).unwrap();
        let told = |seconds: u64| {
            let at = jiff::Timestamp::from_second((begin + seconds) as i64).unwrap();
            at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
        };
        let mut params = CertificateParams::new(vec!["pod.test".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (at(0), at(HOUR.as_secs()));
        let key = SubjectPublicKeyInfo::from_der(&public).unwrap();
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        let status = json!({"certificateChain": format!("words before\n{chain}"), "notBefore": told(0),
            "beginRefreshAt": told(HOUR.as_secs() / 2), "notAfter": told(HOUR.as_secs())});
        self.decide(cluster, &request, "Issued", "Fine", status);
        Signed { request, chain, public }
    }

    /// Refuses one for good.
    pub(crate) fn deny(&self, cluster: &Cluster, request: &Value) {
        self.decide(cluster, request, "Denied", "UnsupportedKeyType", json!({}));
    }
}
