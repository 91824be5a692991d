//! What the machine, its pods and their containers use, from the kernel itself: the ports `Stats` and `KernelLog`.
//!
//! [`MachineStats`] reads cgroups of v1, v2 and both beside each other, `/proc`, and file systems; [`KernelMessages`]
//! hears the kernel. They must not ask the runtime, keep a history, or decide anything: what cannot be read is `None`.

mod cgroups;
mod guard;
mod kernel;
mod machine;
mod node;
mod parse;
mod rates;

pub use kernel::KernelMessages;
pub use machine::{MachineStats, StatsOptions};
