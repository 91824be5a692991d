//! The Kubernetes API that we call: joining, the node, pods, what pods use. Only this room names kube.

mod bootstrap;
mod certificates;
mod cluster;
mod connection;
mod credentials;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod fake;
mod kept;
mod objects;
mod own_node;
mod pace;
mod pem;
mod podcertificates;
mod pods;
mod reflector;
mod refusal;
mod requests;
mod reviews;
mod tokens;
mod visitor;

pub use bootstrap::BootstrapError;
pub use certificates::{ServingNames, SigningError, StoreError};
pub use cluster::NodeApi;
pub use connection::{Connection, ConnectionError, ConnectionStatus, JoinError, Random, ServerVersion, Settings};
pub use credentials::{CertificateDates, CredentialsError};
pub use kept::ArchivedObjects;
pub use objects::ApiObjects;
pub use own_node::WatchedNode;
pub use pace::{Pace, Rate};
pub use pods::NodePods;
pub use requests::Way;
pub use reviews::NodeReviews;
pub use visitor::{VisitError, Visitor};
