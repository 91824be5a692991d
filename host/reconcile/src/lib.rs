//! The loops: each observes, plans, applies and publishes, again and again.
//!
//! What to do is decided in `longshore-core`; here it is done, through ports only.

pub mod events;
pub mod views;
