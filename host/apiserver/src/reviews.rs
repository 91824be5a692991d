//! [`Reviews`]: TokenReview and SubjectAccessReview, as questions to the API server. No caches.

use std::collections::BTreeMap;

use async_trait::async_trait;
use http::Method;
use k8s_openapi::api::authentication::v1::TokenReview;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use longshore_core::ports::cluster::ApiError;
use longshore_core::ports::reviews::{NodeAccess, Reviews, User};
use serde_json::json;

use crate::requests::{JSON, Requests, Way};

/// Asks the API server about users of the node's server.
#[derive(Clone)]
pub struct NodeReviews {
    requests: Requests,
    node: String,
}

impl NodeReviews {
    /// For the node of that name.
    pub fn new(way: impl Into<Way>, node: &str) -> Self {
        Self { requests: Requests::new(way), node: node.to_owned() }
    }
}

#[async_trait]
impl Reviews for NodeReviews {
    async fn authenticate(&self, token: &str) -> Result<Option<User>, ApiError> {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token},
        });
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let answer: TokenReview = self.requests.send(Method::POST, path, JSON, &review).await?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true));
        Ok(user.map(|user| User {
            name: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default().into_iter().collect(),
        }))
    }

    async fn authorize(&self, user: &User, access: &NodeAccess) -> Result<Result<(), String>, ApiError> {
        let extra: BTreeMap<&str, &Vec<String>> =
            user.extra.iter().map(|(key, values)| (key.as_str(), values)).collect();
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user.name,
                "uid": user.uid,
                "groups": user.groups,
                "extra": extra,
                "resourceAttributes": {
                    "verb": access.verb, "version": "v1", "resource": "nodes",
                    "subresource": access.subresource, "name": self.node,
                },
            },
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let answer: SubjectAccessReview = self.requests.send(Method::POST, path, JSON, &review).await?;
        let status = answer.status.unwrap_or_default();
        Ok(if status.allowed { Ok(()) } else { Err(status.reason.unwrap_or_default()) })
    }
}
