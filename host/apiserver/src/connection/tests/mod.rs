//! The connection tried against servers of our own: files that change, servers that fail, what errors say.

mod bootstrapping;
mod server;

use std::path::Path;
use std::sync::Arc;

use server::{Ca, Server, VERSION, any, kubeconfig};

use super::*;

fn settings(folder: &Path, kubeconfig: Option<PathBuf>) -> Settings {
    drop(rustls::crypto::ring::default_provider().install_default());
    Settings {
        kubeconfig,
        api_servers: Vec::new(),
        bootstrap_kubeconfig: None,
        cert_dir: folder.join("pki"),
        node_name: "n1".to_owned(),
        rotate_certificates: true,
        rotate_server_certificates: false,
        random: Arc::new(|| 0.5),
        pace: Pace::default(),
    }
}

async fn ask(connection: &Connection) -> Result<ServerVersion, ConnectionError> {
    *connection.parts.version.lock().unwrap() = None;
    connection.server_version().await
}

fn link(folder: &Path, (chain, key): &(String, String), name: &str) {
    std::fs::write(folder.join(name), format!("{chain}{key}")).unwrap();
    std::os::unix::fs::symlink(folder.join(name), folder.join("updated.pem")).unwrap();
    std::fs::rename(folder.join("updated.pem"), folder.join("current.pem")).unwrap();
}

#[tokio::test]
async fn the_next_request_uses_what_files_hold_now() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::new("ca");
    let own = ca.sign("server", &["127.0.0.1"], 10);
    let server = Server::start(any(), Some((&own, &ca.pem)), |_| (200, VERSION.to_owned())).await;
    link(folder.path(), &ca.sign("first", &[], 5), "1.pem");
    let user = "{client-certificate: current.pem, client-key: current.pem}";
    let path = kubeconfig(folder.path(), "config", &format!("https://{}", server.address), &ca.pem, user);
    let connection = Connection::open(settings(folder.path(), Some(path.clone()))).await.unwrap();
    assert_eq!(ask(&connection).await.unwrap().minor, 36);
    assert_eq!(server.last().who, "first");
    assert_eq!(connection.status().borrow().certificate.as_ref().unwrap().common_name, "first");
    link(folder.path(), &ca.sign("second", &[], 5), "2.pem");
    ask(&connection).await.unwrap();
    assert_eq!(server.last().who, "second");
    assert_eq!(connection.status().borrow().certificate.as_ref().unwrap().common_name, "second");

    // What cannot be used leaves the former in force.
    std::fs::write(&path, "nonsense: [").unwrap();
    ask(&connection).await.unwrap();
    assert_eq!(server.last().who, "second");

    std::fs::write(folder.path().join("token"), "t1\n").unwrap();
    kubeconfig(folder.path(), "config", &format!("https://{}", server.address), &ca.pem, "{tokenFile: token}");
    ask(&connection).await.unwrap();
    assert_eq!(server.last().who, "Bearer t1");
    std::fs::write(folder.path().join("token"), "t22\n").unwrap();
    ask(&connection).await.unwrap();
    assert_eq!(server.last().who, "Bearer t22");

    // A rotated certificate is for those who have one only.
    let pki = folder.path().join("pki");
    std::fs::create_dir(&pki).unwrap();
    link(&pki, &ca.sign("system:node:n1", &[], 5), "r.pem");
    std::fs::rename(pki.join("current.pem"), pki.join("kubelet-client-current.pem")).unwrap();
    ask(&connection).await.unwrap();
    assert_eq!(server.last().who, "Bearer t22");
    kubeconfig(folder.path(), "config", &format!("https://{}", server.address), &ca.pem, user);
    ask(&connection).await.unwrap();
    assert_eq!(server.last().who, "system:node:n1");
}

