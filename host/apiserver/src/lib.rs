//! The Kubernetes API that we call: joining, the node, pods, what pods use. Only this room names kube.

mod cluster;
mod pods;
mod reflector;
mod requests;

pub use cluster::NodeApi;
pub use pods::NodePods;
