//! What comes of `certificates.k8s.io`: the node's own certificate in time, and in projected volumes certificates of pods' own
//! and ClusterTrustBundles.

use std::{fs, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::bed::{
    cluster::until,
    node::{MOMENT, Node},
    pods::{SLEEP, container, id, pod, restarts, sleeper, waiting, with},
    signer::{Signed, Signer, version_of},
};

/// A pod that mounts a projected volume of these sources at `/c`.
fn projected(name: &str, sources: Value) -> Value {
    let app = with(container("app", SLEEP), json!({"volumeMounts": [{"name": "c", "mountPath": "/c"}]}));
    pod(name, json!([app]), json!({"volumes": [{"name": "c", "projected": {"sources": sources}}]}))
}

/// Signs the requests of the node's pods as they come, until there were that many.
fn sign(node: &Node, signer: &Signer, times: usize) -> Vec<Signed> {
    let mut signed = Vec::new();
    node.told(|| {
        until(&format!("{times} requests"), || {
            for request in signer.open(&node.cluster) {
                signed.push(signer.sign(&node.cluster, request));
            }
            (signed.len() >= times).then_some(())
        })
    });
    assert_eq!(signed.len(), times);
    signed
}

/// A certificate's source of that key type, with the files that hold it.
fn source(signer: &Signer, key_type: &str, files: Value) -> Value {
    let fields = json!({"signerName": signer.name, "keyType": key_type, "maxExpirationSeconds": 3600});
    json!({"podCertificate": with(fields, files)})
}

/// Key and chain of a pod's files; the files may be the same.
fn files(node: &Node, pod: &str, key: &str, chain: &str) -> (String, String) {
    let (_, key) = node.sh(pod, &format!("cat /c/{key}"));
    let (_, chain) = node.sh(pod, &format!("cat /c/{chain}"));
    let at = chain.find("-----BEGIN CERTIFICATE").unwrap_or_else(|| panic!("no certificate in {chain}"));
    (key[..key.find("-----BEGIN CERTIFICATE").unwrap_or(key.len())].to_owned(), chain[at..].to_owned())
}

#[test]
fn cluster_certificates_are_made_for_pods_and_replaced() {
    let Some(mut node) = Node::new(&[], false) else { return };
    let Some(signer) = Signer::new(&node.cluster, &format!("test.longshore.dev/{}", node.name)) else { return };
    let key = node.folder.join("key");
    fs::write(&key, [7; 32]).unwrap();
    node.flags.push(format!("--state-key-file={}", key.display()));
    node.begin();
    node.wait_node_ready();
    let mut sources = vec![source(
        &signer,
        "ECDSAP256",
        json!({"keyPath": "own.key", "certificateChainPath": "own.crt", "userAnnotations": {"x.test/y": "z"}}),
    )];
    // 1.34 had no annotations yet.
    if node.cluster.minor() < 35 {
        sources[0]["podCertificate"].as_object_mut().unwrap().remove("userAnnotations");
    }
    let types = ["ED25519", "ECDSAP384", "RSA3072"];
    sources.extend(types.map(|of| source(&signer, of, json!({"credentialBundlePath": format!("{of}.pem")}))));
    let a = node.bind(&projected("a", json!(sources)));
    node.wait_api("a", "waits", |pod| waiting(pod, "app") == "ContainerCreating");
    node.wait_api_event("a", "FailedMount", "credential bundle is not issued yet");

    let signed = sign(&node, &signer, 4);
    node.wait_api_ready("a");
    let account = node.cluster.get(&node.one("serviceaccounts", "default")).unwrap();
    for Signed { request, .. } in &signed {
        assert_eq!(request["metadata"]["ownerReferences"][0]["uid"], a["metadata"]["uid"]);
        let wanted = json!({"podName": "a", "podUID": a["metadata"]["uid"], "nodeName": node.name,
            "nodeUID": node.object()["metadata"]["uid"], "serviceAccountName": "default",
            "serviceAccountUID": account["metadata"]["uid"], "maxExpirationSeconds": 3600});
        for (field, value) in wanted.as_object().unwrap() {
            assert_eq!(request["spec"][field], *value, "{field}");
        }
    }
    let annotated = |one: &&Signed| one.request["spec"]["unverifiedUserAnnotations"]["x.test/y"] == "z";
    assert_eq!(signed.iter().filter(annotated).count(), usize::from(node.cluster.minor() >= 35));
    let bundles = types.map(|of| format!("{of}.pem"));
    let pairs = [("own.key", "own.crt")].into_iter().chain(bundles.iter().map(|file| (&**file, &**file)));
    for (key, chain) in pairs.clone() {
        let (key, found) = files(&node, "a", key, chain);
        let signed = signed.iter().find(|one| one.chain == found).unwrap_or_else(|| panic!("{chain}: {found}"));
        assert!(signed.is_of(&key), "the key beside {chain} is another one's");
    }
    assert_eq!(node.sh("a", "grep -c ' /c tmpfs' /proc/mounts; stat -Lc %a /c/own.key").1, "1\n644\n");

    // Another agent that was left no certificates asks for others, and they take the place of these as the pod runs.
    node.stop();
    let state = node.root().join("state");
    for file in fs::read_dir(&state).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(11).any(|part| part == b"PRIVATE KEY"), "a key is kept in the clear");
    }
    fs::remove_dir_all(&state).unwrap();
    node.begin();
    let again = sign(&node, &signer, 4);
    for (key, chain) in pairs {
        // Two files are read one after the other, and both may be replaced in between.
        let fits = || {
            let (key, found) = files(&node, "a", key, chain);
            again.iter().any(|one| one.chain == found && one.is_of(&key)).then_some(())
        };
        node.told(|| until(&format!("{chain} with its key"), fits));
    }
    assert_eq!(restarts(&node.wait_api_ready("a"), "app"), 0);
    // One that still has them asks for none.
    node.stop();
    node.begin();
    node.wait_node_ready();
    std::thread::sleep(MOMENT);
    assert!(signer.open(&node.cluster).is_empty());
}

