//! Who we are to the API server and where it is, as files say: kubeconfig, certificates, tokens, CAs. It reads; asking
//! for certificates is `certificates`' work, and it must not send a request.

mod certificate;
mod document;
mod stamp;

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use kube::config::{Config, ExecInteractiveMode, KubeConfigOptions, Kubeconfig, KubeconfigError};

pub use certificate::CertificateDates;
pub(crate) use certificate::{Pair, PairError};
pub(crate) use document::kubeconfig_document;
pub(crate) use stamp::Stamp;

/// Why the files do not say who we are or where the API server is.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The kubeconfig cannot be read or understood.
    #[error("kubeconfig {} cannot be used; fix it, it is read again when it changes", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// A file that the kubeconfig names cannot be read.
    #[error("{} (named by kubeconfig {}) cannot be read", path.display(), by.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Who names it.
        by: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The client certificate or its key cannot be used.
    #[error("the client certificate {from} cannot be used: {reason}")]
    Pair {
        /// Where it is from.
        from: String,
        /// Why.
        reason: PairError,
    },
    /// What a kubeconfig asks for and this program does not do.
    #[error("kubeconfig {}: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What, and what to do.
        what: String,
    },
    /// An address of `--api-servers` is none, or may not be used.
    #[error("API server {address:?}: {reason}")]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// TLS cannot be set up from what the files hold.
    #[error("TLS to the API server cannot be set up from kubeconfig {}: {message}", path.display())]
    Tls {
        /// The kubeconfig.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The exec plugin of a kubeconfig does not end.
    #[error("the exec plugin {command} did not end within {limit:?}")]
    ExecHangs {
        /// The plugin.
        command: String,
        /// The limit.
        limit: std::time::Duration,
    },
}

/// Where credentials are found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    pub(crate) kubeconfig: Option<PathBuf>,
    pub(crate) api_servers: Vec<String>,
    /// The rotated client certificate: takes the place of the kubeconfig's when it is ours and valid.
    pub(crate) rotated: Option<PathBuf>,
    /// The common name that a rotated certificate must have.
    pub(crate) common_name: String,
}

/// How we prove who we are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Identity {
    /// By a certificate from there.
    Certificate { from: String, dates: CertificateDates },
    /// By a token from there.
    Token { from: String },
    /// By what a plugin says.
    Exec { command: String },
    /// Not at all.
    Nobody,
}

/// What was read.
pub(crate) struct Material {
    /// For the first server; the others differ in `cluster_url` only.
    pub(crate) config: Config,
    pub(crate) servers: Vec<Uri>,
    pub(crate) identity: Identity,
    /// Where the CAs are from.
    pub(crate) ca: String,
    pub(crate) stamp: Stamp,
}

fn absolute(base: &Path, path: &str) -> PathBuf {
    // The reader of kubeconfigs has made them so already; for others join does no harm.
    base.parent().unwrap_or(Path::new("/")).join(path)
}

impl Sources {
    /// What names this set in messages.
    pub(crate) fn name(&self) -> String {
        match &self.kubeconfig {
            Some(path) => path.display().to_string(),
            None => "--api-servers".to_owned(),
        }
    }

    /// Reads all of it. Files are noted before they are read, so a change meanwhile is seen as one later.
    pub(crate) async fn read(&self) -> Result<Material, CredentialsError> {
        let Some(path) = &self.kubeconfig else {
            let servers = servers(&self.api_servers, false)?;
            let mut config = Config::new(first(&servers, "no kubeconfig and no --api-servers")?);
            config.default_retry = false;
            let ca = "the system's CAs".to_owned();
            return Ok(Material { config, servers, identity: Identity::Nobody, ca, stamp: Stamp::of(Vec::new()) });
        };
        let bad = |source| CredentialsError::Kubeconfig { path: path.clone(), source: Box::new(source) };
        let mut early = Stamp::of(self.rotated.iter().chain([path]).cloned().collect());
        let kubeconfig = Kubeconfig::read_from(path).map_err(bad)?;
        let (files, ca) = named_files(path, &kubeconfig);
        early = early.with(files);
        let explicit_proxy = current_cluster(&kubeconfig).and_then(|cluster| cluster.proxy_url.clone());
        let mut config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(bad)?;
        config.default_retry = false;
        if explicit_proxy.is_none() {
            config.proxy_url = None;
        } else if config.proxy_url.as_ref().is_some_and(|proxy| proxy.scheme_str() != Some("http")) {
            let what = "proxy-url: only http:// proxies can be used; give one, or take the line out".to_owned();
            return Err(CredentialsError::Unsupported { path: path.clone(), what });
        }
        let identity = self.identify(path, &mut config)?;
        let token = matches!(identity, Identity::Token { .. } | Identity::Exec { .. });
        let servers = match self.api_servers.is_empty() {
            true => vec![config.cluster_url.clone()],
            false => servers(&self.api_servers, token)?,
        };
        if config.cluster_url.scheme().is_none() {
            let text = config.cluster_url.to_string();
            config.cluster_url = parse(&text, true, false)?;
        }
        Ok(Material { servers, identity, ca, stamp: early, config })
    }

