//! The connection tried against servers of our own.