#[test]
fn cluster_certificates_that_are_denied_say_so() {
    let Some(node) = Node::start() else { return };
    let Some(signer) = Signer::new(&node.cluster, &format!("test.longshore.dev/{}", node.name)) else { return };
    let sources = json!([source(&signer, "ECDSAP521", json!({"credentialBundlePath": "bundle.pem"}))]);
    node.bind(&projected("a", sources));
    let request = node.told(|| until("a request", || signer.open(&node.cluster).pop()));
    signer.deny(&node.cluster, &request);
    node.wait_api_event("a", "Denied", "was denied, reason=\\\"UnsupportedKeyType\\\"");
    node.wait_api_event("a", "FailedMount", "PodCertificateRequest was permanently denied");
    assert_eq!(waiting(&node.wait_api("a", "there", |pod| !pod.is_null()), "app"), "ContainerCreating");
}

/// A certificate to trust.
fn anchor() -> String {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

/// ClusterTrustBundles are nobody's namespace's: this removes them at the end.
struct Bundles<'a> {
    node: &'a Node,
    path: String,
    version: String,
    names: Vec<String>,
}

impl Bundles<'_> {
    fn create(&mut self, name: &str, signer: Option<&str>, labels: Value, pem: &str) {
        let object = json!({"apiVersion": self.version, "kind": "ClusterTrustBundle",
            "metadata": {"name": name, "labels": labels}, "spec": {"signerName": signer, "trustBundle": pem}});
        self.node.cluster.create(&self.path, &object);
        self.names.push(name.to_owned());
    }
}

impl Drop for Bundles<'_> {
    fn drop(&mut self) {
        for name in &self.names {
            self.node.cluster.delete(&format!("{}/{name}", self.path), None);
        }
    }
}

