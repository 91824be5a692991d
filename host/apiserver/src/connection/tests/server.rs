//! A small HTTPS (or HTTP) API server for tests, with a CA of its own, that remembers who asked for what.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

/// A CA and what it signs.
pub(crate) struct Ca {
    pub(crate) pem: String,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key as PEM, ended where `days` is negative.
    pub(crate) fn sign(&self, name: &str, names: &[&str], days: i64) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, name);
        let now = std::time::SystemTime::now();
        let day = std::time::Duration::from_secs(86_400);
        let (begin, end) = match days < 0 {
            true => (now - day * 30, now - day * u32::try_from(-days).unwrap()),
            false => (now - day / 24, now + day * u32::try_from(days).unwrap()),
        };
        (params.not_before, params.not_after) = (begin.into(), end.into());
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// One request as it was seen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) what: String,
    pub(crate) who: String,
    pub(crate) body: String,
}

type Answers = dyn FnMut(&Seen) -> (u16, String) + Send;

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    task: AbortHandle,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        self.connections.lock().unwrap().iter().for_each(AbortHandle::abort);
    }
}

fn common_name(der: &CertificateDer<'_>) -> String {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).unwrap();
    parsed.subject().iter_common_name().next().unwrap().as_str().unwrap().to_owned()
}

impl Server {
    /// With `tls`: its certificate and key, and the CA of clients.
    pub(crate) async fn start(
        at: SocketAddr,
        tls: Option<(&(String, String), &str)>,
        answers: impl FnMut(&Seen) -> (u16, String) + Send + 'static,
    ) -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let acceptor = tls.map(|((chain, key), clients)| {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(clients.as_bytes()).unwrap()).unwrap();
            let verifier =
                rustls::server::WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build().unwrap();
            let config = rustls::ServerConfig::builder()
                .with_client_cert_verifier(verifier)
                .with_single_cert(
                    vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap();
            tokio_rustls::TlsAcceptor::from(Arc::new(config))
        });
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(at).unwrap();
        let listener: TcpListener = socket.listen(16).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let answers: Arc<Mutex<Box<Answers>>> = Arc::new(Mutex::new(Box::new(answers)));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (kept, shared) = (connections.clone(), seen.clone());
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, seen, answers) = (acceptor.clone(), shared.clone(), answers.clone());
                let served = tokio::spawn(async move {
                    let Some(acceptor) = acceptor else {
                        return serve(TokioIo::new(socket), String::new(), seen, answers).await;
                    };
                    let Ok(stream) = acceptor.accept(socket).await else { return };
                    let chain = stream.get_ref().1.peer_certificates();
                    let who = chain.and_then(<[_]>::first).map(common_name).unwrap_or_default();
                    serve(TokioIo::new(stream), who, seen, answers).await;
                });
                kept.lock().unwrap().push(served.abort_handle());
            }
        });
        Self { address, seen, task: task.abort_handle(), connections }
    }

    /// Who asked last.
    pub(crate) fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().unwrap().clone()
    }

    pub(crate) fn times(&self, what: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| seen.what.contains(what)).count()
    }
}

async fn serve<I>(io: I, who: String, seen: Arc<Mutex<Vec<Seen>>>, answers: Arc<Mutex<Box<Answers>>>)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (who, seen, answers) = (who.clone(), seen.clone(), answers.clone());
        async move {
            let what = format!("{} {}", request.method(), request.uri());
            let token = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let who = token.unwrap_or(who);
            let one = Seen { what, who, body: String::from_utf8(body.to_vec()).unwrap() };
            let (code, body) = (*answers.lock().unwrap())(&one);
            seen.lock().unwrap().push(one);
            Ok::<_, Infallible>(Response::builder().status(code).body(Full::new(Bytes::from(body))).unwrap())
        }
    });
    drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
}

pub(crate) const VERSION: &str = r#"{"major": "1", "minor": "36+", "gitVersion": "v1.36.3"}"#;

pub(crate) fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A kubeconfig in a folder: the CA's PEM and the user's fields as JSON.
pub(crate) fn kubeconfig(folder: &Path, name: &str, server: &str, ca: &str, user: &str) -> PathBuf {
    std::fs::write(folder.join(format!("{name}-ca.crt")), ca).unwrap();
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: k, user: u}}}}],
        clusters: [{{name: k, cluster: {{server: '{server}', certificate-authority: {name}-ca.crt}}}}],
        users: [{{name: u, user: {user}}}]}}"
    );
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}
