//! End to end: the real `longshore` on a real Docker, one file per theme; [`bed`] is what they stand on. Must not know
//! anything of longshore that its users do not: flags, folders, the local socket, labels.
//!
//! Environment, as `cargo xtask test` sets it: `LONGSHORE_BIN`, `DOCKER_HOST`, `LONGSHORE_TEST_IMAGE`,
//! `LONGSHORE_TEST_EXAMPLE_IMAGE`, `LONGSHORE_TEST_REGISTRY`, `LONGSHORE_TEST_CNI`, `LONGSHORE_TEST_NEW_CNI`, `LONGSHORE_TEST_TARS`,
//! `LONGSHORE_TEST_DOCKER_PID`, `LONGSHORE_TEST_SLOWNESS` (time limits are multiplied by it), `LONGSHORE_TEST_PARALLEL` (tests at once, 4).
//! Tests of `cluster_…` need what `cargo xtask cluster` sets as well: `LONGSHORE_TEST_CLUSTER` and the like, see
//! [`bed::cluster`]; without it they are skipped with a line.
//! Without a Docker tests are skipped with a line, or fail when `LONGSHORE_REQUIRE_DOCKER` is set.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod bed;

mod aborted_streams;
mod adoption;
mod cli;
mod cluster_access;
mod cluster_api_faults;
mod cluster_certificates;
mod cluster_churn;
mod cluster_clients;
mod cluster_doctor;
mod cluster_eviction;
mod cluster_faults;
mod cluster_flags;
mod cluster_kube;
mod cluster_kubectl;
mod cluster_life;
mod cluster_logs;
mod cluster_network;
mod cluster_node;
mod cluster_objects;
mod cluster_pods;
mod cluster_preemption;
mod cluster_pulls;
mod cluster_resize;
mod cluster_terminal;
mod cluster_volumes;
mod cluster_websocket;
mod cluster_work;
mod cni;
mod cni_plugins;
mod collection;
mod env_files;
mod faults;
mod hostile;
mod image_volumes;
mod lifecycle;
mod limits;
mod local_logs;
mod manifest_url;
mod manifests;
mod network;
mod nfs;
mod node_limits;
mod node_logs;
mod oom;
mod own_network;
mod probes;
mod pulls;
mod security;
mod serving;
mod shutdown;
mod start;
mod takeover;
mod volumes;
