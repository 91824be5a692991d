//! The Kubernetes API that we call: joining, the node, pods, what pods use. Only this room names kube.

mod cluster;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod fake;
mod objects;
mod pods;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod real;
mod reflector;
mod requests;
mod reviews;
mod tokens;

pub use cluster::NodeApi;
pub use objects::ApiObjects;
pub use pods::NodePods;
pub use reviews::NodeReviews;
