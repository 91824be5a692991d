//! Joining a real control plane: etcd, kube-apiserver and kube-controller-manager from `LONGSHORE_TEST_KUBERNETES` (etcd
//! there or on PATH); else this test says nothing.

use std::net::TcpListener;
use std::process::Stdio;

use http::Method;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::*;
use crate::requests::JSON;

fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn run(program: PathBuf, folder: &Path, arguments: &[String]) -> Child {
    let name = program.file_name().unwrap().to_string_lossy().into_owned();
    let log = std::fs::File::create(folder.join(format!("{name}.log"))).unwrap();
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Approves every open request as `kubectl certificate approve` does, until dropped.
async fn approve(requests: Requests) {
    const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let Ok(list) = requests.get::<Value>(PATH).await else { continue };
        for mut csr in list["items"].as_array().unwrap().iter().cloned() {
            if csr["status"]["conditions"].is_array() {
                continue;
            }
            csr["status"]["conditions"] =
                json!([{"type": "Approved", "status": "True", "reason": "Test", "message": "approved"}]);
            csr["apiVersion"] = json!("certificates.k8s.io/v1");
            csr["kind"] = json!("CertificateSigningRequest");
            let path = format!("{PATH}/{}/approval", csr["metadata"]["name"].as_str().unwrap());
            let approved = requests.send::<CertificateSigningRequest, _>(Method::PUT, &path, JSON, &csr).await;
            approved.unwrap();
        }
    }
}

#[tokio::test]
async fn a_node_joins_a_real_control_plane() {
    let Some(binaries) = std::env::var_os("LONGSHORE_TEST_KUBERNETES").map(PathBuf::from) else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (etcd, peer, port) = (free(), free(), free());
    let ca = Ca::new("kubernetes");
    let own = ca.sign("kube-apiserver", &["127.0.0.1"], 10);
    let accounts = rcgen::KeyPair::generate().unwrap();
    for (name, text) in [
        ("ca.crt", ca.pem.as_str()),
        ("ca.key", &ca.issuer.key().serialize_pem()),
        ("server.crt", &own.0),
        ("server.key", &own.1),
        ("sa.key", &accounts.serialize_pem()),
        ("sa.pub", &accounts.public_key_pem()),
        ("tokens", "admin,admin,1,\"system:masters\"\nabcdef.0123456789abcdef,boot,2,\"system:bootstrappers\"\n"),
    ] {
        std::fs::write(at(name), text).unwrap();
    }
    let program = |name: &str| {
        let here = binaries.join(name);
        if here.exists() { here } else { PathBuf::from(name) }
    };
    let _etcd = run(
        program("etcd"),
        folder.path(),
        &[
            format!("--data-dir={}", at("etcd")),
            format!("--listen-client-urls=http://127.0.0.1:{etcd}"),
            format!("--advertise-client-urls=http://127.0.0.1:{etcd}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
        ],
    );
    let _api = run(
        program("kube-apiserver"),
        folder.path(),
        &[
            format!("--etcd-servers=http://127.0.0.1:{etcd}"),
            format!("--secure-port={port}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--tls-cert-file={}", at("server.crt")),
            format!("--tls-private-key-file={}", at("server.key")),
            format!("--client-ca-file={}", at("ca.crt")),
            format!("--token-auth-file={}", at("tokens")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", at("sa.pub")),
            format!("--service-account-signing-key-file={}", at("sa.key")),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            format!("--cert-dir={}", at("certs")),
        ],
    );
    let server = format!("https://127.0.0.1:{port}");
    let admin_config = kubeconfig(folder.path(), "admin", &server, &ca.pem, "{token: admin}");
    let admin = Connection::open(settings(folder.path(), Some(admin_config.clone()))).await.unwrap();
    let ready = async {
        let requests = Requests::new(admin.client());
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "bootstrap"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
                "name": "system:node-bootstrapper"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:bootstrappers"}],
        });
        let path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
        while requests.get::<Value>(&format!("{path}/system:basic-user")).await.is_err()
            || requests.send::<Value, _>(Method::POST, path, JSON, &binding).await.is_err()
        {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), ready).await.unwrap();
    let _manager = run(
        program("kube-controller-manager"),
        folder.path(),
        &[
            format!("--kubeconfig={}", admin_config.display()),
            format!("--cluster-signing-cert-file={}", at("ca.crt")),
            format!("--cluster-signing-key-file={}", at("ca.key")),
            "--cluster-signing-duration=25s".to_owned(),
            "--controllers=certificatesigningrequest-signing-controller".to_owned(),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".to_owned(),
        ],
    );
    let _approver = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(approve(Requests::new(admin.client()))));

    let mut own = settings(folder.path(), Some(folder.path().join("kubeconfig")));
    own.bootstrap_kubeconfig =
        Some(kubeconfig(folder.path(), "bootstrap", &server, &ca.pem, "{token: abcdef.0123456789abcdef}"));
    own.rotate_server_certificates = true;
    let opened = tokio::time::timeout(Duration::from_secs(60), Connection::open(own)).await;
    let connection = opened.unwrap().unwrap();
    assert!(connection.server_version().await.unwrap().minor >= 33);
    let node = serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap();
    use longshore_core::ports::cluster::ClusterApi;
    connection.node_api("n1").create_node(&node).await.unwrap();

    let names = ServingNames { dns: ["n1".to_owned()].into(), ips: ["10.0.0.1".parse().unwrap()].into() };
    let (sender, stop) = (watch::Sender::new(names.clone()), CancellationToken::new());
    let kept = {
        let (connection, names, stop) = (connection.clone(), sender.subscribe(), stop.clone());
        tokio::spawn(async move { connection.keep(names, stop).await })
    };
    let mut serving = connection.serving();
    let serving = tokio::time::timeout(Duration::from_secs(30), serving.wait_for(Option::is_some)).await;
    assert!(names.covered_by(&serving.unwrap().unwrap().clone().unwrap().0));
    let first = connection.status().borrow().certificate.clone().unwrap();
    let mut status = connection.status();
    let later =
        status.wait_for(|status| status.certificate.as_ref().is_some_and(|now| now.not_after > first.not_after));
    tokio::time::timeout(Duration::from_secs(60), later).await.unwrap().unwrap();
    assert!(connection.node_api("n1").node().await.unwrap().is_some());
    stop.cancel();
    kept.await.unwrap();
}
