//! What the node serves: the kubelet's HTTPS API (10250) and health (10248). Only this room names axum.
//!
//! [`Server::bind`] takes a [`ServerConfig`] and [`Parts`] (ports of others) and serves until told to stop. It must not
//! decide anything about pods: it reads what was published, and hands streams through.

mod access;
mod config;
mod copy;
pub mod fuzz;
mod health;
mod listen;
mod logs;
mod metrics;
mod namespaces;
mod node_logs;
mod query;
mod routes;
mod run;
mod self_signed;
mod server;
mod streams;
mod tls;
mod x509;
mod zpages;

pub use config::{AnonymousAccess, Authorization, Certificates, LogReader, Parts, ServerConfig, SetVerbosity};
pub use namespaces::{Namespace, Namespaces};
pub use server::{Server, ServerError};
