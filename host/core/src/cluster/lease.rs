//! The node's Lease in `kube-node-lease`: its heartbeat (`component-helpers/apimachinery/lease/controller.go`).

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};

/// Namespace of all nodes' Leases.
pub const NAMESPACE: &str = "kube-node-lease";

/// The Lease to be written: a new one, or the last one with a new time. `node_uid` makes it go with the Node.
pub fn renewed(
    node: &str,
    node_uid: Option<&str>,
    duration_seconds: i32,
    last: Option<&Lease>,
    now: Timestamp,
) -> Lease {
    let mut lease = last.cloned().unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            ..Default::default()
        },
        spec: None,
    });
    if let (true, Some(uid)) = (lease.metadata.owner_references.as_ref().is_none_or(Vec::is_empty), node_uid) {
        lease.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.to_owned(),
            uid: uid.to_owned(),
            ..Default::default()
        }]);
    }
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(node.to_owned());
    spec.lease_duration_seconds = Some(duration_seconds);
    spec.renew_time = Some(MicroTime(now));
    lease
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_keeps_what_others_wrote() {
        let first = renewed("n1", None, 40, None, Timestamp::UNIX_EPOCH);
        assert!(first.metadata.owner_references.is_none());
        let mut known = first.clone();
        known.metadata.resource_version = Some("7".to_owned());
        let later = Timestamp::from_second(10).unwrap();
        let second = renewed("n1", Some("u"), 40, Some(&known), later);
        assert_eq!(second.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(second.metadata.owner_references.as_ref().unwrap()[0].uid, "u");
        assert_eq!(second.spec.unwrap().renew_time.unwrap().0, later);
    }
}
