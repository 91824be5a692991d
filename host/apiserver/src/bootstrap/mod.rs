//! The first client certificate of a node, got with a bootstrap kubeconfig as the kubelet does
//! (`pkg/kubelet/certificate/bootstrap/bootstrap.go`). Later ones are `certificates`' work.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use kube::config::{Kubeconfig, KubeconfigError};
use rcgen::KeyPair;

use crate::certificates::{
    CLIENT_SIGNER, SigningError, Store, StoreError, Wanted, back_off, sign, told, write_private,
};
use crate::connection::{Settings, Switch, common_name, mend};
use crate::credentials::{CredentialsError, Identity, Sources, kubeconfig_document};
use crate::requests::Requests;

/// Why a first certificate cannot be got.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// Nowhere to write what we get.
    #[error("--bootstrap-kubeconfig needs --kubeconfig, the file to write the node's own kubeconfig to")]
    NoKubeconfig,
    /// Both files are missing.
    #[error("neither {} nor the bootstrap kubeconfig {} exists; {}", kubeconfig.display(), bootstrap.display(), mend())]
    Missing {
        /// The node's own.
        kubeconfig: PathBuf,
        /// The one to get it with.
        bootstrap: PathBuf,
    },
    /// The bootstrap kubeconfig cannot be used.
    #[error("the bootstrap kubeconfig cannot be used")]
    Credentials(#[from] CredentialsError),
    /// The bootstrap kubeconfig cannot be read again.
    #[error("the bootstrap kubeconfig {} cannot be read", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// No certificate was signed.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// What was got cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BootstrapError {
    /// Whether it is the same until somebody changes our configuration.
    fn is_final(&self) -> bool {
        !matches!(self, BootstrapError::Signing(_) | BootstrapError::Store(_))
    }
}

/// Whether the kubeconfig is there and who it says we are holds still.
async fn still_valid(settings: &Settings, kubeconfig: &Path, store: &Store) -> bool {
    if !kubeconfig.exists() {
        return false;
    }
    let sources = Sources {
        kubeconfig: Some(kubeconfig.to_owned()),
        api_servers: settings.api_servers.clone(),
        rotated: settings.rotate_certificates.then(|| store.current()),
        common_name: common_name(&settings.node_name),
    };
    match sources.read().await {
        Ok(material) => match material.identity {
            Identity::Certificate { from, dates } if dates.is_over(Timestamp::now()) => {
                tracing::warn!(%from, expired = %dates.not_after, "the client certificate has expired; a new one is asked for");
                false
            }
            Identity::Nobody => false,
            _ => true,
        },
        Err(error) => {
            tracing::warn!(error = told(&error), "the kubeconfig cannot be used; a new certificate is asked for");
            false
        }
    }
}

/// Sees to it that there is a kubeconfig that can be used, where a bootstrap is configured.
pub(crate) async fn ensure(settings: &Settings, store: &Store) -> Result<(), BootstrapError> {
    let Some(bootstrap) = &settings.bootstrap_kubeconfig else { return Ok(()) };
    let kubeconfig = settings.kubeconfig.as_ref().ok_or(BootstrapError::NoKubeconfig)?;
    if still_valid(settings, kubeconfig, store).await {
        return Ok(());
    }
    match (bootstrap.exists(), kubeconfig.exists()) {
        (true, _) => obtain(settings, store).await,
        // It is said what is wrong with it, and it is read again when it changes.
        (false, true) => Ok(()),
        (false, false) => Err(BootstrapError::Missing { kubeconfig: kubeconfig.clone(), bootstrap: bootstrap.clone() }),
    }
}

/// Gets a certificate and writes the kubeconfig that names it; tries until it is there, or cannot be there ever.
async fn obtain(settings: &Settings, store: &Store) -> Result<(), BootstrapError> {
    let mut failures = 0;
    loop {
        match once(settings, store).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_final() => return Err(error),
            Err(error) => {
                let wait = back_off(failures, (settings.random)());
                failures += 1;
                tracing::warn!(error = told(&error), again_in = ?wait, "no first certificate yet");
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// The key that waits for its certificate, or a new one.
fn waiting_key(store: &Store) -> Result<KeyPair, BootstrapError> {
    let path = store.waiting_key();
    if let Ok(pem) = std::fs::read_to_string(&path) {
        match KeyPair::from_pem(&pem) {
            Ok(key) if key.is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256) => return Ok(key),
            _ => tracing::warn!(file = %path.display(), "a key that waits there cannot be used; a new one is made"),
        }
    }
    let key = KeyPair::generate().map_err(|error| SigningError::Make(error.to_string()))?;
    write_private(&path, &key.serialize_pem())?;
    Ok(key)
}

/// One try of that.
pub(crate) async fn once(settings: &Settings, store: &Store) -> Result<(), BootstrapError> {
    let (Some(bootstrap), Some(kubeconfig)) = (&settings.bootstrap_kubeconfig, &settings.kubeconfig) else {
        return Err(BootstrapError::NoKubeconfig);
    };
    let sources = Sources {
        kubeconfig: Some(bootstrap.clone()),
        api_servers: settings.api_servers.clone(),
        ..Sources::default()
    };
    let switch = Switch::new(sources).await?;
    let unreadable = |source| BootstrapError::Kubeconfig { path: bootstrap.clone(), source: Box::new(source) };
    let read = Kubeconfig::read_from(bootstrap).map_err(unreadable)?;
    let cluster = crate::credentials::current_cluster(&read).cloned().unwrap_or_default();
    let server = cluster.server.clone().unwrap_or_default();
    let key = waiting_key(store)?;
    let wanted = Wanted {
        signer: CLIENT_SIGNER,
        common_name: common_name(&settings.node_name),
        dns: Default::default(),
        ips: Default::default(),
        by_digest: true,
    };
    let pair = sign(&Requests::new(switch.client()), &wanted, &key).await?;
    let current = store.put(&pair)?;
    write_private(kubeconfig, &kubeconfig_document(&cluster, &server, &current))?;
    if let Err(error) = std::fs::remove_file(store.waiting_key()) {
        tracing::debug!(%error, "the waiting key stays");
    }
    tracing::info!(kubeconfig = %kubeconfig.display(), certificate = %pair.dates, "joined the cluster");
    Ok(())
}
