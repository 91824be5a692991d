//! The kubeconfig that is written after a bootstrap (`writeKubeconfigFromBootstrapping` in
//! `pkg/kubelet/certificate/bootstrap/bootstrap.go`): the bootstrap's cluster, and the certificate's file as the user.

use std::fmt::Write;
use std::path::Path;

use kube::config::Cluster;

/// A text as YAML; JSON's strings are YAML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The text of the kubeconfig.
pub(crate) fn kubeconfig_document(cluster: &Cluster, server: &str, certificate: &Path) -> String {
    let mut text = String::from("apiVersion: v1\nkind: Config\nclusters:\n- name: default-cluster\n  cluster:\n");
    let mut line = |name: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            // Writing into a string cannot fail.
            let _ = writeln!(text, "    {name}: {}", quoted(value));
        }
    };
    line("server", Some(server));
    line("certificate-authority-data", cluster.certificate_authority_data.as_deref());
    if cluster.certificate_authority_data.is_none() {
        line("certificate-authority", cluster.certificate_authority.as_deref());
    }
    line("tls-server-name", cluster.tls_server_name.as_deref());
    line("proxy-url", cluster.proxy_url.as_deref());
    if cluster.insecure_skip_tls_verify == Some(true) {
        text.push_str("    insecure-skip-tls-verify: true\n");
    }
    let file = quoted(&certificate.display().to_string());
    let _ = write!(
        text,
        "contexts:\n- name: default-context\n  context:\n    cluster: default-cluster\n    namespace: default\n    \
         user: default-auth\ncurrent-context: default-context\nusers:\n- name: default-auth\n  user:\n    \
         client-certificate: {file}\n    client-key: {file}\n"
    );
    text
}
