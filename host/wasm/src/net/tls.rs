//! TLS to targets, without verifying who they are. It must be used for probes only: a sink or a source has secrets to protect.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, InvalidMessage, SignatureScheme};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Address, Socket, error_text};

/// Why there is no TLS on a connection.
#[derive(Debug)]
pub(crate) struct NoTls {
    /// What went wrong, for people.
    pub(crate) text: String,
    /// The target answered in plain HTTP.
    pub(crate) plain_http: bool,
}

impl From<String> for NoTls {
    fn from(text: String) -> Self {
        NoTls { text, plain_http: false }
    }
}

/// Speaks TLS on a connection.
///
/// `name` is what is asked for (SNI); an address, and `None`, ask for nothing.
pub(crate) async fn start(
    socket: Socket,
    address: &Address,
    name: Option<&str>,
    alpn: Vec<Vec<u8>>,
) -> Result<TlsStream<Socket>, NoTls> {
    let mut config = base()?.clone();
    let of_target = match address {
        Address::Name(name) => Some(name.as_str()),
        Address::Ip(_) => None,
    };
    let server = match name.or(of_target) {
        Some(name) => ServerName::try_from(name.to_owned()).map_err(|_| format!("{name:?} is not a server name"))?,
        None => {
            config.enable_sni = false;
            // Nobody sees or checks it.
            ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into())
        }
    };
    config.alpn_protocols = alpn;
    let connecting = TlsConnector::from(Arc::new(config)).connect(server, socket).into_fallible();
    connecting.await.map_err(|(error, socket)| NoTls { text: text(&error), plain_http: socket.answered_in_http() })
}

/// What went wrong, for people.
pub(crate) fn text(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "first record does not look like a TLS handshake".to_owned()
        }
        Some(error) => error.to_string(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
        None => error_text(error),
    }
}

/// Made with the first TLS probe: it is not small, and most nodes have none.
fn base() -> Result<&'static ClientConfig, String> {
    static BASE: OnceLock<Result<ClientConfig, String>> = OnceLock::new();
    let base = BASE.get_or_init(|| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(NoVerification(Arc::clone(&provider)));
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(config)
    });
    base.as_ref().map_err(Clone::clone)
}

/// Accepts every certificate, as the kubelet's probes do (`pkg/probe/http/http.go`): pods' certificates are seldom made out
/// to addresses, and a probe tells its target nothing.
#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    // A signature by a key that nobody vouches for proves nothing; checking it would only refuse old certificates.
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
