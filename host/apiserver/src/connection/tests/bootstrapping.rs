//! First certificates and later ones, against a server that signs as Kubernetes does.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::server::Seen;
use super::*;

/// How long what is waited for may take.
const LIMIT: Duration = Duration::from_secs(20);

/// What the server keeps of requests.
#[derive(Default)]
struct Csrs {
    kept: BTreeMap<String, Value>,
    /// Requests are signed after they were looked at so often; denied where negative.
    patience: i32,
    looks: i32,
    /// For how many seconds certificates hold, and since how many.
    life: (i64, i64),
}

fn answer(csrs: &Mutex<Csrs>, ca: &Ca, seen: &Seen) -> (u16, String) {
    let mut csrs = csrs.lock().unwrap();
    let Some((verb, path)) = seen.what.split_once(' ') else { return (400, String::new()) };
    if path == "/version" {
        return (200, VERSION.to_owned());
    }
    if verb == "POST" {
        let mut object: Value = serde_json::from_str(&seen.body).unwrap();
        let name = match object["metadata"]["name"].as_str() {
            Some(name) => name.to_owned(),
            None => format!("csr-{}", csrs.kept.len()),
        };
        if csrs.kept.contains_key(&name) {
            return (409, json!({"reason": "AlreadyExists", "message": "it exists", "code": 409}).to_string());
        }
        object["metadata"]["name"] = json!(name);
        csrs.kept.insert(name, object.clone());
        return (201, object.to_string());
    }
    let name = path.rsplit('/').next().unwrap();
    let (patience, life) = (csrs.patience, csrs.life);
    csrs.looks += 1;
    let looks = csrs.looks;
    let Some(object) = csrs.kept.get_mut(name) else { return (404, String::new()) };
    if patience < 0 {
        object["status"] = json!({"conditions": [{"type": "Denied", "status": "True", "message": "not you"}]});
    } else if looks >= patience {
        let pem = STANDARD.decode(object["spec"]["request"].as_str().unwrap()).unwrap();
        let mut request = rcgen::CertificateSigningRequestParams::from_pem(std::str::from_utf8(&pem).unwrap()).unwrap();
        let now = std::time::SystemTime::now();
        let seconds = |seconds: i64| std::time::Duration::from_secs(u64::try_from(seconds).unwrap());
        request.params.not_before = (now - seconds(life.1)).into();
        request.params.not_after = (now + seconds(life.0)).into();
        let signed = request.signed_by(&ca.issuer).unwrap().pem();
        object["status"] = json!({
            "certificate": STANDARD.encode(signed), "conditions": [{"type": "Approved", "status": "True"}],
        });
    }
    (200, object.to_string())
}

struct Bed {
    folder: tempfile::TempDir,
    server: Server,
    csrs: Arc<Mutex<Csrs>>,
    settings: Settings,
}

impl Bed {
    /// Waits until somebody has looked at a request.
    async fn looked_at(&self) {
        let looked = async {
            while self.csrs.lock().unwrap().looks < 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, looked).await.expect("somebody looks at the request");
    }
}

async fn bed(patience: i32, life: (i64, i64)) -> Bed {
    let folder = tempfile::tempdir().unwrap();
    let ca = Arc::new(Ca::new("ca"));
    let own = ca.sign("server", &["127.0.0.1"], 10);
    let csrs = Arc::new(Mutex::new(Csrs { patience, life, ..Csrs::default() }));
    let (kept, signer) = (csrs.clone(), ca.clone());
    let server = Server::start(any(), Some((&own, &ca.pem)), move |seen| answer(&kept, &signer, seen)).await;
    let address = format!("https://{}", server.address);
    let bootstrap = kubeconfig(folder.path(), "bootstrap", &address, &ca.pem, "{token: abcdef.0123456789abcdef}");
    let mut settings = settings(folder.path(), Some(folder.path().join("kubeconfig")));
    settings.bootstrap_kubeconfig = Some(bootstrap);
    Bed { folder, server, csrs, settings }
}

#[tokio::test]
async fn a_first_certificate_is_got_kept_and_used() {
    let bed = bed(3, (3600, 60)).await;
    let connection = Connection::open(bed.settings.clone()).await.unwrap();
    ask(&connection).await.unwrap();
    assert_eq!(bed.server.last().who, "system:node:n1");
    assert_eq!(bed.server.times("POST "), 1);
    let seen = bed.server.seen.lock().unwrap()[0].clone();
    assert_eq!(seen.who, "Bearer abcdef.0123456789abcdef");
    let asked: Value = serde_json::from_str(&seen.body).unwrap();
    assert!(asked["metadata"]["name"].as_str().unwrap().starts_with("node-csr-"));
    assert_eq!(asked["spec"]["signerName"], "kubernetes.io/kube-apiserver-client-kubelet");
    assert_eq!(asked["spec"]["usages"], json!(["digital signature", "client auth"]));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let pki = bed.folder.path().join("pki");
    assert_eq!(mode(&pki.join("kubelet-client-current.pem")), 0o600);
    assert_eq!(mode(&bed.folder.path().join("kubeconfig")), 0o600);
    assert!(pki.join("kubelet-client-current.pem").is_symlink());
    assert!(!pki.join("kubelet-client.key.tmp").exists());
    // The next start asks for nothing.
    drop(connection);
    let connection = Connection::open(bed.settings.clone()).await.unwrap();
    ask(&connection).await.unwrap();
    assert_eq!(bed.server.times("POST "), 1);
}