    /// Says who the configuration is, and puts in place what changes on disk.
    fn identify(&self, path: &Path, config: &mut Config) -> Result<Identity, CredentialsError> {
        let own = self.identify_plain(path, config);
        let auth = &mut config.auth_info;
        if auth.client_certificate.is_none() && auth.client_certificate_data.is_none() {
            return own;
        }
        let Some(rotated) = self.rotated.as_deref().filter(|rotated| rotated.exists()) else { return own };
        let pair = match Pair::read(rotated) {
            Ok(pair) => pair,
            Err(error) => {
                tracing::warn!(file = %rotated.display(), %error, "rotated certificate left aside");
                return own;
            }
        };
        let now = jiff::Timestamp::now();
        let ours = pair.dates.common_name == self.common_name;
        let better = match &own {
            // One that somebody put into the kubeconfig later is there for a reason.
            Ok(Identity::Certificate { dates, .. }) if pair.dates.is_over(now) == dates.is_over(now) => {
                pair.dates.not_before >= dates.not_before
            }
            _ => !pair.dates.is_over(now),
        };
        if !ours || !better {
            return own;
        }
        auth.client_certificate_data = Some(STANDARD.encode(&pair.chain));
        auth.client_key_data = Some(STANDARD.encode(&pair.key).into());
        Ok(Identity::Certificate { from: rotated.display().to_string(), dates: pair.dates })
    }

    fn identify_plain(&self, path: &Path, config: &mut Config) -> Result<Identity, CredentialsError> {
        let auth = &mut config.auth_info;
        let certificate = read_part(path, auth.client_certificate_data.as_deref(), auth.client_certificate.as_deref())?;
        if let Some(chain) = certificate {
            let from = match (&auth.client_certificate_data, &auth.client_certificate) {
                (None, Some(file)) => file.clone(),
                _ => format!("in {}", path.display()),
            };
            let key = match (&auth.client_key_data, &auth.client_key) {
                // The key in the file is checked by whoever sets up TLS.
                (Some(_), _) => None,
                (None, file) => read_part(path, None, file.as_deref())?,
            };
            let pair = |reason| CredentialsError::Pair { from: from.clone(), reason };
            let dates = match key {
                Some(key) => Pair::of(&chain, &key).map_err(pair)?.dates,
                None => CertificateDates::of(&chain).map_err(pair)?,
            };
            return Ok(Identity::Certificate { from, dates });
        }
        if auth.token.is_some() {
            return Ok(Identity::Token { from: format!("in {}", path.display()) });
        }
        if let Some(file) = auth.token_file.take() {
            let file = absolute(path, &file);
            let token = std::fs::read_to_string(&file).map_err(|source| CredentialsError::File {
                path: file.clone(),
                by: path.to_owned(),
                source,
            })?;
            auth.token = Some(token.trim().to_owned().into());
            return Ok(Identity::Token { from: file.display().to_string() });
        }
        if let Some(exec) = &mut auth.exec {
            if exec.interactive_mode == Some(ExecInteractiveMode::Always) {
                let what = "an exec plugin with interactiveMode Always cannot be used by a node agent".to_owned();
                return Err(CredentialsError::Unsupported { path: path.to_owned(), what });
            }
            exec.interactive_mode = Some(ExecInteractiveMode::Never);
            return Ok(Identity::Exec { command: exec.command.clone().unwrap_or_default() });
        }
        match &auth.username {
            Some(name) => Ok(Identity::Token { from: format!("user {name} in {}", path.display()) }),
            None => Ok(Identity::Nobody),
        }
    }
}

