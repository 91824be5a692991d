//! Decisions of the node agent: what should run, what to do next, what to report.
//!
//! Everything here is a value or a pure function. Time, randomness and the state of the world come in as
//! arguments; nothing here reads a clock, does I/O or starts a task. The traits in [`ports`] say what the
//! loops need of the world; adapters in other rooms implement them.

pub mod action;
pub mod admit;
pub mod backoff;
pub mod cgroup;
pub mod cidr;
pub mod cluster;
pub mod collect;
pub mod container;
pub mod container_config;
pub mod credentials;
pub mod defaults;
pub mod desired;
pub mod dns;
pub mod document;
pub mod downward;
pub mod duration;
pub mod environment;
pub mod event;
pub mod evict;
pub mod gate;
pub mod hash;
pub mod hooks;
pub mod huge_pages;
pub mod labels;
pub mod manifest;
pub mod network;
pub mod node;
pub mod observed;
pub mod oom;
pub mod plan;
pub mod pod;
pub mod ports;
pub mod preempt;
pub mod priority;
pub mod probe;
pub mod quantity;
pub mod record;
pub mod resize;
pub mod resources;
pub mod restart;
pub mod room;
pub mod sandbox_config;
pub mod security;
pub mod services;
pub mod shutdown;
pub mod status;
pub mod support;
#[cfg(test)]
mod testing;
pub mod validate;
pub mod view;
pub mod volume;
pub mod why;