#[tokio::test]
async fn another_server_is_asked_when_one_fails_and_stays_so() {
    let folder = tempfile::tempdir().unwrap();
    let gone = Server::start(any(), None, |_| (200, VERSION.to_owned())).await.address;
    let first = Server::start(any(), None, |_| (200, VERSION.to_owned())).await;
    let second = Server::start(any(), None, |_| (200, VERSION.to_owned())).await;
    let mut settings = settings(folder.path(), None);
    settings.api_servers =
        vec![format!("http://{gone},http://{}", first.address), format!("http://{}", second.address)];
    let connection = Connection::open(settings).await.unwrap();
    ask(&connection).await.unwrap();
    ask(&connection).await.unwrap();
    assert_eq!((first.times("/version"), second.times("/version")), (2, 0));
    assert_eq!(connection.status().borrow().server, format!("http://{}", first.address));
    let address = first.address;
    drop(first);
    ask(&connection).await.unwrap();
    assert_eq!(second.times("/version"), 1);
    let first = Server::start(address, None, |_| (200, VERSION.to_owned())).await;
    ask(&connection).await.unwrap();
    assert_eq!((first.times("/version"), second.times("/version")), (0, 2));
    drop((first, second));
    let told = ask(&connection).await.unwrap_err().to_string();
    assert_eq!(told.matches("connection refused").count(), 3, "{told}");
    let problem = connection.status().borrow().problem.clone();
    assert!(problem.unwrap().contains("is kube-apiserver running"));
}

#[tokio::test]
async fn the_version_is_remembered_until_something_happens() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(any(), None, |_| (200, VERSION.to_owned())).await;
    let mut settings = settings(folder.path(), None);
    settings.api_servers = vec![format!("http://{}", server.address)];
    let connection = Connection::open(settings).await.unwrap();
    for _ in 0..3 {
        assert_eq!(connection.server_version().await.unwrap().git_version, "v1.36.3");
    }
    assert_eq!(server.times("/version"), 1);
    let address = server.address;
    drop(server);
    ask(&connection).await.unwrap_err();
    let server = Server::start(address, None, |_| (200, VERSION.replace("36", "37"))).await;
    assert_eq!(connection.server_version().await.unwrap().minor, 37);
    assert_eq!(server.times("/version"), 1);
}

#[tokio::test]
async fn errors_say_where_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let told = async |names: &[&str], days: i64, known: &str, user: &str, code: u16| {
        let own = ca.sign("server", names, days);
        let server = Server::start(any(), Some((&own, &ca.pem)), move |_| (code, VERSION.to_owned())).await;
        let path = kubeconfig(folder.path(), "config", &format!("https://{}", server.address), known, user);
        let connection = Connection::open(settings(folder.path(), Some(path))).await.unwrap();
        let error = ask(&connection).await.err().map(|error| error.to_string()).unwrap_or_default();
        let problem = connection.status().borrow().problem.clone().unwrap_or_default();
        assert!(code != 200 || error.contains(&problem), "{error}");
        (server.address.to_string(), problem)
    };
    let (address, problem) = told(&["127.0.0.1"], 1, &other.pem, "{}", 200).await;
    assert!(problem.contains(&address) && problem.contains("config-ca.crt"), "{problem}");
    let (_, problem) = told(&["10.9.9.9", "api.example"], 1, &ca.pem, "{}", 200).await;
    assert!(problem.contains("api.example") && problem.contains("tls-server-name"), "{problem}");
    let (_, problem) = told(&["127.0.0.1"], -2, &ca.pem, "{}", 200).await;
    assert!(problem.contains("its certificate expired at 20"), "{problem}");
    let (_, problem) = told(&["127.0.0.1"], 1, &ca.pem, "{token: wrong}", 401).await;
    assert!(problem.contains("the token in ") && problem.contains("kubeadm token create"), "{problem}");
    let (chain, key) = ca.sign("system:node:n1", &[], -3);
    std::fs::write(folder.path().join("c.pem"), format!("{chain}{key}")).unwrap();
    let user = "{client-certificate: c.pem, client-key: c.pem}";
    let (_, problem) = told(&["127.0.0.1"], 1, &ca.pem, user, 200).await;
    assert!(problem.contains("c.pem expired at 20") && problem.contains("put a new kubeconfig"), "{problem}");
    let missing = Connection::open(settings(folder.path(), Some(folder.path().join("none")))).await.unwrap_err();
    assert!(missing.to_string().contains("none"), "{missing}");
}

