//! The serving certificate, the CAs of clients, and the settings of TLS; all of them follow their files. It must not
//! know who may do what: it tells whose certificate a client has proven to hold.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use longshore_core::ports::reviews::User;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};

use crate::config::{Certificates, ServerConfig};
use crate::self_signed::{found, kept, self_signed};
use crate::server::ServerError;
use crate::x509;

/// A client's chain is read up to so many certificates.
const CHAIN: usize = 10;

/// What is in force.
pub(crate) struct Current {
    pub(crate) server: Arc<rustls::ServerConfig>,
    clients: Option<Authorities>,
}

/// The CAs of clients.
struct Authorities {
    certificates: Vec<CertificateDer<'static>>,
    /// `None` where none of them may sign another.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// TLS as it is set up now.
pub(crate) struct Tls {
    config: ServerConfig,
    provider: Arc<CryptoProvider>,
    versions: Vec<&'static rustls::SupportedProtocolVersion>,
    current: RwLock<Arc<Current>>,
    sources: RwLock<Sources>,
    /// Serves until a watched certificate is there, and where the folder of the self-signed one has none.
    fallback: Option<Pair>,
    /// Why files could not be used last: told once, for they are looked at every few seconds.
    said: Mutex<String>,
}

/// Chain and key in PEM.
pub(crate) type Pair = (Vec<u8>, Vec<u8>);

/// The PEM that is in force.
#[derive(Clone, PartialEq)]
struct Sources {
    chain: Vec<u8>,
    key: Vec<u8>,
    clients: Option<Vec<u8>>,
}

impl Tls {
    pub(crate) fn new(config: &ServerConfig) -> Result<Tls, ServerError> {
        let provider = Arc::new(provider(&config.tls_cipher_suites)?);
        let versions = versions(&config.tls_min_version)?;
        let fallback = match &config.certificates {
            Certificates::Watched(_) => Some(self_signed(config)?),
            Certificates::SelfSigned { folder } => Some(kept(config, folder, &provider)?),
            Certificates::Files { .. } => None,
        };
        let first = match (&config.certificates, &fallback) {
            (Certificates::SelfSigned { .. }, Some(kept)) => kept.clone(),
            _ => pair(config, fallback.as_ref(), &provider)?,
        };
        let sources = sources(config, first)?;
        let current = build(&sources, &provider, &versions)?;
        Ok(Tls {
            config: config.clone(),
            provider,
            versions,
            current: RwLock::new(Arc::new(current)),
            sources: RwLock::new(sources),
            fallback,
            said: Mutex::default(),
        })
    }

