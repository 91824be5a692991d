//! What else nodes are tried with: an old kubectl of Debian's, and metrics-server. Must not start them.

use std::path::PathBuf;

use anyhow::Result;

use crate::{apt, go, place::Place};

/// Scrapes nodes for `kubectl top`.
const METRICS_SERVER: &str = "v0.9.0";

/// Variables of tests, and the files of the cache that they name.
fn files(place: &Place) -> [(&'static str, PathBuf); 2] {
    [
        // 1.20, which speaks SPDY alone; that is how Debian 12 has it.
        ("LONGSHORE_TEST_OLD_KUBECTL", place.cache.join("debian/kubernetes-client/usr/bin/kubectl")),
        ("LONGSHORE_TEST_METRICS_SERVER", place.cache.join(format!("metrics-server-{METRICS_SERVER}"))),
    ]
}

/// Fetches or builds what is not in the cache yet.
///
/// # Errors
/// When there is no apt, no Go, no network.
pub(crate) fn fetch(place: &Place) -> Result<()> {
    apt::unpack(&place.cache, "kubernetes-client")?;
    let [_, (_, server)] = files(place);
    if server.is_file() {
        return Ok(());
    }
    let module = "sigs.k8s.io/metrics-server";
    go::build(place, module, METRICS_SERVER, &format!("{module}/cmd/metrics-server"), &server)
}

/// Names what is there to tests; they skip what needs the others.
pub(crate) fn environment(place: &Place) -> Vec<(&'static str, PathBuf)> {
    files(place).into_iter().filter(|(_, file)| file.is_file()).collect()
}