#[tokio::test]
async fn a_proxy_of_the_kubeconfig_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(any(), None, |_| (200, VERSION.to_owned())).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = listener.local_addr().unwrap();
    let target = server.address;
    let proxied = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut asked = vec![0; 4096];
        let length = socket.read(&mut asked).await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let mut there = tokio::net::TcpStream::connect(target).await.unwrap();
        drop(tokio::io::copy_bidirectional(&mut socket, &mut there).await);
        String::from_utf8_lossy(&asked[..length]).into_owned()
    });
    let path = folder.path().join("config");
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: k}}}}],
        clusters: [{{name: k, cluster: {{server: 'http://api.example:8080', proxy-url: 'http://{proxy}'}}}}]}}"
    );
    std::fs::write(&path, text).unwrap();
    let connection = Connection::open(settings(folder.path(), Some(path))).await.unwrap();
    ask(&connection).await.unwrap();
    drop((connection, server));
    assert!(proxied.await.unwrap().starts_with("CONNECT api.example:8080"));
}

#[tokio::test]
async fn a_server_that_never_answers_is_left_when_callers_give_up() {
    let folder = tempfile::tempdir().unwrap();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server::start(any(), None, |_| (200, VERSION.to_owned())).await;
    let mut settings = settings(folder.path(), None);
    settings.api_servers =
        vec![format!("http://{}", silent.local_addr().unwrap()), format!("http://{}", server.address)];
    let connection = Connection::open(settings).await.unwrap();
    let given_up = tokio::time::timeout(Duration::from_secs(9), ask(&connection)).await;
    assert!(given_up.is_err());
    tokio::time::timeout(Duration::from_secs(30), ask(&connection)).await.unwrap().unwrap();
    assert_eq!(server.times("/version"), 1);
}

#[tokio::test]
async fn a_plugin_says_who_we_are_and_names_of_servers_may_differ() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::new("ca");
    let own = ca.sign("server", &["api.example"], 10);
    let mut wrong = false;
    let server = Server::start(any(), Some((&own, &ca.pem)), move |_| {
        wrong = !wrong;
        (if wrong { 401 } else { 200 }, VERSION.to_owned())
    })
    .await;
    let plugin = folder.path().join("plugin");
    let script = "#!/bin/sh\necho '{\"kind\": \"ExecCredential\", \
                  \"apiVersion\": \"client.authentication.k8s.io/v1\", \"status\": {\"token\": \"from-plugin\"}}'\n";
    std::fs::write(&plugin, script).unwrap();
    std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
    for cluster in ["tls-server-name: api.example, certificate-authority: ca.crt", "insecure-skip-tls-verify: true"] {
        std::fs::write(folder.path().join("ca.crt"), &ca.pem).unwrap();
        let path = folder.path().join("config");
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: k, user: u}}}}],
            clusters: [{{name: k, cluster: {{server: 'https://{}', {cluster}}}}}],
            users: [{{name: u, user: {{exec: {{apiVersion: client.authentication.k8s.io/v1, command: '{}'}}}}}}]}}",
            server.address,
            plugin.display()
        );
        std::fs::write(&path, text).unwrap();
        let connection = Connection::open(settings(folder.path(), Some(path))).await.unwrap();
        ask(&connection).await.unwrap_err();
        let problem = connection.status().borrow().problem.clone().unwrap();
        assert!(problem.contains("exec plugin") && problem.contains("/plugin"), "{problem}");
        ask(&connection).await.unwrap();
        assert_eq!(server.last().who, "Bearer from-plugin");
        assert_eq!(connection.status().borrow().problem, None);
    }
}
