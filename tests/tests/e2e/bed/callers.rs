//! Callers of a node's server over TLS: who signs certificates, and connections with and without one. Must not know what
//! is asked.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Bed, ports::free_port};

/// What every server's certificate here is for.
const NAME: &str = "node";

/// Somebody who signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A chain and its key, as PEM.
pub(crate) struct Identity {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// Somebody of that name, who may be a server as well.
    pub(crate) fn sign(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        Identity { chain: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    /// Makes connections to servers of this authority.
    pub(crate) fn connector(&self, identity: Option<&Identity>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { chain, key }) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        TlsConnector::from(Arc::new(config))
    }
}

/// Has an agent that does not run yet serve on loopback all who have a certificate of an authority: that, and where.
pub(crate) fn serving(bed: &mut Bed) -> (Authority, SocketAddr) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    bed.flags = vec![
        "--address=127.0.0.1".to_owned(),
        format!("--port={}", address.port()),
        "--authorization-mode=AlwaysAllow".to_owned(),
        format!("--client-ca-file={}", bed.folder.join("ca.pem").display()),
    ];
    (certified(bed), address)
}

/// Has an agent that does not run yet serve with a certificate of an authority, whose own is in `ca.pem`.
pub(crate) fn certified(bed: &mut Bed) -> Authority {
    let ours = Authority::new("ours");
    let server = ours.sign("server");
    for (name, text) in [("ca.pem", &ours.pem), ("server.pem", &server.chain), ("server.key", &server.key)] {
        fs::write(bed.folder.join(name), text).unwrap();
    }
    let path = |name: &str| bed.folder.join(name).display().to_string();
    let flags =
        [format!("--tls-cert-file={}", path("server.pem")), format!("--tls-private-key-file={}", path("server.key"))];
    bed.flags.extend(flags);
    ours
}

pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::try_from(NAME).unwrap()
}

/// A connection on which nothing was asked yet.
pub(crate) async fn connect(connector: &TlsConnector, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
    connector.connect(server_name(), stream).await
}

/// What a GET gets: everything until the server closes.
pub(crate) async fn get(connector: &TlsConnector, server: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = connect(connector, TcpStream::connect(server).await?).await?;
    exchange(&mut stream, path).await
}

/// The same on a connection that is there.
pub(crate) async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    path: &str,
) -> std::io::Result<String> {
    let head = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&in_one(bytes)).into_owned())
}

/// An answer whose body came in chunks, as if it had come in one.
fn in_one(answer: Vec<u8>) -> Vec<u8> {
    let position = |bytes: &[u8], end: &[u8]| bytes.windows(end.len()).position(|window| window == end);
    let Some(head) = position(&answer, b"\r\n\r\n").map(|at| at + 4) else { return answer };
    let (mut whole, mut rest) = (answer[..head].to_vec(), &answer[head..]);
    if !String::from_utf8_lossy(&whole).to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return answer;
    }
    while let Some(line) = position(rest, b"\r\n") {
        let size = usize::from_str_radix(&String::from_utf8_lossy(&rest[..line]), 16).unwrap_or(0);
        let (from, to) = (line + 2, line + 2 + size);
        if size == 0 || to > rest.len() {
            break;
        }
        whole.extend(&rest[from..to]);
        rest = rest.get(to + 2..).unwrap_or_default();
    }
    whole
}

/// A stream that has begun: a log, or a WebSocket's channels, of which `hi` has come.
pub(crate) async fn begun(connector: &TlsConnector, server: SocketAddr, path: &str) -> TlsStream<TcpStream> {
    let mut stream = connect(connector, TcpStream::connect(server).await.unwrap()).await.unwrap();
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Protocol: v4.channel.k8s.io\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let upgrade = if path.starts_with("/containerLogs") { "" } else { upgrade };
    let head = format!("GET {path} HTTP/1.1\r\nHost: node\r\n{upgrade}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let code = if upgrade.is_empty() { "200" } else { "101" };
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{answer}");
    let mut said = Vec::new();
    while !said.windows(2).any(|two| two == b"hi") {
        let byte = stream.read_u8().await;
        said.push(byte.unwrap_or_else(|error| panic!("{error} after {:?}", String::from_utf8_lossy(&said))));
    }
    stream
}