    pub(crate) fn current(&self) -> Arc<Current> {
        self.current.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Looks at the files; what cannot be used leaves the former in force.
    pub(crate) fn reload(&self) {
        let known = self.sources.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        let found =
            pair(&self.config, self.fallback.as_ref(), &self.provider).and_then(|pair| sources(&self.config, pair));
        let found = match found {
            Ok(found) if found == known => return self.said().clear(),
            Ok(found) => found,
            Err(error) => return self.say(&error),
        };
        match build(&found, &self.provider, &self.versions) {
            Ok(current) => {
                *self.current.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(current);
                *self.sources.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = found;
                self.said().clear();
                tracing::info!("new certificates are in force");
            }
            Err(error) => self.say(&error),
        }
    }

    fn said(&self) -> MutexGuard<'_, String> {
        self.said.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn say(&self, error: &ServerError) {
        let text = why(error);
        let mut said = self.said();
        if *said != text {
            tracing::warn!("certificates cannot be used: {text}; the former ones stay in force");
            *said = text;
        }
    }

    /// Who a client is by its certificates: CN and O. `None` when they lead to none of the CAs in force.
    fn client(current: &Current, chain: &[CertificateDer<'_>]) -> Option<Identity> {
        let (own, between) = chain.split_first()?;
        let between = &between[..between.len().min(CHAIN)];
        let Authorities { certificates, verifier, algorithms } = current.clients.as_ref()?;
        let verify = |verifier: &Arc<dyn ClientCertVerifier>| {
            verifier.verify_client_cert(own, between, UnixTime::now()).ok()?;
            x509::authority_ends(chain, certificates)
        };
        let authority = match verifier.as_ref().and_then(verify) {
            Some(end) => end,
            None if x509::is_good(own, certificates, algorithms) => {
                x509::authority_ends(chain, certificates).unwrap_or(i64::MAX)
            }
            None => return None,
        };
        let (_, parsed) = x509_parser::parse_x509_certificate(own).ok()?;
        let texts = |values: Vec<Option<&str>>| values.into_iter().flatten().map(str::to_owned).collect::<Vec<_>>();
        let subject = parsed.subject();
        let name = texts(subject.iter_common_name().map(|value| value.as_str().ok()).collect()).into_iter().next();
        let mut groups = texts(subject.iter_organization().map(|value| value.as_str().ok()).collect());
        groups.push("system:authenticated".to_owned());
        let user = User { name: name.filter(|name| !name.is_empty())?, groups, ..User::default() };
        let end = |one: &CertificateDer<'_>| {
            x509_parser::parse_x509_certificate(one).map_or(i64::MIN, |(_, one)| one.validity().not_after.timestamp())
        };
        let until = between.iter().map(end).fold(end(own).min(authority), i64::min);
        Some(Identity { user, until: u64::try_from(until).unwrap_or_default() })
    }
}

/// Whose a certificate is, and until when (seconds of Unix).
#[derive(Clone)]
struct Identity {
    user: User,
    until: u64,
}

/// The certificates that a client has proven to hold, for the life of its connection.
pub(crate) struct Shown {
    tls: Arc<Tls>,
    chain: Vec<CertificateDer<'static>>,
    /// What was found out last, and by which CAs.
    known: Mutex<Option<(Arc<Current>, Option<Identity>)>>,
}

impl Shown {
    pub(crate) fn new(tls: Arc<Tls>, chain: &[CertificateDer<'_>]) -> Shown {
        let chain = chain.iter().map(|one| one.clone().into_owned()).collect();
        Shown { tls, chain, known: Mutex::new(None) }
    }

    /// Whose they are by the CAs that are in force now, if that is anybody's: a connection may outlast both.
    pub(crate) fn user(&self) -> Option<User> {
        let current = self.tls.current();
        let mut known = self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let good = |identity: &Identity| UnixTime::now().as_secs() <= identity.until;
        match &*known {
            Some((by, None)) if Arc::ptr_eq(by, &current) => None,
            Some((by, Some(identity))) if Arc::ptr_eq(by, &current) && good(identity) => Some(identity.user.clone()),
            _ => {
                let found = Tls::client(&current, &self.chain);
                let user = found.as_ref().map(|identity| identity.user.clone());
                *known = Some((current, found));
                user
            }
        }
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ServerError> {
    std::fs::read(path).map_err(|source| ServerError::File { path: path.to_owned(), source })
}

/// What is wrong, with the file that it is about.
pub(crate) fn why(error: &ServerError) -> String {
    match error {
        ServerError::File { path, source } => format!("{}: {source}", path.display()),
        other => other.to_string(),
    }
}

fn pair(config: &ServerConfig, fallback: Option<&Pair>, provider: &CryptoProvider) -> Result<Pair, ServerError> {
    match (&config.certificates, fallback) {
        (Certificates::Files { certificate, key }, _) => Ok((read(certificate)?, read(key)?)),
        (Certificates::Watched(watched), Some(fallback)) => Ok(match &*watched.borrow() {
            Some((chain, key)) => (chain.clone().into_bytes(), key.clone().into_bytes()),
            None => fallback.clone(),
        }),
        // What is there and cannot be used was told of at the start.
        (Certificates::SelfSigned { folder }, Some(fallback)) => {
            let usable = |(chain, key): &Pair| certified(chain, key, provider).is_ok();
            Ok(found(folder).ok().flatten().filter(usable).unwrap_or_else(|| fallback.clone()))
        }
        (_, None) => self_signed(config),
    }
}

fn sources(config: &ServerConfig, (chain, key): Pair) -> Result<Sources, ServerError> {
    let clients = config.client_ca_file.as_deref().map(read).transpose()?;
    Ok(Sources { chain, key, clients })
}

/// A certificate with its key, where they belong together.
pub(crate) fn certified(chain: &[u8], key: &[u8], provider: &CryptoProvider) -> Result<CertifiedKey, ServerError> {
    let bad = |message: String| ServerError::Certificate { message };
    let chain = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad(format!("the serving certificate is not PEM: {error}")))?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| bad(format!("the serving key is not a PEM key: {error}")))?;
    let key = provider.key_provider.load_private_key(key).map_err(|error| bad(format!("the serving key: {error}")))?;
    let first = chain.first().ok_or_else(|| bad("there is no serving certificate".to_owned()))?;
    let public = x509::public_key(first).ok_or_else(|| bad("the serving certificate cannot be read".to_owned()))?;
    if key.public_key().is_some_and(|key| key != public) {
        return Err(bad("the serving key is not that of the certificate".to_owned()));
    }
    Ok(CertifiedKey::new(chain, key))
}

fn build(
    sources: &Sources,
    provider: &Arc<CryptoProvider>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Result<Current, ServerError> {
    let bad = |message: String| ServerError::Certificate { message };
    let serving = certified(&sources.chain, &sources.key, provider)?;
    let clients = match &sources.clients {
        None => None,
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
            let certificates = certificates.map_err(|error| bad(format!("the client CA file is not PEM: {error}")))?;
            let (signers, others): (Vec<_>, Vec<_>) = certificates.iter().partition(|one| x509::may_sign(one));
            if !others.is_empty() {
                tracing::warn!(
                    certificates = others.len(),
                    "the client CA file holds certificates that cannot sign client certificates: only clients that present \
                     exactly these are accepted; add the CA's own certificate"
                );
            }
            for ca in signers {
                roots.add(ca.clone()).map_err(|error| bad(format!("the client CA file: {error}")))?;
            }
            let verifier: Option<Arc<dyn ClientCertVerifier>> = match roots.is_empty() {
                true if certificates.is_empty() => {
                    return Err(bad("the client CA file holds no certificate".to_owned()));
                }
                true => None,
                false => Some(
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                        .build()
                        .map_err(|error| bad(format!("the client CA file: {error}")))?,
                ),
            };
            Some(Authorities { certificates, verifier, algorithms: provider.signature_verification_algorithms })
        }
    };
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(|error| bad(format!("no cipher suite fits the TLS versions: {error}")))?;
    let builder = match &clients {
        None => builder.with_no_client_auth(),
        Some(authorities) => builder.with_client_cert_verifier(Arc::new(Ask {
            subjects: authorities.verifier.as_ref().map_or_else(Vec::new, |known| known.root_hint_subjects().to_vec()),
            algorithms: authorities.algorithms,
        })),
    };
    let mut server = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(serving)));
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Current { server: Arc::new(server), clients })
}

