//! The serving certificate of our own making, and the folder that keeps it. It must not keep the node from serving: a disk that
//! is full, or was when the files were written, costs the certificate and no more.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::config::ServerConfig;
use crate::server::ServerError;
use crate::tls::{Pair, certified, read, why};

/// The names of the two files, as the kubelet has them.
const CHAIN_FILE: &str = "kubelet.crt";
const KEY_FILE: &str = "kubelet.key";

/// What a folder has in place of a self-signed certificate; `None` where one of the two files is missing.
pub(crate) fn found(folder: &Path) -> Result<Option<Pair>, ServerError> {
    let (chain, key) = (folder.join(CHAIN_FILE), folder.join(KEY_FILE));
    if chain.exists() && key.exists() { Ok(Some((read(&chain)?, read(&key)?))) } else { Ok(None) }
}

/// The self-signed certificate of a folder, made when there is none (`pkg/kubelet/…/certutil`). A disk is no reason not to serve:
/// in place of one that cannot be used, and where none can be stored, another serves from memory; our own is made anew.
pub(crate) fn kept(config: &ServerConfig, folder: &Path, provider: &CryptoProvider) -> Result<Pair, ServerError> {
    let unusable = match found(folder) {
        Ok(None) => None,
        Ok(Some(found)) => match certified(&found.0, &found.1, provider) {
            Ok(_) => return Ok(found),
            Err(error) => Some((error, is_ours(&found.0))),
        },
        Err(error) => Some((error, false)),
    };
    let made = self_signed(config)?;
    let store = match unusable {
        None => true,
        Some((error, ours)) => {
            let (folder, error) = (folder.display(), why(&error));
            let what = if ours { "it is made anew" } else { "one in memory serves until they are fixed or removed" };
            tracing::warn!("{CHAIN_FILE} and {KEY_FILE} in {folder} cannot be used: {error}; {what}");
            ours
        }
    };
    if store && let Err(error) = keep(folder, &made) {
        let folder = folder.display();
        tracing::warn!(
            "the serving certificate cannot be stored in {folder}: {error}; after a restart another one serves"
        );
    }
    Ok(made)
}

/// Whether a chain that cannot be used was made here, or was never written.
fn is_ours(chain: &[u8]) -> bool {
    let Some(Ok(first)) = CertificateDer::pem_slice_iter(chain).next() else { return chain.is_empty() };
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(&first) else { return false };
    let mut names = parsed.subject().iter_common_name();
    names.any(|name| name.as_str().is_ok_and(|name| name.ends_with(OURS)))
}

fn keep(folder: &Path, (chain, key): &Pair) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    write(folder, KEY_FILE, key, 0o600)?;
    // The last: without it there is no certificate.
    write(folder, CHAIN_FILE, chain, 0o644)
}

/// Puts a file there, all of it or nothing, also when the power is cut.
fn write(folder: &Path, name: &str, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let partial = folder.join(format!(".{name}.partial"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&partial)?;
    // One that was left by a crash may have other rights.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes).and_then(|()| file.sync_all())?;
    std::fs::rename(&partial, folder.join(name))?;
    File::open(folder)?.sync_all()
}

/// What the name of a certificate of ours ends with.
const OURS: &str = "@longshore";

pub(crate) fn self_signed(config: &ServerConfig) -> Result<Pair, ServerError> {
    let mut names = vec![config.node_name.clone(), "localhost".to_owned(), "127.0.0.1".to_owned()];
    names.extend(config.addresses.iter().map(ToString::to_string));
    let sign = |error: rcgen::Error| ServerError::Certificate { message: error.to_string() };
    let key = rcgen::KeyPair::generate().map_err(sign)?;
    let mut wanted = rcgen::CertificateParams::new(names).map_err(sign)?;
    wanted.distinguished_name = rcgen::DistinguishedName::new();
    wanted.distinguished_name.push(rcgen::DnType::CommonName, format!("{}{OURS}", config.node_name));
    let made = wanted.self_signed(&key).map_err(sign)?;
    Ok((made.pem().into_bytes(), key.serialize_pem().into_bytes()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Certificates;
    use crate::tls::Tls;

    #[test]
    fn a_disk_is_no_reason_not_to_serve() {
        let root = tempfile::tempdir().unwrap();
        let provider = rustls::crypto::ring::default_provider();
        let config = |folder: &Path| ServerConfig::new("node", Certificates::SelfSigned { folder: folder.to_owned() });
        let made = || kept(&config(root.path()), root.path(), &provider).unwrap();
        let first = made();
        assert_eq!(made(), first, "it is kept");
        for cut in [CHAIN_FILE, KEY_FILE] {
            std::fs::write(root.path().join(cut), "").unwrap();
            let next = made();
            assert_eq!(found(root.path()).unwrap(), Some(next), "it is made anew and kept");
        }
        let somebodys = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
        let chain = root.path().join(CHAIN_FILE);
        std::fs::write(&chain, &somebodys).unwrap();
        assert!(Tls::new(&config(root.path())).is_ok());
        assert_eq!(std::fs::read_to_string(&chain).unwrap(), somebodys, "it is not ours to replace");
        assert!(Tls::new(&config(&chain.join("no-folder"))).is_ok());
    }
}