#[tokio::test]
async fn a_crash_while_waiting_finds_the_same_request() {
    let bed = bed(i32::MAX, (3600, 60)).await;
    let opened = tokio::spawn(Connection::open(bed.settings.clone()));
    bed.looked_at().await;
    opened.abort();
    assert!(bed.folder.path().join("pki/kubelet-client.key.tmp").exists());
    bed.csrs.lock().unwrap().patience = 0;
    let connection = Connection::open(bed.settings.clone()).await.unwrap();
    ask(&connection).await.unwrap();
    assert_eq!(bed.csrs.lock().unwrap().kept.len(), 1);
    assert_eq!(bed.server.last().who, "system:node:n1");
}

#[tokio::test]
async fn a_denied_request_is_no_end() {
    let bed = bed(-1, (3600, 60)).await;
    let opened = tokio::spawn(Connection::open(bed.settings.clone()));
    bed.looked_at().await;
    {
        let mut csrs = bed.csrs.lock().unwrap();
        csrs.kept.clear();
        csrs.patience = 0;
    }
    tokio::time::timeout(LIMIT, opened).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn both_certificates_are_renewed() {
    // 90 s of a life of 100 s are over, so it is time; the next one holds long.
    let bed = bed(0, (10, 90)).await;
    let mut settings = bed.settings.clone();
    settings.rotate_server_certificates = true;
    let connection = Connection::open(settings).await.unwrap();
    bed.csrs.lock().unwrap().life = (3600, 60);
    let stop = CancellationToken::new();
    let names = watch::Sender::new(ServingNames::default());
    let kept = {
        let (connection, names, stop) = (connection.clone(), names.subscribe(), stop.clone());
        tokio::spawn(async move { connection.keep(names, stop).await })
    };
    let mut status = connection.status();
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1000);
    let renewed = status.wait_for(|status| status.certificate.as_ref().is_some_and(|dates| dates.not_after > soon));
    tokio::time::timeout(LIMIT, renewed).await.unwrap().unwrap();
    ask(&connection).await.unwrap();
    assert_eq!(bed.server.last().who, "system:node:n1");

    let mut serving = connection.serving();
    assert!(serving.borrow().is_none());
    let says = |ip: &str| ServingNames { dns: ["n1".to_owned()].into(), ips: [ip.parse().unwrap()].into() };
    names.send_replace(says("10.0.0.1"));
    let first = tokio::time::timeout(LIMIT, serving.wait_for(Option::is_some)).await;
    let first = first.unwrap().unwrap().clone().unwrap();
    assert!(says("10.0.0.1").covered_by(&first.0) && first.1.contains("PRIVATE KEY"));
    names.send_replace(says("10.0.0.2"));
    let next = serving.wait_for(|pair| pair.as_ref().is_some_and(|pair| pair.0 != first.0));
    let next = tokio::time::timeout(LIMIT, next).await.unwrap().unwrap().clone().unwrap();
    assert!(says("10.0.0.2").covered_by(&next.0));
    assert!(bed.folder.path().join("pki/kubelet-server-current.pem").is_symlink());
    let last = bed.server.seen.lock().unwrap().iter().rfind(|seen| seen.what.starts_with("POST")).unwrap().clone();
    let asked: Value = serde_json::from_str(&last.body).unwrap();
    assert_eq!(asked["spec"]["signerName"], "kubernetes.io/kubelet-serving");
    assert_eq!(asked["spec"]["usages"], json!(["digital signature", "server auth"]));
    stop.cancel();
    tokio::time::timeout(LIMIT, kept).await.unwrap().unwrap();
}

#[tokio::test]
async fn nothing_to_join_with_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path(), Some(folder.path().join("kubeconfig")));
    settings.bootstrap_kubeconfig = Some(folder.path().join("bootstrap"));
    let error = Connection::open(settings).await.unwrap_err();
    let told = crate::certificates::told(&error);
    assert!(told.contains("kubeadm token create") && told.contains("/bootstrap"), "{told}");
}

#[tokio::test]
async fn a_node_whose_certificate_has_ended_gets_another() {
    let bed = bed(0, (3600, 60)).await;
    let (chain, key) = Ca::new("ca").sign("system:node:n1", &[], -3);
    std::fs::write(bed.folder.path().join("old.pem"), format!("{chain}{key}")).unwrap();
    let ca = std::fs::read_to_string(bed.folder.path().join("bootstrap-ca.crt")).unwrap();
    let address = format!("https://{}", bed.server.address);
    kubeconfig(bed.folder.path(), "kubeconfig", &address, &ca, "{client-certificate: old.pem, client-key: old.pem}");
    let connection = Connection::open(bed.settings.clone()).await.unwrap();
    ask(&connection).await.unwrap();
    assert_eq!((bed.server.times("POST "), bed.server.last().who.as_str()), (1, "system:node:n1"));
}
