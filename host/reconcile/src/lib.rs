//! The loops: each observes, plans, applies and publishes, again and again.
//!
//! What to do is decided in `longshore-core`; here it is done, through ports only.

mod access;
mod allocatable;
mod apply;
mod background;
pub mod cluster;
pub mod collection;
pub mod events;
pub mod eviction;
pub mod gate;
pub mod health;
mod inbox;
pub mod kernel;
mod limits;
pub mod network;
pub mod node;
pub mod objects;
mod order;
pub mod orphan;
mod ports;
mod probes;
mod publish;
pub mod published;
mod pull;
mod reserved;
mod roster;
mod rounds;
mod seen;
pub mod shutdown;
mod usage;
pub mod views;
mod wishes;
mod worker;
