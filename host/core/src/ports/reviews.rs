//! Who may use the node's server: questions that the API server answers.

use async_trait::async_trait;

use super::cluster::ApiError;

/// Somebody who was authenticated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct User {
    /// Name, e.g. `system:serviceaccount:monitoring:prometheus`.
    pub name: String,
    /// UID, empty where unknown.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Extra fields, sorted.
    pub extra: Vec<(String, Vec<String>)>,
}

/// What somebody wants to do with this node: `nodes/<subresource>` of our Node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeAccess {
    /// Verb: `get`, `create`, …
    pub verb: &'static str,
    /// Subresource: `proxy`, `stats`, `metrics`, `log`, `checkpoint`, `pods`, `healthz`, `configz`, `statusz`.
    pub subresource: &'static str,
}

/// The API server's TokenReview and SubjectAccessReview. No caching here.
#[async_trait]
pub trait Reviews: Send + Sync {
    /// Whose token it is; `None` when it is nobody's or is not good any more.
    async fn authenticate(&self, token: &str) -> Result<Option<User>, ApiError>;

    /// Whether the user may; `Err` text is the reason for a refusal, which may be empty.
    async fn authorize(&self, user: &User, access: &NodeAccess) -> Result<Result<(), String>, ApiError>;
}
