//! The loops against ports in memory: pods come up, survive faults and restarts of the agent, and go.
#![allow(clippy::unwrap_used)]

mod adoption;
mod bed;
mod cluster;
mod collection;
mod eviction;
mod faults;
mod hooks;
mod images;
mod life;
mod limits;
mod network;
mod preemption;
mod probing;
mod reporting;
mod resize;
mod schedule;
mod shutdown;
mod variables;
