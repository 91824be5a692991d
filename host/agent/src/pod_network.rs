//! The pods' network as configured: what the loops and the adapter of CNI are told.

use anyhow::Context;
use longshore_cni::{Cni, CniOptions};
use longshore_reconcile::network::NetworkOptions;

use crate::config::{Config, NetworkPlugin};

/// What the loops are told.
pub(crate) fn options(config: &Config, in_cluster: bool) -> NetworkOptions {
    NetworkOptions {
        plugins: config.network.plugin == NetworkPlugin::Cni,
        in_cluster,
        pod_cidrs: config.network.pod_cidrs.iter().map(ToString::to_string).collect(),
        unmasqueraded: config.network.unmasqueraded.clone(),
        ..NetworkOptions::default()
    }
}

/// CNI plugins, for the agent with that root ID. Without `--network-plugin=cni` they take back what they once attached.
/// An error when that cannot be told.
pub(crate) fn plugins(config: &Config, root_id: &str) -> anyhow::Result<Cni> {
    let options = CniOptions {
        conf_dir: config.network.cni_conf_dir.clone(),
        bin_dirs: config.network.cni_bin_dirs.clone(),
        cache_dir: config.network.cni_cache_dir.clone(),
        root_id: root_id.to_owned(),
    };
    Cni::new(options).context("cannot read which attachments CNI plugins made, so they cannot be released")
}
