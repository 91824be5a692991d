//! The keys and certificates of a cluster, made anew for each one: its authority, what its parts show to each other,
//! and the files by which clients find it. Must not know what is started with them.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};

/// A certificate authority whose certificate and key lie in a folder.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
    name: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Authority({})", self.name)
    }
}

/// Two files: a certificate and its key.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// The key, PEM.
    pub key: PathBuf,
}

impl Authority {
    /// A new one, `<name>.crt` and `<name>.key` in `folder`.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub(crate) fn new(folder: &Path, name: &str) -> Result<Self> {
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid(&mut parameters);
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?;
        write(&folder.join(format!("{name}.crt")), &issuer.pem())?;
        write(&folder.join(format!("{name}.key")), &issuer.key().serialize_pem())?;
        Ok(Self { issuer, folder: folder.to_owned(), name: name.to_owned() })
    }

    /// Where its own certificate is.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.join(format!("{}.crt", self.name))
    }

    /// Where its key is.
    pub(crate) fn key(&self) -> PathBuf {
        self.folder.join(format!("{}.key", self.name))
    }

    /// Its certificate, PEM.
    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A pair for a server (when it has `names`: host names and addresses) and a client, `<file>.crt` and `<file>.key`.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub(crate) fn issue(&self, file: &str, name: &str, group: Option<&str>, names: &[String]) -> Result<Pair> {
        let mut parameters = CertificateParams::new(names.to_vec())?;
        parameters.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            parameters.distinguished_name.push(DnType::OrganizationName, group);
        }
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !names.is_empty() {
            parameters.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        parameters.use_authority_key_identifier_extension = true;
        valid(&mut parameters);
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        let pair =
            Pair { certificate: self.folder.join(format!("{file}.crt")), key: self.folder.join(format!("{file}.key")) };
        write(&pair.certificate, &certificate.pem())?;
        write(&pair.key, &key.serialize_pem())?;
        Ok(pair)
    }
}

/// The key that signs ServiceAccounts' tokens, and the one that proves them: `sa.key` and `sa.pub`.
///
/// # Errors
/// When the files cannot be written.
pub(crate) fn service_accounts(folder: &Path) -> Result<(PathBuf, PathBuf)> {
    let key = KeyPair::generate()?;
    let (private, public) = (folder.join("sa.key"), folder.join("sa.pub"));
    write(&private, &key.serialize_pem())?;
    write(&public, &key.public_key_pem())?;
    Ok((private, public))
}

/// As long as any cluster of ours may live, from a year ago for clocks that go wrong.
fn valid(parameters: &mut CertificateParams) {
    parameters.not_before = rcgen::date_time_ymd(2024, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2049, 1, 1);
}

/// How a client proves who it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Credential<'a> {
    /// By a certificate.
    Pair(&'a Pair),
    /// By a token.
    Token(&'a str),
    /// Not at all.
    None,
}

/// A kubeconfig with everything in it, so that it can be copied elsewhere.
///
/// # Errors
/// When a file of the pair cannot be read.
pub(crate) fn kubeconfig(server: &str, authority: &str, credential: Credential<'_>) -> Result<Value> {
    let user = match credential {
        Credential::Pair(pair) => json!({
            "client-certificate-data": base64(&read(&pair.certificate)?),
            "client-key-data": base64(&read(&pair.key)?),
        }),
        Credential::Token(token) => json!({"token": token}),
        Credential::None => json!({}),
    };
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "longshore",
            "cluster": {"server": server, "certificate-authority-data": base64(authority.as_bytes())},
        }],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "longshore", "context": {"cluster": "longshore", "user": "user"}}],
        "current-context": "longshore",
    }))
}

/// All that a server is called by its clients.
pub(crate) fn server_names(addresses: &[IpAddr]) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .into_iter()
        .map(str::to_owned)
        .collect();
    names.push("kubernetes.default.svc.cluster.local".to_owned());
    names.extend(addresses.iter().map(IpAddr::to_string));
    names.sort();
    names.dedup();
    names
}

/// Writes a file that is for its owner alone.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("{}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("{}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{}", path.display()))
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
