//! The pods' network as configured: what the loops and the adapter of CNI are told.

use anyhow::Context;
use longshore_cni::{Cni, CniOptions, first_configuration};
use longshore_reconcile::network::NetworkOptions;

use crate::config::{Config, NetworkPlugin};

/// What the loops are told.
pub(crate) fn options(config: &Config, in_cluster: bool) -> NetworkOptions {
    NetworkOptions {
        plugins: config.network.plugin == NetworkPlugin::Cni,
        in_cluster,
        pod_cidrs: config.network.pod_cidrs.iter().map(ToString::to_string).collect(),
        unmasqueraded: config.network.unmasqueraded.clone(),
        util_chains: config.network.util_chains,
        hairpin: config.network.hairpin_mode != "none",
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

/// What to say of a node in a cluster whose CNI configuration has no effect: one that takes the kubelet's place would leave
/// the cluster's network unnoticed. Nothing where `--network-plugin` says what is wanted. Blocks for a moment.
pub(crate) fn overlooked(config: &Config) -> Option<String> {
    if !config.joining.in_cluster() || config.given_flags.contains_key("network-plugin") {
        return None;
    }
    let file = first_configuration(&config.network.cni_conf_dir)?;
    Some(format!(
        "{} describes a CNI network, and pods get Docker's: use --network-plugin=cni for that of the file \
         (--network-plugin= to silence this)",
        file.display()
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;
    use crate::config::{ConfigPath, Surroundings};

    #[test]
    fn a_cni_configuration_without_effect_is_told_of_in_a_cluster() {
        let folder = tempfile::tempdir().unwrap();
        let told = |flags: &[&str]| {
            let line = std::iter::once("longshore").chain(flags.iter().copied());
            let flags = Cli::try_parse_from(line).unwrap().daemon;
            let (mut config, _) = Config::build(&flags, ConfigPath::None, &Surroundings::default());
            config.network.cni_conf_dir = folder.path().to_owned();
            overlooked(&config)
        };
        let cluster = "--kubeconfig=/etc/kubernetes/kubelet.conf";
        std::fs::write(folder.path().join("README"), "").unwrap();
        assert_eq!(told(&[cluster]), None);
        std::fs::write(folder.path().join("10-flannel.conflist"), "{}").unwrap();
        let message = told(&[cluster]).unwrap();
        assert!(message.contains("/10-flannel.conflist") && message.contains("--network-plugin=cni"), "{message}");
        for chosen in ["--network-plugin=cni", "--network-plugin="] {
            assert_eq!(told(&[cluster, chosen]), None, "{chosen}");
        }
        assert_eq!(told(&[]), None, "alone there is no network of a cluster");
    }
}
