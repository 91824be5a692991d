//! CNI plugins, as libcni runs them: the pods' network where the operator has one.
//!
//! Implements [`longshore_core::ports::network::NetworkPlugins`]. It finds and obeys configurations, calls plugins, and
//! keeps on disk what they were told and said, in libcni's own format. It must not know of containers: a sandbox is an ID
//! and a process here.
//!
//! As `libcni` of containernetworking/cni 1.1 and `pkg/kubelet/dockershim/network/cni/cni.go` of Kubernetes 1.20.

mod adopt;
mod cache;
mod chain;
mod cni;
mod config;
mod folder;
mod foreign;
mod invoke;
mod result;
mod validate;
mod version;

pub use cni::{Cni, CniOptions};
pub use folder::first_configuration;
pub use foreign::ForeignAttachments;
