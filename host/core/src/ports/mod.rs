//! Ports: what the loops need of the world, as object-safe traits held behind `Arc<dyn …>`.
//!
//! A port says what is asked and what an answer means; it must not know who answers. Adapters implement
//! them, the fakes in `tests/` implement them in memory, and nobody adds a type parameter for one.

pub mod archive;
pub mod cluster;
pub mod events;
pub mod exec;
pub mod files;
pub mod kernel;
pub mod network;
pub mod objects;
pub mod pods;
pub mod probes;
pub mod pulls;
pub mod reviews;
pub mod runtime;
pub mod shutdown;
pub mod sources;
pub mod stats;
pub mod streams;
