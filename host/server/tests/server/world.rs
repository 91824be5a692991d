//! A server on loopback with ports that are played, its CAs, and a client that speaks plain HTTP/1.1 over TLS.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use longshore_core::pod::{PodId, Source};
use longshore_core::ports::cluster::ApiError;
use longshore_core::ports::pods::PodViews;
use longshore_core::ports::reviews::{NodeAccess, Reviews, User};
use longshore_core::ports::runtime::{LogChunk, LogOptions, RuntimeError};
use longshore_core::ports::stats::{NodeUsage, PodQuery, PodUsage, Stats, Usage};
use longshore_core::ports::streams::{Attached, AttachedControl, ContainerStreams, StreamedExec, Wants};
use longshore_core::view::PodView;
use longshore_server::{Certificates, Parts, Server, ServerConfig};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};
use tokio_util::sync::CancellationToken;

/// What the played API server says.
#[derive(Default)]
pub(crate) struct Judge {
    pub(crate) tokens: Mutex<HashMap<String, User>>,
    /// User and subresource.
    pub(crate) rights: Mutex<Vec<(String, String)>>,
    pub(crate) down: Mutex<bool>,
    pub(crate) asked: AtomicUsize,
}

#[async_trait]
impl Reviews for Judge {
    async fn authenticate(&self, token: &str) -> Result<Option<User>, ApiError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if *self.down.lock().unwrap() {
            return Err(ApiError::Unreachable { message: "down".to_owned() });
        }
        Ok(self.tokens.lock().unwrap().get(token).cloned())
    }

    async fn authorize(&self, user: &User, access: &NodeAccess) -> Result<Result<(), String>, ApiError> {
        if *self.down.lock().unwrap() {
            return Err(ApiError::Unreachable { message: "down".to_owned() });
        }
        let right = (user.name.clone(), access.subresource.to_owned());
        let may = self.rights.lock().unwrap().contains(&right);
        Ok(if may { Ok(()) } else { Err(String::new()) })
    }
}

pub(crate) struct Pods;

fn view() -> Arc<PodView> {
    let object = serde_json::json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i"}, {"name": "w", "image": "i"}]},
        "status": {"containerStatuses": [
            {"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "containerID": "docker://id-c",
             "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
             "lastState": {"terminated": {"exitCode": 1, "containerID": "docker://id-before"}}},
            {"name": "w", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
             "state": {"waiting": {"reason": "CreateContainerConfigError"}}}
        ]}
    });
    Arc::new(PodView {
        id: PodId { namespace: "n".to_owned(), name: "p".to_owned(), uid: "u".to_owned() },
        source: Source::Api,
        object: serde_json::from_value(object).unwrap(),
        steps: Vec::new(),
        probes: Vec::new(),
    })
}

impl PodViews for Pods {
    fn pods(&self) -> Vec<Arc<PodView>> {
        vec![view()]
    }

    fn pod(&self, uid: &str) -> Option<Arc<PodView>> {
        (uid == "u").then(view)
    }

    fn healthy(&self) -> Result<(), String> {
        Ok(())
    }
}

struct Numbers;

#[async_trait]
impl Stats for Numbers {
    async fn node(&self) -> NodeUsage {
        let usage = Usage { cpu_nanoseconds: Some(1_500_000_000), memory_working_set: Some(7), ..Usage::default() };
        NodeUsage { usage, ..NodeUsage::default() }
    }

    async fn pod(&self, query: &PodQuery) -> PodUsage {
        let usage = Usage { cpu_nanoseconds: Some(2_000_000_000), memory_working_set: Some(9), ..Usage::default() };
        let containers = query.containers.iter().map(|(name, _)| (name.clone(), usage.clone())).collect();
        PodUsage { usage, containers, ..PodUsage::default() }
    }
}

/// Echoes stdin to stdout and ends with 3, having said something on stderr.
struct Echo;

struct Ended;

#[async_trait]
impl AttachedControl for Ended {
    async fn resize(&self, _width: u16, _height: u16) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn exit_code(&self) -> Result<Option<i32>, RuntimeError> {
        Ok(Some(3))
    }
}

fn echo(wants: Wants) -> Attached {
    let (near, far) = tokio::io::duplex(1024);
    let (read, write) = tokio::io::split(near);
    let (mut far_read, mut far_write) = tokio::io::split(far);
    tokio::spawn(async move {
        if wants.stdin {
            let _ = tokio::io::copy(&mut far_read, &mut far_write).await;
        } else {
            let _ = far_write.write_all(b"said").await;
        }
        let _ = far_write.shutdown().await;
    });
    Attached {
        stdin: if wants.stdin { Some(Box::new(write.compat_write())) } else { None },
        stdout: wants.stdout.then(|| Box::new(read.compat()) as longshore_core::ports::streams::Read),
        stderr: wants.stderr.then(|| Box::new(&b"err"[..]) as longshore_core::ports::streams::Read),
        control: Box::new(Ended),
    }
}

#[async_trait]
impl ContainerStreams for Echo {
    async fn exec_streams(&self, exec: &StreamedExec) -> Result<Attached, RuntimeError> {
        assert_eq!(exec.container_id, "id-c");
        Ok(echo(exec.wants))
    }

