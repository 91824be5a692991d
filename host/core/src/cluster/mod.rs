//! A node of a cluster: what it says of itself, of its pods and of what happens, in the API server's terms.
//!
//! Pure: the loops in `reconcile` carry it there.

pub mod correlate;
pub mod event_name;
pub mod lease;
pub mod mirror;
pub mod node;
pub mod node_status;
pub mod pod_patch;
