//! [`ClusterApi`]: our Node and Lease, pods' status, mirror pods, events. One request a call; no memory.

use async_trait::async_trait;
use http::Method;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1;
use longshore_core::pod::PodId;
use longshore_core::ports::cluster::{ApiError, ClusterApi};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::requests::{JSON, Requests, STRATEGIC, Way, encoded};

/// Namespace of nodes' leases.
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
/// Names the manager of the fields that we set.
const MANAGER: &str = "fieldManager=kubelet";

/// The API server's side of one node.
#[derive(Clone)]
pub struct NodeApi {
    requests: Requests,
    node: String,
}

impl NodeApi {
    /// For the node of that name.
    pub fn new(way: impl Into<Way>, node: &str) -> Self {
        Self { requests: Requests::new(way), node: node.to_owned() }
    }

    fn own_node(&self) -> String {
        format!("/api/v1/nodes/{}", encoded(&self.node))
    }

    async fn patch<T: serde::de::DeserializeOwned>(&self, path: &str, patch: &Value) -> Result<T, ApiError> {
        self.requests.send(Method::PATCH, &format!("{path}?{MANAGER}"), STRATEGIC, patch).await
    }

    async fn create<T: serde::Serialize + serde::de::DeserializeOwned>(
        &self,
        path: &str,
        object: &T,
    ) -> Result<T, ApiError> {
        self.requests.send(Method::POST, &format!("{path}?{MANAGER}"), JSON, object).await
    }
}

fn pod_path(namespace: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", encoded(namespace), encoded(name))
}

/// Digits of a version's part: `36+` is 36.
fn number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    major: String,
    #[serde(default)]
    minor: String,
    #[serde(default, rename = "gitVersion")]
    git: String,
}

impl Version {
    /// From the two fields, or from `v1.36.3` where they are empty (a server built without them).
    fn parts(&self) -> Option<(u32, u32)> {
        let mut parts = self.git.trim_start_matches('v').split('.');
        let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let told = number(&self.major).zip(number(&self.minor));
        told.filter(|told| *told != (0, 0)).or_else(|| number(major).zip(number(minor)))
    }
}

/// As [`ClusterApi::server_version`].
pub(crate) async fn server_version(requests: &Requests) -> Result<(u32, u32), ApiError> {
    let version: Version = requests.get("/version").await?;
    let parts = version.parts().ok_or_else(|| ApiError::Refused {
        code: 502,
        message: format!("version {}.{} ({}) cannot be parsed", version.major, version.minor, version.git),
    })?;
    requests.told_version(parts);
    Ok(parts)
}

#[async_trait]
impl ClusterApi for NodeApi {
    async fn server_version(&self) -> Result<(u32, u32), ApiError> {
        server_version(&self.requests).await
    }

    async fn node(&self) -> Result<Option<v1::Node>, ApiError> {
        self.requests.find(&self.own_node()).await
    }

    async fn create_node(&self, node: &v1::Node) -> Result<v1::Node, ApiError> {
        self.create("/api/v1/nodes", node).await
    }

    async fn patch_node(&self, patch: &Value) -> Result<v1::Node, ApiError> {
        self.patch(&self.own_node(), patch).await
    }

    async fn patch_node_status(&self, patch: &Value) -> Result<v1::Node, ApiError> {
        self.patch(&format!("{}/status", self.own_node()), patch).await
    }

    async fn lease(&self) -> Result<Option<Lease>, ApiError> {
        self.requests.find(&format!("{LEASES}/{}", encoded(&self.node))).await
    }

    async fn put_lease(&self, lease: &Lease) -> Result<Lease, ApiError> {
        if lease.metadata.resource_version.as_deref().is_some_and(|version| !version.is_empty()) {
            let path = format!("{LEASES}/{}?{MANAGER}", encoded(&self.node));
            self.requests.send(Method::PUT, &path, JSON, lease).await
        } else {
            self.create(LEASES, lease).await
        }
    }

    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<v1::Pod>, ApiError> {
        self.requests.find(&pod_path(namespace, name)).await
    }

    async fn create_pod(&self, pod: &v1::Pod) -> Result<v1::Pod, ApiError> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        self.create(&format!("/api/v1/namespaces/{}/pods", encoded(namespace)), pod).await
    }

    async fn patch_pod_status(&self, pod: &PodId, patch: &Value) -> Result<v1::Pod, ApiError> {
        match self.patch(&format!("{}/status", pod_path(&pod.namespace, &pod.name)), patch).await {
            // Another pod of the same name: a UID is told to be immutable, not to be in conflict.
            Err(ApiError::Refused { code: 422, message }) if message.contains("metadata.uid") => {
                Err(ApiError::Conflict { message, exists: false })
            }
            other => other,
        }
    }

    async fn delete_pod(&self, pod: &PodId, grace_seconds: i64) -> Result<(), ApiError> {
        let options = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": grace_seconds.max(0),
            "preconditions": {"uid": pod.uid},
        });
        let path = pod_path(&pod.namespace, &pod.name);
        match self.requests.send::<Value, _>(Method::DELETE, &path, JSON, &options).await {
            // A conflict means that another pod has the name by now: ours is gone.
            Ok(_) | Err(ApiError::NotFound { .. } | ApiError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn create_event(&self, event: &v1::Event) -> Result<v1::Event, ApiError> {
        let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
        self.create(&format!("/api/v1/namespaces/{}/events", encoded(namespace)), event).await
    }

    async fn patch_event(&self, namespace: &str, name: &str, patch: &Value) -> Result<v1::Event, ApiError> {
        self.patch(&format!("/api/v1/namespaces/{}/events/{}", encoded(namespace), encoded(name)), patch).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_with_and_without_their_parts() {
        let version = |major: &str, minor: &str, git: &str| {
            Version { major: major.to_owned(), minor: minor.to_owned(), git: git.to_owned() }.parts()
        };
        assert_eq!(version("1", "36", "v1.36.3"), Some((1, 36)));
        assert_eq!(version("1", "35+", "v1.35.2-gke.1"), Some((1, 35)));
        assert_eq!(version("", "", "v1.33.0"), Some((1, 33)));
        assert_eq!(version("", "", ""), None);
    }
}