    async fn attach(&self, _container_id: &str, wants: Wants) -> Result<Attached, RuntimeError> {
        Ok(echo(wants))
    }

    async fn process_id(&self, _id: &str) -> Result<u32, RuntimeError> {
        Ok(std::process::id())
    }
}

fn log(id: &str, options: LogOptions) -> BoxStream<'static, Result<LogChunk, RuntimeError>> {
    let lines = vec![
        (false, format!("{id} tail={:?} follow={}\n", options.tail, options.follow)),
        (true, "to stderr\n".to_owned()),
    ];
    futures::stream::iter(lines.into_iter().map(|(stderr, line)| Ok(LogChunk { stderr, data: line.into() }))).boxed()
}

/// A certificate authority.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Ca { issuer: Issuer::new(params, key), pem }
    }

    /// Chain and key of somebody.
    pub(crate) fn sign(&self, common_name: &str, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) judge: Arc<Judge>,
    pub(crate) ca: Ca,
    pub(crate) https: SocketAddr,
    pub(crate) read_only: SocketAddr,
    pub(crate) healthz: SocketAddr,
    stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) text: String,
}

/// Who calls.
#[derive(Clone, Default)]
pub(crate) struct Caller {
    pub(crate) token: Option<String>,
    pub(crate) certificate: Option<(String, String)>,
}

impl Caller {
    pub(crate) fn token(token: &str) -> Caller {
        Caller { token: Some(token.to_owned()), certificate: None }
    }
}

impl World {
    pub(crate) async fn new(change: impl FnOnce(&mut ServerConfig)) -> World {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::new("clients");
        let file = |name: &str| -> PathBuf { folder.path().join(name) };
        std::fs::write(file("ca.pem"), &ca.pem).unwrap();
        std::fs::create_dir(file("log")).unwrap();
        std::fs::write(file("log/one"), "a line\n").unwrap();
        let mut config = ServerConfig::new("node", Certificates::SelfSigned { folder: file("pki") });
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        (config.address, config.read_only, config.healthz) = (Some(any), Some(any), Some(any));
        config.client_ca_file = Some(file("ca.pem"));
        config.log_folder = file("log");
        config.reload = Duration::from_millis(20);
        change(&mut config);
        let judge = Arc::new(Judge::default());
        let parts = Parts {
            views: Arc::new(Pods),
            logs: Arc::new(log),
            streams: Arc::new(Echo),
            stats: Arc::new(Numbers),
            reviews: Some(judge.clone()),
            cgroup: Arc::new(|view| format!("/kubepods/pod{}", view.id.uid)),
            configz: Arc::new(|| serde_json::json!({"kind": "KubeletConfiguration"})),
            flags: vec![("v".to_owned(), "2".to_owned())],
            metrics: Arc::new(|| "up 1\n".to_owned()),
            verbosity: Arc::new(|text| text.parse::<u8>().map(|_| ()).map_err(|error| error.to_string())),
        };
        let server = Server::bind(config, parts).await.unwrap();
        let (https, read_only, healthz) =
            (server.https_address().unwrap(), server.read_only_address().unwrap(), server.healthz_address().unwrap());
        let stop = CancellationToken::new();
        tokio::spawn(server.serve(stop.clone()));
        World { folder, judge, ca, https, read_only, healthz, stop }
    }

    /// Gives a token to somebody with rights to these subresources.
    pub(crate) fn allow(&self, name: &str, token: &str, subresources: &[&str]) {
        let groups = vec!["system:authenticated".to_owned()];
        let user = User { name: name.to_owned(), groups, ..User::default() };
        self.judge.tokens.lock().unwrap().insert(token.to_owned(), user);
        for subresource in subresources {
            self.judge.rights.lock().unwrap().push((name.to_owned(), (*subresource).to_owned()));
        }
    }

    pub(crate) async fn connect(&self, caller: &Caller) -> tokio_rustls::client::TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anything(provider)));
        let config = match &caller.certificate {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        let stream = TcpStream::connect(self.https).await.unwrap();
        let name = ServerName::try_from("node").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    pub(crate) async fn ask(&self, caller: &Caller, method: &str, path: &str) -> Answer {
        let mut stream = self.connect(caller).await;
        let token = caller.token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n"));
        exchange(&mut stream, method, path, &token.unwrap_or_default(), "").await
    }

    pub(crate) async fn get(&self, token: &str, path: &str) -> Answer {
        self.ask(&Caller::token(token), "GET", path).await
    }
}

pub(crate) async fn exchange(
    stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin),
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Answer {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    // A peer that does not say goodbye is fine here.
    let _ = stream.read_to_end(&mut bytes).await;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let code = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
    Answer { code, text }
}

pub(crate) async fn plain(address: SocketAddr, path: &str) -> Answer {
    exchange(&mut TcpStream::connect(address).await.unwrap(), "GET", path, "", "").await
}

/// Believes every server.
#[derive(Debug)]
struct Anything(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _own: &CertificateDer<'_>,
        _between: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