/// Go's names of TLS 1.3 suites are IANA's; rustls writes them otherwise.
fn iana(suite: rustls::CipherSuite) -> String {
    let name = suite.as_str().unwrap_or_default();
    name.strip_prefix("TLS13_").map_or_else(|| name.to_owned(), |rest| format!("TLS_{rest}"))
}

fn provider(wanted: &[String]) -> Result<CryptoProvider, ServerError> {
    let mut provider = rustls::crypto::ring::default_provider();
    if wanted.is_empty() {
        return Ok(provider);
    }
    let known: Vec<String> = provider.cipher_suites.iter().map(|suite| iana(suite.suite())).collect();
    // Go has two of them by an older name, too.
    let full = |name: &String| match name.strip_suffix("_CHACHA20_POLY1305") {
        Some(_) => format!("{name}_SHA256"),
        None => name.clone(),
    };
    let wanted: Vec<String> = wanted.iter().map(full).collect();
    if let Some(name) = wanted.iter().find(|name| !known.contains(name)) {
        return Err(ServerError::CipherSuite { name: name.clone(), known: known.join(", ") });
    }
    // As in Go, the suites of TLS 1.3 cannot be chosen.
    provider.cipher_suites.retain(|suite| suite.tls13().is_some() || wanted.contains(&iana(suite.suite())));
    Ok(provider)
}

fn versions(least: &str) -> Result<Vec<&'static rustls::SupportedProtocolVersion>, ServerError> {
    match least {
        "" | "VersionTLS10" | "VersionTLS11" | "VersionTLS12" => {
            Ok(vec![&rustls::version::TLS12, &rustls::version::TLS13])
        }
        "VersionTLS13" => Ok(vec![&rustls::version::TLS13]),
        other => Err(ServerError::TlsVersion { name: other.to_owned() }),
    }
}

/// Asks for a certificate and lets everybody through, as Go's `RequestClientCert`: a client of another CA may have a
/// token, and gets 401 otherwise. That the client holds the key is proven; whose CA it is, is looked at later.
#[derive(Debug)]
struct Ask {
    subjects: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for Ask {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn verify_client_cert(
        &self,
        _own: &CertificateDer<'_>,
        _between: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        x509::verify_tls12(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        x509::verify_tls13(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn suites_and_versions_by_their_names() {
        assert!(provider(&["TLS_AES_128_GCM_SHA256".to_owned()]).is_ok());
        let one = provider(&["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305".to_owned()]).unwrap();
        assert_eq!(one.cipher_suites.iter().filter(|suite| suite.tls13().is_none()).count(), 1);
        let error = provider(&["TLS_RSA_WITH_RC4".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("TLS_RSA_WITH_RC4") && error.contains("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"));
        assert_eq!(versions("VersionTLS13").unwrap().len(), 1);
        assert!(versions("SSL3").is_err());
    }
    #[test]
    fn a_certificate_counts_until_it_ends() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let config = ServerConfig::new("node", Certificates::SelfSigned { folder: folder.path().to_owned() });
        let tls = Arc::new(Tls::new(&config).unwrap());
        let shown = Shown::new(tls.clone(), &[made.cert.der().clone()]);
        assert_eq!(shown.user(), None, "it is of no CA");
        let user = User { name: "a".to_owned(), ..User::default() };
        let know = |until| {
            *shown.known.lock().unwrap() = Some((tls.current(), Some(Identity { user: user.clone(), until })));
        };
        know(UnixTime::now().as_secs() + 1000);
        assert_eq!(shown.user(), Some(user.clone()), "it is not looked at again");
        know(UnixTime::now().as_secs() - 1);
        assert_eq!(shown.user(), None, "it is looked at again");
    }
}
