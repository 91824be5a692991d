//! The node's heartbeat: its Lease, renewed in a quarter of its time.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use longshore_core::cluster::lease::renewed;
use longshore_core::ports::cluster::ApiError;
use tokio::sync::watch;

use super::{Cluster, Patience, Said};

/// Renews the Lease for ever.
pub(super) async fn run(cluster: &Cluster, mut registered: watch::Receiver<Option<String>>) {
    let period = cluster.options.lease / 4;
    let mut patience = Patience::new(Duration::from_secs(7));
    let mut said = Said::default();
    let mut last: Option<Lease> = None;
    // The heartbeat of a node that is not registered would be nobody's.
    if registered.wait_for(Option::is_some).await.is_err() {
        return std::future::pending().await;
    }
    loop {
        let uid = registered.borrow().clone();
        let wait = match renew(cluster, uid.as_deref(), last.as_ref()).await {
            Ok(lease) => {
                said.worked("the node's lease");
                patience.reset();
                last = Some(lease);
                period
            }
            Err(error) => {
                // Somebody else wrote or removed it: the next try begins with what there is.
                last = None;
                said.failed("the node's lease cannot be renewed", &error);
                patience.after(&error).min(period)
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn renew(cluster: &Cluster, node_uid: Option<&str>, last: Option<&Lease>) -> Result<Lease, ApiError> {
    let known = match last {
        Some(last) => Some(last.clone()),
        None => cluster.api.lease().await?,
    };
    let seconds = i32::try_from(cluster.options.lease.as_secs()).unwrap_or(40);
    let lease = renewed(&cluster.description.name, node_uid, seconds, known.as_ref(), Timestamp::now());
    cluster.api.put_lease(&lease).await
}