#[test]
fn cluster_certificates_to_trust_by_name_and_by_signer() {
    let Some(node) = Node::start() else { return };
    let group = version_of(&node.cluster, "clustertrustbundles").expect("the API server serves ClusterTrustBundles");
    let version = group.strip_prefix("/apis/").unwrap().to_owned();
    let mut bundles = Bundles { node: &node, path: format!("{group}/clustertrustbundles"), version, names: Vec::new() };
    let [plain, one, two, other, later] = std::array::from_fn(|_| anchor());
    let (signer, of) = (format!("test.longshore.dev/{}", node.name), format!("test.longshore.dev:{}:", node.name));
    bundles.create(&node.name, None, json!({}), &plain);
    bundles.create(&format!("{of}one"), Some(&signer), json!({"live": "yes"}), &format!("words\n{one}"));
    bundles.create(&format!("{of}two"), Some(&signer), json!({"live": "yes"}), &format!("{two}{one}"));
    bundles.create(&format!("{of}other"), Some(&signer), json!({"live": "no"}), &other);
    node.bind(&projected(
        "a",
        json!([
            {"clusterTrustBundle": {"name": node.name, "path": "named.pem"}},
            {"clusterTrustBundle": {"signerName": signer, "path": "signers.pem", "labelSelector": {"matchLabels": {"live": "yes"}}}},
            {"clusterTrustBundle": {"signerName": signer, "path": "none.pem", "optional": true}},
        ]),
    ));
    node.bind(&projected("b", json!([{"clusterTrustBundle": {"name": format!("{}-late", node.name), "path": "x"}}])));
    node.wait_api_ready("a");
    assert_eq!(node.sh("a", "cat /c/named.pem").1, plain);
    // The order is nobody's to rely on, but each is there once.
    let (_, joined) = node.sh("a", "cat /c/signers.pem");
    assert!([format!("{one}{two}"), format!("{two}{one}")].contains(&joined), "{joined}");
    assert_eq!(node.sh("a", "wc -c < /c/none.pem").1, "0\n");

    node.wait_api_event("b", "FailedMount", "-late");
    bundles.create(&format!("{}-late", node.name), None, json!({}), &later);
    node.wait_api_ready("b");
    node.cluster.patch(&format!("{}/{}", bundles.path, node.name), &json!({"spec": {"trustBundle": later}}));
    node.told(|| until("the change", || (node.sh("a", "cat /c/named.pem").1 == later).then_some(())));
    assert_eq!(restarts(&node.wait_api_ready("a"), "app"), 0);
}

/// A certificate and key of the node as the cluster signs them, that has lived for two hours and ends in five minutes.
fn old_identity(node: &Node) -> String {
    let [authority, key] =
        ["ca.crt", "ca.key"].map(|name| fs::read_to_string(node.cluster.folder.join("pki").join(name)).unwrap());
    let issuer = Issuer::from_ca_cert_pem(&authority, KeyPair::from_pem(&key).unwrap()).unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{}", node.name));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - Duration::from_secs(2 * 3600);
    params.not_after = now + Duration::from_secs(300);
    let key = KeyPair::generate().unwrap();
    params.signed_by(&key, &issuer).unwrap().pem() + &key.serialize_pem()
}

/// Whether a node came to the API server by this certificate, as its audit log has it.
fn is_shown(node: &Node, pem: &str) -> bool {
    let leaf = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let digest: String = Sha256::digest(&leaf).iter().map(|byte| format!("{byte:02x}")).collect();
    // While it is rotated there is none.
    let log = fs::read_to_string(node.cluster.folder.join("audit.log")).unwrap_or_default();
    log.contains(&format!("X509SHA256={digest}"))
}

/// What the cluster signs lives for a year; in its place the node is given one that is due.
#[test]
fn cluster_certificates_of_the_node_itself_are_renewed_in_time() {
    let Some(mut node) = Node::start() else { return };
    node.bind(&sleeper("a"));
    let before = node.wait_api_ready("a");
    node.stop();
    let current = node.folder.join("pki/kubelet-client-current.pem");
    let old = old_identity(&node);
    fs::write(&current, &old).unwrap();
    node.begin();
    let is_other = || fs::read_to_string(&current).ok().filter(|now| !now.is_empty() && *now != old);
    let renewed = node.told(|| until("another certificate", is_other));
    // The node itself asked for it, by what it had, and it is the cluster's.
    let user = format!("system:node:{}", node.name);
    let requests = node.cluster.list("/apis/certificates.k8s.io/v1/certificatesigningrequests");
    let signed = requests.iter().filter(|request| {
        request["spec"]["username"] == user.as_str()
            && request["spec"]["signerName"] == "kubernetes.io/kube-apiserver-client-kubelet"
    });
    let chains = signed.filter_map(|request| STANDARD.decode(request["status"]["certificate"].as_str()?).ok());
    let chains: Vec<String> = chains.map(|chain| String::from_utf8(chain).unwrap()).collect();
    assert!(chains.iter().any(|chain| renewed.contains(chain.trim())), "{chains:?}");
    // Whoever looks at the API server's side sees it.
    node.told(|| until("it is used", || is_shown(&node, &renewed).then_some(())));
    node.wait_node_ready();
    let now = node.wait_api_ready("a");
    assert_eq!((id(&now, "app"), restarts(&now, "app")), (id(&before, "app"), 0));
}
