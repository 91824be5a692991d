//! The loops against ports in memory: pods come up, survive faults and restarts of the agent, and go.
#![allow(clippy::unwrap_used)]

mod adoption;
mod bed;
mod cluster;
mod faults;
mod life;
mod limits;
mod probing;
mod resize;