fn read_part(by: &Path, data: Option<&str>, file: Option<&str>) -> Result<Option<Vec<u8>>, CredentialsError> {
    if let Some(data) = data.filter(|data| !data.is_empty()) {
        return Ok(Some(STANDARD.decode(data.trim()).unwrap_or_else(|_| data.as_bytes().to_vec())));
    }
    let Some(file) = file.filter(|file| !file.is_empty()) else { return Ok(None) };
    let path = absolute(by, file);
    let read = std::fs::read(&path);
    read.map(Some).map_err(|source| CredentialsError::File { path, by: by.to_owned(), source })
}

pub(crate) fn current_cluster(kubeconfig: &Kubeconfig) -> Option<&kube::config::Cluster> {
    let name = kubeconfig.current_context.as_ref()?;
    let context = kubeconfig.contexts.iter().find(|context| &context.name == name)?.context.as_ref()?;
    kubeconfig.clusters.iter().find(|cluster| cluster.name == context.cluster)?.cluster.as_ref()
}

/// The files that a kubeconfig's current context names, and where its CAs are from.
fn named_files(path: &Path, kubeconfig: &Kubeconfig) -> (Vec<PathBuf>, String) {
    let mut files = Vec::new();
    let mut ca = "the system's CAs (the kubeconfig names none)".to_owned();
    if let Some(cluster) = current_cluster(kubeconfig) {
        if cluster.certificate_authority_data.is_some() {
            ca = format!("certificate-authority-data in {}", path.display());
        } else if let Some(file) = &cluster.certificate_authority {
            ca = file.clone();
            files.push(absolute(path, file));
        }
    }
    let user = kubeconfig.current_context.as_ref().and_then(|name| {
        kubeconfig.contexts.iter().find(|context| &context.name == name)?.context.as_ref()?.user.as_ref()
    });
    let user = user.and_then(|name| kubeconfig.auth_infos.iter().find(|user| &user.name == name));
    if let Some(user) = user.and_then(|user| user.auth_info.as_ref()) {
        let named = [&user.client_certificate, &user.client_key, &user.token_file];
        files.extend(named.into_iter().flatten().map(|file| absolute(path, file)));
    }
    (files, ca)
}

fn first(servers: &[Uri], missing: &str) -> Result<Uri, CredentialsError> {
    servers.first().cloned().ok_or_else(|| CredentialsError::Address {
        address: String::new(),
        reason: format!("{missing}: there is no API server to ask"),
    })
}

/// The addresses of `--api-servers`, each `host`, `host:port` or a URL, in their order, none twice.
pub(crate) fn servers(given: &[String], secret: bool) -> Result<Vec<Uri>, CredentialsError> {
    let mut servers = Vec::new();
    for address in given.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|text| !text.is_empty()) {
        let uri = parse(address, false, secret)?;
        if !servers.contains(&uri) {
            servers.push(uri);
        }
    }
    Ok(servers)
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn parse(address: &str, trusted: bool, secret: bool) -> Result<Uri, CredentialsError> {
    let bad = |reason: String| CredentialsError::Address { address: address.to_owned(), reason };
    let text = match address.contains("://") {
        true => address.to_owned(),
        false => format!("https://{address}"),
    };
    let uri: Uri = text.parse().map_err(|error| bad(format!("is no address ({error}); write https://HOST:PORT")))?;
    let host = uri.host().unwrap_or_default().to_owned();
    match uri.scheme_str() {
        _ if host.is_empty() => Err(bad("has no host; write https://HOST:PORT".to_owned())),
        Some("https") => Ok(uri),
        Some("http") if trusted || !secret || is_loopback(&host) => Ok(uri),
        Some("http") => Err(bad("a token would go over plain http to another machine; use https".to_owned())),
        _ => Err(bad("only https (and http on this machine) can be used".to_owned())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
