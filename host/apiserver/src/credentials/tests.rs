//! Reading of credentials: addresses, kubeconfigs, what is left aside.

use super::*;

#[test]
fn addresses_in_order_without_repeats() {
    let given = ["https://a:6443,b".to_owned(), "https://a:6443".to_owned(), "http://127.0.0.1:8080".to_owned()];
    let found: Vec<_> = servers(&given, true).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(found, ["https://a:6443/", "https://b/", "http://127.0.0.1:8080/"]);
    assert!(servers(&["http://10.0.0.1:8080".to_owned()], true).is_err());
    assert!(servers(&["http://10.0.0.1:8080".to_owned()], false).is_ok());
    assert!(servers(&["ftp://a".to_owned()], false).is_err());
    assert!(servers(&["https://".to_owned()], false).is_err());
}

#[tokio::test]
async fn a_kubeconfig_with_relative_files_and_a_token_file() {
    let folder = std::env::temp_dir().join(format!("longshore-credentials-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = rcgen::CertificateParams::new(vec!["x".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(folder.join("ca.crt"), ca.pem()).unwrap();
    std::fs::write(folder.join("token"), "t0\n").unwrap();
    let path = folder.join("config");
    let text =
        "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: k, user: u}}],
        clusters: [{name: k, cluster: {server: 'https://h:1', certificate-authority: ca.crt}}],
        users: [{name: u, user: {tokenFile: token}}]}";
    std::fs::write(&path, text).unwrap();
    let sources = Sources { kubeconfig: Some(path.clone()), ..Sources::default() };
    let read = sources.read().await.unwrap();
    assert!(matches!(&read.identity, Identity::Token { from } if from.ends_with("/token")), "{:?}", read.identity);
    assert!(read.ca.ends_with("ca.crt"), "{}", read.ca);
    assert_eq!(read.stamp, read.stamp.now());
    std::fs::rename(folder.join("token"), folder.join("old")).unwrap();
    std::fs::write(folder.join("token"), "t1\n").unwrap();
    let now = read.stamp.now();
    assert!(read.stamp.changed(&now).ends_with("/token"));
    std::fs::write(&path, "nonsense: [").unwrap();
    assert!(matches!(sources.read().await, Err(CredentialsError::Kubeconfig { .. })));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn what_is_written_after_a_bootstrap_is_a_kubeconfig() {
    let cluster = kube::config::Cluster { tls_server_name: Some("k\"8".to_owned()), ..Default::default() };
    let text = kubeconfig_document(&cluster, "https://h:6443", Path::new("/p/kubelet-client-current.pem"));
    let read = Kubeconfig::from_yaml(&text).unwrap();
    assert_eq!(current_cluster(&read).unwrap().tls_server_name.as_deref(), Some("k\"8"));
    assert_eq!(current_cluster(&read).unwrap().server.as_deref(), Some("https://h:6443"));
    let (files, _) = named_files(Path::new("/etc/k"), &read);
    assert_eq!(files, [Path::new("/p/kubelet-client-current.pem"); 2]);
}
