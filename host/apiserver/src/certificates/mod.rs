//! The care for our certificates while we run: the client's is renewed before it ends, the server's also when the node's
//! names change. How a first certificate comes is `bootstrap`'s.

mod schedule;
mod signing;
mod store;

use std::time::Duration;

use jiff::Timestamp;
use rcgen::KeyPair;
use tokio::sync::watch;

pub use schedule::ServingNames;
pub(crate) use schedule::{back_off, renewal, renewal_of_new};
pub use signing::SigningError;
pub(crate) use signing::{CLIENT_SIGNER, SERVING_SIGNER, Wanted, sign};
pub use store::StoreError;
pub(crate) use store::{Store, write_private};

use crate::bootstrap;
use crate::connection::{Settings, Switch, common_name, mend};
use crate::credentials::{Identity, Pair};
use crate::requests::Requests;

/// The clock is looked at so often, as it may jump and machines sleep.
const LOOK: Duration = Duration::from_secs(30);

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error("it was not signed")]
    Signing(#[from] SigningError),
    #[error("it cannot be kept")]
    Store(#[from] StoreError),
}

/// An error with its causes.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Waits until that time by the clock, at least a moment.
async fn sleep_towards(at: Timestamp) {
    let left = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
    tokio::time::sleep(left.clamp(Duration::from_millis(50), LOOK)).await;
}

pub(crate) struct Care {
    settings: Settings,
    switch: Switch,
    requests: Requests,
}

impl Care {
    pub(crate) fn new(settings: &Settings, switch: &Switch, client: kube::Client) -> Self {
        Self { settings: settings.clone(), switch: switch.clone(), requests: Requests::new(client) }
    }

    fn random(&self) -> f64 {
        (self.settings.random)()
    }

    /// Renews the client certificate, for as long as we prove who we are by one.
    pub(crate) async fn keep_client(&self) {
        if !self.settings.rotate_certificates {
            return;
        }
        let store = Store::new(&self.settings.cert_dir, "kubelet-client");
        let (mut failures, mut known, mut due) = (0, None, Timestamp::MAX);
        loop {
            self.switch.refresh().await;
            let Identity::Certificate { dates, from } = self.switch.identity() else {
                tokio::time::sleep(LOOK).await;
                continue;
            };
            if known.as_ref() != Some(&dates) {
                due = match known {
                    None => renewal(&dates, self.random()),
                    Some(_) => renewal_of_new(&dates, Timestamp::now(), self.random()),
                };
                tracing::info!(%from, until = %dates.not_after, renewal = %due, "client certificate");
                known = Some(dates.clone());
                failures = 0;
            }
            let now = Timestamp::now();
            if now < due {
                sleep_towards(due).await;
                continue;
            }
            let renewed = match (dates.is_over(now), &self.settings.bootstrap_kubeconfig) {
                (false, _) => self.renew_client(&store).await.map_err(|error| told(&error)),
                (true, Some(_)) => bootstrap::once(&self.settings, &store).await.map_err(|error| told(&error)),
                (true, None) => Err(format!("{from} expired at {}; {}", dates.not_after, mend())),
            };
            if let Err(error) = renewed {
                let wait = back_off(failures, self.random());
                failures += 1;
                tracing::warn!(%error, again_in = ?wait, until = %dates.not_after, "client certificate was not renewed");
                tokio::time::sleep(wait).await;
            }
        }
    }

    async fn renew_client(&self, store: &Store) -> Result<(), RenewalError> {
        let key = KeyPair::generate().map_err(|error| SigningError::Make(error.to_string()))?;
        let wanted = Wanted {
            signer: CLIENT_SIGNER,
            common_name: common_name(&self.settings.node_name),
            dns: Default::default(),
            ips: Default::default(),
            by_digest: false,
        };
        let pair = sign(&self.requests, &wanted, &key).await?;
        store.put(&pair)?;
        Ok(())
    }

    /// Gets and renews the certificate of our own server.
    pub(crate) async fn keep_serving(
        &self,
        mut names: watch::Receiver<ServingNames>,
        told_to: &watch::Sender<Option<(String, String)>>,
    ) {
        if !self.settings.rotate_server_certificates {
            return;
        }
        let store = Store::new(&self.settings.cert_dir, "kubelet-server");
        let common_name = common_name(&self.settings.node_name);
        let usable = |pair: &Pair| pair.dates.common_name == common_name && !pair.dates.is_over(Timestamp::now());
        let mut current = Pair::read(&store.current()).ok().filter(usable);
        let mut due = Timestamp::MAX;
        if let Some(pair) = &current {
            due = renewal(&pair.dates, self.random());
            told_to.send_replace(Some((pair.chain.clone(), pair.key.clone())));
        }
        let mut failures = 0;
        loop {
            let wanted = names.borrow_and_update().clone();
            let good = current.as_ref().is_some_and(|pair| wanted.covered_by(&pair.chain));
            if wanted.ips.is_empty() || good && Timestamp::now() < due {
                let until = if current.is_some() { due } else { Timestamp::MAX };
                tokio::select! {
                    () = sleep_towards(until) => {}
                    // Whoever says no more names leaves the last ones.
                    Ok(()) = names.changed() => {}
                }
                continue;
            }
            match self.renew_serving(&store, &wanted, &common_name).await {
                Ok(pair) => {
                    failures = 0;
                    due = renewal_of_new(&pair.dates, Timestamp::now(), self.random());
                    told_to.send_replace(Some((pair.chain.clone(), pair.key.clone())));
                    current = Some(pair);
                }
                Err(error) => {
                    let wait = back_off(failures, self.random());
                    failures += 1;
                    tracing::warn!(error = told(&error), again_in = ?wait, "no new certificate for the node's server");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        Ok(()) = names.changed() => {}
                    }
                }
            }
        }
    }

    async fn renew_serving(&self, store: &Store, names: &ServingNames, common: &str) -> Result<Pair, RenewalError> {
        let key = KeyPair::generate().map_err(|error| SigningError::Make(error.to_string()))?;
        let wanted = Wanted {
            signer: SERVING_SIGNER,
            common_name: common.to_owned(),
            dns: names.dns.clone(),
            ips: names.ips.clone(),
            by_digest: false,
        };
        let pair = sign(&self.requests, &wanted, &key).await?;
        store.put(&pair)?;
        Ok(pair)
    }
}
