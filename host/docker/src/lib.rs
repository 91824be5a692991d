//! The container runtime on the Docker Engine API, for Docker 20.10 (API 1.41) and later.
//!
//! Implements [`longshore_core::ports::runtime::ContainerRuntime`], [`longshore_core::ports::exec::ContainerExec`] and
//! [`longshore_core::ports::network::BridgeNetworks`].
//! It translates and obeys; it must not decide anything about pods, and it touches no container and no network
//! without our root label except in [`Docker::remove_foreign`], which `longshore takeover` calls. Images have no label: it
//! removes any that it is told to and that nothing uses.
//!
//! What is written to the daemon goes through bollard; what is read is parsed by narrow structs of our own
//! (`wire.rs`), since the closed enums of generated stubs would refuse a whole answer for one new word in it.

mod config;
mod connection;
mod content;
mod create;
mod docker;
mod entries;
mod events;
mod exec;
mod fault;
mod foreign;
pub mod fuzz;
mod images;
mod info;
mod known;
mod lifecycle;
mod lines;
mod logs;
mod names;
mod networks;
mod observe;
mod packet_filter;
mod pause;
mod providers;
mod store;
mod streams;
mod user;
mod wire;

pub use config::{config_credentials, config_files};
pub use docker::{Docker, DockerOptions, LogBounds};
pub use providers::ExecProviders;
