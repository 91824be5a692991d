//! How things look on a terminal: kubectl's columns, ages and states. Pure: times come in as arguments.

pub(crate) mod age;
pub(crate) mod escape;
pub(crate) mod pod_row;
#[cfg(test)]
pub(crate) mod samples;
pub(crate) mod table;
