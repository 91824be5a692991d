//! A server on loopback with ports that are played, its CAs, and a client that speaks plain HTTP/1.1 over TLS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use http::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use longshore_core::ports::reviews::User;
use longshore_server::{Certificates, Parts, Server, ServerConfig};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SigningKey as _};
use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use x509_parser::asn1_rs::{Any, Class};
use x509_parser::prelude::FromDer as _;

use crate::played::{Echo, Judge, Logs, Numbers, Pods, logs};

/// A certificate authority.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
    pub(crate) key: String,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Ca {
        Ca::with(name, IsCa::Ca(BasicConstraints::Unconstrained))
    }

    /// Somebody who signs, and whose own certificate does not say that they may.
    pub(crate) fn usurper(name: &str) -> Ca {
        Ca::with(name, IsCa::ExplicitNoCa)
    }

    fn with(name: &str, is_ca: IsCa) -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = is_ca;
        params.distinguished_name.push(DnType::CommonName, name);
        let (pem, text) = (params.self_signed(&key).unwrap().pem(), key.serialize_pem());
        Ca { issuer: Issuer::new(params, key), pem, key: text }
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

    /// The same as `openssl x509 -req` has it: of the first version, which has no extensions.
    pub(crate) fn sign_without_extensions(&self, common_name: &str) -> (String, String) {
        let (pem, key) = self.sign(common_name, &[]);
        let whole = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, parts) = Any::from_der(&whole).unwrap();
        let (rest, signed) = Any::from_der(parts.data).unwrap();
        let (signature, _) = Any::from_der(rest).unwrap();
        let algorithm = &rest[..rest.len() - signature.len()];
        let (mut fields, mut kept) = (signed.data, Vec::new());
        while !fields.is_empty() {
            let (rest, field) = Any::from_der(fields).unwrap();
            if field.header.class() == Class::Universal {
                kept.extend_from_slice(&fields[..fields.len() - rest.len()]);
            }
            fields = rest;
        }
        let signed = element(0x30, &kept);
        let signature = [&[0], self.issuer.key().sign(&signed).unwrap().as_slice()].concat();
        let whole = element(0x30, &[signed.as_slice(), algorithm, &element(3, &signature)].concat());
        (pem_of(&whole), key)
    }
}

fn pem_of(certificate: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// An element of DER.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let head = match content.len() {
        0..0x80 => vec![tag, length[1]],
        0x80..0x100 => vec![tag, 0x81, length[1]],
        _ => vec![tag, 0x82, length[0], length[1]],
    };
    [head.as_slice(), content].concat()
}

pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) judge: Arc<Judge>,
    pub(crate) pods: Arc<Pods>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) echo: Arc<Echo>,
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
        let (judge, pods, kept) = (Arc::new(Judge::default()), Arc::new(Pods::default()), Arc::new(Logs::default()));
        let echo = Arc::new(Echo::default());
        let parts = Parts {
            views: pods.clone(),
            logs: logs(kept.clone()),
            streams: echo.clone(),
            stats: Arc::new(Numbers),
            reviews: Some(judge.clone()),
            cgroup: Arc::new(|view| format!("/kubepods/pod{}", view.id.uid)),
            configz: Arc::new(|| serde_json::json!({"kind": "KubeletConfiguration"})),
            flags: Arc::new(|| vec![("v".to_owned(), "2".to_owned())]),
            metrics: Arc::new(|| "up 1\n".to_owned()),
            verbosity: Arc::new(|text| text.parse::<u8>().map(|_| ()).map_err(|error| error.to_string())),
        };
        let server = Server::bind(config, parts).await.unwrap();
        let (https, read_only, healthz) =
            (server.https_address().unwrap(), server.read_only_address().unwrap(), server.healthz_address().unwrap());
        let stop = CancellationToken::new();
        tokio::spawn(server.serve(stop.clone()));
        World { folder, judge, pods, logs: kept, echo, ca, https, read_only, healthz, stop }
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

    pub(crate) async fn connect(&self, caller: &Caller) -> TlsStream<TcpStream> {
        self.connect_with(caller, &[]).await
    }

    /// A connection on which the client offers protocols.
    pub(crate) async fn connect_with(&self, caller: &Caller, protocols: &[&str]) -> TlsStream<TcpStream> {
        let provider = rustls::crypto::ring::default_provider();
        self.shake_hands(caller, protocols, rustls::DEFAULT_VERSIONS, provider).await.unwrap()
    }

    /// A connection of a client that knows these versions, and the provider's suites.
    pub(crate) async fn shake_hands(
        &self,
        caller: &Caller,
        protocols: &[&str],
        versions: &[&'static SupportedProtocolVersion],
        provider: CryptoProvider,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(provider);
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anything(provider.clone())));
        let mut config = match &caller.certificate {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                let key = provider.key_provider.load_private_key(key).unwrap();
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))))
            }
        };
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(self.https).await.unwrap();
        let name = ServerName::try_from("node").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// A connection of HTTP/2, and its end. Streams have a window of so many bytes.
    pub(crate) async fn http2(&self, caller: &Caller, window: u32) -> (Http2, JoinHandle<hyper::Result<()>>) {
        let stream = self.connect_with(caller, &["h2"]).await;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(window);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        (sender, tokio::spawn(connection))
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

/// Sends requests over HTTP/2.
pub(crate) type Http2 = http2::SendRequest<Body>;

/// A GET with a token, where one is given.
pub(crate) fn get(path: &str, token: Option<&str>) -> Request<Body> {
    let mut request = Request::get(format!("https://node{path}"));
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    request.body(Body::empty()).unwrap()
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
struct Anything(Arc<CryptoProvider>);

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
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
